# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Sparsity at a coarse scale, averaged over the nearest neighbours at several finer ones: no poison rate needed."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_clipbd.detection.neighbors import (
    DEFAULT_M,
    FLOOR,
    Reference,
    check_k,
    default_k,
    neighbor_scores,
    nested_scores,
)
from hf_clipbd.detection.rows import matrix


COARSE_SHARE = 1 / 32
"""Share of the reference within the coarse distance: groups of up to about half of it are sparse there."""
LEVELS = (4, 16)
"""Numbers of neighbours that coarse sparsity is averaged over, besides the row alone."""


def multi_scale(
    features: Any,
    reference: Reference | None = None,
    k: int | None = None,
    m: int | None = None,
    seed: int = 0,
    normalize: bool = True,
) -> np.ndarray:
    """Return how sparse a row's surroundings are, together with the rows nearest to it.

    With c(x) = ln d(x) and d the distance within which a 32nd of the reference lies, let c_j(x) be the mean of c over
    x and its j nearest reference rows. Each c_j is centred and scaled by its median and median deviation over the
    reference; the score is their mean over j = 0, 4 and 16. A poisoned group is denser than clean rows at a fine scale
    as soon as it is not tiny, which is where k-distance and SLOF fail, but sparse at the coarse one as long as it is
    under about 2 % of the set; a group that is sparse as a whole stands out from rows that are so by chance. No
    neighbour's density is divided by, so a group beside a dense concept, in a set with much sparser ones, is missed:
    that is SLOF's case. Poison towards a frequent target is missed too: see `disagreement`.

    Args:
        features: (N, D).
        reference: What rows are compared with at both scales; by default m rows of the features for the neighbours
            and a quarter of these for the coarse distance, in one pass.
        k: Most neighbours that are averaged over, at least 1; 16 by default.
        m: Reference rows where none are given; min(16384, N) by default.
        seed: Seed of these.
        normalize: Scale embeddings to unit length.

    Returns:
        (N,), float64, in units of the reference's deviation; higher is more suspicious.

    Raises:
        ValueError: If k or m is out of range or the features are no finite matrix.

    Reference:
        Ours. The coarse distance is Ramaswamy et al.'s k-distance (2000).
    """
    if reference is None:
        fine, coarse, k, wide = _two_references(matrix(features), m, k, seed, normalize)
        at_points = neighbor_scores(matrix(features)[fine.rows], coarse, wide, _log_distance, "coarse scale")
    else:
        fine, wide = reference, max(2, round(len(reference) * COARSE_SHARE))
        k = min(max(LEVELS), len(fine) - 1) if k is None else k
        check_k(k, fine)
        at_points = reference.table(wide).distances[:, -1].double().clamp_min(FLOOR).log().cpu().numpy()
    at_points = torch.from_numpy(at_points).to(fine.points.device)
    own_weight, neighbor_weights, offset = _weights(at_points, fine.table(k).positions)

    def group(_: Tensor, positions: Tensor) -> Tensor:
        return at_points[positions] @ neighbor_weights

    if reference is None:
        around, alone = nested_scores(features, [fine, coarse], [group, _log_distance], "multi-scale")
    else:
        around = neighbor_scores(features, fine, k, group, "neighbours")
        alone = neighbor_scores(features, reference, wide, _log_distance, "coarse scale")
    return own_weight * alone + around - offset


def _log_distance(distances: Tensor, _: Tensor) -> Tensor:
    return distances[:, -1].log()


def _two_references(
    features: np.ndarray, m: int | None, k: int | None, seed: int, normalize: bool
) -> tuple[Reference, Reference, int, int]:
    """Return the reference of neighbours and that of the coarse distance, and the number looked at in each."""
    m = min(DEFAULT_M, len(features)) if m is None else m
    small = m if m < 256 else m // 4
    k = min(max(LEVELS), m - 1) if k is None else k
    wide = max(2, default_k(small), round(small * COARSE_SHARE))
    fine, coarse = Reference.nested(features, [(m, k), (small, wide)], seed, normalize)
    return fine, coarse, k, wide


def _weights(at_points: Tensor, positions: Tensor) -> tuple[float, Tensor, float]:
    """Return a, b and c so that the score is a c(x) + sum over i of b_i c(o_i) - c, o_i the i-th neighbour.

    Args:
        at_points: c of each reference row, (m,).
        positions: Neighbours of each, (m, k).
    """
    k = positions.shape[1]
    levels = [0, *(level for level in LEVELS if level < k), k]
    near = torch.cat([at_points[:, None], at_points[positions]], 1).cumsum(1)  # (m, 1 + k)
    weights, offset = at_points.new_zeros(1 + k), 0.0
    for level in levels:
        mean = near[:, level] / (level + 1)
        median = mean.median()
        deviation = (1.4826 * (mean - median).abs().median()).clamp_min(1e-6)
        weights[: level + 1] += 1 / (level + 1) / deviation / len(levels)
        offset += float(median / deviation) / len(levels)
    return float(weights[0]), weights[1:], offset
