# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Rows of a dataset as pixels on a canvas and captions, one picture decoded at a time."""

from collections.abc import Iterable, Iterator
from typing import Any

import datasets
import numpy as np
from tqdm.auto import tqdm

from hf_clipbd.data.canvas import Canvas
from hf_clipbd.data.undecoded import undecoded
from hf_clipbd.data.unreadable import UNREADABLE, reason
from hf_clipbd.schema import CAPTION, IMAGE


class Reader:
    """Rows of a dataset as pixels on a canvas and captions; what cannot be read is named.

    Args:
        rows: The dataset, with no other columns than these.
        image_column: Column of images, or None.
        caption_column: Column of captions, or None.
        canvas: Geometry of the images.
    """

    def __init__(
        self, rows: datasets.Dataset, image_column: str | None, caption_column: str | None, canvas: Canvas
    ) -> None:
        self.rows, self._decode = (rows, None) if image_column is None else undecoded(rows, image_column)
        self.canvas = canvas
        self.image_column, self.caption_column = image_column, caption_column

    def batches(
        self, size: int, desc: str, unreadable: dict[int, str] | None
    ) -> Iterator[tuple[list[np.ndarray], list[str]]]:
        """Yield pixels, (H, W, 3) each, and captions of up to `size` rows; of an unreadable row neither."""
        starts = range(0, len(self.rows), size)
        silent = True if len(self.rows) < 2048 else None  # None: shown on a terminal, not in a log
        for start in tqdm(starts, desc=desc, unit="batch", disable=silent, leave=False):
            images, captions = [], []
            for number, row in self._read(start, min(start + size, len(self.rows))):
                try:
                    pixels, caption = self._checked(self.rows[number] if row is None else row)
                except (TypeError, *UNREADABLE) as error:
                    if unreadable is None:
                        raise ValueError(f"Row {number}: {reason(error)}") from error
                    unreadable[number] = reason(error)
                    continue
                images += [] if pixels is None else [pixels]
                captions += [] if caption is None else [caption]
            yield images, captions

    def _read(self, start: int, stop: int) -> Iterable[tuple[int, dict[str, Any] | None]]:
        """Return number and values of each row; None for the values where the rows have to be read one by one."""
        try:
            columns = self.rows[start:stop]
        except UNREADABLE:
            return [(number, None) for number in range(start, stop)]
        values = zip(*columns.values(), strict=True)
        return enumerate((dict(zip(columns, row, strict=True)) for row in values), start)

    def _checked(self, row: dict[str, Any]) -> tuple[np.ndarray | None, str | None]:
        pixels, caption = None, None
        if self.image_column is not None:
            if row[self.image_column] is None:
                raise ValueError("Expected an image, but the row has none.")
            pixels = self.canvas.array(self._decode(row[self.image_column]))
        if self.caption_column is not None:
            caption = row[self.caption_column]
            if not isinstance(caption, str):
                raise ValueError(f"Expected a text as the caption, but got {type(caption).__name__}.")
        return pixels, caption


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
    reader = Reader(rows.select_columns([image_column, caption_column]), image_column, caption_column, canvas)
    for _ in reader.batches(batch, "reading", unreadable):
        pass
    kept = rows.select([row for row in range(len(rows)) if row not in unreadable]) if unreadable else rows
    return kept, unreadable
