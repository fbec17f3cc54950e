# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Neighbours of rows that may be points themselves: these are looked up, the others are searched for."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from hf_clipbd.detection.faiss_search import FaissPoints
from hf_clipbd.detection.nearest import Neighbors, Points
from hf_clipbd.detection.rows import silent


QUERY_BLOCK = 512
Searched = Points | FaissPoints


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


def nearest_of(points: Searched, placed: Tensor, own: Tensor, k: int, table: Neighbors | None) -> Neighbors:
    """Return the k nearest points of each row.

    Args:
        points: What is searched.
        placed: Rows as `Reference.place` gives them, (B, D).
        own: Their positions among the points, (B,), -1 for none.
        k: How many.
        table: What `table_of` gives for all points, None where it was not asked.
    """
    return Neighbors(*looked_up(own, table, lambda rows: points.nearest(placed[rows], own[rows], k)))


def table_of(points: Searched, k: int, rows: slice) -> Neighbors:
    """Return the k nearest other points of the points from `rows.start` to `rows.stop`, (number of these, k)."""
    parts = []
    for start in tqdm(range(rows.start, rows.stop, QUERY_BLOCK), desc="reference", disable=silent(len(points.points))):
        own = torch.arange(start, min(start + QUERY_BLOCK, rows.stop), device=points.points.device)
        parts.append(points.nearest(points.points[own], own, k))
    if not parts:
        empty = points.points.new_empty(0, k)
        return Neighbors(empty, empty.long())
    return Neighbors(*(torch.cat(part) for part in zip(*parts, strict=True)))
