# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Which rows make a batch, and that every draw is a function of (seed, epoch, row)."""

import numpy as np
import PIL.Image
import pytest
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset, Features, Image, Value

from hf_clipbd.data.canvas import Canvas
from hf_clipbd.data.pairs import PLAIN_VIEWS, PairBatchSampler, PairKey, PairViews, ViewPlan


def rows_of(batches):
    return [[key.row for key in batch] for batch in batches]


def test_an_epoch_is_a_permutation_and_epochs_differ():
    sampler = PairBatchSampler(100, 10, seed=4)
    first = rows_of(sampler)
    sampler.set_epoch(1)
    second = rows_of(sampler)
    assert sorted(sum(first, [])) == list(range(100)) == sorted(sum(second, []))
    assert first != second
    sampler.set_epoch(0)
    assert rows_of(sampler) == first
    assert len(first) == len(sampler) == 10


@pytest.mark.parametrize("processes", [2, 4])
def test_global_batches_do_not_depend_on_the_number_of_processes(processes):
    alone = list(PairBatchSampler(100, 16, 1, seed=4, subset_size=40))
    shared = PairBatchSampler(100, 16 // processes, processes, seed=4, subset_size=40)
    shards = [list(BatchSamplerShard(shared, processes, rank, even_batches=False)) for rank in range(processes)]
    assert [sum(parts, []) for parts in zip(*shards, strict=True)] == alone
    assert len(shared) == processes * len(alone)


@pytest.mark.parametrize("k, sizes", [(1000, 16), (50, 1), (64, 1), (65, 2), (3000, 47)])
def test_k_pairs_form_batches_of_their_own_spread_through_the_epoch(k, sizes):
    sampler = PairBatchSampler(6400, 64, seed=0, subset_size=k)
    batches = list(sampler)
    extra = [i for i, batch in enumerate(batches) if batch[0].subset]
    rows = [key.row for i in extra for key in batches[i]]
    assert len(extra) == sizes and len(rows) == len(set(rows)) == k
    assert all(len({key.subset for key in batch}) == 1 for batch in batches)
    assert max(len(batches[i]) for i in extra) <= 64
    gaps = np.diff([*extra, len(batches)])
    assert gaps.max() - gaps.min() <= 2
    sampler.set_epoch(1)
    assert rows != [key.row for batch in sampler for key in batch if key.subset]


@pytest.mark.parametrize("bad", [dict(n_rows=7, batch_size=8), dict(n_rows=80, batch_size=8, subset_size=81)])
def test_impossible_batches_are_refused(bad):
    with pytest.raises(ValueError, match="Expected"):
        PairBatchSampler(**bad)


def noise_rows(n=6, size=16):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(n)]
    features = Features({"image": Image(), "caption": Value("string"), "is_poisoned": Value("bool")})
    columns = {"image": images, "caption": [f"caption {i}" for i in range(n)], "is_poisoned": [False] * n}
    return Dataset.from_dict(columns, features=features), images


def shifted(image: PIL.Image.Image, key):
    return PIL.Image.fromarray(np.roll(np.asarray(image), np.random.default_rng(key).integers(1, 8), axis=0))


def keyed(caption, key):
    return f"{caption} {key}"


def test_views_are_functions_of_seed_epoch_and_row():
    rows, images = noise_rows()
    plan = ViewPlan(
        images={**PLAIN_VIEWS.images, "moved": shifted},
        texts={**PLAIN_VIEWS.texts, "keyed": keyed},
        subset_texts={"extra": keyed},
    )
    views = PairViews(rows, plan, Canvas(16), seed=9)
    one = views[PairKey(3, 2)]
    many = views.__getitems__([PairKey(3, 5), PairKey(3, 2), PairKey(4, 2, True)])
    assert np.array_equal(one["images"], many[1]["images"]) and one["texts"] == many[1]["texts"]
    assert np.array_equal(one["images"][0], images[2])
    assert not np.array_equal(one["images"][1], many[2]["images"][1])
    assert one["texts"] == ["caption 2", "caption 2 (9, 3, 2)"]
    assert many[2]["texts"] == ["caption 2", "caption 2 (9, 4, 2)", "caption 2 (9, 4, 2)"]


def test_other_columns_are_never_read():
    rows, _ = noise_rows()
    assert PairViews(rows, PLAIN_VIEWS, Canvas(16)).rows.column_names == ["image", "caption"]


def test_missing_column_is_refused():
    rows, _ = noise_rows()
    with pytest.raises(ValueError, match="text"):
        PairViews(rows, PLAIN_VIEWS, Canvas(16), caption_column="text")
