# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""`hf-clipbd poison --streaming`: when a finished folder is out of date, which columns are kept, what is refused."""

import io
import os
import shutil
import tarfile

import datasets
import numpy as np
import PIL.Image
import pytest

from hf_clipbd.attacks import BadNets, PoisonTransform, poison_stream
from hf_clipbd.attacks.select import draw_by_key
from hf_clipbd.cli import main
from hf_clipbd.data.sources import load_source
from hf_clipbd.schema import PoisonManifest, RunRecord


N = 40
RATE = 0.2
BROKEN = b"<html>404</html>"


def jpeg(row):
    pixels = np.random.default_rng(row).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).resize((20, 24)).save(buffer, "JPEG")
    return buffer.getvalue()


def table(n=N, names=("cup", "owl"), broken=()):
    """Return rows with short captions, which have to be decoded where nothing else tells rows apart."""
    images = [{"bytes": BROKEN if row in broken else jpeg(row), "path": None} for row in range(n)]
    columns = {
        "picture": images,
        "text": [f"a {names[row % 2]}" for row in range(n)],
        "id": [f"row-{row}" for row in range(n)],
        "label": [row % 2 for row in range(n)],
        "width": list(range(n)),
    }
    features = {
        "picture": datasets.Image(),
        "text": datasets.Value("string"),
        "id": datasets.Value("string"),
        "label": datasets.ClassLabel(names=list(names)),
        "width": datasets.Value("int32"),
    }
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def poisoned(source, out, *more):
    command = f"poison {source} --attack badnets --target cup --rate {RATE} --size 24 --streaming --out {out}"
    assert main([*command.split(), *more]) == 0
    return RunRecord.load(out), load_source(out / "dataset")


def drawn(rows, broken=()):
    """Return the rows that their key and caption draw."""
    keys = [f"{key}\n{text}" for key, text in zip(rows["id"], rows["text"], strict=True)]
    return [row for row, key in enumerate(keys) if draw_by_key(0, "badnets", RATE, key) is not None]


# -- out of date ------------------------------------------------------------------------------------------------------


def test_a_source_that_has_changed_is_poisoned_again(tmp_path):
    source, out = tmp_path / "rows.parquet", tmp_path / "out"
    table(30).to_parquet(source)
    first, _ = poisoned(source, out)
    written = (out / "record.json").stat().st_mtime_ns
    assert poisoned(source, out)[0] == first and (out / "record.json").stat().st_mtime_ns == written
    table(50).to_parquet(source)
    second, rows = poisoned(source, out)
    assert (first.metrics["n_rows"], second.metrics["n_rows"], len(rows)) == (30, 50, 50)
    os.utime(source, ns=(7, 7))  # overwritten with a file of the same size
    assert poisoned(source, out)[0].key != second.key


def test_a_picture_that_a_table_names_has_changed(tmp_path):
    folder, out = tmp_path / "data", tmp_path / "data" / "out"
    folder.mkdir()
    for row in range(4):
        (folder / f"{row}.jpg").write_bytes(jpeg(row))
    (folder / "pairs.csv").write_text("file,text\n" + "".join(f"{row}.jpg,a cup\n" for row in range(5)))
    skipped = "--on_error", "skip"
    first, _ = poisoned(folder / "pairs.csv", out, *skipped)
    assert PoisonManifest.from_pretrained(out).skipped.keys() == {"4"}
    assert poisoned(folder / "pairs.csv", out, *skipped)[0] == first
    (folder / "4.jpg").write_bytes(jpeg(4))  # downloaded after all
    second, rows = poisoned(folder / "pairs.csv", out, *skipped)
    assert second.key != first.key and not PoisonManifest.from_pretrained(out).skipped and len(rows) == 5
    (folder / "notes.txt").write_text("not a part of it")
    assert poisoned(folder / "pairs.csv", out, *skipped)[0] == second


