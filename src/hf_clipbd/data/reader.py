# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Rows of a dataset as pixels on a canvas and captions, a picture decoded at a time by each of a few threads."""

from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from typing import Any

import datasets
import numpy as np
from tqdm.auto import tqdm

from hf_clipbd.data.ahead import MOST_AHEAD, decoding_threads, made_ahead
from hf_clipbd.data.canvas import Canvas
from hf_clipbd.data.row_format import with_columns, without_decoding
from hf_clipbd.data.undecoded import as_it_is
from hf_clipbd.data.unreadable import UNREADABLE, reason
from hf_clipbd.schema import CAPTION, IMAGE


_Read = tuple[np.ndarray | None, str | None, Exception | None]
"""Pixels and caption of a row, or why it cannot be read."""


class Reader:
    """Rows of a dataset as pixels on a canvas and captions; what cannot be read is named.

    Args:
        rows: The dataset, with no other columns than these where `with_columns` leaves others out.
        image_column: Column of images, or None.
        caption_column: Column of captions, or None.
        canvas: Geometry of the images.
    """

    def __init__(
        self, rows: datasets.Dataset, image_column: str | None, caption_column: str | None, canvas: Canvas
    ) -> None:
        self.rows, self._decode = (rows, None) if image_column is None else without_decoding(rows, image_column)
        self.canvas = canvas
        self.image_column, self.caption_column = image_column, caption_column

    def batches(
        self, size: int, desc: str, unreadable: dict[int, str] | None
    ) -> Iterator[tuple[list[np.ndarray], list[str]]]:
        """Yield pixels, (H, W, 3) each, and captions of up to `size` rows; of an unreadable row neither.

        While the caller works on them, threads decode the pictures of the next `size` rows.
        """
        starts = range(0, len(self.rows), size)
        silent = True if len(self.rows) < 2048 else None  # None: shown on a terminal, not in a log
        with closing(self._read(size)) as rows:
            for start in tqdm(starts, desc=desc, unit="batch", disable=silent, leave=False):
                images, captions = [], []
                for number, (pixels, caption, problem) in enumerate(islice(rows, size), start):
                    if problem is not None:
                        if unreadable is None:
                            raise ValueError(f"Row {number}: {reason(problem)}") from problem
                        unreadable[number] = reason(problem)
                        continue
                    images += [] if pixels is None else [pixels]
                    captions += [] if caption is None else [caption]
                yield images, captions

    def _read(self, size: int) -> Iterator[_Read]:
        """Yield every row as it is read."""
        values = self._values(size)
        if self._decode in (None, as_it_is):  # nothing to decode, or nothing that can be decoded one by one
            yield from map(self._checked, values)
        else:
            yield from made_ahead(self._checked, values, min(size, MOST_AHEAD), decoding_threads())

    def _values(self, size: int) -> Iterator[dict[str, Any] | Exception]:
        """Yield the values of each row, or why they cannot be had, `size` rows read at a time where that can be."""
        for start in range(0, len(self.rows), size):
            numbers = range(start, min(start + size, len(self.rows)))
            try:
                columns = self.rows[numbers.start : numbers.stop]
            except UNREADABLE:
                yield from map(self._values_of, numbers)
            else:
                yield from (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))

    def _values_of(self, number: int) -> dict[str, Any] | Exception:
        try:
            return self.rows[number]
        except (TypeError, *UNREADABLE) as error:
            return error

    def _checked(self, row: dict[str, Any] | Exception) -> _Read:
        """Return what a row holds, or why it cannot be read."""
        if isinstance(row, Exception):
            return None, None, row
        try:
            return self._pixels(row), self._caption(row), None
        except (TypeError, *UNREADABLE) as error:
            return None, None, error

    def _pixels(self, row: dict[str, Any]) -> np.ndarray | None:
        if self.image_column is None:
            return None
        if row[self.image_column] is None:
            raise ValueError("Expected an image, but the row has none.")
        return self.canvas.array(self._decode(row[self.image_column]))

    def _caption(self, row: dict[str, Any]) -> str | None:
        if self.caption_column is None:
            return None
        caption = row[self.caption_column]
        if not isinstance(caption, str):
            raise ValueError(f"Expected a text as the caption, but got {type(caption).__name__}.")
        return caption


def readable_rows(
    rows: datasets.Dataset, canvas: Canvas, image_column: str = IMAGE, caption_column: str = CAPTION, batch: int = 256
) -> tuple[datasets.Dataset, dict[int, str]]:
    """Return the rows whose image and caption can be read, and row number -> what is wrong with each of the others.

    Every picture is decoded once to see that.

    Args:
        rows: The dataset.
        canvas: Geometry of the images.
        image_column: Column of images.
        caption_column: Column of captions.
        batch: Rows read at a time.
    """
    unreadable: dict[int, str] = {}
    reader = Reader(with_columns(rows, [image_column, caption_column]), image_column, caption_column, canvas)
    for _ in reader.batches(batch, "reading", unreadable):
        pass
    kept = rows.select([row for row in range(len(rows)) if row not in unreadable]) if unreadable else rows
    return kept, unreadable
