# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""`kill -9` in the middle of every kind of stage: the run that is started anew ends as the unbroken one."""

import json
import re
import signal
from pathlib import Path

import pytest
import yaml

from hf_clipbd.cli import main
from hf_clipbd.schema import RECORD_FILE


RECIPE = Path(__file__).parent.parent / "recipes" / "defend.py"
SCRIPT = Path(__file__).parent / "distributed" / "die_in_stage.py"
KILLED = ("poison", "victim", "detect", "evaluate/victim")
"""Stages that are killed, in the order they run: a training after its second epoch, others with their work done."""


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
        "report": {"html": False, "cards": False},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def table(run: Path) -> str:
    """Return the final table without its last column, the seconds."""
    return re.sub(r" \S+ \|$", "", (run / "table.md").read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_a_run_killed_in_every_kind_of_stage_ends_as_the_unbroken_one(configuration, forked, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for stage in KILLED:
        log = tmp_path / f"{stage.replace('/', ' ')}.log"
        doomed = forked.start(SCRIPT, stage, RECIPE, configuration, "--output_dir", broken, log=log)
        assert forked.ended([doomed]) == [-signal.SIGKILL], log.read_text()
        assert not (broken / stage / RECORD_FILE).is_file()
    forked.run(RECIPE, configuration, "--output_dir", broken, log=tmp_path / "broken.log")
    assert main(["run", str(configuration), "--output_dir", str(whole)]) == 0  # where sets have another order
    assert table(broken) == table(whole)
    for weights in sorted(whole.rglob("model.safetensors")):
        assert weights.read_bytes() == (broken / weights.relative_to(whole)).read_bytes(), weights
    for record in sorted(whole.glob("evaluate/*/record.json")):
        metrics = [json.loads((run / record.relative_to(whole)).read_text())["metrics"] for run in (whole, broken)]
        assert metrics[0] == metrics[1]
