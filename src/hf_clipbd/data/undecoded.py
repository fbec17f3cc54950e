# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Pictures decoded one at a time: a batch of rows would decode all of its pictures, in their own size, at once."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import datasets


def undecoded(rows: datasets.Dataset, image_column: str) -> tuple[datasets.Dataset, Callable[[Any], Any]]:
    """Return the rows with their pictures encoded, and what decodes the picture of one row.

    A dataset with a format or a transform of its own, and a column that holds no `Image`, come as they are; the
    function then gives back what it gets.

    Args:
        rows: The dataset.
        image_column: Column of pictures.

    Example:
        >>> import PIL.Image
        >>> features = datasets.Features({"image": datasets.Image()})
        >>> rows = datasets.Dataset.from_dict({"image": [PIL.Image.new("RGB", (3, 2))]}, features=features)
        >>> encoded, decode = undecoded(rows, "image")
        >>> sorted(encoded[0]["image"]), decode(encoded[0]["image"]).size
        (['bytes', 'path'], (3, 2))
    """
    feature = rows.features[image_column]
    if not isinstance(feature, datasets.Image) or not feature.decode or rows.format["type"] is not None:
        return rows, as_it_is
    encoded = rows.cast_column(image_column, datasets.Image(mode=feature.mode, decode=False))
    return encoded, feature.decode_example


def as_it_is(picture: Any) -> Any:
    """Return a picture that is decoded already."""
    return picture


def stored_bytes(image: dict[str, Any] | None) -> bytes:
    """Return a picture's bytes; of one that is not there, or is a device or a pipe, what it is called."""
    if image is not None and image["bytes"] is not None:
        return image["bytes"]
    path = None if image is None else image["path"]
    if path is None:
        return b""
    with suppress(OSError, ValueError):  # no name of a file, or one that cannot be read: reading the row says so
        if Path(path).is_file():
            return Path(path).read_bytes()
    return f"no file {path}".encode("utf-8", "surrogatepass")
