# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Features read block by block and checked, and which of their rows are copies of each other."""

from collections.abc import Iterator
from typing import Any

import numpy as np


def matrix(features: Any) -> np.ndarray:
    """Return `features` as a floating-point matrix (rows, dimensions), or raise `ValueError`."""
    features = np.asarray(features)
    if features.ndim != 2 or features.shape[1] < 1 or not np.issubdtype(features.dtype, np.floating):
        raise ValueError(
            f"Expected features (rows, dimensions) of floating point, but got {features.shape} {features.dtype}."
        )
    return features


def row_blocks(features: Any, size: int = 1024) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield (rows, float32 copy of them), `size` rows at a time; raises `ValueError` on NaN or infinity."""
    features = matrix(features)
    for start in range(0, len(features), size):
        rows = slice(start, min(start + size, len(features)))
        block = np.ascontiguousarray(features[rows], dtype=np.float32) + np.float32(0)  # -0.0 becomes 0.0
        if not np.isfinite(block).all():
            bad = start + int(np.flatnonzero(~np.isfinite(block).all(axis=1))[0])
            raise ValueError(f"Expected finite features, but row {bad} holds NaN or infinity.")
        yield rows, block


def contents(block: np.ndarray) -> list[int]:
    """Return a 64-bit number for each row; rows that are bit for bit the same have the same one (in this process)."""
    return [hash(row.tobytes()) for row in block]


def first_copies(features: Any) -> np.ndarray:
    """Return, for each row, the number of the first row that is bit for bit the same (in float32).

    Args:
        features: (N, D).

    Returns:
        (N,), int64; row i is a copy of an earlier row where the value is less than i.

    Raises:
        ValueError: If the features are no finite matrix.

    Example:
        >>> first_copies(np.array([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]])).tolist()
        [0, 1, 0]
    """
    features, seen = matrix(features), {}
    first = np.empty(len(features), dtype=np.int64)
    for rows, block in row_blocks(features):
        numbers = range(rows.start, rows.stop)
        first[rows] = [seen.setdefault(c, i) for i, c in zip(numbers, contents(block), strict=True)]
    return first
