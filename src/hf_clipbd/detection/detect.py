# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The table of detectors, and the one call that scores a set with a random reference."""

from typing import Any

import numpy as np

from hf_clipbd.detection.clip_score import clip_score
from hf_clipbd.detection.dao import dao
from hf_clipbd.detection.isolation_forest import isolation_forest
from hf_clipbd.detection.k_distance import k_distance
from hf_clipbd.detection.lid import lid
from hf_clipbd.detection.lof import lof
from hf_clipbd.detection.neighbors import Reference
from hf_clipbd.detection.slof import slof


DETECTORS = {
    "k_distance": k_distance,
    "slof": slof,
    "lof": lof,
    "lid": lid,
    "dao": dao,
    "isolation_forest": isolation_forest,
    "clip_score": clip_score,
}
"""Name -> `detector(features, reference=None, k=None, ...) -> scores (N,)`, float64, higher is more suspicious."""


def detect(
    features: Any,
    detector: str = "slof",
    m: int | None = None,
    k: int | None = None,
    seed: int = 0,
    normalize: bool = True,
    **options: Any,
) -> np.ndarray:
    """Return a score for each row of `features`, compared with m of them drawn at random.

    Poison is found as long as its rows are no neighbourhood of their own in the reference: with the defaults
    (m = 16384 or all rows of a smaller set, k = 0.4 % of m) up to a poison rate of about 0.1 %. For heavier poison
    lower m or raise k, so that rate * m stays under k / 4; from about 1 % these detectors fail.

    Args:
        features: Image embeddings of the searched set in the suspected model, (N, D).
        detector: A key of `DETECTORS`.
        m: Reference rows; min(16384, N) by default.
        k: Neighbours; `default_k(m)` by default.
        seed: Seed of the reference.
        normalize: Scale embeddings to unit length.
        **options: What the detector takes besides, for instance `texts` for the CLIP score.

    Returns:
        (N,), float64, finite; higher is more suspicious.

    Raises:
        ValueError: If the detector is unknown, m or k out of range, or the features are no finite matrix.

    Reference:
        Huang et al., ICLR 2025 (arXiv 2502.01385) compare rows with the rest of their batch; a fixed random reference
        makes a score independent of which rows share its batch.
    """
    if detector not in DETECTORS:
        raise ValueError(f"Expected a detector out of {sorted(DETECTORS)}, but got {detector!r}.")
    reference = Reference.sample(features, m, seed, normalize)
    return DETECTORS[detector](features, reference, k, **options)
