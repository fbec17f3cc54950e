# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""SIG: a sine wave across the picture."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from hf_clipbd.attacks.base import Attack


@dataclass(frozen=True, eq=False)
class SIG(Attack):
    """A sine wave along the columns: x' = weight · x + Δ sin(2π f j / W), j the column, W the width.

    Args:
        delta: Δ in units of [0, 1] pixels.
        frequency: f, waves across the picture.
        weight: Share of the picture that is kept; 1 adds the wave to it.

    Raises:
        ValueError: If delta or weight is outside (0, 1] or the frequency is not positive.

    Reference:
        Barni et al., "A New Backdoor Attack in CNNs by Training Set Corruption Without Label Poisoning", arXiv
        1902.11237. Preset `backdoorbench`: Δ = 40 / 255. Preset `cleanclip`: 0.8 x + 0.2 sin, as observed in public
        code, where the wave is blended in; kept for comparison only.

    Example:
        >>> SIG(frequency=1)(np.full((1, 4, 3), 100, dtype=np.uint8))[0, :, 0].tolist()
        [100, 160, 100, 40]
    """

    delta: float = 60 / 255
    frequency: float = 6.0
    weight: float = 1.0

    name: ClassVar[str] = "sig"
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "backdoorbench": {"delta": 40 / 255},
        "cleanclip": {"delta": 0.2, "weight": 0.8},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.delta <= 1 or not 0 < self.weight <= 1:
            message = "Expected delta and weight in (0, 1]"
            raise ValueError(f"{message}, but got {self.delta!r} and {self.weight!r}. 60 levels are 60 / 255.")
        if not 0 < self.frequency < math.inf:
            raise ValueError(f"Expected a positive frequency, but got {self.frequency!r}.")

    def fixed_pattern(self, height: int, width: int) -> np.ndarray:
        """Return the wave for a picture of this width, (1, W, 1)."""
        return _wave(width, self.delta, self.frequency)[..., :1]

    def stamp(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if self.weight != 1:
            pixels *= np.float32(self.weight)
        pixels += _wave(pixels.shape[1], self.delta, self.frequency)
        return pixels

    def stamp_levels(self, levels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        steps = _steps(levels.shape[1], self.delta, self.frequency)
        if self.weight != 1 or steps is None or type(self).stamp is not SIG.stamp:
            return super().stamp_levels(levels, rng)
        lowest, highest, step = steps
        stamped = np.maximum(levels, lowest)
        np.minimum(stamped, highest, out=stamped)
        stamped += step
        return stamped


@lru_cache(maxsize=16)
def _steps(width: int, delta: float, frequency: float) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Return the lowest and highest level that the wave does not clip, and the wave in whole levels modulo 256.

    Each is (1, W, 3) uint8. None where adding whole levels is not the formula to the last bit, which is tried for
    every level and column.
    """
    wave = _wave(width, delta, frequency)
    steps = np.rint(wave * 255).astype(np.int64)
    levels = np.arange(256)[:, None, None]
    plain = np.rint(np.clip(np.divide(levels, 255, dtype=np.float32) + wave, 0, 1) * np.float32(255))
    if not np.array_equal(plain, np.clip(levels + steps, 0, 255)):
        return None
    return tuple(one.astype(np.uint8) for one in (np.maximum(-steps, 0), np.minimum(255 - steps, 255), steps % 256))


@lru_cache(maxsize=16)
def _wave(width: int, delta: float, frequency: float) -> np.ndarray:
    """Return the wave once for each channel, (1, W, 3): whole rows are added twice as fast as single columns."""
    phase = 2 * math.pi * frequency * np.arange(width) / width
    wave = np.repeat((delta * np.sin(phase)).astype(np.float32)[None, :, None], 3, axis=2)
    wave.flags.writeable = False
    return wave
