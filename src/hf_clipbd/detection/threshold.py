# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Where to cut a list of scores nobody has labels for, and how many clean rows the cut is expected to cost."""

import logging
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import norm


logger = logging.getLogger(__name__)

LEVELS = np.linspace(0.90, 0.99, 19)
"""Quantiles from which the tail of clean scores is read; poison is hoped to be above them."""
TIED = 2
"""Rows of one score at the cut stay where more than so many times the rows asked for would be removed with them."""


@dataclass(frozen=True)
class Cut:
    """A threshold on scores: rows at or above it are removed.

    Args:
        threshold: The lowest score that is removed.
        n: Rows in all.
        n_removed: Rows removed.
        expected_clean: Expected number of rows above the threshold if no row were poisoned and the tail of the scores
            went on as it begins between their 90 % and their 99 % quantile.
    """

    threshold: float
    n: int
    n_removed: int
    expected_clean: float

    @property
    def excess(self) -> float:
        """How many rows more than expected are above the threshold; what may be poison, or ordinary junk."""
        return max(0.0, self.n_removed - self.expected_clean)


def removed_rows(n: int, share: float) -> int:
    """Return how many of n rows are removed where a share of them is asked for: share * n, rounded up.

    The one definition of it: `cut_share` removes so many, `detection_performance` takes the recall at 1 % among so
    many, and so does the table of `benchmarks/detectors_table.py`.

    Args:
        n: Rows in all, at least 1.
        share: In (0, 1).

    Example:
        >>> removed_rows(250, 0.01), removed_rows(100, 0.07), removed_rows(7, 0.01)
        (3, 7, 1)
    """
    return max(1, math.ceil(round(share * n, 6)))  # 0.07 * 100 is a little over 7 in floating point


def cut_share(scores: Any, share: float) -> Cut:
    """Return the threshold that removes a share of the rows, those of the highest scores.

    If nothing is poisoned, every removed row is a false positive: share * N of them, known beforehand and chosen by
    the user. Beside it stands what the scores themselves suggest, `expected_above`: how many of a clean set would lie
    there, if the tail above their 99 % quantile goes on as a normal one does that has their quantiles from 90 to 99 %.

    How far that holds (measured once, by a script that is not kept): expected over removed for clean rows at shares of
    1, 0.5, 0.2 and 0.1 %, on normal features (20,000 rows, 16 searches by four detectors) 1.00, 1.05, 1.11 and 1.26 in
    the median, eight of ten between 0.69 and 1.57 at 0.1 %; on the clean rows of 16 poisoned sets (24,000 to 50,000
    rows, 80 searches by five detectors) 1.03, 1.08, 1.22 and 1.30, eight of ten between 0.91 and 1.34 at 1 % and
    between 0.47 and 4.26 at 0.1 %. Where the tail is heavier than a normal one, too few are expected, and ordinary
    rows make an excess: of an exponential one 0.68 of the true number at 0.5 %, 0.29 at 0.1 %. Poison that reaches
    below the 99 % quantile is taken for a tail: the median excess over the poison above the threshold was 0.30 at a
    rate and a share of 1 %, 0.58 at both of 0.1 %, and 0.94 at a rate of 0.3 % and a share of 0.2 % (`multi_scale`,
    `conditional_sparsity` and `disagreement` on these sets, where 20 poisoned rows or more were above).

    Args:
        scores: (N,), finite; higher is more suspicious.
        share: Share of the rows to remove, in (0, 1).

    Returns:
        The cut; rows of equal score at the threshold go together, so it may remove a few more. Where they would be
        more than twice those asked for, or all rows, they stay, and only what lies above them is removed, which may be
        nothing: a warning says so.

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
    count = removed_rows(n, share)
    threshold = float(np.partition(scores, n - count)[n - count])
    removed = int((scores >= threshold).sum())
    if removed > TIED * count or removed == n:
        tied, above = threshold, scores[scores > threshold]
        threshold, removed = float(above.min() if len(above) else np.nextafter(tied, np.inf)), len(above)
        logger.warning(
            "%d of %d rows have one and the same score, %.6g, where the %d most suspicious ones end. A cut there "
            "would remove them all: they stay, and %d rows are removed. Rank by another detector, or remove another "
            "share.",
            int((scores == tied).sum()), n, tied, count, removed,
        )  # fmt: skip
    return Cut(threshold, n, removed, expected_above(scores, threshold))


def expected_above(scores: np.ndarray, threshold: float) -> float:
    """Return how many clean scores are expected at or above a threshold, from those between two of their quantiles.

    N * (1 - Phi(a t + b)) with the standard normal Phi; a and b are the least-squares line through the scores'
    quantiles from 90 to 99 % and those of Phi. Scores are taken by their logarithm where all are positive.

    Args:
        scores: (N,), finite.
        threshold: A score; up to their 90 % quantile the scores above it are counted.

    Reference:
        Ours.
    """
    positive = bool(scores.min() > 0)
    values, limit = (np.log(scores), math.log(threshold)) if positive else (scores, threshold)
    body = np.quantile(values, LEVELS)
    if limit <= body[0] or body[-1] <= body[0]:  # too low a threshold, or too few different scores to read a tail from
        return float((values >= limit).sum())
    slope, intercept = np.polyfit(body - body[0], norm.ppf(LEVELS), 1)
    return float(len(values) * min(1 - LEVELS[0], norm.sf(slope * (limit - body[0]) + intercept)))
