# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Sparsity given the caption: whether a picture lies where the pictures of rows with such captions lie."""

from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from hf_clipbd.detection.aligned import aligned_with
from hf_clipbd.detection.levels import Levels
from hf_clipbd.detection.reference import FLOOR, QUERY_BLOCK, Reference, check_k
from hf_clipbd.detection.rows import contents, matrix, row_blocks, silent
from hf_clipbd.detection.selection import kth_smallest


CAPTION_SHARE = 1 / 8
"""Share of the compared rows whose captions are taken for like a row's own: far more than a poisoned group has."""
MOST_COMPARED = 4096
LEVELS = (0, 1, 2, 4, 8, 16, 32)
COUNTED = 2
"""A poisoned row that the model did not learn lies among clean ones, so that a row counts alone (level 0) as well."""


def conditional_sparsity(
    features: Any,
    reference: Reference | None = None,
    k: int | None = None,
    texts: Any = None,
    reference_texts: Any = None,
    caption_share: float = CAPTION_SHARE,
) -> np.ndarray:
    """Return how far a picture lies from those of rows with such captions, together with the rows nearest to it.

    c(x) = ln of the median of |u(x) - u(o)| over the reference rows o whose captions are the nearest to x's: an eighth
    of up to 4,096. u are image embeddings; captions are compared in the suspected model's text space, which no trigger
    on a picture moves. Among so many rows a poisoned group of a few percent is a minority, which no median follows,
    however dense it is (a mean does: at 1 % poison some 40 of 512 rows are poisoned, and lie close together), and a
    clean concept that is merely rare or spread out lies near the pictures that its captions speak of. The score is the
    mean of the two largest of c_j(x), the mean of c over x and its j nearest reference rows by image, j = 0, 1, 2, 4
    and so on up to 32, in units of what is usual (`Levels`): a poisoned row that the model did not learn stands out
    alone, learned ones with their group.

    It needs no second model and, up to 1 %, no poison rate. From about 3 % on, poisoned rows are half of those with
    like captions, and the median is theirs: take a larger `caption_share` then. Clean pairs whose picture and caption
    have nothing to do with each other score high as well.

    Args:
        features: Image embeddings in the suspected model, (N, D).
        reference: What rows are compared with; a random sample of the features by default.
        k: Most neighbours that are averaged over, at least 1; 32 by default.
        texts: Caption embeddings of the same rows in the suspected model, (N, D2).
        reference_texts: Those of the rows that the reference was drawn from; `texts` by default, where the reference
            was drawn from the searched features.
        caption_share: Share of the compared rows whose captions are taken for like a row's own, in (0, 1): 1/2 for a
            set that may be poisoned by 5 %, at the cost of what is rarer.

    Returns:
        (N,), float64, in units of the reference's deviation; higher is more suspicious.

    Raises:
        ValueError: If `texts` is missing or has another number of rows than the features, `reference_texts` is missing
            or too short for the reference, k or `caption_share` is out of range, or a matrix is not finite.

    Reference:
        Ours.
    """
    features = matrix(features)
    if not 0 < caption_share < 1:
        raise ValueError(f"Expected `caption_share` in (0, 1), but got {caption_share}.")
    if texts is None or len(texts) != len(features):
        got = None if texts is None else len(texts)
        raise ValueError(f"Expected `texts`, a caption embedding for each of {len(features)} rows, but got {got}.")
    reference = Reference.sample(features) if reference is None else reference
    said = aligned_with(reference, features, texts, reference_texts, "texts")
    k = min(max(LEVELS), len(reference) - 1) if k is None else k
    check_k(k, reference)
    compared = _Compared(reference, said, caption_share)
    levels = Levels(compared.at_points, reference.table(k).positions, LEVELS, COUNTED)
    mine = reference.share(len(features))
    scores = np.empty(mine.stop - mine.start)
    blocks = zip(*(row_blocks(matrix(one)[mine], QUERY_BLOCK, mine.start) for one in (features, texts)), strict=True)
    for (rows, images), (_, captions) in tqdm(blocks, "given the caption", disable=silent(len(scores)), leave=False):
        own = reference.positions(contents(images))
        near = reference.nearest(images, k, own).positions
        scores[rows] = levels(compared(reference.place(images), own, captions), near).cpu().numpy()
    return reference.gathered(scores)


