# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Scores of rows from their nearest reference rows, in bounded memory, whatever the size of the searched set."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch import Tensor
from tqdm.auto import tqdm

from hf_clipbd.detection.reference import FLOOR, QUERY_BLOCK, Reference, check_k
from hf_clipbd.detection.rows import ahead, contents, matrix, row_blocks, silent


Score = Callable[[Tensor, Tensor], Tensor]
"""From distances (B, k), float64, at least `FLOOR`, ascending, and positions (B, k) to scores (B,)."""


def default_k(m: int) -> int:
    """Return the number of neighbours to look at among m reference rows: 1 in 256 (0.39 %), at least 4, under m.

    A poison group stays sparse while rate * m is at most about k / 4, that is up to a poison rate of 0.1 %.

    Example:
        >>> default_k(16384), default_k(600), default_k(3)
        (64, 4, 2)
    """
    return max(1, min(max(4, round(m / 256)), m - 1))


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
    reference.ready(k)

    def found(block: np.ndarray, own: Tensor) -> Tensor:
        near = reference.nearest(block, k, own)
        return score(near.distances.double().clamp_min(FLOOR), near.positions)

    return _in_blocks(features, reference, found, desc)


def surrounding_scores(
    features: Any, reference: Reference, k: int, score: Score, desc: str = "detecting"
) -> np.ndarray:
    """Return one score for each row, computed from its coarse distance and k near reference rows.

    Args:
        features: (N, D), the searched set; may be a memory map, only a block is read at a time.
        reference: What it is compared with.
        k: Number of near rows, in [1, m - 1].
        score: From coarse distances (B,), float64, at least `FLOOR`, and positions (B, k) to scores (B,).
        desc: Label of the progress bar.

    Returns:
        (N,), float64.

    Raises:
        ValueError: As in `neighbor_scores`.
    """
    check_k(k, reference)

    def found(block: np.ndarray, own: Tensor) -> Tensor:
        return score(*reference.surroundings(block, k, own))

    return _in_blocks(features, reference, found, desc)


def _in_blocks(
    features: Any, reference: Reference, score: Callable[[np.ndarray, Tensor], Tensor], desc: str
) -> np.ndarray:
    """Return a score of each row, (N,), from blocks of rows and their positions in the reference."""
    features = matrix(features)
    if features.shape[1] != reference.points.shape[1]:
        raise ValueError(
            f"Expected features of {reference.points.shape[1]} dimensions, as the reference has, "
            f"but got {features.shape[1]}."
        )
    mine = reference.share(len(features))
    scores = np.empty(mine.stop - mine.start)
    with tqdm(total=len(scores), desc=desc, unit="row", disable=silent(len(scores)), leave=False) as bar:
        for rows, block, content in ahead(_with_contents(features[mine], mine.start)):
            scores[rows] = score(block, reference.positions(content)).cpu().numpy()
            bar.update(len(block))
    return reference.gathered(scores)


def _with_contents(features: np.ndarray, first: int) -> Iterator[tuple[slice, np.ndarray, list[int]]]:
    for rows, block in row_blocks(features, QUERY_BLOCK, first):
        yield rows, block, contents(block)


def prepared(features: Any, reference: Reference | None, k: int | None) -> tuple[Reference, int]:
    """Return the reference and k that a detector works with: a random reference and `default_k` where not given."""
    reference = Reference.sample(features) if reference is None else reference
    k = default_k(len(reference)) if k is None else k
    check_k(k, reference)
    return reference, k
