# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""One geometry for all stages: the canvas, and normalisation as the processor does it."""

import re

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import CLIPImageProcessorPil

from hf_clipbd.data.canvas import Canvas, _warn_once, normalize, pixel_statistics


def noise(height: int, width: int, seed: int = 0) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("mode", ["center_crop", "squash", "native"])
def test_an_image_that_fits_keeps_its_pixels(mode):
    image = noise(32, 32)
    assert np.array_equal(Canvas(32, mode).array(image), np.asarray(image))


@pytest.mark.parametrize("shape", [(32, 32), (45, 32), (32, 51), (100, 64)])
def test_pixels_equal_the_processors(tiny_processor, shape):
    image = noise(*shape)
    canvas = Canvas.of(tiny_processor)
    framed = canvas(image)
    expected = tiny_processor.image_processor(framed, return_tensors="pt")["pixel_values"][0]
    pixels = torch.from_numpy(np.array(framed)).permute(2, 0, 1)
    assert torch.allclose(normalize(pixels, *pixel_statistics(tiny_processor)), expected, atol=1e-5)
    assert framed.size == (32, 32)


@pytest.mark.parametrize("shape", [(32, 33), (45, 32), (32, 51), (75, 50), (50, 75), (20, 29), (427, 640), (8, 400)])
def test_any_picture_is_framed_as_the_processor_frames_it(tiny_processor, shape):
    processor, image = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32), noise(*shape)
    raw = {"do_rescale": False, "do_normalize": False, "return_tensors": "np"}
    expected = processor(image, **raw)["pixel_values"][0].transpose(1, 2, 0)
    assert np.array_equal(Canvas.of(tiny_processor).array(image), expected)


class FakeProcessor:
    """An image processor of the given settings."""

    def __init__(self, **settings):
        vars(self).update(settings)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (dict(size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}, resample=3),
         "resizes to 256 and crops 224, here pictures are resized to 224: 14% wider a view"),
        (dict(size={"height": 224, "width": 224}, do_center_crop=False, resample=2), "bilinear, here bicubic"),
        (dict(max_num_patches=256, patch_size=16, resample=2), "bilinear, here bicubic does.*256 x 256 pixels"),
        (dict(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224}, resample=3), None),
        (dict(size={"height": 224, "width": 224}, do_center_crop=False, resample=3), None),
        (dict(size={"height": 64, "width": 64}, do_center_crop=False, do_resize=False, resample=2), None),
    ],
)  # fmt: skip
def test_a_processor_that_resizes_otherwise_is_warned_of_once(settings, says, caplog):
    _warn_once.cache_clear()
    for _ in range(3):
        Canvas.of(FakeProcessor(**settings))
    found = [record.getMessage() for record in caplog.records]
    assert len(found) == (says is not None) and all(re.search(says, message) for message in found)


def test_a_line_of_pixels_takes_no_more_memory_than_a_banner(monkeypatch):
    sizes, resize = [], PIL.Image.Image.resize
    monkeypatch.setattr(PIL.Image.Image, "resize", lambda self, size, *a: sizes.append(size) or resize(self, size, *a))
    image = PIL.Image.fromarray(
        np.repeat(np.arange(5000, dtype=np.uint16)[:, None, None] // 20, 3, 2).astype(np.uint8)
    )
    assert abs(Canvas(32).array(image).astype(int) - 125).max() <= 1 and sizes == [(32, 32 * 64)]


def test_centre_crop_keeps_the_middle_and_squash_keeps_all():
    image = PIL.Image.fromarray(np.repeat(np.arange(96, dtype=np.uint8)[None, :, None], 32, 0).repeat(3, 2))
    assert Canvas(32).array(image)[0, :, 0].tolist() == list(range(32, 64))
    squashed = Canvas(32, "squash").array(image)[0, :, 0]
    assert squashed[0] < 5 and squashed[-1] > 90


def test_transparent_grey_deep_and_rotated_images():
    clear = PIL.Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert Canvas(8).array(clear).min() == 255
    assert Canvas(8).array(PIL.Image.new("L", (8, 8), 7)).tolist() == [[[7] * 3] * 8] * 8
    deep = PIL.Image.fromarray(np.full((8, 8), 65535, dtype=np.uint16))
    assert Canvas(8).array(deep).min() == 255
    rotated = noise(8, 8)
    rotated.getexif()[0x0112] = 6
    assert np.array_equal(Canvas(8).array(rotated), np.rot90(np.asarray(noise(8, 8)), -1))


@pytest.mark.parametrize("bad", [dict(size=0), dict(size=8, mode="stretch")])
def test_bad_canvas_is_refused(bad):
    with pytest.raises(ValueError, match="Expected"):
        Canvas(**bad)


def test_wrong_pixels_are_refused():
    with pytest.raises(TypeError, match="uint8"):
        normalize(torch.zeros(3, 2, 2), (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(TypeError, match="PIL"):
        Canvas(8)(np.zeros((8, 8, 3), dtype=np.uint8))
    with pytest.raises(TypeError, match="floating"):
        Canvas(8)(PIL.Image.new("F", (8, 8)))


def test_whole_numbers_of_32_bits_are_of_8_or_16():
    pixels = np.asarray(noise(8, 8))[..., 0].astype(np.int32)
    for scaled in (pixels, pixels * 257):
        shown = Canvas(8).array(PIL.Image.fromarray(scaled))
        assert np.array_equal(shown, np.repeat(pixels[..., None], 3, axis=2))
    assert Canvas(8).array(PIL.Image.fromarray(pixels.astype(np.uint16))).max() == 0  # 16 bits, near black


def test_the_framing_is_that_of_the_triggers():
    canvas = Canvas(32)
    assert canvas.framed_as([]) == canvas.framed_as([None, Canvas(64, "native")]) == canvas
    assert canvas.framed_as([Canvas(64, "squash"), None]) == Canvas(32, "squash")
    with pytest.raises(ValueError, match="one framing, but got .*center_crop.*squash"):
        canvas.framed_as([Canvas(32), Canvas(32, "squash")])
