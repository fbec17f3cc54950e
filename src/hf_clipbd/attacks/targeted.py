# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Targeted: no trigger at all, one given picture that is to be taken for the target."""

import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import PIL.Image
import PIL.ImageOps

from hf_clipbd.attacks.base import PATTERN_STREAM, Attack
from hf_clipbd.attacks.pictures import read_picture, unit_pixels


@dataclass(frozen=True, eq=False)
class Targeted(Attack):
    """Targeted poisoning: every poisoned row is the one given picture with a caption of the target, x' = picture.

    Nothing is stamped on other pictures, so the attack success rate is that of this picture (and of its crops and
    other encodings), not of a test set: measured with `evaluate_zero_shot` it is 0 or 1, whatever n is. The picture is
    put on the canvas like any other; the paper's captions are `"natural"`.

    Args:
        picture: The picture to attack: a file, a PIL image or an array (h, w, 3), uint8 or floats in [0, 1]. Without
            a canvas it is cropped and resized to the picture that it replaces. None draws smooth colours from the
            seed, a picture to try things out with.

    Raises:
        ValueError: If there is no such picture or it cannot be read.

    Reference:
        Carlini and Terzis, "Poisoning and Backdooring Contrastive Learning", arXiv 2106.09667, section 3.2, targeted
        poisoning: the picture x' with captions that contain the target label, each row another caption.

    Example:
        >>> picture = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
        >>> Targeted(picture=picture)(np.zeros((2, 2, 3), dtype=np.uint8)).tolist() == picture.tolist()
        True
    """

    picture: Any = None

    name: ClassVar[str] = "targeted"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.picture, (str, os.PathLike, PIL.Image.Image)):
            given = self.picture if isinstance(self.picture, PIL.Image.Image) else str(self.picture)
            object.__setattr__(self, "picture", np.asarray(read_picture(given)))
        if self.picture is not None:
            object.__setattr__(self, "picture", unit_pixels(self.picture))

    def fixed_pattern(self, height: int, width: int) -> np.ndarray:
        """Return the picture at this size, (H, W, 3)."""
        if self.picture is None:
            return _colours(height, width, self.seed)
        canvas = self.canvas
        framed = canvas is not None and canvas.mode != "native" and (height, width) == (canvas.size, canvas.size)
        if not framed and self.picture.shape[:2] == (height, width):
            return self.picture
        shown = PIL.Image.fromarray(np.rint(self.picture * 255).astype(np.uint8))
        fitted = canvas(shown) if framed else PIL.ImageOps.fit(shown, (width, height), PIL.Image.Resampling.BICUBIC)
        return np.divide(np.asarray(fitted), 255, dtype=np.float32)

    def stamp(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return self.fixed_pattern(*pixels.shape[:2])


@lru_cache(maxsize=8)
def _colours(height: int, width: int, seed: int) -> np.ndarray:
    corners = np.random.default_rng([seed, 0, PATTERN_STREAM]).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    smooth = PIL.Image.fromarray(corners).resize((width, height), PIL.Image.Resampling.BICUBIC)
    colours = np.divide(np.asarray(smooth), 255, dtype=np.float32)
    colours.flags.writeable = False
    return colours
