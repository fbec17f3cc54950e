# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Class names that a caller gives, against what the labels say of themselves."""

import logging
from collections.abc import Mapping, Set
from typing import Any

import datasets

from hf_clipbd.attacks.shares import folded
from hf_clipbd.data.row_format import has_transform


logger = logging.getLogger(__name__)

NUMBERED = "Number the labels: `dataset.cast_column(label_column, datasets.ClassLabel(names=class_names))`."
"""What to do with labels that are texts."""


def given_names(class_names: Any, dataset: Any, label_column: str) -> list[str]:
    """Return class names that a caller gives for the labels of a dataset, as a list.

    Labels of a plain dataset none of which is 0 are warned of: where they start at 1, each would have the name of the
    class before it.

    Args:
        class_names: C names in the order of their numbers.
        dataset: The labelled images.
        label_column: Column of class numbers.

    Raises:
        ValueError: If they are a text, have no order or are no texts, or are the names of the column's `ClassLabel` in
            another order, by which every picture would be measured against the name of another class.

    Example:
        >>> rows = datasets.Dataset.from_dict({"label": [0, 1]})
        >>> given_names(("cat", "dog"), rows, "label")
        ['cat', 'dog']
    """
    listed = [] if isinstance(class_names, (str, Set, Mapping)) else list(class_names)
    if not listed or not all(isinstance(name, str) for name in listed):
        raise ValueError(
            f"Expected a list of class names in the order of their numbers, but got {class_names!r:.80} of type "
            f"{type(class_names).__name__}."
        )
    feature = (getattr(dataset, "features", None) or {}).get(label_column)
    if has_transform(dataset):
        return listed  # what it makes of the labels is its own
    if isinstance(feature, datasets.ClassLabel):
        _check_order(listed, feature.names, label_column)
    elif isinstance(dataset, datasets.Dataset) and isinstance(feature, datasets.Value):
        known = [one for one in dataset.with_format(None)[label_column] if isinstance(one, int)]
        if known and min(known) > 0:
            logger.warning(
                "no picture is of class 0, %r, in column `%s`: if its labels start at 1, take 1 from each, or every "
                "picture is measured against the name of another class",
                listed[0],
                label_column,
            )
    return listed


def _check_order(given: list[str], own: list[str], label_column: str) -> None:
    """Raise `ValueError` if the names are those of the column in another order."""
    one, other = list(map(folded, given)), list(map(folded, own))
    if one != other and sorted(one) == sorted(other):
        number = next(number for number, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)
        raise ValueError(
            f"Expected class names in the order of their numbers, but class {number} is {given[number]!r} among them "
            f"and {own[number]!r} in column `{label_column}`. Leave `class_names` out, or order them as there."
        )
