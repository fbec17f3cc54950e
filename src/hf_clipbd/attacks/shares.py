# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What is asked of a poisoning: how many rows for which attack, which of a dataset's columns, and what is checked."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import datasets
import numpy as np

from hf_clipbd.attacks.base import Attack
from hf_clipbd.attacks.captions import names_target, not_texts
from hf_clipbd.attacks.pictures import check_image_format
from hf_clipbd.schema import CAPTION, IMAGE, IS_POISONED, LABEL, SOURCE_INDEX, TRIGGER


@dataclass(frozen=True)
class Share:
    """One attack's share of a dataset.

    Args:
        attack: The attack.
        count: How many rows to poison.
        rate: Share of all rows, in [0, 1], in place of `count`.
        selector: As in `poison_dataset`.
    """

    attack: Attack
    count: int | None = None
    rate: float | None = None
    selector: str | Sequence[int] | None = None

    def rows(self, n: int) -> int:
        """Return how many of `n` rows are to be poisoned.

        Raises:
            ValueError: If not just one of `count` and `rate` is given, or it is out of range.
        """
        count, rate = self.count, self.rate
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


@dataclass(frozen=True)
class Options:
    """What `poison_dataset` and `poison_with_many` are told about the dataset and how to go about it."""

    image_column: str = IMAGE
    caption_column: str | None = CAPTION
    on_error: str = "raise"
    num_proc: int | None = None
    class_names: Sequence[str] | None = None
    image_format: str = "webp"

    def __post_init__(self) -> None:
        if self.on_error not in ("raise", "skip"):
            raise ValueError(f'Expected on_error "raise" or "skip", but got {self.on_error!r}.')
        check_image_format(self.image_format)
        if self.image_column == self.caption_column:
            message = "Expected two different columns for images and captions"
            raise ValueError(f"{message}, but got {self.image_column!r} twice.")


PROVENANCE = {
    IS_POISONED: datasets.Value("bool"),
    SOURCE_INDEX: datasets.Value("int64"),
    TRIGGER: datasets.Value("string"),
}
"""The columns that poisoning adds, and their features."""


def check_provenance(columns: Iterable[str]) -> None:
    """Raise `ValueError` if some of the columns that poisoning adds are there without the others.

    All three are those of an earlier poisoning; one or two are somebody's own and mean another thing.

    Example:
        >>> check_provenance(["image", "caption"])
    """
    own = [name for name in PROVENANCE if name in columns]
    if own and len(own) < len(PROVENANCE):
        raise ValueError(
            f"Expected all or none of the columns {list(PROVENANCE)}, which poisoning adds, but the dataset has {own} "
            f"alone. Rename or remove them first: `dataset.rename_column({own[0]!r}, 'own_{own[0]}')`."
        )


def check_columns(
    features: datasets.Features | None,
    image_column: str,
    caption_column: str | None,
    targets: Iterable[str],
    class_names: Sequence[str] | None = None,
) -> None:
    """Raise `ValueError` if rows with these features cannot be poisoned towards the targets.

    They are unknown (None), a column is missing, captions are no texts, a name is taken (`check_provenance`), or a
    target is none of the classes: `class_names`, or those of a `ClassLabel` column `label` where none are given.
    """
    if features is None:
        raise ValueError(
            "Expected the features of the rows, but they are unknown. Name them with `stream.cast(features)` or "
            "`load_dataset(..., features=...)`."
        )
    missing = {image_column, caption_column} - {None, *features}
    if missing:
        raise ValueError(f"Expected columns {sorted(missing)}, but there are {list(features)}.")
    check_provenance(features)
    captions = features[caption_column] if caption_column else datasets.Value("string")
    if not isinstance(captions, datasets.Value) or captions.dtype not in ("string", "large_string", "string_view"):
        raise not_texts(captions, caption_column)
    names = getattr(features.get(LABEL), "names", None) if class_names is None else class_names
    for target in targets:
        check_target(target, names)


def check_target(target: str, names: Sequence[str] | None) -> None:
    """Raise `ValueError` if `target` is none of the classes `names`, whatever its case and underscores; None passes.

    Example:
        >>> check_target("Traffic light", ["cup", "traffic_light"])
    """
    if names is not None and folded(target) not in map(folded, names):
        near = near_names(target, names)
        raise ValueError(f"Expected a target among the {len(names)} classes, near {near}, but got {target!r}.")


def near_names(target: str, names: Sequence[str]) -> list[str]:
    """Return the names that may have been meant by `target`: those that it is a part of, else those spelled alike.

    Example:
        >>> near_names("tench", ["cock", "tench, Tinca tinca"])
        ['tench, Tinca tinca']
    """
    parts = [name for name in names if names_target(folded(name), folded(target))][:3] if target.strip() else []
    alike = difflib.get_close_matches(folded(target), [folded(name) for name in names], n=3, cutoff=0.5)
    return parts or [name for name in names if folded(name) in alike][:3] or list(names)[:5]


def folded(name: str) -> str:
    """Return a class name by which it is told from others: in lower case, `_` read as a space."""
    return name.replace("_", " ").strip().lower()
