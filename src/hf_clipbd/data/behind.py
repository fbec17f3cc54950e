# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The rows that lie behind a selection of rows, so that whoever needs a column alone copies no pictures."""

import hashlib

import datasets
import numpy as np


def behind(rows: datasets.Dataset) -> tuple[datasets.Dataset, np.ndarray | None]:
    """Return all rows that lie behind `shuffle`, `select` or `filter`, and which of them were selected.

    🤗 Datasets copies every picture of a selection into its cache where a column is added to it. A column that is
    added to the rows behind it, which are then selected anew, copies none.

    Args:
        rows: The dataset, without a format.

    Returns:
        The rows behind, and the numbers there of `rows`, (N,), int64; the dataset itself and None where all of them
        are selected in their order.

    Example:
        >>> rows = datasets.Dataset.from_dict({"n": [5, 6, 7]}).select([2, 0])
        >>> whole, numbers = behind(rows)
        >>> whole["n"][:], numbers.tolist()
        ([5, 6, 7], [2, 0])
    """
    if rows._indices is None:
        return rows, None
    numbers = rows._indices.column(0).to_numpy().astype(np.int64)
    fingerprint = hashlib.sha256(f"behind {rows._fingerprint}".encode()).hexdigest()[:16]
    return datasets.Dataset(rows.data, rows.info.copy(), rows.split, fingerprint=fingerprint), numbers
