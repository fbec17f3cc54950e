# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Pictures that a probe is fitted to and measured on: then its accuracy says nothing of pictures that it never saw."""

import hashlib
import logging
from collections import Counter
from collections.abc import Hashable, Iterator
from pathlib import Path

import datasets
import pyarrow.compute as pc
from tqdm.auto import tqdm

from hf_clipbd.data.undecoded import stored_bytes
from hf_clipbd.detection.rows import silent
from hf_clipbd.recipe.place import process_state


logger = logging.getLogger(__name__)

END = 64
"""Bytes at the end of a picture that are looked at first: there compressed pictures differ, and few are read whole."""
End = tuple[int, bytes]
"""How many bytes a picture has, and the last ones."""


def check_apart(shown: datasets.Dataset, fitted: datasets.Dataset, image_column: str) -> None:
    """Raise `ValueError` where the test images `shown` are among those a probe is `fitted` to, or these among them.

    Where some are, a warning says so. Pictures are the same if their bytes are. Of each its length and its end are
    read, the whole of those alone that have both in common with another one; none is decoded.
    """
    both_sets = [
        rows.select_columns([image_column]).cast_column(image_column, datasets.Image(decode=False))
        for rows in (shown, fitted)
    ]
    ends = [list(_ends(rows, image_column)) for rows in both_sets]
    counts = Counter(end for one in ends for end in one)
    tested, trained = (_pictures(rows, image_column, one, counts) for rows, one in zip(both_sets, ends, strict=True))
    both = len(tested & trained)
    told = f"{both} of {len(tested)} distinct test images are among the {len(trained)} training images"
    if both and both in (len(tested), len(trained)):
        raise ValueError(
            f"Expected other pictures to test a probe on than those that it is fitted to, but {told}. Name another "
            "split or dataset (`--train`, `--train_split`; `--data`, `--split`)."
        )
    if both and process_state().is_main_process:
        logger.warning("%s: the probe's accuracy is too high by what it knows of these", told)


def _pictures(encoded: datasets.Dataset, image_column: str, ends: list[End], counts: Counter[End]) -> set[Hashable]:
    """Return what tells each picture from all others: its end, or a hash of its bytes where others end as it does."""
    found: set[Hashable] = {end for end in ends if counts[end] == 1}
    rows = [row for row, end in enumerate(ends) if counts[end] > 1]
    for row in tqdm(rows, "pictures of test and training", disable=silent(len(rows)), leave=False):
        found.add(hashlib.sha256(stored_bytes(encoded[row][image_column])).digest())
    return found


def _ends(encoded: datasets.Dataset, image_column: str) -> Iterator[End]:
    """Yield the end of each picture, without a copy of the others' bytes where these lie in the rows."""
    for table in encoded.with_format("arrow").iter(1000):
        pictures = table[image_column]
        for data, path in zip(pc.struct_field(pictures, "bytes"), pc.struct_field(pictures, "path"), strict=True):
            if data.is_valid:
                buffer = data.as_buffer()
                yield buffer.size, buffer[-END:].to_pybytes()
            else:
                yield _end_of_file(path.as_py())


def _end_of_file(path: str | None) -> End:
    """Return the end of what `stored_bytes` gives for a path."""
    try:
        if path is not None and Path(path).is_file():
            with Path(path).open("rb") as file:
                size = file.seek(0, 2)
                file.seek(max(0, size - END))
                return size, file.read()
    except (OSError, ValueError):  # so does `stored_bytes`
        pass
    stored = stored_bytes({"bytes": None, "path": path})
    return len(stored), stored[-END:]
