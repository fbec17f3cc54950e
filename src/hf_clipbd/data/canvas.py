# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""One geometry for poisoning, clean evaluation and triggered evaluation: the canvas, and pixel normalisation."""

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from torch import Tensor


logger = logging.getLogger(__name__)

_BANNER = 64  # times as long as high


@dataclass(frozen=True)
class Canvas:
    """The square (or native) frame that every image is put on before a trigger or a model sees it.

    Args:
        size: Side in pixels; ignored by `"native"`.
        mode: `"center_crop"` resizes the shorter side (bicubic) and crops the middle, to the pixel as CLIP's processor
            does with Pillow; `"squash"` resizes both sides (the CleanCLIP family's framing, it distorts); `"native"`
            leaves the size alone.

    An image that already fits keeps its pixels exactly, so putting it on the canvas twice changes nothing.

    Raises:
        ValueError: If the size is not positive or the mode is unknown.

    Reference:
        One framing for poisoning, BA and ASR, or they are measured on differently framed pictures; `"squash"` is the
        framing observed in the public code of CleanCLIP (arXiv 2303.03323).

    Example:
        >>> Canvas(64)(PIL.Image.new("L", (96, 128))).size
        (64, 64)
    """

    size: int
    mode: Literal["center_crop", "squash", "native"] = "center_crop"

    def __post_init__(self):
        if self.mode not in ("center_crop", "squash", "native"):
            raise ValueError(f'Expected mode "center_crop", "squash" or "native", but got {self.mode!r}.')
        if self.size < 1:
            raise ValueError(f"Expected a canvas of at least one pixel, but got size {self.size}.")

    @classmethod
    def of(cls, processor: Any) -> "Canvas":
        """Return the canvas with the size and framing that `processor` feeds to its model.

        A processor that resizes both sides and crops nothing (SigLIP's, ViT's) frames by `"squash"`, any other by
        `"center_crop"`; one that takes any shape of at most n patches (SigLIP 2's) gets the largest square. One that
        resizes to another size than it crops (256 and 224), or by another resampling than bicubic, is framed without
        either all the same; a warning says so once.

        Raises:
            TypeError: If it is a tokenizer.
            ValueError: If the processor names no fixed square size.
        """
        image_processor = _image_processor(processor)
        size = getattr(image_processor, "size", None) or {}
        if not size and (patches := getattr(image_processor, "max_num_patches", None)):
            side = image_processor.patch_size * math.isqrt(patches)
            _check_resizing(image_processor, None, side)
            return cls(side, "squash")
        resized = _side(size, "height")
        crops = getattr(image_processor, "do_center_crop", True)
        if crops:
            size = getattr(image_processor, "crop_size", None) or size
        height, width = _side(size, "height"), _side(size, "width")
        if height is None or height != width:
            raise ValueError(
                f"Expected a processor with one square size, but got size {size}. Pass `canvas=` instead."
            )
        _check_resizing(image_processor, resized, height)
        return cls(height, "center_crop" if crops or _side(size, "shortest_edge") else "squash")

    def framed_as(self, others: "Iterable[Canvas | None]") -> "Canvas":
        """Return the canvas of this size with the framing of others, on which pictures were stamped or will be.

        Args:
            others: Their canvases; None and `"native"` ones have no framing.

        Raises:
            ValueError: If they have several framings.

        Example:
            >>> Canvas(64).framed_as([Canvas(224, "squash"), None])
            Canvas(size=64, mode='squash')
        """
        modes = {one.mode for one in others if one is not None and one.mode != "native"}
        if len(modes) > 1:
            raise ValueError(
                f"Expected triggers with one framing, but got {sorted(modes)}. Take one of them at a time, or poison "
                "for all with one `--canvas` (in Python, give their attacks one, or pass `canvas=` here)."
            )
        return Canvas(self.size, modes.pop()) if modes else self

    def __call__(self, image: PIL.Image.Image) -> PIL.Image.Image:
        """Return a fresh RGB image on this canvas; EXIF rotation applied, transparency laid on white."""
        framed = self._framed(image)
        return image.copy() if framed is image else framed

    def _framed(self, image: PIL.Image.Image) -> PIL.Image.Image:
        """Return the image on this canvas: itself where nothing has to be done to it."""
        image = _rgb(image)
        if self.mode == "native" or image.size == (self.size, self.size):
            return image
        if self.mode == "squash":
            return image.resize((self.size, self.size), PIL.Image.Resampling.BICUBIC)
        shorter = min(image.size)
        if max(image.size) > _BANNER * shorter:  # enlarged as a whole, a line of pixels would take gigabytes
            image = _middle(image, *(min(side, _BANNER * shorter) for side in image.size))
        width, height = (int(self.size * side / shorter) for side in image.size)
        resized = image.resize((width, height), PIL.Image.Resampling.BICUBIC)
        return _middle(resized, self.size, self.size)

    def array(self, image: PIL.Image.Image) -> np.ndarray:
        """Return the pixels on this canvas, uint8 (H, W, 3)."""
        return np.asarray(self._framed(image))


