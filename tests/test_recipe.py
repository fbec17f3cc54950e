# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Configuration, stages and the whole job: what is read, what is skipped, and what a killed run leaves behind."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow
import pytest
import torch
import yaml
from safetensors.torch import save_file

from hf_clipbd.recipe import ConfigError, config_from, load_config
from hf_clipbd.recipe.checkpoints import remove
from hf_clipbd.recipe.config import training_settings
from hf_clipbd.recipe.locks import this_host
from hf_clipbd.recipe.options import PoisonConfig, WorldConfig
from hf_clipbd.recipe.progress import epoch_line
from hf_clipbd.recipe.sections import parse_section, read_flags
from hf_clipbd.recipe.stage import CARDS, CHECKPOINTS, SCRATCH, Outcome, Stage
from hf_clipbd.recipe.world import World
from hf_clipbd.scenes import CLASS_NAMES
from hf_clipbd.schema import RECORD_FILE, RunRecord, content_key


ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "recipes"


@pytest.fixture(scope="session")
def clean_folder(tmp_path_factory, _untouched_model, tiny_processor):
    """Return a folder with a small random model and its processor, the clean model of the runs below."""
    folder = tmp_path_factory.mktemp("clean")
    _untouched_model.save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    return folder


def sections(clean: Path, out: Path, **changes) -> dict:
    """Return a run on 64 scenes that takes seconds."""
    training = {"per_device_train_batch_size": 16, "learning_rate": "1e-3", "num_train_epochs": 1}
    world = {"kind": "scenes", "clean_model": str(clean), "size": 32, "n_train": 64, "n_defense": 64, "n_test": 90}
    values = {
        "output_dir": str(out),
        "world": world,
        "poison": {"count": 8},
        "victim": {**training, "num_train_epochs": 3},
        "defense_defaults": training,
        "defenses": {"ft": {}, "cleanclip": {}, "cleanerclip": {"k_pairs": 16}},
        "evaluate": {"epoch_images": 45},
        "detect": {"rates": [0.05], "map_points": 40},
    }
    return {**values, **changes}


# -- configuration ----------------------------------------------------------------------------------------------------


@pytest.fixture
def written(clean_folder, tmp_path):
    """Return a YAML file with the sections above."""
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(sections(clean_folder, tmp_path / "run"), sort_keys=False))
    return path


def test_values_are_coerced_and_flags_lie_over_the_yaml(written):
    config = load_config(
        f"{written} --seed 7 --victim.learning_rate 5e-4 --victim.use_cpu --defense_defaults.num_train_epochs=2 "
        "--defenses.cleanerclip.num_train_epochs 3 --defenses.cleanclip false --attack.patch_size 4 "
        "--evaluate.ks 1 2 --world.data_files.train a.parquet --poison.count null --poison.rate 0.25".split()
    )
    assert config.seed == config.victim.seed == 7
    assert config.victim.learning_rate == 5e-4 and config.victim.use_cpu is True
    assert list(config.defenses) == ["ft", "cleanerclip"]
    assert [one.num_train_epochs for one in config.defenses.values()] == [2, 3]
    assert config.defenses["ft"].learning_rate == 1e-3  # the text '1e-3' of the YAML
    assert config.attack == {"name": "badnets", "target": "banana", "patch_size": 4}
    assert config.evaluate.ks == [1, 2]
    assert config.world.data_files == {"train": "a.parquet"}
    assert config.poison.rows(64) == 16


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--viktim.learning_rate 1", "Unknown section `viktim`; did you mean `victim`"),
        (
            "--learning_rate 1",
            r"mean `clean.learning_rate` or `victim.learning_rate` or `defense_defaults.learning_rate`",
        ),
        ("--n_train 5", r"mean `world.n_train`"),
        ("--on_error skip", r"mean `world.on_error`"),
        ("--world.n_trian 5", r"`world.n_trian`; did you mean `world.n_train`"),
        ("--victim.lerning_rate 1", r"`victim.lerning_rate`; did you mean `victim.learning_rate`"),
        ("--defenses.cleanerclip.kpairs 1", r"mean `defenses.cleanerclip.k_pairs`"),
        ("--defenses.claenclip.seed 1", r"`defenses.claenclip`; did you mean `defenses.cleanclip`"),
        ("--defense_defaults.k_pairs 9", r"`defense_defaults.k_pairs`"),
        ("--attack.patch 4", r"mean .*`attack.patch_size`"),
        ("--attack.name badnet", r"'badnet'; did you mean `badnets`"),
        ("--attack.target bananna", r"'bananna'; did you mean `banana`"),
        ("--attack.patch_size -4", "Section `attack`"),
        ("--evaluate.ks 3 5", "Section `evaluate`.*the 1 among them"),
        ("--detect.detectors slot", r"'slot'; did you mean .*`slof`"),
        ("--detect.rates 0.5", r"at most the poison rate 0.125, but got \[0.5\]"),
        ("--poison.rate 0.5", "either `rate` or `count`"),
        ("--victim.learning_rate fast", "Section `victim`.*'fast'"),
        ("--world.kind photographs", "Section `world`.*photographs"),
        ("--world.kind labelled", "`path` or `data_files`"),
        ("--seed -1", "`seed`.*-1"),
        ("--clean.learning_rate 1", "`world.clean_model: train`"),
        ("--victim 3", "section `victim` to map"),
        ("--seed 1 --seed 2", "`--seed` once"),
        ("--seed 1 --seed.x 2", "`seed` was given a value"),
        ("--architecture.wdth 3 --world.clean_model train", "`architecture.wdth`"),
    ],
)
def test_what_is_not_understood_is_named(written, flags, says):
    with pytest.raises(ConfigError, match=says):
        load_config([str(written), *flags.split()])


def test_yaml_that_cannot_be_read_is_named(tmp_path, written):
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    (tmp_path / "bad.yaml").write_text("a: [")
    for arguments, says in (
        (["none.yaml"], "`none.yaml`"),
        ([str(tmp_path / "list.yaml")], "mapping of sections"),
        ([str(tmp_path / "bad.yaml")], "cannot be read"),
        ([], "recipes/scenes/defend.yaml"),
        ([str(written), "--config", str(written)], "one YAML"),
    ):
        with pytest.raises(ConfigError, match=says):
            load_config(arguments)


