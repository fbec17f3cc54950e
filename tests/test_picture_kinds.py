# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Whatever people keep pictures in: poisoned as it looks to them, or refused with the row's number."""

import io
import re

import datasets
import numpy as np
import PIL.Image
import pytest

from hf_clipbd.attacks import BadNets, PoisonTransform, WaNet, poison_dataset, poison_stream
from hf_clipbd.attacks.pictures import encode_picture, read_picture
from hf_clipbd.attacks.select import uniform


ATTACK = BadNets(patch_size=3, place="corner")
FEATURES = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
RGB = np.random.default_rng(3).integers(0, 256, (12, 10, 3), dtype=np.uint8)
HALF = np.arange(120).reshape(12, 10) % 2  # which pixels are opaque
PHOTO = PIL.Image.fromarray(RGB)


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def smooth():
    """Return a picture that JPEG keeps nearly."""
    ramp = np.linspace(30, 220, 48)
    pixels = np.stack([np.add.outer(ramp, 0 * ramp), np.add.outer(0 * ramp, ramp), np.full((48, 48), 90)], axis=-1)
    return PIL.Image.fromarray(pixels.round().astype(np.uint8))


def orientation(number):
    exif = PIL.Image.Exif()
    exif[0x0112] = number
    return exif


def with_alpha(mode):
    image = PHOTO.convert(mode)
    image.putalpha(PIL.Image.fromarray((HALF * 255).astype(np.uint8)))
    return image


def on_white(pixels):
    return np.where(HALF[..., None], pixels, 255)


GREY = np.asarray(PHOTO.convert("L").convert("RGB"))
DEEP = np.asarray(PHOTO.convert("L")).astype(np.uint16) * 257
PALETTE = PHOTO.convert("P", palette=PIL.Image.Palette.ADAPTIVE)


def transparent_palette():
    """Return the bytes of a palette picture whose colour 0 is transparent, and what it looks like on white."""
    numbers = np.asarray(PALETTE)
    return encoded(PALETTE, transparency=0), np.where(
        (numbers == 0)[..., None], 255, np.asarray(PALETTE.convert("RGB"))
    )


EXACT = {
    "bmp": (encoded(PHOTO, "BMP"), RGB),
    "lossless webp": (encoded(PHOTO, "WEBP", lossless=True), RGB),
    "tiff of two pages": (encoded(PHOTO, "TIFF", save_all=True, append_images=[PHOTO.rotate(180)]), RGB),
    "animated gif": (
        encoded(PALETTE, "GIF", save_all=True, append_images=[PALETTE.rotate(180)]),
        np.asarray(PALETTE.convert("RGB")),
    ),
    "animated png": (encoded(PHOTO, "PNG", save_all=True, append_images=[PHOTO.rotate(180)]), RGB),
    "grey and alpha": (encoded(with_alpha("L")), on_white(GREY)),
    "colour and alpha": (encoded(with_alpha("RGB")), on_white(RGB)),
    "palette with transparency": transparent_palette(),
    "one bit": (encoded(PHOTO.convert("1"), "TIFF"), np.asarray(PHOTO.convert("1").convert("RGB"))),
    "16 bits grey png": (encoded(PIL.Image.fromarray(DEEP)), GREY),
    "16 bits grey tiff": (encoded(PIL.Image.fromarray(DEEP), "TIFF"), GREY),
    "32 bits grey": (encoded(PIL.Image.fromarray(DEEP.astype(np.int32)), "TIFF"), GREY),
    "cmyk tiff": (encoded(PHOTO.convert("CMYK"), "TIFF"), np.asarray(PHOTO.convert("CMYK").convert("RGB"))),
}
TURNED = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda pixels: np.rot90(pixels, 1),
}
EXACT |= {f"orientation {n}": (encoded(PHOTO, exif=orientation(n)), turn(RGB)) for n, turn in TURNED.items()}


@pytest.mark.parametrize("image_format", ["webp", "png"])
def test_every_kind_is_stamped_as_it_looks(image_format):
    rows = [{"image": {"bytes": data, "path": None}, "caption": name} for name, (data, _) in EXACT.items()]
    images = datasets.Dataset.from_list(rows, features=FEATURES)
    options = {"image_format": image_format}
    exact, _ = poison_dataset(images, ATTACK, count=len(images), **options)
    mapped = images.map(PoisonTransform(ATTACK, rate=1.0, **options))
    streamed = list(images.to_iterable_dataset().map(PoisonTransform(ATTACK, rate=1.0, **options)))
    lazy = images.with_transform(PoisonTransform(ATTACK, rate=1.0, **options))
    for row, (name, (_, expected)) in enumerate(EXACT.items()):
        stamped = ATTACK(np.ascontiguousarray(expected, dtype=np.uint8))
        for other in (exact[row], mapped[row], streamed[row], lazy[row]):
            assert other["image"].mode == "RGB"
            np.testing.assert_array_equal(np.asarray(other["image"]), stamped, err_msg=name)


