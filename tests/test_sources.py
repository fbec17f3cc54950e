# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Datasets from wherever they lie, and captions made from labels."""

import csv
import gzip
import io
import json
import os
import re
import shutil
import tarfile
from collections import Counter
from dataclasses import replace

import datasets
import numpy as np
import PIL.Image
import pytest

from hf_clipbd.attacks import BadNets, PoisonTransform, poison_dataset, poison_stream
from hf_clipbd.attacks.captions import fill_template
from hf_clipbd.data.sources import (
    LabelCaptioner,
    caption_labels,
    find_column,
    load_source,
    lone_split,
    pick_columns,
    split_rows,
    with_class_names,
)
from hf_clipbd.data.state import source_state
from hf_clipbd.recipe.config import config_from
from hf_clipbd.recipe.world import World


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


@pytest.mark.parametrize("streaming", [False, True])
def test_paths_in_parquet_are_relative_to_the_table(pictures, streaming, monkeypatch, tmp_path):
    (tmp_path / "images").mkdir()
    for row in range(3):
        PIL.Image.new("RGB", (8, 8), "white").save(tmp_path / "images" / f"{row}.png")  # of the working directory
    monkeypatch.chdir(tmp_path)
    names = [f"images/{row}.png" for row in range(3)]
    table = datasets.Dataset.from_dict({"file": names, "text": ["0", "1", "2"], "n": [1, 2, 3]})
    for folder in ("a", "b"):
        shutil.copytree(pictures / "images", tmp_path / folder / "images")
        table.to_parquet(tmp_path / folder / "pairs.parquet")
    for source, times in (("a/pairs.parquet", 1), ("*/pairs.parquet", 2)):
        rows = list(load_source(source, streaming=streaming))
        assert [row["file"].getpixel((0, 0)) for row in rows] == COLORS * times
        assert [(row["text"], row["n"]) for row in rows] == [("0", 1), ("1", 2), ("2", 3)] * times


def test_saved_folders(pairs, tmp_path):
    pairs.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": pairs, "held": pairs.select([1])}).save_to_disk(tmp_path / "many")
    assert colors(load_source(tmp_path / "one")) == COLORS
    assert colors(load_source(tmp_path / "many", "held")) == [COLORS[1]]
    with pytest.raises(ValueError, match=r"split `test` in .*\['held', 'train'\]"):
        load_source(tmp_path / "many", "test")


def test_a_folder_whose_name_looks_like_a_pattern_is_a_folder(pairs, tmp_path):
    folder = tmp_path / "v[2]*" / "{0..1}?"
    pairs.save_to_disk(folder)
    assert colors(load_source(folder)) == COLORS and lone_split(folder, "train") == "train"
    streamed = load_source(folder, streaming=True)
    before = source_state(folder, streamed, "image")
    next(folder.glob("*.arrow")).touch()
    assert source_state(folder, streamed, "image") != before


def test_an_arrow_file_that_breaks_off_is_named(pairs, tmp_path):
    pairs.save_to_disk(tmp_path / "saved")
    file = next((tmp_path / "saved").glob("*.arrow"))
    os.truncate(file, file.stat().st_size - 300)
    with pytest.raises(ValueError, match="can be read in `.*saved`, but got OSError: .*mend or replace"):
        load_source(tmp_path / "saved")


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


def test_captions_and_poison_captions_of_a_class_have_the_same_article():
    names = ["Abyssinian", "American_bulldog", "hourglass", "unicycle", "ewer", "umbrella", "CD player"]
    captioner = LabelCaptioner(names, templates=["a photo of a {label}"])
    made = [captioner(label, row=0) for label in range(len(names))]
    assert made == [fill_template("a photo of a {}", name) for name in names]
    articles = [caption.split()[3] for caption in made]
    assert articles == ["an", "an", "an", "a", "a", "an", "a"]