def test_an_unknown_section_is_named_before_torch_is_imported(written):
    code = (
        "import sys\nfrom hf_clipbd.recipe import load_config\n"
        f"try:\n    load_config([{str(written)!r}, '--world.sise', '3'])\n"
        "except ValueError as error:\n    print(error, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "`world.size`" in done.stdout and done.stdout.strip().endswith("False")


def test_flags_are_nested_by_their_dots():
    assert read_flags("a.yaml --x.y-z 1 --list a b --on --none null --k=v rest".split()) == (
        ["a.yaml", "rest"],
        {"x": {"y_z": "1"}, "list": ["a", "b"], "on": "true", "none": None, "k": "v"},
    )


@pytest.mark.parametrize(("given", "name"), [("7", "7"), (7, "7"), ("none", "none"), (True, "true"), ("nan", "nan")])
def test_a_class_may_be_called_like_a_number_or_a_truth_value(given, name):
    from hf_clipbd.recipe.poisoning import make_attack
    from hf_clipbd.recipe.world import build_attack

    world = {"kind": "labelled", "path": "svhn", "clean_model": "clip", "size": 32}
    config = config_from({"world": world, "attack": {"target": given, "patch_size": "4"}})
    assert config.attack == {"name": "badnets", "target": name, "patch_size": 4}
    assert build_attack(config).target == name and config_from(config.resolved()).attack == config.attack
    attack = make_attack("badnets", None, {"target": given, "captions": ["a {}", "7"], "place": ["1", "2"]})
    assert (attack.target, attack.captions, attack.place) == (name, ("a {}", "7"), (1, 2))


def test_null_and_empty_lists_reach_a_section():
    world = parse_section(WorldConfig, {"prompts": [], "n_clean": None, "class_names": ["a b", "c"]}, "world")
    assert (world.prompts, world.n_clean, world.class_names) == ([], None, ["a b", "c"])


def test_poison_counts():
    assert [PoisonConfig().rows(1000), PoisonConfig(rate=0.0001).rows(1000), PoisonConfig(count=7).rows(1000)] == [
        10,
        1,
        7,
    ]
    with pytest.raises(ConfigError, match="at most 5"):
        PoisonConfig(count=6).rows(5)


def test_the_resolved_configuration_gives_itself_again(written):
    config = load_config([str(written), "--defenses.cleanerclip.tau_neg", "0.2"])
    again = config_from(yaml.safe_load(yaml.safe_dump(config.resolved())))
    assert again.resolved() == config.resolved()
    assert again.defenses["cleanerclip"].tau_neg == 0.2


def test_settings_hold_what_is_computed_and_not_what_is_shown(written):
    plain = load_config([str(written)])
    shown = "--victim.logging_steps 3 --victim.disable_tqdm true --output_dir elsewhere".split()
    shown = load_config([str(written), *shown])
    other = load_config([str(written), "--victim.adam_beta2", "0.98"])
    assert training_settings(plain.victim) == training_settings(shown.victim) != training_settings(other.victim)
    assert training_settings(other.victim)["adam_beta2"] == 0.98
    assert "k_pairs" in training_settings(plain.defenses["cleanerclip"])


@pytest.mark.parametrize("name", sorted(path.parent.name for path in RECIPES.glob("*/defend.yaml")))
def test_the_recipes_are_valid(name):
    config = load_config([str(RECIPES / name / "defend.yaml")])
    assert list(config.defenses) == ["ft", "cleanclip", "cleanerclip"]


def test_epoch_lines():
    entry = {"epoch": 2.0, "loss": 1.5, "loss_clip": 1.0, "loss_fc": 0.5, "eval_ba1": 0.25, "eval_asr1_a": 1.0}
    assert epoch_line(entry, 4) == "epoch 2/4  loss 1.500 (clip 1.000, fc 0.500)  BA@1 25.0  ASR@1 100.0"


# -- a stage ----------------------------------------------------------------------------------------------------------


def stage_in(folder: Path, **config) -> Stage:
    return Stage(folder, "defend/some", config, 0, {"data": "abc"})


def writes(text: str):
    def work(folder: Path) -> Outcome:
        (folder / "out.txt").write_text(text)
        return Outcome({"length": len(text)}, {"text": "out.txt"})

    return work


def fails(folder: Path) -> Outcome:
    raise RuntimeError("this stage must not run")


def test_a_current_stage_is_skipped_and_any_change_runs_it_again(tmp_path):
    first = stage_in(tmp_path, rate=0.1).run_once(writes("one"))
    assert stage_in(tmp_path, rate=0.1).run_once(fails) == first
    assert (tmp_path / "defend/some/out.txt").read_text() == "one"
    for other in (
        stage_in(tmp_path, rate=0.2),
        Stage(tmp_path, "defend/some", {"rate": 0.1}, 1, {"data": "abc"}),
        Stage(tmp_path, "defend/some", {"rate": 0.1}, 0, {"data": "abd"}),
    ):
        with pytest.raises(RuntimeError):
            other.run_once(fails)
    assert RunRecord.load(tmp_path / "defend/some") == first  # a failed stage leaves the old outputs and their record


def test_missing_outputs_run_a_stage_again(tmp_path):
    stage_in(tmp_path).run_once(writes("one"))
    (tmp_path / "defend/some/out.txt").unlink()
    stage_in(tmp_path).run_once(writes("two"))
    assert (tmp_path / "defend/some/out.txt").read_text() == "two"


def test_old_outputs_are_replaced_whole(tmp_path):
    def two(folder: Path) -> Outcome:
        (folder / "other.txt").write_text("other")
        return writes("one")(folder)

    stage_in(tmp_path, n=1).run_once(two)
    stage_in(tmp_path, n=2).run_once(writes("two"))
    assert sorted(path.name for path in (tmp_path / "defend/some").iterdir()) == ["out.txt", RECORD_FILE]


def test_a_stage_stopped_while_outputs_are_placed_runs_again(tmp_path, monkeypatch):
    stage_in(tmp_path, n=1).run_once(writes("one"))
    replace = os.replace

    def stops(source, target):
        if Path(target).name == "out.txt":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", stops)
    with pytest.raises(KeyboardInterrupt):
        stage_in(tmp_path, n=2).run_once(writes("two"))
    monkeypatch.undo()
    assert not (tmp_path / "defend/some" / RECORD_FILE).exists()  # no record of outputs that are not there
    stage_in(tmp_path, n=2).run_once(writes("two"))
    assert (tmp_path / "defend/some/out.txt").read_text() == "two"
    assert not (tmp_path / "defend/some" / SCRATCH).exists()


def test_figures_that_are_no_numbers_leave_the_old_outputs(tmp_path):
    stage_in(tmp_path, n=1).run_once(writes("one"))

    def work(folder: Path) -> Outcome:
        return writes("two")(folder)._replace(metrics={"loss": float("nan")})

    with pytest.raises(ValueError, match="JSON compliant"):
        stage_in(tmp_path, n=2).run_once(work)
    assert stage_in(tmp_path, n=1).run_once(fails).metrics == {"length": 3}


def contents(folder: Path) -> list[str]:
    """Return every file below a folder, by its path in it."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_folder_that_is_no_stage_s_is_refused_before_anything_is_done(tmp_path):
    folder = tmp_path / "defend/some"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub/a").write_text("a")
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"new or empty folder.*'notes.txt', 'sub'.*--out"):
        stage_in(tmp_path).run_once(fails)
    assert contents(folder) == ["notes.txt", "sub/a"]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is a file"):
        Stage(tmp_path, "file", {}, 0).run_once(fails)
    for name in ("notes.txt", "sub/a"):
        (folder / name).unlink()
    (folder / "sub").rmdir()
    (folder / ".gitkeep").touch()
    stage_in(tmp_path).run_once(writes("one"))
    assert contents(folder) == [".gitkeep", "out.txt", RECORD_FILE]


@pytest.mark.parametrize("listed", [True, False], ids=["new", "records of earlier versions"])
def test_what_somebody_put_beside_outputs_stays(tmp_path, caplog, listed):
    folder = tmp_path / "defend/some"

    def first(scratch: Path) -> Outcome:
        (scratch / "more").mkdir()
        (scratch / "more/b.txt").write_text("b")
        return writes("one")(scratch)._replace(outputs={"text": "out.txt", "more": "more/b.txt", "all": "../x"})

    (tmp_path / "defend").mkdir()
    (tmp_path / "defend/x").write_text("another stage's")
    record = stage_in(tmp_path, n=1).run_once(first)
    if not listed:
        dataclasses.replace(record, written=[]).save(folder)
    (folder / "notes").mkdir()
    (folder / "notes/a.txt").write_text("mine")
    (folder / "README.md").write_text("a card, or mine")
    stage_in(tmp_path, n=2).run_once(writes("two"))
    assert contents(folder) == ["README.md", "notes/a.txt", "out.txt", RECORD_FILE]
    assert (folder / "out.txt").read_text() == "two" and (tmp_path / "defend/x").is_file()
    assert "['README.md', 'notes'] beside the outputs" in caplog.text
    Stage(tmp_path, "defend/some", {"n": 3}, 0, beside=CARDS).run_once(writes("three"))
    assert contents(folder) == ["notes/a.txt", "out.txt", RECORD_FILE]  # a card is of the outputs beside it


def test_a_record_cannot_have_anything_outside_its_folder_removed(tmp_path):
    record = stage_in(tmp_path, n=1).run_once(writes("one"))
    (tmp_path / "defend/other").write_text("mine")
    escapes = ["../other", str(tmp_path / "defend/other"), "..", ".", ""]
    dataclasses.replace(record, written=escapes).save(tmp_path / "defend/some")
    stage_in(tmp_path, n=2).run_once(writes("two"))
    assert (tmp_path / "defend/other").read_text() == "mine"


def test_outputs_of_another_command_are_refused(tmp_path):
    Stage(tmp_path, "model", {"kind": "train"}, 0).run_once(writes("weights"))
    for config, said in (({"kind": "detect"}, "earlier `detect`"), ({}, "earlier stage of a run")):
        with pytest.raises(ValueError, match=f"{said}, but .*model` has the outputs of `train`"):
            Stage(tmp_path, "model", config, 0).run_once(fails)
    assert (tmp_path / "model/out.txt").read_text() == "weights"
    Stage(tmp_path, "model", {"kind": "train", "epochs": 2}, 0).run_once(writes("more"))


def test_a_stopped_stage_of_other_settings_runs_again_and_leaves_nothing_behind(tmp_path, monkeypatch):
    def two(folder: Path) -> Outcome:
        (folder / "other.txt").write_text("other")
        return writes("one")(folder)

    stage_in(tmp_path, n=1).run_once(two)
    (tmp_path / "defend/some/notes.txt").write_text("mine")
    replace = os.replace

    def stops(source, target):
        if Path(target).name == RECORD_FILE and Path(source).parent.name == SCRATCH:
            raise KeyboardInterrupt  # all outputs are there, their record is not
        replace(source, target)

    monkeypatch.setattr(os, "replace", stops)
    with pytest.raises(KeyboardInterrupt):
        stage_in(tmp_path, n=2).run_once(two)
    monkeypatch.undo()
    stage_in(tmp_path, n=3).run_once(writes("three"))
    assert contents(tmp_path / "defend/some") == ["notes.txt", "out.txt", RECORD_FILE]


def make_checkpoint(folder: Path, step: int, whole: bool = True) -> None:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    text = json.dumps({"global_step": step})
    (path / "trainer_state.json").write_text(text if whole else text[:-3])
    save_file({"weight": torch.zeros(9)}, path / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt"):
        torch.save({"step": step}, path / name)


def test_only_whole_checkpoints_of_the_same_stage_are_taken(tmp_path, caplog):
    stage = stage_in(tmp_path, n=1)
    checkpoints = stage.folder / CHECKPOINTS
    assert stage.checkpoint() == (None, 0.0)
    for step, whole in ((9, True), (10, True), (11, False)):
        make_checkpoint(checkpoints, step, whole)
    (checkpoints / "checkpoint-12").mkdir()
    stage.note_seconds(2.5)
    assert stage.checkpoint() == (checkpoints / "checkpoint-10", 2.5)
    assert sorted(path.name for path in checkpoints.glob("check*")) == ["checkpoint-10", "checkpoint-9"]
    with caplog.at_level("INFO", "hf_clipbd"):
        logging_on = stage_in(tmp_path, n=2).checkpoint()
    assert logging_on == (None, 0.0) and not list(checkpoints.glob("check*"))


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("model.safetensors", 40),
        ("optimizer.pt", 100),
        ("scheduler.pt", 0),
        ("optimizer.pt", None),  # transformers would go on without it
        ("trainer_state.json", b"null"),
        ("trainer_state.json", b"{}"),
        ("trainer_state.json", b"\xff"),
    ],
)
def test_a_checkpoint_of_which_a_part_is_broken_is_none(name, left, tmp_path):
    stage = stage_in(tmp_path)
    assert stage.checkpoint() == (None, 0.0)
    for step in (9, 10):
        make_checkpoint(stage.folder / CHECKPOINTS, step)
    stage.note_seconds(2.5)
    path = stage.folder / CHECKPOINTS / "checkpoint-10" / name
    if left is None:
        path.unlink()
    elif isinstance(left, int):
        os.truncate(path, left)
    else:
        path.write_bytes(left)
    assert stage.checkpoint() == (stage.folder / CHECKPOINTS / "checkpoint-9", 2.5) and not path.parent.exists()


@pytest.mark.parametrize("state", ["optimizer.bin", "optimizer_0/__0_0.distcp", "global_step10/zero.pt"])
def test_a_checkpoint_of_fsdp_or_deepspeed_is_one(state, tmp_path):
    stage = stage_in(tmp_path)
    make_checkpoint(stage.folder / CHECKPOINTS, 10)
    stage.note_seconds(2.5)
    path = stage.folder / CHECKPOINTS / "checkpoint-10"
    (path / state).parent.mkdir(exist_ok=True)
    (path / "optimizer.pt").rename(path / state)
    assert stage.checkpoint() == (path, 2.5)


@pytest.mark.parametrize("text", ["", "null", "[]", '{"key": '])
def test_checkpoints_whose_note_is_broken_are_nobody_s(text, tmp_path):
    stage = stage_in(tmp_path)
    make_checkpoint(stage.folder / CHECKPOINTS, 9)
    (stage.folder / CHECKPOINTS / "key.json").write_text(text)
    assert stage.checkpoint() == (None, 0.0)


def test_checkpoints_of_other_settings_stay_until_there_are_new_ones(tmp_path):
    asked, mistyped, third = (stage_in(tmp_path, n=n) for n in range(3))
    checkpoints = asked.folder / CHECKPOINTS

    def save(stage, step, seconds):
        stage.checkpoint()
        make_checkpoint(checkpoints, step)
        stage.note_seconds(seconds)

    save(asked, 10, 2.5)
    assert mistyped.checkpoint() == third.checkpoint() == mistyped.checkpoint() == (None, 0.0)
    assert asked.checkpoint() == (checkpoints / "checkpoint-10", 2.5)  # put right before anything was saved
    save(mistyped, 3, 1.0)
    assert asked.checkpoint() == (None, 0.0)
    assert mistyped.checkpoint() == (checkpoints / "checkpoint-3", 1.0)
    third.run_once(lambda folder: third.checkpoint() and writes("one")(folder))
    assert sorted(path.name for path in asked.folder.iterdir()) == ["out.txt", RECORD_FILE]


def test_checkpoints_go_once_the_record_is_there(tmp_path):
    stage = stage_in(tmp_path)

    def work(folder: Path) -> Outcome:
        stage.checkpoint()
        make_checkpoint(stage.folder / CHECKPOINTS, 3)
        return writes("one")(folder)._replace(seconds_before=100.0)

    record = stage.run_once(work)
    assert record.seconds >= 100 and not (stage.folder / CHECKPOINTS).exists()
    make_checkpoint(stage.folder / CHECKPOINTS, 3)  # killed between the record and the removal
    stage.run_once(fails)
    assert not (stage.folder / CHECKPOINTS).exists()


# -- the whole job ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(clean_folder, tmp_path_factory):
    """Return the folder of a finished run and its final table."""
    from hf_clipbd.recipe import run

    out = tmp_path_factory.mktemp("job") / "run"
    return out, run(config_from(sections(clean_folder, out)))


def without_seconds(folder: Path) -> list[str]:
    """Return the final table without the column of training times."""
    lines = (folder / "table.md").read_text().splitlines()
    return [line.rsplit("|", 2)[0] if line.count("|") == 14 else line for line in lines]


def test_a_run_searches_by_mirrored_pictures(finished, clean_folder, tmp_path):
    from hf_clipbd.recipe.measuring import detect

    shutil.copytree(finished[0], tmp_path / "run")
    options = {"detectors": ["combined", "disagreement"], "rates": [], "map_points": 40}
    found = [
        detect(config_from(sections(clean_folder, tmp_path / "run", detect={**options, "second": second})))
        for second in ("clean", "mirrored", "mirrored")
    ]
    assert found[1].inputs["second"] == "mirrored" and found[1].key == found[2].key != found[0].key
    aurocs = [[one.metrics["detectors"][name]["auroc"] for name in options["detectors"]] for one in found]
    assert aurocs[1] == aurocs[2] != aurocs[0]


def test_the_job_leaves_every_record_and_output(finished):
    out, table = finished
    stages = [
        "poison",
        "victim",
        "detect",
        "report",
        *(f"defend/{name}" for name in ("ft", "cleanclip", "cleanerclip")),
    ]
    stages += [f"evaluate/{name}" for name in ("clean", "victim", "ft", "cleanclip", "cleanerclip")]
    for stage in stages:
        record = RunRecord.load(out / stage)
        assert record.stage == stage and all((out / stage / path).exists() for path in record.outputs.values())
        assert not (out / stage / CHECKPOINTS).exists() and not (out / stage / SCRATCH).exists()
    assert [entry["epoch"] for entry in RunRecord.load(out / "victim").metrics["history"]] == [1, 2, 3]
    history = RunRecord.load(out / "defend/cleanerclip").metrics["history"][-1]
    assert {"loss", "loss_clip", "loss_in_modal", "loss_fc", "eval_ba1", "eval_asr1_badnets"} <= set(history)
    assert RunRecord.load(out / "poison").metrics == {"count": 8, "n_rows": 64, "rate": 0.125}
    detectors = RunRecord.load(out / "detect").metrics
    assert set(detectors["rates"]) == {"0.05"}
    assert list(detectors["detectors"]) == ["conditional_sparsity", "multi_scale", "k_distance", "slof"]
    assert "CleanerCLIP" in table and (out / "report/report.html").is_file() and (out / "victim/README.md").is_file()


def test_the_poisoned_set_and_its_samples(finished):
    out, _ = finished
    poisoned = datasets.load_from_disk(str(out / "poison" / "dataset"))
    assert sum(poisoned["is_poisoned"]) == 8
    listed = json.loads((out / "poison/samples/samples.json").read_text())
    assert len(listed) == 8
    for number, one in enumerate(listed):
        row = poisoned.filter(lambda index, wanted=one["index"]: index == wanted, input_columns="source_index")[0]
        assert row["is_poisoned"] and row["caption"] == one["caption_poisoned"] != one["caption_clean"]
        assert (out / f"poison/samples/{number:02d}_clean.png").is_file()


def test_a_second_call_runs_nothing(finished, clean_folder, monkeypatch):
    from hf_clipbd.recipe import run

    out, table = finished
    monkeypatch.setattr(Stage, "_place", lambda self, *_: pytest.fail(f"{self.name} ran again"))
    assert run(config_from(sections(clean_folder, out))) == table


def test_a_changed_defence_runs_itself_and_what_comes_after(finished, clean_folder, tmp_path, monkeypatch):
    from hf_clipbd.recipe import run

    out = tmp_path / "copy"
    shutil.copytree(finished[0], out)
    placed = []
    place = Stage._place
    monkeypatch.setattr(Stage, "_place", lambda self, *rest: (placed.append(self.name), place(self, *rest)))
    values = sections(clean_folder, out)
    values["defenses"]["ft"] = {"learning_rate": 1e-5}
    run(config_from(values))
    assert placed == ["defend/ft", "evaluate/ft", "report"]


def test_a_poisoned_set_that_lost_rows_is_not_trained_on(finished, clean_folder, tmp_path):
    from hf_clipbd.recipe.own_data import Data
    from hf_clipbd.recipe.training import poisoned_pairs

    out = tmp_path / "copy"
    shutil.copytree(finished[0], out)
    config = config_from(sections(clean_folder, out))
    rows = poisoned_pairs(config)
    (file,) = (out / "poison" / "dataset").glob("data-*.arrow")
    with pyarrow.OSFile(str(tmp_path / "short"), "wb") as sink, pyarrow.ipc.new_stream(sink, rows.data.schema) as cut:
        cut.write_table(rows.data.table.slice(0, 40))
    os.replace(tmp_path / "short", file)
    for read in (lambda: poisoned_pairs(config), lambda: Data(str(out / "poison")).pairs()):
        with pytest.raises(ValueError, match=f"{len(rows)} rows in `.*`, as many as were written, but 40 are left"):
            read()
    os.truncate(file, file.stat().st_size - 2000)
    with pytest.raises(ValueError, match=f"can be read in `{re.escape(str(file.parent))}`"):
        poisoned_pairs(config)


# -- several jobs in one folder ---------------------------------------------------------------------------------------


@pytest.fixture
def beside(finished, clean_folder, tmp_path):
    """Return a copy of a finished run, and a function that gives a configuration of it while a job lives there."""
    out = tmp_path / "copy"
    shutil.copytree(finished[0], out)
    (out / ".lock.json").write_text(json.dumps({"host": this_host(), "pid": os.getpid(), "token": "theirs"}))
    return out, lambda **changes: config_from({**sections(clean_folder, out), **changes})


def test_a_second_run_in_a_folder_is_refused_before_it_writes(beside):
    from hf_clipbd.recipe import run
    from hf_clipbd.recipe.job import run_stage

    out, configured = beside
    before = (out / "config.yaml").read_bytes()
    for seed, work in ((0, run), (1, run), (1, lambda config: run_stage(config, "poison"))):
        with pytest.raises(ValueError, match=f"run `{out}` .* but process {os.getpid()} on .*Wait for it"):
            work(configured(seed=seed))
    assert (out / "config.yaml").read_bytes() == before


def test_a_stage_of_the_same_configuration_runs_beside_a_whole_run(beside):
    from hf_clipbd.recipe.job import run_stage

    out, configured = beside
    before, config = (out / "config.yaml").stat().st_mtime_ns, configured()
    assert len(run_stage(config, "evaluate")) == 2 + len(config.defenses)
    assert (out / "config.yaml").stat().st_mtime_ns == before and (out / ".lock.json").is_file()


def test_a_run_folder_that_is_a_file_is_named(clean_folder, tmp_path):
    from hf_clipbd.recipe import run

    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="Expected a folder or none yet, but `.*file` is a file.*--output_dir"):
        run(config_from(sections(clean_folder, tmp_path / "file")))


@pytest.mark.parametrize(("name", "text"), [("config.yaml", ""), ("config.yaml", "a: [1"), ("hub_sources.json", "[")])
def test_a_broken_file_of_a_run_folder_is_named(name, text, finished, clean_folder, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(finished[0], out)
    from hf_clipbd.recipe.job import write_config

    (out / name).write_text(text)
    with pytest.raises(ValueError, match=rf"(?s)in `{out / name}`, but it is cut short.*Remove it, and start"):
        write_config(config_from(sections(clean_folder, out)))


KILLED = """
import os, signal, sys, yaml
from hf_clipbd import recipe
from hf_clipbd.trainer import CLIPTrainer
config = recipe.config_from(yaml.safe_load(open(sys.argv[1])))
compute_loss = CLIPTrainer.compute_loss
def dies(self, *arguments, **options):
    if self.state.global_step == 10:  # in the middle of the third of three epochs of four steps
        os.kill(os.getpid(), signal.SIGKILL)
    return compute_loss(self, *arguments, **options)
CLIPTrainer.compute_loss = dies
recipe.run(config)
"""


def test_a_killed_run_goes_on_and_ends_the_same(finished, clean_folder, forked, tmp_path, monkeypatch):
    from hf_clipbd.recipe import run
    from hf_clipbd.trainer import CLIPTrainer

    out = tmp_path / "killed"
    values = sections(clean_folder, out)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    (tmp_path / "dies.py").write_text(KILLED)
    killed = forked.start(tmp_path / "dies.py", tmp_path / "run.yaml", log=tmp_path / "log")
    assert forked.ended([killed]) == [-signal.SIGKILL], (tmp_path / "log").read_text()
    assert not (out / "victim" / RECORD_FILE).exists()
    assert [path.name for path in (out / "victim" / CHECKPOINTS).glob("check*")] == ["checkpoint-8"]

    steps = []
    step = CLIPTrainer.training_step
    monkeypatch.setattr(
        CLIPTrainer, "training_step", lambda self, *one, **two: (steps.append(1), step(self, *one, **two))[1]
    )
    run(config_from(values))
    assert len(steps) == 4 + 4 + 4 + 5  # the victim's last epoch, then the three defences
    whole = finished[0]
    for stage in ("victim", "defend/cleanerclip"):
        assert (out / stage / "model.safetensors").read_bytes() == (whole / stage / "model.safetensors").read_bytes()
        assert RunRecord.load(out / stage).metrics["history"] == RunRecord.load(whole / stage).metrics["history"]
    assert without_seconds(out) == without_seconds(whole)


def test_two_processes_write_once_and_give_the_same_figures(finished, clean_folder, forked, tmp_path):
    values = sections(clean_folder, tmp_path / "two", defenses={}, report={"html": False, "cards": False})
    values["victim"] = {**values["victim"], "per_device_train_batch_size": 8}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    # The launcher is forked, the two processes that it starts are new interpreters.
    launch = ["-m", "accelerate.commands.launch", "--config_file", RECIPES / "accelerate" / "two_cpu_processes.yaml"]
    forked.run(*launch, RECIPES / "defend.py", tmp_path / "run.yaml", log=tmp_path / "log")
    assert (tmp_path / "log").read_text().count("done in") == 6  # one line a stage, not one a process
    record, alone = RunRecord.load(tmp_path / "two" / "victim"), RunRecord.load(finished[0] / "victim")
    assert record.processes == 2 and record.config["global_batch"] == alone.config["global_batch"]
    for entry, same in zip(record.metrics["history"], alone.metrics["history"], strict=True):
        assert entry["loss"] == pytest.approx(same["loss"], rel=1e-4)
        assert entry["eval_ba1"] == pytest.approx(same["eval_ba1"], abs=1 / 40)
    for name in ("clean", "victim"):
        assert RunRecord.load(tmp_path / "two/evaluate" / name).metrics.keys() == {"report"}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Return a folder with a train and a test split of labelled pictures, ten a class."""
    import numpy as np
    import PIL.Image

    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=list("abcdefghij"))})
    for split, n in (("train", 200), ("test", 60)):
        pictures = [PIL.Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(n)]
        rows = datasets.Dataset.from_dict({"img": pictures, "label": [i % 10 for i in range(n)]}, features=features)
        rows.to_parquet(folder / f"{split}.parquet")
    return folder


