# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""From finished cells to committed records, and from these alone to RESULTS.md."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_clipbd.recipe.reproduce_parts import PARTS, Parts, Picture, Shown
from hf_clipbd.recipe.sections import read_yaml
from hf_clipbd.report.results_cells import CELL, NOT_RUN, ORDER, Cells
from hf_clipbd.report.results_papers import read_papers
from hf_clipbd.report.results_tables import counts
from hf_clipbd.schema import RECORD_FILE, RunRecord, write_json
from hf_clipbd.templates import public


if TYPE_CHECKING:
    from hf_clipbd.recipe.grid_config import Block, GridConfig

RECORDS = "records"
FIGURE_DPI = 110
GRID_FIGURES = {  # name -> kind among a block's figures, and what it shows
    "sweep": ("", "BA@1 and ASR@1 against the settings, means over the runs and their range"),
    "tradeoff": ("_tradeoff", "ASR@1 against BA@1, a line a defence, means over the runs"),
    "epochs": ("_epochs", "ASR@1 by epoch, means over the runs"),
}
PAPERS_FILE = "papers.yaml"
PAGE_FILE = "results.yaml"
BESIDE_THE_JOB = (CELL, "trigger", "gallery", "measured/*/*")
SECTION_KEYS = (
    "heading",
    "text",
    "recipe",
    "records",
    "layout",
    "attacks",
    "seeds",
    "models",
    "paper",
    "measures",
    "parts",
    "grid",
    "figures",
)


def collect(folder: str | Path, records: str | Path) -> list[Path]:
    """Copy the records of every finished cell, without paths of this machine, and return where they lie.

    Args:
        folder: Folder of a reproduction's cells.
        records: Gets `ATTACK/seedN` with the records of its stages; what was there of a cell is replaced.

    Raises:
        FileNotFoundError: If no cell is finished.
        ValueError: If a stage of a cell was run again since the cell was finished; nothing is copied then.
    """
    from hf_clipbd.hub.golden import copy_records

    finished = sorted(Path(folder).glob(f"*/seed*/{CELL}/{RECORD_FILE}"))
    if not finished:
        raise FileNotFoundError(
            f"Expected finished cells, `ATTACK/seedN`, in `{folder}`, but there is none. Run them."
        )
    copied, cells = [], [path.parent.parent for path in finished]
    for cell in cells:
        _check_whole(cell)
    for cell in cells:
        out = copy_records(cell, Path(records) / cell.parent.name / cell.name)
        for pattern in BESIDE_THE_JOB:
            for path in sorted(cell.glob(f"{pattern}/{RECORD_FILE}")):
                _copy(path, out / path.relative_to(cell))
        copied.append(out)
    return copied


def _check_whole(cell: Path) -> None:
    """Raise `ValueError` where a stage of a finished cell has another record than the one the cell was finished with.

    So it is while a cell is run with other settings, or once a stage of it was run alone.
    """
    for stage, key in RunRecord.load(cell / CELL).metrics.get("keys", {}).items():
        found = RunRecord.load(cell / stage).key
        if found != key:
            raise ValueError(
                f"Expected the record `{key}` of stage `{stage}`, with which the cell `{cell}` was finished, but "
                f"found `{found}`: it was run again since. Run the reproduction, which finishes the cell."
            )


def collect_grid(grid: "GridConfig", records: str | Path) -> list[Path]:
    """Copy the records of a grid's cells into `records/RUN/NAME/CELL`, RUN the run folder's name; return their paths.

    Raises:
        FileNotFoundError: If no cell is finished.
    """
    found = [(run, path) for run in grid.runs for path in sorted((run / grid.options.name).glob(f"*/{RECORD_FILE}"))]
    if not found:
        raise FileNotFoundError(f"Expected finished cells of the grid in {list(map(str, grid.runs))}. Run the grid.")
    return [_copy(path, Path(records) / run.name / path.relative_to(run)) for run, path in found]


def _copy(record: Path, to: Path) -> Path:
    return write_json(to, public(vars(RunRecord.load(record))))


def _check(names: Iterable[str], known: Iterable[str], what: str) -> None:
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(f"Expected of a {what} in `{PAGE_FILE}` only {sorted(known)}, but got {unknown}.")


