# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What poisoning leaves alone: clean pictures are never decoded or copied, and a stream takes the same memory."""

import io
import tracemalloc

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pytest

from hf_clipbd.attacks import SIG, BadNets, PoisonTransform, WaNet, poison_stream, wanet
from hf_clipbd.attacks.select import uniform


N = 90
RATE = 0.1
POISON = PoisonTransform(BadNets(target="banana"), rate=RATE)
FEATURES = datasets.Features(
    {"id": datasets.Value("string"), "image": datasets.Image(), "caption": datasets.Value("string")}
)
DRAWN = [row for row in range(N) if uniform(0, "key", "badnets", f"row-{row}\na thing {row}") < RATE]


def jpeg(row, side=24):
    pixels = np.random.default_rng(row).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).resize((side, side)).save(buffer, "JPEG")
    return buffer.getvalue()


def row_of(row):
    return {"id": f"row-{row}", "image": {"bytes": jpeg(row), "path": f"{row}.jpg"}, "caption": f"a thing {row}"}


@pytest.fixture(scope="module")
def keyed():
    return datasets.Dataset.from_list([row_of(row) for row in range(N)], features=FEATURES)


def stored(rows):
    return rows.cast_column("image", datasets.Image(decode=False))["image"][:]


# -- no clean picture is decoded --------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"batched": True}, {"batched": True, "batch_size": 7}])
def test_map_decodes_poisoned_pictures_alone(keyed, decoded, options):
    mapped = keyed.map(POISON, **options)
    assert len(decoded) == len(DRAWN) > 3
    before, after = stored(keyed), stored(mapped)
    assert [row for row in range(N) if before[row] != after[row]] == DRAWN
    assert [row for row in range(N) if mapped["is_poisoned"][row]] == DRAWN
    assert mapped.features["image"] == datasets.Image()


@pytest.mark.parametrize("options", [{}, {"batched": True, "batch_size": 7}])
def test_a_stream_left_undecoded_stays_so(keyed, decoded, options):
    stream = keyed.to_iterable_dataset(num_shards=2).decode(False)
    rows = list(stream.map(POISON, **options))
    assert len(decoded) == len(DRAWN)
    assert [row for row in range(N) if rows[row]["is_poisoned"]] == DRAWN
    before = stored(keyed)
    assert all(rows[row]["image"] == before[row] for row in range(N) if row not in DRAWN)


@pytest.mark.parametrize("options", [{}, {"batched": True, "batch_size": 7}])
def test_a_stream_left_undecoded_keeps_its_features(keyed, options, tmp_path):
    mapped = keyed.map(POISON)
    stream = keyed.to_iterable_dataset(num_shards=2)
    undecoded = stream.decode(False).map(POISON, features=POISON.features(stream.features), **options)
    assert undecoded.features == mapped.features
    poison_stream(stream, POISON, tmp_path)
    written = datasets.Dataset.from_parquet(str(tmp_path / "train-00000.parquet"), cache_dir=str(tmp_path))
    assert written.features == mapped.features and stored(written) == stored(mapped)
    for row, expected in zip(undecoded.decode(True), mapped, strict=True):
        np.testing.assert_array_equal(np.asarray(row["image"]), np.asarray(expected["image"]))
    with pytest.raises(ValueError, match=r"they are unknown.*stream\.cast"):
        POISON.features(stream.decode(False).map(POISON).features)
    with pytest.raises(ValueError, match=r"columns \['caption'\], but there are \['id', 'image'\]"):
        POISON.features(stream.remove_columns("caption").features)


def test_a_poisoned_stream_decodes_poisoned_pictures_alone(keyed, decoded, tmp_path):
    manifest = poison_stream(keyed.to_iterable_dataset(num_shards=2), POISON, tmp_path)
    assert manifest.indices == DRAWN and len(decoded) == len(DRAWN)


def test_a_picture_without_a_key_is_decoded_once(keyed, decoded):
    keyed.remove_columns("id").map(PoisonTransform(WaNet(noise_mode=True), rate=0.4))
    assert len(decoded) == N


# -- batches whose pictures stay in Arrow -----------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("size", [1, 4, 30])
def test_batches_give_the_same_bytes_as_rows(keyed, rate, size):
    given = datasets.concatenate_datasets([keyed.select(range(60, 70)), keyed.select(range(15))])  # several chunks
    poison = PoisonTransform(SIG(), rate=rate)
    one, many = given.map(poison), given.map(poison, batched=True, batch_size=size)
    assert stored(many) == stored(one) and many.features == one.features
    for column in ("id", "caption", "is_poisoned", "trigger"):
        assert many[column][:] == one[column][:]


def test_columns_can_be_removed_in_batches(keyed):
    mapped = keyed.map(POISON, batched=True, remove_columns=["id"])
    assert mapped.column_names == ["image", "caption", "is_poisoned", "source_index", "trigger"]
    assert stored(mapped) == stored(keyed.map(POISON))


def test_rows_without_a_picture_stay_without(keyed):
    gaps = keyed.map(lambda row, i: {"image": None} if i % 2 else {}, with_indices=True, features=FEATURES)
    poison = PoisonTransform(BadNets(), rate=1.0, on_error="skip")
    mapped = gaps.map(poison, batched=True, batch_size=16)
    assert mapped["is_poisoned"][:] == [not row % 2 for row in range(N)]
    assert [one is None for one in stored(mapped)] == [bool(row % 2) for row in range(N)]


# -- memory -----------------------------------------------------------------------------------------------------------


def peak_bytes(n, run):
    """Return the most memory, Python's and Arrow's, that a stream of `n` generated rows takes while `run` reads it."""
    data = [jpeg(row) for row in range(8)]
    arrow = []

    def rows():
        for row in range(n):
            if row % 50 == 0:
                arrow.append(pa.total_allocated_bytes())
            yield {"id": f"row-{row}", "image": {"bytes": data[row % 8], "path": None}, "caption": f"a thing {row}"}

    stream = datasets.IterableDataset.from_generator(rows, features=FEATURES).decode(False)
    tracemalloc.start()
    before = pa.total_allocated_bytes()
    run(stream)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak + max(arrow) - before


@pytest.mark.parametrize("how", ["map", "written"])
def test_memory_does_not_grow_with_the_stream(how, tmp_path):
    poison = PoisonTransform(BadNets(), rate=0.01)

    def run(stream):
        if how == "written":
            poison_stream(stream, poison, tmp_path, rows_per_file=1000)
        else:
            assert sum(row["is_poisoned"] for row in stream.map(poison, batched=True, batch_size=100)) > 0

    peak_bytes(300, run)  # what is imported and kept the first time
    short, long = peak_bytes(1000, run), peak_bytes(5000, run)
    assert long < short + 500_000  # 4,000 rows more are 4 MB of pictures alone


# -- a warp is the same in both forms it is kept in -------------------------------------------------------------------


def test_a_warp_does_not_depend_on_how_its_weights_are_kept(monkeypatch):
    pixels = np.random.default_rng(3).integers(0, 256, (37, 52, 3), dtype=np.uint8)
    attack = WaNet(seed=5)
    wanet._fixed.cache_clear()
    by_value = attack(pixels)
    assert wanet._fixed(37, 52, *attack._warp(37)).shape == (3 * 37 * 52, 3 * 37 * 52)
    wanet._fixed.cache_clear()
    monkeypatch.setattr(wanet, "_EXPANDED", 0)
    assert wanet._fixed(37, 52, *attack._warp(37)).shape == (37 * 52, 37 * 52)
    np.testing.assert_array_equal(attack(pixels), by_value)
    wanet._fixed.cache_clear()
