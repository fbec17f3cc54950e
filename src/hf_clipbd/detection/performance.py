# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""How well scores tell poisoned rows from clean ones."""

from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from hf_clipbd.detection.threshold import removed_rows


def detection_performance(scores: Any, is_poisoned: Any, n_flagged: int | None = None) -> dict[str, float | int]:
    """Return AUROC, AUPRC, the false positives at 95 % recall, precision and recall of flagged rows, recall at 1 %.

    Args:
        scores: (N,), higher is more suspicious.
        is_poisoned: (N,), true or 1 for poisoned rows.
        n_flagged: How many rows of the highest scores are flagged; the number of poisoned rows by default, where
            precision and recall are one number. Rows of equal score at the limit count by their share.

    Returns:
        `auroc`; `auprc` (average precision; a random score has the poison rate); `fpr_at_95_tpr` (share of clean rows
        that score as high as the lowest threshold that catches 95 % of the poisoned ones); `precision`; `recall`;
        `recall_at_1_percent` (share of the poisoned rows among the 1 % of all rows, rounded up as a removal rounds it
        (`removed_rows`), that score highest; under 1 where more than these are poisoned); `n`; `n_poisoned`. Shares in
        [0, 1] as Python floats.

    Raises:
        ValueError: If the lengths differ, a score is NaN, a label is neither 0 nor 1, only one kind of row is there,
            or `n_flagged` is not in [1, N].

    Example:
        >>> detection_performance([0.1, 0.4, 0.3, 0.9], [0, 0, 1, 1])["auroc"]
        0.75
    """
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(is_poisoned)
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise ValueError(f"Expected one score and one label a row, but got shapes {scores.shape} and {labels.shape}.")
    if np.isnan(scores).any():
        raise ValueError(f"Expected scores without NaN, but {int(np.isnan(scores).sum())} of {len(scores)} are NaN.")
    if labels.dtype == object and any(one is None for one in labels):
        raise ValueError(
            f"Expected a label for every row, but {sum(one is None for one in labels)} of {len(labels)} have none, as "
            "clean rows that were joined to poisoned ones. Give 0 for those."
        )
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(f"Expected labels 0 (clean) and 1 (poisoned), but got {np.unique(labels)[:5].tolist()}.")
    poisoned = labels.astype(bool)
    n, n_poisoned = len(scores), int(poisoned.sum())
    if n_poisoned in (0, n):
        raise ValueError(f"Expected clean and poisoned rows, but {n_poisoned} of {n} are poisoned.")
    n_flagged = n_poisoned if n_flagged is None else n_flagged
    if not 1 <= n_flagged <= n:
        raise ValueError(f"Expected n_flagged in [1, {n}], but got {n_flagged}.")
    caught = _caught(scores, poisoned, n_flagged)
    # Infinite scores are legal ranks, which scikit-learn refuses: it is handed the ranks.
    ranks = np.unique(scores, return_inverse=True)[1]
    fpr, tpr, _ = roc_curve(poisoned, ranks, drop_intermediate=False)
    return {
        "auroc": float(roc_auc_score(poisoned, ranks)),
        "auprc": float(average_precision_score(poisoned, ranks)),
        "fpr_at_95_tpr": float(fpr[np.argmax(tpr >= 0.95)]),
        "precision": float(caught / n_flagged),
        "recall": float(caught / n_poisoned),
        "recall_at_1_percent": float(_caught(scores, poisoned, removed_rows(n, 0.01)) / n_poisoned),
        "n": n,
        "n_poisoned": n_poisoned,
    }


def _caught(scores: np.ndarray, poisoned: np.ndarray, count: int) -> float:
    """Return how many poisoned rows are among the `count` of the highest scores, by share where scores tie."""
    limit = np.partition(scores, len(scores) - count)[len(scores) - count]
    above, level = scores > limit, scores == limit
    return poisoned[above].sum() + poisoned[level].mean() * (count - above.sum())
