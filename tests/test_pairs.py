# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Which rows make a batch, and that every draw is a function of (seed, epoch, row)."""

import numpy as np
import PIL.Image
import pytest
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset, Features, Image, Value

from hf_clipbd.data.batches import PairBatchSampler
from hf_clipbd.data.canvas import Canvas
from hf_clipbd.data.pairs import PLAIN_VIEWS, PairKey, PairViews, ViewPlan


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


@pytest.mark.parametrize(
    ("n_rows", "batch", "k", "sizes"),
    [
        (200, 12, 24, [12, 12]),
        (200, 20, 40, [20, 20]),
        (3000, 100, 1000, [100] * 10),
        (200, 8, 9, [7, 2]),
        (16_000, 256, 256, [256]),
        (16_000, 256, 64, [64]),
        (16_000, 256, 1024, [256] * 4),
        (16_000, 256, 12_800, [256] * 50),
        (500_000, 64, 1000, [64] * 13 + [56] * 3),  # the paper's
        (500_000, 128, 3000, [128] * 15 + [120] * 9),
    ],
)
def test_no_extra_batch_is_larger_than_a_global_batch_or_a_single_pair(n_rows, batch, k, sizes):
    assert PairBatchSampler(n_rows, batch, subset_size=k)._subset_sizes() == sizes


@pytest.mark.parametrize("global_batch", [2, 3, 7, 8, 12, 21, 24, 60, 63, 96, 100, 256])
def test_extra_batches_of_awkward_numbers_are_shared_by_any_number_of_processes(global_batch):
    for k in [*range(2, 60), 96, 100, 250, 999, 1000, 1001]:
        alone = PairBatchSampler(1200, global_batch, subset_size=k)._subset_sizes()
        for processes in (one for one in range(1, 33) if global_batch % one == 0 and one <= k):
            sampler = PairBatchSampler(1200, global_batch // processes, processes, subset_size=k)
            sizes = sampler._subset_sizes()
            assert all(2 <= size <= global_batch and size % processes == 0 for size in sizes), (k, processes, sizes)
            assert len(sampler) == (1200 // global_batch + len(sizes)) * processes
            if k % processes == 0 and not (global_batch == 2 and k % 2):
                assert sum(sizes) == k
                assert sizes == alone or 24 % processes, (k, processes, sizes, alone)
            assert k - max(processes, 2) < sum(sizes) <= k


def test_pairs_that_processes_cannot_share_evenly_are_left_out_and_said(caplog):
    with caplog.at_level("WARNING", "hf_clipbd"):
        sampler = PairBatchSampler(6400, 21, 3, subset_size=1000)
    drawn = [key for batch in sampler for key in batch if key.subset]
    assert sampler.subset_size == len(drawn) == 999 and "999 of 1000 pairs" in caplog.text
    with pytest.raises(ValueError, match="as many pairs for the extra batches as there are processes.*k_pairs"):
        PairBatchSampler(6400, 21, 3, subset_size=2)


def test_three_processes_have_the_extra_batches_of_one():
    alone = list(PairBatchSampler(400, 96, 1, seed=4, subset_size=150))
    shared = list(PairBatchSampler(400, 32, 3, seed=4, subset_size=150))
    assert [sum(shared[i : i + 3], []) for i in range(0, len(shared), 3)] == alone


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


@pytest.mark.parametrize("kind", ["torch", "numpy", "arrow", "pandas"])
def test_a_format_is_taken_off_and_a_transform_kept(kind):
    rows, images = noise_rows()
    views = PairViews(rows.with_format(kind, columns=["caption"]), PLAIN_VIEWS, Canvas(16))
    drawn = views.__getitems__([PairKey(0, 4), PairKey(0, 1)])
    assert np.array_equal(drawn[0]["images"][0], images[4]) and drawn[1]["texts"] == ["caption 1"]
    turned = rows.with_transform(lambda batch: {**batch, "image": [one.rotate(180) for one in batch["image"]]})
    assert np.array_equal(
        PairViews(turned, PLAIN_VIEWS, Canvas(16))[PairKey(0, 4)]["images"][0], images[4][::-1, ::-1]
    )
    pixels = rows.with_transform(lambda batch: {**batch, "image": [np.asarray(one) for one in batch["image"]]})
    with pytest.raises(ValueError, match=r"Row 4: Expected a PIL image, but got ndarray.*with_format\(None\)"):
        PairViews(pixels, PLAIN_VIEWS, Canvas(16))[PairKey(0, 4)]


def test_missing_column_is_refused():
    rows, _ = noise_rows()
    with pytest.raises(ValueError, match="text"):
        PairViews(rows, PLAIN_VIEWS, Canvas(16), caption_column="text")


@pytest.mark.parametrize(("column", "row"), [("image", 4), ("caption", 2)])
def test_a_gap_is_named_before_anything_is_decoded(column, row, decoded):
    rows = noise_rows()[0]
    values = rows.cast_column("image", Image(decode=False)).to_dict()
    values[column][row] = None
    gappy = Dataset.from_dict(values, features=rows.features)
    with pytest.raises((ValueError, TypeError), match=f"(?i){column}.*row {row}|row {row}.*{column}"):
        PairViews(gappy, PLAIN_VIEWS, Canvas(16))
    shuffled = gappy.select([row, *(other for other in range(6) if other != row)])
    with pytest.raises((ValueError, TypeError), match="(?i)row 0"):
        PairViews(shuffled, PLAIN_VIEWS, Canvas(16))
    assert len(PairViews(shuffled.select(range(1, 6)), PLAIN_VIEWS, Canvas(16))) == 5 and not decoded


def test_a_picture_that_cannot_be_read_is_named_by_its_row(tmp_path):
    rows = Dataset.from_dict({"image": [str(tmp_path / "nope.png")] * 3, "caption": ["a cup"] * 3})
    views = PairViews(rows.cast_column("image", Image()), PLAIN_VIEWS, Canvas(16))
    with pytest.raises(ValueError, match="Row 2: .*nope.png"):
        views[PairKey(0, 2)]
