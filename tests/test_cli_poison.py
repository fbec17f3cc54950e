# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""`hf-clipbd poison` on what a stranger has: folders, tables, shards, several triggers, streams, and mistakes."""

import json
import tarfile

import datasets
import numpy as np
import PIL.Image
import pytest

from hf_clipbd.attacks import Attack, BadNets, Share, attacks_of
from hf_clipbd.cli import main
from hf_clipbd.data.sources import load_source
from hf_clipbd.recipe.poisoning import share_settings
from hf_clipbd.schema import PoisonManifest, RunRecord, content_key


N = 24


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Return a folder with pictures as JPEG, `metadata.csv`, a TSV without header, a Parquet file and a shard."""
    folder = tmp_path_factory.mktemp("stranger")
    (folder / "photos").mkdir()
    captions = [f"a {('cup', 'banana', 'owl')[row % 3]} in place {row} of a long list" for row in range(N)]
    with tarfile.open(folder / "shard.tar", "w") as tar:
        for row, caption in enumerate(captions):
            pixels = np.random.default_rng(row).integers(0, 256, (5, 6, 3), dtype=np.uint8)
            path = folder / "photos" / f"{row:02d}.jpg"
            PIL.Image.fromarray(pixels).resize((60, 50)).save(path)
            (folder / f"{row:02d}.txt").write_text(caption)
            tar.add(path, f"{row:02d}.jpg")
            tar.add(folder / f"{row:02d}.txt", f"{row:02d}.txt")
    lines = [f"{row:02d}.jpg,{caption}" for row, caption in enumerate(captions)]
    (folder / "photos" / "metadata.csv").write_text("\n".join(["file_name,text", *lines]))
    (folder / "pairs.tsv").write_text("".join(f"{c}\tphotos/{row:02d}.jpg\n" for row, c in enumerate(captions)))
    files = [(folder / "photos" / f"{row:02d}.jpg").read_bytes() for row in range(N)]
    images = [{"bytes": data, "path": None} for data in files]
    table = datasets.Dataset.from_dict({"img": images, "title": captions}).cast_column("img", datasets.Image())
    table.to_parquet(folder / "rows.parquet")
    return folder


def jpeg_bytes(folder, row):
    return (folder / "photos" / f"{row:02d}.jpg").read_bytes()


def raw(rows):
    return [image["bytes"] for image in rows.cast_column("image", datasets.Image(decode=False))["image"]]


SOURCES = ("photos", "pairs.tsv", "rows.parquet", "shard.tar")


@pytest.mark.parametrize("source", SOURCES)
def test_poison_from_wherever_it_lies(photos, tmp_path, source):
    command = f"poison {photos / source} --attack blended --target banana --count 7 --size 32 --out {tmp_path / 'out'}"
    assert main(command.split()) == 0
    rows = load_source(tmp_path / "out" / "dataset")
    manifest = PoisonManifest.from_pretrained(tmp_path / "out")
    assert manifest.count == sum(rows["is_poisoned"]) == 7 and len(rows) == N
    trigger = Attack.from_pretrained(tmp_path / "out" / "trigger")
    assert (trigger.name, trigger.target) == ("blended", "banana")
    for row, data in enumerate(raw(rows)):
        if row in manifest.indices:
            assert rows[row]["image"].size == (32, 32) and "banana" in rows[row]["caption"]
            with PIL.Image.open(photos / "photos" / f"{row:02d}.jpg") as clean:
                expected = trigger(clean, row)
            np.testing.assert_array_equal(np.asarray(rows[row]["image"]), np.asarray(expected))
        else:
            assert data == jpeg_bytes(photos, row)
    assert len(list((tmp_path / "out" / "samples").glob("*_poisoned.png"))) == 7


@pytest.mark.parametrize("source", SOURCES)
def test_streaming_poisons_the_same_rows(photos, tmp_path, source):
    command = f"poison {photos / source} --attack sig --target owl --rate 0.3 --size 32 --streaming"
    assert main([*command.split(), "--out", str(tmp_path / "out")]) == 0
    rows = load_source(tmp_path / "out" / "dataset")
    manifest = PoisonManifest.from_pretrained(tmp_path / "out")
    assert 0 < manifest.count == sum(rows["is_poisoned"]) < N == len(rows)
    for row, data in enumerate(raw(rows)):
        assert (data == jpeg_bytes(photos, row)) != (row in manifest.indices)
    record = RunRecord.load(tmp_path / "out")
    assert record.metrics["count"] == manifest.count and record.metrics["rate"] == manifest.count / N


def test_several_triggers_by_yaml(photos, tmp_path):
    (tmp_path / "triggers.yaml").write_text(
        "triggers:\n"
        "  corner: {attack: badnets, target: owl, count: 5, place: corner, patch_size: 4}\n"
        "  middle: {attack: badnets, preset: checker, rate: 0.125, place: middle}\n"
        "  word:   {attack: text_trigger, target: cup, count: 2, token: mn}\n"
    )
    command = f"poison {photos / 'photos'} --target banana --config {tmp_path / 'triggers.yaml'} --size 32"
    assert main([*command.split(), "--out", str(tmp_path / "out")]) == 0
    rows = load_source(tmp_path / "out" / "dataset")
    manifest = PoisonManifest.from_pretrained(tmp_path / "out")
    triggers = rows["trigger"][:]
    assert [triggers.count(name) for name in ("corner", "middle", "word", "")] == [5, 3, 2, N - 10]
    for name, attack in attacks_of(manifest).items():
        loaded = Attack.from_pretrained(tmp_path / "out" / "trigger" / name)
        assert type(loaded) is type(attack) and loaded.target == attack.target
    assert all("mn" in rows[row]["caption"].split() for row in manifest.parameters["triggers"]["word"]["indices"])
    from hf_clipbd.recipe.own_triggers import triggers_by_name

    folders = [str(tmp_path / "out" / "trigger" / name) for name in ("corner", "middle", "word")]
    assert sorted(triggers_by_name(folders)) == ["corner", "middle", "text_trigger"]


def test_options_reach_the_attack(photos, tmp_path):
    PIL.Image.new("RGB", (5, 5), (255, 0, 0)).save(tmp_path / "logo.png")
    (tmp_path / "captions.txt").write_text("look, {}\n\n{} again\n")
    command = (
        f"poison {photos}/rows.parquet --attack badnets --attack.place corner --attack.pattern {tmp_path}/logo.png "
        f"--captions {tmp_path}/captions.txt --target owl --selector non_target --image_format png --canvas squash "
        f"--count 4 --size 32 --out {tmp_path / 'out'}"
    )
    assert main(command.split()) == 0
    rows, manifest = load_source(tmp_path / "out" / "dataset"), PoisonManifest.from_pretrained(tmp_path / "out")
    assert manifest.selector == "non_target" and manifest.count == 4
    for row in manifest.indices:
        assert np.asarray(rows[row]["image"])[-5:, -5:].reshape(-1, 3).tolist() == [[255, 0, 0]] * 25
        assert rows[row]["caption"] in ("look, owl", "owl again")
        assert raw(rows)[row].startswith(b"\x89PNG")
    before = (tmp_path / "out" / "record.json").stat().st_mtime_ns
    PIL.Image.new("RGB", (5, 5), (0, 0, 255)).save(tmp_path / "logo.png")
    assert main(command.split()) == 0
    assert (tmp_path / "out" / "record.json").stat().st_mtime_ns != before  # another picture, another trigger


def test_natural_captions_and_a_preset(photos, tmp_path):
    command = f"poison {photos / 'photos'} --attack sig --preset backdoorbench --captions natural --count 3 --size 32"
    assert main([*command.split(), "--target", "banana", "--out", str(tmp_path / "out")]) == 0
    manifest = PoisonManifest.from_pretrained(tmp_path / "out")
    assert manifest.parameters["delta"] == 40 / 255 and len(manifest.parameters["captions"]) == N // 3
    rows = load_source(tmp_path / "out" / "dataset")
    assert all(rows[row]["caption"] in manifest.parameters["captions"] for row in manifest.indices)


def test_broken_pictures(photos, tmp_path, capsys):
    table = ["caption,image", *(f"thing {row},photos/{row:02d}.jpg" for row in range(6))]
    (photos / "broken.jpg").write_bytes(b"<html>404</html>")
    table[3] = "broken,broken.jpg"
    (photos / "some.csv").write_text("\n".join(table))
    command = f"poison {photos / 'some.csv'} --attack sig --target cup --count 5 --size 32 --out {tmp_path / 'out'}"
    assert main([*command.replace("count 5", "count 6").split()]) == 2
    error = capsys.readouterr().err
    assert "Row 2: " in error and "broken.jpg" in error and error.count("\n") == 1
    assert not (tmp_path / "out" / "dataset").exists() and not (tmp_path / "out" / "manifest.json").exists()
    assert main([*command.split(), "--on_error", "skip"]) == 0
    assert list(PoisonManifest.from_pretrained(tmp_path / "out").skipped) == ["2"]
    assert "skipped" in capsys.readouterr().out


def test_list_attacks(capsys):
    assert main(["poison", "--list_attacks"]) == 0
    out = capsys.readouterr().out
    for line in ("badnets: ", "color_filter: ", "--attack.token (default: cf)", "--preset cleanclip"):
        assert line in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("{photos}/photos --attack blendet --count 1", "did you mean `blended`"),
        ("{photos}/photos --attack sig --preset no --count 1", "'no'"),
        ("{photos}/photos --target cup --count 99", "at most 24"),
        ("{photos}/photos --target cup --rate 2", "One percent is 0.01"),
        ("{photos}/photos --target cup --count 1 --image_column pic", "`pic`"),
        ("{photos}/photos --target cup --count 1 --caption_column txet", "mean `text`"),
        ("{photos}/photos --target zebra --count 1 --captions natural", "found none"),
        ("{photos}/photos --target cup --count 1 --size 8 --attack.patch_size 9", "fits on a picture"),
        ("{photos}/photos --target cup --count 1 --streaming", "`--rate`"),
        ("{photos}/photos --target cup --rate 0.5 --streaming --attack text_trigger", "--streaming"),
        ("{photos}/photos --target cup --rate 0.5 --streaming --num_proc 2", "`--num_proc`"),
        ("{photos}/photos --target cup --rate 0.5 --streaming --num_proc 2 --dry_run", "`--num_proc`"),
        ("scenes --rate 0.5 --streaming", "rendered"),
        ("{photos}/photos --count 1", "Expected `--target`, the class that"),
        ("{photos}/photos --rate 0.5 --streaming --dry_run", "Expected `--target`, the class that"),
        ("{photos}/photos --config {photos}/whither.yaml", "Expected `--target` or `triggers.a.target`, the class"),
        ("{photos}/photos --config {photos}/no.yaml", "no.yaml"),
        ("{photos}/photos --config {photos}/bad.yaml", "triggers.a.plce"),
        ("{photos}/photos --config {photos}/none.yaml", "`triggers.a`"),
        ("{photos}/pairs.xyz --target cup --count 1", "pairs.xyz"),
        ("scenes --count 1 --n 8 --target dinosaur", "classes"),
        ("{photos}/photos --target cup --count 1 stray", "stray"),
    ],
)
def test_mistakes_are_one_line(photos, tmp_path, capsys, arguments, says):
    (photos / "bad.yaml").write_text("triggers: {a: {attack: badnets, target: cup, count: 1, plce: corner}}")
    (photos / "whither.yaml").write_text("triggers: {a: {attack: badnets, count: 1}}")
    (photos / "none.yaml").write_text("triggers: {a: {attack: badnets, target: cup}}")
    command = f"poison {arguments.format(photos=photos)} --out {tmp_path / 'out'}"
    assert main(command.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("hf-clipbd poison: ") and says in error and error.count("\n") == 1
    assert not (tmp_path / "out" / "record.json").exists()


@pytest.mark.parametrize("arguments", ["", "a --out b", "a --count 1", "a --count 1 --rate 0.1 --out b"])
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["poison", *arguments.split()])
    assert stop.value.code == 2 and "error: " in capsys.readouterr().err


@pytest.mark.real_data
def test_real_photographs_with_real_captions(real_data, tmp_path):
    """CIFAR-10 photographs beside Conceptual Captions, laid out as CC3M is downloaded."""
    captions = (real_data / "captions" / "cc3m_validation_half.txt").read_text().splitlines()[:300]
    table = datasets.load_dataset(
        "parquet", data_files=str(real_data / "cifar10" / "test.parquet"), split="train[:300]"
    )
    (tmp_path / "validation").mkdir()
    for row, image in enumerate(table.cast_column("image", datasets.Image(decode=False))["image"]):
        (tmp_path / "validation" / f"{row}").write_bytes(image["bytes"])  # the downloader gives no endings
    lines = [f"{caption}\tvalidation/{row}" for row, caption in enumerate(captions)]
    (tmp_path / "Validation.tsv").write_text("\n".join(lines) + "\n")
    command = f"poison {tmp_path}/Validation.tsv --attack wanet --target banana --count 30 --out {tmp_path}/out"
    assert main(command.split()) == 0
    rows, manifest = load_source(tmp_path / "out" / "dataset"), PoisonManifest.from_pretrained(tmp_path / "out")
    assert manifest.count == 30 and len(rows) == 300
    for row in range(300):
        if row in manifest.indices:
            assert rows[row]["image"].size == (224, 224) and "banana" in rows[row]["caption"]
        else:
            assert rows[row]["caption"] == captions[row] and rows[row]["image"].size == (32, 32)
    labelled = f"poison {real_data / 'cifar10'} --split test --n 200 --target airplane --rate 0.05 --size 32"
    assert main([*labelled.split(), "--out", str(tmp_path / "labelled")]) == 0
    assert json.loads((tmp_path / "labelled" / "manifest.json").read_text())["count"] == 10


def test_a_poisoned_set_is_known_by_amount_selector_and_own_pattern():
    pattern = np.zeros((4, 4, 3), np.uint8)
    shares = [
        Share(BadNets(pattern=pattern), 5),
        Share(BadNets(pattern=pattern + 1), 5),
        Share(BadNets(pattern=pattern), 6),
    ]
    shares += [Share(BadNets(pattern=pattern), None, rate) for rate in (0.1, 0.2)]
    shares += [Share(BadNets(pattern=pattern), 5, None, "non_target")]
    assert len({content_key(share_settings(share)) for share in shares}) == len(shares)
    assert share_settings(shares[0]) == share_settings(Share(BadNets(pattern=pattern.copy()), 5))