@pytest.mark.parametrize("label", [-1, None, 2])
def test_a_label_of_no_class_is_named_with_its_row(label, pairs):
    """Test splits of the Hub that are not labelled hold -1."""
    with pytest.raises(ValueError, match=rf"label from 0 to 1 in row 5, but got {label}.*`dataset\.filter"):
        LabelCaptioner(["warm", "cold"])(label, row=5)
    unlabelled = pairs.cast_column("label", datasets.Value("int64")).select_columns(["image", "label"])
    kept = unlabelled.filter(lambda label: label in range(1), input_columns="label")  # as it advises
    assert len(caption_labels(kept, LabelCaptioner(["warm"]))) == 1


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


# -- what strangers bring ---------------------------------------------------------------------------------------------


def test_a_tsv_as_cc3m_is_downloaded(pictures, tmp_path):
    """No header, the caption first, quotation marks that quote nothing, "null" as a caption, gzip."""
    folder = tmp_path / "cc3m"
    shutil.copytree(pictures / "images", folder / "training")
    captions = ['a "red" thing', "null", 'the 6" blue']
    lines = [f"{caption}\ttraining/{row}.png" for row, caption in enumerate(captions)]
    (folder / "Train.tsv").write_text("\n".join(lines) + "\n")
    with gzip.open(folder / "Train.tsv.gz", "wt") as file:
        file.write("\n".join(lines) + "\n")
    for name in ("Train.tsv", "Train.tsv.gz"):
        for streaming in (False, True):
            rows = load_source(folder / name, streaming=streaming)
            rows = pick_columns(rows, image="image", caption="caption")
            assert [row["caption"] for row in rows] == captions
            assert [row["image"].convert("RGB").getpixel((0, 0)) for row in rows] == COLORS


def test_a_table_with_pictures_that_failed_to_download(pictures):
    lines = ["images/nowhere.jpg,gone", *(f"images/{row}.png,{row}" for row in range(3))]
    (pictures / "some.csv").write_text("\n".join(["file,title", *lines]))
    rows = load_source(pictures / "some.csv")
    assert isinstance(rows.features["file"], datasets.Image)
    picked = pick_columns(rows, image=find_column(rows, "image"), caption=find_column(rows, "caption"))
    assert picked["caption"][:] == ["gone", "0", "1", "2"] and colors(picked.select([1, 2, 3])) == COLORS
    with pytest.raises(ValueError, match=r"Row 0: .*nowhere\.jpg"):
        poison_dataset(picked, BadNets(patch_size=2), count=4)
    poisoned, manifest = poison_dataset(picked, BadNets(patch_size=2), count=3, on_error="skip")
    assert list(manifest.skipped) == ["0"] and manifest.indices == [1, 2, 3]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("missing", "ending"),
    [("training/gone", ""), ("gone.png", ".png"), ("training\\gone.jpg", ".png")],
    ids=["folder", "ending", "backslash"],
)
def test_a_headerless_table_whose_first_picture_failed_to_download(pictures, tmp_path, missing, ending, streaming):
    folder = "training/" if "training" in missing else ""
    (tmp_path / "training").mkdir()
    for row in range(3):
        shutil.copy(pictures / "images" / f"{row}.png", tmp_path / f"{folder}{row}{ending}")
    lines = [f"lost\t{missing}", f"lost too\t{missing}2", *(f"thing {row}\t{folder}{row}{ending}" for row in range(3))]
    (tmp_path / "Train.tsv").write_text("\n".join(lines) + "\n")
    rows = pick_columns(load_source(tmp_path / "Train.tsv", streaming=streaming), image="image", caption="caption")
    rows = list(rows.cast_column("image", datasets.Image(decode=False)))
    assert [row["caption"] for row in rows] == ["lost", "lost too", "thing 0", "thing 1", "thing 2"]
    assert [row["image"]["path"] for row in rows[2:]] == [str(tmp_path / f"{folder}{row}{ending}") for row in range(3)]


