# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""From ranks of classes to rates: hits in the top k, and what a defence took away from the attack and the accuracy."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hf_clipbd.schema import EvalReport


def class_ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """Return how many classes come before the label's own, so that `rank < k` means "in the top k".

    Classes of equal score come in their own order, so a model that says the same of every class gets chance.

    Args:
        scores: One score for each class, (N, C), higher is better.
        labels: Class numbers, (N,), in [0, C).

    Returns:
        (N,), int64, in [0, C).

    Raises:
        ValueError: If a score is NaN or infinite.

    Example:
        >>> class_ranks(torch.tensor([[0.1, 0.9, 0.1]]).repeat(3, 1), torch.tensor([0, 1, 2])).tolist()
        [1, 0, 2]
    """
    if not torch.isfinite(scores).all():
        raise ValueError("Expected finite similarities, but got NaN or infinity. Has the model diverged?")
    own = scores.gather(1, labels[:, None])  # (N, 1)
    earlier = torch.arange(scores.shape[1], device=scores.device) < labels[:, None]  # (N, C)
    return ((scores > own) | ((scores == own) & earlier)).sum(1)


class Effectiveness(NamedTuple):
    """What a defence did to one trigger at one k.

    Args:
        delta_ba: Loss of benign accuracy, before - after, in [-1, 1]; negative is a gain.
        delta_asr: Loss of attack success, before - after, in [-1, 1].
        der: Defence effectiveness rating, in [0, 1]; 0.5 for a defence that does nothing.
    """

    delta_ba: float
    delta_asr: float
    der: float


def defense_effectiveness(
    before: EvalReport, after: EvalReport, trigger: str | None = None, k: int = 1
) -> Effectiveness:
    """Return the defence effectiveness rating DER = (max(0, ΔASR) - max(0, ΔBA) + 1) / 2.

    ΔASR and ΔBA are the undefended model's rates less the defended model's.

    Args:
        before: Report of the victim.
        after: Report of the defended model, on the same images and triggers.
        trigger: Which trigger; may be left out where there is only one.
        k: Which top k.

    Returns:
        ΔBA, ΔASR and DER, as shares.

    Raises:
        ValueError: If the reports do not hold that trigger or k, the trigger has another target in the one than in the
            other, or they were measured on different numbers of images.

    Reference:
        DER as in Zhu et al., "Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware Minimization",
        ICCV 2023; `max` as there, so neither a gain of accuracy nor a rise of attack success is rewarded.
    """
    common = [name for name in before.triggers if name in after.triggers]
    if trigger is None and len(common) == 1:
        trigger = common[0]
    if trigger not in common:
        raise ValueError(f"Expected one trigger out of those that both reports hold, {common}, but got {trigger!r}.")
    if k not in before.ba or k not in after.ba:
        raise ValueError(f"Expected k among {sorted(set(before.ba) & set(after.ba))}, but got {k}.")
    old, new = before.triggers[trigger], after.triggers[trigger]
    if old.target != new.target:
        raise ValueError(
            f"Expected trigger `{trigger}` to aim at one target in both reports, but got {old.target!r} and "
            f"{new.target!r}. Compare models of one attack."
        )
    sizes = {"BA": (before.ba[k].n, after.ba[k].n), "ASR": (old.asr[k].n, new.asr[k].n)}
    if any(one != other for one, other in sizes.values()):
        raise ValueError(f"Expected both reports on the same images, but their numbers of images differ: {sizes}.")
    delta_ba = before.ba[k].value - after.ba[k].value
    delta_asr = old.asr[k].value - new.asr[k].value
    return Effectiveness(delta_ba, delta_asr, (max(0.0, delta_asr) - max(0.0, delta_ba) + 1) / 2)


def bootstrap_mean(
    right: np.ndarray, seen: np.ndarray, draws: int = 4000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Return the bootstrap interval of the mean over the classes of right / seen.

    Images are drawn anew with replacement within each class, so each draw has right*_c ~ Binomial(seen_c,
    right_c / seen_c); the bounds are quantiles of the draws' means.

    Args:
        right: Right answers of each class, (C,).
        seen: Images of each class, (C,), each at least 1.
        draws: Bootstrap draws.
        level: Share of the draws between the bounds.
        seed: Seed of the draws.

    Returns:
        (low, high), each in [0, 1].

    Reference:
        Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13 (percentile interval).

    Example:
        >>> import numpy as np
        >>> [round(bound, 2) for bound in bootstrap_mean(np.array([50, 90]), np.array([100, 100]))]
        [0.64, 0.76]
    """
    drawn = np.random.default_rng([seed, len(seen)]).binomial(
        seen, right / seen, size=(draws, len(seen))
    )  # (draws, C)
    low, high = np.quantile((drawn / seen).mean(1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
