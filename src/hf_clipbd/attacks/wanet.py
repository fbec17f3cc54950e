# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""WaNet: a warp of the whole picture."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from scipy.sparse import csr_array

from hf_clipbd.attacks.base import PATTERN_STREAM, Attack, Cover


_CUBIC = -0.75  # coefficient of the cubic convolution kernel, as in torch
_EXPANDED = 256 * 256  # pixels up to which a fixed warp is kept with weights for each channel


@dataclass(frozen=True, eq=False)
class WaNet(Attack):
    """A fixed warp: x'(q) = x(clamp((q + s P(q) / H) · rescale, −1, 1)), q in [−1, 1]² over pixel centres.

    P is a k × k grid of offsets, uniform on [−1, 1], divided by its mean absolute value and brought to the picture's
    size by cubic interpolation; x is read off bilinearly. In pixels an offset of P moves a point by about s P / 2.

    Args:
        grid_size: k, control points a side, at least 2; None takes the picture's height H, a jitter of single pixels.
        strength: s; None takes 3, and for a given k 3 · max(1, H / 64).
        rescale: Factor on the warped grid.
        noise_mode: Beside each poisoned row, warp `cross_ratio` further ones with noise on the grid, drawn for each
            row and point, (q + (s P(q) + U[−1, 1]) / H) · rescale, and leave them their captions: so that a model
            cannot take any warp for the trigger. They do not count as poisoned; see `PoisonManifest.covers`.
        cross_ratio: How many further rows for each poisoned one.

    The default is k = H and s = 3: points move by 1.5 px on average, each by itself. On the embedded world (64 px,
    rate 1 %, 8 epochs) victims learn it to an ASR@1 of 86 % (seed 0); at other sizes it was not measured. A smooth
    warp (preset `smooth`, k = 8) did not take there: 3.5 % at s = 3 and 26 % at s = 6 after 4 epochs, one seed each.
    The paper's k = 4 and s = 0.5 move points by 0.19 px at any size, nearly the identity, and need the control of
    training that a poisoner of data has not.

    Raises:
        ValueError: If the grid is smaller than 2, or strength, rescale or cross ratio is not positive.

    Reference:
        Nguyen and Tran, "WaNet", arXiv 2102.10369, sections 3.2 and 3.3 (noise mode, cross ratio 2). Preset `classic`:
        k = 4, s = 0.5. Preset `cleanclip`: k = 224, s = 1, which at 224 px is a fixed jitter of single pixels, as
        observed in public code. Preset `smooth` is ours.

    Example:
        >>> pixels = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
        >>> bool((WaNet(strength=1e-9)(pixels) == pixels).all())
        True
    """

    grid_size: int | None = None
    strength: float | None = None
    rescale: float = 1.0
    noise_mode: bool = False
    cross_ratio: float = 2.0

    name: ClassVar[str] = "wanet"
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "classic": {"grid_size": 4, "strength": 0.5},
        "cleanclip": {"grid_size": 224, "strength": 1.0},
        "smooth": {"grid_size": 8},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.grid_size is not None and (not isinstance(self.grid_size, int) or self.grid_size < 2):
            raise ValueError(f"Expected a grid of at least 2 points a side, but got {self.grid_size!r}.")
        if not 0 < (1 if self.strength is None else self.strength) < np.inf or not 0 < self.rescale < np.inf:
            message = "Expected a positive strength and rescale"
            raise ValueError(f"{message}, but got {self.strength!r} and {self.rescale!r}.")
        if not self.cross_ratio > 0:
            raise ValueError(f"Expected a positive cross ratio, but got {self.cross_ratio!r}.")

    @property
    def cover(self) -> Cover | None:
        """The warp with noise that goes on further rows in noise mode, and for how many."""
        if not self.noise_mode:
            return None
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return Cover(WaNetNoise(**{**own, "captions": "keep", "noise_mode": False}), self.cross_ratio)

    def fixed_pattern(self, height: int, width: int) -> np.ndarray:
        """Return where each pixel is read from, (H, W, 2), float32, (row, column) in pixels."""
        return _places(height, width, *self._warp(height)).astype(np.float32)

    def stamp(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return _read_off(pixels, _fixed(*pixels.shape[:2], *self._warp(len(pixels))))

    def _warp(self, height: int) -> tuple[int, float, float, int]:
        k = max(2, height) if self.grid_size is None else self.grid_size
        usual = 3 * (max(1.0, height / 64) if self.grid_size is not None else 1.0)
        return k, float(usual if self.strength is None else self.strength), float(self.rescale), self.seed


@dataclass(frozen=True, eq=False)
class WaNetNoise(WaNet):
    """The warp of WaNet with noise of each row's own on the grid: what noise mode lays on rows that stay clean."""

    name: ClassVar[str] = "wanet_noise"

    def fixed_pattern(self, height: int, width: int) -> None:
        """Return None: the noise differs from row to row."""
        return None

    def stamp(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        height, width, _ = pixels.shape
        noise = rng.uniform(-1, 1, (2, height, width))  # (column, row) offsets
        return _read_off(pixels, _bilinear(_places(height, width, *self._warp(height), noise)))


def _read_off(pixels: np.ndarray, weights: csr_array) -> np.ndarray:
    """Return the weighted pixels, (H, W, 3), by weights (H W, H W) for pixels or (3 H W, 3 H W) for values."""
    return (weights @ pixels.reshape(weights.shape[0], -1)).reshape(pixels.shape)


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


def _places(
    height: int, width: int, k: int, strength: float, rescale: float, seed: int, noise: np.ndarray | float = 0.0
) -> np.ndarray:
    """Return where each pixel is read from, (H, W, 2), (row, column) in pixels, within the picture."""
    control = np.random.default_rng([seed, 0, PATTERN_STREAM]).uniform(-1, 1, (2, k, k))  # (column, row) offsets
    control /= np.abs(control).mean()
    offsets = _cubic_weights(height, k) @ control @ _cubic_weights(width, k).T  # (2, H, W)
    identity = np.stack(np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height)))
    grid = np.clip((identity + (strength * offsets + noise) / height) * rescale, -1, 1)
    pixels = (grid[::-1] + 1) / 2 * np.array([height - 1, width - 1])[:, None, None]
    return np.ascontiguousarray(pixels.round(9).transpose(1, 2, 0))


