# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""`hf-clipbd`: each subcommand does its job, and what is wrong is one line on standard error."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pyarrow.parquet
import pytest

from hf_clipbd.attacks import Trigger
from hf_clipbd.cli import main, run_stage, script
from hf_clipbd.cli.parser import build_parser
from hf_clipbd.data.canvas import Canvas
from hf_clipbd.evaluation.protocol import framing_of
from hf_clipbd.hub import render_model_card
from hf_clipbd.models import load_dual_encoder
from hf_clipbd.recipe import config_from
from hf_clipbd.schema import EvalReport, RunRecord, write_json


COMMANDS = (
    "run",
    "poison",
    "train",
    "defend",
    "evaluate",
    "convert",
    "compare",
    "detect",
    "report",
    "card",
    "push",
    "verify",
)
POISON = "poison scenes --target banana --count 8 --n 64 --size 32 --attack.patch_size 4"
TRAINING = "--per_device_train_batch_size 16 --num_train_epochs 1 --learning_rate 1e-3"
RECIPES = Path(__file__).resolve().parents[1] / "recipes"


@pytest.fixture(scope="module")
def work(tmp_path_factory, _untouched_model, tiny_processor):
    """Return a folder with a clean model, a set poisoned from the scenes and a victim trained on it."""
    folder = tmp_path_factory.mktemp("cli")
    _untouched_model.save_pretrained(folder / "clean")
    tiny_processor.save_pretrained(folder / "clean")
    poison = (
        f"poison scenes --target banana --count 8 --n 64 --size 32 --out {folder / 'poison'} --attack.patch_size 4"
    )
    assert main(poison.split()) == 0
    train = f"train {folder / 'poison'} --model {folder / 'clean'} --out {folder / 'victim'} {TRAINING}"
    assert main(train.split()) == 0
    return folder