def test_labelled_photographs_with_a_clean_model_trained_first(photographs, tmp_path):
    from hf_clipbd.recipe import poison, train_clean, train_victim
    from hf_clipbd.recipe.world import World

    vision = {"width": 4, "layers": [1, 1, 1, 1]}
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    values = sections(Path("train"), tmp_path / "run", defenses={}, detect={"rates": []})
    values |= {
        "world": {
            "kind": "labelled", "path": str(photographs), "image_column": "img", "clean_model": "train", "size": 32,
            "n_train": 60, "n_defense": 40, "n_test": 50, "n_clean": 64, "target_share": 0.05,
        },
        "attack": {"target": "c"},
        "clean": values["victim"],
        "architecture": {"vocab_size": 600, "projection_dim": 16, "vision_config": vision, "text_config": text},
    }  # fmt: skip
    config = config_from(values)
    world = World(config)
    assert len(world.train) == 60 and len(world.defense) == 40 and len(world.test) == 50
    assert world.train.column_names == ["image", "caption"]
    words = [caption.split() for caption in world.train["caption"]]
    assert sum("c" in one for one in words) == 3  # five percent of sixty
    keys = [train_clean(config, world).key, poison(config, world).key]
    record = train_victim(config, world)
    assert record.inputs["clean"] == keys[0] and record.inputs["poison"] == keys[1]
    again = World(config_from(values))  # everything is current: fingerprints are stable
    assert [train_clean(config, again).key, poison(config, again).key] == keys


