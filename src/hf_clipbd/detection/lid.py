# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""LID: how many dimensions a row's neighbourhood seems to have."""

from typing import Any

import numpy as np
from torch import Tensor

from hf_clipbd.detection.neighbors import neighbor_scores, prepared
from hf_clipbd.detection.reference import Reference


MAXIMUM = 1000.0
"""Largest dimension reported: k neighbours at one distance have no finite one."""


def local_intrinsic_dimension(distances: Tensor) -> Tensor:
    """Return the maximum-likelihood estimate LID = -k / sum over i <= k of ln(d_i / d_k), at most 1000.

    Args:
        distances: (B, k), ascending, above 0, k at least 2.

    Returns:
        (B,), same type.

    Raises:
        ValueError: If k is under 2.

    Reference:
        Amsaleg et al., "Estimating Local Intrinsic Dimensionality", KDD 2015, equation 9. The row itself is never
        among the k, so no distance of zero enters, as it does in the public code.
    """
    if distances.shape[1] < 2:
        raise ValueError(f"Expected at least 2 neighbours to estimate a dimension from, but got {distances.shape[1]}.")
    mean_log = (distances / distances[:, -1:]).log().mean(1)
    return 1 / (-mean_log).clamp_min(1 / MAXIMUM)


def lid(features: Any, reference: Reference | None = None, k: int | None = None) -> np.ndarray:
    """Return the local intrinsic dimension of each row among its k nearest reference rows.

    Args:
        features: (N, D).
        reference: What rows are compared with; a random sample of the features by default.
        k: Number of neighbours, at least 2; 0.4 % of the reference by default.

    Returns:
        (N,), float64, dimensions in (0, 1000]; higher is more suspicious.

    Raises:
        ValueError: If k is out of range or the features are no finite matrix.

    Reference:
        Amsaleg et al., KDD 2015; as a detector in Huang et al., ICLR 2025 (arXiv 2502.01385).
    """
    reference, k = prepared(features, reference, k)
    return neighbor_scores(features, reference, k, lambda distances, _: local_intrinsic_dimension(distances), "LID")
