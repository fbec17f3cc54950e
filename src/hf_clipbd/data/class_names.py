# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Names of the classes of labelled images, of which two may be called alike, as a column of labels keeps them."""

from collections.abc import Sequence
from typing import Any

import datasets

from hf_clipbd.schema import LABEL


_NUMBERED = "{} (class {})"


def told_apart(names: Sequence[str]) -> list[str]:
    """Return names of which no two are alike, as 🤗 Datasets wants those of a `ClassLabel`: a repeat has its number.

    Args:
        names: C names in the order of the labels; CLIP's own of ImageNet have two `missile` and two `sunglasses`.

    Example:
        >>> told_apart(["missile", "owl", "missile"])
        ['missile', 'owl', 'missile (class 2)']
    """
    seen: set[str] = set()
    found = []
    for number, name in enumerate(names):
        found.append(_NUMBERED.format(name, number) if name in seen else name)
        seen.add(name)
    return found


def as_written(names: Sequence[str]) -> list[str]:
    """Return the names that `told_apart` was given, for prompts and captions; others as they are.

    Example:
        >>> as_written(["missile", "owl", "missile (class 2)"])
        ['missile', 'owl', 'missile']
    """
    seen: set[str] = set()
    found = []
    for number, name in enumerate(names):
        plain = name.removesuffix(_NUMBERED.format("", number))
        found.append(plain if plain in seen else name)
        seen.add(found[-1])
    return found


def class_feature(feature: Any, names: Sequence[str] = ()) -> datasets.ClassLabel | None:
    """Return the `ClassLabel` of a column of labels, of the given names where there are any.

    Args:
        feature: What the column is now.
        names: Names in the order of the numbers.

    Returns:
        None for a column of words, whose classes only a look at every row tells.

    Raises:
        ValueError: If the column is neither and no names are given.
    """
    if names:
        return datasets.ClassLabel(names=told_apart(names))
    if isinstance(feature, datasets.ClassLabel):
        return feature
    if isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string"):
        return None
    raise ValueError(_NEEDS_NAMES.format(feature))


def with_class_names(rows: datasets.Dataset, names: Sequence[str] = ()) -> datasets.Dataset:
    """Return `rows` with `label` as a `ClassLabel`, of the given names where the column does not know its own.

    A column of words needs none: its classes are the words, in alphabetical order. Classes of one name are told apart
    in the feature alone, see `told_apart`.

    Raises:
        ValueError: If the column is no `ClassLabel`, holds numbers and no names are given.
    """
    feature = rows.features[LABEL]
    wanted = class_feature(feature, names)
    if wanted is None:
        words = sorted(word for word in rows.unique(LABEL) if word is not None)
        if all(word.isdecimal() for word in words):
            raise ValueError(_NEEDS_NAMES.format(feature))
        wanted = datasets.ClassLabel(names=words)
    return rows if wanted is feature else rows.cast_column(LABEL, wanted)


_NEEDS_NAMES = (
    "Expected a ClassLabel column or words, but got {}. Set `class_names` (`--class_names FILE`, one a line, in the "
    "order of the numbers)."
)
