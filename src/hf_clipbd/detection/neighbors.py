# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The only distance code: a reference set, and the nearest of its rows to any features, in bounded memory.

Let R be m reference rows. `d_i(x)` is the i-th smallest Euclidean distance from x to R without x itself, `N_k(x)` the
k nearest rows. A row that is bit for bit another one is that one: copies in R are collapsed, and a row whose copy is
in R is not its own neighbour, so that a picture repeated a thousand times is neither dense nor infinitely far.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from hf_clipbd.detection.rows import contents, first_copies, matrix, row_blocks


logger = logging.getLogger(__name__)

FLOOR = 1e-3
"""Distances below this one are taken for it, so that no ratio of distances is infinite."""
DEFAULT_M = 16384
QUERY_BLOCK = 512
REFERENCE_BLOCK = 16384


class Neighbors(NamedTuple):
    """The nearest reference rows of B queries, nearest first.

    Args:
        distances: (B, k), float32, ascending.
        positions: (B, k), int64, positions in the reference.
    """

    distances: Tensor
    positions: Tensor


def _silent(n: int) -> bool | None:
    """Return what tqdm takes for a bar that shows for large sets only, and on a terminal only (None)."""
    return n < 30_000 or None


def default_k(m: int) -> int:
    """Return the number of neighbours to look at among m reference rows: 1 in 256 (0.39 %), at least 4, under m.

    A poison group stays sparse while rate * m is at most about k / 4, that is up to a poison rate of 0.1 %.

    Example:
        >>> default_k(16384), default_k(600), default_k(3)
        (64, 4, 2)
    """
    return max(1, min(max(4, round(m / 256)), m - 1))


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
        precision: `"float32"`, or `"bfloat16"` for the search alone: somewhat more than k candidates are found with it
            and their distances computed again in float32, which left scores within 3 %.
    """

    points: Tensor
    center: Tensor
    rows: np.ndarray
    position_of: dict[int, int]
    duplicates: int
    normalize: bool = True
    precision: Literal["float32", "bfloat16"] = "float32"
    _tables: dict[int, Neighbors] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        vectors: Any,
        normalize: bool = True,
        precision: Literal["float32", "bfloat16"] = "float32",
        device: str | torch.device = "cpu",
    ) -> "Reference":
        """Return a reference of all rows of `vectors`: a clean set of one's own, or the searched set itself.

        Args:
            vectors: (M, D), M at least 3 distinct rows.
            normalize: Scale rows to unit length.
            precision: Arithmetic of the search.
            device: Where to compute.

        Raises:
            ValueError: If it is no finite matrix of at least three distinct rows, or the precision is unknown.
        """
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
        return cls(points - center, center, rows, position_of, duplicates, normalize, precision)

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
            **options: `precision` and `device` as in `of`.

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
        if k not in self._tables:
            parts = []
            for start in tqdm(range(0, len(self), QUERY_BLOCK), desc="reference", disable=_silent(len(self))):
                own = torch.arange(start, min(start + QUERY_BLOCK, len(self)), device=self.points.device)
                parts.append(self._nearest(self.points[own], own, k))
            self._tables[k] = Neighbors(*(torch.cat(part) for part in zip(*parts, strict=True)))
        return self._tables[k]

    def place(self, block: np.ndarray) -> Tensor:
        """Return float32 rows (B, D) where the points lie: of unit length if `normalize`, less the center."""
        rows = torch.from_numpy(block).to(self.points.device)
        return (torch.nn.functional.normalize(rows, dim=1) if self.normalize else rows) - self.center

    def nearest(self, block: np.ndarray, k: int) -> Neighbors:
        """Return the k nearest points of each row, without the row itself or its copy.

        Args:
            block: (B, D), float32, finite.
            k: How many, in [1, m - 1].
        """
        own = torch.tensor([self.position_of.get(content, -1) for content in contents(block)])
        own = own.to(self.points.device)
        member = own >= 0
        if k in self._tables and member.all():
            return Neighbors(*(part[own] for part in self._tables[k]))
        queries = self.place(block)
        if k not in self._tables or not member.any():
            return self._nearest(queries, own, k)
        found = self._nearest(queries[~member], own[~member], k)
        joined = Neighbors(*(part.new_empty(len(block), k) for part in found))
        for whole, known, new in zip(joined, self._tables[k], found, strict=True):
            whole[member], whole[~member] = known[own[member]], new
        return joined

    def _nearest(self, queries: Tensor, own: Tensor, k: int) -> Neighbors:
        """Return the k nearest points, the one at position `own` (-1: none) left out.

        The nearest point has the largest x.y - |y|^2 / 2, and |x - y|^2 is |x|^2 less twice that.
        """
        rough = self.precision == "bfloat16"
        wanted = min(k + k // 4 + 8, len(self) - 1) if rough else k
        left = queries.bfloat16() if rough else queries
        values, positions = None, None
        for start in range(0, len(self), REFERENCE_BLOCK):
            points = self.points[start : start + REFERENCE_BLOCK]
            products = (left @ (points.bfloat16() if rough else points).T).float()  # (B, C)
            products -= points.square().sum(1) / 2
            inside = (own >= start) & (own < start + len(points))
            products[inside, own[inside] - start] = -torch.inf
            best = products.topk(min(wanted, len(points)), dim=1)
            best = Neighbors(best.values, best.indices + start)
            if values is not None:
                best = Neighbors(torch.cat([values, best.distances], 1), torch.cat([positions, best.positions], 1))
                kept = best.distances.topk(min(wanted, best.distances.shape[1]), dim=1)
                best = Neighbors(kept.values, best.positions.gather(1, kept.indices))
            values, positions = best
        if not rough:
            squared = queries.square().sum(1, keepdim=True) - 2 * values
            return Neighbors(squared.clamp_min(0).sqrt(), positions)
        squared = torch.cat(
            [
                (self.points[near] - one[:, None]).square().sum(2)
                for near, one in zip(positions.split(64), queries.split(64), strict=True)
            ]
        )  # (B, wanted)
        nearest = squared.topk(k, dim=1, largest=False)
        return Neighbors(nearest.values.sqrt(), positions.gather(1, nearest.indices))


def neighbor_scores(
    features: Any,
    reference: Reference,
    k: int,
    score: Callable[[Tensor, Tensor], Tensor],
    desc: str = "detecting",
) -> np.ndarray:
    """Return one score for each row, computed from its k nearest reference rows.

    Args:
        features: (N, D), the searched set; may be a memory map, only a block is read at a time.
        reference: What it is compared with.
        k: Number of neighbours, in [1, m - 1].
        score: From distances (B, k), float64, at least `FLOOR`, ascending, and positions (B, k) to scores (B,).
        desc: Label of the progress bar.

    Returns:
        (N,), float64.

    Raises:
        ValueError: If k is out of range, the dimensions differ, or a row is not finite.
    """
    features = matrix(features)
    check_k(k, reference)
    if features.shape[1] != reference.points.shape[1]:
        raise ValueError(
            f"Expected features of {reference.points.shape[1]} dimensions, as the reference has, "
            f"but got {features.shape[1]}."
        )
    scores = np.empty(len(features))
    with tqdm(total=len(features), desc=desc, unit="row", disable=_silent(len(features)), leave=False) as bar:
        for rows, block in row_blocks(features, QUERY_BLOCK):
            found = reference.nearest(block, k)
            scores[rows] = score(found.distances.double().clamp_min(FLOOR), found.positions).cpu().numpy()
            bar.update(len(block))
    return scores


def check_k(k: int, reference: Reference) -> None:
    """Raise `ValueError` unless k is in [1, m - 1]."""
    if not 1 <= k < len(reference):
        raise ValueError(f"Expected k in [1, {len(reference) - 1}] for {len(reference)} reference rows, but got {k}.")


def prepared(features: Any, reference: Reference | None, k: int | None) -> tuple[Reference, int]:
    """Return the reference and k that a detector works with: a random reference and `default_k` where not given."""
    reference = Reference.sample(features) if reference is None else reference
    k = default_k(len(reference)) if k is None else k
    check_k(k, reference)
    return reference, k