class _Compared:
    """The pictures that every row is compared with, and their captions: those of a random part of the reference.

    Args:
        reference: What rows are compared with, m points.
        texts: Caption embeddings of its points, (m, D2), float32.
        share: Share of the compared rows whose captions are taken for like a row's own.
    """

    def __init__(self, reference: Reference, texts: np.ndarray, share: float):
        count = min(MOST_COMPARED, len(reference))
        chosen = torch.from_numpy(np.random.default_rng(len(reference)).permutation(len(reference))[:count])
        self.reference, self.texts = reference, texts
        self.images = reference.points[chosen.to(reference.points.device)]  # (count, D)
        self.captions = self._unit(self.texts[chosen.numpy()])  # (count, D2)
        self.near = min(max(1, round(count * share)), count - 1)  # a row is not its own neighbour
        place = torch.full((len(reference) + 1,), -1)  # the last is that of rows outside the reference, at -1
        place[chosen] = torch.arange(count)
        self.place = place.to(reference.points.device)

    def _unit(self, block: np.ndarray) -> Tensor:
        rows = torch.from_numpy(np.ascontiguousarray(block, dtype=np.float32))
        return torch.nn.functional.normalize(rows.to(self.reference.points.device), dim=1)

    @cached_property
    def at_points(self) -> Tensor:
        """c of each point of the reference, (m,)."""
        points, mine = self.reference.points, self.reference.share(len(self.reference))
        found = torch.empty(mine.stop - mine.start, dtype=torch.float64, device=points.device)
        for block in torch.arange(len(found)).split(QUERY_BLOCK):
            own = mine.start + block
            found[block] = self._medians(points[own], own.to(points.device), self.texts[own.numpy()])
        return self.reference.joined(found)

    def __call__(self, placed: Tensor, own: Tensor, captions: np.ndarray) -> Tensor:
        """Return c of each row, (B,), float64; that of a point where picture and caption are the point's.

        Args:
            placed: Pictures as `Reference.place` gives them, (B, D).
            own: Their positions in the reference, (B,), -1 where they are not in it.
            captions: (B, D2).
        """
        theirs = self.texts[own.cpu().numpy()]  # those of the last one at -1
        known = (own >= 0) & torch.from_numpy((theirs == captions).all(1)).to(own.device)
        found = self.at_points[own]
        new = (~known).nonzero()[:, 0]
        if len(new):
            found[new] = self._medians(placed[new], own[new], captions[new.cpu().numpy()])
        return found

    def _medians(self, placed: Tensor, own: Tensor, captions: np.ndarray) -> Tensor:
        alike = self._unit(captions) @ self.captions.T  # (B, count)
        own = self.place[own]
        itself = (own >= 0).nonzero()[:, 0]
        alike[itself, own[itself]] = -torch.inf
        unlike = alike < kth_smallest(alike, alike.shape[1] - self.near + 1)[:, None]
        near = alike.shape[1] - unlike.sum(1)  # (B,), more than `self.near` where captions are as like
        distances = torch.cdist(placed, self.images).masked_fill_(unlike, torch.inf)
        found = kth_smallest(distances, (self.near + 1) // 2)
        more = (near > self.near).nonzero()[:, 0]
        found[more] = _sorted(distances[more]).gather(1, ((near[more] - 1) // 2)[:, None])[:, 0]
        return found.double().clamp_min_(FLOOR).log_()


def _sorted(values: Tensor) -> Tensor:
    """Return the values of each row in ascending order, (B, C)."""
    if values.device.type == "cpu":  # numpy's sort uses vector units
        return torch.from_numpy(np.sort(values.numpy(), axis=1))
    return values.sort(1).values
