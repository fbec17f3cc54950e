# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Pictures in and out of datasets: whatever a row holds to RGB, and RGB to the fastest lossless bytes."""

import hashlib
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image

from hf_clipbd.data.canvas import Canvas
from hf_clipbd.data.unreadable import UNREADABLE


IMAGE_FORMATS = ("webp", "png")
_WEBP_SIDE = 16383
_ADDRESS = re.compile(r" <[\w.]+ object at 0x[0-9a-fA-F]+>")  # would make two manifests of the same rows differ
_RGB = Canvas(1, "native")


def read_picture(value: Any, mode: str | None = None) -> PIL.Image.Image:
    """Return what an image column holds as a fresh 8-bit RGB picture in its own size.

    EXIF rotation is applied, an animation gives its first frame, transparency is laid on white, 16 bits become 8.

    Args:
        value: PIL image, `{"bytes": ..., "path": ...}`, encoded bytes, a path, or an array (H, W) or (H, W, 1|3|4) of
            8 or 16 bits, or of floats in [0, 1]; or the same array as nested lists, whole numbers of 8 bits.
        mode: Mode that the column's `Image` feature converts to, if it names one.

    Raises:
        ValueError: If there is no image or it cannot be read.
        TypeError: If the value is of another kind.
    """
    if value is None:
        raise ValueError("Expected an image, but the row has none.")
    if isinstance(value, PIL.Image.Image):
        image = value
    elif isinstance(value, np.ndarray):
        image = _from_array(value)
    elif isinstance(value, list):
        image = _from_array(_from_lists(value))
    elif isinstance(value, (dict, bytes, bytearray, str, Path)):
        image = _decode(value)
    else:
        raise TypeError(
            f"Expected a PIL image, encoded bytes, a path or an array (H, W, 3), but got {type(value).__name__}. "
            f"Cast the column to `datasets.Image()` first."
        )
    try:
        image.load()
        return _RGB(image.convert(mode) if mode and image.mode != mode else image)
    except (TypeError, *UNREADABLE) as error:
        raise ValueError(f"Expected an image that can be decoded, but got {type(error).__name__}: {error}") from error


def _decode(value: dict[str, Any] | bytes | bytearray | str | Path) -> PIL.Image.Image:
    if isinstance(value, (bytes, bytearray)):
        value = {"bytes": bytes(value)}
    elif isinstance(value, (str, Path)):
        value = {"path": str(value)}
    data, path = value.get("bytes"), value.get("path")
    if data is None and path is None:
        raise ValueError("Expected an image, but the row has neither bytes nor a path.")
    where = f"{path or ''} ({len(data)} bytes)" if data is not None else path
    try:
        return datasets.Image().decode_example({"bytes": data, "path": path})
    except UNREADABLE as error:
        told = _ADDRESS.sub("", str(error))
        raise ValueError(f"Expected an image that can be decoded, but got {where}: {told}") from error


def _from_lists(value: list[Any]) -> np.ndarray:
    try:
        pixels = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"Expected lists that are an array (H, W, 3), but got ragged ones: {error}") from error
    if pixels.dtype.kind in "iu" and pixels.size and pixels.min() >= 0 and pixels.max() <= 255:
        return pixels.astype(np.uint8)
    return pixels


def as_image_column(dataset: datasets.Dataset, column: str) -> datasets.Dataset:
    """Return the dataset with a column of paths, encoded bytes or arrays as decoded images, others as they are.

    Bytes and files stay as they are; arrays are encoded losslessly.

    Args:
        dataset: Without a format.
        column: Column of images.

    Raises:
        ValueError: If the column holds something else, or an array is no picture (the message names the row).
    """
    feature = dataset.features[column]
    if isinstance(feature, datasets.Image):
        return dataset.cast_column(column, datasets.Image(mode=feature.mode))
    if getattr(feature, "dtype", None) in ("string", "large_string", "binary", "large_binary"):
        return dataset.cast_column(column, datasets.Image())
    if isinstance(feature, (datasets.Array2D, datasets.Array3D, datasets.List, datasets.LargeList)):
        features = datasets.Features({**dataset.features, column: datasets.Image()})
        return dataset.map(
            _array_encoded, with_indices=True, fn_kwargs={"column": column}, features=features, desc="Encoding arrays"
        )
    message = f"Expected images in column {column!r}, but it holds {feature}"
    raise ValueError(f"{message}. Cast it to `datasets.Image()` first.")


def _array_encoded(row: Any, number: int, column: str) -> dict[str, Any]:
    try:
        return {column: {"bytes": encode_picture(read_picture(row[column])), "path": None}}
    except ValueError as error:
        raise ValueError(f"Row {number}: {error}") from error