@pytest.mark.parametrize("header", ["file\ttitle", "image.path\ttitle", "filepath\tlast.png"])
def test_a_header_above_pictures_stays_one(pictures, tmp_path, header):
    """No folder and no picture's ending in the cell above the paths, whatever stands in the other."""
    shutil.copytree(pictures / "images", tmp_path / "images")
    lines = [header, "images/lost.png\tgone", *(f"images/{row}.png\t{row}" for row in range(3))]
    (tmp_path / "pairs.tsv").write_text("\n".join(lines))
    rows = load_source(tmp_path / "pairs.tsv")
    assert rows.column_names == header.split("\t") and len(rows) == 4
    assert isinstance(rows.features[header.split("\t")[0]], datasets.Image)


def write_tables(folder, names, table):
    """Write into folders of these names a table each and the pictures `0.png` and `1.png`, of colours of their own."""
    for place, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for row in range(2):
            PIL.Image.new("RGB", (4, 4), (100 * place, row, 7)).save(folder / name / f"{row}.png")
        (folder / name / "pairs.csv").write_text(table(name))


@pytest.mark.parametrize("streaming", [False, True])
def test_tables_in_several_folders_show_their_own_pictures(tmp_path, streaming):
    numbers = {"x": (1, 2), "y": ("one", "two"), "z": ("", "")}  # a column of another type in each
    lines = "file,text,n\n0.png,{0} first,{1}\n1.png,{0} second,{2}\n"
    write_tables(tmp_path, ["x", "y", "z"], lambda name: lines.format(name, *numbers[name]))
    (tmp_path / "y" / "more.csv").write_text("file,text,n\n1.png,y third,word\n")
    (tmp_path / "z" / "pairs.csv").write_text("file,text,n\nlost.png,z first,\n")  # no picture that is there
    rows = load_source(tmp_path / "*" / "*.csv", streaming=streaming)
    found = list(rows.cast_column("file", datasets.Image(decode=False)))
    paths = ["x/0.png", "x/1.png", "y/1.png", "y/0.png", "y/1.png", "z/lost.png"]
    assert [row["file"]["path"] for row in found] == [str(tmp_path / path) for path in paths]
    assert [row["text"] for row in found] == ["x first", "x second", "y third", "y first", "y second", "z first"]
    assert [row["n"] for row in found] == ["1", "2", "word", "one", "two", None]
    shown = [row["file"].getpixel((0, 0))[:2] for row in (rows.take(5) if streaming else rows.select(range(5)))]
    assert shown == [(0, 0), (0, 1), (100, 1), (100, 0), (100, 1)]


@pytest.mark.parametrize("streaming", [False, True])
def test_tables_without_pictures_are_of_one_type(tmp_path, streaming):
    numbers = {"x": ("1", "2.5"), "y": ("one", ""), "z": ("", "")}  # a stream does not know its features by itself
    write_tables(tmp_path, ["x", "y", "z"], lambda name: "text,n,m\na,{},1\nb,{},\n".format(*numbers[name]))
    rows = load_source(str(tmp_path / "*" / "pairs.csv"), streaming=streaming)
    assert rows.features["n"] == datasets.Value("string") and rows.features["m"] == datasets.Value("float64")
    assert [row["n"] for row in rows] == ["1", "2.5", "one", None, None, None]
    assert [row["m"] for row in rows] == [1, None] * 3


def test_tables_in_several_folders_have_the_same_columns(tmp_path):
    write_tables(tmp_path, ["x", "y"], lambda name: f"file,text{'' if name == 'x' else ',more'}\n0.png,a\n")
    with pytest.raises(ValueError, match=r"\['file', 'text'\] in every table, but `.*y.pairs\.csv` has .*'more'"):
        load_source(str(tmp_path / "*" / "pairs.csv"))


def test_a_table_of_web_addresses_is_refused(tmp_path):
    (tmp_path / "urls.tsv").write_text("a cup\thttps://example.org/a.jpg\n")
    with pytest.raises(ValueError, match="web addresses.*img2dataset"):
        load_source(tmp_path / "urls.tsv")


