# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""One picture in many rows: its one score, and whether its captions agree, which those of a placeholder do not."""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from hf_clipbd.detection.groups import Group


RANDOM_PAIRS = 5000
BLOCK = 500
"""Embeddings that are read at once."""
ALIKE = 0.05
"""Captions agree if at most this share of random pairs is as alike as they are on average."""
MOST = 20
"""Copied pictures that are shown as groups."""


def highest_of_copies(scores: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Return, for each row, the highest score of all rows with its picture.

    Args:
        scores: (N,), higher is more suspicious.
        first: (N,), number of the first row with the same picture.

    Example:
        >>> highest_of_copies(np.array([1.0, 5.0, 3.0, 2.0]), np.array([0, 1, 0, 1])).tolist()
        [3.0, 5.0, 3.0, 5.0]
    """
    highest = np.full(len(scores), -np.inf)
    np.maximum.at(highest, first, scores)
    return highest[first]


def copied_groups(
    copies: Sequence[Sequence[int]],
    scores: np.ndarray,
    first: np.ndarray,
    texts: Any,
    captions: Sequence[str],
    seed: int = 0,
    most: int = MOST,
) -> list[Group]:
    """Return the copied pictures whose captions agree, as groups of suspects: so a poisoning of one picture looks.

    Let p be the share of random pairs of captions whose cosine in the model's text space is at least the mean cosine
    of the n captions of a picture. They agree if p is at most 5 % and p^(n - 1), the chance of such agreement were
    they drawn at random, is below one in the number of copied pictures: captions of a placeholder have nothing to do
    with each other, and of many pictures that occur twice some pair is alike by chance. A group's surprise is
    -ln(2 rank / N) - (n - 1) ln p, with the picture's rank among N distinct ones, at least 0 each.

    Args:
        copies: Rows of each picture that occurs more than once.
        scores: (N,), one for all rows of a picture.
        first: (N,), number of the first row with the same picture.
        texts: Embeddings of the captions, (N, D).

    Returns:
        At most `most` groups, the most surprising first.

    Reference:
        Carlini and Terzis, "Poisoning and Backdooring Contrastive Learning", ICLR 2022, whose targeted poisoning adds
        one picture with many captions of the target.
    """
    if not copies:
        return []
    at_random = _random_cosines(texts, seed)
    distinct = scores[first == np.arange(len(first))]
    repeats = Counter(_plain(caption) for caption in captions)
    found = []
    for rows in copies:
        as_alike = len(at_random) - np.searchsorted(at_random, _mean_cosine(texts, rows) - 1e-6)
        p = (1 + as_alike) / (1 + len(at_random))
        agreement = -(len(rows) - 1) * math.log(p)
        if p <= ALIKE and agreement >= math.log(len(copies)):
            rank = 1 + int((distinct > scores[rows[0]]).sum())
            surprise = agreement + max(0.0, -math.log(2 * rank / len(distinct)))
            text, count = Counter(_plain(captions[row]) for row in rows).most_common(1)[0]
            said = next(captions[row] for row in rows if _plain(captions[row]) == text) if count > 1 else None
            found.append(Group(tuple(rows), surprise, (), said, repeats[text] if count > 1 else 0))
    return sorted(found, key=lambda group: -group.surprise)[:most]


def in_order(groups: Iterable[Group]) -> list[Group]:
    """Return groups of several rows, the most surprising first, and then the single rows, likewise."""
    return sorted(groups, key=lambda group: (len(group.rows) == 1, -group.surprise))


def group_of(numbers: np.ndarray, group: Group) -> Group:
    """Return a group of rows among those that can be read with their numbers in the dataset.

    Args:
        numbers: (n,), number in the dataset of each row that can be read.
        group: Of rows in [0, n).
    """
    rows, nearby = (tuple(numbers[list(one)].tolist()) for one in (group.rows, group.nearby))
    return dataclasses.replace(group, rows=rows, nearby=nearby)


def _plain(caption: str) -> str:
    return " ".join(caption.lower().split())


def _unit(rows: Any) -> np.ndarray:
    rows = np.asarray(rows, dtype=np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _random_cosines(texts: Any, seed: int) -> np.ndarray:
    """Return the cosines of random pairs of different rows, ascending."""
    rng, n = np.random.default_rng([seed, len(texts)]), len(texts)
    one = rng.integers(n, size=RANDOM_PAIRS)
    other = (one + 1 + rng.integers(n - 1, size=RANDOM_PAIRS)) % n
    blocks = np.split(np.arange(RANDOM_PAIRS), range(BLOCK, RANDOM_PAIRS, BLOCK))
    return np.sort(np.concatenate([(_unit(texts[one[b]]) * _unit(texts[other[b]])).sum(1) for b in blocks]))


def _mean_cosine(texts: Any, rows: Sequence[int]) -> float:
    """Return the mean cosine of all pairs of some rows."""
    n, total = len(rows), np.zeros(texts.shape[1])
    for start in range(0, n, BLOCK):
        total += _unit(texts[list(rows[start : start + BLOCK])]).sum(0)
    return float((total @ total - n) / (n * (n - 1)))
