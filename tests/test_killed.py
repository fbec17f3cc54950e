# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""`kill -9` in the middle of every kind of stage: the run that is started anew ends as the unbroken one."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hf_clipbd.schema import RECORD_FILE


RECIPE = Path(__file__).parent.parent / "recipes" / "defend.py"
KILLED = ("poison", "victim", "detect", "evaluate/victim")
"""Stages that are killed, in the order they run: a training after its second epoch, others with their work done."""

DIES = """
import os, runpy, signal, sys
from hf_clipbd.recipe.stage import Stage

doomed, recipe = sys.argv.pop(1), sys.argv.pop(1)
place, note_seconds, noted = Stage._place, Stage.note_seconds, []

def dying_place(stage, *given):
    os.kill(os.getpid(), signal.SIGKILL) if stage.name == doomed else place(stage, *given)

def dying_note(stage, seconds):
    note_seconds(stage, seconds)
    noted.append(stage.name)
    if noted.count(doomed) == 3:  # once for the folder, once for each epoch
        os.kill(os.getpid(), signal.SIGKILL)

Stage._place, Stage.note_seconds = dying_place, dying_note
sys.argv[0] = recipe
runpy.run_path(recipe, run_name="__main__")
"""
"""A run that kills itself as `kill -9` would, so that the moment does not depend on the machine's speed."""


@pytest.fixture
def configuration(_untouched_model, tiny_processor, tmp_path):
    """Return a YAML of a whole run that takes seconds."""
    clean = tmp_path / "clean"
    _untouched_model.save_pretrained(clean)
    tiny_processor.save_pretrained(clean)
    training = {"per_device_train_batch_size": 16, "learning_rate": "1e-3", "num_train_epochs": 3}
    values = {
        "world": {"clean_model": str(clean), "size": 32, "n_train": 96, "n_defense": 64, "n_test": 90, "num_proc": 1},
        "poison": {"count": 8},
        "victim": training,
        "defense_defaults": training,
        "defenses": {"ft": {}, "cleanerclip": {"k_pairs": 16}},
        "evaluate": {"epoch_images": 45},
        "detect": {"rates": [0.05], "map_points": 40},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def finish(configuration: Path, run: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(RECIPE), str(configuration), "--output_dir", str(run)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def kill_in(configuration: Path, run: Path, stage: str) -> None:
    """Start the run and let it be killed in the middle of the stage."""
    command = [sys.executable, "-c", DIES, stage, str(RECIPE), str(configuration), "--output_dir", str(run)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (run / stage / RECORD_FILE).is_file()


def table(run: Path) -> str:
    """Return the final table without its last column, the seconds."""
    return re.sub(r" \S+ \|$", "", (run / "table.md").read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_a_run_killed_in_every_kind_of_stage_ends_as_the_unbroken_one(configuration, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(configuration, whole)
    for stage in KILLED:
        kill_in(configuration, broken, stage)
    finish(configuration, broken)
    assert table(broken) == table(whole)
    for weights in sorted(whole.rglob("model.safetensors")):
        assert weights.read_bytes() == (broken / weights.relative_to(whole)).read_bytes(), weights
    for record in sorted(whole.glob("evaluate/*/record.json")):
        metrics = [json.loads((run / record.relative_to(whole)).read_text())["metrics"] for run in (whole, broken)]
        assert metrics[0] == metrics[1]
