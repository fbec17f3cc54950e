# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""SLOF: the k-distance of a row in units of its neighbours' k-distances."""

from typing import Any

import numpy as np

from hf_clipbd.detection.density import density_ratio
from hf_clipbd.detection.reference import Reference


def slof(features: Any, reference: Reference | None = None, k: int | None = None) -> np.ndarray:
    """Return the simplified local outlier factor of each row: mean over o in N_k(x) of d_k(x) / d_k(o).

    Arguments, result and errors are those of `density_ratio` with the k-distance as the spread.

    Reference:
        Schubert, Zimek and Kriegel, "Local outlier detection reconsidered", 2014; used on CLIP embeddings by Huang et
        al., ICLR 2025 (arXiv 2502.01385). Follows the formula: the public code looks half of the neighbours up under
        a shifted number and sets d_(k+1) against d_k.

    Example:
        >>> ring = [[np.cos(t), np.sin(t)] for t in np.linspace(0, 1, 9)]
        >>> int(slof(np.array([*ring, [-1.0, 0.0]]), k=2).argmax())
        9
    """
    return density_ratio(features, reference, k, lambda table: lambda distances, positions: distances[:, -1], "SLOF")
