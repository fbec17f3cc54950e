# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Poisoning exactly so many rows of a dataset; all the others keep their bytes and are not even read."""

import difflib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np

from hf_clipbd import __version__
from hf_clipbd.attacks.base import Attack
from hf_clipbd.attacks.pictures import encode_picture, read_picture
from hf_clipbd.attacks.select import candidates, source_fingerprint
from hf_clipbd.schema import CAPTION, IMAGE, IS_POISONED, LABEL, SOURCE_INDEX, TRIGGER, PoisonManifest


logger = logging.getLogger(__name__)

_PROBLEM = "problem"


def poison_dataset(
    dataset: datasets.Dataset,
    attack: Attack,
    count: int | None = None,
    rate: float | None = None,
    seed: int = 0,
    selector: str | Sequence[int] | None = None,
    image_column: str = IMAGE,
    caption_column: str | None = CAPTION,
    on_error: str = "raise",
    num_proc: int | None = None,
    class_names: Sequence[str] | None = None,
) -> tuple[datasets.Dataset, PoisonManifest]:
    """Return the dataset with exactly `count` of its rows poisoned, in place and in order, and the manifest.

    The rows drawn are those with the smallest hash of (seed, row number), so a larger count includes a smaller one's.
    Their pictures are stamped on the attack's canvas and stored losslessly, their captions replaced. Every other row
    keeps its image bytes; it is neither decoded nor copied, except where the dataset has an indices mapping (after
    `shuffle` or `select`), which is written out first. Columns `is_poisoned`, `source_index` (the row's number in
    `dataset`) and `trigger` are added. Rows that are poisoned already are left alone, so several attacks can follow
    one another.

    Args:
        dataset: Images and captions; an image column of paths or encoded bytes is cast to `Image`.
        attack: The attack.
        count: How many rows to poison.
        rate: Share of all rows to poison, in [0, 1], in place of `count`; rounded to a whole number of rows.
        seed: Seed of the selection.
        selector: `"random"` (the default), `"label_consistent"` (rows whose caption names the target; the default of
            attacks that keep captions), `"non_target"` (rows whose caption does not), or row numbers in the order of
            preference.
        image_column: Column of images.
        caption_column: Column of captions; None if there is none (a labelled set).
        on_error: `"raise"` at a row that cannot be poisoned, or `"skip"` it, take the next and list it in the
            manifest.
        num_proc: Number of processes that stamp.
        class_names: Classes of which the target has to be one; None takes those of a `ClassLabel` column `label`.

    Returns:
        The poisoned dataset, of the same length and without a format, and its manifest.

    Raises:
        TypeError: If `dataset` is no map-style dataset.
        ValueError: If a column is missing, the target is no class, the count exceeds the rows that can be poisoned,
            or a row cannot be (the message names it). Nothing is written then.
    """
    plain = _checked(dataset, attack, image_column, caption_column, on_error, class_names)
    count = _count(len(plain), count, rate)
    selector = attack.selector if selector is None else selector
    rows = _candidates(plain, attack, count, seed, selector, caption_column)
    feature = plain.features[image_column]
    base = _with_provenance(plain.cast_column(image_column, datasets.Image(decode=False)))
    stamp = _Stamp(attack, image_column, caption_column, on_error == "skip", feature.mode)
    parts, chosen, skipped = _stamped(base, rows, count, stamp, num_proc)
    order = np.arange(len(base))
    order[chosen] = len(base) + np.arange(count)
    poisoned = datasets.concatenate_datasets([base, *parts]).select(order) if count else base
    original = dataset.features[image_column]
    manifest = PoisonManifest(
        attack=attack.name,
        parameters=attack.parameters(),
        target=attack.target,
        indices=sorted(chosen),
        n_rows=len(plain),
        seed=seed,
        source_fingerprint=source_fingerprint(plain, image_column, caption_column),
        selector=selector if isinstance(selector, str) else "rows",
        rate=rate,
        skipped=skipped,
    )
    return poisoned.cast_column(image_column, original if isinstance(original, datasets.Image) else feature), manifest


def _candidates(
    plain: datasets.Dataset,
    attack: Attack,
    count: int,
    seed: int,
    selector: str | Sequence[int],
    caption_column: str | None,
) -> np.ndarray:
    """Return the clean rows that the selector admits, those to poison first at the front; raise if too few."""
    captions = plain[caption_column] if caption_column else None
    rows = candidates(len(plain), seed, selector, captions, attack.target)
    if IS_POISONED in plain.column_names:
        rows = rows[~np.asarray(plain[IS_POISONED], dtype=bool)[rows]]
    if count > len(rows):
        admits = selector if isinstance(selector, str) else "row numbers"
        raise ValueError(f"Expected a count of at most {len(rows)}, what selector {admits!r} admits, but got {count}.")
    return rows


