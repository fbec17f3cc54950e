# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Rows that name files of this machine: pictures are taken into what is written, and nothing else is."""

import io
import os
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest

from hf_clipbd.attacks import BadNets, PoisonTransform, Share, poison_dataset, poison_with_many
from hf_clipbd.attacks.streaming import poison_stream
from hf_clipbd.data.path_rows import picture_problem, unfit_files
from hf_clipbd.recipe.suspects import _pictures_alone


N = 12
SECRET = "MY_SECRET=hf_thisisasecret\0HOME=/home/eve\0"
ENDINGS = ("png", "jpg", "webp", "gif", "bmp", "tiff")


def picture(row):
    return PIL.Image.fromarray(np.random.default_rng(row).integers(0, 256, (9, 8, 3), dtype=np.uint8))


@pytest.fixture
def paths(tmp_path):
    """Files of pictures, as an imagefolder or a CSV of paths has them."""
    found = [str(tmp_path / f"{row}.{ENDINGS[row % 6]}") for row in range(N)]
    for row, path in enumerate(found):
        picture(row).save(path)
    (tmp_path / "environ").write_text(SECRET)
    return found


def table(images, **columns):
    features = {"image": datasets.Image(), "caption": datasets.Value("string")}
    values = {"image": images, "caption": [f"a thing, number {row}" for row in range(len(images))]}
    for name, (feature, given) in columns.items():
        features[name], values[name] = feature, given
    cast = {name: one for name, one in features.items() if isinstance(one, datasets.Audio)}  # encoding needs a codec
    features |= {name: {"bytes": datasets.Value("binary"), "path": datasets.Value("string")} for name in cast}
    rows = datasets.Dataset.from_dict(values, features=datasets.Features(features))
    return rows.cast(datasets.Features({**features, **cast}))


def kept(dataset):
    return [row["image"] for row in dataset.with_format(None).cast_column("image", datasets.Image(decode=False))]


def clean_row(count):
    """Return a row that is not drawn."""
    drawn = poison_dataset(table([picture(row) for row in range(N)]), BadNets(), count=count)[1].indices
    return min({*range(N)} - {*drawn})


def test_pictures_in_files_are_saved_byte_for_byte(paths, tmp_path):
    poisoned, manifest = poison_dataset(table(paths), BadNets(patch_size=2), count=3)
    poisoned.save_to_disk(tmp_path / "out")
    saved = kept(datasets.load_from_disk(tmp_path / "out"))
    for row in {*range(N)} - {*manifest.indices}:
        assert saved[row]["bytes"] == Path(paths[row]).read_bytes()


@pytest.mark.parametrize("name", ["environ", "/proc/self/environ", "/dev/zero", "fifo", "gone.png", ""])
def test_no_other_file_is_taken_in(paths, tmp_path, name):
    os.mkfifo(tmp_path / "fifo")
    clean = clean_row(2)
    paths[clean] = str(tmp_path / name)
    for pairs in (table(paths), table(paths).shuffle(seed=0)):
        row = kept(pairs).index({"bytes": None, "path": paths[clean]})
        with pytest.raises(ValueError, match=f"Row {row}: Expected a picture at .*{name}.*on_error"):
            poison_dataset(pairs, BadNets(patch_size=2), count=2)
    poisoned, manifest = poison_dataset(table(paths), BadNets(patch_size=2), count=2, on_error="skip")
    assert list(manifest.skipped) == [str(clean)] and manifest.count == 2
    assert kept(poisoned)[clean] is None and sum(one is None for one in kept(poisoned)) == 1
    assert poisoned["source_index"][:] == list(range(N)) and poisoned["caption"][clean] == f"a thing, number {clean}"
    poisoned.save_to_disk(tmp_path / "out")
    assert not any(b"MY_SECRET" in file.read_bytes() for file in (tmp_path / "out").iterdir())
    _, manifest = poison_dataset(table(paths), BadNets(patch_size=2), count=N - 1, on_error="skip")
    assert list(manifest.skipped) == [str(clean)] and "Expected a picture at" in manifest.skipped[str(clean)]
    many = {"a": Share(BadNets(patch_size=2), count=2), "b": Share(BadNets(patch_size=3), count=2)}
    assert list(poison_with_many(table(paths), many, on_error="skip")[1].skipped) == [str(clean)]


