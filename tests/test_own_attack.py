# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""An attack of somebody else's package: what its class gets wrong is told, and not stamped, saved or loaded."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from hf_clipbd.attacks import ATTACKS, Attack, BadNets


GREY = np.full((6, 8, 3), 100, dtype=np.uint8)


@dataclass(frozen=True, eq=False)
class Own(Attack):
    function: Callable[..., Any] | None = None
    name: ClassVar[str] = "own"

    def stamp(self, pixels, rng):
        return self.function(pixels)


@dataclass(frozen=True, eq=False)
class Nameless(Attack):
    def stamp(self, pixels, rng):
        return pixels


@dataclass(frozen=True, eq=False)
class Renamed(BadNets):
    """Has its parent's name, as which it would be loaded."""


@dataclass(frozen=True, eq=False)
class Dice(Attack):
    name: ClassVar[str] = "dice"

    def stamp(self, pixels, rng):
        return pixels * np.float32(np.random.default_rng().random())


@dataclass(frozen=True, eq=False)
class Weighed(Attack):
    """Keeps what JSON cannot, in a file of its own."""

    weigh: Any = None
    name: ClassVar[str] = "weighed"

    def stamp(self, pixels, rng):
        return self.weigh(pixels)

    def parameters(self, **stand_ins):
        return super().parameters(weigh={"file": "weight.txt", "weight": self.weigh.weight}, **stand_ins)

    def save_pretrained(self, folder):
        folder = super().save_pretrained(folder)
        (folder / "weight.txt").write_text(str(self.weigh.weight))
        return folder

    @classmethod
    def from_files(cls, parameters, file):
        return cls(**{**parameters, "weigh": Weight(float(file("weight.txt").read_text()))})


class Weight:
    def __init__(self, weight):
        self.weight = weight

    def __call__(self, pixels):
        return pixels * np.float32(self.weight)


@pytest.mark.parametrize("pixels", [GREY, GREY / np.float32(255)], ids=["bytes", "floats"])
@pytest.mark.parametrize(
    ("function", "error", "says"),
    [
        (lambda x: None, TypeError, r"`Own.stamp`, but got NoneType. Return a NumPy array"),
        (lambda x: (x * 255).astype(np.uint8), TypeError, r"of which 1 is white, but got uint8 \(6, 8, 3\)"),
        (lambda x: x[:3], TypeError, r"pixels \(6, 8, 3\) .* but got float32 \(3, 8, 3\)"),
        (lambda x: x * np.nan, ValueError, "but got NaN"),
    ],
)
def test_what_stamp_gives_has_to_be_a_picture(pixels, function, error, says):
    with pytest.raises(error, match=says):
        Own(function=function)(pixels)


def test_floats_of_any_width_and_beyond_the_range_are_a_picture():
    assert Own(function=lambda x: x.astype(np.float64) + [2, -2, 0])(GREY)[0, 0].tolist() == [255, 0, 100]
    assert Own(function=lambda x: x * [np.inf, -np.inf, np.inf])(GREY)[0, 0].tolist() == [255, 0, 255]


def test_a_class_needs_a_name_of_its_own(tmp_path, monkeypatch, caplog):
    with pytest.raises(TypeError, match="Expected a name in the class Nameless"):
        Nameless()
    with pytest.raises(ValueError, match="`badnets` is that of BadNets, as which it would be loaded"):
        Renamed().save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    monkeypatch.setitem(ATTACKS, "weighed", type("Weighed", (Weighed,), {"__qualname__": Weighed.__qualname__}))
    Weighed(weigh=Weight(0.5)).save_pretrained(tmp_path)  # a notebook's cell, run again
    monkeypatch.delitem(ATTACKS, "weighed")
    with caplog.at_level(logging.WARNING):
        Weighed(weigh=Weight(0.5)).save_pretrained(tmp_path)
    assert 'set `ATTACKS["weighed"] = Weighed`' in caplog.text
    with pytest.raises(ValueError, match="import first what puts its class into `ATTACKS`"):
        Attack.from_pretrained(tmp_path)


def test_a_stamp_that_draws_from_elsewhere_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="`Dice.stamp` to stamp the same row alike each time"):
        Dice().save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_json_cannot_hold_needs_a_stand_in(tmp_path, monkeypatch):
    with pytest.raises(TypeError, match=r"fields of Own .* `function` is Weight. Override `parameters`"):
        Own(function=Weight(0.5)).parameters()
    monkeypatch.setitem(ATTACKS, "weighed", Weighed)
    Weighed(weigh=Weight(0.5)).save_pretrained(tmp_path)
    assert Attack.from_pretrained(tmp_path)(GREY)[0, 0, 0] == 50
    plain = Own(function=[Path("a"), np.float32(0.5), {"k": (1, None)}]).parameters()["function"]
    assert plain == ["a", 0.5, {"k": [1, None]}]
