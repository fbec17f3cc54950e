# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Mean and principal axes of every class of a set, from passes over it in blocks."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from hf_clipbd.detection.rows import matrix, row_blocks


BLOCK = 4096
ROOM = 256
"""Megabytes of covariances that are summed up at once; more classes take further passes over the set."""


class Axes(NamedTuple):
    """Means and principal axes of C classes of rows of unit length.

    Args:
        means: (C, D), float64.
        axes: (C, A, D), float64, of length one, that of the largest variance first.
    """

    means: np.ndarray
    axes: np.ndarray


def unit_blocks(features: Any, size: int = BLOCK) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield (rows, float32 copy of them of length one), `size` rows at a time; `ValueError` on NaN or infinity."""
    for rows, block in row_blocks(features, size):
        yield rows, block / np.maximum(np.linalg.norm(block, axis=1, keepdims=True), 1e-12)


def class_axes(features: Any, found: np.ndarray, count: int) -> Axes:
    """Return the mean and the `count` directions of largest variance of each class.

    Its covariance, (D, D), is summed up in double precision from one pass over the set, as far as the covariances of
    all classes fit in `ROOM` megabytes, otherwise from a pass for each part of the classes that do.

    Args:
        features: (N, D); may be a memory map.
        found: Class of each row, (N,), int64, from 0.
        count: Axes of each class, at most D.

    Raises:
        ValueError: If a row is not finite.
    """
    d, classes = matrix(features).shape[1], int(found.max()) + 1
    at_once = max(1, int(ROOM * 2**20 / (8 * d * d)))
    means, axes = np.zeros((classes, d)), np.zeros((classes, min(count, d), d))
    for first in range(0, classes, at_once):
        those = range(first, min(first + at_once, classes))
        sums, products, sizes = np.zeros((len(those), d)), np.zeros((len(those), d, d)), np.zeros(len(those))
        for rows, block in unit_blocks(features):
            labels = found[rows] - first
            for one in np.unique(labels[(labels >= 0) & (labels < len(those))]):
                part = block[labels == one].astype(np.float64)
                sizes[one] += len(part)
                sums[one] += part.sum(axis=0)
                products[one] += part.T @ part
        for one in np.flatnonzero(sizes):
            mean = sums[one] / sizes[one]
            means[first + one] = mean
            scatter = products[one] - sizes[one] * np.outer(mean, mean)
            axes[first + one] = np.linalg.eigh(scatter)[1][:, ::-1][:, : axes.shape[1]].T
    return Axes(means, axes)


def projected(features: Any, found: np.ndarray, of: Axes) -> np.ndarray:
    """Return the coordinates of each row on the axes of its class, from the mean of the class, (N, A), float64."""
    coordinates = np.empty((len(found), of.axes.shape[1]))
    for rows, block in unit_blocks(features):
        labels = found[rows]
        for one in np.unique(labels):
            mine = labels == one
            coordinates[np.flatnonzero(mine) + rows.start] = (block[mine] - of.means[one]) @ of.axes[one].T
    return coordinates
