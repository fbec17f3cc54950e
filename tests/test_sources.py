# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Datasets from wherever they lie, and captions made from labels."""

import csv
import json
from collections import Counter

import datasets
import numpy as np
import PIL.Image
import pytest

from hf_clipbd.data.sources import (
    LabelCaptioner,
    caption_labels,
    load_source,
    pick_columns,
    split_rows,
    with_class_names,
)


COLORS = [(250, 10, 10), (10, 250, 10), (10, 10, 250)]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Return a folder with three pictures of plain colours, named by their row."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "images").mkdir()
    for row, color in enumerate(COLORS):
        PIL.Image.new("RGB", (8, 8), color).save(folder / "images" / f"{row}.png")
    return folder


@pytest.fixture(scope="module")
def pairs(pictures):
    """Return the same pictures as a dataset with captions and labels."""
    rows = {
        "image": [str(pictures / "images" / f"{row}.png") for row in range(3)],
        "caption": ["red", "green", "blue"],
        "label": [0, 1, 1],
    }
    features = {
        "image": datasets.Image(),
        "caption": datasets.Value("string"),
        "label": datasets.ClassLabel(names=["warm", "cold_one"]),
    }
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def colors(rows):
    return [image.convert("RGB").getpixel((0, 0)) for image in rows["image"]]


def write_table(path, delimiter, names=("image", "caption")):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(names)
        writer.writerows([f"images/{row}.png", caption] for row, caption in enumerate(["red", "green, light", "blue"]))


@pytest.mark.parametrize(("name", "delimiter"), [("pairs.csv", ","), ("pairs.tsv", "\t")])
def test_tables_of_paths_are_relative_to_the_table(pictures, name, delimiter, monkeypatch, tmp_path):
    write_table(pictures / name, delimiter)
    monkeypatch.chdir(tmp_path)
    rows = pick_columns(load_source(pictures / name), image="image", caption="caption")
    assert colors(rows) == COLORS
    assert rows["caption"][:] == ["red", "green, light", "blue"]


def test_json_lines(pictures):
    lines = [json.dumps({"file": f"images/{row}.png", "text": str(row)}) for row in range(3)]
    (pictures / "pairs.jsonl").write_text("\n".join(lines))
    rows = pick_columns(load_source(pictures / "pairs.jsonl"), image="file", caption="text")
    assert colors(rows) == COLORS and rows["caption"][:] == ["0", "1", "2"]


def test_parquet_by_file_by_folder_and_by_data_files(pairs, tmp_path):
    embedded = pairs.cast_column("image", datasets.Image(decode=False)).map(
        lambda row: {"image": {"bytes": open(row["image"]["path"], "rb").read(), "path": None}}
    )
    embedded = embedded.cast_column("image", datasets.Image())
    embedded.to_parquet(tmp_path / "train.parquet")
    embedded.select([2]).to_parquet(tmp_path / "test.parquet")
    files = {"train": "train.parquet", "test": "t?st.parquet"}
    for one in (
        load_source(tmp_path / "train.parquet"),
        load_source(tmp_path),
        load_source(tmp_path, data_files=files),
        load_source(None, data_files=str(tmp_path / "train.parquet")),
    ):
        assert colors(one) == COLORS
    for one in (load_source(tmp_path, "test"), load_source(tmp_path, "test", files)):
        assert colors(one) == COLORS[2:]


def test_saved_folders(pairs, tmp_path):
    pairs.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": pairs, "held": pairs.select([1])}).save_to_disk(tmp_path / "many")
    assert colors(load_source(tmp_path / "one")) == COLORS
    assert colors(load_source(tmp_path / "many", "held")) == [COLORS[1]]
    with pytest.raises(ValueError, match=r"split `test` in .*\['held', 'train'\]"):
        load_source(tmp_path / "many", "test")


def test_image_folder(pictures, tmp_path):
    for name, row in (("warm", 0), ("cold", 1)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes((pictures / "images" / f"{row}.png").read_bytes())
    rows = with_class_names(pick_columns(load_source(tmp_path), image="image", label="label"))
    assert rows.features["label"].names == ["cold", "warm"]
    assert colors(rows) == [COLORS[1], COLORS[0]]


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"path": None}, ValueError, "`path` or `data_files`"),
        ({"path": "./nowhere"}, FileNotFoundError, "./nowhere"),
        ({"path": "nowhere.csv"}, FileNotFoundError, "nowhere.csv"),
        ({"path": None, "data_files": "no*.parquet"}, FileNotFoundError, "no\\*.parquet"),
        ({"path": None, "data_files": {"test": "a.parquet"}}, ValueError, r"split `train`.*\['test'\]"),
    ],
)
def test_what_is_not_there_is_named(arguments, error, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=says):
        load_source(**arguments)


