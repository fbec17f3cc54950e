# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What a reproduction found, rendered from its records: tables and figures beside the cells."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from hf_clipbd.report.figures import save
from hf_clipbd.report.results_cells import Cells
from hf_clipbd.report.results_tables import label, sections
from hf_clipbd.report.sweeps import draw_epochs


FIGURES = "figures"


def render_cells(
    table: str | os.PathLike,
    title: str,
    attacks: Sequence[str],
    seeds: Sequence[int],
    settings: Mapping[tuple[str, int], Mapping[str, Any]] | None = None,
) -> str:
    """Write the tables and the figures of cells from the records that are there, and return the tables.

    Args:
        table: File of the tables, in the folder of the cells; the figures go into `figures/` beside it.
        title: Heading.
        attacks: Names of the attacks, in the order of the columns.
        seeds: Seeds.
        settings: What the cells are to be run with; see `Cells`.
    """
    table = Path(table)
    cells = Cells(table.parent, tuple(attacks), tuple(seeds), settings=settings)
    text = "\n\n".join([f"# {title}", *sections(cells, cells.models())]) + "\n"
    table.parent.mkdir(parents=True, exist_ok=True)
    scratch = table.with_name(f"{table.name}.{os.getpid()}.partial")  # several processes may render at once
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, table)
    draw_curves(cells, table.parent / FIGURES)
    return text


def draw_curves(cells: Cells, folder: Path) -> list[Path]:
    """Draw ASR@1 after each epoch of every defence, a figure an attack, and return the paths of the PNGs."""
    paths = []
    for attack in cells.attacks:
        trained = [model for model in cells.models() if model not in ("clean", "victim")]
        curves = {label(model): runs for model in trained if (runs := cells.asr_by_epoch(attack, model))}
        victim = cells.asr(attack, "victim", 1)
        if curves and victim:
            paths.append(save(draw_epochs(curves, fmean(victim)), folder / f"epochs_{attack}.png"))
    return paths
