# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Embedding: pictures are decoded ahead, few are held, and a model is told from another with the same weights."""

import copy
import threading
import time

import datasets
import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import torch

from hf_clipbd.data import ahead
from hf_clipbd.data.ahead import decoding_threads, made_ahead
from hf_clipbd.data.canvas import Canvas
from hf_clipbd.data.pairs import PLAIN_VIEWS, PairKey, PairViews
from hf_clipbd.data.undecoded import undecoded
from hf_clipbd.evaluation import text_classifier
from hf_clipbd.features import embed_dataset, model_fingerprint
from hf_clipbd.models import load_dual_encoder


@pytest.fixture
def rows():
    rng = np.random.default_rng(4)
    pictures = [PIL.Image.fromarray(rng.integers(0, 256, (90 + i, 70, 3), dtype=np.uint8)) for i in range(12)]
    features = datasets.Features(image=datasets.Image(), caption=datasets.Value("string"))
    captions = [f"picture {i}" for i in range(12)]
    return datasets.Dataset.from_dict({"image": pictures, "caption": captions}, features=features)


def test_a_batch_holds_few_pictures_in_their_own_size(rows, held, tiny_model, tiny_processor):
    embed_dataset(tiny_model, tiny_processor, rows, batch_size=12)
    assert len(held) == 12 and max(held) <= 1


@pytest.mark.parametrize("threads", [1, 3])
def test_work_ahead_comes_in_order_and_is_bounded(threads):
    begun, taken = [], []

    def work(item):
        time.sleep(0.002 * (item % 3))
        begun.append(item)
        if item == 30:
            raise ValueError("thirty")
        return item * item

    with pytest.raises(ValueError, match="thirty"):
        for found in made_ahead(work, range(100), most=5, threads=threads):
            taken.append(found)
            assert len(begun) <= len(taken) + 5
    assert taken == [item * item for item in range(30)] and max(begun) <= 35 + threads


def test_whoever_stops_waits_for_nothing():
    go, begun = threading.Event(), []

    def work(item):
        begun.append(item)
        return item if item < 2 else go.wait(20)

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        for item in made_ahead(work, range(50), most=8, threads=2):
            if item == 1:
                raise KeyboardInterrupt
    assert time.monotonic() - started < 5
    go.set()
    assert len(begun) <= 4  # two that were handed out, one for each thread


def test_threads_are_a_share_of_the_cores(monkeypatch):
    monkeypatch.setattr(ahead.os, "sched_getaffinity", lambda _: range(48), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert decoding_threads() == ahead.MOST_THREADS == 16
    for processes, threads in (("8", 6), ("64", 1), ("0", 16), ("many", 16)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        assert decoding_threads() == threads


def test_embeddings_and_what_is_broken_do_not_depend_on_threads(rows, tiny_model, tiny_processor, monkeypatch):
    encoded = rows.cast_column("image", datasets.Image(decode=False)).to_list()
    encoded[3]["image"]["bytes"], encoded[9]["caption"], encoded[10]["image"] = b"none", None, None
    broken = datasets.Dataset.from_list(encoded, features=rows.features)
    found = []
    for threads in (1, 4):
        monkeypatch.setattr("hf_clipbd.data.reader.decoding_threads", lambda threads=threads: threads)
        unreadable = {}
        found.append(embed_dataset(tiny_model, tiny_processor, broken, batch_size=5, unreadable=unreadable))
        assert list(unreadable) == [3, 9, 10] and "UnidentifiedImageError" in unreadable[3]
        with pytest.raises(ValueError, match=r"^Row 3: Expected an image that can be decoded"):
            embed_dataset(tiny_model, tiny_processor, broken, batch_size=5)
    one, four = found
    assert len(one["image"]) == len(one["text"]) == 9
    assert all(one[name].tobytes() == four[name].tobytes() for name in one)


def test_each_thread_holds_one_picture_in_its_own_size(rows, held, tiny_model, tiny_processor, monkeypatch):
    monkeypatch.setattr("hf_clipbd.data.reader.decoding_threads", lambda: 3)
    embed_dataset(tiny_model, tiny_processor, rows, batch_size=12)
    assert len(held) == 12 and max(held) <= 2


def test_a_training_batch_holds_few_pictures_in_their_own_size(rows, held):
    views = PairViews(rows, PLAIN_VIEWS, Canvas(16))
    batch = views.__getitems__([PairKey(0, i) for i in range(12)])
    assert len(batch) == len(held) == 12 and max(held) <= 1


def test_pictures_with_a_transform_come_as_it_gives_them(rows, tiny_model, tiny_processor):
    black = rows.with_transform(
        lambda batch: {**batch, "image": [PIL.Image.new("RGB", (32, 32)) for _ in batch["image"]]}
    )
    assert undecoded(black, "image")[0] is black
    found = embed_dataset(tiny_model, tiny_processor, black, caption_column=None)["image"]
    assert np.allclose(found, found[0]) and not np.allclose(
        found, embed_dataset(tiny_model, tiny_processor, rows, caption_column=None)["image"]
    )


def test_mirrored_pictures_have_the_embeddings_of_their_mirror_images(rows, tiny_model, tiny_processor):
    size = Canvas.of(tiny_processor).size
    square = rows.map(lambda row: {"image": row["image"].resize((size, size))}, features=rows.features)
    turned = square.map(lambda row: {"image": PIL.ImageOps.mirror(row["image"])}, features=rows.features)
    plain = embed_dataset(tiny_model, tiny_processor, turned)
    found = embed_dataset(tiny_model, tiny_processor, square, mirrored=True)
    np.testing.assert_allclose(found["image"], plain["image"], atol=1e-6)
    np.testing.assert_array_equal(found["text"], plain["text"])
    assert not np.allclose(found["image"], embed_dataset(tiny_model, tiny_processor, square)["image"], atol=1e-4)


def test_the_mode_that_a_column_names_is_kept(rows):
    grey = rows.cast_column("image", datasets.Image(mode="L"))
    encoded, decode = undecoded(grey, "image")
    assert decode(encoded[0]["image"]).mode == "L"


def test_the_same_weights_with_another_activation_are_another_model(tiny_model, tiny_processor, tmp_path):
    fingerprint = model_fingerprint(tiny_model)
    tiny_model.save_pretrained(tmp_path)
    tiny_processor.save_pretrained(tmp_path)
    assert model_fingerprint(load_dual_encoder(tmp_path)[0]) == fingerprint  # neither name nor folder counts
    other = copy.deepcopy(tiny_model)
    other.config.text_config.hidden_act = "relu"
    assert model_fingerprint(other) != fingerprint


def test_a_model_with_other_adapters_active_is_another_model(tiny_model, tiny_processor, tmp_path):
    from peft import LoraConfig, get_peft_model

    both = ["q_proj", "text_projection"]
    plain = model_fingerprint(tiny_model)
    model = get_peft_model(tiny_model, LoraConfig(r=2, target_modules=both, init_lora_weights=False))
    model.add_adapter("second", LoraConfig(r=2, target_modules=both, init_lora_weights=False))

    def found():
        kept = text_classifier(model, tiny_processor, ["boat", "dog"], ["a {}"], cache=tmp_path)
        assert torch.equal(kept, text_classifier(model, tiny_processor, ["boat", "dog"], ["a {}"]))
        return model_fingerprint(model)

    default = found()
    with model.disable_adapter():
        base = found()
    model.set_adapter("second")
    second = found()
    model.set_adapter("default")
    assert found() == default and len({plain, default, base, second}) == 4