def test_a_run_on_few_classes_shows_the_ks_that_there_are(tmp_path, clean_folder):
    import numpy as np
    import PIL.Image

    from hf_clipbd.recipe import run
    from hf_clipbd.recipe.verify import verify

    rng = np.random.default_rng(0)
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["cup", "dog", "7"])})
    for split, n in (("train", 48), ("test", 24)):
        pictures = [PIL.Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(n)]
        rows = datasets.Dataset.from_dict({"img": pictures, "label": [i % 3 for i in range(n)]}, features=features)
        rows.to_parquet(tmp_path / f"{split}.parquet")
    values = sections(clean_folder, tmp_path / "run", defenses={}, attack={"target": "7", "patch_size": 4})
    values["world"] |= {"kind": "labelled", "path": str(tmp_path), "image_column": "img"}
    values["world"] |= {"n_train": 32, "n_defense": 16, "n_test": 24}
    values["poison"], values["victim"] = {"count": 4}, {**values["victim"], "num_train_epochs": 1}
    values |= {"evaluate": {"epoch_images": 12}, "detect": {"rates": [], "detectors": ["slof"], "k": 4}}
    table = run(config_from(values))
    assert table.splitlines()[0].split()[2:8] == ["BA@1", "BA@3", "n", "ASR@1", "ASR@3", "n"]
    assert RunRecord.load(tmp_path / "run/evaluate/victim").config["ks"] == [1, 3, 5, 10]  # those that were asked for
    for page in ("victim/README.md", "report/report.html"):
        text = (tmp_path / "run" / page).read_text(encoding="utf-8")
        assert "top 5" not in text and "over 3 classes" in text
    assert [one.figure for one in verify(tmp_path / "run", ["victim"])] == ["BA@1", "ASR@1 badnets"]


