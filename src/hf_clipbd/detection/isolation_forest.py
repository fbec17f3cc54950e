# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Isolation forest: how few random cuts set a row apart."""

from typing import Any

import numpy as np
from sklearn.ensemble import IsolationForest

from hf_clipbd.detection.reference import Reference
from hf_clipbd.detection.rows import matrix, row_blocks


def isolation_forest(
    features: Any, reference: Reference | None = None, k: int | None = None, trees: int = 100, seed: int = 0
) -> np.ndarray:
    """Return the isolation score of each row: 2 ** (-E(depth) / c), the depth over trees grown on the reference.

    Args:
        features: (N, D).
        reference: Rows the trees are grown on; a random sample of the features by default.
        k: Taken and not used, so that every detector is called alike.
        trees: Number of trees.
        seed: Seed of the trees.

    Returns:
        (N,), float64, in (0, 1]; higher is more suspicious.

    Raises:
        ValueError: If the features are no finite matrix.

    Reference:
        Liu, Ting and Zhou, "Isolation Forest", 2008, equation 2; scikit-learn's forest with the sign of the paper (its
        own `score_samples` is the negative, which the public code mends by the detector's name).
    """
    reference = Reference.sample(features) if reference is None else reference
    forest = IsolationForest(n_estimators=trees, random_state=seed).fit(reference.points.cpu().numpy())
    features = matrix(features)
    mine = reference.share(len(features))
    scores = np.empty(mine.stop - mine.start)
    for rows, block in row_blocks(features[mine], first=mine.start):
        scores[rows] = -forest.score_samples(reference.place(block).cpu().numpy())
    return reference.gathered(scores)
