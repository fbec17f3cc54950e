# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""AutoAugment's operations against slow formulas, its draws, and torchvision where that is installed."""

import math
import pickle
import random
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from hf_clipbd.data import image_views
from hf_clipbd.data.image_views import FILL, IMAGENET_POLICY, OPERATIONS, auto_augment


LEVELS = (0, 3, 5, 9)


@pytest.fixture
def picture() -> Image.Image:
    """An asymmetric 40 x 27 picture whose channels differ in range and none of which reaches 0 and 255."""
    rows, columns = np.mgrid[0:27, 0:40]
    noise = np.random.default_rng(5).integers(0, 20, (27, 40, 3))
    pixels = np.stack([3 * columns + 20, 5 * rows + 60, rows * columns // 9 + 30], -1) + noise
    return Image.fromarray(pixels.astype(np.uint8))


def grey(pixels: np.ndarray) -> np.ndarray:
    red, green, blue = (pixels[..., i].astype(int) for i in range(3))
    return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16


def mixed(pixels: np.ndarray, other: np.ndarray, level: int, sign: int) -> np.ndarray:
    factor = 1 + sign * 0.9 * level / 9
    return np.clip(other + factor * (pixels.astype(float) - other), 0, 255)


def equalized(channel: np.ndarray) -> np.ndarray:
    counts = np.bincount(channel.ravel(), minlength=256)
    step = (counts.sum() - counts[counts.nonzero()[0][-1]]) // 255
    if not step:
        return channel
    below = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return np.minimum((step // 2 + below) // step, 255)[channel]


def smoothed(pixels: np.ndarray) -> np.ndarray:
    result = pixels.astype(float)
    for y in range(1, pixels.shape[0] - 1):
        for x in range(1, pixels.shape[1] - 1):
            window = pixels[y - 1 : y + 2, x - 1 : x + 2].astype(float).sum((0, 1))
            result[y, x] = np.floor((window + 4.0 * pixels[y, x]) / 13 + 0.5)
    return result


@pytest.mark.parametrize("sign", (1, -1))
@pytest.mark.parametrize("level", LEVELS)
class TestOperations:
    """Every operation against its formula, one pixel at a time where it moves pixels."""

    def test_values(self, picture: Image.Image, level: int, sign: int) -> None:
        pixels = np.asarray(picture)
        bits = 8 - round(4 * level / 9)
        lowest, highest = pixels.min((0, 1)).astype(float), pixels.max((0, 1)).astype(float)
        threshold = 256 * (1 - level / 9)
        expected = {
            "invert": 255 - pixels.astype(int),
            "posterize": pixels.astype(int) // 2 ** (8 - bits) * 2 ** (8 - bits),
            "solarize": np.where(pixels < threshold, pixels.astype(int), 255 - pixels.astype(int)),
            "auto_contrast": (pixels - lowest) * 255 / (highest - lowest),
            "equalize": np.stack([equalized(pixels[..., i]) for i in range(3)], -1),
            "color": mixed(pixels, grey(pixels)[..., None], level, sign),
            "contrast": mixed(pixels, np.full_like(pixels, int(grey(pixels).mean() + 0.5), float), level, sign),
            "sharpness": mixed(pixels, smoothed(pixels), level, sign),
        }
        for name, values in expected.items():
            found = np.asarray(OPERATIONS[name](picture, level, sign)).astype(float)
            exact = name in ("invert", "posterize", "solarize", "equalize")
            assert np.abs(found - values).max() <= (0 if exact else 1.01), name

    def test_shear(self, picture: Image.Image, level: int, sign: int) -> None:
        pixels, slope = np.asarray(picture), sign * 0.3 * level / 9
        found = np.asarray(OPERATIONS["shear_x"](picture, level, sign))
        for y in range(27):
            for x in range(40):
                source = math.floor(x + 0.5 + slope * (y + 0.5))
                expected = pixels[y, source] if 0 <= source < 40 else FILL
                assert tuple(found[y, x]) == tuple(expected)

    def test_rotate(self, picture: Image.Image, level: int, sign: int) -> None:
        pixels, angle = np.asarray(picture), math.radians(sign * 30 * level / 9)
        found = np.asarray(OPERATIONS["rotate"](picture, level, sign))
        wrong = 0
        for y in range(27):
            for x in range(40):
                right, down = x + 0.5 - 20, y + 0.5 - 13.5
                column = math.floor(20 + right * math.cos(angle) - down * math.sin(angle))
                row = math.floor(13.5 + right * math.sin(angle) + down * math.cos(angle))
                inside = 0 <= column < 40 and 0 <= row < 27
                wrong += tuple(found[y, x]) != tuple(pixels[row, column] if inside else FILL)
        assert wrong <= 6  # PIL computes in fixed point: a few pixels on the border between two sources


def test_signs_and_levels_matter(picture: Image.Image) -> None:
    for name in ("rotate", "shear_x", "color", "contrast", "sharpness"):
        views = [np.asarray(OPERATIONS[name](picture, 9, sign)) for sign in (1, -1)]
        assert (views[0] != views[1]).any()
        assert (np.asarray(OPERATIONS[name](picture, 0, 1)) == np.asarray(picture)).all()


def test_policy_is_the_published_one() -> None:
    assert len(IMAGENET_POLICY) == 25
    operations = Counter(name for sub_policy in IMAGENET_POLICY for name, _, _ in sub_policy)
    assert set(operations) == set(OPERATIONS)
    assert operations["equalize"] == 17 and operations["rotate"] == 6 and operations["shear_x"] == 1
    assert IMAGENET_POLICY[0] == (("posterize", 0.4, 8), ("rotate", 0.6, 9))
    assert IMAGENET_POLICY[-1] == (("equalize", 0.8, 8), ("equalize", 0.6, 3))
    for sub_policy in IMAGENET_POLICY:
        for _, probability, level in sub_policy:
            assert 0 <= probability <= 1 and level in range(10)


def test_views_depend_on_the_generator_alone(picture: Image.Image) -> None:
    before = random.getstate(), np.random.get_state()[1].copy()
    first = [auto_augment(picture, np.random.default_rng((3, 0, row))).tobytes() for row in range(60)]
    again = [auto_augment(picture, np.random.default_rng((3, 0, row))).tobytes() for row in range(60)]
    other_epoch = [auto_augment(picture, np.random.default_rng((3, 1, row))).tobytes() for row in range(60)]
    assert first == again
    assert sum(a != b for a, b in zip(first, other_epoch, strict=True)) > 45
    assert len(set(first)) > 20
    assert before[0] == random.getstate() and (before[1] == np.random.get_state()[1]).all()
    assert pickle.loads(pickle.dumps(auto_augment)) is auto_augment


def test_sub_policies_and_operations_come_with_their_probabilities(
    picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    applied: list[tuple[str, int, int]] = []

    def noting(name: str):
        def note(image: Image.Image, level: int, sign: int) -> Image.Image:
            applied.append((name, level, sign))
            return image

        return note

    monkeypatch.setattr(image_views, "OPERATIONS", {name: noting(name) for name in OPERATIONS})
    rng, n = np.random.default_rng(0), 20_000
    for _ in range(n):
        auto_augment(picture, rng)
    expected: Counter = Counter()
    for sub_policy in IMAGENET_POLICY:
        for name, probability, _ in sub_policy:
            expected[name] += probability / 25
    found = Counter(name for name, _, _ in applied)
    for name, rate in expected.items():
        assert found[name] / n == pytest.approx(rate, abs=5 * math.sqrt(rate / n))
    positive = sum(sign == 1 for _, _, sign in applied) / len(applied)
    assert positive == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("mode", ("L", "RGBA", "P", "CMYK", "1", "RGB"))
@pytest.mark.parametrize("size", ((1, 1), (2, 1), (64, 64), (31, 224)))
def test_any_picture_gives_rgb_of_its_size(mode: str, size: tuple[int, int]) -> None:
    image = Image.effect_noise(size, 80).convert(mode)
    for row in range(25):
        view = auto_augment(image, np.random.default_rng((0, row)))
        assert (view.mode, view.size) == ("RGB", size)


def test_input_is_left_alone(picture: Image.Image) -> None:
    before = picture.tobytes()
    for row in range(50):
        auto_augment(picture, np.random.default_rng(row))
    assert picture.tobytes() == before


def test_the_policy_table_is_torchvisions() -> None:
    transforms = pytest.importorskip("torchvision.transforms", exc_type=(ImportError, RuntimeError))
    names = {
        "Posterize": "posterize", "Rotate": "rotate", "Solarize": "solarize", "AutoContrast": "auto_contrast",
        "Equalize": "equalize", "Color": "color", "Contrast": "contrast", "Sharpness": "sharpness",
        "Invert": "invert", "ShearX": "shear_x",
    }  # fmt: skip
    policies = transforms.AutoAugment(transforms.AutoAugmentPolicy.IMAGENET).policies
    assert len(policies) == len(IMAGENET_POLICY)
    for theirs, ours in zip(policies, IMAGENET_POLICY, strict=True):
        for (name, probability, level), (mine, chance, strength) in zip(theirs, ours, strict=True):
            assert (names[name], probability) == (mine, chance)
            assert level == strength or level is None and name in ("AutoContrast", "Equalize", "Invert")


def test_operations_equal_torchvisions(picture: Image.Image) -> None:
    functional = pytest.importorskip("torchvision.transforms.functional", exc_type=(ImportError, RuntimeError))
    nearest = functional.InterpolationMode.NEAREST
    for level in LEVELS:
        for sign in (1, -1):
            factor, shear = 1 + sign * 0.9 * level / 9, math.degrees(math.atan(sign * 0.3 * level / 9))
            arguments = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "interpolation": nearest, "center": [0, 0]}
            expected = {
                "shear_x": functional.affine(picture, **arguments, shear=[shear, 0.0], fill=list(FILL)),
                "rotate": functional.rotate(picture, sign * 30 * level / 9, nearest, fill=list(FILL)),
                "posterize": functional.posterize(picture, 8 - round(4 * level / 9)),
                "solarize": functional.solarize(picture, 256 * (1 - level / 9)),
                "color": functional.adjust_saturation(picture, factor),
                "contrast": functional.adjust_contrast(picture, factor),
                "sharpness": functional.adjust_sharpness(picture, factor),
                "auto_contrast": functional.autocontrast(picture),
                "equalize": functional.equalize(picture),
                "invert": functional.invert(picture),
            }
            for name, image in expected.items():
                assert (np.asarray(OPERATIONS[name](picture, level, sign)) == np.asarray(image)).all(), name
