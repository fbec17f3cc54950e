# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Any number of evaluations side by side: one row a model and trigger, as a table for people or programs."""

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from hf_clipbd.evaluation.rates import defense_effectiveness
from hf_clipbd.schema import RECORD_FILE, EvalReport, Rate
from hf_clipbd.tables import aligned, markdown


Format = Literal["terminal", "markdown", "latex", "csv"]
NONE = "-"


@dataclass(frozen=True)
class ComparisonRow:
    """One model under one trigger at one k.

    Args:
        model: Name of the evaluation.
        trigger: Name of the trigger; "" for a model that was measured on clean images alone.
        k: Which top k.
        ba: Benign accuracy.
        asr: Attack success, where there is a trigger.
        ra: Accuracy on the stamped images, where there is a trigger.
        der: Defence effectiveness against the baseline, where there is one.
    """

    model: str
    trigger: str
    k: int
    ba: Rate
    asr: Rate | None = None
    ra: Rate | None = None
    der: float | None = None


def read_report(path: str | os.PathLike) -> EvalReport:
    """Return the evaluation in a record, in a folder that holds one, or in a bare report.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file holds no evaluation, or one of retrieval.
    """
    file = Path(path)
    file = file / RECORD_FILE if file.is_dir() else file
    if not file.is_file():
        raise FileNotFoundError(f"Expected an evaluation at `{file}`, but there is no such file.")
    values: Any = json.loads(file.read_text(encoding="utf-8"))
    for part in ("metrics", "report"):
        values = values.get(part, values) if isinstance(values, Mapping) else values
    if isinstance(values, Mapping) and ("retrieval" in values or "image_to_text" in values):
        raise ValueError(
            f"Expected an evaluation with BA and ASR, but {file} holds one of retrieval, which has neither. Compare "
            f"evaluations by zero-shot classification or a linear probe."
        )
    if not isinstance(values, Mapping) or "ba" not in values:
        raise ValueError(f"Expected an evaluation with `ba` and `triggers` in {file}, but found none. Run `evaluate`.")
    return EvalReport.from_dict({name: values[name] for name in ("ba", "triggers", "n_classes") if name in values})


def compare(
    reports: Mapping[str, EvalReport], baseline: str | None = None, ks: Sequence[int] | None = None
) -> list[ComparisonRow]:
    """Return a row for each k, trigger and model, in this order of nesting; last, at each k, models without a trigger.

    Args:
        reports: Name of the model -> its report.
        baseline: Name of the undefended model; every other one gets its DER against it.
        ks: The k to show; those that all reports have by default.

    Raises:
        ValueError: If there are no reports, no common k, the baseline is not among them, or DER cannot be had: the
            trigger aims at another target or the images are others than the baseline's.
    """
    common = sorted(set.intersection(*(set(report.ba) for report in reports.values()))) if reports else []
    ks = list(ks) if ks is not None else common
    if not ks or not set(ks) <= set(common) or (baseline is not None and baseline not in reports):
        raise ValueError(
            f"Expected reports with a common k and the baseline among them, but got {list(reports)}, common k "
            f"{common}, k {ks} and baseline {baseline!r}."
        )
    triggers = list(dict.fromkeys(name for report in reports.values() for name in report.triggers))
    rows = []
    for k in ks:
        for trigger in triggers:
            for name, report in reports.items():
                if trigger not in report.triggers:
                    continue
                one, der = report.triggers[trigger], None
                if baseline not in (None, name) and trigger in reports[baseline].triggers:
                    der = defense_effectiveness(reports[baseline], report, trigger, k).der
                rows.append(ComparisonRow(name, trigger, k, report.ba[k], one.asr[k], one.ra[k], der))
        clean = {name: report.ba[k] for name, report in reports.items() if not report.triggers}
        rows += [ComparisonRow(name, "", k, ba) for name, ba in clean.items()]
    return rows


def _interval(rate: Rate | None) -> str:
    if rate is None:
        return NONE
    low, high = rate.interval()
    return f"{100 * rate.value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _cells(rows: Sequence[ComparisonRow]) -> tuple[list[str], list[list[str]]]:
    header = ["model", "trigger", "k", "BA", "n", "ASR", "RA", "n", "DER"]
    cells = []
    for row in rows:
        stamped = NONE if row.asr is None else str(row.asr.n)
        der = NONE if row.der is None else f"{100 * row.der:.1f}"
        figures = [_interval(row.ba), str(row.ba.n), _interval(row.asr), _interval(row.ra), stamped, der]
        cells.append([row.model, row.trigger or NONE, str(row.k), *figures])
    return header, cells


def render(rows: Sequence[ComparisonRow], format: Format = "terminal") -> str:
    """Return the table; percent with 95 % Wilson intervals and n for people, shares in [0, 1] for `csv`.

    Args:
        rows: As `compare` gives them.
        format: `terminal`, `markdown`, `latex` (booktabs) or `csv`.

    Raises:
        ValueError: If the format is none of these or there are no rows.
    """
    layouts = {"terminal": aligned, "markdown": partial(markdown, text_columns=2), "latex": _latex}
    if format not in (*layouts, "csv") or not rows:
        raise ValueError(f"Expected rows and a format of {[*layouts, 'csv']}, but got {len(rows)} and {format!r}.")
    return _csv(rows) if format == "csv" else layouts[format](*_cells(rows)) + "\n"


_TEX = str.maketrans(
    {sign: f"\\{sign}" for sign in "_%&#${}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}"}
)


def _latex(header: list[str], cells: list[list[str]]) -> str:
    def line(values: list[str]) -> str:
        return " & ".join(value.translate(_TEX) for value in values) + r" \\"

    columns = "ll" + "r" * (len(header) - 2)
    body = [line(values) for values in cells]
    return "\n".join(
        [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", line(header), r"\midrule", *body, r"\bottomrule",
         r"\end{tabular}"]
    )  # fmt: skip


def _csv(rows: Sequence[ComparisonRow]) -> str:
    out = io.StringIO()
    values = [flat(row) for row in rows]
    writer = csv.DictWriter(out, list(values[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(values)
    return out.getvalue()


def flat(row: ComparisonRow) -> dict[str, str | int | float | None]:
    """Return a row of the table as a program reads it: each rate with the bounds of its interval and its n.

    Shares are in [0, 1]; None stands where there is no trigger or no baseline.
    """
    values: dict[str, str | int | float | None] = {"model": row.model, "trigger": row.trigger, "k": row.k}
    for name, rate in (("ba", row.ba), ("asr", row.asr), ("ra", row.ra)):
        figures = (None,) * 4 if rate is None else (rate.value, *rate.interval(), rate.n)
        values |= zip((name, f"{name}_low", f"{name}_high", f"{name}_n"), figures, strict=True)
    return {**values, "der": row.der}
