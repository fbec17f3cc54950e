# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Detection at lower poison rates than a victim was trained at, by leaving poisoned rows out of the searched set."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hf_clipbd.detection.performance import detection_performance


def thinned_rows(is_poisoned: Any, rate: float, seed: int = 0, draw: int = 0) -> np.ndarray:
    """Return the rows of a set in which poisoned rows are the share `rate`: all clean ones, and some poisoned ones.

    Args:
        is_poisoned: (N,), true or 1 for poisoned rows.
        rate: Share of poisoned rows wanted, in (0, 1), at most that of the set.
        seed: Seed of the choice.
        draw: Which draw.

    Returns:
        Row numbers, ascending.

    Raises:
        ValueError: If the set is not poisoned at this rate, or the rate asks for less than one row.

    Example:
        >>> len(thinned_rows([True] * 10 + [False] * 90, rate=0.02))
        92
    """
    poisoned = np.asarray(is_poisoned, dtype=bool)
    n_clean, n_poisoned = int((~poisoned).sum()), int(poisoned.sum())
    count = round(rate * n_clean / (1 - rate)) if 0 < rate < 1 else 0
    if not 1 <= count <= n_poisoned:
        raise ValueError(
            f"Expected a rate between {1 / (n_clean + 1):.2g} and {n_poisoned / len(poisoned):.2g}, the set's own, "
            f"but got {rate}. Leave it out of the rates (`--rates`), or search more rows."
        )
    rng = np.random.default_rng([seed, draw])
    kept = rng.choice(np.flatnonzero(poisoned), count, replace=False)
    return np.sort(np.concatenate([np.flatnonzero(~poisoned), kept]))


def performance_at_rate(
    score: Callable[..., np.ndarray],
    features: Any,
    is_poisoned: Any,
    rate: float,
    draws: int = 5,
    seed: int = 0,
    aligned: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the mean and the worst detection performance over draws of a set thinned to a lower poison rate.

    Only the searched set is thinned. The model stays the one that was trained at the full rate, so this is what the
    detector would give if the model were as strongly backdoored by fewer rows, and has to be reported as that.

    Args:
        score: `score(features, seed=...) -> (N,)`, for instance `functools.partial(detect, detector="slof")`.
        features: (N, D), of the full set.
        is_poisoned: (N,), true or 1 for poisoned rows.
        rate: Share of poisoned rows in the thinned set, at most that of the full one.
        draws: How many draws of poisoned rows, each with its own reference.
        seed: Seed of the draws; draw i scores with `seed + i`.
        aligned: Keywords of `score` that have a row for each of the features (`texts`, `others`), thinned with them.

    Returns:
        `mean` (figure -> mean over the draws), `worst` (figure -> that of the least favourable draw), `draws` (the
        figures of each), `rate`, `n_draws`, and `thinned_search_set`, always true.

    Raises:
        ValueError: If the rate cannot be had from this set, or there are no draws.
    """

    def scores(features: np.ndarray, seed: int, **kept: np.ndarray) -> dict[str, np.ndarray]:
        return {"": score(features, seed=seed, **kept)}

    return performances_at_rate(scores, features, is_poisoned, rate, draws, seed, aligned)[""]


def performances_at_rate(
    scores: Callable[..., Mapping[str, np.ndarray]],
    features: Any,
    is_poisoned: Any,
    rate: float,
    draws: int = 5,
    seed: int = 0,
    aligned: Mapping[str, Any] | None = None,
) -> dict[str, dict[str, Any]]:
    """Return what `performance_at_rate` gives, for several detectors that search the same draws.

    Args:
        scores: `scores(features, seed=...) -> {name: (N,)}`, for instance
            `functools.partial(detect_all, detectors=["slof", "multi_scale"])`; called once a draw.
        features: (N, D), of the full set.
        is_poisoned: (N,), true or 1 for poisoned rows.
        rate: Share of poisoned rows in the thinned set, at most that of the full one.
        draws: How many draws of poisoned rows, each with its own reference.
        seed: Seed of the draws; draw i scores with `seed + i`.
        aligned: Keywords of `scores` that have a row for each of the features, thinned with them.

    Returns:
        Name -> figures as in `performance_at_rate`.

    Raises:
        ValueError: As there.
    """
    aligned = {name: np.asarray(values) for name, values in (aligned or {}).items()}
    if draws < 1:
        raise ValueError(f"Expected at least one draw, but got {draws}.")
    features, poisoned = np.asarray(features), np.asarray(is_poisoned, dtype=bool)
    figures: dict[str, list[dict[str, float | int]]] = {}
    for draw in range(draws):
        rows = thinned_rows(poisoned, rate, seed, draw)
        kept = {name: values[rows] for name, values in aligned.items()}
        for name, one in scores(features[rows], seed=seed + draw, **kept).items():
            figures.setdefault(name, []).append(detection_performance(one, poisoned[rows]))
    return {name: _over_draws(found, rate) for name, found in figures.items()}


def _over_draws(figures: list[dict[str, float | int]], rate: float) -> dict[str, Any]:
    shares = [name for name in figures[0] if name not in ("n", "n_poisoned")]
    counts = {name: figures[0][name] for name in ("n", "n_poisoned")}
    by_name = {name: [one[name] for one in figures] for name in shares}
    worst = {name: max(values) if name == "fpr_at_95_tpr" else min(values) for name, values in by_name.items()}
    return {
        "rate": rate,
        "n_draws": len(figures),
        "thinned_search_set": True,
        "mean": {name: float(np.mean(values)) for name, values in by_name.items()} | counts,
        "worst": worst | counts,
        "draws": figures,
    }
