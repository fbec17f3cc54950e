# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""`hf-clipbd run --dry_run`: the plan of a run before, during and after it, against what the run then does."""

import json
import shutil

import pytest
import yaml

from hf_clipbd.cli import main, run_stage
from hf_clipbd.cli.plans import plan_training
from hf_clipbd.recipe import load_config, single
from hf_clipbd.recipe.epochs import measured_otherwise
from hf_clipbd.recipe.plan import expected_stages
from hf_clipbd.recipe.single import Data, Probe
from hf_clipbd.schema import RunRecord
from hf_clipbd.trainer import CLIPTrainer, CLIPTrainingConfig


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
    expected = expected_stages(load_config([str(job), *words, "--detect.second", "clean"]))
    called = {(one, name) for name, stage in expected.items() for one, read in stage.reads.items() if read == "clean"}
    assert called == {
        *(("surrogate", "trigger"), ("clean", "victim"), ("second", "detect")),
        *(("model", "evaluate/clean"), ("clean", "report")),
    }


def test_what_asr_counts_is_measured_again_and_trained_never(job, tmp_path, capsys):
    assert main(["run", str(job), "--quiet"]) == 0
    run = tmp_path / "run"
    shutil.copytree(job.parent / "run", run)
    words = (job, "--output_dir", run, "--evaluate.include_target", "true")
    measured = [*(f"evaluate/{name}" for name in ("clean", "victim", "ft", "cleanerclip")), "report"]
    planned = plan(capsys, *words)
    assert [name for name, one in planned.items() if one["state"] != "finished"] == measured
    trained = {path: path.stat().st_mtime_ns for path in run.rglob("model.safetensors")}
    assert len(trained) == 3 and main(["run", *map(str, words), "--quiet"]) == 0
    assert {path: path.stat().st_mtime_ns for path in run.rglob("model.safetensors")} == trained
    assert {one["state"] for one in plan(capsys, *words).values()} == {"finished"}
    found = RunRecord.load(run / "evaluate" / "ft").metrics["report"]["triggers"]["badnets"]
    assert found["include_target"] and found["asr"]["1"]["n"] == 66
    settings = {"training": {"metric_for_best_model": "asr1_badnets"}, "measured": {"include_target": False}}
    assert measured_otherwise(settings) == ()  # a learning rate may go by it (`reduce_lr_on_plateau`)


@pytest.mark.parametrize(
    ("changes", "stage"),
    [
        (("--detect.draws", "2"), "detect"),
        (("--poison.selector", "non_target"), "poison"),
    ],
)
def test_a_plan_looks_at_all_that_a_stage_depends_on(job, capsys, changes, stage):
    assert main(["run", str(job), "--quiet"]) == 0
    assert "its record has other" in plan(capsys, job, *changes)[stage]["about"]


def test_a_plan_knows_every_setting_of_every_record(job, tmp_path, capsys):
    assert main(["run", str(job), "--quiet"]) == 0
    run, words = tmp_path / "run", [str(job), "--detect.caption_share", "0.4"]
    shutil.copytree(job.parent / "run", run)
    for given in ([str(job)], words):
        assert main(["run", *given, "--output_dir", str(run), "--quiet"]) == 0
        expected = expected_stages(load_config([*given, "--output_dir", str(run)]))
        for name, one in expected.items():
            record = RunRecord.load(run / name)
            assert record.config == json.loads(json.dumps(one.settings)), name
            read = {called: RunRecord.load(run / stage).key for called, stage in one.reads.items()}
            assert read.items() <= record.inputs.items(), name
    # what is given no more is other too
    assert "its record has other caption_share" in plan(capsys, job, "--output_dir", run)["detect"]["about"]


def test_a_plan_counts_what_is_left_of_the_rows(job):
    """Where rows are left out, the record says of how many the poison is a share."""
    config = load_config([str(job), "--poison.count", "null", "--poison.rate", "0.1", "--world.on_error", "skip"])
    config.output_dir = job.parent / "fewer"
    assert expected_stages(config)["poison"].settings["count"] == 6
    RunRecord("poison", "key", {}, {"n_rows": 50}, 0).save(config.output_dir / "poison")
    assert expected_stages(config)["poison"].settings["count"] == 5


def test_the_plan_of_a_training_agrees_with_what_it_then_does(tiny_pairs, tmp_path, monkeypatch):
    for number in range(3):
        tiny_pairs.shard(3, number).to_parquet(str(tmp_path / f"pairs/{number}.parquet"))
    monkeypatch.setattr(single, "train_into", lambda stage, *_, **__: stage)
    data, out = Data(str(tmp_path / "pairs")), tmp_path / "out"
    probe = Probe(Data("scenes", "test", n=12, size=32))

    def given(workers=0, probe=None, streaming=True, on_error="raise"):
        args = CLIPTrainingConfig("unused", dataloader_num_workers=workers, max_steps=2, use_cpu=True)
        return args, probe, streaming, on_error

    def stage(args, probe, *reading):
        return single.train_model("scenes", data, CLIPTrainer, args, probe, None, out, *reading)

    def planned(args, probe, *reading):
        return plan_training(data, CLIPTrainer, args, out, *reading, probe)[0].state

    asked = [given(n) for n in (0, 2, 3, 5)] + [given(probe=probe), given(streaming=False, on_error="skip")]
    made = [stage(*one) for one in asked]
    assert len({one.key for one in made}) == len(asked) - 1  # of five workers three have a shard to read
    for done in made:
        RunRecord(done.name, done.key, done.config, {}, done.seed, done.inputs).save(out)
        for one, again in zip(asked, made, strict=True):
            assert (planned(*one) == "finished") == (again.current() is not None), (done.config, again.config)
