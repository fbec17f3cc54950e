# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Neighbours of rows that may be points themselves: these are looked up, the others are searched for."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from hf_clipbd.detection.nearest import Neighbors, Points
from hf_clipbd.detection.rows import silent


QUERY_BLOCK = 512


def looked_up(
    own: Tensor, known: Sequence[Tensor] | None, search: Callable[[Tensor], Sequence[Tensor]]
) -> Sequence[Tensor]:
    """Return what is known of rows that are points of a reference, and for the others what a search finds.

    Args:
        own: Position of each row in the reference, (B,), -1 where it is not in it.
        known: Tensors with a row for each point, or None.
        search: From the numbers of some rows to such tensors for these.

    Returns:
        Tensors with a row for each of the B rows.
    """
    new = torch.arange(len(own), device=own.device) if known is None else (own < 0).nonzero()[:, 0]
    if len(new) == len(own):
        return search(new)
    joined = [part[own.clamp_min(0)] for part in known]
    if len(new):
        for whole, found in zip(joined, search(new), strict=True):
            whole[new] = found
    return joined


def nearest_of(
    points: Points,
    placed: Tensor,
    own: Tensor,
    pairs: Sequence[tuple[int, int]],
    tables: Sequence[Neighbors | None],
) -> list[Neighbors]:
    """Return, for each (size, k), the k nearest among the first `size` points of each row.

    Args:
        points: What is searched.
        placed: Rows as `Reference.place` gives them, (B, D).
        own: Their positions among the points, (B,), -1 for none.
        pairs: (size, k).
        tables: What `tables_of` gives for them, None where it was not asked.
    """
    sizes, ks = zip(*pairs, strict=True)

    def search(rows: Tensor) -> list[Tensor]:
        found = points.nearest(placed[rows], own[rows], sizes, ks)
        return [part for one in found for part in one]

    known = None if any(table is None for table in tables) else [part for table in tables for part in table]
    parts = looked_up(own, known, search)
    return [Neighbors(*pair) for pair in zip(parts[::2], parts[1::2], strict=True)]


def tables_of(points: Points, pairs: Sequence[tuple[int, int]]) -> list[Neighbors]:
    """Return, for each (size, k), the k nearest among the first `size` points of each point, (m, k)."""
    sizes, ks = zip(*pairs, strict=True)
    count, parts = len(points.points), []
    for start in tqdm(range(0, count, QUERY_BLOCK), desc="reference", disable=silent(count)):
        own = torch.arange(start, min(start + QUERY_BLOCK, count), device=points.points.device)
        parts.append(points.nearest(points.points[own], own, sizes, ks))
    return [Neighbors(*(torch.cat(part) for part in zip(*blocks, strict=True))) for blocks in zip(*parts, strict=True)]
