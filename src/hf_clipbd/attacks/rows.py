# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""One row or a batch as `datasets` hands it to a mapped function, read without decoding or touching any image."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets.formatting.formatting import LazyBatch, LazyDict

from hf_clipbd.attacks.select import KEY_COLUMNS
from hf_clipbd.attacks.stamping import PROBLEM, warn_of_skipped
from hf_clipbd.schema import LABEL


class Rows:
    """The rows of one call of a mapped function, whether it was given one row or a batch, lazy or not.

    `Dataset.map` hands over lazy rows over an Arrow table. Merely reading an image there decodes it and has it
    compressed once more when the row is written, clean rows too; so values are read from the table instead. In
    `IterableDataset.map` and `with_transform` images come decoded. Under a format such as "numpy" or "torch" they come
    as pixels from which the stored bytes cannot be had any more, so that is refused.

    Args:
        example: What the mapped function was given.
        columns: Columns that have to be there.
        features: Features of the columns, known already where rows are lazy.

    Raises:
        TypeError: If the dataset has a format.
        ValueError: If one of the columns is missing.
    """

    def __init__(self, example: Mapping[str, Any], columns: list[str], features: datasets.Features | None = None):
        self.lazy = isinstance(example, LazyDict)
        self.features: Mapping[str, Any] = (example.formatter.features if self.lazy else features) or {}
        if not self.lazy:
            pixels = isinstance(example, dict) and any(hasattr(example.get(column), "dtype") for column in columns)
            if pixels or not isinstance(example, Mapping):
                raise TypeError("Expected a dataset without a format. Map over `dataset.with_format(None)` instead.")
        self.columns: Mapping[str, Any] = example.data if self.lazy else example
        for column in columns:
            if column not in self.columns:
                raise ValueError(
                    f"Expected columns {columns}, but {column!r} is missing among {list(self.columns)}. Name yours "
                    f"with `image_column=` and `caption_column=`."
                )
        self.example = example
        self.batched = isinstance(example, LazyBatch) or (not self.lazy and _is_batch(example))
        self.n = 1
        if self.batched:
            self.n = example.pa_table.num_rows if self.lazy else len(example[columns[-1]])
        self._read: dict[str, list[Any]] = {}

    def value(self, column: str, i: int) -> Any:
        """Return the value of row `i` and of no other; an image of a lazy row comes as `{"bytes": ..., "path": ...}`.

        For columns of images; `values` reads a column of numbers or texts faster.
        """
        if self._in_table(column):
            return self.example.pa_table.column(column)[i].as_py()
        return self.columns[column][i] if self.batched else self.columns[column]

    def values(self, column: str) -> list[Any]:
        """Return the values of all rows, read once and not to be changed."""
        if column not in self._read:
            if self._in_table(column):
                self._read[column] = self.example.pa_table.column(column).to_pylist()
            else:
                self._read[column] = list(self.columns[column]) if self.batched else [self.columns[column]]
        return self._read[column]

    def _in_table(self, column: str) -> bool:
        return self.lazy and column in self.example.keys_to_format

    def image_mode(self, column: str) -> str | None:
        """Return the mode that the column's `Image` feature converts to; None if it names none or none is known."""
        return getattr(self.features.get(column), "mode", None)

    def class_names(self) -> tuple[str, ...] | None:
        """Return the classes of a `ClassLabel` column `label`; None if there is none or none is known."""
        names = getattr(self.features.get(LABEL), "names", None)
        return None if names is None else tuple(names)

    def keys(self, key_column: str | None) -> Sequence[Any]:
        """Return what tells each row apart, by this column or those of `KEY_COLUMNS`; None for one that has no key."""
        keys: Sequence[Any] = [None] * self.n
        for column in (key_column,) if key_column else KEY_COLUMNS:
            if column in self.columns:
                further = self.values(column)
                keys = [other if key is None else key for key, other in zip(keys, further, strict=True)]
                if None not in keys:
                    break
        return keys

    def replaced(self, column: str, new: Mapping[int, Any]) -> list[Any] | pa.ChunkedArray:
        """Return a column with the rows of `new` replaced, in Arrow where it lies there.

        All other rows are slices of the table, neither read nor copied. Python values among them would make the writer
        turn them all into Python and back, a thousand images for one.
        """
        if not self._in_table(column):
            return [new[i] if i in new else self.value(column, i) for i in range(self.n)]
        kept = self.example.pa_table.column(column)
        if self.n == len(new) == 1:
            return pa.chunked_array([pa.array([new[0]], type=kept.type)])
        parts, start = [], 0
        for i in sorted(new):
            parts += [*kept.slice(start, i - start).chunks, pa.array([new[i]], type=kept.type)]
            start = i + 1
        return pa.chunked_array([*parts, *kept.slice(start).chunks], type=kept.type)

    def updated(self, values: dict[str, list[Any] | pa.ChunkedArray]) -> dict[str, Any]:
        """Return what a mapped function gives back so that these columns change and all others stay as they are."""
        if not self.batched:
            return {column: rows if isinstance(rows, pa.ChunkedArray) else rows[0] for column, rows in values.items()}
        if not self.lazy:
            return {**self.example, **values}  # `with_transform` keeps only what is returned
        returned = {}
        for column, rows in values.items():
            if isinstance(rows, pa.ChunkedArray):  # `map` takes Arrow from the batch, but from a function only lists
                self.example[column] = rows
            else:
                returned[column] = rows
        return returned


def skipped_rows(
    source: datasets.Dataset, problems: Callable[..., dict[str, list[str]]], changed: np.ndarray
) -> dict[str, str]:
    """Return row -> why it was left clean, and log it; pictures of rows without a key are decoded for that.

    Args:
        source: The dataset before poisoning.
        problems: `PoisonTransform.problems`.
        changed: Whether a row has been poisoned, (N,).
    """
    found = source.with_format(None).map(
        problems,
        batched=True,
        with_indices=True,
        fn_kwargs={"changed": changed},
        remove_columns=source.column_names,
        features=datasets.Features({PROBLEM: datasets.Value("string")}),
        keep_in_memory=True,
        desc="Looking for skipped rows",
    )
    skipped = {str(row): problem for row, problem in enumerate(found[PROBLEM]) if problem}
    warn_of_skipped(skipped)
    return skipped


def _is_batch(example: Mapping[str, Any]) -> bool:
    """Return whether every column holds as many values; one row may hold lists too, but rarely all of one length."""
    several = all(isinstance(values, (list, tuple, datasets.Column)) for values in example.values())
    return several and len({len(values) for values in example.values()}) == 1
