# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""How `hf-clipbd` says it: `--quiet`, `--json`, `--dry_run`, lists, next steps, exit statuses, completion."""

import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass, field

import pytest

from hf_clipbd.cli import main, script
from hf_clipbd.cli.parser import PLANNED, build_parser
from hf_clipbd.cli.texts import GROUPS, TEXTS


TRAINING = "--per_device_train_batch_size 16 --num_train_epochs 1 --learning_rate 1e-3"


@pytest.fixture(scope="module")
def work(tmp_path_factory, _untouched_model, tiny_processor):
    """Return a folder with a clean model and a poisoned set."""
    folder = tmp_path_factory.mktemp("modes")
    _untouched_model.save_pretrained(folder / "clean")
    tiny_processor.save_pretrained(folder / "clean")
    line = f"poison scenes --count 8 --n 64 --size 32 --out {folder / 'poisoned'} --attack.patch_size 4 --quiet"
    assert main(line.split()) == 0
    return folder


def files(folder):
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


# -- help -------------------------------------------------------------------------------------------------------------


def test_every_command_is_in_the_list_once_with_examples_in_its_help(capsys):
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(TEXTS)
    assert main([]) == 2
    shown = capsys.readouterr().out
    assert all(f"  {name:8}  {TEXTS[name].summary}" in shown for name in grouped)
    for part in ("exit status", "130", "examples:", "register-python-argcomplete"):
        assert part in shown
    for name in grouped:
        with pytest.raises(SystemExit):
            main([name, "--help"])
        shown = capsys.readouterr().out
        assert TEXTS[name].examples[0] in shown and "--json" in shown and "--quiet" in shown
        assert ("--dry_run" in shown) == (name in PLANNED)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("evaluate a --data b --sise 3", "did you mean `--size`?"),
        ("fly", "invalid choice: 'fly'"),
        ("detect a", "--model, --out"),
        ("poison a --out b", "--count --rate --config"),
        ("poison a --out b --count 1 --rate 0.1", "not allowed with"),
        ("report", "run"),
    ],
)
def test_wrong_usage_is_one_line_that_names_the_help(line, says, capsys):
    with pytest.raises(SystemExit) as stop:
        main(line.split())
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and says in error and "--help`" in error


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("poison --list_attacks", ["badnets: ", "--attack.patch_size", "--preset cleanclip"]),
        ("defend --list_defenses", ["cleanerclip: ", "--k_pairs (default: 1000)", "retrain: "]),
        ("train --list_options", ["--learning_rate (default: 1e-05)", "--chunk_size", "--num_train_epochs"]),
        ("detect --list_detectors", ["multi_scale: ", "disagreement: "]),
    ],
)
def test_lists_need_nothing_else(line, says, capsys):
    assert main(line.split()) == 0
    shown = capsys.readouterr().out
    assert [part for part in says if part not in shown] == []


def test_the_keys_of_a_defence_of_ones_own_are_listed(monkeypatch, capsys):
    from hf_clipbd.defenses import DEFENSES, Defense
    from hf_clipbd.defenses.cleanclip import CleanCLIPConfig, CleanCLIPTrainer

    @dataclass
    class SpreadConfig(CleanCLIPConfig):
        spread_weight: float = field(default=0.5, metadata={"help": "What the spread counts."})

    SpreadConfig.__module__ = "mine"
    monkeypatch.setitem(DEFENSES, "spread", Defense(SpreadConfig, CleanCLIPTrainer))
    assert main(["defend", "--list_defenses"]) == 0
    shown = capsys.readouterr().out.split("spread: ")[1]
    assert "--spread_weight (default: 0.5)  What the spread counts." in shown and "--in_modal_weight" in shown


def test_the_lists_are_complete(capsys):
    from hf_clipbd.defenses import DEFENSES
    from hf_clipbd.detection import DETECTORS

    for line, family in (("defend --list_defenses", DEFENSES), ("detect --list_detectors", DETECTORS)):
        main(line.split())
        shown = capsys.readouterr().out.splitlines()
        assert [name for name in family if not any(one.startswith(f"{name}: ") for one in shown)] == []
        assert [one for one in shown if ": Return" in one or ": ," in one] == []


