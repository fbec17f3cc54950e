# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""`hf-clipbd run --dry_run`: the plan of a run before, during and after it, against what the run then does."""

import json
import shutil

import pytest
import yaml

from hf_clipbd.cli import main, run_stage
from hf_clipbd.schema import RunRecord


TRAINING = {"per_device_train_batch_size": 16, "num_train_epochs": 2, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def job(tmp_path_factory, _untouched_model, tiny_processor):
    """Return a configuration and, after it was run once, its folder."""
    folder = tmp_path_factory.mktemp("plan")
    _untouched_model.save_pretrained(folder / "clean")
    tiny_processor.save_pretrained(folder / "clean")
    values = {
        "output_dir": str(folder / "run"),
        "world": {"clean_model": str(folder / "clean"), "size": 32, "n_train": 64, "n_defense": 64, "n_test": 66},
        "poison": {"count": 8},
        "victim": TRAINING,
        "defense_defaults": TRAINING,
        "defenses": {"ft": {}, "cleanerclip": {"k_pairs": 16}},
        "evaluate": {"epoch_images": 0},
        "detect": {"rates": [], "detectors": ["k_distance", "conditional_sparsity"]},
        "report": {"html": False, "cards": False},
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def plan(capsys, *words):
    capsys.readouterr()
    assert main(["run", *map(str, words), "--dry_run", "--json"]) == 0
    return {one["name"]: one for one in json.loads(capsys.readouterr().out)}


def test_the_plan_of_a_run_holds_before_and_after_it(job, capsys):
    run = job.parent / "run"
    before = plan(capsys, job)
    assert not run.exists()
    names = ["poison", "victim", "detect", "defend/ft", "defend/cleanerclip"]
    names += [f"evaluate/{name}" for name in ("clean", "victim", "ft", "cleanerclip")]
    assert list(before) == [*names, "report"] and {one["state"] for one in before.values()} == {"to run"}
    assert (before["victim"]["steps"], before["defend/ft"]["steps"], before["defend/cleanerclip"]["steps"]) == (
        8,
        8,
        10,
    )
    assert before["poison"]["about"] == "badnets -> banana, 8 rows" and before["evaluate/ft"]["rows"] == 66

    assert main(["run", str(job), "--quiet"]) == 0
    after = plan(capsys, job)
    assert {one["state"] for one in after.values()} == {"finished"}
    history = RunRecord.load(run / "defend" / "cleanerclip").metrics["history"]
    assert len(history) == 2

    # a detector that has another definition since: the search
    record = run / "detect" / "record.json"
    kept = record.read_text()
    record.write_text(kept.replace('"conditional_sparsity": 2', '"conditional_sparsity": 1'))
    assert "its record has other revisions" in plan(capsys, job)["detect"]["about"]
    record.write_text(kept)
    # mirrored pictures in place of what the search had for a second encoder
    assert "another `second`" in plan(capsys, job, "--detect.second", "mirrored")["detect"]["about"]
    # one setting of one defence: that defence, its evaluation and the report
    changed = plan(capsys, job, "--defenses.ft.learning_rate", "2e-3")
    waiting = {name: one["about"] for name, one in changed.items() if one["state"] != "finished"}
    assert list(waiting) == ["defend/ft", "evaluate/ft", "report"]
    assert "its record has other training" in waiting["defend/ft"] and waiting["evaluate/ft"] == "after defend/ft"
    # the seed, or the data: all of it
    assert {one["state"] for one in plan(capsys, job, "--seed", "1").values()} == {"to run"}
    other = plan(capsys, job, "--world.n_test", "132")
    assert "n_test" in other["poison"]["about"] and {one["state"] for one in other.values()} == {"to run"}


def test_a_plan_is_a_table_for_people(job, capsys):
    assert main(["run", str(job), "--dry_run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["stage", "state", "rows", "steps", "folder"]
    assert "CLIPTrainer, 2 epochs, batches of 16" in lines[2] and "of 10 finished" in lines[-1]


def test_stopped_and_missing_and_run_again(job, tmp_path, capsys):
    assert main(["run", str(job), "--quiet"]) == 0
    run = tmp_path / "run"
    shutil.copytree(job.parent / "run", run)
    (run / "defend" / "ft" / "checkpoints" / "checkpoint-4").mkdir(parents=True)
    (run / "victim" / "model.safetensors").unlink()
    planned = plan(capsys, job, "--output_dir", run)
    assert planned["defend/ft"]["state"] == "stopped" and "after step 4" in planned["defend/ft"]["about"]
    assert planned["victim"]["state"] == "to run" and "`model.safetensors` is missing" in planned["victim"]["about"]
    assert planned["poison"]["state"] == "finished" and planned["detect"]["about"].endswith("after victim")
    shutil.copytree(job.parent / "run" / "victim", run / "victim", dirs_exist_ok=True)
    record = json.loads((run / "victim" / "record.json").read_text())
    (run / "victim" / "record.json").write_text(json.dumps({**record, "key": "0" * 16}))
    planned = plan(capsys, job, "--output_dir", run)
    assert "victim was run again since" in planned["detect"]["about"]


def test_a_recipe_plans_its_stage_alone(job, capsys):
    capsys.readouterr()
    assert run_stage("victim", [str(job), "--dry_run", "--output_dir", "/nowhere/run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[1].startswith("victim  to run")


def test_an_optimised_trigger_and_a_clean_model_of_its_own_are_stages(job, capsys):
    words = ("--attack.name", "badclip", "--attack.optimize.steps", "7", "--world.clean_model", "train")
    planned = plan(capsys, job, *words, "--output_dir", "/nowhere/run", "--defenses.ft", "false")
    assert list(planned)[:4] == ["clean", "trigger", "poison", "victim"]
    assert "7 steps" in planned["trigger"]["about"] and "defend/ft" not in planned
