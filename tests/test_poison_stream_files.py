# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Streams whose pictures lie in archives, and streams with more columns of pictures than one."""

import io
import json
import zipfile

import datasets
import numpy as np
import PIL.Image
import pytest

from hf_clipbd.attacks import BadNets, PoisonTransform, poison_stream


N = 12
POISON = PoisonTransform(BadNets(patch_size=2), rate=0.4)
FEATURES = {"image": datasets.Image(), "caption": datasets.Value("string"), "id": datasets.Value("string")}


def png(seed):
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 9, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def written(folder, column="image"):
    rows = datasets.Dataset.from_parquet(str(folder / "train-00000.parquet"), cache_dir=str(folder / "cache"))
    return rows, rows.cast_column(column, datasets.Image(decode=False))[column][:]


def zipped(folder, broken=()):
    """Return the stream of an imagefolder in a zip, which names pictures `zip://0.png::/.../all.zip`."""
    with zipfile.ZipFile(folder / "all.zip", "w") as archive:
        lines = [json.dumps({"file_name": f"{row}.png", "caption": f"a thing {row}"}) for row in range(N)]
        archive.writestr("metadata.jsonl", "\n".join(lines))
        for row in range(N):
            archive.writestr(f"{row}.png", b"SECRET" if row in broken else png(row))
    return datasets.load_dataset("imagefolder", data_files=str(folder / "all.zip"), split="train", streaming=True)


def test_pictures_in_a_zip_are_taken_in(tmp_path):
    stream = zipped(tmp_path)
    assert next(iter(stream.decode(False)))["image"]["path"].startswith("zip://")
    manifest = poison_stream(stream, POISON, tmp_path / "out")
    rows, images = written(tmp_path / "out")
    assert 0 < manifest.count < N and not manifest.skipped
    number = {caption: row for row, caption in enumerate(f"a thing {row}" for row in range(N))}
    for row in sorted({*range(N)} - {*manifest.indices}):
        assert images[row] == {
            "bytes": png(number[rows["caption"][row]]),
            "path": f"{number[rows['caption'][row]]}.png",
        }
    table = rows.select_columns(["image", "caption"]).map(POISON)
    assert manifest.source_fingerprint != poison_stream(stream.take(N - 1), POISON, tmp_path / "b").source_fingerprint
    assert len(table) == N


def test_what_is_no_picture_in_a_zip_is_not(tmp_path):
    stream = zipped(tmp_path, broken=[3])
    at = [row["caption"] for row in stream.decode(False)].index("a thing 3")
    clean = PoisonTransform(BadNets(patch_size=2), rate=0.0)
    with pytest.raises(ValueError, match=rf"Row {at}: .*can be decoded.*on_error"):
        poison_stream(stream, clean, tmp_path / "a")
    skipping = PoisonTransform(BadNets(patch_size=2), rate=0.0, on_error="skip")
    assert list(poison_stream(stream, skipping, tmp_path / "b").skipped) == [str(at)]
    _, images = written(tmp_path / "b")
    assert [row for row, one in enumerate(images) if one is None] == [at]
    assert b"SECRET" not in (tmp_path / "b" / "train-00000.parquet").read_bytes()
    gone = [{"image": f"zip://{row}.png::{tmp_path}/all.zip", "caption": "a", "id": str(row)} for row in (0, 99)]
    rows = datasets.Dataset.from_list(gone, features=datasets.Features(FEATURES)).to_iterable_dataset()
    assert list(poison_stream(rows, skipping, tmp_path / "c").skipped) == ["1"]


def test_other_columns_of_pictures_are_taken_in_too(tmp_path):
    (tmp_path / "mask.png").write_bytes(png(99))
    more = {"mask": datasets.Image(), "views": datasets.List(datasets.Image()), "pair": {"left": datasets.Image()}}
    mask = str(tmp_path / "mask.png")
    rows = [
        {"image": {"bytes": png(row), "path": None}, "caption": f"a thing {row}", "id": str(row)}
        | {
            "mask": mask if row % 2 else None,
            "views": [mask, {"bytes": png(row), "path": None}],
            "pair": {"left": mask},
        }
        for row in range(N)
    ]
    table = datasets.Dataset.from_list(rows, features=datasets.Features({**FEATURES, **more}))
    manifest = poison_stream(table.to_iterable_dataset(), POISON, tmp_path / "out")
    poisoned, masks = written(tmp_path / "out", "mask")
    taken = {"bytes": png(99), "path": "mask.png"}
    assert 0 < manifest.count < N and masks == [taken if row % 2 else None for row in range(N)]
    raw = [table for table in poisoned.with_format("arrow")][3]
    assert raw["views"].to_pylist() == [[taken, {"bytes": png(3), "path": None}]]
    assert raw["pair"].to_pylist() == [{"left": taken}]
    assert {name: poisoned.features[name] for name in more} == more
    (tmp_path / "mask.png").write_text("SECRET")
    with pytest.raises(ValueError, match=r"Row 0, column 'views': Expected a picture at .*mask\.png"):
        poison_stream(table.to_iterable_dataset(), POISON, tmp_path / "other")