# -- output -----------------------------------------------------------------------------------------------------------


def test_quiet_and_json_in_a_process_of_their_own(work, tmp_path):
    """Where nothing is imported yet and nothing is captured: bars are kept from being drawn before they are known."""
    model, poisoned = work / "clean", work / "poisoned"
    trigger = f"--trigger {poisoned / 'trigger'}"
    train = f"train {poisoned} --model {model} --test scenes --size 32 {trigger} {TRAINING}"
    lines = [
        f"{train} --out {tmp_path / 'quiet'} --quiet",
        f"{train} --out {tmp_path / 'victim'} --json",
        f"evaluate {model} --data scenes --n 66 --size 32 {trigger} --out {tmp_path / 'e'} --json",
        f"detect {poisoned} --model {model} --detectors slof --out {tmp_path / 'found'} --json --quiet",
    ]
    code = (
        "import sys\nfrom hf_clipbd.cli import main\nfor line in sys.argv[1:]:\n    assert main(line.split()) == 0\n"
    )
    code += "    for stream in (sys.stdout, sys.stderr):\n        print('====', file=stream, flush=True)\n"
    done = subprocess.run([sys.executable, "-c", code, *lines], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    quiet, *shown = done.stdout.split("====\n")[:-1]
    errors = done.stderr.split("====\n")
    assert errors[0] == "" and errors[3] == "" and "done in" in errors[1]
    assert f"written to {tmp_path / 'quiet'}" in quiet and "eval_ba1" in quiet
    assert [word for word in ("...", "next", "epoch 1/1") if word in quiet] == []
    victim, evaluated, found = map(json.loads, shown)
    assert {"eval_ba1", "eval_asr1_badnets"} <= set(victim["metrics"]["history"][0])
    assert victim["outputs"]["model"] == str(tmp_path / "victim" / "model.safetensors")
    assert "detect" in " ".join(victim["next"])
    assert evaluated["report"]["ba"]["1"]["n"] == 66 and evaluated["next"][0].startswith("hf-clipbd compare")
    assert found["metrics"]["cut"]["n"] == 64 and "filtered" in found["outputs"]


def test_without_a_mode_headlines_and_next_steps_are_shown(work, tmp_path, capsys):
    line = f"train {work / 'poisoned'} --model {work / 'clean'} --out {tmp_path / 'victim'} {TRAINING}"
    for said in ("done in", "is up to date"):
        assert main(line.split()) == 0
        shown = capsys.readouterr().out
        assert said in shown and "next     hf-clipbd evaluate" in shown


def test_compare_and_report_speak_json_too(work, tmp_path, capsys):
    for name in ("a", "b"):
        line = f"evaluate {work / 'clean'} --data scenes --n 66 --size 32 --out {tmp_path / name} --quiet"
        assert main([*line.split(), "--trigger", str(work / "poisoned" / "trigger")]) == 0
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--baseline", "a", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["model"] for row in rows} == {"a", "b"} and rows[0]["k"] == 1 and rows[0]["ba_n"] == 66
    assert rows[0]["der"] is None and rows[1]["der"] == 0.5


def test_what_comes_next_could_be_called(work, tmp_path, capsys):
    """Every command that is named as the next one parses, and those without a placeholder name what is there."""
    line = f"train {work / 'poisoned'} --model {work / 'clean'} --out {tmp_path / 'victim'} {TRAINING}"
    line += f" --test scenes --size 32 --trigger {work / 'poisoned' / 'trigger'} --json"
    assert main(line.split()) == 0
    following = json.loads(capsys.readouterr().out)["next"]
    assert len(following) == 3
    for one in following:
        options, extra = build_parser().parse_known_args(shlex.split(one)[1:])
        assert extra == [] and options.command in ("evaluate", "detect", "defend")


# -- plans ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("poison scenes --n 64 --size 32 --count 8 --out {out}", "badnets -> banana, 8 rows"),
        ("poison {work}/poisoned --target boat --rate 0.25 --out {out}", "a share of 0.25, about 16 rows"),
        ("train {work}/poisoned --out {out} --per_device_train_batch_size 16 --num_train_epochs 3", "12"),
        ("defend {work}/clean --defense cleanerclip --data {work}/poisoned --out {out} --k_pairs 16 {t}", "5"),
        ("detect {work}/poisoned --model {work}/clean --remove 0.125 --out {out}", "about 8 rows filtered out"),
    ],
)
def test_a_plan_says_how_much_and_touches_nothing(work, tmp_path, capsys, line, says):
    before = files(work)
    words = line.format(work=work, out=tmp_path / "out", t=TRAINING).split()
    assert main([*words, "--dry_run"]) == 0
    shown = capsys.readouterr().out
    row = shown.splitlines()[1]
    assert says in row.split() or says in row, shown
    assert "to run" in row and "0 of 1 finished" in shown and "Nothing was written" in shown
    assert files(work) == before and not (tmp_path / "out").exists()


