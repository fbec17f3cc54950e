# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The only distance code: reference sets, and the nearest of their rows to any features, in bounded memory.

Let R be m reference rows. `d_i(x)` is the i-th smallest Euclidean distance from x to R without x itself, `N_k(x)` the
k nearest rows. A row that is bit for bit another one is that one: copies in R are collapsed, and a row whose copy is
in R is not its own neighbour, so that a picture repeated a thousand times is neither dense nor infinitely far.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from hf_clipbd.detection.nearest import Neighbors, Points, best_precision
from hf_clipbd.detection.rows import ahead, contents, first_copies, gathered, matrix, row_blocks, slice_of_process


logger = logging.getLogger(__name__)

FLOOR = 1e-3
"""Distances below this one are taken for it, so that no ratio of distances is infinite."""
DEFAULT_M = 16384
QUERY_BLOCK = 512
REFERENCE_BLOCK = 16384

Score = Callable[[Tensor, Tensor], Tensor]
"""From distances (B, k), float64, at least `FLOOR`, ascending, and positions (B, k) to scores (B,)."""


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
    _family: "_Family | None" = field(default=None, repr=False)

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
        if k not in self._tables:
            (self._tables[k],) = _tables(self, [(len(self), k)])
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
        tables = {k: self._tables[k]} if k in self._tables else {}
        return _nearest(self, block, self._own(contents(block)), [(len(self), k)], [tables.get(k)])[0]

    def _own(self, found: Sequence[int]) -> Tensor:
        """Return the position of each content among the points, -1 where it is none of them."""
        own = torch.tensor([self.position_of.get(content, -1) for content in found])
        return own.masked_fill_(own >= len(self), -1).to(self.points.device)

    @cached_property
    def _search(self) -> Points:
        return Points(self.points, self.precision, REFERENCE_BLOCK)


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
        return _tables(self.largest, self.pairs)


def _drawn(features: np.ndarray, m: int, seed: int) -> np.ndarray:
    if not 3 <= m <= len(features):
        raise ValueError(f"Expected m in [3, {len(features)}], the number of rows, but got {m}.")
    return np.random.default_rng([seed, m]).choice(len(features), m, replace=False)


def _tables(reference: Reference, pairs: Sequence[tuple[int, int]]) -> list[Neighbors]:
    """Return, for each (size, k), the k nearest among the first `size` points of each point."""
    sizes, ks = zip(*pairs, strict=True)
    parts = []
    for start in tqdm(range(0, len(reference), QUERY_BLOCK), desc="reference", disable=_silent(len(reference))):
        own = torch.arange(start, min(start + QUERY_BLOCK, len(reference)), device=reference.points.device)
        parts.append(reference._search.nearest(reference.points[own], own, sizes, ks))
    return [Neighbors(*(torch.cat(part) for part in zip(*blocks, strict=True))) for blocks in zip(*parts, strict=True)]


def _nearest(
    reference: Reference,
    block: np.ndarray,
    own: Tensor,
    pairs: Sequence[tuple[int, int]],
    tables: Sequence[Neighbors | None],
) -> list[Neighbors]:
    """Return, for each (size, k), the nearest points of each row; points themselves are looked up where tables are."""
    sizes, ks = zip(*pairs, strict=True)
    member = own >= 0
    if any(table is None for table in tables) or not member.any():
        return reference._search.nearest(reference.place(block), own, sizes, ks)
    joined = [Neighbors(*(part[own.clamp_min(0)] for part in table)) for table in tables]
    if not member.all():
        new = reference._search.nearest(reference.place(block)[~member], own[~member], sizes, ks)
        for whole, found in zip(joined, new, strict=True):
            whole.distances[~member], whole.positions[~member] = found
    return joined


def neighbor_scores(features: Any, reference: Reference, k: int, score: Score, desc: str = "detecting") -> np.ndarray:
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
    check_k(k, reference)
    return _scores(features, reference, [(len(reference), k)], [reference._tables.get(k)], [score], desc)[0]


def nested_scores(
    features: Any, references: Sequence[Reference], scores: Sequence[Score], desc: str = "detecting"
) -> np.ndarray:
    """Return one score for each row and each of some nested references, from one product with the largest.

    Args:
        features: (N, D), the searched set.
        references: What `Reference.nested` returned.
        scores: For each reference, from its distances (B, k) and positions (B, k) to scores (B,).
        desc: Label of the progress bar.

    Returns:
        (number of references, N), float64.

    Raises:
        ValueError: If they are not all of one `Reference.nested`, in its order, or as in `neighbor_scores`.
    """
    family = references[0]._family if references else None
    sizes = [] if family is None else [size for size, _ in family.pairs]
    together = family is not None and all(one._family is family for one in references)
    if not together or [len(one) for one in references] != sizes:
        raise ValueError("Expected the references of one `Reference.nested`, all of them and in its order.")
    return _scores(features, family.largest, family.pairs, family.tables, scores, desc)


def _scores(
    features: Any,
    reference: Reference,
    pairs: Sequence[tuple[int, int]],
    tables: Sequence[Neighbors | None],
    scores: Sequence[Score],
    desc: str,
) -> np.ndarray:
    features = matrix(features)
    if features.shape[1] != reference.points.shape[1]:
        raise ValueError(
            f"Expected features of {reference.points.shape[1]} dimensions, as the reference has, "
            f"but got {features.shape[1]}."
        )
    mine = slice_of_process(len(features), QUERY_BLOCK) if reference.distributed else slice(0, len(features))
    features = features[mine]
    found = np.empty((len(pairs), len(features)))
    with tqdm(total=len(features), desc=desc, unit="row", disable=_silent(len(features)), leave=False) as bar:
        for rows, block, content in ahead(_with_contents(features)):
            near = _nearest(reference, block, reference._own(content), pairs, tables)
            for i, one in enumerate(near):
                found[i, rows] = scores[i](one.distances.double().clamp_min(FLOOR), one.positions).cpu().numpy()
            bar.update(len(block))
    return gathered(found) if reference.distributed else found


def _with_contents(features: np.ndarray) -> Iterator[tuple[slice, np.ndarray, list[int]]]:
    for rows, block in row_blocks(features, QUERY_BLOCK):
        yield rows, block, contents(block)


def check_k(k: int, reference: Any) -> None:
    """Raise `ValueError` unless k is in [1, m - 1]."""
    if not 1 <= k < len(reference):
        raise ValueError(f"Expected k in [1, {len(reference) - 1}] for {len(reference)} reference rows, but got {k}.")


def prepared(features: Any, reference: Reference | None, k: int | None) -> tuple[Reference, int]:
    """Return the reference and k that a detector works with: a random reference and `default_k` where not given."""
    reference = Reference.sample(features) if reference is None else reference
    k = default_k(len(reference)) if k is None else k
    check_k(k, reference)
    return reference, k
