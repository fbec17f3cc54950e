# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Disagreement: whether a row's neighbours in the suspected model look like it to a second pair of eyes."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_clipbd.detection.aligned import aligned_with
from hf_clipbd.detection.reference import FLOOR, QUERY_BLOCK, Reference, check_k
from hf_clipbd.detection.rows import contents, matrix, row_blocks
from hf_clipbd.detection.selection import kth_smallest


DEFAULT_K = 16
TIE = 1e-6
"""Cosines of captions that differ by less are equal: those of one caption do by rounding alone."""


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
    rule: that of an encoder which knows the kind of pictures and was trained on other data, or, for want of one, that
    of the suspected model itself on mirrored pictures (`embed_dataset(..., mirrored=True)`), where a patch stands in
    another place and another way round. No clean part of the searched set is needed. A clean row's neighbours show
    what it shows and are about as near as any; a poisoned row's are other poisoned rows or rows of the target,
    pictures of anything.

    With `texts` it is s(x) times the mean of |z(x) - z(o)| over the k rows whose captions are nearest, and those that
    say the same as the last of them: other rows with such a caption show something else. This finds poisoned rows that
    the model did not learn, which stay where their picture belongs, and mislabelled clean rows as well.

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
    said = None if texts is None else aligned_with(reference, features, texts, reference_texts, "texts")
    drawn = aligned_with(reference, features, others, reference_others, "others")
    second = Reference.of(drawn, precision=reference.precision, device=reference.points.device)
    smallest = min(second, reference, key=len)
    k = min(DEFAULT_K, len(smallest) - 1) if k is None else k
    check_k(k, smallest)
    placed = second.place(drawn)
    alike = None if said is None else _Alike(said, placed, k)
    return _scores(features, reference, others, second, placed, k, texts, alike)


class _Alike:
    """The reference rows by what they say.

    Args:
        captions: Caption embeddings of the reference rows, (m, D).
        placed: The same rows in the second space, (m, D2).
        k: Number of neighbours.
    """

    def __init__(self, captions: np.ndarray, placed: Tensor, k: int):
        self.placed, self.k = placed, k
        self.captions = self._unit(captions)

    def _unit(self, block: np.ndarray) -> Tensor:
        rows = torch.from_numpy(np.ascontiguousarray(block, dtype=np.float32)).to(self.placed.device)
        return torch.nn.functional.normalize(rows, dim=1)

    def apart(self, captions: np.ndarray, other: Tensor, own: Tensor) -> Tensor:
        """Return the mean distance to the k rows whose captions are nearest and to all that tie, (B,), float64.

        Args:
            captions: (B, D).
            other: The same rows in the second space, (B, D2).
            own: Their places in the reference, (B,), -1 where they are not in it; a row is not its own neighbour.
        """
        products = self._unit(captions) @ self.captions.T  # (B, m)
        inside = (own >= 0).nonzero()[:, 0]
        products[inside, own[inside]] = -torch.inf
        least = kth_smallest(products, products.shape[1] - self.k + 1)
        near = products >= least[:, None] - TIE
        sums = (torch.cdist(other, self.placed) * near).sum(1, dtype=torch.float64)
        return sums / near.sum(1)


def _scores(
    features: Any,
    reference: Reference,
    others: Any,
    second: Reference,
    placed: Tensor,
    k: int,
    texts: Any,
    alike: _Alike | None,
) -> np.ndarray:
    """Return the scores.

    Args:
        features: (N, D).
        reference: Of the features.
        others: (N, D2).
        second: The reference rows in the second space, without copies.
        placed: The same with copies, (m, D2), in the order of the reference.
        k: Number of neighbours.
        texts: (N, D), or None.
        alike: The captions of the reference, or None.
    """
    reference.ready(k)
    mine = reference.share(len(features))
    scores = np.empty(mine.stop - mine.start)
    searched = (features, others) if texts is None else (features, others, texts)
    blocks = [row_blocks(matrix(one)[mine], QUERY_BLOCK, mine.start) for one in searched]
    for (rows, images), (_, seen), *said in zip(*blocks, strict=True):
        other, own = second.place(seen), reference.positions(contents(images))
        score = 1 / second.nearest(seen, k).distances.double().clamp_min(FLOOR).mean(1)
        found = placed[reference.nearest(images, k, own).positions]  # (B, k, D2)
        score = score * torch.linalg.vector_norm(found - other[:, None], dim=2).double().mean(1)
        if alike is not None:
            score = score * alike.apart(said[0][1], other, own)
        scores[rows] = score.cpu().numpy()
    return reference.gathered(scores)
