# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The class numbers that a linear probe is fitted to."""

import datasets
import numpy as np

from hf_clipbd.data.row_format import has_transform
from hf_clipbd.evaluation.protocol import Protocol


def training_labels(train: datasets.Dataset, task: Protocol) -> np.ndarray:
    """Return the class number of each training row, (N,), int64; a transform of the dataset's own makes whole rows.

    Raises:
        TypeError: If the training set is a stream.
        ValueError: If a label is no class number.
    """
    if isinstance(train, datasets.IterableDataset):
        raise TypeError("Expected training images of known length for the probe, but got a stream. Load them without.")
    if has_transform(train):
        values = (row[task.label_column] for row in train)
    else:
        values = train.with_format(None)[task.label_column]
    return np.array([task.label(value, row) for row, value in enumerate(values)], dtype=np.int64)


def check_every_class(labels: np.ndarray, n_classes: int) -> None:
    """Raise `ValueError` if a class has no row.

    Example:
        >>> check_every_class(np.array([0, 1, 1]), 2)
    """
    absent = sorted(set(range(n_classes)) - set(np.unique(labels).tolist()))
    if absent:
        raise ValueError(
            f"Expected a training row of each of {n_classes} classes, but classes {absent[:5]} have none. Take "
            "more rows, or number the classes that are there anew and pass their `class_names`."
        )
