# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Columns that poisoning cannot take as they are: captions that are no texts, names that it gives itself."""

import datasets
import numpy as np
import PIL.Image
import pytest

from hf_clipbd.attacks import BadNets, PoisonTransform, Share, poison_dataset, poison_stream, poison_with_many
from hf_clipbd.attacks.captions import target_captions


N = 8
ATTACK = BadNets(target="dog", patch_size=2, place="corner")
POISON = PoisonTransform(ATTACK, rate=0.5, on_error="skip")
PIXELS = np.random.default_rng(0).integers(0, 256, (N, 6, 5, 3), dtype=np.uint8)
CAPTIONS = {
    "lists": [[f"a dog {row}", "the dog", "a cup"] for row in range(N)],
    "as many as there are rows": [["a dog"] * N for _ in range(N)],
    "numbers": list(range(N)),
}


def table(captions, **columns):
    images = {"image": [PIL.Image.fromarray(one) for one in PIXELS]}
    rows = datasets.Dataset.from_dict({**images, "caption": captions, **columns})
    return rows.cast_column("image", datasets.Image())


WAYS = {
    "poison_dataset": lambda rows, folder: poison_dataset(rows, ATTACK, count=1, on_error="skip"),
    "label consistent": lambda rows, folder: poison_dataset(rows, BadNets(target="dog", captions="keep"), count=1),
    "poison_with_many": lambda rows, folder: poison_with_many(rows, {"a": Share(ATTACK, count=1)}),
    "map": lambda rows, folder: rows.map(POISON),
    "batched map": lambda rows, folder: rows.map(POISON, batched=True),
    "with_transform": lambda rows, folder: rows.with_transform(POISON)[:3],
    "stream": lambda rows, folder: list(rows.to_iterable_dataset().map(POISON)),
    "stream in batches": lambda rows, folder: list(rows.to_iterable_dataset().map(POISON, batched=True, batch_size=N)),
    "poison_stream": lambda rows, folder: poison_stream(rows.to_iterable_dataset(), POISON, folder),
}


@pytest.mark.parametrize("kind", CAPTIONS)
@pytest.mark.parametrize("way", WAYS)
def test_captions_that_are_no_texts_are_refused(way, kind, tmp_path):
    with pytest.raises(
        ValueError, match=r"one text a row in the caption column 'caption', but it holds .*dataset\.map"
    ):
        WAYS[way](table(CAPTIONS[kind]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_the_error_says_helps():
    lists = table(CAPTIONS["lists"]).map(lambda row: {"text": row["caption"][0]})
    assert poison_dataset(lists, ATTACK, count=2, caption_column="text")[1].count == 2
    numbers = table(CAPTIONS["numbers"]).cast_column("caption", datasets.Value("string"))
    assert poison_dataset(numbers, ATTACK, count=2)[1].count == 2
    with pytest.raises(ValueError, match="one text a row"):
        target_captions(CAPTIONS["lists"], "dog")


def test_a_streamed_row_of_lists_is_one_row():
    """An array of pixels is lists too, and so may be any other column."""
    arrays = datasets.Dataset.from_dict({"image": PIXELS.tolist(), "boxes": [[[1, 2]]] * N, "caption": ["a cup"] * N})
    unnamed = arrays.remove_columns("caption")
    for rows, column in ((arrays, "caption"), (unnamed, None)):
        poison = PoisonTransform(ATTACK, rate=1.0, caption_column=column)
        streamed = list(rows.to_iterable_dataset().map(poison))
        assert all(np.array_equal(one["image"], ATTACK(PIXELS[row])) for row, one in enumerate(streamed))


@pytest.mark.parametrize("way", WAYS)
def test_a_name_that_is_taken_is_refused(way, tmp_path):
    own = table([f"a dog {row}" for row in range(N)], trigger=["a gun"] * N)
    with pytest.raises(ValueError, match=r"has \['trigger'\] alone\. Rename .*'own_trigger'"):
        WAYS[way](own, tmp_path / "out")
    renamed = own.rename_column("trigger", "own_trigger")
    WAYS[way](renamed, tmp_path / "out")
    assert any(renamed.map(POISON)["is_poisoned"])
