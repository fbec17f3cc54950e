# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Grids: what a cell is called, what is trained once, what is skipped, and what the choice looks at."""

import json
import shutil
from dataclasses import replace

import PIL.Image
import pytest
import yaml

from hf_clipbd.cli import jobs
from hf_clipbd.cli.plan_grid import plan_grid
from hf_clipbd.cli.plan_run import plan_run
from hf_clipbd.recipe import ConfigError, config_from, load_grid
from hf_clipbd.recipe.config import training_settings
from hf_clipbd.recipe.grid import finished_run
from hf_clipbd.recipe.grid_config import grid_from
from hf_clipbd.recipe.grid_table import BASELINE, chosen_cells, grid_table, spread
from hf_clipbd.scenes import CLASS_NAMES
from hf_clipbd.schema import RECORD_FILE, RunRecord


def values(runs=("one",), **changes):
    """Return a grid of three cells, one of them the section itself."""
    grid = {
        "grid": {"runs": list(runs), "name": "cells", "validation_images": 70},
        "defense_defaults": {"per_device_train_batch_size": 16, "learning_rate": "1e-3", "num_train_epochs": 2},
        "defenses": {"ft": {}, "cleanerclip": {"k_pairs": 16}},
        "blocks": [{"title": "rates", "vary": {"learning_rate": [1e-4, 1e-3]}, "choose": "learning_rate"}],
    }
    return {**grid, **changes}


def names(grid):
    return [cell.name for cell in grid.cells]


def test_cells_are_named_by_what_differs_and_trained_once():
    tied = {
        "title": "pairs",
        "defenses": ["cleanerclip"],
        "cells": [{"tau_pos": 0.3, "tau_neg": 0.1}, {"k_pairs": 16}],
    }
    grid = grid_from(values(blocks=[*values()["blocks"], tied]))
    assert names(grid) == [
        "ft,learning_rate=0.0001",
        "ft",
        "cleanerclip,learning_rate=0.0001",
        "cleanerclip",
        "cleanerclip,tau_neg=0.1,tau_pos=0.3",
    ]
    training = grid.cells[-1].training(seed=5)
    assert (training.seed, training.k_pairs, training.tau_neg, training.learning_rate) == (5, 16, 0.1, 1e-3)
    assert grid_from(values(blocks=[{"vary": {"seed": [3]}}])).cells[0].training(seed=5).seed == 3


def test_every_combination_is_a_cell():
    block = {"defenses": ["ft"], "vary": {"learning_rate": [1e-4, 2e-4], "num_train_epochs": [1, 3]}}
    grid = grid_from(values(blocks=[block]))
    assert len(names(grid)) == 4 and "ft,learning_rate=0.0002,num_train_epochs=3" in names(grid)


def test_flags_and_blocks_of_a_command_line(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(values(blocks=[*values()["blocks"], {"title": "epochs", "defenses": ["ft"]}])))
    grid = load_grid([str(path), "--grid.runs", "a", "b", "--grid.only", "epochs", "--defense_defaults.seed", "4"])
    assert [str(run) for run in grid.runs] == ["a", "b"] and names(grid) == ["ft"]
    assert grid.cells[0].training(0).seed == 4
    assert names(load_grid(["--config", str(path), "--grid.only", "epochs"])) == ["ft"]
    with pytest.raises(ConfigError, match="one YAML"):
        load_grid([str(path), "--config", str(path)])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"gird": {}}, "`gird`; did you mean `grid`"),
        ({"grid": {"runs": []}}, "at least one finished run"),
        ({"grid": {"runs": ["a"], "max_ba_drop": 3}}, "max_ba_drop"),
        ({"defenses": {"tf": {}}}, "`defenses.tf`"),
        ({"blocks": []}, "at least one block"),
        ({"blocks": [{"varied": {}}]}, r"`blocks\[0\].varied`"),
        ({"blocks": [{"vary": {"learning_rate": 0.1}}]}, r"`blocks\[0\].vary`"),
        ({"blocks": [{"vary": {"lerning_rate": [0.1]}}]}, "did you mean `defenses.ft.learning_rate`"),
        ({"blocks": [{"vary": {"learning_rate": ["fast"]}}]}, "fast"),
        ({"blocks": [{"defenses": ["cleanclip"]}]}, "cleanclip"),
        ({"blocks": [{"cells": [{}], "choose": "learning_rate"}]}, "keys that vary"),
        ({"grid": {"runs": ["a"], "only": ["ratse"]}}, "did you mean `blocks.rates`"),
    ],
)
def test_what_is_not_understood_is_named(changes, says):
    with pytest.raises(ConfigError, match=says):
        grid_from(values(**changes))