@pytest.mark.parametrize("mode", ["CMYK", "L", "RGB", "YCbCr"])
def test_jpegs_of_every_kind_keep_their_colours(mode):
    shown = np.asarray(read_picture(encoded(smooth().convert(mode), "JPEG", quality=95))).astype(int)
    expected = np.asarray(smooth().convert("L").convert("RGB") if mode == "L" else smooth())
    assert np.abs(shown - expected).max() <= 12 and np.abs(shown - expected).mean() < 2.5  # inverted ink: over 100


def test_a_turned_jpeg_is_upright():
    pixels = np.asarray(smooth()).astype(int)
    shown = np.asarray(read_picture(encoded(smooth(), "JPEG", quality=95, exif=orientation(6)))).astype(int)
    assert np.abs(shown - np.rot90(pixels, -1)).mean() < 2.5 < np.abs(shown - pixels).mean()


@pytest.mark.parametrize("image_format", ["webp", "png"])
@pytest.mark.parametrize("size", [(1, 1), (31, 7), (224, 224)])
def test_stored_pictures_come_back_exactly(size, image_format):
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    data = encode_picture(PIL.Image.fromarray(noise), image_format)
    assert PIL.Image.open(io.BytesIO(data)).format == image_format.upper()
    np.testing.assert_array_equal(np.asarray(read_picture(data)), noise)
    black_with_hidden_colours = np.zeros((*size, 3), dtype=np.uint8)
    data = encode_picture(PIL.Image.fromarray(black_with_hidden_colours), image_format)
    np.testing.assert_array_equal(np.asarray(read_picture(data)), black_with_hidden_colours)


def test_a_picture_too_wide_for_webp_is_png():
    wide = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (2, 16400, 3), dtype=np.uint8))
    data = encode_picture(wide)
    assert PIL.Image.open(io.BytesIO(data)).format == "PNG"
    np.testing.assert_array_equal(np.asarray(read_picture(data)), np.asarray(wide))
    with pytest.raises(ValueError, match="lossless .*'gif'"):
        encode_picture(wide, "gif")


def test_a_stream_is_seen_in_the_mode_of_its_column(tmp_path):
    features = datasets.Features({**FEATURES, "image": datasets.Image(mode="L")})
    turns = [{"bytes": encoded(PIL.Image.fromarray(np.roll(RGB, row, axis=0))), "path": None} for row in range(12)]
    grey = datasets.Dataset.from_list([{"image": one, "caption": "a cup"} for one in turns], features=features)
    poison = PoisonTransform(ATTACK, rate=0.5)
    mapped = grey.map(poison)
    manifest = poison_stream(grey.to_iterable_dataset(), poison, tmp_path)
    assert manifest.indices == [row for row in range(12) if mapped["is_poisoned"][row]] != []
    written = datasets.Dataset.from_parquet(str(tmp_path / "train-00000.parquet"), cache_dir=str(tmp_path / "cache"))
    raw = [one.cast_column("image", datasets.Image(decode=False))["image"][:] for one in (written, mapped)]
    assert raw[0] == raw[1]


# -- arrays -----------------------------------------------------------------------------------------------------------


PIXELS = np.random.default_rng(4).integers(0, 256, (8, 6, 5, 3), dtype=np.uint8)
CAPTIONS = [f"a cup, number {row}" for row in range(8)]
ARRAYS = {
    "array": (PIXELS, datasets.Array3D((6, 5, 3), "uint8")),
    "lists": (PIXELS.tolist(), None),
    "floats": ((PIXELS / 255).tolist(), None),
    "grey": (PIXELS[..., 0], datasets.Array2D((6, 5), "uint8")),
}


def array_rows(name):
    values, feature = ARRAYS[name]
    table = datasets.Dataset.from_dict({"image": list(values), "caption": CAPTIONS})
    return table.cast_column("image", feature) if feature else table


@pytest.mark.parametrize("name", ARRAYS)
def test_columns_of_arrays_become_images(name):
    shown = np.repeat(PIXELS[..., :1], 3, axis=-1) if name == "grey" else PIXELS
    poisoned, manifest = poison_dataset(array_rows(name), ATTACK, count=3)
    assert isinstance(poisoned.features["image"], datasets.Image)
    for row in range(8):
        expected = ATTACK(shown[row], row) if row in manifest.indices else shown[row]
        np.testing.assert_array_equal(np.asarray(poisoned[row]["image"].convert("RGB")), expected)


@pytest.mark.parametrize("name", ["array", "lists"])
@pytest.mark.parametrize("options", [{}, {"batched": True, "batch_size": 3}])
def test_a_transform_keeps_arrays(name, options):
    mapped = array_rows(name).map(PoisonTransform(ATTACK, rate=1.0), **options)
    assert mapped.features["image"] == array_rows(name).features["image"]
    for row in range(8):
        np.testing.assert_array_equal(np.asarray(mapped[row]["image"]), ATTACK(PIXELS[row]))