def _shown(section: Mapping[str, Any], folder: Path, papers: Mapping[str, Any]) -> Shown:
    recipe = read_yaml(folder / section["recipe"]) if "recipe" in section else {}
    root = folder / section.get("records", f"{RECORDS}/{Path(section.get('recipe', '')).stem}")
    attacks = tuple(section.get("attacks") or recipe.get("attacks") or ())
    seeds = tuple(section.get("seeds") or recipe.get("seeds") or (0, 1, 2))
    cells = Cells(root, attacks, seeds, section.get("layout", Cells.layout))
    wanted = section.get("models") or ORDER
    models = [*wanted, *(name for name in cells.models() if name not in wanted)]
    paper, measures = papers.get(section.get("paper", "")), section.get("measures") or ()
    return Shown(cells, models, paper, measures, root.name)


def _grid(section: Mapping[str, Any], folder: Path) -> Parts:
    """Yield the tables of a grid from its committed records, `records/RUN/NAME/CELL`, with the figures asked for."""
    runs = sorted(str(path) for path in (folder / section["records"]).glob("*") if path.is_dir())
    if not runs:
        yield f"All cells: {NOT_RUN}."
        return
    from hf_clipbd.recipe.grid_config import load_grid
    from hf_clipbd.recipe.grid_table import block_section, runs_line

    grid = load_grid([str(folder / section["grid"]), "--grid.runs", *runs])
    drawn = section.get("figures") or {}
    _check(drawn, [block.title for block in grid.blocks], "figure")
    yield runs_line(grid)
    for block in grid.blocks:
        yield block_section(grid, block).replace("## ", "### ", 1)
        for kind in drawn.get(block.title, ()):
            yield _grid_picture(grid, block, kind, Path(section["records"]).name)


def _grid_picture(grid: "GridConfig", block: "Block", kind: str, name: str) -> Picture:
    """Return one of a block's pictures: `sweep`, `tradeoff` or `epochs`."""
    from hf_clipbd.recipe.grid_figures import drawn, slug

    _check([kind], GRID_FIGURES, "figure")
    suffix, text = GRID_FIGURES[kind]
    file = f"{name}_{slug(block.title)}_{kind}"
    return Picture(file, f"{block.title}: {text}", lambda: dict(drawn(grid, block))[suffix])


def _section(section: Mapping[str, Any], folder: Path, papers: Mapping[str, Any]) -> Parts:
    _check(section, SECTION_KEYS, "section")
    yield f"## {section['heading']}"
    yield "\n\n".join(" ".join(one.split()) for one in str(section.get("text", "")).splitlines())
    if "grid" in section:
        yield from _grid(section, folder)
        return
    shown = _shown(section, folder, papers)
    _check(section["parts"], PARTS, "part")
    if section["parts"] != ["measured"]:
        yield counts(shown.cells, shown.models)
    for part in section["parts"]:
        yield from PARTS[part](shown)


def _contents(sections: Iterable[Mapping[str, Any]]) -> str:
    """Return a list of links to the sections, by the anchors that GitHub gives their headings."""
    headings = [section["heading"] for section in sections]
    anchors = (re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings)
    return "\n".join(f"- [{heading}](#{anchor})" for heading, anchor in zip(headings, anchors, strict=True))


def _page(folder: Path) -> list[str | Picture]:
    """Return the parts of the page in order.

    Raises:
        ValueError: If `results.yaml` has a key or a part that is not known.
    """
    page, papers = read_yaml(folder / PAGE_FILE), read_papers(folder / PAPERS_FILE)
    _check(page, ("title", "text", "sections"), "page")
    parts: list[str | Picture] = [f"# {page['title']}", page["text"].strip(), _contents(page["sections"])]
    for section in page["sections"]:
        parts += [part for part in _section(section, folder, papers) if part]
    return parts


def render_results(folder: str | Path) -> str:
    """Return RESULTS.md, from `results.yaml`, `papers.yaml` and the committed records alone.

    Args:
        folder: `recipes/reproduce` of a checkout.

    Raises:
        ValueError: If `results.yaml` has a key or a part that is not known.
    """
    return "\n\n".join(map(str, _page(Path(folder)))) + "\n"


def render_pictures(folder: str | Path, out: str | Path) -> list[Path]:
    """Draw the pictures that RESULTS.md names, from the committed records alone, and return the paths of the PNGs.

    Args:
        folder: `recipes/reproduce` of a checkout.
    """
    from hf_clipbd.report.figures import save

    pictures = [part for part in _page(Path(folder)) if isinstance(part, Picture)]
    return [save(one.draw(), Path(out) / f"{one.name}.png", dpi=FIGURE_DPI) for one in pictures]
