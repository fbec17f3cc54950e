# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""CLIP score: how badly image and caption agree."""

from typing import Any

import numpy as np

from hf_clipbd.detection.reference import Reference


def clip_score(
    features: Any, reference: Reference | None = None, k: int | None = None, texts: Any = None
) -> np.ndarray:
    """Return 1 - cos(u, v) of each pair of image embedding u and caption embedding v.

    Args:
        features: Image embeddings, (N, D).
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
    images = np.asarray(features, dtype=np.float64)
    if texts is None or np.shape(texts) != images.shape or images.ndim != 2:
        got = None if texts is None else np.shape(texts)
        raise ValueError(f"Expected `texts` to hold a caption embedding for each of {images.shape}, but got {got}.")
    texts = np.asarray(texts, dtype=np.float64)
    if not (np.isfinite(images).all() and np.isfinite(texts).all()):
        raise ValueError("Expected finite embeddings, but got NaN or infinity.")
    lengths = np.linalg.norm(images, axis=1) * np.linalg.norm(texts, axis=1)
    return 1 - np.einsum("nd,nd->n", images, texts) / np.maximum(lengths, 1e-12)
