# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Cognitive distillation within a search: whose masks are found, and that each is found once."""

import hashlib
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from hf_clipbd.data.canvas import Canvas
from hf_clipbd.detection import distilled_masks, mask_sizes
from hf_clipbd.features import pixel_values
from hf_clipbd.recipe.sharded import computed_once, embedder
from hf_clipbd.schema import IMAGE


DISTILLATION = "cognitive_distillation"
SHARD_ROWS = 64
"""Pictures whose masks are found at once; a search that is killed goes on at the next so many."""

OPTIONS = {
    name: one.default
    for name, one in inspect.signature(distilled_masks).parameters.items()
    if isinstance(one.default, int | float)
}
"""What masks are found with: other weights make other masks."""

Distill = Callable[[np.ndarray], np.ndarray]
"""From row numbers of the dataset, (N,), to the sizes of their masks, (N,)."""


def cached_mask_sizes(
    model: Any,
    processor: Any,
    pairs: datasets.Dataset,
    cache: Path,
    rows: np.ndarray,
    canvas: Canvas | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Return the mask sizes of some rows, from the cache where model, rows, pictures and seed are the same.

    Kept and shared among processes as `cached_embeddings` does it, whose further arguments these are, 64 rows a shard.

    Args:
        rows: (N,), numbers of rows that can be read.
        seed: Seed of the fill colours, which depend on (seed, row).

    Returns:
        (N,), float64, in [0, 1]; copies of a picture have the size of the first of them.
    """
    canvas, rows = canvas or Canvas.of(processor), np.asarray(rows, dtype=np.int64)
    owner = embedder(model, processor, canvas, len(rows))
    owner += ["masks", OPTIONS, seed, hashlib.sha256(rows.tobytes()).hexdigest()]

    def pixels(numbers: np.ndarray) -> Any:
        return pixel_values(processor, pairs.select(numbers), IMAGE, canvas)

    def distill(part: range) -> tuple[dict[str, np.ndarray], dict[int, str]]:
        sizes = mask_sizes(model, pixels, rows[part.start : part.stop], SHARD_ROWS, seed)
        return {"mask": sizes[:, None].astype(np.float32)}, {}

    found = computed_once(
        pairs.select(rows), cache, owner, SHARD_ROWS, ("mask",), distill, None, "cognitive distillation"
    )
    return found["mask"][:, 0].astype(np.float64)


def scored(
    score: Callable[..., dict[str, np.ndarray]],
    detectors: Sequence[str],
    features: np.ndarray,
    aligned: dict[str, np.ndarray],
    numbers: np.ndarray,
    distill: Distill | None = None,
    most: int | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the scores of each detector, and the mask sizes that cognitive distillation rests on.

    Args:
        aligned: What has a row for each of the features.
        numbers: (N,), the row of the dataset that each feature is of.
        most: How many rows it looks at, those that the first detector ranks highest; every one by default.

    Returns:
        Name -> (N,), in the order of `detectors`; and `masks` (N,), 1 for rows that were not looked at, or nothing
        where cognitive distillation is not among them.
    """
    others = [name for name in detectors if name != DISTILLATION]
    found = score(features, others, **aligned) if others else {}
    masks = {}
    if DISTILLATION in detectors:
        rows = np.arange(len(features))
        if most is not None:
            rows = np.sort(np.argsort(-found[detectors[0]], kind="stable")[:most])
        sizes = np.ones(len(features))
        sizes[rows] = distill(numbers[rows])
        masks = {"masks": sizes}
        found |= score(features, [DISTILLATION], **masks)
    return {name: found[name] for name in detectors}, masks
