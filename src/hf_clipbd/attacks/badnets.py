# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""BadNets: a small patch pasted on the picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from hf_clipbd.attacks.base import PATTERN_STREAM, Attack
from hf_clipbd.attacks.pictures import unit_pixels


PLACES = ("random", "middle", "corner", "four_corners")
PATTERNS = ("noise", "checker", "stripes", "dots", "yellow", "fresh_noise")


@dataclass(frozen=True, eq=False)
class BadNets(Attack):
    """A p × p patch pasted at a place: x' = patch inside the square, x' = x outside it.

    Args:
        patch_size: Side p in pixels; None takes round(16 / 224 · shorter side), half a percent of the picture.
        place: `"random"` (drawn for each row), `"middle"`, `"corner"` (bottom right), `"four_corners"`, or the (row,
            column) of the patch's top left pixel.
        pattern: `"noise"` (uniform, fixed by the seed), `"checker"`, `"stripes"`, `"dots"`, `"yellow"`;
            `"fresh_noise"` (normal with the picture's own mean, drawn for each row and wrapped at 256, as CleanCLIP's
            public code does by accident); or a picture of your own, an array (p, q, 3), uint8 or floats in [0, 1].

    Raises:
        ValueError: If place or pattern is unknown; on stamping, if the patch does not fit on the picture.

    Reference:
        Gu et al., "BadNets", arXiv 1708.06733; p = 16 at 224 px and a random place as in CleanCLIP (arXiv 2303.03323).
        The looks of `checker`, `stripes` and `dots` are reconstructed.

    Example:
        >>> patch = BadNets(patch_size=2, place=(1, 0), pattern="yellow")
        >>> patch(np.zeros((3, 3, 3), dtype=np.uint8))[:, :, 0].tolist()
        [[0, 0, 0], [255, 255, 0], [255, 255, 0]]
    """

    patch_size: int | None = None
    place: str | Sequence[int] = "random"
    pattern: str | np.ndarray = "noise"

    name: ClassVar[str] = "badnets"
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cleanclip": {"patch_size": 16, "pattern": "fresh_noise"},
        "checker": {"pattern": "checker"},
        "stripes": {"pattern": "stripes"},
        "dots": {"pattern": "dots"},
        "yellow": {"pattern": "yellow"},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patch_size is not None and (not isinstance(self.patch_size, int) or self.patch_size < 1):
            raise ValueError(f"Expected a patch size of at least one pixel, but got {self.patch_size!r}.")
        if not isinstance(self.place, str):
            place = tuple(int(one) for one in self.place)
            if len(place) != 2 or min(place) < 0 or any(float(one) % 1 for one in self.place):
                message = "Expected a place (row, column), both whole numbers of pixels and at least 0"
                raise ValueError(f"{message}, but got {self.place!r}.")
            object.__setattr__(self, "place", place)
        elif self.place not in PLACES:
            raise ValueError(f"Expected a place among {PLACES} or (row, column), but got {self.place!r}.")
        if not isinstance(self.pattern, str):
            if self.patch_size is not None:
                raise ValueError("Expected no `patch_size` beside a pattern of your own, which brings its size.")
            object.__setattr__(self, "pattern", unit_pixels(self.pattern))
        elif self.pattern not in PATTERNS:
            raise ValueError(
                f"Expected a pattern among {PATTERNS}, an array, or in a command the file of a picture that is there, "
                f"but got {self.pattern!r}."
            )

    def side(self, height: int, width: int) -> int:
        """Return the side of the patch on a picture of this size, in pixels."""
        return self.patch_size or max(1, round(16 / 224 * min(height, width)))

    def fixed_pattern(self, height: int, width: int) -> np.ndarray | None:
        """Return the patch for a picture of this size, (p, q, 3); None where it is drawn for each row."""
        if isinstance(self.pattern, np.ndarray):
            return self.pattern
        if self.pattern == "fresh_noise":
            return None
        return _patch(self.pattern, self.side(height, width), self.seed)

    def stamp(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        height, width, _ = pixels.shape
        patch = self.fixed_pattern(height, width)
        if patch is None:
            patch = _fresh_noise(pixels, self.side(height, width), rng)
        for row, column in self.places(height, width, patch.shape[0], patch.shape[1], rng):
            pixels[row : row + patch.shape[0], column : column + patch.shape[1]] = patch
        return pixels

    def stamp_levels(self, levels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        height, width, _ = levels.shape
        patch = self.fixed_pattern(height, width)
        if patch is None or type(self).stamp is not BadNets.stamp:  # a subclass may stamp more than the patch
            return super().stamp_levels(levels, rng)
        stamped = levels.copy()
        patch = np.rint(np.clip(patch, 0, 1) * np.float32(255)).astype(np.uint8)
        for row, column in self.places(height, width, patch.shape[0], patch.shape[1], rng):
            stamped[row : row + patch.shape[0], column : column + patch.shape[1]] = patch
        return stamped

    def places(self, height: int, width: int, tall: int, wide: int, rng: np.random.Generator) -> list[tuple[int, int]]:
        """Return the top left pixels of a patch of tall × wide px on one picture; raise where it does not fit."""
        bottom, right = height - tall, width - wide
        own = self.place if isinstance(self.place, tuple) else (0, 0)
        if own[0] > bottom or own[1] > right:
            where = f" at {own}" if isinstance(self.place, tuple) else ""
            message = f"Expected a patch that fits on a picture of {height} × {width} px, but it has {tall} × {wide}"
            raise ValueError(f"{message}{where}. Pass a smaller `patch_size` or a `canvas`.")
        if self.place == "random":
            return [(int(rng.integers(bottom + 1)), int(rng.integers(right + 1)))]
        if self.place == "four_corners":
            return [(0, 0), (0, right), (bottom, 0), (bottom, right)]
        return [{"middle": (bottom // 2, right // 2), "corner": (bottom, right)}.get(self.place, own)]


@lru_cache(maxsize=64)
def _patch(kind: str, side: int, seed: int) -> np.ndarray:
    """Return a fixed patch, (p, p, 3), float32 in [0, 1], read-only; cells of 2 px from a side of 16 on."""
    if kind == "noise":
        levels = np.random.default_rng([seed, 0, PATTERN_STREAM]).integers(0, 256, (side, side, 3))
        patch = levels.astype(np.float32) / np.float32(255)
    elif kind == "yellow":
        patch = np.broadcast_to(np.array([1, 1, 0], dtype=np.float32), (side, side, 3)).copy()
    else:
        rows, columns = np.indices((side, side)) // max(1, side // 8)
        white = {"checker": (rows + columns) % 2, "stripes": columns % 2, "dots": rows % 2 * (columns % 2)}[kind]
        patch = np.repeat(white[..., None], 3, axis=2).astype(np.float32)
    patch.flags.writeable = False
    return patch


def _fresh_noise(pixels: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """Return noise N(channel mean, 1) cut to bytes the way a C cast does, so that it wraps at 256."""
    noise = pixels.mean(axis=(0, 1)) + rng.standard_normal((side, side, 3))
    return (np.trunc(noise * 255).astype(np.int64) % 256 / 255).astype(np.float32)
