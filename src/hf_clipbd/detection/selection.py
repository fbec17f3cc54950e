# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The w smallest of many distances a row: a limit from the smallest of groups, then whatever lies under it.

Floating-point numbers that are not negative are in the order of the integers that have their bits, which processors
compare several times faster; negative ones, what rounding leaves of distances of 0, come before all of them.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


LARGEST_GROUP = 64
GROUPS_FOR_EACH = 4
"""Groups that the limit is taken from, at least so many times w."""
MANY = 2
"""Rows with more than so many times w under the limit, which takes ties, are cut to w."""
CODES = {torch.bfloat16: torch.int16, torch.float32: torch.int32}
FAR = {torch.int16: 0x7F80, torch.int32: 0x7F800000}
"""The code of infinity."""


class Selected(NamedTuple):
    """What was selected of each row.

    Args:
        columns: (B, W), int64, in any order; -1 where a row has less than W.
        codes: (B, W), theirs; `FAR` there.
        limit: (B,), a code; those of columns that were not selected are that or more.
    """

    columns: Tensor
    codes: Tensor
    limit: Tensor


def codes_of(values: Tensor) -> Tensor:
    """Return bfloat16 or float32 values as integers of the same order, without a copy.

    Example:
        >>> codes_of(torch.tensor([0.0, 0.5, 2.0])).diff().gt(0).all().item()
        True
    """
    return values.view(CODES[values.dtype])


def values_of(codes: Tensor) -> Tensor:
    """Return the float32 values of codes."""
    return codes.view(next(kind for kind, code in CODES.items() if code == codes.dtype)).float()


def kth_smallest(values: Tensor, k: int) -> Tensor:
    """Return the k-th smallest of each row, (B,).

    Args:
        values: (B, C), numbers or codes.
        k: In [1, C].
    """
    if values.device.type == "cpu":  # numpy's selection uses vector units
        return torch.from_numpy(np.partition(values.numpy(), k - 1, axis=1)[:, k - 1].copy())
    return values.topk(k, dim=1, largest=False).values[:, -1]


def group_minima(codes: Tensor, size: int) -> Tensor:
    """Return the smallest code of each group of `size` columns, (B, C // size); columns left over count not.

    Group g holds the columns g, g + G, g + 2 G and so on, G the number of groups.

    Args:
        codes: (B, C), C at least `size`.
        size: Columns a group.
    """
    groups = codes.shape[1] // size
    return codes[:, : groups * size].unflatten(1, (size, groups)).amin(1)


def limit_of(codes: Tensor, w: int) -> Tensor:
    """Return a code a row, (B,), that at least w columns do not exceed, and seldom many more.

    It is the w-th smallest of the smallest of groups: w groups have a column under it.

    Args:
        codes: (B, C).
        w: At least 1; where there are no more columns it is `FAR`.
    """
    columns = codes.shape[1]
    if columns <= w:
        return codes.new_full((len(codes),), FAR[codes.dtype])
    size = LARGEST_GROUP
    while size > 1 and columns // size < GROUPS_FOR_EACH * w:
        size //= 2
    minima = group_minima(codes, size) if size > 1 else codes
    return kth_smallest(minima, w).clamp_min_(0)


def select(codes: Tensor, w: int, limit: Tensor | None = None) -> Selected:
    """Return at least the w smallest of each row, as far as they do not exceed a limit.

    Args:
        codes: (B, C), the last dimension contiguous.
        w: How many, at least 1.
        limit: (B,), a code that w columns looked at before do not exceed.
    """
    rows, columns = codes.shape
    bound = limit_of(codes, w)
    limit = bound if limit is None else torch.minimum(limit, bound)
    under = codes <= limit[:, None]
    most = MANY * w
    if columns > most and _count(under) > rows * most:
        over = torch.ones(rows, dtype=torch.bool, device=codes.device)
        row = column = torch.empty(0, dtype=torch.int64, device=codes.device)
    else:
        hits = _places(under)
        row = hits.div(columns, rounding_mode="floor")
        column = hits - row * columns
        over = torch.bincount(row, minlength=rows) > most
        if over.any():
            kept = ~over[row]
            row, column = row[kept], column[kept]
    counts = torch.bincount(row, minlength=rows)
    width = max(int(counts.max()), w if over.any() else 1)
    found = torch.full((rows, width), -1, device=codes.device)
    found[row, torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]] = column
    if over.any():
        cut = codes[over].topk(w, dim=1, largest=False, sorted=False)
        found[over, :w] = cut.indices
        limit = limit.masked_scatter(over, torch.minimum(limit[over], cut.values.amax(1).clamp_min(0)))
    return Selected(found, _at(codes, found), limit)


def merged(old: Selected | None, new: Selected, first: int, w: int) -> Selected:
    """Return two selections as one; the columns of the new one count from `first`.

    Args:
        old: That of earlier columns, if any.
        new: That of later ones, under a limit that is not above the old one's.
        first: Number of the first of the later ones.
        w: As in `select`.
    """
    columns = torch.where(new.columns >= 0, new.columns + first, -1)
    if old is None:
        return Selected(columns, new.codes, new.limit)
    codes = torch.cat([old.codes, new.codes], 1)
    columns = torch.cat([old.columns, columns], 1)
    if columns.shape[1] <= MANY * w:
        return Selected(columns, codes, new.limit)
    best = codes.topk(MANY * w, dim=1, largest=False, sorted=False)
    return Selected(
        columns.gather(1, best.indices), best.values, torch.minimum(new.limit, best.values.amax(1).clamp_min(0))
    )


def _at(codes: Tensor, found: Tensor) -> Tensor:
    return codes.gather(1, found.clamp_min(0)).masked_fill_(found < 0, FAR[codes.dtype])


def _count(mask: Tensor) -> int:
    return np.count_nonzero(mask.numpy()) if mask.device.type == "cpu" else int(mask.sum())


def _places(mask: Tensor) -> Tensor:
    """Return the numbers of the true elements of a matrix, in order."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.flatten().nonzero()[:, 0]
