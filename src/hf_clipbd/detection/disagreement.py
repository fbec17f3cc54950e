# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Disagreement: whether a row's neighbours in the suspected model look like it to a second pair of eyes."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_clipbd.detection.reference import FLOOR, QUERY_BLOCK, Reference, aligned_with, check_k
from hf_clipbd.detection.rows import matrix, row_blocks


DEFAULT_K = 16


def disagreement(
    features: Any,
    reference: Reference | None = None,
    k: int | None = None,
    others: Any = None,
    texts: Any = None,
    reference_others: Any = None,
    reference_texts: Any = None,
) -> np.ndarray:
    """Return how much further than need be a row's neighbours lie apart from it in a second space.

    s(x) = mean over o in N_k(x) of |z(x) - z(o)|, over the mean of the k smallest |z(x) - z(o')|, o' in R. N_k(x) are
    the k nearest reference rows in the suspected model, z the embedding in a second space that the trigger does not
    rule: that of an encoder which knows the kind of pictures and was trained on other data. No clean part of the
    searched set is needed. A clean row's neighbours show what it shows and are about as near as any; a poisoned row's
    are other poisoned rows or rows of the target, pictures of anything.

    With `texts` it is s(x) times the mean of |z(x) - z(o)| over the k rows whose captions are nearest: other rows with
    such a caption show something else. This finds poisoned rows that the model did not learn, which stay where their
    picture belongs, and mislabelled clean rows as well.

    No density is compared, so neither the poison rate nor how frequent the target is decides, which is where
    k-distance, SLOF and their like turn blind.

    Args:
        features: Image embeddings in the suspected model, (N, D).
        reference: What rows are compared with; a random sample of the features by default.
        k: Number of neighbours; 16 by default.
        others: The same images in the second space, (N, D2).
        texts: Caption embeddings of the same rows in the suspected model, (N, D); left out where None.
        reference_others: The second space of the rows that the reference was drawn from; `others` by default, where
            the reference was drawn from the searched features.
        reference_texts: With `texts`: the captions of these rows; `texts` by default, likewise.

    Returns:
        (N,), float64; without texts about 1 where the spaces agree. Higher is more suspicious.

    Raises:
        ValueError: If `others` is missing, a matrix has another number of rows than the features, one of the reference
            is missing or too short, k is out of range, or a matrix is not finite.

    Reference:
        Ours.
    """
    features = matrix(features)
    if others is None:
        raise ValueError("Expected `others`, the same images in a second encoder's space, but got None.")
    for name, given in (("others", others), ("texts", texts)):
        if given is not None and len(given) != len(features):
            raise ValueError(f"Expected `{name}` to have a row for each of {len(features)}, but got {len(given)}.")
    reference = Reference.sample(features) if reference is None else reference
    like = {"precision": reference.precision, "device": reference.points.device}
    spaces = [(features, reference, np.arange(len(reference)))]
    if texts is not None:
        said = aligned_with(reference, features, texts, reference_texts, "texts")
        captions = Reference.of(said[reference.rows], **like)
        spaces.append((texts, captions, captions.rows))
    drawn_from = aligned_with(reference, features, others, reference_others, "others")
    drawn = np.ascontiguousarray(drawn_from[reference.rows], dtype=np.float32)
    second = Reference.of(drawn, **like)
    smallest = min((second, *(one for _, one, _ in spaces)), key=len)
    k = min(DEFAULT_K, len(smallest) - 1) if k is None else k
    check_k(k, smallest)
    return _scores(others, second, second.place(drawn), spaces, k)


def _scores(
    others: Any, second: Reference, placed: Tensor, spaces: list[tuple[Any, Reference, np.ndarray]], k: int
) -> np.ndarray:
    """Return the scores.

    Args:
        others: (N, D2).
        second: The reference rows in the second space, without copies.
        placed: The same with copies, (m, D2), in the order of the reference.
        spaces: Each with its embeddings (N, D), its reference, and the place in `placed` of each of its points.
        k: Number of neighbours.
    """
    reference = spaces[0][1]
    reference.ready(k)
    mine = reference.share(len(others))
    scores = np.empty(mine.stop - mine.start)
    places = [torch.from_numpy(place).to(placed.device) for _, _, place in spaces]
    searched = others, *(embedded for embedded, _, _ in spaces)
    blocks = [row_blocks(matrix(one)[mine], QUERY_BLOCK, mine.start) for one in searched]
    for (rows, other), *near in zip(*blocks, strict=True):
        own = second.place(other)
        score = 1 / second.nearest(other, k).distances.double().clamp_min(FLOOR).mean(1)
        for (_, block), (_, one, _), place in zip(near, spaces, places, strict=True):
            found = placed[place[one.nearest(block, k).positions]]  # (B, k, D2)
            score = score * torch.linalg.vector_norm(found - own[:, None], dim=2).double().mean(1)
        scores[rows] = score.cpu().numpy()
    return reference.gathered(scores)
