# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The k nearest of a fixed set of points to any queries: a rounded product, a cheap selection, an exact re-ranking.

The product gives -|x - y|^2 / 2 and not x.y: the nearest points come out close to 0, where a short floating-point type
has its finest steps. The selection of the w largest of C values looks at most of them in one pass of maxima only: the
w best lie in at most w groups, those of the w largest maxima, so that these groups alone are looked into. Where
rounding could have cost a neighbour, which the exact distances show, the row is searched again without it.
"""

import warnings
from collections.abc import Sequence
from functools import cache, cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor


Precision = Literal["float32", "bfloat16"]
CLOSE = 0.02
"""Squared distances below this share of |x|^2 + |y|^2 are computed from differences; above, products lose nothing."""
EXTRA_COLUMNS = 8
ROWS_TO_DIFFER = 4096
HALF_STEP = 2**-9
"""Largest relative error of a rounding to bfloat16."""
DEVIATIONS = 4.0
"""Rounding errors of the inputs are taken for random, and allowed for up to this many standard deviations."""
FAR = -3e38


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


def select_largest(values: Tensor, w: int, maxima: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the w largest of each row and their columns, in any order; with ties, some of those that are equal.

    Columns are laid in groups; the w largest lie in at most w of them, those of the w largest maxima. What these hold
    is gone through in the same way until it is too little for that.

    Args:
        values: (B, C); the last dimension contiguous.
        w: How many, in [1, C].
        maxima: What `group_maxima` gave for these values, where it is there already.

    Returns:
        Values (B, w) and columns (B, w), int64.

    Example:
        >>> best, columns = select_largest(torch.tensor([[0.0, 5.0, 1.0, 4.0]]), 2)
        >>> sorted(columns.tolist()[0])
        [1, 3]
    """
    rows, columns = values.shape
    size = 32 if columns >= 96 * w else 8 if columns >= 16 * w else 4
    if maxima is not None and maxima.shape[1] >= 2 * w:
        size = columns // maxima.shape[1]
    else:
        maxima = None
    groups = columns // size
    if groups < 2 * w:
        best = values.topk(w, dim=1, sorted=False)
        return best.values, best.indices
    main = values[:, : groups * size].unflatten(1, (size, groups))  # column = i * groups + group
    maxima = main.amax(1) if maxima is None else maxima
    chosen = maxima.topk(w, dim=1, sorted=False).indices  # (B, w)
    inside = main.gather(2, chosen[:, None].expand(rows, size, w)).flatten(1)  # (B, size * w)
    rest = values[:, groups * size :]
    best, found = select_largest(torch.cat([inside, rest], 1) if rest.shape[1] else inside, w)
    step = found // w
    column = step * groups + chosen.gather(1, found - step * w)
    if rest.shape[1]:
        in_rest = found >= size * w
        column = torch.where(in_rest, found - size * w + groups * size, column)
    return best, column