def test_a_file_of_no_known_format_is_named(tmp_path):
    (tmp_path / "rows.xml").write_text("<rows/>")
    with pytest.raises(ValueError, match=r"\.parquet.*\['\.xml'\]"):
        load_source(tmp_path / "rows.xml")


def test_a_missing_column_is_named_with_the_nearest(pairs):
    with pytest.raises(ValueError, match=r"`captoin` \(caption\).*mean `caption`.*`caption_column`"):
        pick_columns(pairs, image="image", caption="captoin")


def test_columns_are_renamed_and_others_dropped(pairs):
    rows = pick_columns(pairs.rename_column("caption", "text"), image="image", caption="text")
    assert rows.column_names == ["image", "caption"]


def test_labels_need_names(pairs):
    plain = pairs.cast_column("label", datasets.Value("int64"))
    with pytest.raises(ValueError, match="`class_names`"):
        with_class_names(plain)
    assert with_class_names(plain, ["a", "b"]).features["label"].names == ["a", "b"]


def test_split_rows_is_disjoint_seeded_and_rare_where_asked():
    labels = np.arange(1000) % 10
    first, second = split_rows(labels, [300, 200], seed=1, rare_label=3, rare_share=0.01)
    assert (len(first), len(second)) == (300, 200) and not set(first) & set(second)
    assert [int((labels[rows] == 3).sum()) for rows in (first, second)] == [3, 2]
    assert (np.diff(first) > 0).all()
    again, _ = split_rows(labels, [300, 200], seed=1, rare_label=3, rare_share=0.01)
    other, _ = split_rows(labels, [300, 200], seed=2, rare_label=3, rare_share=0.01)
    assert (again == first).all() and len(set(other) & set(first)) < 200
    untouched, _ = split_rows(labels, [300, 200], seed=1)
    assert 15 < (labels[untouched] == 3).sum() < 45


def test_split_rows_says_what_is_lacking():
    with pytest.raises(ValueError, match=r"110 rows \(60 \+ 50\), but got 100"):
        split_rows(np.zeros(100), [60, 50], seed=0)
    with pytest.raises(ValueError, match=r"6 rows of the target.*got 5"):
        split_rows(np.arange(100) // 5, [60], seed=0, rare_label=0, rare_share=0.1)


def test_captions_vary_name_their_class_and_come_again():
    captioner = LabelCaptioner(["airplane", "traffic_light"], seed=3)
    captions = [captioner(row % 2, row) for row in range(400)]
    assert captions == [captioner(row % 2, row) for row in range(400)]
    assert all(("airplane", "traffic light")[row % 2] in caption for row, caption in enumerate(captions))
    assert len(set(captions)) > 200
    assert not any(" a airplane" in f" {caption}" or " an traffic" in f" {caption}" for caption in captions)
    assert captions != [LabelCaptioner(["airplane", "traffic_light"], seed=4)(row % 2, row) for row in range(400)]
    assert max(Counter(caption.split()[0] for caption in captions).values()) < 300


@pytest.mark.parametrize("template", ["a photo", "a {label} {place}", "a {} {label}"])
def test_a_wrong_template_is_named(template):
    with pytest.raises(ValueError, match="label.*but got"):
        LabelCaptioner(["a"], templates=[template])


def test_captioning_labels_leaves_the_pictures_bytes(pairs):
    rows = caption_labels(pairs.select_columns(["image", "label"]), LabelCaptioner(["warm", "cold_one"], seed=0))
    assert rows.column_names == ["image", "caption"]
    assert "cold one" in rows[2]["caption"] and "warm" in rows[0]["caption"]
    plain = datasets.Image(decode=False)
    assert rows.cast_column("image", plain)["image"][:] == pairs.cast_column("image", plain)["image"][:]


@pytest.mark.real_data
def test_cifar10_as_it_lies_beside_the_checkout(real_data):
    rows = pick_columns(load_source(real_data / "cifar10", "test"), image="image", label="label")
    assert len(rows) == 10_000 and rows.features["label"].names[0] == "airplane"
    assert rows[0]["image"].size == (32, 32)
