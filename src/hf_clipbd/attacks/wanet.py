# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""WaNet: a smooth warp of the whole picture."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from hf_clipbd.attacks.base import PATTERN_STREAM, Attack


_CUBIC = -0.75  # coefficient of the cubic convolution kernel, as in torch


@dataclass(frozen=True, eq=False)
class WaNet(Attack):
    """A fixed elastic warp: x'(q) = x(clamp((q + s P(q) / H) · rescale, −1, 1)), q in [−1, 1]² over pixel centres.

    P is a k × k grid of offsets, uniform on [−1, 1], divided by its mean absolute value and brought to the picture's
    size by cubic interpolation; x is read off bilinearly. In pixels an offset of P moves a point by about s P / 2.

    Args:
        target: See `Attack`.
        seed: See `Attack`.
        canvas: See `Attack`.
        captions: See `Attack`.
        grid_size: k, control points a side, at least 2; at most the picture's side has an effect.
        strength: s; None takes 3 · max(1, H / 64).
        rescale: Factor on the warped grid.

    The default is k = 8 and, at 64 px, s = 3: points move by 1.1 px on average. The paper's k = 4 and s = 0.5 move
    them by 0.19 px at any size, nearly the identity, and need the control of training that a poisoner of data has not.

    Raises:
        ValueError: If the grid is smaller than 2, or strength or rescale is not positive.

    Reference:
        Nguyen and Tran, "WaNet", arXiv 2102.10369, section 3.2. Preset `classic`: k = 4, s = 0.5. Preset `cleanclip`:
        k = 224, s = 1, which at 224 px is a fixed jitter of single pixels, as observed in public code.

    Example:
        >>> pixels = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
        >>> bool((WaNet(strength=1e-9)(pixels) == pixels).all())
        True
    """

    grid_size: int = 8
    strength: float | None = None
    rescale: float = 1.0

    name: ClassVar[str] = "wanet"
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "classic": {"grid_size": 4, "strength": 0.5},
        "cleanclip": {"grid_size": 224, "strength": 1.0},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.grid_size, int) or self.grid_size < 2:
            raise ValueError(f"Expected a grid of at least 2 points a side, but got {self.grid_size!r}.")
        if (self.strength is not None and not self.strength > 0) or not self.rescale > 0:
            message = "Expected a positive strength and rescale"
            raise ValueError(f"{message}, but got {self.strength!r} and {self.rescale!r}.")

    def fixed_pattern(self, height: int, width: int) -> np.ndarray:
        """Return where each pixel is read from, (H, W, 2), float32, (row, column) in pixels."""
        strength = 3 * max(1.0, height / 64) if self.strength is None else self.strength
        places = _places(height, width, self.grid_size, float(strength), float(self.rescale), self.seed)
        return places.astype(np.float32)

    def stamp(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        height, width, _ = pixels.shape
        strength = 3 * max(1.0, height / 64) if self.strength is None else self.strength
        corners = _corners(height, width, self.grid_size, float(strength), float(self.rescale), self.seed)
        flat = pixels.reshape(-1, 3)
        warped = np.zeros_like(flat)
        for index, weight in corners:
            warped += flat.take(index, axis=0) * weight
        return warped.reshape(pixels.shape)


def _cubic_weights(size: int, points: int) -> np.ndarray:
    """Return the weights that bring `points` values to `size`, ends on ends, by cubic convolution, (size, points)."""
    at = np.linspace(0, points - 1, size) if size > 1 else np.zeros(1)
    left = np.floor(at).astype(int)
    weights = np.zeros((size, points))
    for step in range(-1, 3):
        distance = np.abs(at - left - step)
        near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance * distance + 1
        far = _CUBIC * (((distance - 5) * distance + 8) * distance - 4)
        weight = np.where(distance <= 1, near, np.where(distance < 2, far, 0))
        np.add.at(weights, (np.arange(size), np.clip(left + step, 0, points - 1)), weight)
    return weights


@lru_cache(maxsize=8)
def _places(height: int, width: int, k: int, strength: float, rescale: float, seed: int) -> np.ndarray:
    """Return where each pixel is read from, (H, W, 2), (row, column) in pixels, within the picture."""
    control = np.random.default_rng([seed, 0, PATTERN_STREAM]).uniform(-1, 1, (2, k, k))  # (column, row) offsets
    control /= np.abs(control).mean()
    offsets = _cubic_weights(height, k) @ control @ _cubic_weights(width, k).T  # (2, H, W)
    identity = np.stack(np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height)))
    grid = np.clip((identity + strength * offsets / height) * rescale, -1, 1)
    pixels = (grid[::-1] + 1) / 2 * np.array([height - 1, width - 1])[:, None, None]
    return np.ascontiguousarray(pixels.round(9).transpose(1, 2, 0))


@lru_cache(maxsize=8)
def _corners(
    height: int, width: int, k: int, strength: float, rescale: float, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return, for the four pixels around each place, their numbers (H W,) and bilinear weights (H W, 1)."""
    places = _places(height, width, k, strength, rescale, seed).reshape(-1, 2)
    first = np.minimum(np.floor(places), np.maximum([height - 2, width - 2], 0)).astype(np.intp)
    second = np.minimum(first + 1, [height - 1, width - 1])
    part = places - first
    corners = []
    for rows, down in ((first[:, 0], 1 - part[:, 0]), (second[:, 0], part[:, 0])):
        for columns, across in ((first[:, 1], 1 - part[:, 1]), (second[:, 1], part[:, 1])):
            corners.append((rows * width + columns, (down * across).astype(np.float32)[:, None]))
    return corners
