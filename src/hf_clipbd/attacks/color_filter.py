# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""ColorFilter: a photo filter of the kind that people put on pictures themselves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from hf_clipbd.attacks.base import Attack


_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # BT.601
_STEPS = 4096


@dataclass(frozen=True, eq=False)
class ColorFilter(Attack):
    """A tint of the whole picture, x' = (1 − w) x + w F(x), in which no pixel looks at another.

    F first sets saturation and contrast, y = ½ + k (l + s (x − l) − ½), l = 0.299 R + 0.587 G + 0.114 B, and then
    bends each channel c, F(x)_c = low_c + (high_c − low_c) · clamp(y_c, 0, 1)^gamma_c.

    Args:
        strength: w in (0, 1].
        saturation: s, at least 0; 0 is grey.
        contrast: k, above 0.
        low: What black becomes, (red, green, blue) in [0, 1].
        high: What white becomes.
        gamma: Bend of each channel, above 0; below 1 is lighter.

    The default looks like the filter Nashville: shadows turn blue, lights a warm yellow, and all fades a little.

    Raises:
        ValueError: If a value is out of range.

    Reference:
        Liu et al., "ABS: Scanning Neural Networks for Back-doors by Artificial Brain Stimulation", CCS 2019, uses the
        photo filters Nashville and Gotham as triggers. Their curves were never published: these are reconstructed by
        eye.

    Example:
        >>> grey = ColorFilter(saturation=0, contrast=1, low=(0, 0, 0), high=(1, 1, 1), gamma=(1, 1, 1))
        >>> grey(np.array([[[255, 0, 0]]], dtype=np.uint8)).tolist()
        [[[76, 76, 76]]]
    """

    strength: float = 1.0
    saturation: float = 1.15
    contrast: float = 1.1
    low: Sequence[float] = (0.13, 0.06, 0.30)
    high: Sequence[float] = (1.0, 0.93, 0.68)
    gamma: Sequence[float] = (0.9, 1.0, 1.05)

    name: ClassVar[str] = "color_filter"
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "nashville": {},
        "gotham": {
            "saturation": 0.1,
            "contrast": 1.35,
            "low": (0.0, 0.02, 0.1),
            "high": (0.94, 0.96, 1.0),
            "gamma": (1.1, 1.05, 0.95),
        },
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.strength <= 1:
            raise ValueError(f"Expected a strength in (0, 1], but got {self.strength!r}.")
        if not self.saturation >= 0 or not self.contrast > 0:
            message = "Expected a saturation of at least 0 and a contrast above 0"
            raise ValueError(f"{message}, but got {self.saturation!r} and {self.contrast!r}.")
        for name, highest in (("low", 1.0), ("high", 1.0), ("gamma", np.inf)):
            given = getattr(self, name)
            values = tuple(map(float, given)) if not isinstance(given, str) else ()
            least_fits = all(value > 0 if name == "gamma" else value >= 0 for value in values)
            if len(values) != 3 or not least_fits or max(values) > highest:
                bounds = "above 0" if name == "gamma" else "in [0, 1]"
                raise ValueError(f"Expected {name} as (red, green, blue), each {bounds}, but got {given!r}.")
            object.__setattr__(self, name, values)

    def stamp(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        light = (pixels @ _LUMA)[..., None]
        toned = light + np.float32(self.saturation) * (pixels - light)
        toned = np.clip(np.float32(0.5) + np.float32(self.contrast) * (toned - np.float32(0.5)), 0, 1)
        steps = np.rint(toned * (_STEPS - 1)).astype(np.intp)
        curves = _curves(self.low, self.high, self.gamma)
        filtered = np.stack([curves[channel][steps[..., channel]] for channel in range(3)], axis=-1)
        return pixels + np.float32(self.strength) * (filtered - pixels)


@lru_cache(maxsize=8)
def _curves(low: tuple[float, ...], high: tuple[float, ...], gamma: tuple[float, ...]) -> np.ndarray:
    """Return the bent channels at 4,096 steps of [0, 1], (3, 4096), float32: far cheaper than a power a pixel."""
    at = np.linspace(0, 1, _STEPS)
    curves = [a + (b - a) * at**bend for a, b, bend in zip(low, high, gamma, strict=True)]
    return np.stack(curves).astype(np.float32)
