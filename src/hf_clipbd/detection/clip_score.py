# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""CLIP score: how badly image and caption agree."""

from typing import Any

import numpy as np

from hf_clipbd.detection.reference import Reference
from hf_clipbd.detection.rows import matrix, row_blocks


def clip_score(
    features: Any, reference: Reference | None = None, k: int | None = None, texts: Any = None
) -> np.ndarray:
    """Return 1 - cos(u, v) of each pair of image embedding u and caption embedding v.

    Args:
        features: Image embeddings, (N, D); of a memory map only a block is read at a time.
        reference: Taken and not used, so that every detector is called alike.
        k: Likewise.
        texts: Caption embeddings of the same rows, (N, D).

    Returns:
        (N,), float64, in [0, 2]; higher is more suspicious. In the victim's own space poisoned pairs often agree
        *better* than clean ones, and this detector then ranks them last.

    Raises:
        ValueError: If `texts` is missing or has another shape than the features, or a value is not finite.

    Reference:
        Hessel et al., "CLIPScore", EMNLP 2021, without its scaling; as a detector in Huang et al., ICLR 2025.

    Example:
        >>> clip_score(np.array([[2.0, 0.0], [0.0, 3.0]]), texts=np.array([[1.0, 0.0], [0.0, -1.0]])).tolist()
        [0.0, 2.0]
    """
    images, said = matrix(features), None if texts is None else matrix(texts)
    if said is None or said.shape != images.shape:
        got = None if said is None else said.shape
        raise ValueError(f"Expected `texts` to hold a caption embedding for each of {images.shape}, but got {got}.")
    scores = np.empty(len(images))
    for (rows, u), (_, v) in zip(*(row_blocks(one, dtype=np.float64) for one in (images, said)), strict=True):
        lengths = np.linalg.norm(u, axis=1) * np.linalg.norm(v, axis=1)
        scores[rows] = 1 - np.einsum("nd,nd->n", u, v) / np.maximum(lengths, 1e-12)
    return scores
