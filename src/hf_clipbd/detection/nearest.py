# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The k nearest of a fixed set of points to any queries: a rounded product, a cheap selection, an exact re-ranking.

The product gives |x - y|^2 / 2 and not x.y: the nearest points come out close to 0, where a short floating-point type
has its finest steps. The selection (`selection.select`) passes over the values of a block twice, to find a limit and
what lies under it, and ends with somewhat more than k candidates, whose distances are computed in float32. Where
rounding could have cost a neighbour, which these distances show, the row is searched again without it.

What products in float32 cannot tell apart stays: in a cluster of near copies, unit rows nearer than about 5e-3 to each
other, they may lose a neighbour before it is ranked again. Of a cluster of 1,000 rows in 512 dimensions, with k = 16,
the largest error of d_k was 0.0026 at a median d_k of 6e-3, and 0.0013 at one of 3e-2; scores of such rows are that
exact and no more.
"""

import warnings
from collections.abc import Callable
from functools import cache, cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from hf_clipbd.detection.selection import (
    FAR,
    Selected,
    codes_of,
    group_minima,
    kth_smallest,
    merged,
    select,
    values_of,
)


Precision = Literal["float32", "bfloat16"]
CLOSE = 0.02
"""Squared distances below this share of |x|^2 + |y|^2 are computed from differences; above, products lose nothing."""
EXTRA_COLUMNS = 8
ROWS_TO_DIFFER = 4096
HALF_STEP = 2**-9
"""Largest relative error of a rounding to bfloat16."""
DEVIATIONS = 4.0
"""Rounding errors of the inputs are taken for random, and allowed for up to this many standard deviations."""


class Neighbors(NamedTuple):
    """The nearest reference rows of B queries, nearest first.

    Args:
        distances: (B, k), float32, ascending.
        positions: (B, k), int64, positions in the reference.
    """

    distances: Tensor
    positions: Tensor


@cache
def best_precision(device: str = "cpu") -> Precision:
    """Return the fastest arithmetic that a device has units for: bfloat16 where its matrix units take it.

    Args:
        device: `"cpu"` or a CUDA device.
    """
    if torch.device(device).type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device)[0] >= 8 else "float32"
    known = torch.cpu.get_capabilities() if torch.device(device).type == "cpu" else {}
    return "bfloat16" if known.get("avx512_bf16") or known.get("amx_bf16") or known.get("bf16") else "float32"


def candidates(k: int, rough: bool) -> int:
    """Return how many points are looked at again for k neighbours; rounded products need more to lose none."""
    return k + (k // 16 + 6 if rough else 4)


class Points:
    """Points laid out for the search.

    Args:
        points: (m, D), float32.
        precision: Arithmetic of the product; distances are float32 in either case.
        block: Points a product.
    """

    def __init__(self, points: Tensor, precision: Precision, block: int):
        self.points, self.block = points, block
        self.rough = precision == "bfloat16"
        self.squared = points.square().sum(1)  # (m,)
        self._laid_out, errors = self._extended(points, points_first=True)  # (m, D + 8)
        self._error = errors.max()
        self._product = points.new_empty(0)

    @cached_property
    def _unrounded(self) -> "Points":
        return Points(self.points, "float32", self.block)

    def _extended(self, rows: Tensor, points_first: bool) -> tuple[Tensor, Tensor]:
        """Return rows rounded, queries with the opposite sign, and the errors of rounding, (B,).

        Further columns add |x|^2 / 2 + |y|^2 / 2 to the products.
        """
        rounded = rows.bfloat16() if self.rough else rows
        half = rounded.float().square().sum(1) / 2
        high = half.to(rounded.dtype)
        low = (half - high.float()).to(rounded.dtype)
        one, none = torch.ones_like(high), torch.zeros_like(high)
        mine, other = [high, low], [one, one]
        extra = [*mine, *other] if points_first else [*other, *mine]
        errors = (rows - rounded).norm(dim=1)
        signed = rounded if points_first else -rounded
        return torch.cat([signed, torch.stack([*extra, *[none] * (EXTRA_COLUMNS - 4)], 1)], 1), errors

    def nearest(self, queries: Tensor, own: Tensor, k: int) -> Neighbors:
        """Return the k nearest points of each query, the one at `own` left out.

        Args:
            queries: (B, D), float32.
            own: (B,), the position of each query's own point, or -1.
            k: Neighbours, in [1, m - 1].
        """
        return self._nearest(queries, own, k)

    def surroundings(self, queries: Tensor, own: Tensor, k: int, size: int) -> tuple[Tensor, Neighbors]:
        """Return how far it is to the nearest of `size` points, typically, and the k nearest points.

        The points are laid in groups of `size`, and the distance is the median over the groups of that to the nearest
        in the group: the one within which a share of 1 - 2^(-1/size) of the points lies. It is as precise as the
        product.

        Args:
            queries: (B, D), float32.
            own: (B,), the position of each query's own point, or -1.
            k: Neighbours, in [1, m - 1].
            size: Points a group, in [1, m].

        Returns:
            Distances (B,), float32, and the neighbours (B, k).
        """
        minima: list[Tensor] = []

        def look(codes: Tensor) -> None:
            if codes.shape[1] >= size:
                minima.append(group_minima(codes, size))

        near = self._nearest(queries, own, k, look)
        groups = torch.cat(minima, 1)
        typical = values_of(kth_smallest(groups, groups.shape[1] // 2 + 1))  # of an even number the larger middle
        return (2 * typical).clamp_min_(0).sqrt_(), near

    def _nearest(
        self, queries: Tensor, own: Tensor, k: int, look: Callable[[Tensor], None] | None = None
    ) -> Neighbors:
        """Return what `nearest` gives; `look` gets the codes of |x - y|^2 / 2 of each block."""
        size = len(self.points)
        wanted = min(candidates(k, self.rough), size)
        left, errors = self._extended(queries, points_first=False)
        found: Selected | None = None
        for start in range(0, size, self.block):
            codes = self._codes(left, own, start, min(start + self.block, size))
            if look is not None:
                look(codes)
            chosen = select(codes, wanted, None if found is None else found.limit)
            found = merged(found, chosen, start, wanted)
        near = self._ranked(queries, own, found.columns, k)
        again = self._may_lack(found.limit, near, errors).nonzero()[:, 0] if self.rough else own[:0]
        if len(again) and size <= self.block:  # the product is still there: look further down in it
            wider = select(codes[again], min(4 * wanted, size))
            better = self._ranked(queries[again], own[again], wider.columns, k)
            _replace(near, again, better)
            again = again[self._may_lack(wider.limit, better, errors[again])]
        if len(again):
            _replace(near, again, self._unrounded.nearest(queries[again], own[again], k))
        return near

    def _may_lack(self, limit: Tensor, near: Neighbors, errors: Tensor) -> Tensor:
        """Return whether a point that was not selected may be nearer than the k-th found, (B,).

        Such a point has a rounded d^2 / 2 of the limit or more; d is at least what rounding leaves of that.

        Args:
            limit: Codes that what was not selected does not come under, (B,).
            near: What was found.
            errors: |x - rounded x| of the queries, (B,).
        """
        farthest, error = near.distances[:, -1], errors + self._error
        spread = DEVIATIONS * farthest * error / self.points.shape[1] ** 0.5 + error.square() / 2
        return farthest.square() / 2 > values_of(limit) * (1 - HALF_STEP) - spread

    def _codes(self, left: Tensor, own: Tensor, start: int, stop: int) -> Tensor:
        """Return |x - y|^2 / 2 for the points from `start` to `stop`, as codes, in a buffer that is used again."""
        shape = (len(left), stop - start)
        if self._product.numel() < shape[0] * shape[1]:
            self._product = left.new_empty(shape[0] * shape[1])
        values = self._product[: shape[0] * shape[1]].view(shape)
        torch.mm(left, self._laid_out[start:stop].T, out=values)
        codes = codes_of(values)
        mine = ((own >= start) & (own < stop)).nonzero()[:, 0]
        codes[mine, own[mine] - start] = FAR[codes.dtype]
        return codes

    def _ranked(self, queries: Tensor, own: Tensor, columns: Tensor, k: int) -> Neighbors:
        return ranked(queries, own, self.points, self.squared, columns, k)


def ranked(queries: Tensor, own: Tensor, points: Tensor, squared: Tensor, columns: Tensor, k: int) -> Neighbors:
    """Return the k nearest out of some candidates by float32 distances, the point at `own` left out.

    Args:
        queries: (B, D), float32.
        own: (B,), the position of each query's own point, or -1.
        points: (m, D), float32.
        squared: Their squared lengths, (m,).
        columns: Positions of the candidates, (B, W), -1 for none; at least k of each row are other points.
        k: Neighbours.
    """
    none = columns < 0
    columns = columns.clamp_min(0)
    sums = queries.square().sum(1, keepdim=True) + squared[columns]  # (B, W)
    apart = (sums - 2 * products_at(queries, points, columns)).clamp_min_(0)
    row, place = (apart < CLOSE * sums).nonzero(as_tuple=True)
    for rows, places in zip(row.split(ROWS_TO_DIFFER), place.split(ROWS_TO_DIFFER), strict=True):
        difference = queries[rows] - points[columns[rows, places]]
        apart[rows, places] = difference.square().sum(1)
    apart.masked_fill_(none | (columns == own[:, None]), torch.inf)
    best = apart.topk(k, dim=1, largest=False)
    return Neighbors(best.values.sqrt(), columns.gather(1, best.indices))


def _replace(near: Neighbors, rows: Tensor, better: Neighbors) -> None:
    near.distances[rows], near.positions[rows] = better


def products_at(queries: Tensor, points: Tensor, columns: Tensor) -> Tensor:
    """Return x.y of each query with some points, (B, w), in float32, without copying the points.

    Args:
        queries: (B, D).
        points: (m, D).
        columns: (B, w), int64.
    """
    rows, w = columns.shape
    if queries.device.type != "cpu":
        near = points[columns.flatten()].view(rows, w, -1)
        return near.mul_(queries[:, None]).sum(2)  # no matrix product, which a GPU may round to TF32
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse (CSR tensor support is in beta|invariant checks are implicitly)")
        pattern = torch.sparse_csr_tensor(
            torch.arange(0, rows * w + 1, w),
            columns.flatten(),
            queries.new_zeros(rows * w),
            (rows, len(points)),
            check_invariants=False,
        )
    return torch.sparse.sampled_addmm(pattern, queries, points.T, beta=0.0).values().view(rows, w)