def record(folder, validation, ba, asr, training):
    """Write the record of a cell whose figures are these."""
    rate = {"value": ba, "n": 100}
    trigger = {"target": "cup", "asr": {"1": {"value": asr, "n": 99}}, "ra": {"1": rate}, "include_target": False}
    report = {"ba": {"1": rate, "10": rate}, "triggers": {"badnets": trigger}, "n_classes": 12}
    metrics = {"validation": {"1": {"value": validation, "n": 70}}, "report": report}
    RunRecord("cell", "key", {"training": training}, metrics, 0, seconds=4.0).save(folder)


def fill(grid, figures):
    trained = {cell.name: json.loads(json.dumps(training_settings(cell.training(seed=1)))) for cell in grid.cells}
    for run, by_cell in zip(grid.runs, figures, strict=True):
        for cell, (validation, ba, asr) in by_cell.items():
            record(run / "cells" / cell, validation, ba, asr, trained.get(cell, {}))


def test_the_choice_looks_at_held_out_accuracy_alone(tmp_path):
    block = {"title": "rates", "defenses": ["ft"], "vary": {"learning_rate": [1e-4, 1e-3, 1e-2]}}
    grid = grid_from(values([tmp_path / "a", tmp_path / "b"], blocks=[{**block, "choose": "learning_rate"}]))
    low, middle, high = names(grid)
    figures = [
        {BASELINE: (0.90, 0.9, 0.99), low: (0.92, 0.9, 0.0), middle: (0.89, 0.1, 0.8), high: (0.80, 0.9, 0.1)},
        {BASELINE: (0.88, 0.9, 0.99), low: (0.91, 0.9, 0.0), middle: (0.85, 0.1, 0.9), high: (0.81, 0.9, 0.0)},
    ]
    fill(grid, figures)
    # floor 0.89 - 0.03: the means are 0.915, 0.870 and 0.805, so the middle rate, whatever its ASR and test BA
    assert chosen_cells(grid, grid.blocks[0])["ft"].name == middle
    table = grid_table(grid)
    (line,) = [line for line in table.splitlines() if line.endswith("* |")]
    assert "`learning_rate`" in table and "85.0 (80.0 to 90.0)" in line and "| 2 | 4 | * |" in line
    # run by run: floor 0.87 on the one, where the middle rate is within, 0.85 on the other
    assert "| FT | 0.001: 10.0 / 80.0 | 0.001: 10.0 / 90.0 |" in table
    figures[1][middle] = (0.84, 0.1, 0.9)
    fill(grid, figures)
    assert "| FT | 0.001: 10.0 / 80.0 | 0.0001: 90.0 / 0.0 |" in grid_table(grid)
    figures[1][middle] = (0.85, 0.1, 0.9)
    fill(grid, figures)
    strict = grid_from(values([tmp_path / "a", tmp_path / "b"], blocks=[{**block, "choose": "learning_rate"}]))
    strict.options.max_ba_drop = 0.0
    assert chosen_cells(strict, strict.blocks[0])["ft"].name == low
    (tmp_path / "b/cells" / high / RECORD_FILE).unlink()
    assert chosen_cells(grid, grid.blocks[0]) == {}  # nothing is chosen before every cell is there
    assert "| - | - | - | - | - | 0 | - |" in grid_table(grid_from(values(["none"])))


