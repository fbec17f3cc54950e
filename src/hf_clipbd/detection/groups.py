# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What the most suspicious rows have in common: near duplicates and repeated captions, gathered into groups.

Nobody reads a list of ten thousand rows, and a backdoor is never one row. The natural backdoor of CC3M, a birthday
cake with one caption in 798 rows, came to light because its rows stood together.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from hf_clipbd.detection.island import FIRST, widest_gap
from hf_clipbd.detection.neighbors import default_k, neighbor_scores
from hf_clipbd.detection.reference import Reference
from hf_clipbd.detection.rows import matrix, row_blocks


LINK = 0.5
"""Two rows are near duplicates if they lie closer than this share of the nearer one's distance to the reference."""
FEWEST_NEIGHBOURS = 16
"""In a small set the k-th neighbour is this one, or a small group would be measured against itself."""
MOST_ROWS = 4000
"""Rows of the highest scores that are gathered."""


@dataclass(frozen=True)
class Group:
    """Suspicious rows that belong together.

    Args:
        rows: Row numbers, the most suspicious first; distinct pictures only.
        surprise: Sum over `rows` of -ln(2 rank / N), rank 1 the highest score or the widest gap around the row,
            whichever is better, and (c - 1) ln(N / r) where c of them have one caption, which r of all N rows have:
            how unlikely it is that so many rows of one kind stand so high, and say the same, by chance, were they
            independent. Groups are ordered by it.
        nearby: Further rows as near to the group's middle as its own members are, which scored too low to be gathered.
        caption: What is said of most of its rows, or None where no caption is said of two.
        repeats: How often that caption occurs in the whole set, copies of pictures included.
    """

    rows: tuple[int, ...]
    surprise: float
    nearby: tuple[int, ...] = ()
    caption: str | None = None
    repeats: int = 0


def suspicious_groups(
    features: Any,
    scores: Any,
    first_copy: Any = None,
    captions: Sequence[str] | None = None,
    share: float = 0.01,
    seed: int = 0,
    most: int = 50,
    normalize: bool = True,
    device: str | torch.device = "cpu",
) -> list[Group]:
    """Return the most suspicious rows in groups: groups of several rows first, the most surprising one at the top.

    Suspicious are rows of the highest scores, and those on an island: rows whose neighbours end abruptly (`island`),
    since a group whose rows are each other's neighbours is what density alone overlooks.
    Two rows go together if they are near duplicates (closer than half the distance to their k-th neighbour in a random
    reference), or have the same caption and are closer than that distance. A row without company is a group of one.
    It takes one more search of the whole set.

    Args:
        features: Image embeddings, (N, D).
        scores: (N,), higher is more suspicious.
        first_copy: (N,), number of the first row that is the same picture; copies are left out.
        captions: N captions.
        share: Share of the rows, those of the highest scores, that is gathered, in (0, 1]; from 50 to 4,000 rows.
        seed: Seed of the reference.
        most: Groups returned.
        normalize: Scale rows to unit length, as the scores were computed.
        device: Where to compute.

    Returns:
        At most `most` groups.

    Raises:
        ValueError: If lengths differ or the features are no finite matrix.
    """
    features, scores = matrix(features), np.asarray(scores, dtype=np.float64)
    n = len(features)
    first_copy = np.arange(n) if first_copy is None else np.asarray(first_copy)
    if scores.shape != (n,) or first_copy.shape != (n,) or (captions is not None and len(captions) != n):
        raise ValueError(f"Expected a score, a first copy and a caption for each of {n} rows.")
    said = None if captions is None else [_plain(caption) for caption in captions]
    reference = Reference.sample(features, seed=seed, normalize=normalize, device=device)
    k = min(len(reference) - 1, max(FEWEST_NEIGHBOURS, default_k(len(reference))))
    distinct = np.flatnonzero(first_copy == np.arange(n))
    ranks = _ranks(scores[distinct])
    if k > FIRST:  # else there are too few rows for a gap
        gaps = neighbor_scores(features, reference, k, lambda distances, _: widest_gap(distances), "groups")
        ranks = np.minimum(ranks, _ranks(gaps[distinct]))
    order = np.argsort(ranks, kind="stable")[: min(MOST_ROWS, max(50, math.ceil(share * n)))]
    top = distinct[order]
    surprise = -np.log(np.minimum(1.0, 2 * ranks[order] / len(distinct)))  # the better of two ranks
    block = np.stack([np.asarray(features[row], dtype=np.float32) for row in top]) + np.float32(0)
    reach = reference.nearest(block, k).distances[:, -1]  # (T,)
    placed = reference.place(block)
    labels = _linked(placed, reach, None if said is None else [said[row] for row in top])
    weight, sizes = np.bincount(labels, surprise), np.bincount(labels)
    weight += 0 if said is None else _agreement(labels, [said[row] for row in top], Counter(said))
    chosen = np.lexsort((-weight, sizes == 1))[:most]  # groups of several rows first
    members = [np.flatnonzero(labels == label) for label in chosen]
    nearby = _nearby(features, reference, [placed[m] for m in members], top, first_copy)
    return [
        Group(tuple(top[m].tolist()), float(weight[label]), near, *_common(captions, said, top[m]))
        for label, m, near in zip(chosen, members, nearby, strict=True)
    ]


