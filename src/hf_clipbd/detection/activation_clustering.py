# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Activation clustering: whether a row is in the smaller half when its class is split in two."""

from typing import Any

import numpy as np
from sklearn.cluster import KMeans

from hf_clipbd.detection.classes import N_CLUSTERS, SMALLEST, row_classes
from hf_clipbd.detection.moments import class_axes, projected
from hf_clipbd.detection.reference import Reference
from hf_clipbd.detection.rows import matrix


def activation_clustering(
    features: Any,
    reference: Reference | None = None,
    k: int | None = None,
    classes: Any = None,
    texts: Any = None,
    n_classes: int = N_CLUSTERS,
    components: int = 10,
    seed: int = 0,
) -> np.ndarray:
    """Return, for each row, how small its half of the class is, and how clearly the row belongs to it.

    Each class is projected on its first principal components and split by 2-means. With p the share of the row's half
    and a, b the distances to the centres of its own half and the other one, the score is (1 - p) (1 + (b - a) / (a +
    b)) / 2: rows of a small half that stands apart come first.

    The set is read in blocks, once or more for a covariance (D, D) for each class (`class_axes`) and once for the
    components. What 2-means needs at once is kept: 8 bytes times `components` for every row, and 2-means of one class
    after the other.

    Args:
        features: (N, D).
        reference: Rows that clusters of images are fitted to, where neither classes nor texts are given.
        k: Taken and not used, so that every detector is called alike.
        classes: (N,), class of each row, for instance zero-shot classes.
        texts: Caption embeddings of the same rows, (N, D), whose clusters are the classes where none are given.
        n_classes: Number of clusters.
        components: Principal components that are kept.
        seed: Seed of the clusterings.

    Returns:
        (N,), float64, in [0, 1), 0 in classes of fewer than ten rows; higher is more suspicious.

    Raises:
        ValueError: If there is not one class or text for each row, or the features are no finite matrix.

    Reference:
        Chen et al., "Detecting Backdoor Attacks on Deep Neural Networks by Activation Clustering", SafeAI 2019. The
        original calls a cluster poisoned by its relative size; the order within it and clusters of captions in place
        of classes are ours, and principal components replace independent ones.
    """
    features = matrix(features)
    found = row_classes(features, reference, classes, texts, n_classes, seed)
    kept = projected(features, found, class_axes(features, found, components))  # (N, components)
    scores = np.zeros(len(features))
    for one in np.unique(found):
        members = np.flatnonzero(found == one)
        if len(members) >= SMALLEST:
            scores[members] = _split(kept[members])
    return scores


def _split(kept: np.ndarray) -> np.ndarray:
    """Return the scores of one class from the principal components of its rows, (n, components)."""
    # The start is a function of the rows and not of their order: the two ends of the first component.
    ends = kept[[kept[:, 0].argmin(), kept[:, 0].argmax()]]
    model = KMeans(2, init=ends, n_init=1).fit(kept)
    distances = model.transform(kept)  # (n, 2)
    own, other = distances.min(axis=1), distances.max(axis=1)
    share = np.bincount(model.labels_, minlength=2)[model.labels_] / len(kept)
    return (1 - share) * (1 + (other - own) / np.maximum(own + other, 1e-12)) / 2
