# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Embeddings of a dataset, computed once: kept by what model and data contain, in shards that survive a kill."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np

from hf_clipbd.data.canvas import Canvas
from hf_clipbd.features import embed_dataset
from hf_clipbd.recipe.sharded import computed_once, embedder
from hf_clipbd.schema import CAPTION, IMAGE


SHARD_ROWS = 4096
MIRRORED = "mirrored"
"""Stands for a second encoder: the suspected model itself, on mirrored pictures."""


def default_cache() -> Path:
    """Return where embeddings are kept: `hf_clipbd/embeddings` below the Hugging Face home."""
    return Path(datasets.config.HF_CACHE_HOME).expanduser() / "hf_clipbd" / "embeddings"


def cached_embeddings(
    model: Any,
    processor: Any,
    pairs: datasets.Dataset,
    cache: Path,
    batch_size: int = 256,
    canvas: Canvas | None = None,
    normalize: bool = True,
    unreadable: dict[int, str] | None = None,
    texts: bool = True,
    mirrored: bool = False,
) -> dict[str, np.ndarray]:
    """Return the unit embeddings of every pair, from the cache where model, pictures and captions are the same.

    How, and what several processes do, is told at `computed_once`; a shard has 4,096 rows. Neither a renamed nor an
    overwritten dataset or model is taken for another, and a clean set and its poisoned version, held at once, have
    each its own rows. Embeddings of images alone are taken from those with texts, but not the other way round.

    Args:
        canvas: Geometry of the images; the processor's by default.
        normalize: Scale embeddings to length one; else they are as the model gives them.
        unreadable: Takes row number -> what is wrong with it for the rows whose picture or caption is missing or
            broken, which are then left out of the result; without it the first such row is an error.
        texts: Embed the captions too; else they are only read, so that the same rows are left out.
        mirrored: Embed each picture mirrored; see `embed_dataset`.

    Returns:
        `image` and, with `texts`, `text`, (N, D), float32, memory-mapped; rows whose pictures have the same bytes have
        the image embedding of the first of them; and `picture`, (N,), a 64-bit number that is the same for these.

    Raises:
        ValueError: If there are no rows, a column is missing, no row can be read, or one cannot be and `unreadable`
            is None (the message names it).
    """
    canvas = canvas or Canvas.of(processor)
    owner = embedder(model, processor, canvas, len(pairs)) + ([] if normalize else ["as the model gives them"])
    owner += [MIRRORED] if mirrored else []
    names = ("image", "text") if texts else ("image",)

    def embed(rows: range) -> tuple[dict[str, np.ndarray], dict[int, str]]:
        bad: dict[int, str] = {}
        given = {"batch_size": batch_size, "canvas": canvas, "normalize": normalize, "unreadable": bad, "texts": texts}
        read = pairs.select_columns([IMAGE, CAPTION]).select(rows)
        return embed_dataset(model, processor, read, mirrored=mirrored, **given), bad

    return computed_once(pairs, cache, owner, SHARD_ROWS, names, embed, unreadable, "embedding")