def test_help_of_every_subcommand_comes_without_torch():
    code = (
        "import sys\nfrom hf_clipbd.cli import main\n"
        f"for command in {COMMANDS!r}:\n"
        "    try:\n        main([command, '--help'])\n    except SystemExit as stop:\n        print(stop.code)\n"
        "print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]") and done.stdout.count("\n0\n") == len(COMMANDS)
    assert "SECTION.KEY" in done.stdout and "--allow_backdoored" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("run", "recipes/scenes/defend.yaml"),
        ("run no.yaml", "`no.yaml`"),
        ("poison ./none.csv --target banana --rate 0.1 --out {out}", "./none.csv"),
        ("poison scenes --target banana --rate 0.1 --out {out} --attack.pach 3", "attack.pach"),
        ("poison scenes --target banana --rate 0.1 --out {out} --n 8 --sise 3", "did you mean `--size`"),
        ("poison scenes --target banana --count 9 --n 8 --size 32 --out {out}", "at most 8"),
        ("train {work}/poison --model {work}/none --out {out}", "{work}/none"),
        ("train {work}/poison --model {work}/clean --out {out} --lerning_rate 3", "did you mean `learning_rate`"),
        ("train {work}/poison --model {work}/clean --out {out} stray", "stray"),
        ("train {work}/poison --model {work}/clean --out {out} --lr 3", "`lr`; did you mean `learning_rate`?"),
        ("train {work}/poison --out {out} --epochs 3", "did you mean `num_train_epochs`?"),
        ("train {work}/poison --out {out} --batch_size 3", "did you mean `per_device_train_batch_size`?"),
        ("defend {work}/victim --defense ft --data scenes --out {out} --wd 3", "did you mean `weight_decay`?"),
        ("train {work}/poison --out {out} --num_train_epochs 0", "`num_train_epochs` above 0, or `max_steps`"),
        ("train {work}/poison --out {out} --num_train_epochs -1 --dry_run", "but got -1"),
        ("train {work}/poison --out {out} --trigger {work}/poison/trigger", "`--trigger` needs. Pass --test"),
        ("defend scenes --defense ft --data scenes --out {out} --test_split a --dry_run", "`--test_split` needs"),
        ("poison scenes --count 3 --out {out} --captions no.txt --dry_run", "there is no file `no.txt`"),
        ("detect {work}/poison --model scenes --out {out} --remove 5 --dry_run", "(0, 1), but got 5"),
        ("detect {work}/poison --model no/model --out {out} --remove 1", "(0, 1), but got 1"),
        ("detect {work}/poison --model no/model --out {out} --shown -1", "`shown`, rows on the page, of at least 0"),
        ("detect {work}/poison --model no/model --out {out} --rates 0.1 2", "rates in (0, 1), but got 2"),
        ("detect {work}/poison --model no/model --out {out} --k 100", "`k` in [1, 63] for 64 reference rows"),
        ("detect {work}/poison --model scenes --out {out} --k 100 --dry_run", "`k` in [1, 63]"),
        ("detect {work}/poison --model no/model --out {out} --reference 9 --k 9", "`k` in [1, 8] for 9"),
        ("detect {work}/poison --model scenes --out {out} --reference 65 --dry_run", "`reference` in [3, 64]"),
        ("detect {work}/poison --model no/model --out {out} --n 1", "at least 3 rows to search, but got 1"),
        ("defend {work}/victim --defense cleanclp --data scenes --out {out}", "did you mean `cleanclip`"),
        ("evaluate {work}/victim --data {work}/poison", "`label`"),
        ("evaluate {work}/victim --data scenes --n 60 --size 32 --trigger {work}/clean", "attack.json"),
        ("detect {work}/poison --model {work}/victim --detectors slot --out {out}", "did you mean `slof`"),
        ("report {work}", "`config.yaml`"),
        ("card {work}", "`config.yaml`"),
        ("push {work} --repo_id a/b", "`config.yaml`"),
        ("verify {work}/clean", "published model, which has a `README.md`, but `{work}/clean` has neither"),
    ],
)
def test_an_error_is_one_line_and_status_2(work, tmp_path, capsys, arguments, says):
    places = {"work": work, "out": tmp_path / "out"}
    assert main([part.format(**places) for part in arguments.split()]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith(f"hf-clipbd {arguments.split()[0]}: ") and says.format(**places) in lines[-1]
    assert not any("Traceback" in line for line in lines)
    assert not (tmp_path / "out" / "record.json").exists()


@pytest.mark.parametrize("arguments", ["evaluate a --data b --sise 3", "verify", "poison a --target b --out c", "fly"])
def test_wrong_usage_is_status_2(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments.split())
    assert stop.value.code == 2 and "error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("poison a --count 5 --outt p1", "required: --out; by `--outt` did you mean `--out`? See"),
        ("poison a --cuont 5 --out p1", "by `--cuont` did you mean `--count`?"),
        ("poison a --count 5 --attack.place corner", "required: --out. See"),
        ("detect a --modle=b --out c", "by `--modle` did you mean `--model`?"),
    ],
)
def test_a_missing_flag_that_was_misspelt_is_named(capsys, arguments, says):
    with pytest.raises(SystemExit):
        main(arguments.split())
    assert says in capsys.readouterr().err


def test_traceback_on_request(tmp_path):
    with pytest.raises(FileNotFoundError):
        main(["--traceback", "report", str(tmp_path)])


def test_poison_writes_set_trigger_and_record_once(work, capsys):
    rows = datasets.load_from_disk(str(work / "poison" / "dataset"))
    assert sum(rows["is_poisoned"]) == 8 and len(rows) == 64
    manifest = json.loads((work / "poison" / "manifest.json").read_text())
    assert manifest["parameters"]["patch_size"] == 4 and manifest["target"] == "banana"
    before = (work / "poison" / "record.json").stat().st_mtime_ns
    assert main([*POISON.split(), "--out", str(work / "poison")]) == 0
    assert (work / "poison" / "record.json").stat().st_mtime_ns == before
    assert "up to date" in capsys.readouterr().out


def test_training_leaves_a_model_and_its_history(work):
    record = RunRecord.load(work / "victim")
    assert (work / "victim" / "model.safetensors").is_file()
    assert record.config["training"]["learning_rate"] == 1e-3 and len(record.metrics["history"]) == 1