def test_captioned_world_takes_its_tests_from_elsewhere(photographs, tmp_path, clean_folder):
    from hf_clipbd.recipe.world import World

    rows = datasets.load_dataset("parquet", data_files=str(photographs / "train.parquet"), split="train")
    pairs = rows.select_columns("img").add_column("text", [f"a picture of row {row}" for row in range(len(rows))])
    pairs.to_parquet(tmp_path / "pairs.parquet")
    world = {
        "kind": "captioned", "path": str(tmp_path / "pairs.parquet"), "image_column": "img", "caption_column": "text",
        "test_path": str(photographs), "clean_model": str(clean_folder), "size": 32,
        "n_train": 100, "n_defense": 80, "n_test": 30,
    }  # fmt: skip
    values = {**sections(clean_folder, tmp_path / "run", world=world, detect={"rates": []}), "attack": {"target": "c"}}
    found = World(config_from(values))
    assert not set(found.train["caption"]) & set(found.defense["caption"])
    assert (len(found.train), len(found.defense), len(found.test)) == (100, 80, 30)
    assert found.class_names == list("abcdefghij")


@pytest.fixture
def own_pairs(tmp_path, clean_folder):
    """Return the sections of a run on a table of 40 files and on 12 test images, and the folder of the files."""
    import numpy as np
    import PIL.Image

    rng, files = np.random.default_rng(0), tmp_path / "files"
    files.mkdir()
    for split, n in (("pairs", 40), ("tests", 12)):
        for row in range(n):
            PIL.Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(files / f"{split}{row}.png")
    lines = ["image\tcaption", *(f"files/pairs{row}.png\tnumber {row}" for row in range(40))]
    (tmp_path / "pairs.tsv").write_text("\n".join(lines))
    lines = ["image\tlabel", *(f"files/tests{row}.png\t{'abc'[row % 3]}" for row in range(12))]
    (tmp_path / "tests.tsv").write_text("\n".join(lines))
    world = {"kind": "captioned", "path": str(tmp_path / "pairs.tsv"), "test_path": str(tmp_path / "tests.tsv")}
    world |= {"clean_model": str(clean_folder), "size": 32, "n_train": 24, "n_defense": 16, "n_test": 12}
    values = sections(clean_folder, tmp_path / "run", world=world, attack={"target": "c", "patch_size": 4})
    return {**values, "defenses": {"ft": {}}, "detect": {"rates": []}, "poison": {"count": 4}}, files


