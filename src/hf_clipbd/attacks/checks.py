# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What an attack's class is held to, so that a slip in one of your own shows before anything is poisoned with it."""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_clipbd.data.canvas import Canvas


if TYPE_CHECKING:
    from hf_clipbd.attacks.base import Attack

logger = logging.getLogger(__name__)

_INSTEAD = "Override `parameters`, `save_pretrained` and `from_files`, as the page on extending does for a network."


def check_named(attack: "Attack") -> None:
    """Raise `TypeError` if the attack's class has no name: its rows could not be told from clean ones."""
    if not isinstance(attack.name, str) or not attack.name:
        raise TypeError(
            f"Expected a name in the class {type(attack).__name__}, but got {attack.name!r}. Give it one of its own: "
            '`name: ClassVar[str] = "..."`.'
        )


def check_loadable(attack: "Attack", known: Mapping[str, type["Attack"]]) -> None:
    """Raise `ValueError` if the attack would be loaded as one of another class; of an unknown name it warns.

    Args:
        attack: What is to be saved.
        known: Name -> class that is loaded by it.
    """
    own = type(attack)
    kind = known.get(attack.name)
    if kind is None:
        logger.warning(
            'The attack `%s` is not registered. Before it is loaded again, set `ATTACKS["%s"] = %s`.',
            attack.name, attack.name, own.__name__,
        )  # fmt: skip
    elif kind.__qualname__ != own.__qualname__:  # a cell of a notebook makes the same class anew
        raise ValueError(
            f"Expected a name of its own for {own.__name__}, but `{attack.name}` is that of {kind.__name__}, as which "
            'it would be loaded. Set another `name: ClassVar[str]` and `ATTACKS["..."]` by that name.'
        )


def checked_stamp(attack: "Attack", stamped: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return what `attack.stamp` gave for a picture of this shape.

    Raises:
        TypeError: If it is no array of floats of this shape.
        ValueError: If a value is no number, for which a picture of one colour may be to blame.
    """
    where = f"`{type(attack).__name__}.stamp`"
    if not isinstance(stamped, np.ndarray):
        raise TypeError(
            f"Expected stamped pixels {shape} of {where}, but got {type(stamped).__name__}. Return a NumPy array, "
            "the given one too where it was written to."
        )
    if stamped.shape != shape or stamped.dtype.kind != "f":
        raise TypeError(
            f"Expected stamped pixels {shape} of {where}, floats of which 1 is white, but got {stamped.dtype} "
            f"{stamped.shape}. Return floats in [0, 1] of the picture's own size."
        )
    if np.isnan(stamped.min()):
        raise ValueError(f"Expected numbers as stamped pixels of {where}, but got NaN. Is something divided by zero?")
    return stamped


def plain_parameter(attack: "Attack", name: str, value: Any) -> Any:
    """Return a field of an attack as plain JSON; an array is a reference to its tensor.

    Raises:
        TypeError: If JSON has no place for it: a network, say.
    """
    if isinstance(value, np.ndarray):
        return {"tensor": name, "shape": list(value.shape), "dtype": str(value.dtype)}
    if isinstance(value, Canvas):
        return asdict(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [plain_parameter(attack, name, one) for one in value]
    if isinstance(value, Mapping):
        return {str(key): plain_parameter(attack, name, one) for key, one in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        f"Expected fields of {type(attack).__name__} that are numbers, texts, lists or arrays, but `{name}` is "
        f"{type(value).__name__}. {_INSTEAD}"
    )
