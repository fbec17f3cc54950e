# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The plan of a grid: which of its cells are finished on which run, and how much is left to do."""

from dataclasses import replace

from hf_clipbd.cli.plan_run import planned_defenses
from hf_clipbd.cli.plans import Planned, state_of
from hf_clipbd.recipe.grid import finished_run
from hf_clipbd.recipe.grid_config import GridConfig
from hf_clipbd.recipe.grid_table import BASELINE


def plan_grid(grid: GridConfig) -> list[Planned]:
    """Return every stage of a grid, run by run, in the order in which they are run.

    Args:
        grid: The grid.

    Raises:
        FileNotFoundError: If a run has no record of `poison` or `victim`.
    """
    planned = []
    for folder in grid.runs:
        config = finished_run(folder)
        where = folder / grid.options.name
        state, why = state_of(where / BASELINE, {}, config.seed)
        about = "; ".join(filter(None, ["the victim, measured", why]))
        planned.append(Planned(BASELINE, state, where / BASELINE, config.world.n_test, about=about))
        for cell in grid.cells:
            training = cell.training(config.seed)
            (expected,) = planned_defenses(replace(config, defenses={cell.defense: training}), ()).values()
            settings = {"defense": cell.defense, **expected.settings}
            state, why = state_of(where / cell.name, settings, training.seed)
            about = "; ".join(filter(None, [expected.about, why]))
            planned.append(Planned(cell.name, state, where / cell.name, expected.rows, expected.steps, about))
    return planned