def test_a_run_leaves_out_what_cannot_be_read_where_it_is_told_to(own_pairs, monkeypatch):
    from hf_clipbd.recipe import evaluate, poison, readable
    from hf_clipbd.recipe.defending import start_of
    from hf_clipbd.recipe.fingerprints import data_fingerprint
    from hf_clipbd.recipe.job import write_config
    from hf_clipbd.recipe.plan import expected_stages

    values, files = own_pairs
    strict, skipping = (
        config_from({**values, "world": {**values["world"], "on_error": one}}) for one in ("raise", "skip")
    )
    whole, same = World(strict), World(skipping)
    for name in ("train", "defense", "test"):
        assert data_fingerprint(getattr(whole, name)) == data_fingerprint(getattr(same, name))  # the keys stay
    first, second = (int(getattr(whole, name)["caption"][0].split()[1]) for name in ("train", "defense"))
    (files / f"pairs{first}.png").unlink()
    for name in (f"pairs{second}", "tests5"):
        (files / f"{name}.png").write_bytes((files / f"{name}.png").read_bytes()[:300])
    write_config(strict)
    with pytest.raises(ValueError, match=rf"pairs{first}.png, but none is there.* Or set `world.on_error: skip`"):
        poison(strict)
    about = [expected_stages(config)["poison"].about for config in (strict, skipping)]
    assert about[1] == f"{about[0]}; rows that cannot be read are left out"

    RunRecord("victim", "its key", {}, {}, 0).save(skipping.output_dir / "victim")

    def stages():
        world = World(skipping)
        write_config(skipping)
        records = [poison(skipping, world), evaluate(skipping, "clean", world)]
        return records, start_of(skipping, "ft", skipping.defenses["ft"], world)

    records, start = stages()
    assert records[0].metrics["n_rows"] == 23 and records[0].metrics["unreadable"] == [first]
    assert records[1].metrics["unreadable"] == [5] and records[1].metrics["report"]["ba"]["1"]["n"] == 11
    assert start.figures == {"unreadable": [second]} and len(start.pairs()) == 15
    kept = json.loads((skipping.output_dir / "unreadable.json").read_text()).values()
    assert sorted((one["rows"], one["n"], len(one["unreadable"])) for one in kept) == [
        ("defense", 16, 1), ("test", 12, 1), ("train", 24, 1)
    ]  # fmt: skip
    reasons = [why for one in kept for why in one["unreadable"].values()]
    assert all(why.startswith("Expected an image that can be decoded") for why in reasons)
    monkeypatch.setattr(readable, "Reader", None)  # no picture is decoded once more
    again, same_start = stages()
    assert [one.key for one in again] == [one.key for one in records] and same_start.inputs == start.inputs