def test_records_of_other_settings_count_for_nothing(tmp_path):
    def made(**changes):
        sections = values([tmp_path / "a"], defenses={"ft": changes.pop("ft", {})}, **changes)
        return grid_from(sections)

    grid = made()
    low, high = names(grid)
    fill(grid, [{BASELINE: (0.9, 0.9, 0.99), low: (0.9, 0.9, 0.5), high: (0.9, 0.8, 0.25)}])
    assert chosen_cells(grid, grid.blocks[0])["ft"].name == high and "Left out" not in grid_table(grid)
    others = [made(ft={"num_train_epochs": 5}), made(ft={"weight_decay": 0.3}), made(ft={"seed": 4})]
    others.append(made(grid={"runs": [str(tmp_path / "a")], "name": "cells", "validation_images": 71}))
    for other in others:
        table = grid_table(other)
        assert chosen_cells(other, other.blocks[0]) == {} and "| 90.0 | - | 50.0" not in table
        assert f"`{low}` of a; `{high}` of a. Run the grid." in table and "80.0" not in table
    assert "`victim` of a" in table  # of other validation images, so that its BA is no floor here
    path = tmp_path / "a/cells" / low / RECORD_FILE
    found = json.loads(path.read_text())
    trained, usual = found["config"]["training"], grid.cells[0].usual
    newest = [name for name, value in trained.items() if name in usual and usual[name] == value and name != "seed"]
    del trained[newest[-1]]  # a record of before there was such a setting
    trained |= {"since_removed": 3, "mixed_precision": "bf16"}
    path.write_text(json.dumps(found))
    assert chosen_cells(grid, grid.blocks[0])["ft"].name == high


def test_spread():
    assert spread([0.25]) == "25.0"


@pytest.fixture(scope="module")
def poisoned_run(tmp_path_factory, _untouched_model, tiny_processor):
    """Return a run folder whose stages `poison` and `victim` are finished, on 64 scenes."""
    from hf_clipbd.recipe import poison, train_victim
    from hf_clipbd.recipe.job import write_config

    folder = tmp_path_factory.mktemp("grid")
    _untouched_model.save_pretrained(folder / "clean")
    tiny_processor.save_pretrained(folder / "clean")
    world = {"kind": "scenes", "clean_model": str(folder / "clean"), "size": 32}
    training = {"per_device_train_batch_size": 16, "learning_rate": "1e-3", "num_train_epochs": 1}
    config = config_from(
        {
            "output_dir": str(folder / "run"),
            "world": {**world, "n_train": 64, "n_defense": 64, "n_test": 90},
            "poison": {"count": 8},
            "victim": {**training, "objective": "mmcl+ssl"},
            "detect": {"rates": [0.05], "map_points": 40},
            "evaluate": {"epoch_images": 45},
        }
    )
    write_config(config)
    poison(config)
    train_victim(config)
    return folder / "run"


def test_a_victim_may_be_trained_with_in_modal_terms(poisoned_run):
    found = RunRecord.load(poisoned_run / "victim")
    assert found.config["objective"] == "mmcl+ssl" and found.config["training"]["in_modal_weight"] == 1.0
    assert {"loss_clip", "loss_in_modal"} <= set(found.metrics["history"][-1])
    values = yaml.safe_load((poisoned_run / "config.yaml").read_text())
    assert values["victim"]["objective"] == "mmcl+ssl" and config_from(values).resolved() == values
    with pytest.raises(ConfigError, match="`victim.objective` 'mmlc'; did you mean `mmcl`"):
        config_from({"victim": {"objective": "mmlc"}})
    with pytest.raises(ConfigError, match="victim.in_modal_weight"):
        config_from({"victim": {"in_modal_weight": 0.5}})


