# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The parts of RESULTS.md that are rendered from cells: sentences, tables and pictures, by the name of the part."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_clipbd.report.results_cells import NOT_RUN, Cells
from hf_clipbd.report.results_papers import Verdict, beside, margins, orderings, paper_table, verdict_table
from hf_clipbd.report.results_tables import (
    attack_sections,
    curves_table,
    detection_ranking_table,
    detection_table,
    measure_heading,
    measured_table,
    overview,
    retrained_table,
    triggers_table,
)


if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = "figures"


@dataclass(frozen=True)
class Picture:
    """A picture of the page.

    Args:
        name: Its file's name, without the ending.
        text: What it shows, for those who cannot see it.
        draw: Draws it from the records.
    """

    name: str
    text: str
    draw: Callable[[], "Figure"]

    def __str__(self) -> str:
        return f"![{self.text}](recipes/reproduce/{FIGURES}/{self.name}.png)"


Parts = Iterator[str | Picture]


@dataclass(frozen=True)
class Shown:
    """What a section of the page is rendered from.

    Args:
        models: Models in the order of the rows.
        paper: Its table in the data file of the papers' figures, if there is one.
        measures: Names of the further measurements that are shown.
        name: What the names of its pictures begin with.
    """

    cells: Cells
    models: Sequence[str]
    paper: Mapping[str, Any] | None
    measures: Sequence[str] = ()
    name: str = ""


def _beside(shown: Shown) -> Parts:
    paper = paper_table(shown.paper or {"source": "", "attacks": [], "figures": {}})
    yield f"BA / ASR in percent, ours means over the seeds. The paper's: {paper.source}"
    yield beside(shown.cells, shown.models, paper)


def _verdicts(shown: Shown) -> Parts:
    paper = paper_table(shown.paper or {"source": "", "attacks": [], "figures": {}})
    found = orderings(shown.cells, paper)
    yield _counted([one for one in found if one.found], "orderings that the paper's figures show")
    yield verdict_table(found, "what the paper found")
    cost = margins(shown.cells, paper)
    yield (
        "The accuracy that CleanerCLIP costs, beside the difference of the paper's own cells, which the paper does "
        f"not state as a margin. {_counted(cost, 'such margins')}"
    )
    yield verdict_table(cost, "BA lost")


def _counted(found: Sequence[Verdict], what: str) -> str:
    agreed = [one.holds for one in found if one.word != "seeds disagree"]
    held, failed, missing = (agreed.count(answer) for answer in (True, False, None))
    return (
        f"Of {len(found)} {what}, {held} hold here on every seed, {failed} on none, on {len(found) - len(agreed)} the "
        f"seeds disagree, {missing} are not run."
    )


def _overview(shown: Shown) -> Parts:
    yield "BA / ASR in percent, means over the seeds."
    yield overview(shown.cells, shown.models, (1, 10))


def _curves(shown: Shown) -> Parts:
    yield "ASR@1 in percent after each epoch, means over the seeds, on the images of the epochs' measurements."
    yield curves_table(shown.cells, shown.models)


def _detection(shown: Shown) -> Parts:
    yield "AUROC in percent, mean (lowest to highest) over the seeds; lower rates by leaving poisoned rows out."
    yield detection_table(shown.cells) or f"Detection: {NOT_RUN}."
    ranked = detection_ranking_table(shown.cells)
    if ranked is not None:
        yield (
            "Average precision / recall among as many rows as are poisoned, in percent, means over the seeds: what "
            "AUROC hides where poison is rare."
        )
        yield ranked


def _retrained(shown: Shown) -> Parts:
    yield "The clean model trained again on the poisoned set without the rows that look worst. Rates in percent."
    yield retrained_table(shown.cells)


def _triggers(shown: Shown) -> Parts:
    yield "PSNR in dB and SSIM of the stamped pictures; BA and ASR of the victim; floor: ASR of the clean model."
    yield triggers_table(shown.cells)


def _measured(shown: Shown) -> Parts:
    for measure in shown.measures:
        yield f"### {measure_heading(measure)}"
        yield measured_table(shown.cells, measure, shown.models)


def _rates_figure(shown: Shown) -> Parts:
    from hf_clipbd.report.results_figures import draw_rates

    text = "BA@1 and ASR@1 of every model by attack, means over the seeds and their range"
    yield Picture(f"{shown.name}_rates", text, lambda: draw_rates(shown.cells, shown.models))


def _curves_figure(shown: Shown) -> Parts:
    from hf_clipbd.report.results_figures import draw_epochs_by_attack

    text = "ASR@1 by epoch of every defence, a panel an attack, means over the seeds and their range"
    yield Picture(f"{shown.name}_epochs", text, lambda: draw_epochs_by_attack(shown.cells, shown.models))


PARTS: dict[str, Callable[[Shown], Parts]] = {
    "beside": _beside,
    "verdicts": _verdicts,
    "overview": _overview,
    "curves": _curves,
    "detection": _detection,
    "retrained": _retrained,
    "triggers": _triggers,
    "measured": _measured,
    "attacks": lambda shown: attack_sections(shown.cells, shown.models),
    "rates_figure": _rates_figure,
    "curves_figure": _curves_figure,
}
