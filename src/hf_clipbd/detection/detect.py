# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The table of detectors, and the one call that scores a set with a random reference."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from hf_clipbd.detection.activation_clustering import activation_clustering
from hf_clipbd.detection.clip_score import clip_score
from hf_clipbd.detection.compat_huang2025 import huang2025
from hf_clipbd.detection.conditional_sparsity import conditional_sparsity
from hf_clipbd.detection.dao import dao
from hf_clipbd.detection.disagreement import disagreement
from hf_clipbd.detection.island import island
from hf_clipbd.detection.isolation_forest import isolation_forest
from hf_clipbd.detection.k_distance import k_distance
from hf_clipbd.detection.lid import lid
from hf_clipbd.detection.lof import lof
from hf_clipbd.detection.multi_scale import DEFAULT_M as MULTI_SCALE_M
from hf_clipbd.detection.multi_scale import multi_scale
from hf_clipbd.detection.reference import Reference
from hf_clipbd.detection.shared import Shared
from hf_clipbd.detection.slof import slof
from hf_clipbd.detection.spectral import spectral_signature


DETECTORS: dict[str, Callable[..., np.ndarray]] = {
    "multi_scale": multi_scale,
    "conditional_sparsity": conditional_sparsity,
    "disagreement": disagreement,
    "k_distance": k_distance,
    "slof": slof,
    "lof": lof,
    "lid": lid,
    "dao": dao,
    "island": island,
    "isolation_forest": isolation_forest,
    "spectral_signature": spectral_signature,
    "activation_clustering": activation_clustering,
    "clip_score": clip_score,
}
"""Name -> `detector(features, reference=None, k=None, ...) -> scores (N,)`, float64, higher is more suspicious."""

ALIGNED: dict[str, tuple[str, ...]] = {
    "conditional_sparsity": ("texts",),
    "disagreement": ("others", "texts"),
    "spectral_signature": ("texts",),
    "activation_clustering": ("texts",),
    "clip_score": ("texts",),
}
"""Name -> keywords of that detector which have a row for each of the features."""


DEFAULT = "multi_scale"
DEFAULT_WITH_TEXTS = "conditional_sparsity"
"""The default detector of image embeddings alone, and with those of the captions."""


def check_detector(name: str) -> Callable[..., np.ndarray]:
    """Return the detector of that name, or raise `ValueError`."""
    if name not in DETECTORS:
        raise ValueError(f"Expected a detector out of {sorted(DETECTORS)}, but got {name!r}.")
    return DETECTORS[name]


def detect(
    features: Any,
    detector: str | None = None,
    m: int | None = None,
    k: int | None = None,
    seed: int = 0,
    normalize: bool = True,
    compat: Literal["huang2025"] | None = None,
    shared: Shared | None = None,
    **options: Any,
) -> np.ndarray:
    """Return a score for each row of `features`, compared with m of them drawn at random.

    Without a detector's name the one is taken that what is given allows; none of them is told a poison rate. With
    `texts`, the captions' embeddings, it is `conditional_sparsity`; with `others`, the same images in another
    encoder's space, `disagreement`, which compares no densities at all; with image embeddings alone `multi_scale`,
    which cannot find poisoned rows that the model did not learn. k-distance, SLOF, LOF, DAO and LID see poison only as
    long as its rows are no neighbourhood of their own in the reference: rate * m under k / 4, so that heavier poison
    asks for a smaller m or a larger k; among concepts of very uneven density SLOF is the one that finds a small group.

    Args:
        features: Image embeddings of the searched set in the suspected model, (N, D).
        detector: A key of `DETECTORS`; see above.
        m: Reference rows; min(16384, N) by default.
        k: Neighbours; each detector's own number by default, `default_k(m)` for most.
        seed: Seed of the reference.
        normalize: Scale embeddings to unit length.
        compat: `"huang2025"` for the published arithmetic of k-distance, SLOF (the default then), DAO or LID with its
            faults, for comparison; m and `normalize` do not apply to it, k is 16 by default.
        shared: What the detectors of one search have in common; scores do not depend on it. See `detect_all`.
        **options: What the detector takes besides, for instance `others`, or `texts` for the CLIP score.

    Returns:
        (N,), float64, finite; higher is more suspicious.

    Raises:
        ValueError: If the detector is unknown, m or k out of range, or the features are no finite matrix.

    Reference:
        Huang et al., ICLR 2025 (arXiv 2502.01385) compare rows with the rest of their batch; a fixed random reference
        makes a score independent of which rows share its batch.
    """
    if compat is not None:
        if compat != "huang2025":
            raise ValueError(f"Expected compat 'huang2025', but got {compat!r}.")
        return huang2025(features, detector or "slof", 16 if k is None else k, seed=seed, **options)
    if detector is None:
        given = {name for name, value in options.items() if value is not None}
        detector = "disagreement" if "others" in given else DEFAULT_WITH_TEXTS if "texts" in given else DEFAULT
    function = check_detector(detector)
    if function is multi_scale and m is None:
        m = min(MULTI_SCALE_M, len(features))
    draw = Reference.sample if shared is None else shared.reference
    return function(features, draw(features, m, seed, normalize), k, **options)


def detect_all(
    features: Any,
    detectors: Sequence[str],
    m: int | None = None,
    k: int | None = None,
    seed: int = 0,
    normalize: bool = True,
    **aligned: Any,
) -> dict[str, np.ndarray]:
    """Return the scores of several detectors, as `detect` gives them, from references and neighbours found once.

    Args:
        features: Image embeddings of the searched set in the suspected model, (N, D).
        detectors: Keys of `DETECTORS`, the ones with the largest k best first.
        m: As in `detect`.
        k: As there.
        seed: As there.
        normalize: As there.
        **aligned: What has a row for each of the features, `texts` and `others`; each detector gets what it takes.

    Returns:
        Name -> scores (N,).

    Raises:
        ValueError: As in `detect`.
    """
    shared = Shared()
    given = {name: value for name, value in aligned.items() if value is not None}
    found = {}
    for name in detectors:
        options = {key: value for key, value in given.items() if key in ALIGNED.get(name, ())}
        found[name] = detect(features, name, m, k, seed, normalize, shared=shared, **options)
    return found