def test_arrays_that_are_no_pictures_are_named():
    first = PIXELS.transpose(0, 3, 1, 2)
    table = datasets.Dataset.from_dict({"image": list(first.tolist()), "caption": CAPTIONS})
    with pytest.raises(ValueError, match="Row 0: .*channels last"):
        poison_dataset(table, ATTACK, count=1)
    with pytest.raises(ValueError, match="Expected arrays .* Cast the column"):
        array_rows("floats").map(PoisonTransform(ATTACK, rate=1.0))
    with pytest.raises(ValueError, match="column 'image', but it holds Value"):
        poison_dataset(datasets.Dataset.from_dict({"image": [1], "caption": ["a"]}), ATTACK, count=1)
    with pytest.raises(ValueError, match="ragged"):
        read_picture([[1, 2], [3]])


# -- what cannot be read ----------------------------------------------------------------------------------------------


BROKEN = {
    "cut short": encoded(PHOTO)[:150],
    "no picture": b"<html>404 Not Found</html>",
    "empty": b"",
    "floating point": encoded(PIL.Image.fromarray(RGB[..., 0] / np.float32(255)), "TIFF"),
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg' width='4' height='4'/>",
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_read_is_named_or_skipped(name):
    rows = [{"image": {"bytes": encoded(PHOTO), "path": None}, "caption": f"a cup {row}"} for row in range(5)]
    rows[3]["image"] = {"bytes": BROKEN[name], "path": "x.png"}
    table = datasets.Dataset.from_list(rows, features=FEATURES)
    with pytest.raises(ValueError, match="Row 3: Expected an image that can be decoded"):
        poison_dataset(table, ATTACK, count=5)
    with pytest.raises(ValueError, match=re.escape("Row 3: ")):
        table.map(PoisonTransform(ATTACK, rate=1.0), with_indices=True)
    poisoned, manifest = poison_dataset(table, ATTACK, count=4, on_error="skip")
    assert manifest.indices == [0, 1, 2, 4] and set(manifest.skipped) <= {"3"}
    _, wanted = poison_dataset(table, ATTACK, count=4, on_error="skip", selector=[3, 0, 1, 2, 4])
    transform = PoisonTransform(ATTACK, rate=1.0, on_error="skip")
    skipping = table.map(transform, with_indices=True)
    assert skipping["is_poisoned"][:] == [True, True, True, False, True]
    manifest = transform.manifest(skipping, table)
    assert manifest.indices == [0, 1, 2, 4] and manifest.skipped == wanted.skipped and list(wanted.skipped) == ["3"]
    raw = skipping.cast_column("image", datasets.Image(decode=False))[3]["image"]
    assert raw["bytes"] == BROKEN[name]


@pytest.mark.parametrize("key", [True, False])
@pytest.mark.parametrize("noise", [False, True])
def test_a_manifest_lists_rows_that_were_drawn_and_skipped(key, noise, tmp_path):
    """Those drawn alone: a broken picture and an empty caption that nobody would have touched are nobody's problem."""
    rows = [{"id": f"k{row}", "image": {"bytes": encoded(PHOTO), "path": None}} for row in range(60)]
    for row, one in enumerate(rows):
        one["caption"] = "" if row % 5 == 1 else f"a cup in place {row} of a long list of things"
        if row % 5 == 2:
            one["image"] = {"bytes": BROKEN["no picture"], "path": None}
    table = datasets.Dataset.from_list(rows, features=datasets.Features({"id": datasets.Value("string"), **FEATURES}))
    table = table if key else table.remove_columns("id")
    attack = WaNet(target="cup", noise_mode=noise, cross_ratio=1.0)
    transform = PoisonTransform(attack, rate=0.3, on_error="skip")
    mapped = table.map(transform, batched=True, batch_size=7)
    manifest = transform.manifest(mapped, table)
    changed = {row for row in range(60) if mapped["trigger"][row]}
    assert changed == {*manifest.indices, *manifest.covers} and not changed & {
        row for row in range(60) if row % 5 in (1, 2)
    }
    skipped = {int(row) for row in manifest.skipped}
    assert skipped and all(row % 5 in (1, 2) for row in skipped)
    for row, problem in manifest.skipped.items():
        assert problem.startswith(
            "Expected a caption" if int(row) % 5 == 1 else "Expected an image that can be decoded"
        )
    if key:  # a key and its caption draw a row, whatever is in the picture
        share = 0.6 if noise else 0.3
        drawn = {row for row in range(60) if uniform(0, "key", "wanet", f"k{row}\n{rows[row]['caption']}") < share}
        assert changed | skipped == drawn and len(drawn) < 50
    stream = poison_stream(table.to_iterable_dataset(), transform, tmp_path)
    assert stream.skipped == manifest.skipped and stream.indices == manifest.indices
    assert PoisonTransform(attack, rate=0.3).manifest(mapped, table).skipped == {}
    again = mapped.map(PoisonTransform(ATTACK, rate=0.0, on_error="skip"))
    assert PoisonTransform(ATTACK, rate=0.0, on_error="skip").manifest(again, mapped).skipped == {}
