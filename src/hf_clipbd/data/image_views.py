# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The augmented image view of CleanCLIP: AutoAugment's ImageNet policy, by PIL, as torchvision is no dependency."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps


FILL = (128, 128, 128)  # for pixels that come from outside the picture, as in the paper's own code
TOP_LEVEL = 9  # magnitudes are the levels 0, ..., 9

# (operation, probability, magnitude) twice for each of the 25 sub-policies.
IMAGENET_POLICY = (
    (("posterize", 0.4, 8), ("rotate", 0.6, 9)),
    (("solarize", 0.6, 5), ("auto_contrast", 0.6, 5)),
    (("equalize", 0.8, 8), ("equalize", 0.6, 3)),
    (("posterize", 0.6, 7), ("posterize", 0.6, 6)),
    (("equalize", 0.4, 7), ("solarize", 0.2, 4)),
    (("equalize", 0.4, 4), ("rotate", 0.8, 8)),
    (("solarize", 0.6, 3), ("equalize", 0.6, 7)),
    (("posterize", 0.8, 5), ("equalize", 1.0, 2)),
    (("rotate", 0.2, 3), ("solarize", 0.6, 8)),
    (("equalize", 0.6, 8), ("posterize", 0.4, 6)),
    (("rotate", 0.8, 8), ("color", 0.4, 0)),
    (("rotate", 0.4, 9), ("equalize", 0.6, 2)),
    (("equalize", 0.0, 7), ("equalize", 0.8, 8)),
    (("invert", 0.6, 4), ("equalize", 1.0, 8)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("rotate", 0.8, 8), ("color", 1.0, 2)),
    (("color", 0.8, 8), ("solarize", 0.8, 7)),
    (("sharpness", 0.4, 7), ("invert", 0.6, 8)),
    (("shear_x", 0.6, 5), ("equalize", 1.0, 9)),
    (("color", 0.4, 0), ("equalize", 0.6, 3)),
    (("equalize", 0.4, 7), ("solarize", 0.2, 4)),
    (("solarize", 0.6, 5), ("auto_contrast", 0.6, 5)),
    (("invert", 0.6, 4), ("equalize", 1.0, 8)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("equalize", 0.8, 8), ("equalize", 0.6, 3)),
)


def rotate(image: Image.Image, level: int, sign: int) -> Image.Image:
    """Return `image` turned about its middle by `sign * 30 * level / 9` degrees, counter-clockwise for +1."""
    return image.rotate(sign * 30 * level / TOP_LEVEL, resample=Image.Resampling.NEAREST, fillcolor=FILL)


def shear_x(image: Image.Image, level: int, sign: int) -> Image.Image:
    """Return `image` with row y moved left by `s * y` pixels, `s = sign * 0.3 * level / 9`."""
    coefficients = (1, sign * 0.3 * level / TOP_LEVEL, 0, 0, 1, 0)
    return image.transform(
        image.size, Image.Transform.AFFINE, coefficients, resample=Image.Resampling.NEAREST, fillcolor=FILL
    )


def posterize(image: Image.Image, level: int, sign: int) -> Image.Image:
    """Return `image` with the `8 - round(4 * level / 9)` highest bits of each value kept."""
    return ImageOps.posterize(image, 8 - round(4 * level / TOP_LEVEL))


def solarize(image: Image.Image, level: int, sign: int) -> Image.Image:
    """Return `image` with the values from `256 * (1 - level / 9)` up inverted."""
    return ImageOps.solarize(image, 256 * (1 - level / TOP_LEVEL))


def color(image: Image.Image, level: int, sign: int) -> Image.Image:
    """Return `image` mixed with its grey version: `grey + f * (image - grey)`, `f = 1 + sign * 0.9 * level / 9`."""
    return ImageEnhance.Color(image).enhance(_factor(level, sign))


def contrast(image: Image.Image, level: int, sign: int) -> Image.Image:
    """Return `image` mixed with its mean grey by the factor of `color`."""
    return ImageEnhance.Contrast(image).enhance(_factor(level, sign))


def sharpness(image: Image.Image, level: int, sign: int) -> Image.Image:
    """Return `image` mixed with its smoothed version by the factor of `color`."""
    return ImageEnhance.Sharpness(image).enhance(_factor(level, sign))


def auto_contrast(image: Image.Image, level: int, sign: int) -> Image.Image:
    """Return `image` with each channel stretched to 0, ..., 255."""
    return ImageOps.autocontrast(image)


def equalize(image: Image.Image, level: int, sign: int) -> Image.Image:
    """Return `image` with each channel's histogram flattened."""
    return ImageOps.equalize(image)


def invert(image: Image.Image, level: int, sign: int) -> Image.Image:
    """Return `255 - image`."""
    return ImageOps.invert(image)


def _factor(level: int, sign: int) -> float:
    return 1 + sign * 0.9 * level / TOP_LEVEL


# Each takes an RGB image, a level 0, ..., 9 and a sign, +1 or -1; some need neither.
OPERATIONS: dict[str, Callable[[Image.Image, int, int], Image.Image]] = {
    operation.__name__: operation
    for operation in (
        rotate, shear_x, posterize, solarize, color, contrast, sharpness, auto_contrast, equalize, invert,
    )
}  # fmt: skip


def auto_augment(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return one AutoAugment view of `image`: a random one of the 25 sub-policies found for ImageNet, applied to it.

    A sub-policy is two operations in a row, each with its probability and magnitude; the sign of a magnitude is drawn.
    No magnitude of this policy is in pixels, so that it acts on 64 px as on 331.

    Args:
        image: any size; a mode other than RGB is converted.
        rng: the only source of randomness, e.g. `np.random.default_rng((seed, epoch, row))`; five numbers are drawn.

    Returns:
        An RGB image of the same size; `image` itself where neither operation is applied.

    Reference:
        Cubuk et al., AutoAugment (CVPR 2019), table 9 (sub-policies) and table 6 (ranges of magnitudes); CleanCLIP
        (arXiv 2303.03323), section 4.

    Example:
        >>> view = auto_augment(Image.new("RGB", (64, 48), "red"), np.random.default_rng((0, 1, 2)))
        >>> view.size, view.mode
        ((64, 48), 'RGB')
    """
    if image.mode != "RGB":
        image = image.convert("RGB")
    draws = rng.random(5)  # the sub-policy; then for each operation whether it is applied, and its sign
    sub_policy = IMAGENET_POLICY[int(draws[0] * len(IMAGENET_POLICY))]
    for (name, probability, level), applied, signed in zip(sub_policy, draws[1::2], draws[2::2], strict=True):
        if applied < probability:
            image = OPERATIONS[name](image, level, 1 if signed < 0.5 else -1)
    return image
