# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""LOF: the density of a row's neighbours in units of its own."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_clipbd.detection.density import density_ratio
from hf_clipbd.detection.nearest import Neighbors
from hf_clipbd.detection.neighbors import Score
from hf_clipbd.detection.reference import Reference


def _reachability(table: Neighbors) -> Score:
    k_distance = table.distances[:, -1]  # (m,)

    def spread(distances: Tensor, positions: Tensor) -> Tensor:
        return torch.maximum(k_distance[positions], distances).mean(1)

    return spread


def lof(features: Any, reference: Reference | None = None, k: int | None = None) -> np.ndarray:
    """Return the local outlier factor of each row: mean over o in N_k(x) of lrd(o) / lrd(x).

    lrd(x) = 1 / mean over o in N_k(x) of max(d_k(o), d(x, o)) is the local reachability density. Arguments, result and
    errors are those of `density_ratio` with 1 / lrd as the spread.

    Reference:
        Breunig et al., "LOF: Identifying Density-Based Local Outliers", 2000, definitions 5 to 7. With the searched
        set as its own reference (`Reference.of(features)`) it is scikit-learn's `LocalOutlierFactor`.
    """
    return density_ratio(features, reference, k, _reachability, "LOF")