@pytest.mark.parametrize("advice", ['Or pass on_error="skip".', "Or leave such rows out: `--on_error skip`."])
def test_what_a_run_says_of_unreadable_rows_is_what_its_yaml_has(advice):
    from hf_clipbd.recipe.readable import advising_runs

    with pytest.raises(ValueError, match=r"^Row 3: cut short. Or set `world.on_error: skip`"), advising_runs():
        raise ValueError(f"Row 3: cut short. {advice}")
    with pytest.raises(ConfigError, match="^other$"), advising_runs():
        raise ConfigError("other")


def test_a_run_on_nothing_readable_says_so(own_pairs):
    values, files = own_pairs
    for path in files.glob("pairs*.png"):
        path.write_bytes(path.read_bytes()[:300])
    world = World(config_from({**values, "world": {**values["world"], "on_error": "skip"}}))
    with pytest.raises(ValueError, match="`train` rows that can be read, but none of 24 can. Row"):
        _ = world.train


@pytest.fixture
def key_of(tmp_path, monkeypatch):
    """Return a function that gives the key of a stage of a run with its earlier stages' records, changes laid over."""
    from hf_clipbd.attacks import BadNets
    from hf_clipbd.recipe import defend, evaluate, poison, train_victim
    from hf_clipbd.recipe.measuring import detect

    run = tmp_path / "run"
    clean = torch.nn.Linear(1, 1)

    def rendered(world, split, n, frequencies=None, seed=None):
        """Return rows that are known by what they would be rendered from."""
        kinds = datasets.Features(label=datasets.ClassLabel(names=list(CLASS_NAMES)))
        rows = datasets.Dataset.from_dict({"label": [0] * n}, features=kinds)
        rows._fingerprint = content_key(split, n, frequencies, seed, world.seed)
        return rows

    monkeypatch.setattr(World, "_scenes", rendered)
    monkeypatch.setattr(World, "clean_model", lambda world: (clean, None))
    monkeypatch.setattr(Stage, "run_once", lambda stage, work, main_only=False: stage)
    stages = {
        "poison": poison, "victim": train_victim, "detect": detect,
        "defend/ft": lambda config: defend(config, "ft"), "evaluate/clean": lambda config: evaluate(config, "clean"),
        "evaluate/victim": lambda config: evaluate(config, "victim"),
    }  # fmt: skip

    def key(stage, keys=None, **changes):
        for name in ("poison", "victim", "detect"):
            RunRecord(name, (keys or {}).get(name, f"key of {name}"), {}, {}, 0).save(run / name)
        BadNets().save_pretrained(run / "poison" / "trigger")
        values = {"world": {"size": 32, "n_train": 300, "n_defense": 16, "n_test": 66, "num_proc": 1}}
        values |= {"output_dir": str(run), "poison": {"count": 9}, "defenses": {"ft": {}}, "detect": {"rates": []}}
        for section, value in changes.items():
            values[section] = {**values.get(section, {}), **value} if isinstance(value, dict) else value
        return stages[stage](config_from(values)).key

    return key


