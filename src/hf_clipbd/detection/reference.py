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

from hf_clipbd.detection.faiss_search import FaissPoints, faiss_module
from hf_clipbd.detection.kept import Kept
from hf_clipbd.detection.lookup import QUERY_BLOCK, Searched, looked_up, nearest_of, table_of
from hf_clipbd.detection.nearest import Neighbors, Points, best_precision
from hf_clipbd.detection.rows import contents, first_copies, gathered, matrix, slice_of_process


logger = logging.getLogger(__name__)

FLOOR = 1e-3
"""Distances below this one are taken for it, so that no ratio of distances is infinite."""
DEFAULT_M = 16384
REFERENCE_BLOCK = 16384
COARSE = 32
"""The coarse distance of a row is that to the nearest of so many random points."""


@dataclass(frozen=True, eq=False)
class Reference:
    """The rows that everything is compared with. Built by `Reference.sample` or `Reference.of`.

    Args:
        points: (m, D), float32: the distinct rows, of unit length if `normalize`, less their mean (distances do not
            change, products of smaller numbers round less).
        center: (D,), that mean.
        rows: (m,), row number of each point in the features it was taken from.
        position_of: Content of a point -> its position.
        duplicates: How many rows were left out as copies of others.
        normalize: Whether rows are scaled to unit length.
        precision: Arithmetic of the search, `"float32"` or `"bfloat16"`: somewhat more than k candidates are found
            with it; the distances of these are float32 in either case.
        distributed: Whether each process of a `torch.distributed` group scores a share of the rows.
        backend: What finds the candidates, `"torch"` or `"faiss"`.
    """

    points: Tensor
    center: Tensor
    rows: np.ndarray
    position_of: dict[int, int]
    duplicates: int
    normalize: bool = True
    precision: Literal["float32", "bfloat16"] = "float32"
    distributed: bool = False
    backend: Literal["torch", "faiss"] = "torch"
    _tables: dict[int, Neighbors] = field(default_factory=dict, repr=False)
    _around: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)
    _kept: Kept | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        vectors: Any,
        normalize: bool = True,
        precision: Literal["float32", "bfloat16"] | None = None,
        device: str | torch.device = "cpu",
        distributed: bool = False,
        backend: Literal["torch", "faiss"] = "torch",
    ) -> "Reference":
        """Return a reference of all rows of `vectors`: a clean set of one's own, or the searched set itself.

        Args:
            vectors: (M, D), M at least 3 distinct rows.
            normalize: Scale rows to unit length.
            precision: Arithmetic of the search; by default bfloat16 where the device has units for it.
            device: Where to compute.
            distributed: Share the rows among the processes of a `torch.distributed` group; every one has to make the
                same calls on the same features, and gets all scores.
            backend: `"faiss"` for candidates out of faiss's exact index (extra `faiss`; float32, processors only),
                for a set that is its own reference, say; distances are the same. Coarse distances, as `multi_scale`
                takes, are the engine's in either case.

        Raises:
            ValueError: If it is no finite matrix of at least three distinct rows, the precision or backend is
                unknown, or faiss is asked for another device or bfloat16.
            ImportError: If faiss is asked for and not installed.
        """
        precision = _checked(precision, torch.device(device), backend)
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
        kind = precision, distributed, backend
        return cls(points - center, center, rows, position_of, duplicates, normalize, *kind)

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
            **options: `precision`, `device`, `distributed` and `backend` as in `of`.

        Raises:
            ValueError: If m is not in [3, N], or as in `of`.
        """
        features = matrix(features)
        m = min(DEFAULT_M, len(features)) if m is None else m
        if not 3 <= m <= len(features):
            raise ValueError(f"Expected m in [3, {len(features)}], the number of rows, but got {m}.")
        chosen = np.sort(np.random.default_rng([seed, m]).choice(len(features), m, replace=False))
        reference = cls.of(features[chosen], normalize, **options)
        reference.rows[:] = chosen[reference.rows]
        return reference

    def __len__(self) -> int:
        return len(self.points)

    def table(self, k: int) -> Neighbors:
        """Return the k nearest other points of each point, (m, k); computed once for each k."""
        known = self._known(k)
        if known is None:
            part = table_of(self._search, k, self.share(len(self)))
            known = self._tables[k] = Neighbors(*(self.joined(one) for one in part))
        return known

    def ready(self, k: int) -> None:
        """Find what `nearest` looks up, where that has to be there before the processes go through their shares."""
        if self._kept is not None:
            self.table(k)

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
            return nearest_of(self._search, self.place(block), own, k, table)

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
            mine = self.share(len(self))
            blocks = torch.arange(mine.start, mine.stop, device=self.points.device).split(QUERY_BLOCK)
            parts = [self._surroundings(self.points[own], own, k) for own in blocks if len(own)]
            if not parts:  # more processes than blocks
                parts = [(torch.empty(0, dtype=torch.float64), torch.empty(0, k, dtype=torch.int64))]
            distances, near = zip(*parts, strict=True)
            self._around[k] = self.joined(torch.cat(distances)), self.joined(torch.cat(near))
        return self._around[k]

    def _surroundings(self, placed: Tensor, own: Tensor, k: int) -> tuple[Tensor, Tensor]:
        search, order, place = self._shuffled
        moved = torch.where(own >= 0, place[own.clamp_min(0)], own)
        distances, near = search.surroundings(placed, moved, k, min(COARSE, max(2, len(self) // 16)))
        return distances.double().clamp_min_(FLOOR), order[near.positions]

    def positions(self, found: Sequence[int]) -> Tensor:
        """Return the position of each content (`rows.contents`) among the points, -1 where it is none of them."""
        return torch.tensor([self.position_of.get(one, -1) for one in found], device=self.points.device)

    def drawn_from(self, features: Any) -> bool:
        """Return whether its points are rows of these features, (N, D), so that what is aligned with them is known."""
        features = matrix(features)
        if self.rows.max() >= len(features) or features.shape[1] != self.points.shape[1]:
            return False
        own = list(self.position_of)
        for start in range(0, len(own), QUERY_BLOCK):
            block = np.ascontiguousarray(features[self.rows[start : start + QUERY_BLOCK]], dtype=np.float32)
            if contents(block + np.float32(0)) != own[start : start + QUERY_BLOCK]:
                return False
        return True

    def share(self, n: int) -> slice:
        """Return which of n rows this process works on: all of them unless `distributed`."""
        return slice_of_process(n, QUERY_BLOCK) if self.distributed else slice(0, n)

    def gathered(self, part: np.ndarray) -> np.ndarray:
        """Return what all processes found of their shares, joined along the last axis, on every one of them."""
        return gathered(part) if self.distributed else part

    def joined(self, part: Tensor) -> Tensor:
        """Return what all processes found of their shares of the points, joined along the first axis."""
        if not self.distributed:
            return part
        return torch.from_numpy(np.ascontiguousarray(gathered(part.cpu().numpy().T).T)).to(self.points.device)

    @cached_property
    def _search(self) -> Searched:
        if self.backend == "faiss":
            return FaissPoints(self.points)
        return Points(self.points, self.precision, REFERENCE_BLOCK)

    @cached_property
    def _shuffled(self) -> tuple[Points, Tensor, Tensor]:
        """The points in random order, so that any groups of them are random; the order, and the place of each."""
        order = torch.from_numpy(np.random.default_rng(len(self)).permutation(len(self))).to(self.points.device)
        return Points(self.points[order], self.precision, REFERENCE_BLOCK), order, order.argsort()


def _checked(precision: str | None, device: torch.device, backend: str) -> Literal["float32", "bfloat16"]:
    """Return the precision, the best one where it is None, or raise `ValueError`."""
    if backend not in ("torch", "faiss"):
        raise ValueError(f'Expected backend "torch" or "faiss", but got {backend!r}.')
    if precision not in (None, "float32", "bfloat16"):
        raise ValueError(f'Expected precision "float32" or "bfloat16", but got {precision!r}.')
    if backend == "faiss":
        if device.type != "cpu" or precision == "bfloat16":
            raise ValueError(f'Expected float32 on "cpu" with backend "faiss", but got {precision} on "{device}".')
        faiss_module()
        return "float32"
    return best_precision(str(device)) if precision is None else precision


def check_k(k: int, reference: Any) -> None:
    """Raise `ValueError` unless k is in [1, m - 1]."""
    if not 1 <= k < len(reference):
        raise ValueError(f"Expected k in [1, {len(reference) - 1}] for {len(reference)} reference rows, but got {k}.")
