# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Reference sets: the rows that everything is compared with, and the nearest of them to any features.

Let R be m reference rows. `d_i(x)` is the i-th smallest Euclidean distance from x to R without x itself, `N_k(x)` the
k nearest rows. A row that is bit for bit another one is that one: copies in R are collapsed, and a row whose copy is
in R is not its own neighbour, so that a picture repeated a thousand times is neither dense nor infinitely far.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from hf_clipbd.detection.kept import Kept
from hf_clipbd.detection.lookup import QUERY_BLOCK, looked_up, nearest_of, tables_of
from hf_clipbd.detection.nearest import Neighbors, Points, best_precision
from hf_clipbd.detection.rows import contents, first_copies, matrix


logger = logging.getLogger(__name__)

FLOOR = 1e-3
"""Distances below this one are taken for it, so that no ratio of distances is infinite."""
DEFAULT_M = 16384
REFERENCE_BLOCK = 16384
COARSE = 32
"""The coarse distance of a row is that to the nearest of so many random points."""


@dataclass(frozen=True, eq=False)
class Reference:
    """The rows that everything is compared with. Built by `Reference.sample`, `Reference.of` or `Reference.nested`.

    Args:
        points: (m, D), float32: the distinct rows, of unit length if `normalize`, less their mean (distances do not
            change, products of smaller numbers round less).
        center: (D,), that mean.
        rows: (m,), row number of each point in the features it was taken from.
        position_of: Content of a point -> its position; of nested references, that in the largest.
        duplicates: How many rows were left out as copies of others.
        normalize: Whether rows are scaled to unit length.
        precision: Arithmetic of the search, `"float32"` or `"bfloat16"`: somewhat more than k candidates are found
            with it; the distances of these are float32 in either case.
        distributed: Whether each process of a `torch.distributed` group scores a share of the rows.
    """

    points: Tensor
    center: Tensor
    rows: np.ndarray
    position_of: dict[int, int]
    duplicates: int
    normalize: bool = True
    precision: Literal["float32", "bfloat16"] = "float32"
    distributed: bool = False
    _tables: dict[int, Neighbors] = field(default_factory=dict, repr=False)
    _around: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)
    _family: "_Family | None" = field(default=None, repr=False)
    _kept: Kept | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        vectors: Any,
        normalize: bool = True,
        precision: Literal["float32", "bfloat16"] | None = None,
        device: str | torch.device = "cpu",
        distributed: bool = False,
    ) -> "Reference":
        """Return a reference of all rows of `vectors`: a clean set of one's own, or the searched set itself.

        Args:
            vectors: (M, D), M at least 3 distinct rows.
            normalize: Scale rows to unit length.
            precision: Arithmetic of the search; by default bfloat16 where the device has units for it.
            device: Where to compute.
            distributed: Share the rows among the processes of a `torch.distributed` group; every one has to make the
                same calls on the same features, and gets all scores.

        Raises:
            ValueError: If it is no finite matrix of at least three distinct rows, or the precision is unknown.
        """
        precision = best_precision(str(device)) if precision is None else precision
        if precision not in ("float32", "bfloat16"):
            raise ValueError(f'Expected precision "float32" or "bfloat16", but got {precision!r}.')
        vectors = matrix(vectors)
        first = first_copies(vectors)
        rows = np.flatnonzero(first == np.arange(len(vectors)))
        duplicates = len(vectors) - len(rows)
        if len(rows) < 3:
            raise ValueError(f"Expected at least 3 distinct reference rows, but got {len(rows)}.")
        if duplicates:
            logger.info("%d of %d reference rows are copies of others and count once", duplicates, len(vectors))
        distinct = np.ascontiguousarray(vectors[rows], dtype=np.float32) + np.float32(0)
        position_of = {content: i for i, content in enumerate(contents(distinct))}
        points = torch.from_numpy(distinct).to(device)
        points = torch.nn.functional.normalize(points, dim=1) if normalize else points
        center = points.mean(0)
        return cls(points - center, center, rows, position_of, duplicates, normalize, precision, distributed)

    @classmethod
    def sample(
        cls, features: Any, m: int | None = None, seed: int = 0, normalize: bool = True, **options: Any
    ) -> "Reference":
        """Return a reference of m random rows of `features`.

        Args:
            features: (N, D), the searched set.
            m: How many; min(16384, N) by default.
            seed: Seed of the choice.
            normalize: Scale rows to unit length.
            **options: `precision`, `device` and `distributed` as in `of`.

        Raises:
            ValueError: If m is not in [3, N], or as in `of`.
        """
        features = matrix(features)
        m = min(DEFAULT_M, len(features)) if m is None else m
        return cls._chosen(features, np.sort(_drawn(features, m, seed)), normalize, options)

    @classmethod
    def nested(
        cls,
        features: Any,
        pairs: Sequence[tuple[int, int]],
        seed: int = 0,
        normalize: bool = True,
        **options: Any,
    ) -> "list[Reference]":
        """Return references of several sizes, each the first rows of the largest, to be searched in one pass.

        Args:
            features: (N, D), the searched set.
            pairs: (m, k) of each reference; where copies leave fewer rows than m, these.
            seed: Seed of the choice.
            normalize: Scale rows to unit length.
            **options: `precision`, `device` and `distributed` as in `of`.

        Returns:
            One reference for each pair, for `nested_scores`; each also serves alone, as any other.

        Raises:
            ValueError: If an m is not in [3, N] or a k not in [1, m - 1], or as in `of`.
        """
        features = matrix(features)
        if not pairs or min(m for m, _ in pairs) < 3:
            raise ValueError(f"Expected pairs (m, k) with m at least 3, but got {list(pairs)}.")
        chosen = _drawn(features, max(m for m, _ in pairs), seed)
        largest = cls._chosen(features, chosen, normalize, options)
        family = _Family(largest, [(min(m, len(largest)), k) for m, k in pairs])
        return [family.member(size) for size, _ in family.pairs]

    @classmethod
    def _chosen(cls, features: np.ndarray, chosen: np.ndarray, normalize: bool, options: dict) -> "Reference":
        reference = cls.of(features[chosen], normalize, **options)
        reference.rows[:] = chosen[reference.rows]
        return reference

    def __len__(self) -> int:
        return len(self.points)

    def table(self, k: int) -> Neighbors:
        """Return the k nearest other points of each point, (m, k); computed once for each k."""
        if self._family is not None and (len(self), k) in self._family.pairs:
            whole = self._family.tables[self._family.pairs.index((len(self), k))]
            return Neighbors(*(part[: len(self)] for part in whole))
        known = self._known(k)
        if known is None:
            (known,) = tables_of(self._search, [(len(self), k)])
            self._tables[k] = known
        return known

    def _known(self, k: int) -> Neighbors | None:
        """Return what `table` gives where it, or one of more neighbours, was computed before."""
        enough = [one for one in self._tables if one >= k]
        return Neighbors(*(part[:, :k] for part in self._tables[min(enough)])) if enough else None

    def place(self, block: np.ndarray) -> Tensor:
        """Return float32 rows (B, D) where the points lie: of unit length if `normalize`, less the center."""
        rows = torch.from_numpy(block).to(self.points.device)
        return (torch.nn.functional.normalize(rows, dim=1) if self.normalize else rows) - self.center

    def nearest(self, block: np.ndarray, k: int, own: Tensor | None = None) -> Neighbors:
        """Return the k nearest points of each row, without the row itself or its copy.

        Args:
            block: (B, D), float32, finite.
            k: How many, in [1, m - 1].
            own: What `positions` gives for them, where it is known.
        """
        own = self.positions(contents(block)) if own is None else own
        table = self._known(k) if self._kept is None else self.table(k)

        def search() -> Neighbors:
            return nearest_of(self._search, self.place(block), own, [(len(self), k)], [table])[0]

        return search() if self._kept is None else self._kept.nearest(id(self), block, k, search)

    def surroundings(self, block: np.ndarray, k: int, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the coarse distance of each row and positions of its k nearest points, without the row or its copy.

        The coarse distance is that to the nearest of 32 random points, typically (`Points.surroundings`): 2.1 % of
        the reference lie within it. Of fewer than 512 points it is the nearest of a sixteenth.

        Args:
            block: (B, D), float32, finite.
            k: Near points, in [1, m - 1].
            own: What `positions` gives for them, where it is known.

        Returns:
            Distances (B,), float64, at least `FLOOR`, and positions (B, k), int64, nearest first.
        """
        own = self.positions(contents(block)) if own is None else own
        placed = self.place(block)
        return looked_up(own, self._around.get(k), lambda rows: self._surroundings(placed[rows], own[rows], k))

    def surroundings_of_points(self, k: int) -> tuple[Tensor, Tensor]:
        """Return the coarse distance (m,) and the k nearest other points (m, k) of each point; computed once."""
        if k not in self._around:
            blocks = torch.arange(len(self), device=self.points.device).split(QUERY_BLOCK)
            parts = [self._surroundings(self.points[own], own, k) for own in blocks]
            self._around[k] = tuple(torch.cat(part) for part in zip(*parts, strict=True))
        return self._around[k]

    def _surroundings(self, placed: Tensor, own: Tensor, k: int) -> tuple[Tensor, Tensor]:
        search, order, place = self._shuffled
        moved = torch.where(own >= 0, place[own.clamp_min(0)], own)
        distances, near = search.surroundings(placed, moved, k, min(COARSE, max(2, len(self) // 16)))
        return distances.double().clamp_min_(FLOOR), order[near.positions]

    def positions(self, found: Sequence[int]) -> Tensor:
        """Return the position of each content (`rows.contents`) among the points, -1 where it is none of them."""
        own = torch.tensor([self.position_of.get(content, -1) for content in found])
        return own.masked_fill_(own >= len(self), -1).to(self.points.device)

    @cached_property
    def _search(self) -> Points:
        return Points(self.points, self.precision, REFERENCE_BLOCK)

    @cached_property
    def _shuffled(self) -> tuple[Points, Tensor, Tensor]:
        """The points in random order, so that any groups of them are random; the order, and the place of each."""
        order = torch.from_numpy(np.random.default_rng(len(self)).permutation(len(self))).to(self.points.device)
        return Points(self.points[order], self.precision, REFERENCE_BLOCK), order, order.argsort()


class _Family:
    """Nested references: the largest, and the (size, k) that are searched together."""

    def __init__(self, largest: Reference, pairs: list[tuple[int, int]]):
        self.largest, self.pairs = largest, pairs
        for size, k in pairs:
            check_k(k, largest.points[:size])

    def member(self, size: int) -> Reference:
        """Return the reference of the first `size` points."""
        of = self.largest
        return Reference(
            of.points[:size],
            of.center,
            of.rows[:size],
            of.position_of,
            of.duplicates,
            of.normalize,
            of.precision,
            of.distributed,
            _family=self,
        )

    @cached_property
    def tables(self) -> list[Neighbors]:
        """For each pair the nearest of *all* points of the largest, (m, k)."""
        return tables_of(self.largest._search, self.pairs)


def _drawn(features: np.ndarray, m: int, seed: int) -> np.ndarray:
    if not 3 <= m <= len(features):
        raise ValueError(f"Expected m in [3, {len(features)}], the number of rows, but got {m}.")
    return np.random.default_rng([seed, m]).choice(len(features), m, replace=False)


def check_k(k: int, reference: Any) -> None:
    """Raise `ValueError` unless k is in [1, m - 1]."""
    if not 1 <= k < len(reference):
        raise ValueError(f"Expected k in [1, {len(reference) - 1}] for {len(reference)} reference rows, but got {k}.")
