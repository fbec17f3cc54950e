# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Spectral signatures: how far a row lies along the direction in which its class varies most."""

from typing import Any

import numpy as np

from hf_clipbd.detection.classes import N_CLUSTERS, row_classes
from hf_clipbd.detection.moments import class_axes, projected
from hf_clipbd.detection.reference import Reference
from hf_clipbd.detection.rows import matrix


def spectral_signature(
    features: Any,
    reference: Reference | None = None,
    k: int | None = None,
    classes: Any = None,
    texts: Any = None,
    n_classes: int = N_CLUSTERS,
    seed: int = 0,
) -> np.ndarray:
    """Return the squared projection of each row on the top right singular vector v of its centred class.

    s(x) = (v . (x - mean of the class))^2, of rows of unit length. Meant for a class in which a few per cent of the
    rows are poisoned; a low poison rate spread over a large class moves v not at all.

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
        (N,), float64, from 0; higher is more suspicious.

    Raises:
        ValueError: If there is not one class or text for each row, or the features are no finite matrix.

    Reference:
        Tran, Li and Madry, "Spectral Signatures in Backdoor Attacks", NeurIPS 2018, algorithm 1. Image-text pairs have
        no classes; clusters of captions in their place are ours.
    """
    features = matrix(features)
    found = row_classes(features, reference, classes, texts, n_classes, seed)
    axes = class_axes(features, found, 1)  # the top right singular vector of each class, (C, 1, D)
    return np.square(projected(features, found, axes)[:, 0])