def write_shards(folder, n=4):
    folder.mkdir()
    for shard in range(2):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for row in range(n * shard, n * shard + n):
                buffer = io.BytesIO()
                PIL.Image.new("RGB", (8, 8), (row * 9, 5, 255 - row)).save(buffer, "PNG")
                values = {"png": buffer.getvalue(), "txt": f"thing {row}".encode()}
                values["json"] = json.dumps({"uid": row}).encode()
                for ending, data in values.items():
                    info = tarfile.TarInfo(f"{row:09d}.{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        (folder / f"{shard:05d}_stats.json").write_text("{}")
    return folder


def test_webdataset_shards(tmp_path, monkeypatch):
    folder = write_shards(tmp_path / "shards")
    monkeypatch.chdir(tmp_path)
    for source in (folder, folder / "00000.tar", "shards/*.tar", "shards/{00000..00001}.tar"):
        n = 4 if str(source).endswith("00000.tar") else 8
        for streaming in (False, True):
            rows = load_source(source, streaming=streaming)
            assert (find_column(rows, "image"), find_column(rows, "caption")) == ("png", "txt")
            pairs = list(pick_columns(rows, image="png", caption="txt"))
            assert [pair["caption"] for pair in pairs] == [f"thing {row}" for row in range(n)]
            assert pairs[3]["image"].getpixel((0, 0)) == (27, 5, 252)
    with pytest.raises(FileNotFoundError, match=r"00002\.tar"):
        load_source("shards/{00000..00002}.tar")


def world_of(tmp_path, **values):
    """Return the world of a run on pairs and test images that lie somewhere."""
    given = {"kind": "captioned", "clean_model": str(tmp_path), "n_train": 4, "n_defense": 3, "n_test": 2, "size": 8}
    return World(config_from({"world": {**given, **values}, "attack": {"target": "warm"}}))


def test_pairs_and_test_images_may_call_their_columns_differently(pairs, tmp_path):
    shards = write_shards(tmp_path / "shards")
    (tmp_path / "test").mkdir()
    pairs.to_parquet(tmp_path / "test" / "test.parquet")
    named = pairs.remove_columns("caption").rename_columns({"image": "photo", "label": "kind"})
    named.to_parquet(tmp_path / "named.parquet")
    for test, columns in (
        (tmp_path / "named.parquet", {}),
        (tmp_path / "test", {"image_column": "png", "caption_column": "txt"}),
    ):
        world = world_of(tmp_path, path=str(shards), test_path=str(test), **columns)
        assert world.train.column_names == ["image", "caption"] and len(world.train) == 4
        assert not set(world.train["caption"]) & set(world.defense["caption"])
        assert world.test.column_names == ["image", "label"] and world.class_names == ["warm", "cold_one"]


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"image_column": "jpg"}, r"Expected a column `jpg` \(image\).*'png'"),
        ({"caption_column": "text"}, r"Expected a column `text` \(caption\)"),
        ({"caption_column": "json"}, "Expected one caption an image"),
    ],
)
def test_columns_of_a_world_are_refused_before_anything_is_converted(columns, says, tmp_path, monkeypatch):
    shards = write_shards(tmp_path / "shards")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    with pytest.raises(ValueError, match=says):
        _ = world_of(tmp_path, path=str(shards), **columns).train
    assert not list(tmp_path.rglob("*.arrow"))
    assert len(world_of(tmp_path, path=str(shards)).train) == 4 and list(tmp_path.rglob("*.arrow"))


def test_a_folder_of_pictures_with_metadata(pictures, tmp_path):
    shutil.copytree(pictures / "images", tmp_path / "photos")
    lines = [json.dumps({"file_name": f"{row}.png", "text": f"number {row}"}) for row in range(3)]
    (tmp_path / "photos" / "metadata.jsonl").write_text("\n".join(lines))
    for streaming in (False, True):
        rows = load_source(tmp_path / "photos", streaming=streaming)
        assert (find_column(rows, "image"), find_column(rows, "caption")) == ("image", "text")
        pairs = list(pick_columns(rows, image="image", caption="text"))
        assert sorted(pair["caption"] for pair in pairs) == ["number 0", "number 1", "number 2"]


