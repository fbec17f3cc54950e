# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Features read block by block and checked, and which of their rows are copies of each other."""

import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch


Item = TypeVar("Item")
ROOM = 16
"""By how much the largest number exceeds what a squared length may be: distances from the mean, and sums of two."""


def matrix(features: Any) -> np.ndarray:
    """Return `features` as a floating-point matrix (rows, dimensions), or raise `ValueError`.

    Tensors may be on any device; those of bfloat16, which NumPy lacks, become float32.
    """
    if isinstance(features, torch.Tensor):
        features = features.detach().cpu()
        features = (features.float() if features.dtype == torch.bfloat16 else features).numpy()
    if np.ma.is_masked(features):
        raise ValueError(
            f"Expected features without a mask, but {np.ma.count_masked(features)} values are masked. Drop their rows."
        )
    features = np.asarray(features)
    if features.ndim != 2 or features.shape[1] < 1 or not np.issubdtype(features.dtype, np.floating):
        raise ValueError(
            f"Expected features (rows, dimensions) of floating point, but got {features.shape} {features.dtype}."
        )
    return features


def row_blocks(
    features: Any, size: int = 1024, first: int = 0, dtype: type[np.floating] = np.float32
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield (rows, float32 copy of them), `size` rows at a time; raises `ValueError` as `check_rows`.

    Args:
        features: (N, D); only a block of a memory map is read at a time.
        size: Rows a block.
        first: Number that the first row has in messages, where the features are a part of a set.
        dtype: Of the copy.
    """
    features = matrix(features)
    for start in range(0, len(features), size):
        rows = slice(start, min(start + size, len(features)))
        block = np.ascontiguousarray(features[rows], dtype=dtype) + dtype(0)  # -0.0 becomes 0.0
        check_rows(block, "features", range(first + start, first + rows.stop))
        yield rows, block


def check_rows(block: np.ndarray, name: str, numbers: Sequence[int] | np.ndarray) -> None:
    """Raise `ValueError` for a row with NaN or infinity, or so long that squares of distances overflow.

    Args:
        block: (B, D).
        name: What the rows are called in the message.
        numbers: The number of each row in it, (B,).
    """
    squared, limit = np.einsum("ij,ij->i", block, block), np.finfo(block.dtype).max / ROOM
    fine = squared < limit  # not where a value is NaN or infinite
    if fine.all():
        return
    row = int(fine.argmin())
    if not np.isfinite(block[row]).all():
        raise ValueError(f"Expected finite {name}, but row {numbers[row]} holds NaN or infinity.")
    raise ValueError(
        f"Expected {name} of lengths under {limit**0.5:.1e}, since {block.dtype} holds no larger squares, but row "
        f"{numbers[row]} has {np.linalg.norm(block[row].astype(np.longdouble)):.1e}. Divide all rows by one number."
    )


def silent(n: int) -> bool | None:
    """Return what tqdm takes for a bar that shows for large sets only, and on a terminal only (None)."""
    return n < 30_000 or None


def ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Yield the items of an iterable; a thread reads the next one while the caller works on this one."""
    source = iter(items)
    end = object()
    with ThreadPoolExecutor(1) as reader:
        following = reader.submit(next, source, end)
        while (item := following.result()) is not end:
            following = reader.submit(next, source, end)
            yield item


def slice_of_process(n: int, block: int) -> slice:
    """Return which of n rows this process of a `torch.distributed` group works on: whole blocks, all without one."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return slice(0, n)
    processes, mine = torch.distributed.get_world_size(), torch.distributed.get_rank()
    share = block * math.ceil(math.ceil(n / block) / processes)
    return slice(min(n, mine * share), min(n, (mine + 1) * share))


def gathered(part: np.ndarray) -> np.ndarray:
    """Return the parts of all processes joined along the last axis, on every process."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return part
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, part)
    return np.concatenate(parts, axis=-1)


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


def copies_of(numbers: Any) -> tuple[np.ndarray, list[list[int]]]:
    """Return the first row of each content, and the rows of every content that occurs more than once.

    Args:
        numbers: (N,), integers, the same for rows of the same content.

    Returns:
        (N,), int64, the first row with the content of each row; and lists of row numbers, the longest list first.

    Example:
        >>> first, copies = copies_of([7, 5, 7, 5, 7, 1])
        >>> first.tolist(), copies
        ([0, 1, 0, 1, 0, 5], [[0, 2, 4], [1, 3]])
    """
    _, first, kind, counts = np.unique(np.asarray(numbers), return_index=True, return_inverse=True, return_counts=True)
    repeated = np.flatnonzero(counts > 1)
    order = np.argsort(kind, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)])
    copies = [order[starts[one] : starts[one + 1]].tolist() for one in repeated]
    return first[kind], sorted(copies, key=lambda rows: (-len(rows), rows[0]))
