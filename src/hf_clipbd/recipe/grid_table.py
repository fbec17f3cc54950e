# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""A grid's records as tables: means over the runs, and which setting the rule chooses."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from hf_clipbd.recipe.grid_config import Block, Cell, GridConfig
from hf_clipbd.report.results_cells import mean_asr, spread
from hf_clipbd.schema import RECORD_FILE, EvalReport, RunRecord
from hf_clipbd.tables import markdown
from hf_clipbd.templates import method, percent


BASELINE = "victim"
SHOWN = (1, 10)
NOT_RUN = "-"


@dataclass(frozen=True)
class CellFigures:
    """What the records of one cell say, a value a run.

    Args:
        records: The finished records, in the order of the runs.
        others: Runs with a record of other settings than the grid's, which counts for nothing.
    """

    records: tuple[RunRecord, ...]
    others: tuple[str, ...] = ()

    @property
    def validation(self) -> list[float]:
        """BA@1 on the validation images."""
        return [record.metrics["validation"]["1"]["value"] for record in self.records]

    @property
    def reports(self) -> list[EvalReport]:
        """Reports on the test images."""
        return [EvalReport.from_dict(record.metrics["report"]) for record in self.records]

    def ba(self, k: int) -> list[float]:
        """BA@k on the test images."""
        return [report.ba[k].value for report in self.reports if k in report.ba]

    def asr(self, k: int) -> list[float]:
        """ASR@k on the test images, the mean over triggers where there are several."""
        return mean_asr(self.reports, k)


def cell_figures(grid: GridConfig, cell: Cell | None) -> CellFigures:
    """Return the figures of the finished records of a cell, or of the victim for None, that are of this grid."""
    name, kept, others = BASELINE if cell is None else cell.name, [], []
    for run in grid.runs:
        folder = run / grid.options.name / name
        if (folder / RECORD_FILE).is_file():
            record = RunRecord.load(folder)
            same = record.metrics["validation"]["1"]["n"] == grid.options.validation_images
            if same and (cell is None or cell.is_of(record.config.get("training", {}))):
                kept.append(record)
            else:
                others.append(run.name)
    return CellFigures(tuple(kept), tuple(others))


def chosen_cells(grid: GridConfig, block: Block) -> dict[str, Cell]:
    """Return defence -> the cell that the rule chooses among the block's cells finished on every run.

    The rule looks at BA@1 on the validation images and at nothing else: of the cells whose mean lies at most
    `max_ba_drop` below the victim's, those with the largest value of the key `choose`, and the one of highest BA among
    these; where no cell lies that high, the one of highest BA. No image with a trigger enters it.
    """
    victim = cell_figures(grid, None)
    if block.choose is None or len(victim.records) < len(grid.runs):
        return {}
    floor = fmean(victim.validation) - grid.options.max_ba_drop
    chosen: dict[str, Cell] = {}
    for defense in dict.fromkeys(cell.defense for cell in block.cells):
        cells = [cell for cell in block.cells if cell.defense == defense]
        figures = {cell.name: cell_figures(grid, cell) for cell in cells}
        if any(len(one.records) < len(grid.runs) for one in figures.values()):
            continue
        ba = {name: fmean(one.validation) for name, one in figures.items()}
        within = [cell for cell in cells if ba[cell.name] >= floor]
        if within:
            largest = max(cell.settings[block.choose] for cell in within)
            cells = [cell for cell in within if cell.settings[block.choose] == largest]
        chosen[defense] = max(cells, key=lambda cell: ba[cell.name])
    return chosen


def _row(label: str, settings: Sequence[str], figures: CellFigures, mark: str) -> list[str]:
    shown = [figures.validation, *(figures.ba(k) for k in SHOWN), *(figures.asr(k) for k in SHOWN)]
    rates = [spread(values, NOT_RUN) for values in shown]
    seconds = f"{fmean([record.seconds for record in figures.records]):.0f}" if figures.records else NOT_RUN
    return [label, *settings, *rates, str(len(figures.records)), seconds, mark]


def _rows(grid: GridConfig, block: Block) -> Iterator[list[str]]:
    yield _row(method(BASELINE)["label"], [NOT_RUN] * len(block.varied), cell_figures(grid, None), "")
    chosen = chosen_cells(grid, block)
    for cell in block.cells:
        settings = [str(cell.settings.get(key, "")) for key in block.varied]
        mark = "*" if chosen.get(cell.defense) == cell else ""
        yield _row(method(cell.defense)["label"], settings, cell_figures(grid, cell), mark)


def block_table(grid: GridConfig, block: Block) -> str:
    """Return a block's cells as a Markdown table."""
    figures = ["validation BA@1", *(f"BA@{k}" for k in SHOWN), *(f"ASR@{k}" for k in SHOWN), "runs", "seconds", ""]
    header = ["model", *(f"`{key}`" for key in block.varied), *figures]
    return markdown(header, _rows(grid, block), text_columns=None)


def choice_by_run(grid: GridConfig, block: Block) -> str:
    """Return what the rule chooses on each run by itself and what that cell has on its test images; "" if nothing."""
    singles = [replace(grid, options=replace(grid.options, runs=[str(run)])) for run in grid.runs]
    chosen = [chosen_cells(single, block) for single in singles]
    rows = []
    for defense in dict.fromkeys(cell.defense for cell in block.cells):
        row = [method(defense)["label"]]
        for single, choice in zip(singles, chosen, strict=True):
            if (cell := choice.get(defense)) is None:
                row.append(NOT_RUN)
                continue
            figures = cell_figures(single, cell)
            rates = " / ".join(spread(values) for values in (figures.ba(1), figures.asr(1)))
            row.append(f"{cell.settings[block.choose or '']}: {rates}")
        rows.append(row)
    if len(singles) < 2 or not any(chosen):
        return ""
    text = f"The rule on each run by itself: the `{block.choose}` that it chooses, and BA@1 / ASR@1 there."
    return text + "\n\n" + markdown(["model", *(run.name for run in grid.runs)], rows, text_columns=None)


def block_section(grid: GridConfig, block: Block) -> str:
    """Return a block's heading, its table, what was left out and, where a rule chooses among its cells, the rule."""
    parts = [f"## {block.title}", block_table(grid, block)]
    left_out = {BASELINE: cell_figures(grid, None).others}
    left_out |= {cell.name: cell_figures(grid, cell).others for cell in block.cells}
    if any(left_out.values()):
        named = "; ".join(f"`{name}` of {', '.join(runs)}" for name, runs in left_out.items() if runs)
        parts.append(f"Left out, since their records are of other settings: {named}. Run the grid.")
    if block.choose is not None:
        drop = percent(grid.options.max_ba_drop)
        parts.append(
            f"\\* chosen: the largest `{block.choose}` whose BA@1 on {grid.options.validation_images} validation "
            f"images lies at most {drop} points below the victim's, else the highest BA@1. The rule looks at "
            f"nothing else; BA and ASR beside it are measured on the test images."
        )
        parts.append(choice_by_run(grid, block))
    return "\n\n".join(filter(None, parts))


def runs_line(grid: GridConfig) -> str:
    """Return what the tables of a grid are means over."""
    n = len(grid.runs)
    over = f"means over {n} runs (lowest to highest)" if n > 1 else "one run"
    return f"In percent, {over}. Runs: {', '.join(run.name for run in grid.runs)}."


def grid_table(grid: GridConfig) -> str:
    """Return the Markdown tables of a grid from the records that are there; a cell that has none shows dashes."""
    return "\n\n".join([runs_line(grid), *(block_section(grid, block) for block in grid.blocks)]) + "\n"
