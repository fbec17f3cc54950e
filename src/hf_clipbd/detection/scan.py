# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Incoming images at test time, scored against a reference set in one call."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from hf_clipbd.detection.detect import DETECTORS, WITHOUT_REFERENCE, check_detector
from hf_clipbd.detection.reference import Reference


UNSUITED = (*WITHOUT_REFERENCE, "spectral_signature", "activation_clustering", "conditional_sparsity", "combined")
"""Detectors that compare rows with no reference, or need captions, which an incoming image has none of."""

DEFAULT_SCAN = "slof"
"""The default of a scan by image embeddings alone."""


class Scan(NamedTuple):
    """What a scan says of B incoming images.

    Args:
        scores: (B,), float64; higher is more suspicious.
        exceeded: (B,), the share of reference rows that score at least as high among the others of the reference, in
            [0, 1]: how many clean images a threshold at this score would flag, if the reference is clean.
    """

    scores: np.ndarray
    exceeded: np.ndarray


def check_scan(detector: str) -> Callable[..., np.ndarray]:
    """Return the detector of that name, or raise `ValueError` if it is unknown or cannot score images alone."""
    function = check_detector(detector)
    if detector in UNSUITED:
        raise ValueError(
            f"Expected a detector that compares rows with a reference by their images alone, but got {detector!r}. "
            f"Choose one of {sorted(set(DETECTORS) - set(UNSUITED))}."
        )
    return function


def scan(
    features: Any,
    reference: Any,
    detector: str | None = None,
    k: int | None = None,
    normalize: bool = True,
    others: Any = None,
    reference_others: Any = None,
) -> Scan:
    """Return how suspicious incoming images are, and how rare as suspicious ones are in the reference set.

    No incoming image is compared with another one, so that a score depends on the image and the reference alone.

    Args:
        features: Incoming images' embeddings in the suspected model, (B, D).
        reference: Embeddings of the reference set, (M, D), all rows of which are used: clean images of the kind that
            is expected, or a random part of the training set if its poison is rare.
        detector: A key of `DETECTORS` that compares images alone with a reference. By default `disagreement` with
            `others`, which finds stamped images against a clean reference and a poisoned one, else `slof`, which needs
            a clean one: against a training set with 1 % of poison, stamped images lie among their like.
        k: Number of neighbours; the detector's own number by default.
        normalize: Scale embeddings to unit length.
        others: The incoming images in a second space, (B, D2), for `disagreement`.
        reference_others: The reference set there, (M, D2).

    Returns:
        `scores` and `exceeded`; `exceeded <= 0.01` flags about 1 % of clean images.

    Raises:
        ValueError: If the detector is unknown or cannot be used so, or as it does.

    Example:
        >>> reference = np.random.default_rng(0).normal(size=(500, 3)) + [9, 0, 0]
        >>> found = scan(np.array([[9.0, 0.0, 0.0], [0.0, -9.0, 0.0]]), reference)
        >>> (found.exceeded < 0.01).tolist()
        [False, True]
    """
    detector = detector or (DEFAULT_SCAN if others is None else "disagreement")
    function = check_scan(detector)
    points = Reference.of(reference, normalize)
    second = {"reference_others": reference_others}
    own = {"others": reference_others, **second} if detector == "disagreement" else {}
    incoming = {"others": others, **second} if detector == "disagreement" else {}
    usual = np.sort(function(reference, points, k, **own))
    scores = function(features, points, k, **incoming)
    exceeded = 1 - np.searchsorted(usual, scores, side="left") / len(usual)
    return Scan(scores, exceeded)
