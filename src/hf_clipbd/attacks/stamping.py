# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The rows that are poisoned, turned into poisoned ones through `datasets.map`, those that cannot be passed over."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import datasets
import numpy as np

from hf_clipbd import __version__
from hf_clipbd.attacks.base import Attack
from hf_clipbd.attacks.pictures import encode_picture, read_picture
from hf_clipbd.schema import IS_POISONED, TRIGGER


logger = logging.getLogger(__name__)

PROBLEM = "__problem__"  # dropped again; a name that no dataset of anybody's has
_DONOR_STREAM = 4


@dataclass(frozen=True, eq=False)
class Stamp:
    """The function that turns rows into poisoned rows; what it holds enters the fingerprint of their cache.

    Args:
        attack: The attack, its natural captions found.
        name: What goes into the column `trigger`.
        image_column: Column of images, not decoded.
        caption_column: Column of captions; None if there is none.
        skip: Whether a row that cannot be poisoned is passed over.
        mode: Mode that the image column converts to, if it names one.
        image_format: How poisoned pictures are stored.
        poisons: Whether the rows count as poisoned; covers do not.
    """

    attack: Attack
    name: str
    image_column: str
    caption_column: str | None
    skip: bool
    mode: str | None
    image_format: str
    poisons: bool = True
    version: str = field(default=__version__, init=False)

    def __call__(self, row: Any, index: int, numbers: list[int]) -> dict[str, Any]:
        """Return the changed columns of one row; `numbers` are the row numbers of all that are mapped over.

        Raises:
            ValueError: If the row cannot be poisoned; the message names it.
        """
        number = numbers[index]
        caption = row[self.caption_column] if self.caption_column else ""
        values: dict[str, Any] = {IS_POISONED: self.poisons, TRIGGER: self.name, PROBLEM: ""}
        try:
            if self.caption_column and not (caption or "").strip():
                raise ValueError("Expected a caption, but it is empty.")
            picture = read_picture(row[self.image_column], self.mode)
            if self.attack.stamps_pictures:
                data = encode_picture(self.attack(picture, number), self.image_format)
                values[self.image_column] = {"bytes": data, "path": None}
        except ValueError as error:
            if not self.skip:
                raise ValueError(f'Row {number}: {error} Or pass on_error="skip".') from error
            return {PROBLEM: str(error)}
        if self.caption_column:
            values[self.caption_column] = self.attack.caption(number, caption)
        return values


class Stamped(NamedTuple):
    """Poisoned rows in parts, the row numbers that they replace in the same order, and row -> why it was skipped."""

    parts: list[datasets.Dataset]
    chosen: list[int]
    skipped: dict[str, str]


def stamp_rows(
    base: datasets.Dataset,
    rows: np.ndarray,
    count: int,
    stamp: Stamp,
    donors: np.ndarray | None = None,
    num_proc: int | None = None,
) -> Stamped:
    """Return `count` stamped rows, the first of `rows` that can be stamped.

    Args:
        base: The dataset with its columns of provenance, images not decoded.
        rows: Row numbers in the order of preference.
        count: How many.
        stamp: What is done to a row.
        donors: Row numbers of pictures that the stamped rows get in place of their own; None leaves them their own.
        num_proc: Number of processes.

    Raises:
        ValueError: If a row cannot be stamped and none may be skipped, or too few can.
    """
    features = datasets.Features({**base.features, PROBLEM: datasets.Value("string")})
    found = Stamped([], [], {})
    taken = 0
    while len(found.chosen) < count:
        numbers = np.sort(rows[taken : taken + count - len(found.chosen)]).tolist()
        taken += len(numbers)
        if not numbers:
            raise ValueError(
                f"Expected {count} rows that can be poisoned, but found {len(found.chosen)}; {len(found.skipped)} "
                f"were skipped, the first because: {next(iter(found.skipped.values()))}"
            )
        given = base.select(numbers)
        if donors is not None:
            given = with_pictures_of(base, numbers, donors, stamp)
        part = given.map(
            stamp,
            with_indices=True,
            fn_kwargs={"numbers": numbers},
            features=features,
            num_proc=num_proc if num_proc and num_proc > 1 and len(numbers) >= 2 * num_proc else None,
            desc=f"Stamping {stamp.name}",
        )
        problems = dict(zip(numbers, part[PROBLEM], strict=True))
        good = [i for i, problem in enumerate(problems.values()) if not problem]
        found.skipped.update({str(number): problem for number, problem in problems.items() if problem})
        found.chosen.extend(numbers[i] for i in good)
        if good:
            found.parts.append((part if len(good) == len(part) else part.select(good)).remove_columns(PROBLEM))
    warn_of_skipped(found.skipped)
    return found


def warn_of_skipped(skipped: Mapping[str, str]) -> None:
    """Log how many rows were skipped and the first twenty of their numbers; nothing if there are none."""
    if skipped:
        listed = ", ".join(sorted(skipped, key=int)[:20])
        logger.warning("%d rows could not be poisoned and were passed over: %s", len(skipped), listed)


def with_pictures_of(
    base: datasets.Dataset, numbers: Sequence[int], donors: np.ndarray, stamp: Stamp
) -> datasets.Dataset:
    """Return the rows `numbers` of `base`, each with the picture of a row drawn from `donors` by (seed, row)."""
    seed, column = stamp.attack.seed, stamp.image_column
    drawn = [np.random.default_rng([seed, number, _DONOR_STREAM]).integers(len(donors)) for number in numbers]
    pictures = base.select(donors[drawn]).select_columns([column])
    others = base.select(numbers).remove_columns([column])
    return datasets.concatenate_datasets([others, pictures], axis=1).select_columns(base.column_names)