def test_a_grid_leaves_records_and_runs_each_cell_once(poisoned_run, tmp_path, monkeypatch):
    from hf_clipbd.recipe import run_grid
    from hf_clipbd.recipe.stage import Stage

    shutil.copytree(poisoned_run, tmp_path / "run")
    sections = values([tmp_path / "run"])
    sections["grid"]["output_dir"] = str(tmp_path / "grid")
    grid = grid_from(sections)
    table = run_grid(grid)
    assert (tmp_path / "grid/table.md").read_text() == table
    for figure in ("rates", "rates_epochs"):
        assert PIL.Image.open(tmp_path / f"grid/figures/{figure}.png").width > 1000
    for name in names(grid):
        found = RunRecord.load(tmp_path / "run/cells" / name)
        assert found.metrics["validation"]["1"]["n"] == 70 and found.metrics["report"]["ba"]["1"]["n"] == 90
        assert [entry["epoch"] for entry in found.metrics["history"]] == [1, 2]
        assert {"eval_ba1", "eval_asr1_badnets", "loss_clip"} <= set(found.metrics["history"][0])
        assert [path.name for path in (tmp_path / "run/cells" / name).iterdir()] == [RECORD_FILE]
        assert json.dumps(found.config).count(str(tmp_path)) == 0
    assert {one.name: one.state for one in plan_grid(grid)} == dict.fromkeys(["victim", *names(grid)], "finished")
    placed = []
    place = Stage._place
    monkeypatch.setattr(Stage, "_place", lambda self, *rest: (placed.append(self.name), place(self, *rest)))
    assert run_grid(grid_from(sections)) == table and placed == []
    sections["defenses"]["cleanerclip"] = {"k_pairs": 8}
    planned = {one.name: one for one in plan_grid(grid_from(sections))}
    assert planned["cleanerclip"].state == "to run" and "training" in planned["cleanerclip"].about
    assert planned["ft"].state == "finished" and planned["ft"].steps == 8
    run_grid(grid_from(sections))
    assert placed == ["cells/cleanerclip,learning_rate=0.0001", "cells/cleanerclip"]


def test_other_ks_measure_a_grid_again(poisoned_run, monkeypatch):
    from hf_clipbd.recipe import grid as grids
    from hf_clipbd.recipe.stage import Stage

    monkeypatch.setattr(Stage, "run_once", lambda stage, work: stage)
    monkeypatch.setattr(grids, "train_into", lambda stage, *_, **__: stage)
    grid, config = grid_from(values([poisoned_run])), grids.finished_run(poisoned_run)

    def stages(*ks):
        run = grids._GridRun(grid, replace(config, evaluate=replace(config.evaluate, ks=list(ks))))
        return run.baseline(), run.train(grid.cells[0])

    usual, again, fewer = stages(1, 3, 5, 10), stages(10, 5, 3, 1, 99), stages(1, 3)
    for one, same, other in zip(usual, again, fewer, strict=True):
        assert one.key == same.key != other.key
    assert usual[0].config == {} and set(usual[1].config["measured"]) == {"validation_images", "prompts"}
    assert fewer[0].config == {"ks": [1, 3]} and fewer[1].config["measured"]["ks"] == [1, 3]


def test_a_plan_of_a_grid_knows_what_the_run_then_does(poisoned_run, tmp_path, monkeypatch):
    from hf_clipbd.recipe import grid as grids
    from hf_clipbd.recipe.stage import Stage

    run = tmp_path / "run"
    shutil.copytree(poisoned_run, run)
    grid = grid_from(values([run], defenses={"ft": {}}, blocks=[{"title": "one"}]))
    report = {"ba": {"1": {"value": 0.5, "n": 90}}, "triggers": {}, "n_classes": len(CLASS_NAMES)}
    monkeypatch.setattr(grids, "train_into", lambda stage, *_, **__: stage)
    monkeypatch.setattr(Stage, "run_once", lambda stage, work: stage)

    def stages(config):
        made = grids._GridRun(grid, config)
        return {"victim": made.baseline(), "ft": made.train(grid.cells[0])}

    def keep(config):
        for one in stages(config).values():
            RunRecord(one.name, one.key, one.config, {"report": report}, one.seed, one.inputs).save(one.folder)

    def agree(config, says):
        monkeypatch.setattr("hf_clipbd.cli.plan_grid.finished_run", lambda folder: config)
        planned = {one.name: one for one in plan_grid(grid)}
        for name, stage in stages(config).items():
            assert (stage.current() is None) == (planned[name].state != "finished") == bool(says), name
            assert says in planned[name].about
        assert set(planned) == {"victim", "ft"}

    usual = grids.finished_run(run)
    changes = ({"ks": [1, 3]}, {"include_target": True})
    fewer, target = (replace(usual, evaluate=replace(usual.evaluate, **one)) for one in changes)
    for first, second in [(usual, fewer), (fewer, usual), (usual, target), (target, usual)]:
        keep(first)
        agree(first, "")
        agree(second, "its record has other")
    keep(usual)
    agree(replace(usual, evaluate=replace(usual.evaluate, ks=[10, 5, 3, 1, 99])), "")
    victim = json.loads((run / "victim" / RECORD_FILE).read_text())
    (run / "victim" / RECORD_FILE).write_text(json.dumps({**victim, "key": "0" * 16}))
    agree(usual, "victim was run again since")


