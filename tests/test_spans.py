# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Spans of captions as text views: what they are, how they are drawn, and what chooses them."""

import pickle
from collections import Counter

import numpy as np
import pytest

from hf_clipbd.captions import sample_span
from hf_clipbd.defenses import DEFENSES
from hf_clipbd.training.settings import training_settings


WORDS = [f"w{i}" for i in range(11)]
CAPTION = "  ".join(WORDS)


def drawn(n, caption=CAPTION, **options):
    return [sample_span(caption, np.random.default_rng((7, i)), **options) for i in range(n)]


def test_a_span_is_a_run_of_the_caption_s_words():
    for span in drawn(200):
        words = span.split(" ")
        start = WORDS.index(words[0])
        assert words == WORDS[start : start + len(words)] and len(words) >= 3


def test_lengths_and_places_are_those_of_the_formula():
    """l = floor(p (n + 1 - l_min)) + l_min, p ~ Beta(2, 4), each place as likely: against counts of many draws."""
    n = 4000
    spans = [span.split(" ") for span in drawn(n)]
    lengths = Counter(map(len, spans))
    edges = np.linspace(0, 1, 10)  # 9 lengths, 3 to 11
    shares = 10 * edges**2 - 20 * edges**3 + 15 * edges**4 - 4 * edges**5  # the distribution function of Beta(2, 4)
    for length, share in zip(range(3, 12), np.diff(shares), strict=True):
        assert abs(lengths[length] - n * share) < 5 * (n * share * (1 - share)) ** 0.5 + 2, length
    starts = Counter(WORDS.index(words[0]) for words in spans if len(words) == 5)
    assert set(starts) == set(range(7)) and max(starts.values()) < 1.6 * min(starts.values())


@pytest.mark.parametrize("caption", ["", "  ", "cup", "a red  cup"])
def test_short_captions_stay_whole(caption):
    assert set(drawn(30, caption)) == {" ".join(caption.split())}


def test_the_shortest_span_can_be_chosen():
    assert min(len(span.split()) for span in drawn(300, shortest=1)) == 1
    assert set(drawn(20, shortest=99)) == {" ".join(WORDS)}
    with pytest.raises(ValueError, match="at least 1 word but got 0"):
        sample_span("a cup", np.random.default_rng(0), shortest=0)


def config(name, **options):
    return DEFENSES[name].config(output_dir="unused", use_cpu=True, **options)


def augmented(name, caption, key, **options):
    defense = DEFENSES[name]
    view = defense.trainer.view_plan(config(name, **options)).texts["augmented"]
    return pickle.loads(pickle.dumps(view))(caption, key)  # as a worker of the loader gets it


@pytest.mark.parametrize("name", ["cleanclip", "cleanerclip"])
def test_the_text_view_is_an_option_drawn_by_seed_epoch_and_row(name):
    spans = [augmented(name, CAPTION, (0, epoch, 3), text_view="span") for epoch in range(12)]
    assert all(f" {span} " in f" {' '.join(WORDS)} " for span in spans) and len(set(spans)) > 3
    assert augmented(name, CAPTION, (0, 2, 3), text_view="span") == spans[2]
    frozen = {augmented(name, CAPTION, (0, e, 3), text_view="span", frozen_text_views=True) for e in range(5)}
    assert frozen == {spans[0]}
    dog = "a dog runs on the green grass"
    assert augmented(name, dog, (0, 1, 2)) == augmented(name, dog, (0, 1, 2), text_view="eda")
    with pytest.raises(ValueError, match=r"text_view among \['eda', 'span'\], but got 'spam'"):
        config(name, text_view="spam")


def test_the_option_leaves_the_keys_of_earlier_records_alone():
    later = {"text_view", "fc_images", "learned_scale", "rarity_from", "rarity_to", "directions", "parser", "k_share"}
    assert later.isdisjoint(training_settings(config("cleanerclip")))
    assert training_settings(config("cleanerclip", rarity_to=0.2))["rarity_to"] == 0.2
    assert training_settings(config("cleanclip", text_view="span"))["text_view"] == "span"
    assert "frozen_text_views" in training_settings(config("cleanclip"))
