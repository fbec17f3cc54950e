# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Reproductions: what a cell's job is, who works on it, what is skipped, resumed, measured, deleted and planned."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import yaml

from hf_clipbd import __version__ as VERSION
from hf_clipbd.recipe import ConfigError, config_from, measuring, reproduce, reproduce_measures, steps
from hf_clipbd.recipe.locks import LOCK_FILE, FolderLock, this_host
from hf_clipbd.recipe.plan import expected_stages
from hf_clipbd.recipe.reproduce import finished, run_reproduction
from hf_clipbd.recipe.reproduce_config import load_reproduction, reproduction_from
from hf_clipbd.recipe.reproduce_plan import memory_bytes, plan, trainings, weight_bytes
from hf_clipbd.recipe.reproduce_results import collect
from hf_clipbd.recipe.world import World
from hf_clipbd.schema import RECORD_FILE, RunRecord, content_key


ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "recipes" / "reproduce"
TRAINING = {"per_device_train_batch_size": 16, "learning_rate": "1e-3", "num_train_epochs": 1}


def values(**changes):
    """Return a reproduction of two attacks on 64 scenes."""
    whole = {
        "seeds": [0],
        "world": {"size": 32, "n_train": 64, "n_defense": 64, "n_test": 90, "num_proc": 1},
        "attack": {"name": "badnets", "target": "banana", "patch_size": 4, "captions": ["a {}"]},
        "attacks": {"badnets": {}, "blended": {"attack": {"alpha": 0.3}, "poison": {"count": 12}}},
        "poison": {"count": 8},
        "victim": TRAINING,
        "defense_defaults": TRAINING,
        "defenses": {"ft": {}},
        "evaluate": {"epoch_images": 45},
        "detect": {"rates": [0.05], "detectors": ["slof"], "map_points": 40},
        "report": {"html": False, "cards": False},
    }
    return {**whole, **changes}


# -- what a cell is ---------------------------------------------------------------------------------------------------


def test_sections_lie_over_each_other_and_flags_over_all():
    made = reproduction_from(values(seeds=[1, 0]), flags={"poison": {"count": 20}, "only": "blended/*"})
    assert [cell.name for cell in made.cells] == ["badnets/seed1", "blended/seed1", "badnets/seed0", "blended/seed0"]
    assert [cell.name for cell in made.chosen] == ["blended/seed1", "blended/seed0"]
    badnets, blended = (cell.config for cell in made.cells[:2])
    assert badnets.attack == {"name": "badnets", "target": "banana", "patch_size": 4, "captions": ["a {}"]}
    assert blended.attack == {"name": "blended", "target": "banana", "captions": ["a {}"], "alpha": 0.3}  # no patch
    assert badnets.poison.count == blended.poison.count == 20
    assert badnets.seed == badnets.victim.seed == 1 and str(blended.output_dir) == "runs/reproduce/blended/seed1"
    assert reproduction_from(values()).cells[1].config.poison.count == 12


def test_a_reproduction_over_another_shares_its_cells(tmp_path):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"seed": 5, "output_dir": "x", "poison": {"count": 9}}))
    below = {**values(), "base": "run.yaml", "output_dir": "cells"}
    del below["poison"]
    (tmp_path / "below.yaml").write_text(yaml.safe_dump(below))
    over = {"base": "below.yaml", "select": ["blended", "more"], "attacks": {"more": {"attack": {"name": "badnets"}}}}
    (tmp_path / "over.yaml").write_text(yaml.safe_dump(over))
    first, second = (load_reproduction([str(tmp_path / name)]) for name in ("below.yaml", "over.yaml"))
    assert first.cells[0].config.poison.count == 9
    assert second.attacks == ["blended", "more"] and second.cells[1].config.attack["patch_size"] == 4
    assert second.cells[0].settings == first.cells[1].settings and second.folder == first.folder
    # A base without attacks of its own has those of its base.
    (tmp_path / "third.yaml").write_text(yaml.safe_dump({"base": "over.yaml", "title": "Third"}))
    (tmp_path / "fourth.yaml").write_text(yaml.safe_dump({"base": "third.yaml"}))
    fourth = load_reproduction([str(tmp_path / "fourth.yaml")])
    assert [one.settings for one in fourth.cells] == [one.settings for one in second.cells]


