# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Image embeddings of a dataset, kept in files that are named by what they were made of."""

import logging
import os
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from torch import nn

from hf_clipbd.data.canvas import Canvas, pixel_statistics
from hf_clipbd.data.undecoded import stored_bytes
from hf_clipbd.features import embed_dataset, model_fingerprint
from hf_clipbd.schema import IMAGE, content_key


logger = logging.getLogger(__name__)


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

    The file's name is a hash of what decides the result: the model's weights, the canvas, the pixel statistics, and
    each picture's own bytes. No name of a model or a dataset is in it, so a defended model never gets its victim's.

    Args:
        model: Dual encoder.
        processor: Its processor.
        dataset: Rows with images.
        canvas: Geometry of the images.
        batch_size: Images a forward pass.
        cache: Folder of the cached features; None computes them.
        image_column: Column of images.
    """
    path = None
    if cache is not None:
        pictures = _content(dataset, image_column)
        owner = [model_fingerprint(model), [canvas.size, canvas.mode], [list(x) for x in pixel_statistics(processor)]]
        path = Path(cache).expanduser() / f"{content_key('image features', *owner, pictures)}.npy"
        if path.is_file():
            logger.info("Image features were there already, in %s.", path)
            return np.load(path)
    features = embed_dataset(model, processor, dataset, image_column, None, batch_size, canvas)["image"]
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial.npy")
        np.save(partial, features)
        partial.replace(path)
    return features


def _content(dataset: datasets.Dataset, image_column: str) -> str:
    """Return a hash of the pictures' own bytes, in their order."""
    column = dataset.select_columns([image_column]).cast_column(image_column, datasets.Image(decode=False))
    return content_key([content_key(stored_bytes(picture[image_column]).hex()) for picture in column])
