# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The papers' printed figures, read from a data file, and our tables with these beside them."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import yaml

from hf_clipbd.report.results_cells import NOT_RUN, Cells
from hf_clipbd.report.results_tables import label, pair
from hf_clipbd.tables import markdown


NOT_PRINTED = "-"


class Printed(NamedTuple):
    """A pair of figures as a paper prints them.

    Args:
        ba: Benign accuracy, in [0, 1].
        asr: Attack success, in [0, 1].
    """

    ba: float
    asr: float


@dataclass(frozen=True)
class PaperTable:
    """A table of BA and ASR as a paper prints it.

    Args:
        source: Which paper, table and setting.
        figures: (k, model, attack) -> what is printed.
    """

    source: str
    figures: Mapping[tuple[int, str, str], Printed]

    @property
    def ks(self) -> list[int]:
        """The k that are printed."""
        return sorted({k for k, _, _ in self.figures})

    def get(self, k: int, model: str, attack: str) -> Printed | None:
        """Return what is printed, None where nothing is."""
        return self.figures.get((k, model, attack))


def read_papers(path: str | os.PathLike) -> dict[str, Any]:
    """Return the data file of the papers' figures as it stands."""
    return yaml.safe_load(Path(path).read_text(encoding="utf-8"))


def paper_table(values: Mapping[str, Any]) -> PaperTable:
    """Return a table of the data file: `source`, `attacks`, and `figures` by k and model as "BA/ASR" in percent.

    Raises:
        ValueError: If a row has another number of figures than there are attacks.

    Example:
        >>> table = paper_table({"source": "x", "attacks": ["sig"], "figures": {1: {"ft": ["50/25"]}}})
        >>> table.get(1, "ft", "sig")
        Printed(ba=0.5, asr=0.25)
    """
    attacks, figures = values["attacks"], {}
    for k, by_model in values["figures"].items():
        for model, row in by_model.items():
            if len(row) != len(attacks):
                raise ValueError(f"Expected {len(attacks)} figures for `{model}` at {k}, but got {len(row)}.")
            for attack, text in zip(attacks, row, strict=True):
                ba, asr = (float(part) / 100 for part in text.split("/"))
                figures[int(k), model, attack] = Printed(ba, asr)
    return PaperTable(values["source"], figures)


def beside(cells: Cells, models: Sequence[str], paper: PaperTable) -> str:
    """Return our BA / ASR and the paper's, a row each, at the k that the paper prints."""

    def rows() -> Iterator[list[str]]:
        for k in paper.ks:
            for model in models:
                ours = [pair(cells.ba(one, model, k), cells.asr(one, model, k)) for one in cells.attacks]
                yield [str(k), label(model), "ours", *ours]
                printed = [paper.get(k, model, one) for one in cells.attacks]
                if any(printed):
                    shown = [
                        NOT_PRINTED if one is None else f"{100 * one.ba:.2f} / {100 * one.asr:.2f}" for one in printed
                    ]
                    yield [str(k), label(model), "paper", *shown]

    return markdown(["top", "model", "", *map(label, cells.attacks)], rows(), text_columns=3)


@dataclass(frozen=True)
class Verdict:
    """Whether something that a paper found holds here.

    Args:
        claim: What was found.
        attack: Of which attack; "" where it is about all.
        holds: Whether it holds for the means over the seeds; None where a record is missing.
        ours: Our figures.
        paper: The paper's, "" where it prints none.
        found: Whether the paper's own figures show it.
        by_seed: Whether it holds on each seed alone.
    """

    claim: str
    attack: str
    holds: bool | None
    ours: str
    paper: str = ""
    found: bool = True
    by_seed: tuple[bool, ...] = ()

    @property
    def word(self) -> str:
        """Return what the table says of it; where the seeds are not of one mind, the mean alone decides nothing."""
        if self.holds is None:
            return NOT_RUN
        if any(one is not self.holds for one in self.by_seed):
            return "seeds disagree"
        return "holds" if self.holds else "**does not hold**"


