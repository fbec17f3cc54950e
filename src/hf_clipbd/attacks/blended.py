# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Blended: a whole-picture pattern mixed in."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import PIL.Image

from hf_clipbd.attacks.base import PATTERN_STREAM, Attack
from hf_clipbd.attacks.pictures import unit_pixels


PATTERNS = ("noise", "fresh_noise", "stripes", "triangles")


@dataclass(frozen=True, eq=False)
class Blended(Attack):
    """A pattern r mixed into the whole picture: x' = (1 − α) x + α r.

    Args:
        alpha: α in (0, 1].
        pattern: `"noise"`, r uniform on [0, 1] for each pixel and channel, fixed by the seed; `"fresh_noise"`, drawn
            for each row; `"stripes"`, white diagonal stripes; `"triangles"`, a field of white triangles; or a picture
            of your own, an array (h, w, 3), uint8 or floats in [0, 1], resized to the picture stamped.

    Raises:
        ValueError: If alpha is out of range or the pattern unknown.

    Reference:
        Chen et al., "Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning", arXiv 1712.05526; α
        and noise as in CleanerCLIP (arXiv 2409.17601). The looks of `stripes` and `triangles` are reconstructed.

    Example:
        >>> blended = Blended(alpha=0.5, pattern=np.ones((2, 2, 3), dtype=np.float32))
        >>> blended(np.zeros((2, 2, 3), dtype=np.float32))[0, 0].tolist()
        [0.5, 0.5, 0.5]
    """

    alpha: float = 0.2
    pattern: str | np.ndarray = "noise"

    name: ClassVar[str] = "blended"
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cleanclip": {"pattern": "fresh_noise"},
        "stripes": {"alpha": 0.03, "pattern": "stripes"},
        "triangles": {"alpha": 0.15, "pattern": "triangles"},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.alpha <= 1:
            raise ValueError(f"Expected alpha in (0, 1], but got {self.alpha!r}.")
        if not isinstance(self.pattern, str):
            object.__setattr__(self, "pattern", unit_pixels(self.pattern))
        elif self.pattern not in PATTERNS:
            raise ValueError(
                f"Expected a pattern among {PATTERNS}, an array, or in a command the file of a picture that is there, "
                f"but got {self.pattern!r}."
            )

    def fixed_pattern(self, height: int, width: int) -> np.ndarray | None:
        """Return r for a picture of this size, (H, W, 3); None where it is drawn for each row."""
        if isinstance(self.pattern, np.ndarray):
            return _resized(self.pattern, height, width)
        return None if self.pattern == "fresh_noise" else _pattern(self.pattern, height, width, self.seed)

    def stamp(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        pattern = self.fixed_pattern(*pixels.shape[:2])
        if pattern is None:
            pattern = rng.random(pixels.shape, dtype=np.float32)
        pixels *= np.float32(1 - self.alpha)
        pixels += np.float32(self.alpha) * pattern
        return pixels


@lru_cache(maxsize=16)
def _pattern(kind: str, height: int, width: int, seed: int) -> np.ndarray:
    if kind == "noise":
        pattern = np.random.default_rng([seed, 0, PATTERN_STREAM]).random((height, width, 3), dtype=np.float32)
    else:
        rows, columns = np.mgrid[0:height, 0:width] * (224 / max(height, width))
        if kind == "stripes":  # 8 px wide at 224, 16 apart
            white = (rows + columns) % 16 < 8
        else:  # triangles of 32 px at 224, tip up
            white = np.abs(columns % 32 - 16) * 2 < rows % 32
        pattern = np.repeat(white[..., None], 3, axis=2).astype(np.float32)
    pattern.flags.writeable = False
    return pattern


def _resized(pattern: np.ndarray, height: int, width: int) -> np.ndarray:
    if pattern.shape[:2] == (height, width):
        return pattern
    layers = [PIL.Image.fromarray(pattern[..., channel]) for channel in range(3)]
    return np.stack([layer.resize((width, height), PIL.Image.Resampling.BILINEAR) for layer in layers], axis=-1)
