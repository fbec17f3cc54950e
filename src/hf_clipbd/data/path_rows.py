# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Rows that name a file in place of a picture's bytes: which of these files may be taken into a written dataset.

🤗 Datasets writes the bytes of any file that a row names, so a stranger's rows could carry files of this machine to
wherever the dataset goes. Pictures may be taken in, and nothing else.
"""

import os
import stat
from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
import PIL.Image
import PIL.ImageFile
import pyarrow as pa
import pyarrow.compute as pc
from datasets.features.features import require_storage_embed
from datasets.utils.file_utils import is_local_path

from hf_clipbd.data.unreadable import UNREADABLE


_BATCH = 1000


def picture_problem(path: str | os.PathLike) -> str | None:
    """Return why a file may not be taken in as a picture, None if it may.

    It has to be a regular file whose header Pillow recognises; of a format without a signature, the whole of it.

    Example:
        >>> picture_problem("/proc/self/environ")
        'Expected a picture at /proc/self/environ, but what is there is none.'
    """
    try:
        known = os.stat(path)
    except (OSError, ValueError):  # ValueError: a null byte in the name
        return f"Expected a picture at {path}, but none is there."
    if not stat.S_ISREG(known.st_mode):
        return f"Expected a picture at {path}, but that is no regular file."
    try:
        with PIL.Image.open(path) as image:
            if PIL.Image.OPEN[image.format][1] is None:  # nothing tells this format from anything else
                image.load()
            recognised = not isinstance(image, PIL.ImageFile.StubImageFile)
    except PIL.Image.DecompressionBombError as error:
        return f"Expected a picture at {path} that can be decoded, but: {error}"
    except UNREADABLE:
        recognised = False
    return None if recognised else f"Expected a picture at {path}, but what is there is none."


def unfit_files(rows: datasets.Dataset, remote: bool = False) -> Iterator[tuple[int, str, str]]:
    """Yield (row, column, problem) of every file that a row names and that may not be taken into a written dataset.

    Rows with bytes are passed over unread, in whatever column: those of all kinds whose files 🤗 Datasets takes in.

    Args:
        rows: The dataset.
        remote: Whether files of other machines count, which `save_to_disk` leaves where they are and Parquet does not.
    """
    for row, column, feature, path in _named_files(rows):
        problem = _problem(feature, path, remote)
        if problem is not None:
            yield row, column, problem


def names_files(rows: datasets.Dataset) -> bool:
    """Return whether any row names a file in place of bytes; the bytes are not read."""
    return next(_named_files(rows), None) is not None


def check_files(rows: datasets.Dataset, remote: bool = False) -> None:
    """Raise `ValueError`, which names the row, at the first file that `unfit_files` finds."""
    for row, column, problem in unfit_files(rows, remote):
        raise ValueError(f"Row {row}, column {column!r}: {problem}")


def _named_files(rows: datasets.Dataset) -> Iterator[tuple[int, str, Any, str]]:
    """Yield (row, column, feature, path) of every file that a row names in place of bytes."""
    features = rows.features
    columns = [name for name, feature in features.items() if require_storage_embed(feature)]
    if not columns:
        return
    start = 0
    for table in rows.select_columns(columns).with_format("arrow").iter(_BATCH):
        for column in columns:
            for row, feature, path in _named(table.column(column), features[column]):
                yield start + row, column, feature, path
        start += table.num_rows


def _problem(feature: Any, path: str, remote: bool) -> str | None:
    if not _is_local(path):
        return f"Expected bytes or a file of this machine, but got {path}. Download it first." if remote else None
    if not isinstance(feature, datasets.Image):
        return (
            f"Expected files of pictures only, but got {path} in a column of {type(feature).__name__}. Take that "
            "column out (`remove_columns`)."
        )
    return picture_problem(path)


def _is_local(path: str) -> bool:
    try:
        return is_local_path(path)
    except ValueError:  # brackets in what looks like an address
        return False


def _named(column: pa.ChunkedArray, feature: Any) -> Iterator[tuple[int, Any, str]]:
    """Yield (row, feature, path) of the values of a column that have a path and no bytes."""
    if hasattr(feature, "embed_storage") and pa.types.is_struct(column.type):
        data, paths = pc.struct_field(column, "bytes"), pc.struct_field(column, "path")
        named = pc.and_(pc.is_null(data), pc.is_valid(paths)).to_numpy()
        yield from ((int(row), feature, paths[int(row)].as_py()) for row in np.flatnonzero(named))
        return
    for row, value in enumerate(column.to_pylist()):
        yield from ((row, *one) for one in _nested(value, feature))


def _nested(value: Any, feature: Any) -> Iterator[tuple[Any, str]]:
    if value is None:
        return
    if isinstance(feature, dict):
        for name, inner in feature.items():
            yield from _nested(value[name], inner)
    elif isinstance(feature, (datasets.List, datasets.LargeList)):
        for one in value:
            yield from _nested(one, feature.feature)
    elif hasattr(feature, "embed_storage") and value.get("bytes") is None and value.get("path") is not None:
        yield feature, value["path"]
