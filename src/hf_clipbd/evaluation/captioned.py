# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Pictures with one or several captions: a row a picture with a list of them, or a row a caption."""

import hashlib
from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np

from hf_clipbd.data.canvas import Canvas
from hf_clipbd.data.reader import Reader
from hf_clipbd.data.row_format import with_columns, without_decoding
from hf_clipbd.data.undecoded import stored_bytes


def grouped_by_picture(
    dataset: datasets.Dataset, image_column: str, caption_column: str
) -> tuple[list[int], list[list[str]]]:
    """Return the first row of each picture, and all captions of each; rows of equal picture bytes show one picture.

    Args:
        dataset: Rows with a picture and a caption or a list of captions.
        image_column: Column of pictures.
        caption_column: Column of captions.

    Raises:
        ValueError: If a row has no caption; the message names it.

    Example:
        >>> import PIL.Image
        >>> features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
        >>> pictures = [PIL.Image.new("RGB", (2, 2), colour) for colour in ("red", "blue", "red")]
        >>> rows = datasets.Dataset.from_dict({"image": pictures, "caption": ["one", "two", "three"]}, features)
        >>> grouped_by_picture(rows, "image", "caption")
        ([0, 1], [['one', 'three'], ['two']])
    """
    rows = with_columns(dataset, [image_column, caption_column])
    encoded, _ = without_decoding(rows, image_column)
    of_picture: dict[Any, tuple[int, list[str]]] = {}
    for number, row in enumerate(encoded):
        given, picture = row[caption_column], row[image_column]
        listed = [given] if isinstance(given, str) else given
        if not isinstance(listed, (list, tuple)) or not all(isinstance(one, str) for one in listed):
            raise ValueError(f"Row {number}: Expected a caption or a list of captions, but got {given!r}.")
        content: Any = number
        if encoded is not rows and picture is not None:
            content = hashlib.sha256(stored_bytes(picture)).digest()
        of_picture.setdefault(content, (number, []))[1].extend(listed)
    return [number for number, _ in of_picture.values()], [captions for _, captions in of_picture.values()]


def on_canvas(
    dataset: datasets.Dataset, image_column: str, rows: list[int], canvas: Canvas, size: int
) -> Iterator[list[np.ndarray]]:
    """Yield the pictures of these rows on the canvas, (H, W, 3) each, decoded one at a time.

    Args:
        dataset: Rows with a picture.
        image_column: Its column.
        rows: Their numbers.
        canvas: Geometry of the pictures.
        size: Pictures at once.

    Raises:
        ValueError: If a picture cannot be read; the message names its row.
    """
    chosen = with_columns(dataset, [image_column]).select(rows)
    unreadable: dict[int, str] = {}
    for images, _ in Reader(chosen, image_column, None, canvas).batches(size, "retrieval", unreadable):
        if unreadable:
            number, why = next(iter(unreadable.items()))
            raise ValueError(f"Row {rows[number]}: {why}")
        yield images