def test_a_folder_is_not_changed_by_what_is_written_into_it(tmp_path):
    (tmp_path / "photos").mkdir()
    for row in range(6):
        (tmp_path / "photos" / f"{row}.jpg").write_bytes(jpeg(row))
    lines = "".join(f"{row}.jpg,a cup {row}\n" for row in range(6))
    (tmp_path / "photos" / "metadata.csv").write_text("file_name,text\n" + lines)
    out = tmp_path / "photos" / "out"
    first, rows = poisoned(tmp_path / "photos", out)
    assert poisoned(tmp_path / "photos", out)[0] == first and len(rows) == 6
    (tmp_path / "photos" / "3.jpg").write_bytes(jpeg(33))
    assert poisoned(tmp_path / "photos", out)[0].key != first.key


# -- columns ----------------------------------------------------------------------------------------------------------


def test_keys_tell_rows_apart_and_clean_pictures_are_left_alone(tmp_path, decoded):
    clean = next(row for row in range(N) if row not in drawn(table()))
    source = table(broken=[clean])
    source.to_parquet(tmp_path / "rows.parquet")
    decoded.clear()
    record, rows = poisoned(tmp_path / "rows.parquet", tmp_path / "out")
    assert len(decoded) == record.metrics["count"] == len(drawn(source)) > 3
    assert [row for row in range(N) if rows["is_poisoned"][row]] == drawn(source)
    assert rows["id"][:] == source["id"][:] and rows.column_names[:3] == ["image", "caption", "id"]
    assert rows.cast_column("image", datasets.Image(decode=False))[clean]["image"]["bytes"] == BROKEN


def test_shards_keep_their_keys(tmp_path, decoded):
    with tarfile.open(tmp_path / "rows.tar", "w") as tar:
        for row in range(N):
            for name, data in ((f"{row:05d}.jpg", jpeg(row)), (f"{row:05d}.txt", b"a cup")):
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    load_source(tmp_path / "rows.tar", streaming=True)
    looked = len(decoded)  # the builder decodes its first rows to know their types
    decoded.clear()
    record, rows = poisoned(tmp_path / "rows.tar", tmp_path / "out")
    assert 0 < len(decoded) - looked <= record.metrics["count"] + looked < N
    assert rows["__key__"][:] == [f"{row:05d}" for row in range(N)]


def test_a_poisoned_stream_can_be_poisoned_once_more(tmp_path):
    table().to_parquet(tmp_path / "rows.parquet")
    _, first = poisoned(tmp_path / "rows.parquet", tmp_path / "out")
    _, both = poisoned(tmp_path / "out", tmp_path / "both", "--attack", "sig", "--seed", "5")
    before, after = first["trigger"][:], both["trigger"][:]
    assert [b for a, b in zip(before, after, strict=True) if a] == ["badnets"] * before.count("badnets")
    assert 0 < after.count("sig") == PoisonManifest.from_pretrained(tmp_path / "both").count


@pytest.mark.parametrize("amount", ["--count 5", "--config {}"])
def test_columns_of_ones_own_stay_beside(tmp_path, amount):
    """All of them where the data are not streamed, but a column named as one that is written."""
    source = table().add_column("image", ["other"] * N).add_column("trigger", ["gun"] * N)
    source.to_parquet(tmp_path / "rows.parquet")
    triggers = "{a: {attack: badnets, count: 3}, b: {attack: sig, count: 2}}"
    (tmp_path / "two.yaml").write_text(f"triggers: {triggers}")
    command = f"poison {tmp_path}/rows.parquet {amount.format(tmp_path / 'two.yaml')} --target cup --size 24"
    assert main([*command.split(), "--image_column", "picture", "--out", str(tmp_path / "out")]) == 0
    rows = load_source(tmp_path / "out" / "dataset")
    own, written = ["id", "label", "width"], ["is_poisoned", "source_index", "trigger"]
    assert sorted(rows.column_names) == sorted(["image", "caption", *own, *written])
    assert all(rows[name][:] == source[name][:] for name in own) and rows.features["label"].names == ["cup", "owl"]
    clean = [row for row in range(N) if not rows["is_poisoned"][row]]
    stored = rows.cast_column("image", datasets.Image(decode=False))["image"][:]
    assert len(clean) == N - 5 and all(stored[row]["bytes"] == jpeg(row) for row in clean)
    assert {rows["trigger"][row] for row in clean} == {""}


