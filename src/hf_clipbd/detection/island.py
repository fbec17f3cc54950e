# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The island test: whether a row's neighbours end abruptly, as those of a small group apart from everything do."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_clipbd.detection.neighbors import neighbor_scores, prepared
from hf_clipbd.detection.reference import Reference


FIRST = 3
"""Fewest neighbours before a gap: two or three rows that happen to lie together are no group."""


def widest_gap(distances: Tensor) -> Tensor:
    """Return max over `FIRST` <= i < k of i ln(d_(i+1) / d_i).

    Where rows are evenly spread in D dimensions each term is exponential with mean 1/D, whatever the density, so that
    gaps at different i can be compared.

    Args:
        distances: (B, k), ascending, above 0, k more than `FIRST`.

    Returns:
        (B,), same type, from 0.
    """
    order = torch.arange(FIRST, distances.shape[1], device=distances.device)
    return (order * (distances[:, FIRST:] / distances[:, FIRST - 1 : -1]).log()).amax(1)


def island(features: Any, reference: Reference | None = None, k: int | None = None) -> np.ndarray:
    """Return the widest gap between the sorted distances of a row to its k nearest reference rows.

    A group of g poisoned rows in the reference, each other's nearest, shows as a jump from d_(g-1) to d_g. Groups of
    4 to k - 1 rows are seen, so k has to be over rate * m; small legitimate concepts are islands too, and rows that
    lie alone are not, which is what the other detectors find. It takes one reference, where nested ones of several
    sizes would see groups of any size at one k.

    Args:
        features: (N, D).
        reference: What rows are compared with; a random sample of the features by default.
        k: Number of neighbours, at least 4; 0.4 % of the reference by default.

    Returns:
        (N,), float64, i times a logarithm of distances; higher is more suspicious.

    Raises:
        ValueError: If k is out of range or the features are no finite matrix.

    Reference:
        Ours.

    Example:
        >>> far = np.array([[1, 0.01 * i, 0] for i in range(6)] + [[0.1 * i * i, 1, 0.5 * i] for i in range(9)])
        >>> bool(island(far, k=8)[:6].min() > island(far, k=8)[6:].max())
        True
    """
    reference, k = prepared(features, reference, k)
    if k <= FIRST:
        raise ValueError(f"Expected k of at least {FIRST + 1} for a gap after {FIRST} neighbours, but got {k}.")
    return neighbor_scores(features, reference, k, lambda distances, _: widest_gap(distances), "island")
