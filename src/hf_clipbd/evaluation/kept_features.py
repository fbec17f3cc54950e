# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Image embeddings of a dataset, kept in files that are named by what they were made of."""

import hashlib
import logging
import os
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from torch import nn
from tqdm.auto import tqdm

from hf_clipbd.data.canvas import Canvas, pixel_statistics
from hf_clipbd.data.row_format import has_transform, with_columns
from hf_clipbd.data.undecoded import stored_bytes
from hf_clipbd.evaluation.processes import rank_and_world, shared_out
from hf_clipbd.features import embed_dataset, model_fingerprint
from hf_clipbd.schema import IMAGE, content_key


logger = logging.getLogger(__name__)

SHARD_ROWS = 4096
"""Rows of a shard: it has the least whole number of batches that come to so many."""


def image_features(
    model: nn.Module,
    processor: Any,
    dataset: datasets.Dataset,
    canvas: Canvas,
    batch_size: int = 256,
    cache: str | Path | None = None,
    image_column: str = IMAGE,
) -> np.ndarray:
    """Return the unit image embeddings of a dataset, (N, D), computed once where there is a cache.

    Several processes embed a shard each in turn and tell the others, and all of them have to call it. With a cache
    every shard is a file, written as soon as it is there, so a job that was killed goes on at the shard where it was.
    A file's name is a hash of what decides the result: the model's weights, the canvas, the pixel statistics, and each
    picture's own bytes. No name of a model or a dataset is in it, so a defended model never gets its victim's. Of a
    dataset with a transform of its own (`with_transform`) nothing is kept.

    Args:
        model: Dual encoder.
        processor: Its processor.
        dataset: Rows with images.
        canvas: Geometry of the images.
        batch_size: Images a forward pass.
        cache: Folder of the cached features; None computes them.
        image_column: Column of images.

    Raises:
        ValueError: If a row cannot be read (the message names it).
    """
    rows = with_columns(dataset, [image_column])
    size = batch_size * -(-SHARD_ROWS // batch_size)  # whole batches, the same as without shards
    bar = tqdm(total=len(rows), desc="probe features", unit="image", disable=_silent(len(rows) > size), leave=False)
    owner = None
    if cache is not None and has_transform(rows):
        logger.warning("image features are not kept, since a transform of the dataset's own may give others each time")
    elif cache is not None:
        statistics = [list(one) for one in pixel_statistics(processor)]
        owner = [model_fingerprint(model), [canvas.size, canvas.mode], statistics]

    def shard(number: int) -> np.ndarray:
        start = number * size
        part = rows.select(range(start, min(start + size, len(rows))))
        path = None
        if owner is not None:
            key = content_key("image features", *owner, _content(part, image_column))
            path = Path(cache).expanduser() / f"{key}.npy"
        if path is not None and path.is_file():
            logger.info("Image features of %d rows from %d on were there already, in %s.", len(part), start, path)
            found = np.load(path)
        else:
            found = _embedded(model, processor, part, image_column, batch_size, canvas, start)
            if path is not None:
                _keep(found, path)
        return found

    features: np.ndarray | None = None
    with bar:
        for number, found in enumerate(shared_out(-(-len(rows) // size), shard)):
            if features is None:
                features = np.empty((len(rows), found.shape[1]), dtype=found.dtype)
            features[number * size : number * size + len(found)] = found
            bar.update(len(found))
    return np.empty((0, 0), dtype=np.float32) if features is None else features


def _embedded(
    model: nn.Module, processor: Any, part: datasets.Dataset, image_column: str, size: int, canvas: Canvas, start: int
) -> np.ndarray:
    """Return the embeddings of a shard whose first row is row `start` of the dataset."""
    broken: dict[int, str] = {}
    found = embed_dataset(model, processor, part, image_column, None, size, canvas, unreadable=broken)["image"]
    if broken:
        row, why = next(iter(broken.items()))
        raise ValueError(f"Row {start + row}: {why}")
    return found


def _keep(features: np.ndarray, path: Path) -> None:
    """Write features in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial.npy")
    np.save(partial, features)
    partial.replace(path)


def _content(part: datasets.Dataset, image_column: str) -> str:
    """Return a hash of the pictures' own bytes, in their order."""
    encoded = part.cast_column(image_column, datasets.Image(decode=False))
    digest = hashlib.sha256()
    for picture in encoded[image_column]:
        digest.update(hashlib.sha256(stored_bytes(picture)).digest())
    return digest.hexdigest()


def _silent(long: bool) -> bool | None:
    """Return what hides a bar but on a terminal, in the first process, where it takes long."""
    return None if long and rank_and_world()[0] == 0 else True
