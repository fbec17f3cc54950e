# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Incoming images: the embeddings and figures of a scan against one picture at a time."""

import numpy as np
import pytest
import torch

from hf_clipbd.attacks import BadNets
from hf_clipbd.data.canvas import Canvas
from hf_clipbd.detection import detection_performance, scan
from hf_clipbd.evaluation import zero_shot
from hf_clipbd.features import embed_dataset, embed_images, pixel_values
from hf_clipbd.recipe import scanning
from hf_clipbd.recipe.scanning import embed_stamped, scan_figures
from hf_clipbd.scenes import load_clean_clip, load_scenes


@pytest.fixture(scope="module")
def incoming():
    """Return the shipped encoder, 30 labelled scenes, two triggers and the canvas."""
    encoder, test = load_clean_clip(), load_scenes("test", 64, 1, 30)
    names = test.features["label"].names
    targets = [names[int(label)] for label in test["label"][:2]]
    triggers = {"small": BadNets(target=targets[0], patch_size=8), "large": BadNets(target=targets[1], patch_size=20)}
    return encoder, test, triggers, Canvas(64, "squash")


def test_embeddings_are_those_of_each_picture_stamped_alone(incoming):
    (model, processor), test, triggers, canvas = incoming
    seen, counted = embed_stamped((model, processor), test, triggers, 9, canvas)
    assert seen.shape == (3, 30, seen.shape[2]) and counted.shape == (2, 30)
    np.testing.assert_allclose(seen[0], embed_dataset(model, processor, test, "image", None)["image"], atol=1e-6)
    for number in (0, 7, 29):
        pixels = triggers["large"](canvas.array(test[number]["image"]), index=number)
        one = test.select([0]).map(lambda row, p=pixels: {"image": p}, load_from_cache_file=False)
        with torch.no_grad():
            alone = embed_images(model, pixel_values(processor, one, canvas=canvas)).numpy()[0]
        np.testing.assert_allclose(seen[2, number], alone, atol=1e-6)
    labels = np.array(test["label"])
    assert (counted == np.stack([labels != labels[0], labels != labels[1]])).all()


def test_shares_of_two_processes_are_put_in_order(incoming, monkeypatch):
    (model, processor), test, triggers, canvas = incoming
    whole = embed_stamped((model, processor), test, triggers, 12, canvas)
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr(zero_shot, "rank_and_world", lambda rank=rank: (rank, 2))
        monkeypatch.setattr(scanning, "gather_object", lambda own: shares.extend(own) or (own * 2))
        embed_stamped((model, processor), test, triggers, 12, canvas)
    monkeypatch.setattr(scanning, "gather_object", lambda own: shares)
    both = embed_stamped((model, processor), test, triggers, 12, canvas)
    np.testing.assert_allclose(both[0], whole[0], atol=1e-6)
    assert (both[1] == whole[1]).all()


def test_figures_are_those_of_scores_put_together_by_hand(incoming):
    encoder, test, triggers, canvas = incoming
    reference = load_scenes("test", 64, 7, 120)
    found = scan_figures(encoder, encoder, test, reference, triggers, ["lid", "disagreement"], 32, canvas)
    assert list(found) == ["small", "large"] and list(found["large"]) == ["lid", "disagreement"]
    seen, counted = embed_stamped(encoder, test, triggers, 32, canvas)
    known = embed_dataset(*encoder, reference, "image", None)["image"]
    clean, stamped = scan(seen[0], known, "lid"), scan(seen[2][counted[1]], known, "lid")
    figures = found["large"]["lid"]
    truth = [0] * 30 + [1] * len(stamped.scores)
    assert figures["auroc"] == detection_performance([*clean.scores, *stamped.scores], truth)["auroc"]
    assert figures["flagged"] == np.mean([exceeded <= 0.01 for exceeded in stamped.exceeded])
    assert figures["false_alarms"] == np.mean([exceeded <= 0.01 for exceeded in clean.exceeded])
    assert (figures["n_clean"], figures["n_stamped"]) == (30, int(counted[1].sum()))
