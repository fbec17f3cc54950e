# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Sparsity given the caption or disagreement, whichever a row is more conspicuous by."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hf_clipbd.detection.conditional_sparsity import CAPTION_SHARE, conditional_sparsity
from hf_clipbd.detection.disagreement import disagreement
from hf_clipbd.detection.reference import Reference
from hf_clipbd.detection.rows import matrix


DECIMALS = 6
"""Scores that agree in so many decimals are one, and units are no smaller."""


def combined(
    features: Any,
    reference: Reference | None = None,
    k: int | None = None,
    texts: Any = None,
    others: Any = None,
    reference_texts: Any = None,
    reference_others: Any = None,
    caption_share: float = CAPTION_SHARE,
    parts: Sequence[Callable[..., np.ndarray]] = (conditional_sparsity, disagreement),
) -> np.ndarray:
    """Return the larger of two scores of a row, each in units of what is usual in the searched set.

    s(x) = max(z_1(x), z_2(x)) of `conditional_sparsity` and `disagreement`, z(x) = (s(x) - median) / (upper quartile -
    median) over the searched rows. Where that difference is under 1e-6, since a quarter of the rows are copies of one
    pair, say, rows of one score (to six decimals) count once. Each detector misses what the other finds: the first a
    victim trained with in-modal terms, poison of 3 % and more, and a handful of rows of a frequent target; the second
    a trigger that its second space sees as well, as another encoder sees SIG's stripes, and a mirrored picture any
    trigger that mirroring leaves as it is.

    Args:
        features: Image embeddings in the suspected model, (N, D).
        reference: What rows are compared with; a random sample of the features by default.
        k: Number of neighbours of both; the default of each by default.
        texts: Caption embeddings of the same rows in the suspected model, (N, D2).
        others: The same images in a second space, (N, D3); see `disagreement`.
        reference_texts: Captions of the rows that the reference was drawn from; `texts` by default, where the
            reference was drawn from the searched features.
        reference_others: Those rows in the second space; `others` by default, likewise.
        caption_share: As in `conditional_sparsity`.
        parts: What gives the scores of the two, where they are known already: `detect_all` has them once.

    Returns:
        (N,), float64; higher is more suspicious.

    Raises:
        ValueError: As `conditional_sparsity` and `disagreement`.

    Reference:
        Ours.
    """
    features = matrix(features)
    reference = Reference.sample(features) if reference is None else reference
    given = {"texts": texts, "reference_texts": reference_texts}
    sparse, apart = parts
    one = sparse(features, reference, k, **given, caption_share=caption_share)
    other = apart(features, reference, k, others=others, reference_others=reference_others, **given)
    return np.maximum(_in_usual_units(one), _in_usual_units(other))


def _in_usual_units(scores: np.ndarray) -> np.ndarray:
    middle, upper = np.quantile(scores, [0.5, 0.75])
    least = 10.0**-DECIMALS
    if upper - middle < least:
        middle, upper = np.quantile(np.unique(scores.round(DECIMALS)), [0.5, 0.75])
    return (scores - middle) / max(upper - middle, least)