def test_a_plan_finds_what_cannot_work(work, tmp_path, capsys):
    line = f"train {work / 'poisoned'} --out {tmp_path / 'out'} --per_device_train_batch_size 65 --dry_run"
    assert main(line.split()) == 2
    assert "at least one global batch" in capsys.readouterr().err
    line = f"poison {work / 'poisoned'} --target boat --count 65 --out {tmp_path / 'out'} --dry_run"
    assert main(line.split()) == 2
    assert "at most 64, the number of rows" in capsys.readouterr().err


def test_a_plan_knows_a_finished_stage_and_one_of_other_settings(work, tmp_path, capsys):
    line = f"train {work / 'poisoned'} --model {work / 'clean'} --out {tmp_path / 'victim'} {TRAINING}"
    assert main([*line.split(), "--quiet"]) == 0
    capsys.readouterr()
    assert main([*line.split(), "--dry_run", "--json"]) == 0
    (planned,) = json.loads(capsys.readouterr().out)
    assert planned["state"] == "finished" and planned["rows"] == 64 and planned["steps"] == 4
    assert main([*line.replace("1e-3", "2e-3").split(), "--dry_run"]) == 0
    assert "other training" in capsys.readouterr().out
    line = f"poison scenes --n 64 --size 32 --attack.patch_size 4 --out {work / 'poisoned'} --dry_run"
    for count, says in (("8", "finished"), ("9", "its record has other triggers")):
        assert main([*line.split(), "--count", count]) == 0
        assert says in capsys.readouterr().out.splitlines()[1]


# -- status -----------------------------------------------------------------------------------------------------------


def test_ctrl_c_is_one_line_and_status_130(capsys):
    def act(given):
        raise KeyboardInterrupt

    assert script("some.py", "", act, []) == 130
    error = capsys.readouterr().err
    assert "goes on" in error and "Traceback" not in error


def test_traceback_after_the_command_too(tmp_path):
    with pytest.raises(FileNotFoundError):
        main(["report", str(tmp_path), "--traceback"])


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "hf_clipbd.cli", "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("hf-clipbd ")


@pytest.mark.parametrize(
    ("typed", "expected"),
    [("hf-clipbd de", {"defend", "detect"}), ("hf-clipbd detect --dry", {"--dry_run"})],
)
def test_the_shell_completes(typed, expected, tmp_path):
    pytest.importorskip("argcomplete")
    answer = tmp_path / "answer"
    environment = {**os.environ, "_ARGCOMPLETE": "1", "COMP_LINE": typed, "COMP_POINT": str(len(typed))}
    environment |= {"_ARGCOMPLETE_STDOUT_FILENAME": str(answer), "_ARGCOMPLETE_IFS": "\n", "COMP_TYPE": "9"}
    code = "from hf_clipbd.cli import main\nmain([])"
    subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert {one.strip() for one in answer.read_text().split("\n")} == expected


def test_the_command_that_comes_next_can_be_pasted(run, capsys):
    folder = run.rename(run.with_name("my run"))
    assert main(["card", str(folder)]) == 0
    assert f"next     hf-clipbd push '{folder}' --repo_id" in capsys.readouterr().out
