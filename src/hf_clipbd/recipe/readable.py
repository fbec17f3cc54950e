# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Rows of a run without those that cannot be read: every picture decoded once, the findings kept in the run folder."""

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import numpy as np
from accelerate.utils import broadcast_object_list, gather_object

from hf_clipbd.data.canvas import Canvas
from hf_clipbd.data.reader import Reader
from hf_clipbd.recipe.fingerprints import data_fingerprint
from hf_clipbd.recipe.place import process_state
from hf_clipbd.run_folder import CONFIG_FILE
from hf_clipbd.schema import CAPTION, IMAGE, content_key, write_json


logger = logging.getLogger(__name__)

UNREADABLE_FILE = "unreadable.json"
"""In a run folder: key of chosen rows -> what they are, how many, and row -> why it is left out."""
_BATCH = 256
_ADVICE = re.compile(r"""Or (pass on_error="skip"|leave such rows out: `--on_error skip`)\.""")
"""How code and commands that work on rows say that unreadable ones can be left out."""


def without_unreadable(
    rows: datasets.Dataset, chosen: np.ndarray | None, canvas: Canvas, run: Path, what: str
) -> tuple[datasets.Dataset, dict[str, str]]:
    """Return the chosen rows that can be read, and row -> why each of the others cannot.

    A run decodes them once: what it found is in its folder and is taken from there while the rows are the same.
    Several processes share the decoding, and all of them have to call it.

    Args:
        chosen: Numbers of rows, ascending; None for all.
        run: The run folder; nothing is kept where it has no configuration.
        what: What the rows are for, for the log and the file.

    Raises:
        ValueError: If none of them can be read.
    """
    selected = rows if chosen is None else rows.select(chosen)
    numbers = np.arange(len(rows)) if chosen is None else chosen
    key, file = content_key(data_fingerprint(selected), canvas.size, canvas.mode), run / UNREADABLE_FILE
    state = process_state()
    known = broadcast_object_list([_kept(file).get(key)])[0]  # the main process's, lest one reads what it writes
    if known is None:
        mine = np.array_split(np.arange(len(selected)), state.num_processes)[state.process_index]
        found = gather_object([_unreadable(selected, mine, canvas, what)])
        bad = {str(numbers[row]): why for part in found for row, why in part.items()}
        known = {"rows": what, "n": len(selected), "unreadable": bad}
        if state.is_main_process and (run / CONFIG_FILE).is_file():
            write_json(file, {**_kept(file), key: known})
    bad = known["unreadable"]
    if not bad:
        return selected, {}
    row, why = next(iter(bad.items()))
    if len(bad) == len(selected):
        raise ValueError(f"Expected `{what}` rows that can be read, but none of {len(bad)} can. Row {row}: {why}")
    if state.is_main_process:
        said = "%d of %d rows of `%s` cannot be read and are left out; row %s: %s"
        logger.warning(said, len(bad), len(selected), what, row, why)
    return selected.select(np.flatnonzero(~np.isin(numbers, [int(row) for row in bad]))), bad


@contextmanager
def advising_runs() -> Iterator[None]:
    """Let errors of the block about unreadable rows say what leaves them out of a run: `world.on_error: skip`."""
    try:
        yield
    except ValueError as error:
        said, advised = _ADVICE.subn("Or set `world.on_error: skip`, which leaves such rows out.", str(error))
        if not advised:
            raise
        raise ValueError(said) from error


def _kept(file: Path) -> dict[str, dict]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _unreadable(rows: datasets.Dataset, numbers: np.ndarray, canvas: Canvas, what: str) -> dict[int, str]:
    """Return row -> what is wrong with it for the unreadable ones of some rows."""
    caption = CAPTION if CAPTION in rows.column_names else None
    columns = [IMAGE] if caption is None else [IMAGE, caption]
    bad: dict[int, str] = {}
    reader = Reader(rows.select_columns(columns).select(numbers), IMAGE, caption, canvas)
    for _ in reader.batches(_BATCH, f"reading {what}", bad):
        pass
    return {int(numbers[row]): why for row, why in bad.items()}
