# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""A grid's records as pictures: for each block BA and ASR against its settings, and ASR by epoch."""

import re
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure

from hf_clipbd.recipe.grid_config import Block, Cell, GridConfig
from hf_clipbd.recipe.grid_table import BASELINE, cell_figures
from hf_clipbd.report.figures import save
from hf_clipbd.report.results_cells import mean_asr_by_epoch
from hf_clipbd.report.sweeps import SweepPoint, draw_epochs, draw_sweep, draw_tradeoff
from hf_clipbd.templates import method


FIGURES = "figures"


def _setting(block: Block, cell: Cell) -> str:
    """Return the label of a cell among its block's: the values of what varies."""
    return " / ".join(f"{cell.settings[key]:g}" if isinstance(cell.settings[key], float) else str(cell.settings[key])
                      for key in block.varied if key in cell.settings) or "as given"  # fmt: skip


def drawn(grid: GridConfig, block: Block) -> Iterator[tuple[str, Figure]]:
    """Yield the figures of a block from its records, each with its kind: none where no cell is finished.

    "" is BA and ASR against the settings, "_tradeoff" ASR against BA where the block's rule chooses a setting, and
    "_epochs" ASR by epoch.
    """
    victim = cell_figures(grid, None)
    finished = [(cell, cell_figures(grid, cell)) for cell in block.cells]
    finished = [(cell, figures) for cell, figures in finished if figures.records]
    if not finished or not victim.records:
        return
    points = [
        SweepPoint(cell.defense, _setting(block, cell), tuple(figures.ba(1)), tuple(figures.asr(1)))
        for cell, figures in finished
    ]
    level = {BASELINE: (fmean(victim.ba(1)), fmean(victim.asr(1)))}
    yield "", draw_sweep(points, ", ".join(block.varied), level)
    if block.choose is not None:
        yield "_tradeoff", draw_tradeoff(points, level)
    several = len({cell.defense for cell, _ in finished}) > 1
    curves = {
        f"{method(cell.defense)['label']} {_setting(block, cell)}" if several else _setting(block, cell): [
            mean_asr_by_epoch(record) for record in figures.records
        ]
        for cell, figures in finished
    }
    if all(run for runs in curves.values() for run in runs):
        yield "_epochs", draw_epochs(curves, fmean(victim.asr(1)))


def slug(title: str) -> str:
    """Return a title as the name of a file.

    Example:
        >>> slug("Ratio of the weights")
        'ratio_of_the_weights'
    """
    return re.sub(r"[^a-z0-9]+", "_", title.lower()).strip("_")


def render_figures(grid: GridConfig) -> list[Path]:
    """Draw every block of which a cell is finished, from the records, and return the paths of the PNGs."""
    folder = Path(grid.options.output_dir) / FIGURES
    return [
        save(figure, folder / f"{slug(block.title)}{kind}.png")
        for block in grid.blocks
        for kind, figure in drawn(grid, block)
    ]
