# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""LOF: the density of a row's neighbours in units of its own."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_clipbd.detection.neighbors import FLOOR, Reference, neighbor_scores, prepared


def lof(features: Any, reference: Reference | None = None, k: int | None = None) -> np.ndarray:
    """Return the local outlier factor of each row: mean over o in N_k(x) of lrd(o) / lrd(x).

    lrd(x) = 1 / mean over o in N_k(x) of max(d_k(o), d(x, o)) is the local reachability density.

    Args:
        features: (N, D).
        reference: What rows are compared with; a random sample of the features by default.
        k: Number of neighbours; 0.4 % of the reference by default.

    Returns:
        (N,), float64, about 1 inside a region of even density; higher is more suspicious.

    Raises:
        ValueError: If k is out of range or the features are no finite matrix.

    Reference:
        Breunig et al., "LOF: Identifying Density-Based Local Outliers", 2000, definitions 5 to 7. With the searched
        set as its own reference (`Reference.of(features)`) it is scikit-learn's `LocalOutlierFactor`.
    """
    reference, k = prepared(features, reference, k)
    table = reference.table(k)
    k_distance = table.distances[:, -1].double().clamp_min(FLOOR)  # (m,)

    def reachability(distances: Tensor, positions: Tensor) -> Tensor:
        return torch.maximum(k_distance[positions], distances).mean(1)

    density = 1 / reachability(table.distances.double(), table.positions)  # (m,)

    def score(distances, positions):
        return density[positions].mean(1) * reachability(distances, positions)

    return neighbor_scores(features, reference, k, score, "LOF")
