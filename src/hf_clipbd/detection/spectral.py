# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Spectral signatures: how far a row lies along the direction in which its class varies most, beside the class."""

from typing import Any

import numpy as np

from hf_clipbd.detection.classes import N_CLUSTERS, SMALLEST, row_classes
from hf_clipbd.detection.moments import class_axes, projected
from hf_clipbd.detection.reference import Reference
from hf_clipbd.detection.rows import matrix


FLOOR = 1e-12
"""Medians below this one are taken for it: by rounding alone, rows of unit length differ by less than 1e-6."""


def spectral_signature(
    features: Any,
    reference: Reference | None = None,
    k: int | None = None,
    classes: Any = None,
    texts: Any = None,
    n_classes: int = N_CLUSTERS,
    seed: int = 0,
) -> np.ndarray:
    """Return the squared projection of each row on its class's top right singular vector v, over the class's median.

    s(x) = t(x) / median of t over the class of x, t(x) = (v . (x - mean of the class))^2, of rows of unit length.
    Within a class rows are in the order of t, so that its highest scores are what the original removes of it. Between
    classes, a row stands as high as it lies far out for its class, whether that is wide or narrow; unlike a mean, the
    median hardly knows of the poison. Meant for a class in which a few per cent of the rows are poisoned; a low poison
    rate spread over a large class moves v not at all.

    The set is read in blocks: once or more for v, an eigenvector of the covariance (D, D) of each class
    (`class_axes`), and once for the projections.

    Args:
        features: (N, D).
        reference: Rows that clusters of images are fitted to, where neither classes nor texts are given.
        k: Taken and not used, so that every detector is called alike.
        classes: (N,), class of each row, for instance zero-shot classes.
        texts: Caption embeddings of the same rows, (N, D), whose clusters are the classes where none are given.
        n_classes: Number of clusters.
        seed: Seed of the clustering.

    Returns:
        (N,), float64, from 0, 1 for the middle row of a class, 0 in classes of fewer than ten rows; higher is more
        suspicious.

    Raises:
        ValueError: If there is not one class or text for each row, or the features are no finite matrix.

    Reference:
        Tran, Li and Madry, "Spectral Signatures in Backdoor Attacks", NeurIPS 2018, algorithm 1, which removes one
        share of every class, the rows of the highest t. Ours are the division by the class's median, which makes
        one list of all classes, the 0 of small classes, rows of unit length, and clusters of captions for classes.
    """
    features = matrix(features)
    found = row_classes(features, reference, classes, texts, n_classes, seed)
    axes = class_axes(features, found, 1)  # the top right singular vector of each class, (C, 1, D)
    squares = np.square(projected(features, found, axes)[:, 0])
    scores = np.zeros(len(features))
    for one in np.unique(found):
        members = np.flatnonzero(found == one)
        if len(members) >= SMALLEST:
            scores[members] = squares[members] / max(np.median(squares[members]), FLOOR)
    return scores
