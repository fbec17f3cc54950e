# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The arithmetic of the public code beside Huang et al., ICLR 2025, with its faults, for comparison alone.

Written from a description of that code. Each batch of a fixed random partition is its own reference set, and

- the neighbours of row i are looked up in a matrix whose i-th column was taken out, but their k-distances in one that
  has all columns: from i on every number names the row before the one that is meant (SLOF, DAO);
- a row's d_(k+1) is set against its neighbours' d_k (SLOF, DAO);
- the dimension LID(o) of a neighbour counts the zero distance of o to itself (DAO);
- 1e-4 is added inside the logarithm of the dimension in place of a floor (DAO, LID);
- what is not a number, as between duplicates, becomes 1000;
- embeddings are taken as they are, without scaling to unit length;
- a last batch of fewer than k + 2 rows is an error.

With `texts`, captions are candidates beside the images, a row's own caption among them.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_clipbd.detection.rows import matrix


PUBLISHED = ("k_distance", "slof", "dao", "lid")
SENTINEL = 1000.0
IN_LOGARITHM = 1e-4


def huang2025(
    features: Any, detector: str = "slof", k: int = 16, texts: Any = None, batch_size: int = 2048, seed: int = 0
) -> np.ndarray:
    """Return the scores of the published batch loop.

    Args:
        features: (N, D), taken as they are.
        detector: One of `PUBLISHED`.
        k: Number of neighbours.
        texts: Caption embeddings of the same rows, (N, D), candidates too where given.
        batch_size: Rows that are compared with each other: in the paper, those of all processes together.
        seed: Seed of the partition.

    Returns:
        (N,), float64; higher is more suspicious. A row's score depends on the rows that share its batch.

    Raises:
        ValueError: If the detector is none of these, there is not one text a row, or the last batch has fewer than
            k + 2 rows, where the public code crashes.

    Reference:
        Huang et al., "Detecting Backdoor Samples in Contrastive Language Image Pretraining", ICLR 2025 (arXiv
        2502.01385); reconstructed.
    """
    if detector not in PUBLISHED:
        raise ValueError(f"Expected a detector out of {PUBLISHED} for compat='huang2025', but got {detector!r}.")
    features = matrix(features)
    n = len(features)
    if texts is not None and np.shape(texts) != features.shape:
        raise ValueError(f"Expected a caption embedding for each of {features.shape}, but got {np.shape(texts)}.")
    last = n % batch_size or batch_size
    if last < k + 2:
        raise ValueError(
            f"Expected at least k + 2 = {k + 2} rows in the last batch, but {n} rows in batches of {batch_size} leave "
            f"{last}. Give another `batch_size`."
        )
    scores = np.empty(n)
    order = np.random.default_rng([seed, n]).permutation(n)
    for start in range(0, n, batch_size):
        rows = order[start : start + batch_size]
        images = torch.from_numpy(np.array(features[rows], dtype=np.float64))
        captions = images[:0] if texts is None else torch.from_numpy(np.array(texts[rows], dtype=np.float64))
        scores[rows] = batch_scores(torch.cat([images, captions]), len(images), detector, k).numpy()
    return scores


def batch_scores(candidates: Tensor, n_images: int, detector: str, k: int) -> Tensor:
    """Return the published scores of one batch.

    Args:
        candidates: Images of the batch, then their captions where these count, (C, D), floating point.
        n_images: How many of them, the first ones, are images.
        detector: One of `PUBLISHED`.
        k: Number of neighbours, under C - 1.

    Returns:
        (n_images,), of the candidates' type; what is not a finite number is `SENTINEL`.
    """
    distances = torch.cdist(candidates, candidates, compute_mode="donot_use_mm_for_euclid_dist")
    others = ~torch.eye(len(candidates), dtype=torch.bool)
    without_self = distances[others].view(len(candidates), -1)  # (C, C - 1)
    near = without_self[:n_images].topk(k + 1, dim=1, largest=False)
    if detector == "k_distance":
        scores = near.values[:, k - 1]
    elif detector == "lid":
        scores = _dimension(near.values[:, :k])
    else:
        with_self = distances.topk(k + 1, dim=1, largest=False).values  # (C, k + 1): 0, d_1 .. d_k
        shifted = near.indices[:, :k]  # columns of `without_self`, taken for rows
        ratios = near.values[:, k:] / with_self[:, -1][shifted]  # d_(k+1)(x) / d_k of some row
        scores = (ratios if detector == "slof" else ratios ** _dimension(with_self)[shifted]).mean(1)
    return scores.nan_to_num(nan=SENTINEL, posinf=SENTINEL)


def _dimension(distances: Tensor) -> Tensor:
    return -1 / (distances / distances[:, -1:] + IN_LOGARITHM).log().mean(1)
