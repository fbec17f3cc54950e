# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The table of detectors, and the one call that scores a set with a random reference."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch

from hf_clipbd.detection.activation_clustering import activation_clustering
from hf_clipbd.detection.clip_score import clip_score
from hf_clipbd.detection.cognitive_distillation import cognitive_distillation
from hf_clipbd.detection.combined import combined
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
from hf_clipbd.detection.nearest import Precision
from hf_clipbd.detection.reference import Reference
from hf_clipbd.detection.references import References
from hf_clipbd.detection.shared import Once, Shared
from hf_clipbd.detection.slof import slof
from hf_clipbd.detection.spectral import spectral_signature


DETECTORS: dict[str, Callable[..., np.ndarray]] = {
    "multi_scale": multi_scale,
    "conditional_sparsity": conditional_sparsity,
    "disagreement": disagreement,
    "combined": combined,
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
    "cognitive_distillation": cognitive_distillation,
}
"""Name -> `detector(features, reference=None, k=None, ...) -> scores (N,)`, float64, higher is more suspicious."""

ALIGNED: dict[str, tuple[str, ...]] = {
    "conditional_sparsity": ("texts",),
    "disagreement": ("others", "texts"),
    "combined": ("texts", "others"),
    "spectral_signature": ("texts",),
    "activation_clustering": ("texts",),
    "clip_score": ("texts",),
    "cognitive_distillation": ("masks",),
}
"""Name -> keywords of that detector which have a row for each of the features."""

OF_REFERENCE: dict[str, tuple[str, ...]] = {
    "conditional_sparsity": ("reference_texts",),
    "disagreement": ("reference_others", "reference_texts"),
    "combined": ("reference_texts", "reference_others"),
}
"""Name -> keywords of that detector which have a row for each of the rows that a given reference was drawn from."""

CHOICES: dict[str, tuple[str, ...]] = {
    "conditional_sparsity": ("caption_share",),
    "combined": ("caption_share",),
}
"""Name -> keywords of that detector which are settings of its own."""

WITHOUT_REFERENCE = ("clip_score", "cognitive_distillation")
"""Detectors that compare rows with no others."""

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
    *,
    reference: Reference | None = None,
    references: int = 1,
    combine: Literal["mean", "maximum"] = "mean",
    device: str | torch.device | None = None,
    precision: Precision | None = None,
    distributed: bool = False,
    **options: Any,
) -> np.ndarray:
    """Return a score for each row of `features`, compared with m of them drawn at random or with a given reference.

    Without a detector's name the one is taken that what is given allows; none of them is told a poison rate. With
    `texts`, the captions' embeddings, it is `conditional_sparsity`; with `others`, the same images in another
    encoder's space, `disagreement`, which compares no densities at all; with both `combined`, which takes of these two
    the one that a row is more conspicuous by; with image embeddings alone `multi_scale`, which cannot find poisoned
    rows that the model did not learn. k-distance, SLOF, LOF, DAO and LID see poison only as long as its rows are no
    neighbourhood of their own in the reference: rate * m under k / 4, so that heavier poison asks for a smaller m or a
    larger k; among concepts of very uneven density SLOF is the one that finds a small group.

    Cognitive distillation needs the model and the pictures: `masks=mask_sizes(model, pixels, rows)` is what it takes,
    at the cost of some hundred forward passes a picture.

    Args:
        features: Image embeddings of the searched set in the suspected model, (N, D).
        detector: A key of `DETECTORS`; see above.
        m: Reference rows; min(16384, N) by default, for `multi_scale` min(8192, N).
        k: Neighbours; each detector's own number by default, `default_k(m)` for most.
        seed: Seed of the reference.
        normalize: Scale embeddings to unit length.
        compat: `"huang2025"` for the published arithmetic of k-distance, SLOF (the default then), DAO or LID with its
            faults, for comparison; m and `normalize` do not apply to it, k is 16 by default.
        shared: What the detectors of one search have in common; scores do not depend on it. See `detect_all`.
        reference: A ready one, `Reference.of(clean)` say, for every detector that compares rows; with
            `conditional_sparsity`, `disagreement` and `combined` its rows' `reference_texts` and `reference_others`.
        references: How many random references are searched, at the cost of a search each; see `References`.
        combine: The `"mean"` or the `"maximum"` of a row's scores against them.
        device: Where to compute, the processor by default.
        precision: Arithmetic of the search, as in `Reference.of`.
        distributed: Share rows among the processes of a `torch.distributed` group; each makes this call and gets all
            scores. What needs no search is computed on every one.
        **options: What the detector takes besides, for instance `others`, or `texts` for the CLIP score.

    Returns:
        (N,), float64, finite; higher is more suspicious.

    Raises:
        ValueError: If the detector is unknown, m or k out of range, the features are no finite matrix, or an argument
            has no use: beside a ready reference, with `compat`, or with a detector that compares no rows.

    Reference:
        Huang et al., ICLR 2025 (arXiv 2502.01385) compare rows with the rest of their batch; a fixed random reference
        makes a score independent of which rows share its batch.
    """
    among = References(reference, references, combine, m, seed, normalize, device, precision, distributed)
    if compat is not None:
        return _published(compat, among, features, detector or "slof", 16 if k is None else k, options)
    name = detector or _default(options)
    return _scored(name, check_detector(name), among, features, k, shared, options)


