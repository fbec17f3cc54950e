# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The plan of a grid: which of its cells are finished on which run, and how much is left to do."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_clipbd.cli.plan_run import stale_input
from hf_clipbd.cli.plans import FINISHED, TO_RUN, Planned, state_of
from hf_clipbd.recipe.grid import cell_settings, finished_run, other_measures
from hf_clipbd.recipe.grid_config import GridConfig
from hf_clipbd.recipe.grid_table import BASELINE
from hf_clipbd.recipe.steps import defense_training, training_line
from hf_clipbd.recipe.world import World
from hf_clipbd.schema import RECORD_FILE, TOP_K, RunRecord


READ = {name: name for name in ("victim", "poison", "clean")}
"""What a cell's record calls the stages of its run that it read -> these."""


def plan_grid(grid: GridConfig) -> list[Planned]:
    """Return every stage of a grid, run by run, in the order in which they are run.

    A stage is finished where its record has the settings of the grid and of its run, and the keys of the records that
    it read.

    Args:
        grid: The grid.

    Raises:
        FileNotFoundError: If a run has no record of `poison` or `victim`.
    """
    planned = []
    for run in grid.runs:
        config = finished_run(run)
        world, images = World(config), grid.options.validation_images
        folder = run / grid.options.name / BASELINE
        settings = other_measures(config, _classes(folder))
        state, why = _state(run, folder, settings, config.seed, {"model": "victim"})
        about = "; ".join(filter(None, ["the victim, measured", why]))
        planned.append(Planned(BASELINE, state, folder, config.world.n_test, about=about))
        for cell in grid.cells:
            training, folder = cell.training(config.seed), run / grid.options.name / cell.name
            one = defense_training(config, cell.defense, training)
            settings = cell_settings(cell, config, world, images, _classes(folder))
            state, why = _state(run, folder, settings, training.seed, READ)
            about = "; ".join(filter(None, [training_line(one.trainer, training), why]))
            planned.append(Planned(cell.name, state, folder, one.rows, one.steps, about))
    return planned


def _classes(folder: Path) -> int:
    """Return how many classes a stage was measured with; where it has no record it runs, however many there are."""
    if not (folder / RECORD_FILE).is_file():
        return max(TOP_K)
    return RunRecord.load(folder).metrics["report"]["n_classes"]


def _state(
    run: Path, folder: Path, settings: Mapping[str, Any], seed: int, reads: Mapping[str, str]
) -> tuple[str, str]:
    """Return the state of a stage of the grid, and why it is not finished."""
    state, why = state_of(folder, settings, seed, whole=True)
    stale = stale_input(run, str(folder.relative_to(run)), reads) if state == FINISHED else ""
    return (TO_RUN, f"{stale} was run again since") if stale else (state, why)
