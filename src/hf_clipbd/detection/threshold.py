# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Where to cut a list of scores nobody has labels for, and how many clean rows the cut is expected to cost."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np


BODY = (0.90, 0.99)
"""Quantiles between which the tail of clean scores is read; poison is hoped to be above them."""


@dataclass(frozen=True)
class Cut:
    """A threshold on scores: rows at or above it are removed.

    Args:
        threshold: The lowest score that is removed.
        n: Rows in all.
        n_removed: Rows removed.
        expected_clean: Expected number of rows above the threshold if no row were poisoned and the tail of the scores
            went on as it does between its 90 % and its 99 % quantile.
    """

    threshold: float
    n: int
    n_removed: int
    expected_clean: float

    @property
    def excess(self) -> float:
        """How many rows more than expected are above the threshold; what may be poison, or ordinary junk."""
        return max(0.0, self.n_removed - self.expected_clean)


def cut_share(scores: Any, share: float) -> Cut:
    """Return the threshold that removes a share of the rows, those of the highest scores.

    If nothing is poisoned, every removed row is a false positive: share * N of them, known beforehand and chosen by
    the user. Beside it stands what the scores themselves suggest. Let q be their 90 % quantile; excesses over it up
    to the 99 % quantile are taken for a clean, exponential tail with mean beta (maximum likelihood with the rest
    censored), on the logarithm of scores where all are positive, so that N * 0.1 * exp(-(t - q) / beta) clean rows
    are expected above t.

    Args:
        scores: (N,), finite; higher is more suspicious.
        share: Share of the rows to remove, in (0, 1).

    Returns:
        The cut; rows of equal score at the threshold go together, so it may remove a few more.

    Raises:
        ValueError: If the share is not in (0, 1) or a score is not finite.

    Example:
        >>> cut = cut_share(np.arange(1.0, 201.0), 0.01)
        >>> cut.threshold, cut.n_removed
        (199.0, 2)
    """
    scores = np.asarray(scores, dtype=np.float64)
    if not 0 < share < 1:
        raise ValueError(f"Expected a share of rows to remove in (0, 1), but got {share}.")
    if scores.ndim != 1 or len(scores) < 2 or not np.isfinite(scores).all():
        raise ValueError(f"Expected at least two finite scores in a row, but got shape {scores.shape}.")
    n = len(scores)
    count = max(1, math.ceil(share * n))
    threshold = float(np.partition(scores, n - count)[n - count])
    removed = int((scores >= threshold).sum())
    return Cut(threshold, n, removed, expected_above(scores, threshold))


def expected_above(scores: np.ndarray, threshold: float) -> float:
    """Return how many clean scores are expected at or above a threshold, from the tail below their 99 % quantile."""
    positive = bool(scores.min() > 0)
    values, limit = (np.log(scores), math.log(threshold)) if positive else (scores, threshold)
    start, end = np.quantile(values, BODY)
    if limit <= start:
        return float((values >= limit).sum())
    tail = values[values >= start] - start
    inside = tail[tail < end - start]
    if end <= start or not len(inside):  # too few different scores to read a tail from
        return float((values >= limit).sum())
    censored = len(tail) - len(inside)
    mean = (inside.sum() + censored * (end - start)) / len(inside)
    return float(min(len(tail), len(tail) * math.exp(-(limit - start) / mean)))
