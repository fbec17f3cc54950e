# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""A measure of single rows, averaged over their nearest neighbours at several levels; the most unusual ones count."""

import functools
import logging
from collections.abc import Sequence

import torch
from torch import Tensor


logger = logging.getLogger(__name__)

FEWEST = 20
"""Reference rows below which a warning says that what is usual among them is hardly known."""


class Levels:
    """Means of a measure c over a row and its j nearest reference rows, each in units of what is usual for that j.

    c_j(x) = (c(x) + c(o_1) + .. + c(o_j)) / (j + 1), o_i the i-th nearest reference row. Each c_j is centred and
    scaled by its median and median absolute deviation over the reference, and the score is the mean of the largest
    ones over the levels j: a poisoned group of whatever size stands out at the levels that are about as large, so that
    no poison rate is needed.

    Args:
        at_points: c of each reference row, (m,), float64.
        positions: Nearest other reference rows of each, (m, k), nearest first.
        levels: The j; those above k are cut to k, and those above half of the reference, whose means hardly differ
            from row to row, to that half.
        counted: How many of the c_j count, the largest ones.
    """

    def __init__(self, at_points: Tensor, positions: Tensor, levels: Sequence[int], counted: int = 1):
        self.at_points, self.counted = at_points, counted
        if len(at_points) < FEWEST:
            _warn_of_few(len(at_points))
        most = min(positions.shape[1], len(at_points) // 2)
        self.levels = sorted({min(level, most) for level in levels})
        means = self._means(at_points, positions)  # (m, number of levels)
        self.middle = means.median(0).values
        self.spread = (1.4826 * (means - self.middle).abs().median(0).values).clamp_min(1e-6)

    def _means(self, own: Tensor, positions: Tensor) -> Tensor:
        sums = torch.cat([own[:, None], self.at_points[positions]], 1).cumsum(1)  # (B, 1 + k)
        return sums[:, self.levels] / (1 + torch.tensor(self.levels, device=sums.device))

    def __call__(self, own: Tensor, positions: Tensor) -> Tensor:
        """Return the score of each row, (B,).

        Args:
            own: c of each row, (B,), float64.
            positions: Its nearest reference rows without itself, (B, k), nearest first.
        """
        scores = (self._means(own, positions) - self.middle) / self.spread
        return scores.topk(min(self.counted, scores.shape[1]), dim=1).values.mean(1)


@functools.cache
def _warn_of_few(count: int) -> None:
    logger.warning(
        "The reference has %d distinct rows, too few to know what is usual among them (expected at least %d): scores "
        "in units of their deviation may be huge and only order the rows. Search more rows, or give a larger "
        "reference.",
        count, FEWEST,
    )  # fmt: skip
