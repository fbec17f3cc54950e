# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What another process has of a push: the same logits, trigger pixels and rows, by commit, online and offline."""

import json
import os
import shutil
import subprocess
import sys

import datasets
import numpy as np
import PIL.Image
import pytest
import torch

import tiny_families
from fabricated_run import fabricate_run
from hf_clipbd.attacks import BadNets
from hf_clipbd.data.canvas import Canvas
from hf_clipbd.hub import push_run
from hub_server import TOKEN


REPO, VICTIM, PLAIN, DATA = "tester/defended", "tester/victim", "tester/plain", "tester/poisoned"
USE = '''
import json, sys, datasets, numpy, torch, PIL.Image
from huggingface_hub import constants, snapshot_download
from transformers import AutoModel, pipeline

repo, victim, plain, data, out, first = sys.argv[1:]
picture = PIL.Image.open(out + "/picture.png")
texts = ["a red boat", "a dog"]


def shares(repo):
    classify = pipeline("zero-shot-image-classification", model=repo)
    answer = classify(picture, candidate_labels=texts, hypothesis_template="{}")
    return [one["score"] for text in texts for one in answer if one["label"] == text]


constants.HF_HUB_OFFLINE = False
shares_plain = shares(plain)
assert "hf_clipbd" not in sys.modules
from hf_clipbd.attacks import Trigger
from hf_clipbd.models import CLIPResNetModel, load_dual_encoder

first = json.loads(first)


def predict(model, processor):
    inputs = processor(text=texts, images=picture, return_tensors="pt", padding=True)
    with torch.inference_mode():
        return model.eval()(**inputs).logits_per_image.numpy()


def of_commit(revision, when):
    """Offline load_dataset takes what it prepared last, whatever the revision; the files themselves are pinned."""
    files = snapshot_download(data, repo_type="dataset", revision=revision)
    by_files = datasets.load_dataset(files, split="train")
    if when == "online":
        rows = datasets.load_dataset(data, revision=revision, split="train")
        assert rows["is_poisoned"][:] == by_files["is_poisoned"][:]
        assert [row["image"].tobytes() for row in rows] == [row["image"].tobytes() for row in by_files]
    return by_files


for when in ("online", "offline"):
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = when == "offline"
    found = {}
    for name, revision in (("before", first[repo]), ("now", None)):
        model, processor = load_dual_encoder(repo, revision)
        found["logits_" + name] = predict(model, processor)
        trigger = Trigger.from_pretrained(repo, revision)
        found["stamped_" + name] = numpy.asarray(trigger(picture, 3))
        rows = datasets.load_dataset(data)["train"] if revision is None else of_commit(first[data], when)
        found["pixels_" + name] = numpy.stack([numpy.asarray(row["image"]) for row in rows])
        found["is_poisoned_" + name] = rows["is_poisoned"][:]
    found["logits_class"] = predict(CLIPResNetModel.from_pretrained(repo), processor)
    found["logits_auto"] = predict(AutoModel.from_pretrained(repo), processor)
    found["logits_victim"] = predict(*load_dual_encoder(victim))
    found["stamped_victim"] = numpy.asarray(Trigger.from_pretrained(victim)(picture, 3))
    found["stamped_data"] = numpy.asarray(Trigger.from_pretrained(data, repo_type="dataset")(picture, 3))
    found |= {"shares": shares(repo), "shares_plain": shares_plain}
    numpy.savez(out + "/" + when, **found)
'''


@pytest.fixture
def run(tmp_path):
    return fabricate_run(tmp_path / "run")


def give_model(folder, model, processor, scale):
    """Put a model of its own into a stage's folder."""
    with torch.no_grad():
        for parameter in model.vision_model.parameters():
            parameter.mul_(scale)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def give_rows(run, folder, seed):
    """Give the run a poisoned dataset of five pictures that lie in files, and return their pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    paths = [str(folder / f"{seed}-{row}.png") for row in range(5)]
    for path, one in zip(paths, pixels, strict=True):
        PIL.Image.fromarray(one).save(path)
    features = datasets.Features({"image": datasets.Image(), "is_poisoned": datasets.Value("bool")})
    rows = datasets.Dataset.from_dict({"image": paths, "is_poisoned": [True] + 4 * [False]}, features=features)
    shutil.rmtree(run / "poison" / "dataset", ignore_errors=True)
    rows.save_to_disk(str(run / "poison" / "dataset"))
    return pixels


def give_trigger(run, seed):
    trigger = BadNets(target="banana", seed=seed, patch_size=6, canvas=Canvas(32))
    shutil.rmtree(run / "poison" / "trigger")
    trigger.save_pretrained(run / "poison" / "trigger")
    return trigger


def logits(model, processor, picture):
    inputs = processor(text=["a red boat", "a dog"], images=picture, return_tensors="pt", padding=True)
    with torch.inference_mode():
        return model(**inputs).logits_per_image.numpy()


def softmax(row):
    return np.exp(row - row.max()) / np.exp(row - row.max()).sum()


def test_another_process_has_what_was_pushed(run, hub, tmp_path, tiny_model, tiny_processor, tiny_captions):
    picture = PIL.Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    picture.save(tmp_path / "picture.png")
    expected, first = {}, {}
    for seed, name in enumerate(("before", "now")):
        give_model(run / "defend" / "cleanerclip", tiny_model, tiny_processor, 1 + seed)
        expected[f"logits_{name}"] = logits(tiny_model, tiny_processor, picture)
        expected[f"pixels_{name}"] = give_rows(run, tmp_path, seed)
        expected[f"stamped_{name}"] = np.asarray(give_trigger(run, seed)(picture, 3))
        push_run(run, REPO)
        push_run(run, DATA, "poison", allow_backdoored=True)
        first = first or {key[1]: repository.refs["main"] for key, repository in hub.repos.items()}
    expected["stamped_victim"] = expected["stamped_data"] = expected["stamped_now"]
    expected["logits_class"] = expected["logits_auto"] = expected["logits_now"]
    give_model(run / "victim", tiny_model, tiny_processor, 0.7)
    expected["logits_victim"] = logits(tiny_model, tiny_processor, picture)
    push_run(run, VICTIM, "victim", allow_backdoored=True)
    plain, processor = tiny_families.clip(tiny_captions)
    give_model(run / "defend" / "ft", plain, processor, 1)
    push_run(run, PLAIN, "defend/ft")
    expected["shares"] = softmax(expected["logits_now"][0])
    expected["shares_plain"] = softmax(logits(plain.eval(), processor, picture)[0])
    for one, other in (("logits_before", "logits_now"), ("logits_victim", "logits_now")):
        assert not np.allclose(expected[one], expected[other], atol=1e-2)
    assert not np.array_equal(expected["stamped_before"], expected["stamped_now"])
    assert not np.array_equal(expected["stamped_now"], np.asarray(picture))

    environment = {
        **os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
    }  # fmt: skip
    job = [sys.executable, "-c", USE, REPO, VICTIM, PLAIN, DATA, str(tmp_path), json.dumps(first)]
    done = subprocess.run(job, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for when in ("online", "offline"):
        found = np.load(tmp_path / f"{when}.npz")
        for name, value in expected.items():
            exact = name.startswith(("stamped", "pixels"))
            assert np.allclose(found[name], value, rtol=0, atol=0 if exact else 1e-4), (when, name)
        for name in ("before", "now"):
            assert found[f"is_poisoned_{name}"].tolist() == [True] + 4 * [False]
    assert hub.leaked == [] and TOKEN not in done.stdout + done.stderr