def _asr_order(cells: Cells, paper: PaperTable) -> Iterator[Verdict]:
    order = ("cleanerclip", "cleanclip", "ft")
    for attack in cells.attacks:
        for better, worse in zip(order, order[1:], strict=False):
            claim = f"ASR@1: {label(better)} ≤ {label(worse)}"
            seeds = cells.measured((attack, better), (attack, worse))
            low, high = (cells.asr(attack, one, 1, seeds=seeds) for one in (better, worse))
            printed = [paper.get(1, one, attack) for one in (better, worse)]
            said = " ≤ ".join(f"{100 * one.asr:.2f}" for one in printed) if all(printed) else ""
            found = not said or printed[0].asr <= printed[1].asr
            if not found:
                said = f"{said.replace('≤', '>')} (not there either)"
            if not low or not high:
                yield Verdict(claim, attack, None, NOT_RUN, said, found)
                continue
            held = tuple(a <= b for a, b in zip(low, high, strict=True))
            sign = "≤" if fmean(low) <= fmean(high) else ">"
            victim = cells.asr(attack, "victim", 1, seeds=seeds)
            start = f"victim {100 * fmean(victim):.2f}: " if victim else ""
            both = f"{100 * fmean(low):.2f} {sign} {100 * fmean(high):.2f}"
            ours = f"{start}{both}, on {sum(held)} of {len(seeds)} seeds"
            yield Verdict(claim, attack, fmean(low) <= fmean(high), ours, said, found, held)


def _ba_margin(cells: Cells, paper: PaperTable) -> Iterator[Verdict]:
    for attack in cells.attacks:
        for start in ("victim", "ft"):
            claim = f"BA@1: {label('cleanerclip')} within the paper's margin of {label(start)}"
            seeds = cells.measured((attack, start), (attack, "cleanerclip"))
            before, after = (cells.ba(attack, one, 1, seeds=seeds) for one in (start, "cleanerclip"))
            printed = [paper.get(1, one, attack) for one in (start, "cleanerclip")]
            allowed = printed[0].ba - printed[1].ba if all(printed) else None
            said = f"{-100 * allowed:+.2f}" if allowed is not None else ""
            if not before or not after or allowed is None:
                yield Verdict(claim, attack, None, NOT_RUN, said)
                continue
            change = fmean(after) - fmean(before)
            held = tuple(a - b <= allowed for a, b in zip(before, after, strict=True))
            ours = f"{100 * change:+.2f}, on {sum(held)} of {len(seeds)} seeds"
            yield Verdict(claim, attack, -change <= allowed, ours, said, by_seed=held)


def _hardest(cells: Cells, paper: PaperTable) -> Iterator[Verdict]:
    for model in ("ft", "cleanclip"):
        seeds = cells.measured(*((attack, model) for attack in cells.attacks))
        ours = {attack: cells.asr(attack, model, 1, seeds=seeds) for attack in cells.attacks}
        printed = {attack: paper.get(1, model, attack) for attack in cells.attacks}
        said = ""
        if all(printed.values()) and printed:
            top = max(printed, key=lambda one: printed[one].asr)
            said = f"{label(top)} {100 * printed[top].asr:.2f}"
        claim = f"ASR@1 after {label(model)} is highest for {label('badclip')}"
        if not all(ours.values()):
            yield Verdict(claim, "", None, NOT_RUN, said)
            continue
        top = max(ours, key=lambda one: fmean(ours[one]))
        held = tuple(max(ours, key=lambda one: ours[one][at]) == "badclip" for at in range(len(seeds)))
        shown = f"{label(top)} {100 * fmean(ours[top]):.2f}, on {sum(held)} of {len(seeds)} seeds"
        yield Verdict(claim, "", top == "badclip", shown, said, by_seed=held)


def orderings(cells: Cells, paper: PaperTable) -> list[Verdict]:
    """Return whether the paper's orderings hold: ASR by defence, and BadCLIP the hardest.

    Means are compared over the seeds on which everything compared was measured.
    """
    hardest = _hardest(cells, paper) if {"badclip"} < set(cells.attacks) else ()
    return [*_asr_order(cells, paper), *hardest]


def margins(cells: Cells, paper: PaperTable) -> list[Verdict]:
    """Return whether CleanerCLIP costs no more BA than in the paper, by the differences of the paper's own cells.

    The paper states no margin. Its points are lost from 53 to 60 %, so a difference here is at another level.
    """
    return list(_ba_margin(cells, paper))


def verdict_table(found: Sequence[Verdict], what: str) -> str:
    """Return the verdicts as a Markdown table whose first column is headed `what`."""
    rows = []
    for one in found:
        of = label(one.attack) if one.attack else "all"
        rows.append([one.claim, of, one.word, one.ours, one.paper or NOT_PRINTED])
    return markdown([what, "attack", "here", "ours", "paper"], rows, text_columns=3)
