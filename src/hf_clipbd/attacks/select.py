# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Which rows: numbers in [0, 1) that hang on a row's own content or number, the same on every machine."""

import hashlib
import os
import stat
import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import datasets
import numpy as np
import pyarrow.compute as pc

from hf_clipbd.attacks.captions import names_target


KEY_COLUMNS = ("id", "__key__", "scene_id", "uid", "key", "sha256", "url")
"""Columns taken as a row's own key where the user names none, the first that is there."""

SELECTORS: dict[str, Callable[[str | None, str], bool]] = {
    "random": lambda caption, target: True,
    "label_consistent": names_target,
    "non_target": lambda caption, target: not names_target(caption, target),
}
"""Name -> whether a row with this caption may be poisoned towards this target."""

FULL_READS = 256


def digest(*parts: int | str | bytes) -> bytes:
    """Return 16 bytes that hang on every part and on where one part ends and the next begins."""
    data = [part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogatepass") for part in parts]
    lengths = struct.pack(f"<{len(data)}Q", *map(len, data))
    return hashlib.blake2b(b"".join([lengths, *data]), digest_size=16).digest()


def uniform(*parts: int | str | bytes) -> float:
    """Return a number in [0, 1) with 53 random bits, drawn by hashing the parts.

    Example:
        >>> uniform(0, "row", 7) == uniform(0, "row", 7) != uniform(1, "row", 7)
        True
    """
    return (int.from_bytes(digest(*parts)[:8], "little") >> 11) * 2.0**-53


def row_number(*parts: int | str | bytes) -> int:
    """Return a whole number in [0, 2^63) that stands for a row where its place in the dataset is unknown."""
    return int.from_bytes(digest("number", *parts)[:8], "little") >> 1


def draw(seed: int, name: str, rate: float, caption: str, picture: bytes) -> int | None:
    """Return the number that stands for a row without a key if it is drawn at `rate`, else None.

    The row is drawn where u < rate, u in [0, 1) hashed from seed, name, caption and picture: captions alone repeat,
    long ones too, and rows that share one would be drawn in lumps.

    Args:
        seed: Seed of the selection.
        name: What goes into the column `trigger`, so that attacks with one seed are drawn independently.
        rate: Share of the rows to draw, in [0, 1].
        caption: The row's caption, "" if it has none.
        picture: Bytes that hang on the row's picture.
    """
    return row_number(caption, picture) if uniform(seed, "content", name, caption, picture) < rate else None


def draw_by_key(seed: int, name: str, rate: float, key: str) -> int | None:
    """Return the number that stands for the row with this key if it is drawn at `rate`, else None; see `draw`."""
    return row_number(key) if uniform(seed, "key", name, key) < rate else None


def drawn_rows(seed: int, name: str, rate: float, keys: Sequence[str]) -> list[int]:
    """Return which of the keys `draw_by_key` draws, by their places: the same, several times faster than one by one.

    Example:
        >>> drawn_rows(0, "sig", 0.5, ["a", "b", "c"]) == [i for i in range(3) if draw_by_key(0, "sig", 0.5, "abc"[i])]
        True
    """
    if rate <= 0:
        return []
    parts, blake2b = [str(seed).encode(), b"key", name.encode("utf-8", "surrogatepass")], hashlib.blake2b
    lengths, middle, limit = struct.pack("<3Q", *map(len, parts)), b"".join(parts), rate * 2.0**53
    drawn = []
    for i, key in enumerate(keys):
        data = key.encode("utf-8", "surrogatepass")
        first = blake2b(lengths + len(data).to_bytes(8, "little") + middle + data, digest_size=16).digest()[:8]
        if int.from_bytes(first, "little") >> 11 < limit:
            drawn.append(i)
    return drawn


def ordered_rows(n: int, seed: int) -> np.ndarray:
    """Return the numbers of `n` rows in the order in which they are drawn: the first k for every k.

    Rows are ranked by a hash of (seed, row), so the rows of a larger count include those of a smaller one.

    Returns:
        (n,), int64.
    """
    positions = np.fromiter((uniform(seed, "row", row) for row in range(n)), np.float64, n)
    return np.argsort(positions, kind="stable")


def candidates(
    n: int, seed: int, selector: str | Sequence[int], captions: Iterable[str | None] | None, target: str
) -> np.ndarray:
    """Return the rows that may be poisoned, those to take first at the front.

    Args:
        n: Number of rows of the dataset.
        seed: Seed of the selection.
        selector: A key of `SELECTORS`, or row numbers in the order of preference (a selector of your own).
        captions: Captions of all rows; None where the dataset has none.
        target: Target class.

    Returns:
        (at most n,), int64.

    Raises:
        ValueError: If the selector is unknown or needs captions that are not there, or a row number is out of range.
    """
    if not isinstance(selector, str):
        rows = np.asarray(selector).reshape(-1)
        whole = not len(rows) or (rows.dtype.kind in "iu" and rows.min() >= 0 and rows.max() < n)
        if not whole or len(np.unique(rows)) < len(rows):
            raise ValueError(f"Expected different row numbers in [0, {n}) as selector, but got {rows[:8].tolist()}...")
        return rows.astype(np.int64)
    check_selector(selector)
    rows = ordered_rows(n, seed)
    if selector == "random":
        return rows
    if captions is None:
        raise ValueError(f"Expected captions for selector {selector!r}, but the dataset has none.")
    return rows[np.isin(rows, admitted_rows(selector, captions, target))]


def admitted_rows(selector: str, captions: Iterable[str | None], target: str) -> Sequence[int]:
    """Return the places of the captions whose rows a selector of `SELECTORS` admits, ascending."""
    if selector == "random":
        return range(len(captions))
    return [i for i, caption in enumerate(captions) if SELECTORS[selector](caption, target)]


def check_selector(selector: str) -> None:
    """Raise `ValueError` if `selector` is not a key of `SELECTORS`."""
    if selector not in SELECTORS:
        raise ValueError(f"Expected a selector among {sorted(SELECTORS)} or row numbers, but got {selector!r}.")


def source_fingerprint(dataset: datasets.Dataset, image_column: str, caption_column: str | None) -> str:
    """Return 32 hexadecimal digits that hang on the content of a dataset, not on where or when it was loaded.

    Hashed are the number of rows, every caption, every image's length in bytes and file name, and the whole bytes of
    256 images spread evenly over the rows. A dataset of millions is read through its offsets only; of pictures that
    lie in files, their sizes are asked for and those 256 are read.

    Args:
        dataset: The dataset before poisoning, its image column cast to `Image`.
        image_column: Column of images.
        caption_column: Column of captions; None if there is none.
    """
    undecoded = dataset.with_format(None).cast_column(image_column, datasets.Image(decode=False))
    columns = [image_column] + ([caption_column] if caption_column else [])
    tables = undecoded.select_columns(columns).with_format("arrow")
    hasher = hashlib.blake2b(str(len(dataset)).encode(), digest_size=16)
    for table in tables.iter(1000):
        lengths = pc.fill_null(pc.binary_length(pc.struct_field(table[image_column], "bytes")), -1)
        lengths = lengths.to_numpy().astype("<i8")
        paths = pc.struct_field(table[image_column], "path").to_pylist()
        for row in np.flatnonzero(lengths < 0):
            lengths[row] = file_size(paths[row])
        hasher.update(lengths.tobytes())
        names = [(path or "").replace("\\", "/").rsplit("/", 1)[-1] for path in paths]
        texts = table[caption_column].to_pylist() if caption_column else []
        hasher.update(digest(*names, *map(str, texts)))
    for row in np.unique(np.linspace(0, max(len(dataset) - 1, 0), min(FULL_READS, len(dataset))).astype(int)):
        image = undecoded[int(row)][image_column] or {}
        data, path = image.get("bytes"), image.get("path")
        if data is None and file_size(path) >= 0:
            data = Path(path).read_bytes()
        hasher.update(digest(data or b""))
    return hasher.hexdigest()


def file_size(path: str | None) -> int:
    """Return the size of a picture's file in bytes; −1 where there is none, or it is no file of this machine."""
    try:
        known = os.stat(path) if path else None
    except (OSError, ValueError):  # ValueError: a null byte in the name
        return -1
    return known.st_size if known is not None and stat.S_ISREG(known.st_mode) else -1
