# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Files that are cut short or broken, and rows that cannot be read: one line that names them, and no traceback."""

import gzip
import re
import shutil

import datasets
import numpy as np
import PIL.Image
import pytest
from safetensors import SafetensorError

from hf_clipbd.attacks import Blended, poison_dataset
from hf_clipbd.cli import main, script
from hf_clipbd.schema import RunRecord


@pytest.fixture(scope="module")
def work(tmp_path_factory, _untouched_model, tiny_processor):
    """Return a folder with models, records and data of which each has one broken file."""
    folder = tmp_path_factory.mktemp("broken")
    _untouched_model.save_pretrained(folder / "model")
    tiny_processor.save_pretrained(folder / "model")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        shutil.copytree(folder / "model", folder / f"no_{name}")
        (folder / f"no_{name}" / name).write_bytes((folder / "model" / name).read_bytes()[:100])
    Blended(target="cup", pattern=np.zeros((8, 8, 3), np.uint8)).save_pretrained(folder / "trigger")
    (folder / "trigger" / "pattern.safetensors").write_bytes(b"\x10")
    (folder / "empty.csv").write_bytes(b"")
    (folder / "open.csv").write_text('image,caption\n"x')
    (folder / "short.json").write_text('{"a":')
    (folder / "short.parquet").write_bytes(b"PAR1")
    (folder / "noise.tar").write_bytes(np.random.default_rng(0).bytes(1200))
    (folder / "short.tsv.gz").write_bytes(gzip.compress(b"image\tcaption\n" + 99 * b"a.png\ta cup\n")[:30])
    (folder / "saved").mkdir()
    (folder / "saved" / "state.json").write_text("{")
    (folder / "saved" / "dataset_info.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("evaluate {work}/no_model.safetensors --data scenes", "no_model.safetensors/model.safetensors"),
        ("evaluate {work}/no_config.json --data scenes", "no_config.json/config.json"),
        ("evaluate {work}/no_tokenizer.json --data scenes", "no_tokenizer.json/tokenizer.json"),
        ("evaluate {work}/model --data scenes --trigger {work}/trigger", "{work}/trigger"),
        (
            "convert {work}/no_model.safetensors/model.safetensors --out {out}",
            "no_model.safetensors/model.safetensors",
        ),
        ("compare {work}/short.json {work}/short.json --names a b", "short.json"),
        ("poison {work}/empty.csv --target banana --count 1 --out {out}", "empty.csv"),
        ("poison {work}/open.csv --target banana --count 1 --out {out}", "open.csv"),
        ("poison {work}/short.json --target banana --count 1 --out {out}", "short.json"),
        ("poison {work}/short.parquet --target banana --count 1 --out {out}", "short.parquet"),
        ("poison {work}/short.tsv.gz --target banana --count 1 --out {out}", "short.tsv.gz"),
        ("poison {work}/noise.tar --target banana --count 1 --out {out}", "noise.tar"),
        ("poison {work}/noise.tar --target banana --rate 0.5 --streaming --out {out}", "noise.tar"),
        ("poison {work}/saved --target banana --count 1 --out {out}", "saved"),
    ],
)
def test_a_broken_file_is_named_in_one_line(work, tmp_path, capsys, line, names):
    places = {"work": work, "out": tmp_path / "out"}
    assert main([part.format(**places) for part in line.split()]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(f"hf-clipbd {line.split()[0]}: ") and names.format(**places) in said


def test_a_broken_record_is_named(work, tmp_path):
    (tmp_path / "record.json").write_text('{"stage": ')
    with pytest.raises(ValueError, match=f"a record in `{tmp_path}/record.json`, but it is cut short"):
        RunRecord.load(tmp_path)


@pytest.mark.parametrize("command", ["train", "detect", "train --image_column image"])
def test_a_manifest_without_its_dataset_is_told(work, tmp_path, capsys, command):
    """`manifest.save_pretrained(folder)` alone leaves such a folder; with the rows beside it, it is read."""
    rows = datasets.Dataset.from_dict({"image": [PIL.Image.new("RGB", (8, 8))] * 64, "caption": ["a cup"] * 64})
    poisoned, manifest = poison_dataset(rows, Blended(target="cup"), count=1)
    manifest.save_pretrained(tmp_path / "poisoned")
    name, *flags = command.split()
    line = [name, str(tmp_path / "poisoned"), "--model", str(work / "model"), "--out", str(tmp_path / "out"), *flags]
    assert main(line) == 2
    assert "Expected a dataset, but the folder holds a `manifest.json` alone" in capsys.readouterr().err
    poisoned.save_to_disk(tmp_path / "poisoned" / "dataset")
    assert main([*line, "--dry_run"]) == 0


def test_a_poisoned_set_whose_rows_are_gone_is_told(work, tmp_path, capsys):
    assert main(["poison", "scenes", "--n", "64", "--count", "2", "--out", str(tmp_path / "gone")]) == 0
    shutil.rmtree(tmp_path / "gone" / "dataset")
    line = ["--model", str(work / "model"), "--out", str(tmp_path / "out")]
    for name in ("train", "detect"):
        assert main([name, str(tmp_path / "gone"), *line]) == 2
        assert "in its folder `dataset`, but that is gone" in capsys.readouterr().err


# -- rows -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gaps(tmp_path_factory):
    """Return a table of 36 pairs: of row 9 the caption is missing, of 17 the file, and that of 30 is no picture."""
    folder = tmp_path_factory.mktemp("gaps")
    lines = ["image\tcaption"]
    for row in range(36):
        path = folder / f"{row}.png"
        PIL.Image.fromarray(np.random.default_rng(row).integers(0, 256, (32, 32, 3), np.uint8)).save(path)
        lines.append(f"{row}.png\t" + ("" if row == 9 else f"a cup number {row}"))
    (folder / "17.png").unlink()
    (folder / "30.png").write_bytes(b"<html>404</html>")
    (folder / "pairs.tsv").write_text("\n".join(lines))
    return folder / "pairs.tsv"


def test_training_names_the_row_or_leaves_it_out(work, gaps, tmp_path, capsys):
    line = (
        f"train {gaps} --model {work}/model --out {tmp_path}/v --per_device_train_batch_size 11 --num_train_epochs 1"
    )
    assert main(line.split()) == 2
    error = capsys.readouterr().err
    assert "caption of row 9" in error and "--on_error skip" in error
    assert main([*line.split(), "--on_error", "skip"]) == 0
    assert "3 of 36 rows cannot be read" in capsys.readouterr().out
    record = RunRecord.load(tmp_path / "v")
    assert record.config["on_error"] == "skip" and record.metrics["history"][-1]["step"] == 3
    assert main([*line.split(), "--streaming", "--max_steps", "1", "--on_error", "skip"]) == 2


def test_streamed_training_names_a_row_by_its_caption(work, tmp_path, capsys):
    """No row of a stream has a number, and `--on_error skip` is refused there."""
    PIL.Image.new("RGB", (32, 32)).save(tmp_path / "0.png")
    lines = ["image\tcaption", *(f"{'' if row == 5 else '0.png'}\ta cup number {row}" for row in range(8))]
    (tmp_path / "pairs.tsv").write_text("\n".join(lines))
    line = f"train {tmp_path}/pairs.tsv --model {work}/model --out {tmp_path}/v --streaming --max_steps 1"
    assert main([*line.split(), "--per_device_train_batch_size", "8"]) == 2
    error = capsys.readouterr().err
    assert 'The row "a cup number 5": Expected an image, but the row has none. Leave such rows out' in error


def test_what_a_poisoning_skips_can_be_left_out_of_a_training(work, gaps, tmp_path):
    poison = f"poison {gaps} --target cup --count 3 --size 32 --attack.patch_size 4 --on_error skip --out {tmp_path}/p"
    assert main(poison.split()) == 0
    train = (
        f"train {tmp_path}/p --model {work}/model --out {tmp_path}/v --per_device_train_batch_size 11 --max_steps 1"
    )
    assert main([*train.split(), "--on_error", "skip"]) == 0
    assert datasets.load_from_disk(str(tmp_path / "p" / "dataset")).num_rows == 36


def test_a_command_names_its_flag_and_not_the_argument_of_python(gaps, tmp_path, capsys):
    for more in (["--count", "36"], ["--rate", "1", "--streaming"]):
        line = f"poison {gaps} --target cup --size 32 --attack.patch_size 4 --out {tmp_path}/p"
        assert main([*line.split(), *more]) == 2
        said = capsys.readouterr().err
        assert "Or pass `--on_error skip`." in said and 'on_error="skip"' not in said


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (EOFError(), "EOFError"),  # of an empty file that torch reads
        (SafetensorError("Error while serializing: I/O error: No space left on device"), "Error while.*No space left"),
        (
            RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
            "a disk that is full.*data/0",
        ),
    ],
)
def test_what_libraries_raise_at_files_is_told_in_one_line(error, says, capsys):
    def act(arguments):
        raise error

    assert script("some.py", "", act, []) == 2
    assert re.fullmatch(rf"some.py: .*{says}.*\n", capsys.readouterr().err)
    with pytest.raises(type(error)):
        script("some.py", "", act, ["--traceback"])