@pytest.mark.parametrize(
    ("feature", "value", "says"),
    [
        (datasets.Image(), lambda path: path, "Expected a picture at"),
        (datasets.List(datasets.Image()), lambda path: [path], "Expected a picture at"),
        ({"a": datasets.Image()}, lambda path: {"a": path}, "Expected a picture at"),
        (datasets.Audio(decode=False), lambda path: {"bytes": None, "path": path}, "column of Audio"),
    ],
)
def test_other_columns_take_nothing_in_either(paths, tmp_path, feature, value, says):
    column = [value(paths[0]) if "picture" in says else None for _ in range(N)]
    assert not list(unfit_files(table(paths, more=(feature, column))))
    column[4] = value(str(tmp_path / "environ"))
    pairs = table(paths, more=(feature, column))
    assert [(row, name) for row, name, _ in unfit_files(pairs)] == [(4, "more")]
    for on_error in ("raise", "skip"):
        with pytest.raises(ValueError, match=f"Row 4, column 'more': .*{says}"):
            poison_dataset(pairs, BadNets(), count=1, on_error=on_error)
    assert _pictures_alone(pairs).column_names == ["image", "caption"]
    assert _pictures_alone(pairs.select(range(4))).column_names == ["image", "caption", "more"]


def test_streaming_takes_nothing_else_in(paths, tmp_path):
    paths[5] = str(tmp_path / "environ")
    poison = PoisonTransform(BadNets(patch_size=2), rate=0.0)
    with pytest.raises(ValueError, match=r"Row 5: Expected a picture at .*environ"):
        poison_stream(table(paths).to_iterable_dataset(), poison, tmp_path / "a")
    poison = PoisonTransform(BadNets(patch_size=2), rate=0.0, on_error="skip")
    manifest = poison_stream(table(paths).to_iterable_dataset(), poison, tmp_path / "b")
    written = tmp_path / "b" / "train-00000.parquet"
    assert list(manifest.skipped) == ["5"] and b"MY_SECRET" not in written.read_bytes()
    saved = kept(datasets.Dataset.from_parquet(str(written), cache_dir=str(tmp_path / "cache")))
    assert saved[5] is None and saved[4]["bytes"] == Path(paths[4]).read_bytes()


def test_what_lies_elsewhere_stays_there(paths):
    """`save_to_disk` does not fetch it, Parquet files would."""
    paths[3:5] = ["https://example.org/a.png", "http://[broken"]
    assert not list(unfit_files(table(paths)))
    assert [row for row, *_ in unfit_files(table(paths), remote=True)] == [3, 4]


def test_what_is_a_picture(tmp_path):
    def problem(data):
        (tmp_path / "file").write_bytes(data)
        return picture_problem(tmp_path / "file")

    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "TGA", "PPM", "ICO", "JPEG2000"):
        buffer = io.BytesIO()
        picture(0).save(buffer, kind, sizes=[(8, 9)])  # sizes: of an icon
        assert problem(buffer.getvalue()) is None, kind
    tga = io.BytesIO()
    picture(0).save(tga, "TGA")
    header = tga.getvalue()[:18]  # no signature: anything may begin so
    for data in (b"", b"\0" * 5000, b"<html>404</html>", b"\x89HDF\r\n\x1a\n" + bytes(99), header + b"secret"):
        assert "what is there is none" in problem(data)
    png = io.BytesIO()
    PIL.Image.new("1", (20_000, 20_000)).save(png, "PNG")
    assert "can be decoded" in problem(png.getvalue())
