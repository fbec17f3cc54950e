# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Sparsity at a coarse scale, averaged over the nearest neighbours at several finer ones: no poison rate needed."""

from typing import Any

import numpy as np
from torch import Tensor

from hf_clipbd.detection.levels import Levels
from hf_clipbd.detection.neighbors import surrounding_scores
from hf_clipbd.detection.reference import Reference, check_k
from hf_clipbd.detection.rows import matrix


DEFAULT_M = 8192
LEVELS = (2, 8, 32)
"""Numbers of nearest reference rows that a row's coarse distance is averaged with."""


def multi_scale(
    features: Any,
    reference: Reference | None = None,
    k: int | None = None,
    m: int | None = None,
    seed: int = 0,
    normalize: bool = True,
) -> np.ndarray:
    """Return how sparse the surroundings of a row are, together with the rows nearest to it.

    c(x) = ln d(x), d the coarse distance: typically that to the nearest of 32 random reference rows, within which
    2.1 % of the reference lie. A poisoned group is denser than clean rows at a fine scale as soon as it is not tiny,
    which is where k-distance and SLOF fail, but sparse at the coarse one as long as it is under about 2 % of the set.
    The score is the largest of c_j(x), the mean of c over x and its j nearest reference rows, j = 2, 8 and 32, in
    units of what is usual (`Levels`): a group that is sparse as a whole stands out from rows that are so by chance,
    and a row that lies alone, which no backdoor is, counts for less.
    No neighbour's density is divided by, so a group beside a dense concept, in a set with much sparser ones, is
    missed: that is SLOF's case. Poison towards a frequent target may be missed too, and poisoned rows that the
    model did not learn: see `conditional_sparsity` and `disagreement`.

    Args:
        features: (N, D).
        reference: What rows are compared with; by default m rows of the features.
        k: Most neighbours that are averaged over, at least 1; 32 by default.
        m: Reference rows where none are given; min(8192, N) by default.
        seed: Seed of these.
        normalize: Scale embeddings to unit length.

    Returns:
        (N,), float64, in units of the reference's deviation; higher is more suspicious.

    Raises:
        ValueError: If k or m is out of range or the features are no finite matrix.

    Reference:
        Ours. The coarse distance is an estimate of Ramaswamy et al.'s k-distance (2000).
    """
    features = matrix(features)
    if reference is None:
        reference = Reference.sample(features, min(DEFAULT_M, len(features)) if m is None else m, seed, normalize)
    k = min(max(LEVELS), len(reference) - 1) if k is None else k
    check_k(k, reference)
    distances, positions = reference.surroundings_of_points(k)
    levels = Levels(distances.log(), positions, LEVELS)

    def score(distances: Tensor, positions: Tensor) -> Tensor:
        return levels(distances.log(), positions)

    return surrounding_scores(features, reference, k, score, "multi-scale")