def test_a_plan_of_a_run_sees_other_images_after_each_epoch(poisoned_run):
    config = finished_run(poisoned_run)
    fewer = replace(config, evaluate=replace(config.evaluate, epoch_images=9))
    about = [{one.name: one for one in plan_run(each)}["victim"] for each in (config, fewer)]
    assert about[0].state == "finished" and "its record has other measured" in about[1].about


def test_a_grid_is_planned_without_writing(poisoned_run, tmp_path, capsys):
    path = tmp_path / "grid.yaml"
    sections = values([str(poisoned_run)])
    sections["grid"]["output_dir"] = str(tmp_path / "grid")
    path.write_text(json.dumps(sections))
    assert jobs.run_grid([str(path), "--dry_run", "--json"]) == 0
    assert [(one["name"], one["state"]) for one in json.loads(capsys.readouterr().out)][:1] == [("victim", "to run")]
    assert list(tmp_path.iterdir()) == [path]


def test_a_run_without_a_victim_is_an_error(tmp_path):
    from hf_clipbd.recipe import run_grid

    with pytest.raises(FileNotFoundError, match="record"):
        run_grid(grid_from(values([tmp_path])))


def test_defences_that_train_on_the_poisoned_pairs(poisoned_run, tmp_path):
    from hf_clipbd.recipe import defend, detect, evaluate, poison

    shutil.copytree(poisoned_run, tmp_path / "run")
    sections = yaml.safe_load((tmp_path / "run/config.yaml").read_text()) | {"output_dir": str(tmp_path / "run")}
    sections["defense_defaults"] = {"per_device_train_batch_size": 8, "num_train_epochs": 1, "learning_rate": 1e-3}
    sections["defenses"] = {"retrain": {"drop_share": 0.25, "detector": "slof"}, "roclip": {}}
    config = config_from(sections)
    with pytest.raises(FileNotFoundError, match="record"):
        defend(config, "retrain")
    detected = detect(config)
    found = defend(config, "retrain")
    assert {"clean", "poison", "kept", "test"} == set(found.inputs)
    assert found.inputs["poison"] == poison(config).key
    sections["detect"] |= {"map_points": 41, "detectors": ["slof", "k_distance"]}
    assert detect(config_from(sections)).key != detected.key and defend(config_from(sections), "retrain") == found
    figures = found.metrics
    assert (figures["dropped"], figures["kept"]) == (16, 48)
    assert figures["poisoned_dropped"] + figures["poisoned_kept"] == 8
    assert found.config["training"]["detector"] == "slof" and len(figures["history"]) == 1
    assert evaluate(config, "retrain").metrics["report"]["ba"]["1"]["n"] == 90
    assert set(defend(config, "roclip").inputs) == {"clean", "poison", "test"}
    sections["defenses"] = {"retrain": {"detector": "dao"}}
    with pytest.raises(ConfigError, match="`defenses.retrain.detector`.*'dao'"):
        config_from(sections)


def test_a_defence_that_needs_a_run_is_refused_on_its_own(tmp_path, capsys):
    from hf_clipbd.cli import main

    command = ["defend", "scenes", "--defense", "retrain", "--data", "scenes", "--out", str(tmp_path / "out")]
    assert main(command) == 2
    assert "`retrain` needs detect. Use `hf-clipbd run`" in capsys.readouterr().err