def _ranks(scores: np.ndarray) -> np.ndarray:
    """Return the rank of each score, 1 the highest."""
    ranks = np.empty(len(scores), dtype=np.int64)
    ranks[np.argsort(-scores, kind="stable")] = np.arange(1, len(scores) + 1)
    return ranks


def _plain(caption: str) -> str:
    return " ".join(str(caption).lower().split())


def _linked(placed: torch.Tensor, reach: torch.Tensor, said: list[str] | None) -> np.ndarray:
    """Return a group number for each row: that of its connected component."""
    distances = torch.cdist(placed, placed)
    nearer = torch.minimum(reach[:, None], reach)
    linked = distances < LINK * nearer
    if said is not None:
        codes = torch.from_numpy(np.unique(said, return_inverse=True)[1])
        linked |= (codes[:, None] == codes).to(linked.device) & (distances < nearer)
    one, other = linked.nonzero(as_tuple=True)
    graph = coo_array((np.ones(len(one), dtype=bool), (one.cpu().numpy(), other.cpu().numpy())), shape=linked.shape)
    return connected_components(graph, directed=False)[1]


def _agreement(labels: np.ndarray, said: list[str], times: Counter[str]) -> np.ndarray:
    """Return (c - 1) ln(N / r) for each group, c of whose rows have its commonest caption, r of all N; 0 for c = 1."""
    surprise = np.zeros(labels.max() + 1)
    for (label, caption), count in Counter(zip(labels.tolist(), said, strict=True)).items():
        surprise[label] = max(surprise[label], (count - 1) * math.log(times.total() / times[caption]))
    return surprise


def _nearby(
    features: np.ndarray, reference: Reference, groups: list[torch.Tensor], top: np.ndarray, first_copy: np.ndarray
) -> list[tuple[int, ...]]:
    """Return, for each group of two rows or more, the distinct pictures elsewhere within its own radius."""
    several = [i for i, group in enumerate(groups) if len(group) > 1]
    found: list[list[int]] = [[] for _ in groups]
    if several:
        middles = torch.stack([groups[i].mean(0) for i in several])
        radii = [torch.cdist(groups[i], groups[i].mean(0)[None]).max() for i in several]
        shown = set(top.tolist())
        for rows, block in row_blocks(features):
            near = torch.cdist(reference.place(block), middles) <= torch.stack(radii)
            for row, i in near.nonzero().tolist():
                number = rows.start + row
                if number not in shown and first_copy[number] == number:
                    found[several[i]].append(number)
    return [tuple(rows) for rows in found]


def _common(captions: Sequence[str] | None, said: list[str] | None, rows: np.ndarray) -> tuple[str | None, int]:
    """Return the caption that most rows of a group have, and how often it occurs in the whole set."""
    if captions is None or said is None:
        return None, 0
    texts, counts = np.unique([said[row] for row in rows], return_counts=True)
    text = str(texts[counts.argmax()])
    repeats = said.count(text)
    if repeats < 2:
        return None, 0
    return next(captions[row] for row in rows.tolist() if said[row] == text), repeats