def _scored(
    name: str,
    function: Callable[..., np.ndarray],
    among: References,
    features: Any,
    k: int | None,
    shared: Shared | None,
    options: Mapping[str, Any],
) -> np.ndarray:
    """Return the scores of one detector, `function`, known as `name`."""
    if name in WITHOUT_REFERENCE:
        among.check_unused(f"detector {name!r}", "reference", "references")
        return checked_scores(function(features, **options), len(features), name)
    m = min(MULTI_SCALE_M, len(features)) if name == "multi_scale" else None

    def score(one: Reference) -> np.ndarray:
        return checked_scores(function(features, one, k, **options), len(features), name)

    return among.scores(score, features, m, shared)


def checked_scores(scores: Any, n: int, name: str) -> np.ndarray:
    """Return what a detector gave for n rows as float64, or raise `ValueError` if it is no finite score for each."""
    values = np.asarray(scores)
    fits = values.shape == (n,) and values.dtype.kind in "fiub"
    if not fits or not np.isfinite(values).all():
        got = f"{(~np.isfinite(values)).sum()} NaN or infinite" if fits else f"{values.dtype} {values.shape}"
        raise ValueError(
            f"Expected a finite score of the detector {name!r} for each of {n} rows, ({n},), but got {got}. Higher is "
            "more suspicious; give a row of which nothing is known the lowest score."
        )
    return values.astype(np.float64, copy=False)


def _default(options: dict[str, Any]) -> str:
    given = {name for name, value in options.items() if value is not None}
    if "others" in given:
        return "combined" if "texts" in given else "disagreement"
    return DEFAULT_WITH_TEXTS if "texts" in given else DEFAULT


def _published(
    compat: str, among: References, features: Any, detector: str, k: int, options: dict[str, Any]
) -> np.ndarray:
    if compat != "huang2025":
        raise ValueError(f"Expected compat 'huang2025', but got {compat!r}.")
    among.check_unused("compat 'huang2025'", "reference", "references", "device", "precision", "distributed")
    return huang2025(features, detector, k, seed=among.seed, **options)


def detect_all(
    features: Any,
    detectors: Sequence[str],
    m: int | None = None,
    k: int | None = None,
    seed: int = 0,
    normalize: bool = True,
    *,
    reference: Reference | None = None,
    references: int = 1,
    combine: Literal["mean", "maximum"] = "mean",
    device: str | torch.device | None = None,
    precision: Precision | None = None,
    distributed: bool = False,
    **given: Any,
) -> dict[str, np.ndarray]:
    """Return the scores of several detectors, as `detect` gives them, from references and neighbours found once.

    `combined` takes the scores of its parts from there where they are asked for as well.

    Args:
        features: Image embeddings of the searched set in the suspected model, (N, D).
        detectors: Keys of `DETECTORS`, the ones with the largest k best first.
        m: As in `detect`.
        k: As there.
        seed: As there.
        normalize: As there.
        reference: As there; detectors that compare rows with none go without.
        references: As there, likewise; so many references of m rows are kept until all detectors are through.
        combine: As there.
        device: As there.
        precision: As there.
        distributed: As there.
        **given: What has a row for each of the features, `texts`, `others` and `masks`, and for each row that a given
            reference was drawn from, `reference_texts` and `reference_others`; settings of single detectors, such as
            `caption_share`. Each detector gets what it takes.

    Returns:
        Name -> scores (N,).

    Raises:
        ValueError: As in `detect`.
        TypeError: If something is given that none of these detectors takes, nor any other beside its settings.
    """
    shared, functions = Shared(), {name: check_detector(name) for name in detectors}
    taken = _taken(functions, given)
    if "combined" in functions:
        parts = {name: Once(DETECTORS[name]) for name in ("conditional_sparsity", "disagreement")}
        functions |= {name: part for name, part in parts.items() if name in functions}
        functions["combined"] = functools.partial(combined, parts=tuple(parts.values()))
    place = {"m": m, "seed": seed, "normalize": normalize}
    place |= {"device": device, "precision": precision, "distributed": distributed}
    compared = {"reference": reference, "count": references, "combine": combine}
    known = {name: value for name, value in given.items() if value is not None}
    found = {}
    for name, function in functions.items():
        options = {key: value for key, value in known.items() if key in taken[name]}
        among = References(**place, **({} if name in WITHOUT_REFERENCE else compared))
        found[name] = _scored(name, function, among, features, k, shared, options)
    return found


def _taken(functions: Mapping[str, Callable[..., Any]], given: Mapping[str, Any]) -> dict[str, set[str]]:
    """Return which keywords each detector takes; raise `TypeError` for one that is given and that none takes."""
    tables = (ALIGNED, OF_REFERENCE, CHOICES)
    shared = {keyword for table in tables for keywords in table.values() for keyword in keywords}
    taken = {}
    for name, function in functions.items():
        own = set(inspect.signature(function).parameters) - {"features", "reference", "k"} - shared
        taken[name] = own.union(*(table.get(name, ()) for table in tables))
    unknown = sorted(set(given) - shared - set().union(*taken.values()))
    if unknown:
        known = sorted(shared.union(*taken.values()))
        raise TypeError(f"Expected keywords among {known} beside the detectors {list(functions)}, but got {unknown}.")
    return taken