def test_settings_leave_out_what_changes_no_figure():
    plain = reproduction_from(values()).cells[0].settings
    handled = {"world": {"num_proc": 2}, "evaluate": {"batch_size": 8}, "report": {"html": True}}
    assert reproduction_from(values(), flags=handled).cells[0].settings == plain
    for changed in ({"world": {"n_test": 91}}, {"victim": {"learning_rate": "2e-3"}}, {"attack": {"patch_size": 5}}):
        one = reproduction_from(values(select=["badnets"]), flags=changed).cells[0]
        assert one.settings != plain, changed
    assert json.loads(json.dumps(plain)) == plain


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"viktim": {}}, "Unknown section `viktim`; did you mean `victim`"),
        ({"attacks": {}}, "`attacks` to map at least one name"),
        ({"attacks": {"badnets": {"viktim": {}}}}, "`attacks.badnets.viktim`; did you mean `attacks.badnets.victim`"),
        ({"attacks": {"badnest": {}}}, "'badnest'; did you mean `badnets`"),
        ({"attacks": {"sig": {"attack": {"patch_size": 3}}}}, r"`attack.patch_size`.*\(in `attacks.sig`\)"),
        ({"attacks": {"sig": []}}, None),
        ({"attacks": {"sig": [1]}}, "`attacks.sig` to map sections"),
        ({"seeds": [0, 0]}, "different whole numbers"),
        ({"only": ["wanet/*"]}, "match at least one cell"),
        ({"select": ["badnest"]}, "`attacks.badnest`; did you mean `attacks.badnets`"),
        ({"base": "nowhere.yaml"}, "nowhere.yaml"),
        ({"measures": {"far": {"styel": "night"}}}, "`measures.far.styel`; did you mean `measures.far.style`"),
        ({"measures": {"far": {"style": "day"}}}, "measures.far.*'day'"),
        ({"measures": {"far": {"protocol": "linear_probe"}}}, "`n_train`"),
        ({"measures": {"far": {"protocol": "scan", "reference": "poisoned", "data": "photos"}}}, "`n_train`"),
        ({"measures": {"far": {"detectors": ["clip_score"]}}}, "compares rows with a reference.*clip_score"),
        ({"measures": [1]}, "`measures` to map"),
    ],
)
def test_what_is_not_understood_is_named(changes, says):
    if says is None:
        assert reproduction_from(values(**changes)).attacks == ["sig"]
        return
    with pytest.raises(ConfigError, match=says):
        reproduction_from(values(**changes))


def test_a_command_line_names_one_file(tmp_path):
    path = tmp_path / "some.yaml"
    path.write_text(yaml.safe_dump(values()))
    made = load_reproduction(["--config", str(path), "--seeds", "3", "4", "--keep_models", "--world.n_test=95"])
    assert made.options.seeds == [3, 4] and made.options.keep_models and made.cells[0].config.world.n_test == 95
    with pytest.raises(ConfigError, match="one YAML"):
        load_reproduction([str(path), "--config", str(path)])


@pytest.fixture
def measured_key(tmp_path):
    """Return a function that gives the key of the measurement of an untrained clean model."""
    for stage in ("poison", "victim"):
        RunRecord(stage, f"key of {stage}", {}, {}, 0).save(tmp_path / "run" / stage)

    def key(measure=None, model="clean", **changes):
        for cached in (reproduce_measures._content, reproduce_measures._weights):
            cached.cache_clear()  # as in another process
        config = config_from({"output_dir": str(tmp_path / "run"), "poison": {"count": 50}, **changes})
        return reproduce_measures._stage(config, "any", measure or reproduce_measures.Measure(), model).key

    return key