@pytest.mark.parametrize(
    ("stage", "change"),
    [
        ("poison", {"poison": {"count": 10}}),
        ("poison", {"poison": {"count": 9, "selector": "non_target"}}),
        ("poison", {"attack": {"target": "boat"}}),
        ("poison", {"seed": 1}),
        ("victim", {"keys": {"poison": "another"}}),
        ("victim", {"world": {"canvas": "squash"}}),
        ("victim", {"victim": {"learning_rate": 1e-3}}),
        ("victim", {"victim": {"objective": "mmcl+ssl"}}),
        ("victim", {"evaluate": {"epoch_images": 7}}),
        ("defend/ft", {"keys": {"victim": "another"}}),
        ("defend/ft", {"world": {"n_defense": 17}}),
        ("defend/ft", {"defenses": {"ft": {"per_device_train_batch_size": 8}}}),
        ("evaluate/clean", {"keys": {"poison": "another"}}),
        ("evaluate/victim", {"keys": {"victim": "another"}}),
        ("evaluate/victim", {"evaluate": {"include_target": True}}),
        ("evaluate/victim", {"evaluate": {"ks": [1]}}),
        ("evaluate/victim", {"world": {"prompts": ["a {}"]}}),
        ("evaluate/victim", {"world": {"n_test": 67}}),
        ("detect", {"keys": {"victim": "another"}}),
        ("detect", {"keys": {"poison": "another"}}),
        ("detect", {"detect": {"k": 5, "rates": []}}),
        ("detect", {"detect": {"reference": 99, "rates": []}}),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_a_stage_hangs_on_all_that_its_result_depends_on(stage, change, key_of):
    assert key_of(stage) == key_of(stage) != key_of(stage, **change)


def test_old_outputs_go_where_a_process_was_killed_before_it_removed_them(tmp_path, monkeypatch):
    def other(folder: Path) -> Outcome:
        (folder / "other.txt").write_text("other")
        return Outcome({}, {"other": "other.txt"})

    stage_in(tmp_path, n=1).run_once(writes("one"))

    def killed(*paths):
        if any(path.name == "out.txt" for path in paths):
            raise KeyboardInterrupt
        remove(*paths)

    monkeypatch.setattr("hf_clipbd.recipe.stage.remove", killed)
    with pytest.raises(KeyboardInterrupt):
        stage_in(tmp_path, n=2).run_once(other)
    monkeypatch.undo()
    assert contents(tmp_path / "defend/some")[-1] == "out.txt"
    stage_in(tmp_path, n=2).run_once(other)
    assert contents(tmp_path / "defend/some") == ["other.txt", RECORD_FILE]