def _from_array(pixels: np.ndarray) -> PIL.Image.Image:
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4)):
        raise ValueError(f"Expected an array (H, W) or (H, W, 1|3|4), channels last, but got shape {pixels.shape}.")
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    elif pixels.dtype.kind == "f":
        if not (pixels.min() >= 0 and pixels.max() <= 1):
            raise ValueError(f"Expected float pixels in [0, 1], but got {pixels.min()} to {pixels.max()}.")
        pixels = np.rint(pixels * 255).astype(np.uint8)
    elif pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * 255
    elif pixels.dtype != np.uint8:
        raise ValueError(f"Expected uint8, uint16, bool or float pixels, but got {pixels.dtype}.")
    return PIL.Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)


def picture_digest(image: PIL.Image.Image) -> bytes:
    """Return 16 bytes that hang on a picture's size and RGB pixels, however it was stored."""
    header = f"{image.width}x{image.height}".encode()
    return hashlib.blake2b(image.tobytes(), digest_size=16, key=header).digest()


def encode_picture(image: PIL.Image.Image, image_format: str = "webp") -> bytes:
    """Return lossless bytes of an RGB picture: WebP, or PNG where a side exceeds WebP's 16,383 pixels.

    Lossless, since JPEG at its default quality keeps a seventh of a weak trigger. On crops of photographs at 224 px,
    on one core, WebP at its fastest takes 3.2 ms and 65 kB, at its default 37 to 47 ms; PNG at level 1 3.9 ms and
    87 kB, at its default 5 to 13 ms (`benchmarks/poison.py`).

    Args:
        image: RGB picture.
        image_format: `"webp"` or `"png"` (default compression, for readers that know no WebP).

    Raises:
        ValueError: If the format is another one.
    """
    check_image_format(image_format)
    buffer = io.BytesIO()
    if image_format == "png" or max(image.size) > _WEBP_SIDE:
        image.save(buffer, "PNG", compress_level=6 if image_format == "png" else 1)
    else:
        image.save(buffer, "WEBP", lossless=True, method=0, quality=0)
    return buffer.getvalue()


def as_stored(value: Any, stamped: PIL.Image.Image, image_format: str) -> Any:
    """Return the stamped picture in the kind that the column held: an image, its bytes or its pixels.

    Args:
        value: What the row held.
        stamped: The picture that takes its place.
        image_format: See `encode_picture`; of use where the row held encoded bytes.

    Raises:
        ValueError: If the column cannot hold the stamped picture.
    """
    if isinstance(value, Mapping):
        return {"bytes": encode_picture(stamped, image_format), "path": None}
    if isinstance(value, (bytes, bytearray)):
        return encode_picture(stamped, image_format)
    if isinstance(value, str):
        raise ValueError("Expected an image column that can hold a picture, but it holds paths. Cast it to `Image()`.")
    if isinstance(value, list):
        pixels, before = np.asarray(stamped), np.asarray(value)
        if before.shape != pixels.shape or before.dtype.kind == "f":
            message = f"Expected arrays {pixels.shape} of whole numbers, to which the stamped picture fits"
            raise ValueError(f"{message}, but got {before.dtype} {before.shape}. Cast the column to `Image()`.")
        return pixels.tolist()
    return stamped


def check_image_format(image_format: str) -> None:
    """Raise `ValueError` if poisoned pictures cannot be stored in this format without loss."""
    if image_format not in IMAGE_FORMATS:
        why = " JPEG would wash out the trigger." if str(image_format).lower() in ("jpeg", "jpg") else ""
        raise ValueError(f"Expected a lossless image_format among {IMAGE_FORMATS}, but got {image_format!r}.{why}")


def unit_pixels(pattern: np.ndarray) -> np.ndarray:
    """Return a picture of the user's own as (h, w, 3) float32 in [0, 1].

    Args:
        pattern: (h, w, 3), uint8 or floats in [0, 1].

    Raises:
        ValueError: If it has another shape, type or range.
    """
    pixels = np.asarray(pattern)
    if pixels.dtype == np.uint8:
        pixels = np.divide(pixels, 255, dtype=np.float32)
    fits = pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype.kind == "f"
    if not fits or not (pixels.min() >= 0 and pixels.max() <= 1):
        message = "Expected a pattern (h, w, 3) in uint8, or in floats within [0, 1]"
        raise ValueError(f"{message}, but got {pixels.dtype} {pixels.shape}.")
    return pixels.astype(np.float32)