def test_a_measurement_of_the_clean_model_hangs_on_its_weights_and_on_how_it_is_measured(
    measured_key, tmp_path, tiny_model, tiny_processor
):
    usual = content_key(
        "measured/any/clean", {"n_test": 2000}, 0, {"poison": "key of poison", "model": "scenes"}, VERSION
    )
    assert measured_key() == usual  # what the committed records have
    changed = [{"evaluate": {"include_target": True}}, {"world": {"prompts": ["a {}"]}}]
    keys = [measured_key(), *(measured_key(**one) for one in changed)]
    assert len(set(keys)) == 3
    assert len({measured_key(model="victim", **one) for one in changed}) == 1  # in the victim's own key already
    own = {"world": {"clean_model": str(tmp_path / "clean")}}
    tiny_processor.save_pretrained(tmp_path / "clean")
    for shift in (0.0, 1.0):
        tiny_model.logit_scale.data += shift
        tiny_model.save_pretrained(tmp_path / "clean")
        keys.append(measured_key(**own))
    assert len(set(keys)) == 5


@pytest.mark.parametrize("protocol", ["zero_shot", "linear_probe", "scan"])
def test_a_measurement_hangs_on_its_images(measured_key, tmp_path, protocol):
    import datasets

    def write(split, n):
        rows = {"image": [PIL.Image.new("RGB", (8, 8))] * n, "label": [row % 2 for row in range(n)]}
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "data" / f"{split}.parquet")

    (tmp_path / "data").mkdir()
    write("train", 4)
    write("test", 4)
    measure = reproduce_measures.Measure(protocol=protocol, data=str(tmp_path / "data"))
    first = measured_key(measure)
    assert measured_key(measure) == first
    write("test", 6)
    assert measured_key(measure) != first
    assert set(measure.inputs()) == ({"test"} if protocol == "zero_shot" else {"test", "train"})


def test_a_search_hangs_on_the_weights_of_another_encoder(tmp_path, tiny_model, tiny_processor, monkeypatch):
    for stage in ("poison", "victim"):
        RunRecord(stage, f"key of {stage}", {}, {}, 0).save(tmp_path / "run" / stage)
    monkeypatch.setattr(measuring.Stage, "run_once", lambda stage, work: stage.key)
    second = {"second": str(tmp_path / "second"), "detectors": ["disagreement"]}
    config = config_from({"output_dir": str(tmp_path / "run"), "poison": {"count": 50}, "detect": second})
    tiny_processor.save_pretrained(tmp_path / "second")
    keys = []
    for shift in (0.0, 0.0, 1.0):
        tiny_model.logit_scale.data += shift
        tiny_model.save_pretrained(tmp_path / "second")
        keys.append(measuring.detect(config))
    assert keys[0] == keys[1] != keys[2]
    config.detect.second = "mirrored"
    assert measuring.detect(config) not in keys


# -- who works on it --------------------------------------------------------------------------------------------------


def hold(folder, host, pid, age=0.0):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LOCK_FILE).write_text(json.dumps({"host": host, "pid": pid, "token": "theirs"}))
    stamp = (folder / LOCK_FILE).stat().st_mtime - age
    os.utime(folder / LOCK_FILE, (stamp, stamp))