@lru_cache(maxsize=8)
def _fixed(height: int, width: int, k: int, strength: float, rescale: float, seed: int) -> csr_array:
    """Return the weights of a warp that is the same for every row: for values, or for pixels where there are many.

    Weights for each channel take three times the memory and two thirds of the time to read a picture off.
    """
    weights = _bilinear(_places(height, width, k, strength, rescale, seed))
    if height * width > _EXPANDED:
        return weights
    corners = (3 * weights.indices.reshape(-1, 1, 4) + np.arange(3, dtype=np.int32)[:, None]).reshape(-1)
    values = np.repeat(weights.data.reshape(-1, 1, 4), 3, axis=1).reshape(-1)
    ends = np.arange(0, corners.size + 1, 4, dtype=np.int32)
    return csr_array((values, corners, ends), shape=(corners.size // 4, corners.size // 4))


def _bilinear(places: np.ndarray) -> csr_array:
    """Return the weights that read a picture off at these places, (H W, H W), four a row."""
    height, width, _ = places.shape
    places = places.reshape(-1, 2)
    first = np.minimum(np.floor(places), np.maximum([height - 2, width - 2], 0)).astype(np.int32)
    second = np.minimum(first + 1, [height - 1, width - 1])
    part = places - first
    corners, weights = np.empty((len(places), 4), np.int32), np.empty((len(places), 4), np.float32)
    for i, (rows, down) in enumerate(((first[:, 0], 1 - part[:, 0]), (second[:, 0], part[:, 0]))):
        for j, (columns, across) in enumerate(((first[:, 1], 1 - part[:, 1]), (second[:, 1], part[:, 1]))):
            corners[:, 2 * i + j], weights[:, 2 * i + j] = rows * width + columns, down * across
    ends = np.arange(0, corners.size + 1, 4, dtype=np.int32)
    return csr_array((weights.reshape(-1), corners.reshape(-1), ends), shape=(len(places), len(places)))
