# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""k-distance: how far the k-th neighbour is."""

from typing import Any, Literal

import numpy as np

from hf_clipbd.detection.neighbors import neighbor_scores, prepared
from hf_clipbd.detection.reference import Reference


def k_distance(
    features: Any,
    reference: Reference | None = None,
    k: int | None = None,
    average: Literal["last", "mean"] = "last",
) -> np.ndarray:
    """Return the k-distance d_k(x) of each row, or the mean of d_1(x) .. d_k(x).

    Args:
        features: (N, D).
        reference: What rows are compared with; a random sample of the features by default.
        k: Number of neighbours; 0.4 % of the reference by default.
        average: `"last"` for d_k, `"mean"` for the mean of the k distances.

    Returns:
        (N,), float64, distances; higher is more suspicious.

    Raises:
        ValueError: If k is out of range, `average` is unknown or the features are no finite matrix.

    Reference:
        Ramaswamy et al., "Efficient Algorithms for Mining Outliers from Large Data Sets", 2000; used on CLIP
        embeddings by Huang et al., "Detecting Backdoor Samples in Contrastive Language Image Pretraining", ICLR 2025.
        Distances are to a fixed reference, not to the rest of a batch.

    Example:
        >>> ring = [[np.cos(t), np.sin(t)] for t in np.linspace(0, 1, 9)]
        >>> int(k_distance(np.array([*ring, [-1.0, 0.0]]), k=2).argmax())
        9
    """
    if average not in ("last", "mean"):
        raise ValueError(f'Expected average "last" or "mean", but got {average!r}.')
    reference, k = prepared(features, reference, k)

    def score(distances, positions):
        return distances[:, -1] if average == "last" else distances.mean(1)

    return neighbor_scores(features, reference, k, score, "k-distance")
