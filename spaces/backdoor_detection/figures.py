# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The metric on a table, as a function that knows nothing of the page."""

import math
from pathlib import Path
from typing import Any

import evaluate
import pandas


MODULE = Path(__file__).resolve().parent / "backdoor_detection.py"
NAMES = {
    "auroc": "AUROC",
    "auprc": "average precision (AUPRC)",
    "fpr_at_95_tpr": "false positives at 95 % recall",
    "precision": "precision of the flagged rows",
    "recall": "recall of the flagged rows",
    "recall_at_1_percent": "recall of the 1 % that score highest",
    "n": "rows",
    "n_poisoned": "poisoned rows",
}


def figures(table: pandas.DataFrame) -> pandas.DataFrame:
    """Return one row a figure: its name, its value, and what it is called.

    Args:
        table: Columns `score` (higher is more suspicious) and `is_poisoned` (0 or 1, false or true); rows that have
            neither are left out.

    Raises:
        ValueError: If a row has one of the two alone, a score is no number, a label is something else, or not both
            kinds of rows are there.
    """
    cells = [(_text(score), _text(label)) for score, label in zip(table["score"], table["is_poisoned"], strict=True)]
    filled = [(row, *pair) for row, pair in enumerate(cells, 1) if any(pair)]
    scores = [_score(score, row) for row, score, _ in filled]
    labels = [_label(label, row) for row, _, label in filled]
    found = evaluate.load(str(MODULE)).compute(predictions=scores, references=labels)
    shown = [f"{value:d}" if isinstance(value, int) else f"{value:.4f}" for value in found.values()]
    return pandas.DataFrame({"figure": list(found), "value": shown, "meaning": [NAMES[name] for name in found]})


def _text(cell: Any) -> str:
    """Return what stands in a cell, in small letters; "" if it is empty."""
    return "" if pandas.isna(cell) else str(cell).strip().lower()


def _score(text: str, row: int) -> float:
    number = _number(text)
    if math.isnan(number):
        raise ValueError(
            f"Expected a number as `score` in row {row}, but got {text!r}. Write it with a decimal point, or empty "
            f"both cells of the row."
        )
    return number


def _label(text: str, row: int) -> int:
    number = {"false": 0, "true": 1}.get(text, _number(text))
    if number not in (0, 1):
        raise ValueError(
            f"Expected `is_poisoned` in row {row} to be 0 or 1, but got {text!r}. Write one of these, or empty both "
            f"cells of the row."
        )
    return int(number)


def _number(text: str) -> float:
    """Return the number that a text spells, NaN if it spells none."""
    try:
        return float(text)
    except ValueError:
        return math.nan