def test_defend_measures_each_epoch(work, tmp_path, capsys):
    command = f"defend {work / 'victim'} --defense cleanerclip --data scenes --n 64 --size 32 --k_pairs 16"
    command += f" --out {tmp_path / 'defended'} --test scenes --trigger {work / 'poison' / 'trigger'} {TRAINING}"
    assert main(command.split()) == 0
    entry = RunRecord.load(tmp_path / "defended").metrics["history"][0]
    assert {"loss_fc", "eval_ba1", "eval_asr1_badnets"} <= set(entry)
    assert "eval_asr1_badnets" in capsys.readouterr().out


def test_training_and_measuring_take_the_framing_of_the_poison(work, tmp_path):
    wide = [PIL.Image.fromarray(np.full((32, 64, 3), 40 + 3 * i, np.uint8)) for i in range(64)]
    rows = datasets.Dataset.from_dict({"image": wide, "caption": [f"a cup number {i}" for i in range(64)]})
    rows = rows.cast_column("image", datasets.Image())
    rows.to_parquet(tmp_path / "wide.parquet")
    poison = f"poison {tmp_path / 'wide.parquet'} --target banana --count 8 --size 32 --canvas squash"
    assert main([*poison.split(), "--attack.patch_size", "4", "--out", str(tmp_path / "poison")]) == 0
    train = f"train {tmp_path / 'poison'} --model {work / 'clean'} --out {tmp_path / 'victim'} {TRAINING}"
    assert main(train.split()) == 0
    assert RunRecord.load(tmp_path / "victim").config["canvas"] == [32, "squash"]
    assert RunRecord.load(work / "victim").config["canvas"] == [32, "center_crop"]
    trigger = Trigger.from_pretrained(tmp_path / "poison" / "trigger")
    processor = load_dual_encoder(work / "clean")[1]
    assert framing_of(processor, {"any": trigger}) == Canvas(32, "squash")


def test_evaluate_shows_and_writes_the_report(work, tmp_path, capsys):
    command = f"evaluate {work / 'victim'} --data scenes --n 90 --size 32 --out {tmp_path / 'report.json'}"
    assert main([*command.split(), "--trigger", str(work / "poison" / "trigger")]) == 0
    report = EvalReport.from_dict(json.loads((tmp_path / "report.json").read_text()))
    assert report.ba[1].n == 90 and report.triggers["badnets"].target == "banana"
    shown = capsys.readouterr().out
    assert "ASR badnets -> banana" in shown and f"@10 {100 * report.ba[10].value:5.1f}" in shown


def test_detect_writes_scores_of_every_row(work, tmp_path, capsys):
    command = f"detect {work / 'poison'} --model {work / 'victim'} --detectors slof clip_score --rates 0.05"
    assert main([*command.split(), "--out", str(tmp_path / "found")]) == 0
    table = pyarrow.parquet.read_table(tmp_path / "found" / "scores.parquet").to_pydict()
    assert sorted(table) == ["first_copy", "is_poisoned", "row", "score_clip_score", "score_slof", "source_index"]
    assert table["row"] == table["source_index"] == table["first_copy"] == list(range(64))
    assert sum(table["is_poisoned"]) == 8
    assert "auroc" in capsys.readouterr().out


def test_detect_on_rows_whose_truth_is_unknown(work, tmp_path):
    rows = datasets.load_from_disk(str(work / "poison" / "dataset")).select_columns(["image", "caption"])
    rows.save_to_disk(tmp_path / "rows")
    command = f"detect {tmp_path / 'rows'} --model {work / 'victim'} --out {tmp_path / 'found'}"
    assert main(command.split()) == 0
    metrics = RunRecord.load(tmp_path / "found").metrics
    assert metrics["n"] == 64 and "detectors" not in metrics
    assert "is_poisoned" not in pyarrow.parquet.read_table(tmp_path / "found" / "scores.parquet").column_names


# -- with a whole run -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_folder(work, tmp_path_factory):
    """Return a finished run with one defence."""
    from hf_clipbd.recipe import run

    training = {"per_device_train_batch_size": 16, "num_train_epochs": 1, "learning_rate": 1e-3}
    out = tmp_path_factory.mktemp("whole") / "run"
    world = {"clean_model": str(work / "clean"), "size": 32, "n_train": 64, "n_defense": 64, "n_test": 90}
    values = {
        "output_dir": str(out),
        "world": world,
        "poison": {"count": 8},
        "victim": training,
        "defenses": {"ft": training},
        "evaluate": {"epoch_images": 0},
        "detect": {"rates": []},
        "report": {"html": False, "cards": False},
    }
    run(config_from(values))
    return out


