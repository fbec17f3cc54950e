# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The metric on a table, as a function that knows nothing of the page."""

from pathlib import Path

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
        table: Columns `score` (higher is more suspicious) and `is_poisoned` (0 or 1); rows that lack either are left
            out.

    Raises:
        ValueError: If a label is something else than 0 or 1, or not both kinds of rows are there.
    """
    rows = table[["score", "is_poisoned"]].apply(pandas.to_numeric, errors="coerce").dropna()
    odd = sorted(set(rows["is_poisoned"]) - {0, 1})
    if odd:
        raise ValueError(f"Expected `is_poisoned` to be 0 or 1, but got {odd}.")
    metric = evaluate.load(str(MODULE))
    found = metric.compute(predictions=rows["score"].tolist(), references=rows["is_poisoned"].astype(int).tolist())
    shown = [f"{value:d}" if isinstance(value, int) else f"{value:.4f}" for value in found.values()]
    return pandas.DataFrame({"figure": list(found), "value": shown, "meaning": [NAMES[name] for name in found]})
