# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""How much further a row's neighbourhood spreads than those of its neighbours: what LOF and SLOF have in common."""

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from hf_clipbd.detection.nearest import Neighbors
from hf_clipbd.detection.neighbors import Score, neighbor_scores, prepared
from hf_clipbd.detection.reference import FLOOR, Reference


def density_ratio(
    features: Any,
    reference: Reference | None,
    k: int | None,
    spread_in: Callable[[Neighbors], Score],
    desc: str,
) -> np.ndarray:
    """Return, for each row x, s(x) times the mean over o in N_k(x) of 1 / s(o), for a measure s of spread.

    Args:
        features: (N, D).
        reference: What rows are compared with; a random sample of the features by default.
        k: Number of neighbours; 0.4 % of the reference by default.
        spread_in: From the reference's own neighbours, distances (m, k) at least `FLOOR`, to the measure: distances
            (B, k) and positions (B, k) to s (B,), above 0.
        desc: Label of the progress bar.

    Returns:
        (N,), float64, about 1 inside a region of even density; higher is more suspicious.

    Raises:
        ValueError: If k is out of range or the features are no finite matrix.
    """
    reference, k = prepared(features, reference, k)
    table = reference.table(k)
    table = Neighbors(table.distances.double().clamp_min(FLOOR), table.positions)
    spread = spread_in(table)
    inverse = 1 / spread(*table)  # (m,)

    def score(distances: Tensor, positions: Tensor) -> Tensor:
        return spread(distances, positions) * inverse[positions].mean(1)

    return neighbor_scores(features, reference, k, score, desc)