def test_run_prints_the_table_and_where_things_lie(run_folder, capsys):
    assert main(["run", str(run_folder / "config.yaml")]) == 0
    shown = capsys.readouterr().out
    assert shown.count("is up to date") == 8 and "BA@1" in shown and str(run_folder / "table.md") in shown


def test_verify_agrees_with_the_records_even_when_moved(run_folder, tmp_path, capsys):
    moved = tmp_path / "moved"
    shutil.copytree(run_folder, moved)
    assert main(["verify", str(moved)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("as recorded") == 6 and "DIFFERS" not in shown


def test_verify_tells_a_record_that_does_not_hold(run_folder, tmp_path, capsys):
    changed = tmp_path / "changed"
    shutil.copytree(run_folder, changed)
    path = changed / "evaluate" / "ft" / "record.json"
    record = json.loads(path.read_text())
    record["metrics"]["report"]["ba"]["1"]["value"] = 0.9
    write_json(path, record)
    assert main(["verify", str(changed), "--model", "ft"]) == 1
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in shown if line.startswith("ft")] == ["DIFFERS", "recorded"]


def test_verify_reads_a_published_model(run_folder, tmp_path, capsys):
    published = tmp_path / "published"
    shutil.copytree(run_folder / "defend" / "ft", published)
    shutil.copytree(run_folder / "poison" / "trigger", published, dirs_exist_ok=True)
    for stage in ("poison", "victim", "defend/ft", "evaluate/ft"):
        (published / "records" / stage).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(run_folder / stage / "record.json", published / "records" / f"{stage}.json")
    shutil.copyfile(run_folder / "config.yaml", published / "records" / "config.yaml")
    render_model_card(run_folder, "defend/ft").save(published / "README.md")
    assert main(["verify", str(published)]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == 8 * ["ft"]


def test_report_and_card_of_a_run(run_folder, tmp_path, capsys):
    copied = tmp_path / "copied"
    shutil.copytree(run_folder, copied)
    assert main(["report", str(copied)]) == main(["card", str(copied)]) == 0
    shown = capsys.readouterr().out
    assert (copied / "report" / "report.html").is_file() and (copied / "defend" / "ft" / "README.md").is_file()
    assert str(copied / "report" / "report.html") in shown and str(copied / "victim" / "README.md") in shown


def test_push_refuses_what_is_backdoored(run_folder, capsys):
    assert main(["push", str(run_folder), "--repo_id", "a/b", "--what", "victim"]) == 2
    assert "--allow_backdoored" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--allow_backdoored", "--allow-backdoored"])
def test_the_flag_for_what_is_backdoored_takes_both_spellings(flag):
    assert build_parser().parse_args(["push", "runs/a", "--repo_id", "a/b", flag]).allow_backdoored


@pytest.mark.parametrize("stage", ["poison", "victim", "evaluate", "detect"])
def test_single_stages_of_a_run(run_folder, stage, capsys):
    assert run_stage(stage, [str(run_folder / "config.yaml")]) == 0
    shown = capsys.readouterr().out
    assert "is up to date" in shown and str(run_folder) in shown


def test_recipes_have_help_and_say_errors_in_one_line(monkeypatch, capsys):
    assert script("some.py", "What it does.", lambda given: 5, ["--help"]) == 0
    assert script("some.py", "", lambda given: len(given), ["a", "--traceback"]) == 1
    capsys.readouterr()
    for path in sorted(RECIPES.glob("*.py")):  # `test_pretrain.py` and `test_ssba.py` start theirs as a shell does
        monkeypatch.setattr(sys, "argv", [str(path), "--viktim.x", "1"])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(path), run_name="__main__")
        told = capsys.readouterr().err
        assert stop.value.code == 2 and re.match(rf"{path.name}: Unknown (section|key) `viktim`", told), told