def _checked(
    dataset: datasets.Dataset,
    attack: Attack,
    image_column: str,
    caption_column: str | None,
    on_error: str,
    class_names: Sequence[str] | None,
) -> datasets.Dataset:
    """Return the dataset without a format and with its image column as `Image`; raise where it cannot be poisoned."""
    if not isinstance(dataset, datasets.Dataset):
        hint = "Pass one split of it" if isinstance(dataset, dict) else "Map a `PoisonTransform` over it instead"
        raise TypeError(f"Expected a `datasets.Dataset`, but got {type(dataset).__name__}. {hint}.")
    if on_error not in ("raise", "skip"):
        raise ValueError(f'Expected on_error "raise" or "skip", but got {on_error!r}.')
    missing = {image_column, caption_column} - {None, *dataset.column_names}
    if missing:
        raise ValueError(f"Expected columns {sorted(missing)}, but the dataset has {dataset.column_names}.")
    if image_column == caption_column:
        raise ValueError(f"Expected two different columns for images and captions, but got {image_column!r} twice.")
    label = dataset.features.get(LABEL)
    names = class_names if class_names is not None else getattr(label, "names", None)
    if names is not None and _folded(attack.target) not in map(_folded, names):
        near = difflib.get_close_matches(attack.target, list(names), n=3) or list(names)[:5]
        raise ValueError(f"Expected a target among the {len(names)} classes, near {near}, but got {attack.target!r}.")
    plain = dataset.with_format(None)
    feature = plain.features[image_column]
    if isinstance(feature, datasets.Image):
        return plain.cast_column(image_column, datasets.Image(mode=feature.mode))
    if getattr(feature, "dtype", None) in ("string", "large_string", "binary", "large_binary"):
        return plain.cast_column(image_column, datasets.Image())
    raise ValueError(
        f"Expected images in column {image_column!r}, but it holds {feature}. Cast it to `datasets.Image()` first."
    )


def _folded(name: str) -> str:
    return name.replace("_", " ").strip().lower()


def _count(n: int, count: int | None, rate: float | None) -> int:
    if (count is None) == (rate is None):
        raise ValueError(f"Expected either `count` or `rate`, but got count={count!r} and rate={rate!r}.")
    if rate is not None:
        if not 0 <= rate <= 1:
            raise ValueError(f"Expected a rate in [0, 1], but got {rate!r}. One percent is 0.01.")
        return round(rate * n)
    if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 0:
        raise ValueError(f"Expected a count of at least 0, but got {count!r}. A share is `rate`.")
    if count > n:
        raise ValueError(f"Expected a count of at most {n}, the number of rows, but got {count}.")
    return int(count)


def _with_provenance(base: datasets.Dataset) -> datasets.Dataset:
    """Return the dataset with the three columns of provenance, those of an earlier poisoning kept."""
    n = len(base)
    columns = {
        IS_POISONED: (np.zeros(n, dtype=bool), datasets.Value("bool")),
        SOURCE_INDEX: (np.arange(n), datasets.Value("int64")),
        TRIGGER: ([""] * n, datasets.Value("string")),
    }
    for name, (values, feature) in columns.items():
        if name not in base.column_names:
            base = base.add_column(name, values, feature=feature)
    return base


def _stamped(
    base: datasets.Dataset, rows: np.ndarray, count: int, stamp: "_Stamp", num_proc: int | None
) -> tuple[list[datasets.Dataset], list[int], dict[str, str]]:
    """Return the stamped rows, the row numbers they replace in the same order, and row -> why it was skipped."""
    features = datasets.Features({**base.features, _PROBLEM: datasets.Value("string")})
    parts: list[datasets.Dataset] = []
    chosen: list[int] = []
    skipped: dict[str, str] = {}
    taken = 0
    while len(chosen) < count:
        numbers = np.sort(rows[taken : taken + count - len(chosen)]).tolist()
        taken += len(numbers)
        if not numbers:
            raise ValueError(
                f"Expected {count} rows that can be poisoned, but found {len(chosen)}; {len(skipped)} were skipped, "
                f"the first because: {next(iter(skipped.values()))}"
            )
        part = base.select(numbers).map(
            stamp,
            with_indices=True,
            fn_kwargs={"numbers": numbers},
            features=features,
            num_proc=num_proc if num_proc and num_proc > 1 and len(numbers) >= 2 * num_proc else None,
            desc=f"Stamping {stamp.attack.name}",
        )
        problems = dict(zip(numbers, part[_PROBLEM], strict=True))
        good = [i for i, problem in enumerate(problems.values()) if not problem]
        skipped |= {str(number): problem for number, problem in problems.items() if problem}
        chosen += [numbers[i] for i in good]
        if good:
            parts.append((part if len(good) == len(part) else part.select(good)).remove_columns(_PROBLEM))
    if skipped:
        logger.warning("%d rows could not be poisoned and were passed over: %s", len(skipped), sorted(skipped)[:20])
    return parts, chosen, skipped


@dataclass(frozen=True, eq=False)
class _Stamp:
    """The function that turns rows into poisoned rows; what it holds enters the fingerprint of their cache."""

    attack: Attack
    image_column: str
    caption_column: str | None
    skip: bool
    mode: str | None
    version: str = field(default=__version__, init=False)

    def __call__(self, row: Any, index: int, numbers: list[int]) -> dict[str, Any]:
        number = numbers[index]
        caption = row[self.caption_column] if self.caption_column else ""
        try:
            if self.caption_column and not (caption or "").strip():
                raise ValueError("Expected a caption, but it is empty.")
            image = self.attack(read_picture(row[self.image_column], self.mode), number)
        except ValueError as error:
            if not self.skip:
                raise ValueError(f'Row {number}: {error} Or pass on_error="skip".') from error
            return {_PROBLEM: str(error)}
        values = {
            self.image_column: {"bytes": encode_picture(image), "path": None},
            IS_POISONED: True,
            TRIGGER: self.attack.name,
            _PROBLEM: "",
        }
        if self.caption_column:
            values[self.caption_column] = self.attack.caption(number, caption)
        return values
