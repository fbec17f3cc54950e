# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Spectral signatures: how far a row lies along the direction in which its class varies most."""

from typing import Any

import numpy as np

from hf_clipbd.detection.classes import N_CLUSTERS, row_classes, unit_rows
from hf_clipbd.detection.reference import Reference


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
    rows = unit_rows(features).astype(np.float64)
    found = row_classes(features, reference, classes, texts, n_classes, seed)
    scores = np.zeros(len(rows))
    for one in np.unique(found):
        members = np.flatnonzero(found == one)
        centred = rows[members] - rows[members].mean(axis=0)
        top = np.linalg.eigh(centred.T @ centred)[1][:, -1]  # the top right singular vector, (D,)
        scores[members] = np.square(centred @ top)
    return scores
