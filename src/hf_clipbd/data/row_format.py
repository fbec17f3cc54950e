# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Rows as they are read here: a format such as "torch" is taken off, a transform of their own is kept whole."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import datasets

from hf_clipbd.data.undecoded import as_it_is, undecoded
from hf_clipbd.data.unreadable import UNREADABLE


_OWN_TRANSFORM = "custom"  # what 🤗 Datasets calls the format of `with_transform`


def has_transform(rows: Any) -> bool:
    """Return whether a dataset has a transform of its own (`with_transform`).

    Example:
        >>> rows = datasets.Dataset.from_dict({"n": [1, 2]})
        >>> has_transform(rows), has_transform(rows.with_transform(dict)), has_transform([1, 2])
        (False, True, False)
    """
    return isinstance(rows, datasets.Dataset) and rows.format["type"] == _OWN_TRANSFORM


def names_of_columns(rows: datasets.Dataset) -> list[str]:
    """Return the columns that a row has when it is read: with a transform those that it gives of the first row.

    Raises:
        TypeError: If the rows are no `datasets.Dataset`.

    Example:
        >>> rows = datasets.Dataset.from_dict({"n": [1, 2]})
        >>> names_of_columns(rows.with_transform(lambda batch: {"double": [2 * n for n in batch["n"]]}))
        ['double']
    """
    if not isinstance(rows, datasets.Dataset):
        hint = "Pass one split of it" if isinstance(rows, dict) else "Make one of it, with `from_list` say"
        raise TypeError(f"Expected a `datasets.Dataset`, but got {type(rows).__name__}. {hint}.")
    if has_transform(rows) and len(rows):
        with suppress(*UNREADABLE):  # which reading the row says again, or leaves out
            return list(rows[0])
    return rows.column_names


def with_columns(rows: datasets.Dataset, columns: Sequence[str]) -> datasets.Dataset:
    """Return the rows with these columns, and no others that are stored.

    A dataset with a transform of its own comes as it is, with all its columns: the transform may read any of them, as
    a `PoisonTransform` reads the one that tells rows apart, and would give other rows without them.

    Args:
        rows: The dataset. A format such as "torch" or "pandas" is taken off.
        columns: Names of columns.

    Example:
        >>> rows = datasets.Dataset.from_dict({"n": [1, 2], "m": [3, 4]})
        >>> with_columns(rows.with_format("numpy"), ["n"])[0]
        {'n': 1}
        >>> with_columns(rows.with_transform(lambda batch: {"n": batch["m"]}), ["n"])[0]
        {'n': 3}
    """
    return rows if has_transform(rows) else rows.with_format(None).select_columns(list(columns))


def without_decoding(rows: datasets.Dataset, image_column: str) -> tuple[datasets.Dataset, Callable[[Any], Any]]:
    """Return `undecoded(rows, image_column)`; with a transform, which may make that column, the rows as they are."""
    return (rows, as_it_is) if has_transform(rows) else undecoded(rows, image_column)
