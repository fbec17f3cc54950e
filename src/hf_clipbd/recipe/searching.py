# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""A search: scores of every row by every detector and, where the truth is known, how well they find the poison."""

import functools
import itertools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
from accelerate import PartialState

from hf_clipbd.detection import BackdoorDetection, detect_all, performances_at_rate
from hf_clipbd.detection.rows import copies_of
from hf_clipbd.recipe.distilling import DISTILLATION, Distill, scored
from hf_clipbd.recipe.options import DetectConfig
from hf_clipbd.recipe.place import scoring_place
from hf_clipbd.recipe.stage import Outcome
from hf_clipbd.schema import CAPTION, IS_POISONED, SOURCE_INDEX, write_json


SCORES_FILE = "scores.parquet"
MAP_FILE = "map.json"
FIRST_COPY = "first_copy"
"""Column of the scores' file: the first row with the same picture."""


def search(
    features: dict[str, np.ndarray],
    pairs: datasets.Dataset,
    options: DetectConfig,
    target: str | None,
    seed: int,
    folder: Path,
    compared: Mapping[str, Any] | None = None,
    unreadable: Mapping[int, str] | None = None,
    distill: Distill | None = None,
) -> tuple[Outcome, dict[str, np.ndarray]]:
    """Score every row of `pairs` by every detector and write scores and, where the truth is known, figures and a map.

    Every process calls it; the rows are shared among them, and the main one writes.

    Args:
        features: Embeddings of the readable pairs in the suspected model, `image` and, where there are captions,
            `text`, (N, D), and of the images in another encoder, `second`, (N, D2), for the detectors that take
            `others`. With a number for each picture, `picture`, (N,), the scores' file says which rows have the same.
        pairs: The set it was trained on (image, caption); with `is_poisoned`, `source_index` or both if known.
        target: The attack's target, whose own rows the map shows apart.
        compared: What `detect_all` takes besides: a `reference` of one's own, say. By default a random one is drawn.
        unreadable: Row number -> what is wrong with it, for the rows that have no features.
        distill: Finds the masks of rows, for cognitive distillation.

    Returns:
        The outcome, and the scores of each detector, one a row of `pairs`: NaN where it cannot be read. Figures at
        lower rates leave cognitive distillation out if it looked at some rows only: they would be others there.
    """
    given = dict(compared or {})
    if given.get("reference") is None:
        given |= {"m": options.reference, **scoring_place()}
    score = functools.partial(detect_all, k=options.k, caption_share=options.caption_share, **given)
    aligned = {name: features[one] for name, one in (("texts", "text"), ("others", "second")) if one in features}
    readable = np.ones(len(pairs), dtype=bool)
    readable[list(unreadable or {})] = False
    numbers, seeded = np.flatnonzero(readable), functools.partial(score, seed=seed)
    limit = options.distilled
    found, masks = scored(seeded, options.detectors, features["image"], aligned, numbers, distill, limit)
    scores = {name: _spread(one, readable) for name, one in found.items()}
    columns = _columns(pairs, scores, unreadable)
    if "picture" in features:
        columns[FIRST_COPY] = _first_copies(features["picture"], numbers, len(pairs))
    outputs = {"scores": SCORES_FILE}
    metrics: dict[str, Any] = {"n": len(pairs)}
    if masks:
        metrics["n_distilled"] = min(limit or len(pairs), len(numbers))
    if IS_POISONED in columns:
        poisoned = columns[IS_POISONED][readable]
        if 0 < poisoned.sum() < len(poisoned):
            rated = functools.partial(score, detectors=[one for one in found if limit is None or one != DISTILLATION])
            metrics |= _performance(found, rated, aligned | masks, features["image"], poisoned, options, seed)
        if PartialState().is_main_process:
            captions = list(itertools.compress(pairs.with_format(None)[CAPTION][:], readable))
            write_json(folder / MAP_FILE, _map(features["image"], captions, poisoned, target, options, seed))
        outputs["map"] = MAP_FILE
    if PartialState().is_main_process:
        pyarrow.parquet.write_table(pyarrow.table(columns), folder / SCORES_FILE)
    return Outcome(metrics, outputs), scores


def _columns(
    pairs: datasets.Dataset, scores: Mapping[str, np.ndarray], unreadable: Mapping[int, str] | None
) -> dict[str, Any]:
    """Return what `scores.parquet` holds: `row` is the position in `pairs`, wherever these come from."""
    known = pairs.with_format(None)
    columns: dict[str, Any] = {"row": range(len(pairs)), **{f"score_{name}": one for name, one in scores.items()}}
    if SOURCE_INDEX in pairs.column_names:
        columns[SOURCE_INDEX] = known[SOURCE_INDEX][:]
    if unreadable:
        columns["problem"] = [unreadable.get(number) for number in range(len(pairs))]
    if IS_POISONED in pairs.column_names:
        columns[IS_POISONED] = np.asarray(known[IS_POISONED][:], dtype=bool)
    return columns


def _first_copies(pictures: np.ndarray, numbers: np.ndarray, n: int) -> np.ndarray:
    """Return, for each of n rows, the first one with the same picture; itself where it cannot be read."""
    first = np.arange(n)
    first[numbers] = numbers[copies_of(pictures)[0]]
    return first


def _spread(scores: np.ndarray, readable: np.ndarray) -> np.ndarray:
    """Return one score a row, NaN for those that cannot be read."""
    spread = np.full(len(readable), np.nan)
    spread[readable] = scores
    return spread


def _performance(
    scores: dict[str, np.ndarray],
    score: Callable[..., dict[str, np.ndarray]],
    aligned: dict[str, np.ndarray],
    features: np.ndarray,
    poisoned: np.ndarray,
    options: DetectConfig,
    seed: int,
) -> dict[str, Any]:
    """Return the figures at the set's own rate, and those at lower ones, on the main process; {} on the others."""
    rates: dict[str, dict[str, Any]] = {}
    for rate in options.rates:
        found = performances_at_rate(score, features, poisoned, rate, options.draws, seed, aligned)
        kept = ("worst", "n_draws", "thinned_search_set")
        rates[f"{rate:g}"] = {name: one["mean"] | {key: one[key] for key in kept} for name, one in found.items()}
    if not PartialState().is_main_process:
        return {}
    metric = BackdoorDetection()
    own = {name: metric.compute(predictions=one, references=poisoned.astype(int)) for name, one in scores.items()}
    return {"detectors": own, "rates": rates}


def _map(
    features: np.ndarray,
    captions: list[str],
    poisoned: np.ndarray,
    target: str | None,
    options: DetectConfig,
    seed: int,
) -> dict[str, list]:
    """Return the first two principal components of at most `map_points` rows: poisoned, of the target, other."""
    word = re.compile(rf"\b{re.escape(target)}\b", re.IGNORECASE) if target else None
    shows_target = np.array([bool(word and word.search(caption)) for caption in captions]) & ~poisoned
    rng = np.random.default_rng([seed, len(features)])
    chosen: list[np.ndarray] = []
    for group in (poisoned, shows_target):
        rows = np.flatnonzero(group)
        chosen.append(rng.permutation(rows)[: options.map_points // 4])
    others = np.flatnonzero(~poisoned & ~shows_target)
    chosen.append(rng.permutation(others)[: options.map_points - sum(map(len, chosen))])
    rows = np.concatenate(chosen)
    centred = features[rows] - features[rows].mean(axis=0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
    kinds = np.repeat(["poisoned", "target", "clean"], [len(group) for group in chosen])
    return {"points": np.round(centred @ axes.T, 5).tolist(), "kind": kinds.tolist()}