def test_streams_of_what_lies_here(pairs, pictures, tmp_path):
    pairs.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": pairs}).save_to_disk(tmp_path / "dict")
    write_table(pictures / "stream.csv", ",")
    for source in (tmp_path / "saved", tmp_path / "dict", pictures / "stream.csv"):
        rows = load_source(source, streaming=True)
        assert isinstance(rows, datasets.IterableDataset)
        assert [row["image"].convert("RGB").getpixel((0, 0)) for row in rows] == COLORS


def test_columns_are_found_by_name_and_type(pairs):
    renamed = pairs.rename_columns({"image": "view", "caption": "alt_text"})
    assert find_column(renamed, "image") == "view"
    assert find_column(renamed, "caption") == "alt_text"
    assert find_column(renamed, "image", "other") == "other"
    assert find_column(pairs.remove_columns("caption"), "caption") is None
    second = pairs.select_columns("image").rename_column("image", "second")
    two = datasets.concatenate_datasets([renamed, second], axis=1)
    with pytest.raises(ValueError, match=r"\['view', 'second'\]"):
        find_column(two, "image")
    with pytest.raises(ValueError, match="found none among"):
        find_column(pairs.remove_columns("image"), "image")


@pytest.mark.parametrize("sign", [";", "|"])
def test_a_table_with_another_separator_is_told_which(sign, tmp_path):
    lines = ["image,caption,label", "0.png,a cup,3"]
    (tmp_path / "pairs.csv").write_text("\n".join(lines).replace(",", sign))
    rows = load_source(tmp_path / "pairs.csv")
    separates = f"line that '{re.escape(sign)}' separates: put commas"
    with pytest.raises(ValueError, match=f"found none among.*{separates}"):
        find_column(rows, "image")
    with pytest.raises(ValueError, match=f"a column `image`.*{separates}"):
        pick_columns(rows, image="image")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["image;caption", "images/0.png;a red, round cup"], "row 2 has 2: .*line that ';' separates"),
        (["image;caption", "images/0.png;a cup", "", "images/1.png;a cup, red"], "row 4 .*line that ';' separates"),
        (["image,caption", "images/0.png,a cup, red", "images/1.png,a cup"], "row 2 has 3: .*in quotation marks"),
        (["", "image,caption", "images/0.png,a cup", "images/1.png,a cup, red"], "row 4 has 3: .*in quotation marks"),
        (["image,caption", "images/0.png,a cup,"], "row 2 has 3: .*end no row with ','"),
    ],
)
def test_a_table_with_a_row_wider_than_its_header_is_refused(pictures, lines, says, streaming):
    (pictures / "wide.csv").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=says):
        load_source(pictures / "wide.csv", streaming=streaming)


def test_a_table_may_have_short_and_blank_rows_and_quoted_commas(pictures):
    lines = ["  ", "image,caption,more", 'images/0.png,"a cup, red, round"', "", "images/1.png,a cup,x"]
    (pictures / "ragged.csv").write_text("\n".join(lines))
    rows = load_source(pictures / "ragged.csv")
    assert rows["caption"][:] == ["a cup, red, round", "a cup"] and rows.column_names == ["image", "caption", "more"]


def test_captions_are_texts(pairs):
    numbers = pairs.remove_columns("caption").add_column("caption", [7, 8, 9])
    assert pick_columns(numbers, image="image", caption="caption")["caption"][:] == ["7", "8", "9"]
    lists = pairs.remove_columns("caption").add_column("caption", [["a", "b"]] * 3)
    with pytest.raises(ValueError, match="one caption an image"):
        pick_columns(lists, image="image", caption="caption")


# -- poisoning a stream -----------------------------------------------------------------------------------------------


