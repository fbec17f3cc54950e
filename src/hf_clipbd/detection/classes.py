# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Classes for detectors that search one class after the other: given ones, or clusters of captions or of images."""

from typing import Any

import numpy as np
from sklearn.cluster import MiniBatchKMeans

from hf_clipbd.detection.moments import BLOCK, unit_blocks
from hf_clipbd.detection.reference import Reference
from hf_clipbd.detection.rows import matrix, row_blocks


N_CLUSTERS = 50
SMALLEST = 10
"""Rows of a class below which nothing is said about its shape."""
MOST_FITTED = 65536
"""Rows that clusters are fitted to; of a larger set a random part."""


def row_classes(
    features: Any,
    reference: Reference | None,
    classes: Any = None,
    texts: Any = None,
    n_classes: int = N_CLUSTERS,
    seed: int = 0,
) -> np.ndarray:
    """Return a class for each row: the given one, else a cluster of its caption, else one of its image.

    At most 65,536 rows are fitted to, so that the memory that clusters take does not grow with the set.

    Args:
        features: Image embeddings, (N, D).
        reference: Where neither classes nor texts are given: the rows that the clusters are fitted to, which makes
            them independent of the order of the searched rows; the features by default.
        classes: (N,), for instance zero-shot classes.
        texts: Caption embeddings of the same rows, (N, D).
        n_classes: Number of clusters, at most one for each ten rows that they are fitted to.
        seed: Seed of the clustering.

    Returns:
        (N,), int64, from 0.

    Raises:
        ValueError: If there is not one class or text for each row.
    """
    n = len(matrix(features))
    for name, given in (("classes", classes), ("texts", texts)):
        if given is not None and len(given) != n:
            raise ValueError(f"Expected `{name}` to hold one for each of {n} rows, but got {len(given)}.")
    if classes is not None:
        return np.unique(np.asarray(classes), return_inverse=True)[1].astype(np.int64)
    if texts is not None or reference is None:
        searched = features if texts is None else texts
        chosen = (
            np.arange(n)
            if n <= MOST_FITTED
            else np.sort(np.random.default_rng([seed, n]).permutation(n)[:MOST_FITTED])
        )
        fitted = np.concatenate([block for _, block in unit_blocks(matrix(searched)[chosen])])
        blocks = unit_blocks(searched)
    else:
        fitted = reference.points.cpu().numpy()
        blocks = ((rows, reference.place(block).cpu().numpy()) for rows, block in row_blocks(features, BLOCK))
    clusters = max(1, min(n_classes, len(fitted) // SMALLEST))
    model = MiniBatchKMeans(clusters, random_state=seed, batch_size=4096, n_init=3).fit(fitted)
    found = np.empty(n, dtype=np.int64)
    for rows, block in blocks:
        found[rows] = model.predict(np.ascontiguousarray(block, dtype=fitted.dtype))
    return found
