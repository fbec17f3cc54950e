# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The shipped grids are what their READMEs say, and their figures are drawn from records alone."""

from pathlib import Path

import numpy as np
import pytest

from hf_clipbd.recipe import load_grid
from hf_clipbd.recipe.grid_figures import render_figures
from hf_clipbd.recipe.grid_table import BASELINE, grid_table
from hf_clipbd.report.sweeps import SweepPoint, draw_epochs, draw_sweep, draw_tradeoff
from hf_clipbd.schema import RunRecord


RECIPES = Path(__file__).resolve().parents[1] / "recipes"


def shipped(name, *flags):
    return load_grid([str(RECIPES / name), *map(str, flags)])


def blocks(grid):
    return {block.title: block for block in grid.blocks}


def test_the_ablations_of_the_paper():
    grid = shipped("ablations/ablations.yaml")
    found = blocks(grid)
    settings = {title: [cell.training(0) for cell in block.cells] for title, block in found.items()}
    assert [one.k_pairs for one in settings["Pairs with sub-captions"]] == [16, 64, 128, 192, 256, 512, 768]
    pairs = [(one.tau_pos, one.tau_neg) for one in settings["Temperatures"]]
    assert len(set(pairs)) == 5 and (0.3, 0.3) in pairs and any(negative > positive for positive, negative in pairs)
    ratios = [one.lambda_fc / one.lambda_cleanclip for one in settings["Ratio of the weights"]]
    assert ratios == sorted(ratios) and {0.0, 1.0} < set(ratios)
    assert [cell.defense for cell in found["Epochs"].cells] == ["ft", "cleanclip", "cleanerclip"]
    assert len(grid.cells) == 7 + 5 + 7 + 3 - 2  # the section itself is in three blocks


def test_the_learning_rates_are_at_least_five_for_every_defence():
    grid = shipped("grid/learning_rate.yaml")
    assert {block.choose for block in grid.blocks} == {"learning_rate"}
    for defense in ("ft", "cleanclip", "cleanerclip", "par"):
        rates = [cell.training(0).learning_rate for cell in grid.cells if cell.defense == defense]
        assert len(set(rates)) == len(rates) >= 5


def test_the_readings_change_one_thing_at_a_time():
    found = blocks(shipped("grid/readings.yaml"))["Readings of the loss"]
    names = [cell.name for cell in found.cells]
    for option in ("negatives", "text_negatives", "fc_reduction", "learned_scale", "subset_terms", "fc_images"):
        assert sum(f",{option}=" in name for name in names) == 1
    assert sum(",directions=" in name for name in names) == 2
    assert len(set(names)) == 11


def test_shipped_grids_start_from_the_settings_of_the_run():
    from hf_clipbd.recipe import load_config

    run = load_config([str(RECIPES / "scenes/defend.yaml")])
    plain_blocks = {
        "grid/learning_rate.yaml": "Learning rate",
        "ablations/ablations.yaml": "Temperatures",
        "grid/readings.yaml": "As it is",
    }
    for name, block in plain_blocks.items():
        grid = shipped(name, "--grid.only", block)
        (plain,) = [cell for cell in grid.cells if cell.name == "cleanerclip"]
        mine, theirs = plain.training(0), run.defenses["cleanerclip"]
        for key in (
            "learning_rate",
            "num_train_epochs",
            "in_modal_weight",
            "per_device_train_batch_size",
            "k_pairs",
            "tau_pos",
            "tau_neg",
        ):
            assert getattr(mine, key) == getattr(theirs, key), (name, key)


def write(folder, asr, epochs, training=None):
    rate = {"value": 0.9, "n": 50}
    trigger = {"target": "cup", "asr": {"1": {"value": asr, "n": 49}}, "ra": {"1": rate}, "include_target": False}
    history = [{"epoch": epoch + 1.0, "eval_ba1": 0.9, "eval_asr1_badnets": one} for epoch, one in enumerate(epochs)]
    report = {"ba": {"1": rate}, "triggers": {"badnets": trigger}, "n_classes": 9}
    metrics = {"history": history, "validation": {"1": rate}, "report": report}
    RunRecord("cell", "key", {"training": training or {}}, metrics, 0, seconds=2.0).save(folder)


def test_figures_are_drawn_from_the_records_that_are_there(tmp_path):
    runs = [tmp_path / "a", tmp_path / "b"]
    flags = ("--grid.runs", *runs, "--grid.output_dir", tmp_path / "out", "--grid.validation_images", 50)
    grid = shipped("ablations/ablations.yaml", *flags)
    assert render_figures(grid) == []
    for run in runs:
        write(run / "ablations" / BASELINE, 0.9, [])
        for number, cell in enumerate(blocks(grid)["Temperatures"].cells):
            write(run / "ablations" / cell.name, 0.1 * number, [0.5, 0.2, 0.1 * number], cell.asked)
    drawn = {path.name for path in render_figures(grid)}
    # the section itself is one of the temperatures, and so one point of the ratios and of the pairs
    assert {"temperatures.png", "temperatures_epochs.png", "pairs_with_sub_captions.png"} <= drawn
    assert not any(name.startswith("epochs") for name in drawn)
    assert "0.3" in grid_table(grid) and "90.0 (90.0 to 90.0)" in grid_table(grid)
    before = [path.read_bytes() for path in sorted((tmp_path / "out/figures").iterdir())]
    render_figures(grid)
    assert before == [path.read_bytes() for path in sorted((tmp_path / "out/figures").iterdir())]


def test_a_sweep_shows_means_and_ranges():
    points = [SweepPoint("ft", "1", (0.9, 0.8), (0.5, 0.7)), SweepPoint("ft", "2", (0.7,), (0.1,))]
    panels = draw_sweep(points, "epochs", {"victim": (0.95, 0.99)}).axes
    assert [list(axes.containers[0][0].get_ydata()) for axes in panels] == [
        pytest.approx([85, 70]),
        pytest.approx([60, 10]),
    ]
    assert [label.get_text() for label in panels[0].get_xticklabels()] == ["1", "2"]
    with pytest.raises(ValueError, match="at least one point"):
        draw_sweep([], "epochs", {})


def test_a_tradeoff_has_accuracy_on_one_axis_and_success_on_the_other():
    points = [SweepPoint("ft", "1", (0.9, 0.8), (0.5, 0.7)), SweepPoint("ft", "2", (0.7,), (0.1,))]
    (axes,) = draw_tradeoff(points, {"victim": (0.95, 0.99)}).axes
    victim, line = axes.lines
    assert line.get_xydata() == pytest.approx(np.array([[85, 60], [70, 10]]))
    assert victim.get_xydata() == pytest.approx(np.array([[95, 99]]))
    assert [text.get_text() for text in axes.texts] == ["1", "2"]
    with pytest.raises(ValueError, match="at least one point"):
        draw_tradeoff([], {})


def test_curves_start_at_the_victim():
    (axes,) = draw_epochs({"a": [[0.5, 0.1], [0.3, 0.1]], "b": [[0.9, 0.8]]}, start=0.99).axes
    assert list(axes.lines[0].get_ydata()) == pytest.approx([99, 40, 10])
    with pytest.raises(ValueError, match="one length"):
        draw_epochs({"a": [[0.5], [0.5, 0.1]]}, 1.0)
