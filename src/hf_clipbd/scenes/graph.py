# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What a scene shows, before it is drawn or told: objects with their looks and places, relations, background."""

from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np

from .words import CLASS_NAMES, COLORS, OPPOSITE, SIZES, TEXTURES


T = TypeVar("T")

SPLITS = ("train", "defense", "test")
FREQUENCIES = ("balanced", "long_tailed")
ZIPF_EXPONENT = 0.7
TARGET_ROW_SHARE = 0.001  # rows of a long-tailed set that show the target
_GROUP = 0.12  # share of scenes that show two or three copies of one object
_SINGLE = 0.36  # share of scenes with one object; the others have two or, less often, three
_TRIPLE = 0.16
_MEAN_DRAWS = _GROUP + _SINGLE + 2 * (1 - _GROUP - _SINGLE - _TRIPLE) + 3 * _TRIPLE
# Diameter as a fraction of the picture's side: (least, most).
DIAMETERS = {"small": (0.33, 0.37), "medium": (0.44, 0.49), "large": (0.59, 0.69)}
BACKGROUNDS = ("plain", "gradient", "noisy", "cluttered")
Layout = tuple[list[tuple[float, float]], list[tuple[int, str, int]]]  # centres, relations
_COLOR_NAMES, _TEXTURE_NAMES, _SIZE_NAMES = tuple(COLORS), tuple(TEXTURES), tuple(SIZES)


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One object: its words, its place and size in fractions of the picture's side, and how it is turned.

    `(x, y)` is the centre, y goes down; `diameter` is the longer side of the drawing's box before it is turned by
    `angle` degrees.
    """

    name: str
    color: str
    size: str
    texture: str
    x: float
    y: float
    diameter: float
    angle: float
    flipped: bool


@dataclass(frozen=True, slots=True)
class Scene:
    """One picture: its objects from back to front, how they stand to each other, and its background.

    `relations` holds `(first, relation, second)` with places in `objects`; `color` is the background's hue; `group`
    says that all objects are alike in class, colour, size and texture.
    """

    objects: tuple[SceneObject, ...]
    relations: tuple[tuple[int, str, int], ...]
    background: str
    color: str
    group: bool

    @property
    def names(self) -> frozenset[str]:
        """The classes this scene shows."""
        return frozenset(thing.name for thing in self.objects)


def scene_rng(seed: int, split: str, index: int, stream: int) -> np.random.Generator:
    """Return the generator of one row: stream 0 (long-tailed 3) decides what is shown, 1 the caption, 2 the pixels."""
    return np.random.default_rng((seed, SPLITS.index(split), index, stream))


@lru_cache(maxsize=32)
def class_cumulative(frequencies: str, target: str) -> tuple[float, ...]:
    """Return the cumulative probability, over `CLASS_NAMES`, of the class an object is drawn from.

    `long_tailed`: classes other than the target fall off as `rank ** -0.7` in an order fixed for all seeds, and the
    target has the share that puts it into `TARGET_ROW_SHARE` of the rows.

    Raises:
        ValueError: If `frequencies` or `target` is unknown.
    """
    if frequencies not in FREQUENCIES:
        raise ValueError(f"Expected `frequencies` to be one of {FREQUENCIES}, but got {frequencies!r}.")
    if target not in CLASS_NAMES:
        raise ValueError(f"Expected `target` to be one of the `CLASS_NAMES` of the scenes, but got {target!r}.")
    share = np.ones(len(CLASS_NAMES))
    if frequencies == "long_tailed":
        ranks = 1 + np.random.default_rng(0).permutation(len(CLASS_NAMES))
        share = ranks**-ZIPF_EXPONENT
        place = CLASS_NAMES.index(target)
        share[place] = 0
        slot = TARGET_ROW_SHARE / _MEAN_DRAWS
        share *= (1 - slot) / share.sum()
        share[place] = slot
    total = np.cumsum(share / share.sum())
    total[-1] = 1.0
    return tuple(total.tolist())


def pick(rng: np.random.Generator, values: tuple[T, ...]) -> T:
    """Return one of the values, each as likely as the others."""
    return values[int(rng.random() * len(values))]


def _draw_classes(rng: np.random.Generator, count: int, cumulative: tuple[float, ...]) -> list[str]:
    """Return `count` different classes."""
    names: list[str] = []
    while len(names) < count:
        name = CLASS_NAMES[int(np.searchsorted(cumulative, rng.random(), side="right"))]
        if name not in names:
            names.append(name)
    return names


def _sizes(rng: np.random.Generator, count: int) -> list[str]:
    """Return sizes that fit into one picture: beside a large one only small ones, at most one medium of three."""
    if count == 1:
        return [pick(rng, _SIZE_NAMES)]
    if count == 2:
        sizes = [pick(rng, _SIZE_NAMES), pick(rng, _SIZE_NAMES[:2])]
        if sizes[0] == "large":
            sizes[1] = "small"
        return sizes if rng.random() < 0.5 else sizes[::-1]
    sizes = ["small", "small", "small"]
    if rng.random() < 0.4:
        sizes[int(rng.random() * 3)] = "medium"
    return sizes


def _beside(rng: np.random.Generator, widths: list[float]) -> list[float]:
    """Return centres along one axis for things side by side, in this order, within the picture as far as it goes."""
    slack = 1.0 - sum(widths)  # a little below 0: they overlap each other and the border by as much
    cuts = sorted(rng.random(len(widths)).tolist()) if slack > 0 else np.arange(0.25, 1, 1 / len(widths)).tolist()
    centers, place = [], 0.0
    for width, cut in zip(widths, cuts, strict=True):
        centers.append(place + slack * cut + width / 2)
        place += width
    return centers


def _across(rng: np.random.Generator, diameter: float, spread: float = 0.10) -> float:
    room = max(min(spread, (1 - 1.1 * diameter) / 2), 0.0)
    return 0.5 + (2 * rng.random() - 1) * room


def _pair(rng: np.random.Generator, relation: str, diameters: list[float]) -> list[tuple[float, float]]:
    """Return the centres of two objects of which the first stands in `relation` to the second."""
    if relation in ("left", "above"):
        along = _beside(rng, diameters)
    elif relation in ("right", "below"):
        along = _beside(rng, diameters[::-1])[::-1]
    else:
        big = max(diameters)
        x, y = _across(rng, big, 0.12), _across(rng, big, 0.12)
        turn, reach = rng.random() * 2 * np.pi, 0.38 * sum(diameters)
        dx, dy = reach * np.cos(turn) / 2, reach * np.sin(turn) / 2
        return [(x - dx, y - dy), (x + dx, y + dy)]
    across = [_across(rng, diameter) for diameter in diameters]
    if relation in ("left", "right"):
        return list(zip(along, across, strict=True))
    return list(zip(across, along, strict=True))


def _triple(rng: np.random.Generator, diameters: list[float]) -> Layout:
    """Return the centres of three objects, two side by side and one above or below them, and their relations."""
    first = pick(rng, ("left", "right"))
    xs = _beside(rng, diameters[:2] if first == "left" else diameters[1::-1])
    xs = xs if first == "left" else xs[::-1]
    third = pick(rng, ("above", "below"))
    row = max(diameters[:2])
    heights = [diameters[2], row] if third == "above" else [row, diameters[2]]
    ys = _beside(rng, heights)
    y_third, y_row = ys if third == "above" else ys[::-1]
    mate = int(rng.random() * 2)
    centers = [(xs[0], y_row), (xs[1], y_row), (xs[mate] + (rng.random() - 0.5) * 0.06, y_third)]
    half = diameters[2] / 2
    centers[2] = (min(max(centers[2][0], half), 1 - half), y_third)
    return centers, [(0, first, 1), (2, third, mate)]


def _layout(rng: np.random.Generator, diameters: list[float]) -> Layout:
    if len(diameters) == 1:
        return [(_across(rng, diameters[0], 0.25), _across(rng, diameters[0], 0.25))], []
    if len(diameters) == 3:
        return _triple(rng, diameters)
    relation = pick(rng, tuple(OPPOSITE))
    if relation in ("front", "behind"):  # the smaller one in front, so that both can be recognised
        relation = "front" if diameters[0] <= diameters[1] else "behind"
    centers = _pair(rng, relation, diameters)
    return centers, [(0, relation, 1)]


def build_scene(
    rng: np.random.Generator,
    cumulative: tuple[float, ...],
    only: str | None = None,
    sizes: tuple[str, ...] = _SIZE_NAMES,
) -> Scene:
    """Return the scene that `rng` draws.

    Args:
        rng: The row's generator, stream 0 or 3.
        cumulative: Of `class_cumulative`.
        only: Show one object of this class and nothing else.
        sizes: Sizes allowed for `only`.
    """
    kind = rng.random()
    group = only is None and kind < _GROUP
    if only is not None or _GROUP <= kind < _GROUP + _SINGLE:
        count = 1
    elif group:
        count = 2 + (rng.random() < 0.4)
    else:
        count = 3 if kind > 1 - _TRIPLE else 2
    names = [only] if only else _draw_classes(rng, 1 if group else count, cumulative) * (count if group else 1)
    widths = [pick(rng, sizes)] if only else _sizes(rng, count)
    looks = [(pick(rng, _COLOR_NAMES), _TEXTURE_NAMES[max(int(rng.random() * 5) - 2, 0)]) for _ in names]
    if group:
        looks = looks[:1] * count
        widths = [("medium" if count == 2 and rng.random() < 0.5 else "small")] * count
    diameters = [low + (high - low) * rng.random() for low, high in (DIAMETERS[size] for size in widths)]
    centers, relations = _layout(rng, diameters)
    if group:
        relations = []
    objects = [
        SceneObject(name, *look[:1], size, look[1], *center, diameter, 24 * rng.random() - 12, rng.random() < 0.5)
        for name, look, size, center, diameter in zip(names, looks, widths, centers, diameters, strict=True)
    ]
    if relations and relations[0][1] == "front":  # painted from back to front
        objects, relations = objects[::-1], [(1, "front", 0)]
    taken = {thing.color for thing in objects}
    hues = tuple(color for color in _COLOR_NAMES if color not in taken)
    return Scene(tuple(objects), tuple(relations), pick(rng, BACKGROUNDS), pick(rng, hues), group)