def gone():
    """Return the number of a process that has ended."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def test_a_cell_has_one_owner(tmp_path):
    first, second = FolderLock(tmp_path), FolderLock(tmp_path)
    assert first.take() and not second.take()
    with first:
        assert not second.take()
    assert not (tmp_path / LOCK_FILE).exists() and second.take()
    assert sorted(path.name for path in tmp_path.iterdir()) == [LOCK_FILE]


def test_a_dead_owner_is_succeeded(tmp_path):
    hold(tmp_path, this_host(), gone())
    lock = FolderLock(tmp_path)
    assert lock.take() and lock.owner()["pid"] == os.getpid()


@pytest.mark.parametrize(("age", "ours"), [(0.0, False), (400.0, True)])
def test_an_owner_elsewhere_counts_as_dead_when_it_is_silent(tmp_path, age, ours):
    hold(tmp_path, "elsewhere", os.getpid(), age)
    assert FolderLock(tmp_path, stale_after=300).take() is ours
    assert [path.name for path in tmp_path.iterdir()] == [LOCK_FILE]


def test_a_lock_whose_writing_was_cut_short_is_waited_for_and_then_succeeded(tmp_path):
    (tmp_path / LOCK_FILE).touch()
    assert not FolderLock(tmp_path).take()
    os.utime(tmp_path / LOCK_FILE, (0, 0))
    assert FolderLock(tmp_path).take()


def test_the_quicker_successor_keeps_the_cell(tmp_path):
    hold(tmp_path, this_host(), gone())
    quick, slow = FolderLock(tmp_path), FolderLock(tmp_path)
    seen = slow.owner()["token"]
    assert quick.take()
    slow._remove(seen)  # it had judged the dead owner's file
    assert quick.owner()["token"] == quick.token and not slow.take()


def test_an_owner_that_lost_its_cell_stops(tmp_path, monkeypatch):
    interrupted = []
    monkeypatch.setattr("_thread.interrupt_main", lambda: interrupted.append(True))
    lock = FolderLock(tmp_path, stale_after=1e-3)
    assert lock.take()
    hold(tmp_path, "elsewhere", 1)
    lock._beat()
    assert interrupted and lock.lost
    with pytest.raises(RuntimeError, match="took the cell over"):
        lock.__exit__(None, None, None)
    assert lock.owner()["token"] == "theirs"


# -- a whole one ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clean(tmp_path_factory, _untouched_model, tiny_processor):
    """Return a folder with a small random model and its processor."""
    folder = tmp_path_factory.mktemp("clean")
    _untouched_model.save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    return folder


def test_an_error_on_one_of_several_processes_is_not_survived(clean, tmp_path, monkeypatch):
    """The others may be waiting for it within the cell, so that going on would wait for ever."""

    def fail(*_):
        raise RuntimeError("the power went")

    monkeypatch.setattr(reproduce, "_run_one", fail)
    monkeypatch.setattr(reproduce, "_agreed", lambda answer: answer)
    monkeypatch.setattr(reproduce, "PartialState", lambda: SimpleNamespace(num_processes=2, is_main_process=True))
    flags = {"world": {"clean_model": str(clean)}, "output_dir": str(tmp_path / "cells")}
    with pytest.raises(RuntimeError, match="^the power went$"):
        run_reproduction(reproduction_from(values(), flags=flags))


def test_cells_are_resumed_shared_measured_and_cleaned_up(clean, tmp_path, monkeypatch):
    def made(**flags):
        flags = {"world": {"clean_model": str(clean)}, "output_dir": str(tmp_path / "cells"), **flags}
        return reproduction_from(values(), flags=flags)

    def fail(config):
        if config.attack["name"] == "badnets":
            raise RuntimeError("the power went")
        return embeddings(config)

    embeddings = reproduce.embeddings
    monkeypatch.setattr(reproduce, "embeddings", fail)
    with pytest.raises(ValueError, match="1 did not.*badnets/seed0: the power went"):
        run_reproduction(made())
    badnets, blended = made().cells
    one, other = badnets.config.output_dir, blended.config.output_dir
    assert finished(blended) and not finished(badnets) and not (one / LOCK_FILE).exists()
    for large in ("victim/model.safetensors", "defend/ft/model.safetensors", "poison/dataset"):
        assert not (other / large).exists() and (one / large).exists(), large
    assert (other / "poison" / "trigger").is_dir() and (other / "detect" / "scores.parquet").is_file()
    text = np.load(other / "embeddings" / "text.npy")
    assert text.dtype == np.float16 and len(text) == 64

    hold(one, this_host(), gone())
    monkeypatch.undo()
    trained = {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob(f"*/{RECORD_FILE}"))}
    table = run_reproduction(made(keep_models="true"))
    assert finished(badnets) and (one / "victim" / "model.safetensors").is_file()
    assert trained == {path: path.stat().st_mtime_ns for path in trained}  # nothing was done twice
    assert table == (tmp_path / "cells" / "table.md").read_text() and "2 of 2 cells" in table
    assert (tmp_path / "cells" / "figures" / "epochs_badnets.png").is_file()

    measured = made(measures={"sketch": {"style": "sketch", "n_test": 70}}, only="badnets/*")
    assert not finished(measured.chosen[0])
    assert "Measured besides: Sketches" in run_reproduction(measured) and finished(measured.chosen[0])
    report = RunRecord.load(one / "measured" / "sketch" / "ft").metrics["report"]
    assert report["ba"]["1"]["n"] == 70 and "badnets" in report["triggers"]
    assert trained == {path: path.stat().st_mtime_ns for path in trained}

    scans = {"detectors": ["k_distance", "disagreement"], "protocol": "scan", "n_train": 40, "n_test": 70}
    asked = {"seen": scans, "blind": {**scans, "reference": "poisoned"}}
    assert "| badnets | victim | disagreement |" in run_reproduction(made(measures=asked, only="badnets/*")).lower()
    seen, blind = (RunRecord.load(one / "measured" / name / "victim").metrics for name in asked)
    assert seen["fingerprints"]["reference"] != blind["fingerprints"]["reference"]
    figures = seen["scan"]["badnets"]["k_distance"]
    assert figures["n_clean"] == 70 and 60 < figures["n_stamped"] < 70 and 0 <= figures["auroc"] <= 1
    assert list(RunRecord.load(one / "measured" / "seen" / "clean").metrics["scan"]["badnets"]) == ["k_distance"]

    copied = collect(tmp_path / "cells", tmp_path / "records")
    assert [path.relative_to(tmp_path / "records").as_posix() for path in copied] == ["badnets/seed0", "blended/seed0"]
    assert (copied[0] / "measured" / "sketch" / "victim" / RECORD_FILE).is_file()
    assert str(tmp_path) not in "".join(path.read_text() for path in copied[0].rglob("*.json"))
    assert "finished" in plan(made()).text and "will be run again" in plan(made(poison={"count": 9})).text


# -- plans ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.yaml")))
def test_plans_of_the_committed_reproductions_touch_nothing(name, tmp_path, monkeypatch):
    if "attacks" not in (given := yaml.safe_load((FOLDER / f"{name}.yaml").read_text())) and "base" not in given:
        pytest.skip("a grid or data")
    monkeypatch.chdir(tmp_path)
    home = Path(os.environ["HF_HOME"])
    before = sorted(home.rglob("*"))
    made = plan(load_reproduction([str(FOLDER / f"{name}.yaml"), "--dry_run"]))
    assert list(tmp_path.iterdir()) == [] and sorted(home.rglob("*")) == before
    here = name not in ("paper_scale", "vit", "vit_paper_scale", "captions", "cifar10")
    assert made.ok is here and ("MISSING" in made.text) is not here
    assert (
        all(f"{attack}/seed0" in made.text for attack in given.get("select", ["badnets"]))
        and "Nothing was run" in made.text
        and "learning rate" in made.text
    )


def test_a_plan_sets_the_largest_training_against_the_memory_of_a_device():
    defenses = {"ft": {}, "cleanclip": {}, "cleanerclip": {"k_pairs": 16}, "par": {"per_device_train_batch_size": 24}}

    def made(**flags):
        return reproduction_from(values(select=["badnets"], defenses=defenses), flags={"dry_run": True, **flags})

    config = made().cells[0].config
    size = {name: memory_bytes(config, name, one) for name, one in config.defenses.items()}
    weights = weight_bytes(config)
    assert size["cleanclip"] - 4 * weights == 2 * (size["ft"] - 4 * weights)  # two views of every picture
    assert size["par"] - 5 * weights == 1.5 * (size["ft"] - 4 * weights)  # the frozen model keeps nothing
    config.defenses["par"].chunk_size = 8
    assert memory_bytes(config, "par", config.defenses["par"]) - 5 * weights == (size["ft"] - 4 * weights) / 2
    small, large = (plan(made(device_memory=gigabytes)) for gigabytes in (0.02, 1))
    assert large.ok and not small.ok and "`defend/par` takes about" in small.text and "bf16" in small.text
    count = {one.stage: one.steps for one in trainings(config)}
    assert count["defend/cleanclip"] == 4 and count["defend/cleanerclip"] == 5  # the K pairs are one batch more


@pytest.mark.parametrize(
    ("world", "model_type", "fewer"),
    [
        ({}, None, False),
        ({"clean_model": "openai/clip-vit-base-patch32"}, None, False),
        ({"clean_model": "model"}, "clip_resnet", False),
        ({"clean_model": "model"}, "clip", True),
        ({"clean_model": "train"}, "resnet", False),
        ({"clean_model": "train"}, "vit", True),
    ],
)
def test_a_plan_counts_on_checkpointing_where_no_resnet_is_trained(world, model_type, fewer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": model_type}))
    changes = {"world": {**values()["world"], **world}}
    if world.get("clean_model") == "train":
        changes |= {"clean": TRAINING, "architecture": {"kind": model_type}}
    config = reproduction_from(values(select=["badnets"], **changes), flags={"dry_run": True}).cells[0].config
    plain = memory_bytes(config, "ft", config.defenses["ft"])
    config.defenses["ft"].gradient_checkpointing = True
    assert (memory_bytes(config, "ft", config.defenses["ft"]) < plain) is fewer


def test_the_largest_training_at_the_papers_size_fits_by_chunks():
    config = load_reproduction([str(FOLDER / "paper_scale.yaml"), "--dry_run"]).cells[0].config
    par = config.defenses["par"]
    assert par.per_device_train_batch_size == 2048 and memory_bytes(config, "par", par) < 80e9
    par.chunk_size = None
    assert memory_bytes(config, "par", par) > 200e9 and par.freeze_batch_norm


def test_a_plan_counts_the_rows_that_a_defence_is_given():
    defenses = {"ft": {}, "retrain": {"detector": "slof", "drop_share": 0.25}}
    config = reproduction_from(values(select=["badnets"], defenses=defenses)).cells[0].config
    pairs = {one.stage: one.pairs for one in trainings(config)}
    assert pairs["victim"] == config.world.n_train and pairs["defend/ft"] == config.world.n_defense
    assert pairs["defend/retrain"] == round(0.75 * config.world.n_train)  # the poisoned pairs without the dropped ones


@pytest.mark.parametrize(
    "changes", [{}, {"max_steps": 50}, {"gradient_accumulation_steps": 3}, {"dataloader_drop_last": "false"}]
)
def test_two_plans_count_the_same_steps(changes, monkeypatch):
    training = {**TRAINING, "per_device_train_batch_size": 6, "num_train_epochs": 2, **changes}
    defenses = {"ft": {}, "cleanerclip": {"k_pairs": 16}, "retrain": {"detector": "slof", "drop_share": 0.25}}
    sections = {"victim": training, "defense_defaults": training, "defenses": defenses, "clean": training}
    sections["world"] = {**values()["world"], "clean_model": "train"}
    config = reproduction_from(values(select=["badnets"], **sections)).cells[0].config
    for processes in (1, 2):
        monkeypatch.setattr(steps, "PartialState", lambda n=processes: SimpleNamespace(num_processes=n))
        planned = {name: one.steps for name, one in expected_stages(config).items() if one.steps is not None}
        assert planned == {one.stage: one.steps for one in trainings(config)} and len(planned) == 5
    monkeypatch.undo()
    victim = next(one for one in trainings(config) if one.stage == "victim")
    assert victim.steps == {"max_steps": 50, "dataloader_drop_last": 22, "gradient_accumulation_steps": 8}.get(
        next(iter(changes), ""), 20
    )
    assert victim.epochs == (5 if "max_steps" in changes else 2)


def test_a_dry_run_for_programs(capsys):
    run = runpy.run_path(str(ROOT / "recipes/reproduce.py"))["act"]
    assert run([str(FOLDER / "paper_scale.yaml"), "--dry_run", "--json", "--only", "badclip/*"]) == 1
    shown = json.loads(capsys.readouterr().out)
    assert shown["cells"] == ["badclip/seed0"] and shown["ok"] is False
    missing = [one["text"] for one in shown["checks"] if one["ok"] is False]
    assert any("`./data/cc3m` is missing" in text for text in missing)
    assert not any("memory" in text for text in missing)


def labelled_and_captioned(folder):
    """Write a train split of pairs and a test split of labels."""
    import datasets

    datasets.Dataset.from_dict({"image": ["a.png"], "txt": ["a cup"]}).to_parquet(folder / "train.parquet")
    rows = datasets.Dataset.from_dict({"image": ["a.png"], "cls": [1]})
    rows.cast_column("cls", datasets.ClassLabel(names=["cup", "red_kite"])).to_parquet(folder / "test.parquet")
    for split in ("train", "test"):
        (folder / split).mkdir()
        (folder / f"{split}.parquet").rename(folder / split / f"{split}.parquet")
    return {
        "kind": "captioned", "path": str(folder / "train"), "clean_model": str(folder), "n_train": 64, "n_defense": 64,
        "test_path": str(folder / "test"),
    }  # fmt: skip


def planned(world, target="red kite"):
    attack = {"target": target, "patch_size": 4}
    return plan(reproduction_from(values(world=world, attack=attack, select=["badnets"]), flags={"dry_run": True}))


def test_a_plan_looks_for_the_target_among_the_classes(tmp_path):
    world = labelled_and_captioned(tmp_path)
    for target, ok in (("red kite", True), ("banana", False)):
        made = planned(world, target)
        assert made.ok is ok and f"`{target}` is {'' if ok else 'not '}one of" in made.text, made.text
    assert "pairs: image in `image`, caption in `txt`" in made.text and "left out" not in made.text
    assert "cannot be read are left out" in planned({**world, "on_error": "skip"}).text


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"caption_column": "text"}, "MISSING  pairs: Expected a column `text` (caption)"),
        ({"train_split": "other"}, "MISSING  pairs: Expected a split `other`"),
        ({"label_column": "class"}, "MISSING  test images: Expected a column `class` (label)"),
        ({"class_names": ["cup", "red kite", "red kite"]}, "ok       the target `red kite` is one of"),
        ({"test_split": "validation"}, "MISSING  test images: Expected a split `validation`"),
    ],
)
def test_a_plan_refuses_what_the_run_refuses(changes, says, tmp_path):
    made = planned({**labelled_and_captioned(tmp_path), **changes})
    assert says in made.text and made.ok is says.startswith("ok"), made.text


def test_other_captions_keep_the_pictures(tmp_path):
    from hf_clipbd.scenes import load_scenes

    write = runpy.run_path(str(FOLDER / "other_captions.py"))["write"]
    assert write([str(tmp_path), *"--n_train 3 --n_defense 20 --n_test 5 --size 32 --styles nouns".split()]) == 0
    shipped = yaml.safe_load((FOLDER / "captions.yaml").read_text())["world"]
    sizes = {"path": str(tmp_path), "n_train": 3, "n_defense": 20, "n_test": 5, "size": 32}
    world = World(config_from({"world": {**shipped, **sizes}, "attack": {"name": "badnets", "target": "banana"}}))
    rows = world.defense
    plain = load_scenes("defense", 32, 0, 20, "long_tailed", "banana")
    assert [one.tobytes() for one in rows["image"]] == [one.tobytes() for one in plain["image"]]
    assert len(set(rows["caption"]) & set(plain["caption"])) < 5
    assert len(world.train) == 3 and len(world.test) == 5
    with pytest.raises(ConfigError, match="'noun'; did you mean `nouns`"):
        write([str(tmp_path), "--styles", "noun"])