def group_maxima(values: Tensor, size: int) -> Tensor:
    """Return the largest value of each group of `size` columns, (B, C // size); columns that are left over count not.

    Group g holds the columns g, g + G, g + 2 G and so on, G the number of groups.

    Args:
        values: (B, C), C at least `size`.
        size: Columns a group.
    """
    groups = values.shape[1] // size
    return values[:, : groups * size].unflatten(1, (size, groups)).amax(1)


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
        """Return rows rounded, with columns that add -|x|^2 / 2 - |y|^2 / 2 to their products, and the errors (B,)."""
        rounded = rows.bfloat16() if self.rough else rows
        half = rounded.float().square().sum(1) / -2
        high = half.to(rounded.dtype)
        low = (half - high.float()).to(rounded.dtype)
        one, none = torch.ones_like(high), torch.zeros_like(high)
        mine, other = [high, low], [one, one]
        extra = [*mine, *other] if points_first else [*other, *mine]
        errors = (rows - rounded).norm(dim=1)
        return torch.cat([rounded, torch.stack([*extra, *[none] * (EXTRA_COLUMNS - 4)], 1)], 1), errors

    def nearest(self, queries: Tensor, own: Tensor, sizes: Sequence[int], ks: Sequence[int]) -> list[Neighbors]:
        """Return, for each (size, k), the k nearest among the first `size` points, the one at `own` left out.

        Args:
            queries: (B, D), float32.
            own: (B,), the position of each query's own point, or -1.
            sizes: Numbers of points, each at most m; the product is computed once for all of them.
            ks: Neighbours for each of the sizes, in [1, size - 1].
        """
        wanted = [min(candidates(k, self.rough), size) for size, k in zip(sizes, ks, strict=True)]
        left, errors = self._extended(queries, points_first=False)
        found: list[tuple[Tensor, Tensor] | None] = [None] * len(sizes)
        for start in range(0, max(sizes), self.block):
            values = self._values(left, own, start, min(start + self.block, max(sizes)))
            for i, (size, w) in enumerate(zip(sizes, wanted, strict=True)):
                if size > start:
                    within = values[:, : size - start]
                    best, columns = select_largest(within, min(w, within.shape[1]))
                    found[i] = _merged(found[i], (best, columns + start), w)
        near = [self._ranked(queries, own, columns, k) for (_, columns), k in zip(found, ks, strict=True)]
        if self.rough:
            for i, (size, k) in enumerate(zip(sizes, ks, strict=True)):
                again = self._unsure(found[i], size, near[i], errors)
                if len(again) and max(sizes) <= self.block:  # the product is still there: look further down in it
                    wider = select_largest(values[again, :size], min(4 * wanted[i], size))
                    better = self._ranked(queries[again], own[again], wider[1], k)
                    _replace(near[i], again, better)
                    again = again[self._unsure(wider, size, better, errors[again])]
                if len(again):
                    (better,) = self._unrounded.nearest(queries[again], own[again], [size], [k])
                    _replace(near[i], again, better)
        return near

    def surroundings(self, queries: Tensor, own: Tensor, k: int, size: int) -> tuple[Tensor, Tensor]:
        """Return how far it is to the nearest of `size` points, typically, and k near points, by rounded products.

        The points are laid in groups of `size`, and the distance is the median over the groups of that to the nearest
        in the group: the one within which a share of 1 - 2^(-1/size) of the points lies. It comes with the search for
        the k nearest, which looks for the nearest of each group anyway.

        Args:
            queries: (B, D), float32.
            own: (B,), the position of each query's own point, or -1.
            k: Near points, in [1, m - 1]; as precise as the product, nothing is ranked again.
            size: Points a group, in [1, m].

        Returns:
            Distances (B,), float32, and positions (B, k), int64, the nearest first.
        """
        left, _ = self._extended(queries, points_first=False)
        found: tuple[Tensor, Tensor] | None = None
        nearest_of_groups = []
        for start in range(0, len(self.points), self.block):
            values = self._values(left, own, start, min(start + self.block, len(self.points)))
            maxima = group_maxima(values, size) if values.shape[1] >= size else None
            best, columns = select_largest(values, min(k, values.shape[1]), maxima)
            found = _merged(found, (best, columns + start), k)
            nearest_of_groups += [] if maxima is None else [maxima]
        order = found[0].sort(dim=1, descending=True).indices
        typical = torch.cat(nearest_of_groups, 1).float().median(1).values
        return (-2 * typical).clamp_min_(0).sqrt_(), found[1].gather(1, order)

    def _unsure(self, found: tuple[Tensor, Tensor], size: int, near: Neighbors, errors: Tensor) -> Tensor:
        """Return the rows for which a point that was not selected may be nearer than the k-th found."""
        values, columns = found
        if columns.shape[1] >= size:
            return columns.new_empty(0)
        return self._may_lack(values.amin(1).float(), near.distances[:, -1], errors).nonzero()[:, 0]

    def _may_lack(self, worst: Tensor, farthest: Tensor, errors: Tensor) -> Tensor:
        """Return whether a point that was not selected may be nearer than the k-th found.

        Such a point has a rounded -d^2 / 2 of at most the worst one selected; d is at least what rounding leaves.

        Args:
            worst: The smallest value selected, (B,).
            farthest: Exact distance of the k-th found, (B,).
            errors: |x - rounded x| of the queries, (B,).
        """
        error = errors + self._error
        spread = DEVIATIONS * farthest * error / self.points.shape[1] ** 0.5 + error.square() / 2
        return farthest.square() / 2 > -worst * (1 - HALF_STEP) - spread

    def _values(self, left: Tensor, own: Tensor, start: int, stop: int) -> Tensor:
        """Return -|x - y|^2 / 2 for the points from `start` to `stop`, in a buffer that the next call overwrites."""
        shape = (len(left), stop - start)
        if self._product.numel() < shape[0] * shape[1]:
            self._product = left.new_empty(shape[0] * shape[1])
        values = self._product[: shape[0] * shape[1]].view(shape)
        torch.mm(left, self._laid_out[start:stop].T, out=values)
        mine = (own >= start) & (own < stop)
        values[mine, own[mine] - start] = FAR
        return values

    def _ranked(self, queries: Tensor, own: Tensor, columns: Tensor, k: int) -> Neighbors:
        """Return the k nearest out of some candidates, by float32 distances."""
        sums = queries.square().sum(1, keepdim=True) + self.squared[columns]  # (B, w)
        squared = (sums - 2 * products_at(queries, self.points, columns)).clamp_min_(0)
        row, place = (squared < CLOSE * sums).nonzero(as_tuple=True)
        for rows, places in zip(row.split(ROWS_TO_DIFFER), place.split(ROWS_TO_DIFFER), strict=True):
            difference = queries[rows] - self.points[columns[rows, places]]
            squared[rows, places] = difference.square().sum(1)
        squared.masked_fill_(columns == own[:, None], torch.inf)
        best = squared.topk(k, dim=1, largest=False)
        return Neighbors(best.values.sqrt(), columns.gather(1, best.indices))


def _replace(near: Neighbors, rows: Tensor, better: Neighbors) -> None:
    near.distances[rows], near.positions[rows] = better


def _merged(old: tuple[Tensor, Tensor] | None, new: tuple[Tensor, Tensor], w: int) -> tuple[Tensor, Tensor]:
    """Return the w largest of two selections."""
    if old is None:
        return new
    values, columns = (torch.cat(pair, 1) for pair in zip(old, new, strict=True))
    best = values.topk(min(w, values.shape[1]), dim=1, sorted=False)
    return best.values, columns.gather(1, best.indices)


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
        return torch.bmm(near, queries[:, :, None])[:, :, 0]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        pattern = torch.sparse_csr_tensor(
            torch.arange(0, rows * w + 1, w),
            columns.flatten(),
            queries.new_zeros(rows * w),
            (rows, len(points)),
            check_invariants=False,
        )
    return torch.sparse.sampled_addmm(pattern, queries, points.T, beta=0.0).values().view(rows, w)