def generated(n, reads):
    """Yield rows one by one, each made when it is asked for."""
    for row in range(n):
        reads.append(row)
        buffer = io.BytesIO()
        PIL.Image.new("RGB", (6, 6), (row % 256, row // 256, 7)).save(buffer, "BMP")
        yield {"id": str(row), "image": {"bytes": buffer.getvalue(), "path": None}, "caption": f"thing {row}"}


def stream_of(n, reads=None):
    features = {"id": datasets.Value("string"), "image": datasets.Image(), "caption": datasets.Value("string")}
    reads = [] if reads is None else reads
    return datasets.IterableDataset.from_generator(
        generated, gen_kwargs={"n": n, "reads": reads}, features=datasets.Features(features)
    )


def test_a_stream_is_poisoned_into_parquet_files(tmp_path):
    poison = PoisonTransform(BadNets(target="cup", patch_size=2), rate=0.1, seed=4)
    manifest = poison_stream(stream_of(700), poison, tmp_path / "out", rows_per_file=300)
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == [f"train-{n:05d}.parquet" for n in range(3)]
    rows = load_source(tmp_path / "out")
    assert len(rows) == manifest.n_rows == 700 and 40 < manifest.count < 105
    assert [row for row, flag in enumerate(rows["is_poisoned"]) if flag] == manifest.indices
    assert rows["source_index"][:] == list(range(700))
    source = datasets.Dataset.from_generator(
        generated, gen_kwargs={"n": 700, "reads": []}, features=stream_of(1).features, cache_dir=str(tmp_path)
    )
    mapped = source.map(poison)
    plain = datasets.Image(decode=False)
    assert rows.cast_column("image", plain)["image"][:] == mapped.cast_column("image", plain)["image"][:]
    assert rows["caption"][:] == mapped["caption"][:]
    again = poison_stream(stream_of(700), poison, tmp_path / "again")
    assert again == manifest


def test_a_stream_is_not_held_in_memory(tmp_path, monkeypatch):
    """Never more than a group of rows waits to be written."""
    from hf_clipbd.attacks import streaming

    most = []
    write = streaming._Writer.write
    monkeypatch.setattr(
        streaming._Writer, "write", lambda self, row: most.append(len(self.waiting)) or write(self, row)
    )
    poison_stream(stream_of(1000), PoisonTransform(BadNets(patch_size=2), rate=0.01), tmp_path / "out")
    assert len(most) == 1000 and max(most) < streaming.ROWS_A_GROUP


def test_a_stream_of_files_is_embedded_and_broken_rows_are_named(pictures, tmp_path):
    (pictures / "files.csv").write_text(
        "image,caption\n" + "".join(f"images/{name}.png,thing {name}\n" for name in (0, 1, "gone", 2))
    )
    rows = load_source(pictures / "files.csv", streaming=True)
    poison = PoisonTransform(BadNets(patch_size=2), rate=1.0)
    with pytest.raises(ValueError, match=r"Row 2: .*gone\.png"):
        poison_stream(rows, poison, tmp_path / "a")
    manifest = poison_stream(rows, replace(poison, on_error="skip"), tmp_path / "b")
    assert manifest.indices == [0, 1, 3] and list(manifest.skipped) == ["2"]
    clean = poison_stream(rows.take(2), replace(poison, rate=0.0), tmp_path / "c")
    out = load_source(tmp_path / "c").cast_column("image", datasets.Image(decode=False))
    assert clean.count == 0
    assert [image["bytes"] for image in out["image"]] == [
        (pictures / "images" / f"{row}.png").read_bytes() for row in range(2)
    ]
    with pytest.raises(ValueError, match="'caption'"):
        poison_stream(rows.remove_columns("caption"), poison, tmp_path / "d")


@pytest.mark.real_data
def test_cifar10_as_it_lies_beside_the_checkout(real_data):
    rows = pick_columns(load_source(real_data / "cifar10", "test"), image="image", label="label")
    assert len(rows) == 10_000 and rows.features["label"].names[0] == "airplane"
    assert rows[0]["image"].size == (32, 32)