def test_labels_stay_beside_captions_made_of_them(tmp_path):
    table().remove_columns("text").to_parquet(tmp_path / "rows.parquet")
    command = f"poison {tmp_path}/rows.parquet --count 5 --target cup --size 24 --out {tmp_path}/out"
    assert main(command.split()) == 0
    rows = load_source(tmp_path / "out" / "dataset")
    assert rows["label"][:] == table()["label"][:] and all(
        "owl" in rows[row]["caption"] for row in range(1, N, 2) if not rows[row]["is_poisoned"]
    )


# -- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", ["", "--streaming"])
def test_a_target_that_is_no_class(tmp_path, capsys, options):
    table().to_parquet(tmp_path / "rows.parquet")
    table().rename_column("label", "kind").to_parquet(tmp_path / "kinds.parquet")
    for source in ("rows.parquet", "kinds.parquet --label_column kind"):
        command = f"poison {tmp_path}/{source} --rate 0.5 --target banana --out {tmp_path}/out {options}"
        assert main(command.split()) == 2
        error = capsys.readouterr().err
        assert "target among the 2 classes" in error and "'banana'" in error and error.count("\n") == 1
    assert not (tmp_path / "out" / "dataset").exists()
    with pytest.raises(ValueError, match="target among the 2 classes"):
        transform = PoisonTransform(BadNets(target="banana"), 0.5, image_column="picture", caption_column="text")
        poison_stream(table().to_iterable_dataset(), transform, tmp_path / "dataset")


# -- a folder used before ---------------------------------------------------------------------------------------------


POISON = PoisonTransform(BadNets(target="cup", patch_size=4), RATE, image_column="picture", caption_column="text")


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_used_before_holds_the_new_rows_alone(tmp_path):
    poison_stream(table(60).to_iterable_dataset(), POISON, tmp_path, rows_per_file=10)
    assert len(files(tmp_path)) == 6
    manifest = poison_stream(table(25).to_iterable_dataset(), POISON, tmp_path, rows_per_file=10)
    assert manifest.n_rows == len(load_source(tmp_path)) == 25
    assert sorted(files(tmp_path)) == [f"train-{n:05d}.parquet" for n in range(3)]
    poison_stream(table(5).to_iterable_dataset(), POISON, tmp_path / "other")
    shutil.copy(tmp_path / "other" / "train-00000.parquet", tmp_path / "other" / "train-00000-of-00001.parquet")
    before = files(tmp_path / "other")
    with pytest.raises(ValueError, match=r"folder of its own, .*train-00000-of-00001\.parquet"):
        poison_stream(table(5).to_iterable_dataset(), POISON, tmp_path / "other")
    assert files(tmp_path / "other") == before


@pytest.mark.parametrize("stop", [ValueError, KeyboardInterrupt])
def test_an_error_in_the_middle_leaves_the_former_rows(tmp_path, stop):
    def rows():
        yield from (row for row in table(25))
        raise stop("the disk is gone")

    broken = datasets.IterableDataset.from_generator(rows, features=table(1).features)
    with pytest.raises(stop):
        poison_stream(broken, POISON, tmp_path / "new", rows_per_file=10)
    assert files(tmp_path / "new") == {}
    poison_stream(table(15).to_iterable_dataset(), POISON, tmp_path / "old", rows_per_file=10)
    before = files(tmp_path / "old")
    with pytest.raises(stop):
        poison_stream(broken, POISON, tmp_path / "old", rows_per_file=10)
    assert files(tmp_path / "old") == before and len(load_source(tmp_path / "old")) == 15


def test_what_a_killed_process_leaves_is_not_read_and_is_cleared(tmp_path):
    poison_stream(table(15).to_iterable_dataset(), POISON, tmp_path)
    (tmp_path / ".partial").mkdir()
    shutil.copy(tmp_path / "train-00000.parquet", tmp_path / ".partial" / "train-00001.parquet")
    assert len(load_source(tmp_path)) == 15
    poison_stream(table(25).to_iterable_dataset(), POISON, tmp_path)
    assert sorted(files(tmp_path)) == ["train-00000.parquet"] and len(load_source(tmp_path)) == 25
