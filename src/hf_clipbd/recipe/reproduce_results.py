# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""From finished cells to committed records, and from these alone to RESULTS.md."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from hf_clipbd.report.results_cells import NOT_RUN, ORDER, Cells
from hf_clipbd.report.results_papers import beside, paper_table, read_papers, verdict_table, verdicts
from hf_clipbd.report.results_tables import (
    attack_sections,
    counts,
    curves_table,
    detection_table,
    measured_table,
    overview,
    triggers_table,
)
from hf_clipbd.schema import RECORD_FILE, RunRecord, write_json
from hf_clipbd.templates import public


if TYPE_CHECKING:
    from hf_clipbd.recipe.grid_config import GridConfig

RECORDS = "records"
PAPERS_FILE = "papers.yaml"
PAGE_FILE = "results.yaml"
BESIDE_THE_JOB = ("cell", "trigger", "gallery", "measured/*/*")
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
)


def collect(folder: str | Path, records: str | Path) -> list[Path]:
    """Copy the records of every finished cell, without paths of this machine, and return where they lie.

    Args:
        folder: Folder of a reproduction's cells.
        records: Gets `ATTACK/seedN` with the records of its stages; what was there of a cell is replaced.

    Raises:
        FileNotFoundError: If no cell is finished.
    """
    from hf_clipbd.hub.golden import copy_records

    finished = sorted(Path(folder).glob(f"*/seed*/cell/{RECORD_FILE}"))
    if not finished:
        raise FileNotFoundError(
            f"Expected finished cells, `ATTACK/seedN`, in `{folder}`, but there is none. Run them."
        )
    copied = []
    for cell in (path.parent.parent for path in finished):
        out = copy_records(cell, Path(records) / cell.parent.name / cell.name)
        for pattern in BESIDE_THE_JOB:
            for path in sorted(cell.glob(f"{pattern}/{RECORD_FILE}")):
                _copy(path, out / path.relative_to(cell))
        copied.append(out)
    return copied


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


@dataclass(frozen=True)
class Shown:
    """What a section of the page is rendered from.

    Args:
        cells: Its records.
        models: Models in the order of the rows.
        paper: Its table in the data file of the papers' figures, if there is one.
        measures: Names of the further measurements that are shown.
    """

    cells: Cells
    models: Sequence[str]
    paper: Mapping[str, Any] | None
    measures: Sequence[str] = ()


def _beside(shown: Shown) -> Iterator[str]:
    paper = paper_table(shown.paper or {"source": "", "attacks": [], "figures": {}})
    yield f"BA / ASR in percent, ours means over the seeds. The paper's: {paper.source}"
    yield beside(shown.cells, shown.models, paper)


def _verdicts(shown: Shown) -> Iterator[str]:
    found = verdicts(shown.cells, paper_table(shown.paper or {"source": "", "attacks": [], "figures": {}}))
    counted = [sum(one.holds is answer for one in found) for answer in (True, False, None)]
    yield f"Of {len(found)} findings, {counted[0]} hold here, {counted[1]} do not, {counted[2]} are not run."
    yield verdict_table(found)


def _overview(shown: Shown) -> Iterator[str]:
    yield "BA / ASR in percent, means over the seeds."
    yield overview(shown.cells, shown.models, (1, 10))


def _curves(shown: Shown) -> Iterator[str]:
    yield "ASR@1 in percent after each epoch, means over the seeds, on the images of the epochs' measurements."
    yield curves_table(shown.cells, shown.models)


def _detection(shown: Shown) -> Iterator[str]:
    yield "AUROC in percent, mean (lowest to highest) over the seeds; lower rates by leaving poisoned rows out."
    yield detection_table(shown.cells) or f"Detection: {NOT_RUN}."


def _triggers(shown: Shown) -> Iterator[str]:
    yield "PSNR in dB and SSIM of the stamped pictures; BA and ASR of the victim; floor: ASR of the clean model."
    yield triggers_table(shown.cells)


def _measured(shown: Shown) -> Iterator[str]:
    for measure in shown.measures:
        yield f"### {measure}"
        yield measured_table(shown.cells, measure, shown.models)


def _attacks(shown: Shown) -> Iterator[str]:
    yield from attack_sections(shown.cells, shown.models)


PARTS: dict[str, Callable[[Shown], Iterator[str]]] = {
    "beside": _beside,
    "verdicts": _verdicts,
    "overview": _overview,
    "curves": _curves,
    "detection": _detection,
    "triggers": _triggers,
    "measured": _measured,
    "attacks": _attacks,
}


def _read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _check(names: Iterable[str], known: Iterable[str], what: str) -> None:
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(f"Expected of a {what} in `{PAGE_FILE}` only {sorted(known)}, but got {unknown}.")


def _shown(section: Mapping[str, Any], folder: Path, papers: Mapping[str, Any]) -> Shown:
    recipe = _read(folder / section["recipe"]) if "recipe" in section else {}
    root = folder / section.get("records", f"{RECORDS}/{Path(section.get('recipe', '')).stem}")
    attacks = tuple(section.get("attacks") or recipe.get("attacks") or ())
    seeds = tuple(section.get("seeds") or recipe.get("seeds") or (0, 1, 2))
    cells = Cells(root, attacks, seeds, section.get("layout", Cells.layout))
    wanted = section.get("models") or ORDER
    models = [*wanted, *(name for name in cells.models() if name not in wanted)]
    return Shown(cells, models, papers.get(section.get("paper", "")), section.get("measures") or ())


def _grid(section: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """Yield the tables of a grid from its committed records, `records/RUN/NAME/CELL`."""
    runs = sorted(str(path) for path in (folder / section["records"]).glob("*") if path.is_dir())
    if runs:
        from hf_clipbd.recipe.grid_config import load_grid
        from hf_clipbd.recipe.grid_table import grid_table

        grid = load_grid([str(folder / section["grid"]), "--grid.runs", *runs])
        yield grid_table(grid).strip().replace("## ", "### ")
    else:
        yield f"All cells: {NOT_RUN}."


def _section(section: Mapping[str, Any], folder: Path, papers: Mapping[str, Any]) -> Iterator[str]:
    _check(section, SECTION_KEYS, "section")
    yield f"## {section['heading']}"
    yield " ".join(str(section.get("text", "")).split())
    if "grid" in section:
        yield from _grid(section, folder)
        return
    shown = _shown(section, folder, papers)
    _check(section["parts"], PARTS, "part")
    if section["parts"] != ["measured"]:
        yield counts(shown.cells, shown.models)
    for part in section["parts"]:
        yield from PARTS[part](shown)


def render_results(folder: str | Path) -> str:
    """Return RESULTS.md, from `results.yaml`, `papers.yaml` and the committed records alone.

    Args:
        folder: `recipes/reproduce` of a checkout.

    Raises:
        ValueError: If `results.yaml` has a key or a part that is not known.
    """
    folder = Path(folder)
    page, papers = _read(folder / PAGE_FILE), read_papers(folder / PAPERS_FILE)
    _check(page, ("title", "text", "sections"), "page")
    parts = [f"# {page['title']}", page["text"].strip()]
    for section in page["sections"]:
        parts += [part for part in _section(section, folder, papers) if part]
    return "\n\n".join(parts) + "\n"