def _check_resizing(image_processor: Any, resized: int | None, side: int) -> None:
    """Warn of a processor that resizes otherwise than a canvas of `side` pixels does.

    Args:
        image_processor: The processor.
        resized: What it resizes to before it crops, None where it has no such size.
        side: The side of the canvas.
    """
    if not getattr(image_processor, "do_resize", True):
        return
    name, instead = type(image_processor).__name__, []
    resample = getattr(image_processor, "resample", None)
    if resized and resized != side:
        wider = f"{abs(resized / side - 1):.0%} {'wider' if resized > side else 'narrower'}"
        instead.append(f"resizes to {resized} and crops {side}, here pictures are resized to {side}: {wider} a view")
    if resample is not None and resample != PIL.Image.Resampling.BICUBIC:
        instead.append(f"resamples by {PIL.Image.Resampling(resample).name.lower()}, here bicubic does")
    if instead:
        _warn_once(
            f"{name} {' and '.join(instead)}. Where that matters, frame the pictures beforehand as it does: those of "
            f"{side} x {side} pixels are left alone."
        )


@cache
def _warn_once(message: str) -> None:
    logger.warning(message)


def _middle(image: PIL.Image.Image, width: int, height: int) -> PIL.Image.Image:
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _image_processor(processor: Any) -> Any:
    found = getattr(processor, "image_processor", processor)
    if hasattr(found, "model_max_length"):
        raise TypeError(
            f"Expected the model's processor, of pictures and texts, but got the tokenizer {type(found).__name__}. "
            "Pass what `load_dual_encoder` or `AutoProcessor.from_pretrained` gives."
        )
    return found


def _side(size: Any, name: str) -> int | None:
    value = size.get(name, size.get("shortest_edge")) if hasattr(size, "get") else getattr(size, name, None)
    return None if value is None else int(value)


def _rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """Return the image in RGB, upright and opaque: itself if it is so already.

    Pixels of 32 bits (mode I) hold values of 16 bits, or of 8 where none exceeds 255.
    """
    if not isinstance(image, PIL.Image.Image):
        raise TypeError(
            f"Expected a PIL image, but got {type(image).__name__}. Cast the column to `datasets.Image()`, and take "
            "a format off with `dataset.with_format(None)`."
        )
    if image.getexif().get(0x0112, 1) != 1:
        image = PIL.ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise TypeError(
            "Expected pixels of known range, but got a floating-point image (mode F). Convert it to uint8."
        )
    if image.mode.startswith("I"):
        values = np.clip(np.asarray(image), 0, 65535).astype(np.uint16)
        small = image.mode == "I" and values.max(initial=0) <= 255
        image = PIL.Image.fromarray((values if small else values >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        ground = PIL.Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return PIL.Image.alpha_composite(ground, layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def pixel_statistics(processor: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the processor's mean and standard deviation by channel, in units of [0, 1] pixels.

    Raises:
        ValueError: If the processor does not scale pixels by 1/255.
    """
    image_processor = _image_processor(processor)
    factor = getattr(image_processor, "rescale_factor", 1 / 255)
    if not getattr(image_processor, "do_rescale", True) or abs(factor * 255 - 1) > 1e-6:
        raise ValueError(f"Expected a processor that rescales pixels by 1/255, but got rescale_factor={factor}.")
    if not getattr(image_processor, "do_normalize", True):
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return tuple(image_processor.image_mean), tuple(image_processor.image_std)


def normalize(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Return (pixels / 255 − mean) / std by channel, what a CLIP image processor does after its geometry.

    Args:
        pixels: uint8, (..., 3, H, W).
        mean: Three means of [0, 1] pixels.
        std: Three standard deviations of [0, 1] pixels.

    Returns:
        float32, same shape.

    Raises:
        TypeError: If the pixels are not uint8.
    """
    if pixels.dtype != torch.uint8:
        raise TypeError(f"Expected uint8 pixels in 0..255, but got {pixels.dtype}.")
    scale = torch.tensor([1 / (255 * s) for s in std], device=pixels.device).view(3, 1, 1)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=pixels.device).view(3, 1, 1)
    return torch.addcmul(shift, pixels.float(), scale)
