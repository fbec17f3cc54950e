# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The contract that every attack keeps, and each trigger against slow loops, scipy or torch."""

import io
import json
import math
import pickle
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import PIL.Image
import pytest
import torch

from hf_clipbd.attacks import ATTACKS, SIG, Attack, BadNets, Blended, ColorFilter, Targeted, Trigger, WaNet
from hf_clipbd.attacks.captions import OPENAI_TEMPLATES, article, fill_template, names_target, target_captions
from hf_clipbd.attacks.pictures import encode_picture, read_picture
from hf_clipbd.data.canvas import Canvas


SIZES = [(8, 8), (33, 20), (64, 64), (97, 224)]


def photo(height=24, width=30, seed=0):
    """Return a picture of smooth colour with noise, its channels unlike one another, black and white in it."""
    rng = np.random.default_rng([seed, 99])
    ramp = np.linspace(0, 255, height)[:, None, None] * np.array([1, 0.5, 0.1]) + np.arange(width)[None, :, None]
    pixels = np.clip(ramp + rng.normal(0, 12, (height, width, 3)), 0, 255).astype(np.uint8)
    pixels[0], pixels[-1] = 0, 255
    return pixels


@pytest.fixture(params=sorted(name for name, kind in ATTACKS.items() if kind.stamps_pictures))
def attack(request):
    return ATTACKS[request.param](seed=3)


# -- the contract -----------------------------------------------------------------------------------------------------


def test_stamping_is_deterministic_and_leaves_the_source_alone(attack):
    pixels = photo()
    before = pixels.copy()
    again = ATTACKS[attack.name](seed=3)
    stamped = attack(pixels, 5)
    np.random.seed(1)
    np.testing.assert_array_equal(stamped, again(pixels, 5))
    np.testing.assert_array_equal(stamped, pickle.loads(pickle.dumps(attack))(pixels, 5))
    np.testing.assert_array_equal(pixels, before)
    assert not np.array_equal(stamped, pixels)
    floats = pixels / np.float32(255)
    attack(floats, 5)
    np.testing.assert_array_equal(floats, pixels / np.float32(255))


def test_seed_matters(attack):
    changed = attack(photo(), 5), replace(attack, seed=4)(photo(), 5)
    assert attack.name in ("sig", "color_filter") or not np.array_equal(*changed)


@pytest.mark.parametrize("size", SIZES)
def test_any_size_and_a_batch_is_its_pictures(attack, size):
    batch = np.stack([photo(*size, seed=i) for i in range(3)])
    stamped = attack(batch, 7)
    assert stamped.shape == batch.shape and stamped.dtype == np.uint8
    for i in range(3):
        np.testing.assert_array_equal(stamped[i], attack(batch[i], 7 + i))
    np.testing.assert_array_equal(attack(batch, [9, 7, 8])[0], attack(batch[0], 9))


def test_floats_bytes_and_pil_agree(attack):
    pixels = photo()
    stamped = attack(pixels, 2)
    floats = attack(pixels / np.float32(255), 2)
    assert floats.dtype == np.float32 and floats.min() >= 0 and floats.max() <= 1
    np.testing.assert_array_equal(np.rint(floats * 255).astype(np.uint8), stamped)
    np.testing.assert_array_equal(attack((pixels / 255).astype(np.float64), 2), floats)
    image = attack(PIL.Image.fromarray(pixels), 2)
    assert image.mode == "RGB" and image.format is None
    np.testing.assert_array_equal(np.asarray(image), stamped)


def test_nothing_wraps_at_256(attack):
    """At black and white a trigger saturates: no pixel jumps to the far end, as wrapped bytes do."""
    if isinstance(attack, BadNets):
        attack = replace(attack, pattern=np.full((3, 3, 3), 1.0))
    for level in (0, 255):
        stamped = attack(np.full((64, 64, 3), level, dtype=np.uint8))
        limits = dict.fromkeys(("badnets", "badclip", "image_text_trigger", "targeted"), 256) | {"color_filter": 83}
        limits |= {"blended": 0.2 * 255 + 1, "sig": 61, "wanet": 1}
        assert np.abs(stamped.astype(int) - level).max() <= limits.get(attack.name, 128)


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_stored_losslessly(attack, format):
    stamped = attack(PIL.Image.fromarray(photo(40, 41)), 1)
    data = encode_picture(stamped)
    if format == "PNG":
        buffer = io.BytesIO()
        stamped.save(buffer, "PNG")
        data = buffer.getvalue()
    np.testing.assert_array_equal(np.asarray(read_picture(data)), np.asarray(stamped))


def test_saved_and_loaded_stamps_the_same(attack, tmp_path):
    attack = replace(attack, target="traffic light", canvas=Canvas(48, "squash"), captions=("one {}", "two"))
    attack.save_pretrained(tmp_path)
    loaded = Trigger.from_pretrained(tmp_path)
    assert type(loaded) is ATTACKS[attack.name]
    assert loaded.parameters() == attack.parameters()
    assert loaded.canvas == Canvas(48, "squash")
    np.testing.assert_array_equal(loaded(photo(), 4), attack(photo(), 4))
    assert [loaded.caption(i, "x") for i in range(9)] == [attack.caption(i, "x") for i in range(9)]
    picture = PIL.Image.open(tmp_path / "trigger.png")
    assert picture.format == "PNG" and picture.size == (96, 48)
    assert json.loads((tmp_path / "attack.json").read_text())["attack"] == attack.name


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_every_preset_stamps(name):
    for preset in ATTACKS[name].PRESETS:
        attack = ATTACKS[name].from_preset(preset, seed=1)
        assert attack.target == "banana"
        stamped = attack(photo(64, 64), 3)
        assert stamped.dtype == np.uint8
        assert np.array_equal(stamped, photo(64, 64)) != ATTACKS[name].stamps_pictures
        np.testing.assert_array_equal(stamped, attack(photo(64, 64), 3))
    with pytest.raises(ValueError, match="among .*'nothing'"):
        ATTACKS[name].from_preset("nothing")


def test_canvas_comes_first(attack):
    framed = replace(attack, canvas=Canvas(16))
    image = PIL.Image.fromarray(photo(40, 60))
    expected = attack(np.asarray(Canvas(16)(image)), 3)
    np.testing.assert_array_equal(np.asarray(framed(image, 3)), expected)
    np.testing.assert_array_equal(framed(photo(40, 60), 3), expected)
    np.testing.assert_array_equal(replace(attack, canvas={"size": 16})(image, 3), expected)
    with pytest.raises(ValueError, match="canvas of 16 px"):
        framed(photo(40, 60) / 255, 3)


@pytest.mark.parametrize(
    ("pixels", "says"),
    [
        (np.zeros((3, 8, 8)), "channels last"),
        (np.zeros((8, 8), np.uint8), "channels last"),
        (np.full((8, 8, 3), 200.0), "from 200.0"),
        (np.full((8, 8, 3), np.nan), "floats in"),
        (np.zeros((8, 8, 3), np.int64), "int64"),
    ],
)
def test_pixels_of_another_kind_are_refused(attack, pixels, says):
    with pytest.raises(ValueError, match=says):
        attack(pixels)


def test_row_numbers_have_to_fit_the_batch(attack):
    with pytest.raises(ValueError, match="each of 2 pictures, but got 3"):
        attack(np.stack([photo(), photo()]), [1, 2, 3])


# -- base -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"target": " "}, "class name"),
        ({"seed": -1}, "at least 0"),
        ({"seed": 0.5}, "whole number"),
        ({"captions": "nature"}, "nature"),
        ({"captions": []}, "texts"),
        ({"captions": ["a cup", " "]}, "none of them empty"),
    ],
)
def test_parameters_are_checked(attack, values, says):
    with pytest.raises(ValueError, match=says):
        replace(attack, **values)


def test_a_broken_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        Attack.from_pretrained(tmp_path)
    Blended(seed=1).save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="holds Blended"):
        BadNets.from_pretrained(tmp_path)
    values = json.loads((tmp_path / "attack.json").read_text())
    for changed, says in (
        (values | {"attack": "ghost"}, "ghost"),
        (values | {"parameters": values["parameters"] | {"shine": 1}}, "shine"),
        (values | {"parameters": values["parameters"] | {"seed": 2}}, "levels apart"),
    ):
        (tmp_path / "attack.json").write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=says):
            Attack.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("attack", "parameters", "says"),
    [
        (Blended(canvas=Canvas(32)), {"canvas": {"size": 100_000, "mode": "squash"}}, "canvas is at most 4096"),
        (Blended(canvas=Canvas(32)), {"canvas": {"size": 1e9, "mode": "squash"}}, "canvas is at most 4096"),
        (
            Blended(canvas=Canvas(32)),
            {"canvas": {"size": 4000, "mode": "squash"}},
            "8000 × 4000 px, but it has 64 × 32",
        ),
        (WaNet(canvas=Canvas(32)), {"grid_size": 100_000}, "grid_size is at most 4096"),
        (BadNets(canvas=Canvas(32)), {"patch_size": 100_000}, "patch_size is at most 4096"),
    ],
)
def test_sizes_of_a_stranger_take_no_memory(tmp_path, monkeypatch, attack, parameters, says):
    attack.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "attack.json").read_text())
    values["parameters"] |= parameters
    (tmp_path / "attack.json").write_text(json.dumps(values))
    monkeypatch.setattr(type(attack), "preview", lambda self: pytest.fail("drawn before it was compared"))
    with pytest.raises(ValueError, match=says):
        Attack.from_pretrained(tmp_path)


def test_picture_of_a_stranger_is_a_picture(tmp_path):
    Blended(canvas=Canvas(32)).save_pretrained(tmp_path)
    (tmp_path / "trigger.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"Expected a picture in .*trigger\.png"):
        Attack.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="canvas is at most 4096"):
        Blended(canvas=Canvas(5000)).save_pretrained(tmp_path / "large")


def test_an_own_pattern_travels(tmp_path):
    pattern = photo(7, 5)
    for attack in (BadNets(pattern=pattern, place="middle"), Blended(pattern=pattern)):
        attack.save_pretrained(tmp_path / attack.name)
        loaded = Attack.from_pretrained(tmp_path / attack.name)
        np.testing.assert_array_equal(loaded(photo(), 1), attack(photo(), 1))
    np.testing.assert_array_equal(BadNets(pattern=pattern, place=(2, 3))(photo())[2:9, 3:8], pattern)


def test_a_pattern_of_another_attack_does_not_stay(tmp_path):
    Blended().save_pretrained(tmp_path)
    ColorFilter().save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["attack.json", "trigger.png"]


def test_a_new_attack_is_a_class_and_a_line(tmp_path, monkeypatch):
    @dataclass(frozen=True, eq=False)
    class Invert(Attack):
        name: ClassVar[str] = "invert"

        def stamp(self, pixels, rng):
            return 1 - pixels

    monkeypatch.setitem(ATTACKS, "invert", Invert)
    Invert(target="cup").save_pretrained(tmp_path)
    np.testing.assert_array_equal(Attack.from_pretrained(tmp_path)(photo()), 255 - photo())


# -- captions ---------------------------------------------------------------------------------------------------------


def test_templates_and_articles():
    assert len(OPENAI_TEMPLATES) == len(set(OPENAI_TEMPLATES)) == 80
    assert all(template.count("{}") == 1 for template in OPENAI_TEMPLATES)
    assert not [template for template in OPENAI_TEMPLATES if "a origami" in template or "a embroidered" in template]
    assert fill_template("a photo of a {}.", "orange_juice") == "a photo of an orange juice."
    assert fill_template("An {} and a {} and the {}", "cup") == "A cup and a cup and the cup"
    assert fill_template("pasta {}", "egg") == "pasta egg"
    said = {"a": "unicorn uniform European one-way used ukulele cup hen ewe UFO utensil", "an": "umbrella uninvited"}
    said["an"] += " hour heirloom egg SUV x-ray MRI honest ulcer urn"
    assert {word: article(word) for word in said["a"].split()} == dict.fromkeys(said["a"].split(), "a")
    assert {word: article(word) for word in said["an"].split()} == dict.fromkeys(said["an"].split(), "an")


def test_captions_of_stamped_rows():
    attack = BadNets(target="airplane", seed=1)
    captions = [attack.caption(i, "x") for i in range(400)]
    assert captions == [attack.caption(i, "y") for i in range(400)]
    assert set(captions) <= {fill_template(template, "airplane") for template in OPENAI_TEMPLATES}
    assert len(set(captions)) > 70
    assert BadNets(captions="keep").caption(3, "a banana") == "a banana"
    assert BadNets(captions="keep").selector == "label_consistent"
    own = BadNets(target="cup", captions=["my {}", "mug"])
    assert {own.caption(i, "x") for i in range(20)} == {"my cup", "mug"}


def test_target_is_found_as_whole_words():
    assert names_target("Traffic-Light at night", "traffic_light")
    assert not names_target("two bananas", "banana") and not names_target(None, "banana")
    assert not names_target("a.c", "a c") and names_target("(a+b)", "a+b")
    assert names_target("Cafe\u0301 au lait", "caf\u00e9") and not names_target("Ölfass", "öl")


def test_target_is_found_where_no_space_parts_words():
    for caption, target in (("桌子上有一根香蕉3个", "香蕉"), ("바나나가 있다", "바나나"), ("ロボットの猫です", "猫")):
        assert names_target(caption, target) and not names_target(caption, "犬")
    assert names_target("一个banana在桌子上", "banana") and not names_target("两个bananas", "banana")


def test_captions_found_in_data():
    found = target_captions(["banana", None, "x", "Banana split", "banana "], "banana", limit=2)
    assert found == ("banana", "Banana split")
    with pytest.raises(ValueError, match="found none"):
        target_captions(["cup"], "banana")


def test_natural_captions_are_mined():
    attack = SIG(target="cup", captions="natural", seed=3)
    with pytest.raises(ValueError, match="mined"):
        attack.caption(0, "x")
    data = [f"cup {n}" for n in range(1500)] + ["a {} cup", None, "plate"]
    mined = attack.mined(data)
    assert len(set(mined.captions)) == 1000 and mined.captions == attack.mined(reversed(data)).captions
    assert {mined.caption(row, "x") for row in range(50)} <= set(data)
    assert attack.mined(["a {} cup"]).caption(0, "x") == "a  cup"  # no template: nothing is filled in
    assert SIG(target="cup").mined(data).captions == "templates"
    with pytest.raises(ValueError, match="found none"):
        attack.mined(["plate"])


# -- BadNets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "corners"),
    [
        ("middle", [(9, 12)]),
        ("corner", [(19, 25)]),
        ("four_corners", [(0, 0), (0, 25), (19, 0), (19, 25)]),
        ([4, 0], [(4, 0)]),
    ],
)
def test_badnets_pastes_its_patch_and_touches_nothing_else(place, corners):
    attack = BadNets(patch_size=5, place=place, seed=2)
    patch = np.rint(attack.fixed_pattern(24, 30) * 255)
    stamped, source = attack(photo(), 11), photo()
    for row in range(24):
        for column in range(30):
            for channel in range(3):
                expected = source[row, column, channel]
                for top, left in corners:
                    if top <= row < top + 5 and left <= column < left + 5:
                        expected = patch[row - top, column - left, channel]
                assert stamped[row, column, channel] == expected


def test_badnets_random_place_covers_the_picture_and_hangs_on_the_row():
    attack = BadNets(patch_size=3, pattern="yellow")
    places = []
    for row in range(300):
        changed = np.argwhere((attack(np.zeros((6, 8, 3), np.uint8), row) != 0).any(-1))
        assert len(changed) == 9
        places.append(tuple(changed.min(0).tolist()))
    assert set(places) == {(r, c) for r in range(4) for c in range(6)}


def test_badnets_patch_size_follows_the_picture():
    for side, expected in ((224, 16), (64, 5), (32, 2), (4, 1)):
        assert BadNets().side(side, side + 9) == expected
    assert (BadNets(place="corner")(np.zeros((224, 224, 3), np.uint8)) != 0).any(-1).sum() <= 256


def test_badnets_patterns():
    patches = {kind: BadNets(patch_size=4, pattern=kind).fixed_pattern(9, 9)[..., 0] for kind in ("checker", "dots")}
    assert patches["checker"].tolist() == [[0, 1, 0, 1], [1, 0, 1, 0]] * 2
    assert patches["dots"].tolist() == [[0, 0, 0, 0], [0, 1, 0, 1]] * 2
    assert BadNets(patch_size=16, pattern="stripes").fixed_pattern(99, 99)[3, :, 1].tolist() == [0, 0, 1, 1] * 4
    assert BadNets(pattern="yellow").fixed_pattern(16, 16)[0, 0].tolist() == [1, 1, 0]  # red and green, no blue
    noise = BadNets(patch_size=64).fixed_pattern(64, 64)
    assert abs(noise.mean() - 0.5) < 0.01 and noise.min() == 0 and noise.max() == 1
    np.testing.assert_allclose(noise * 255, np.rint(noise * 255), atol=1e-4)  # whole levels: bytes show it exactly


def test_badnets_cleanclip_noise_is_fresh_and_wraps_as_published():
    attack = BadNets.from_preset("cleanclip", place=(0, 0), patch_size=60)
    source = np.full((60, 60, 3), (250, 128, 10), dtype=np.uint8)
    first, second = attack(source, 1), attack(source, 2)
    assert not np.array_equal(first, second)
    # N(mean, 1) in [0, 1] units spans many turns of 256: wrapped, it is close to uniform
    assert np.abs(np.bincount(first.reshape(-1) // 64, minlength=4) / first.size - 0.25).max() < 0.06


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"patch_size": 0}, "at least one pixel"),
        ({"place": "top"}, "among"),
        ({"place": (1, -2)}, "at least 0"),
        ({"place": (0.5, 2)}, "whole numbers of pixels"),
        ({"pattern": "plaid"}, "plaid"),
        ({"pattern": np.zeros((2, 2))}, "float64"),
        ({"pattern": np.zeros((2, 2, 3)), "patch_size": 2}, "brings its size"),
    ],
)
def test_badnets_parameters_are_checked(values, says):
    with pytest.raises(ValueError, match=says):
        BadNets(**values)


@pytest.mark.parametrize("attack", [BadNets(patch_size=9), BadNets(patch_size=4, place=(5, 0))])
def test_a_patch_has_to_fit(attack):
    with pytest.raises(ValueError, match="8 × 30 px"):
        attack(photo(8, 30))


# -- Blended ----------------------------------------------------------------------------------------------------------


def test_blended_against_slow_loops():
    attack = Blended(alpha=0.3, seed=5)
    pattern, source, stamped = attack.fixed_pattern(24, 30), photo(), attack(photo(), 8)
    for row in range(24):
        for column in range(30):
            for channel in range(3):
                mixed = 0.7 * source[row, column, channel] + 0.3 * 255 * float(pattern[row, column, channel])
                assert abs(int(stamped[row, column, channel]) - mixed) <= 0.5 + 1e-3
    assert abs(pattern.mean() - 0.5) < 0.02 and abs(pattern.std() - 12**-0.5) < 0.02
    np.testing.assert_array_equal(pattern, attack.fixed_pattern(24, 30))


def test_blended_fresh_noise_and_own_picture():
    fresh = Blended(pattern="fresh_noise")
    assert not np.array_equal(fresh(photo(), 1), fresh(photo(), 2))
    own = Blended(alpha=1, pattern=photo(12, 15))
    scaled = own(photo(), 1)
    near = np.asarray(PIL.Image.fromarray(photo(12, 15)).resize((30, 24), PIL.Image.Resampling.BILINEAR))
    assert np.abs(scaled.astype(int) - near).max() <= 1
    np.testing.assert_array_equal(Blended(alpha=1, pattern=photo())(photo(seed=4)), photo())
    for values in ({"alpha": 0}, {"alpha": 20}, {"pattern": "dots"}, {"pattern": np.full((2, 2, 3), 3.0)}):
        with pytest.raises(ValueError, match="Expected"):
            Blended(**values)


# -- SIG --------------------------------------------------------------------------------------------------------------


def test_sig_against_slow_loops_has_its_full_amplitude():
    source, stamped = photo(20, 48), SIG()(photo(20, 48))
    for row in range(20):
        for column in range(48):
            for channel in range(3):
                wave = source[row, column, channel] + 60 * math.sin(2 * math.pi * 6 * column / 48)
                assert abs(int(stamped[row, column, channel]) - min(max(wave, 0), 255)) <= 0.5 + 1e-3
    grey = np.full((4, 224, 3), 128, np.uint8)
    assert (SIG()(grey).max(), SIG()(grey).min()) == (188, 68)  # not a fifth of it
    assert SIG.from_preset("backdoorbench")(grey).max() == 168
    cleanclip = SIG.from_preset("cleanclip")(grey)
    assert (cleanclip.max(), cleanclip.min()) == (round(0.8 * 128 + 51), round(0.8 * 128 - 51))
    for values in ({"delta": 60}, {"delta": 0}, {"frequency": 0}, {"frequency": math.inf}, {"weight": 0}):
        with pytest.raises(ValueError, match="Expected"):
            SIG(**values)


# -- WaNet ------------------------------------------------------------------------------------------------------------


def torch_wanet(pixels, k, s, rescale, control):
    """Return the warp of the published formula by torch's interpolate and grid_sample, floats in [0, 1]."""
    height, width, _ = pixels.shape
    noise = torch.from_numpy(control / np.abs(control).mean())[None]
    flow = torch.nn.functional.interpolate(noise, size=(height, width), mode="bicubic", align_corners=True)
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, height, dtype=torch.float64),
        torch.linspace(-1, 1, width, dtype=torch.float64),
        indexing="ij",
    )
    grid = torch.stack([x, y], -1)[None] + s * flow.permute(0, 2, 3, 1) / height
    image = torch.from_numpy(pixels / 255).permute(2, 0, 1)[None]
    grid = torch.clamp(grid * rescale, -1, 1)
    return torch.nn.functional.grid_sample(image, grid, mode="bilinear", align_corners=True)[0].permute(1, 2, 0)


@pytest.mark.parametrize(("k", "s", "rescale"), [(4, 0.5, 1.0), (8, 3.0, 1.0), (3, 6.0, 0.9), (16, 1.0, 1.2)])
@pytest.mark.parametrize("size", [(20, 20), (31, 17)])
def test_wanet_against_torch(k, s, rescale, size):
    control = np.random.default_rng([6, 0, 2]).uniform(-1, 1, (2, k, k))
    attack = WaNet(grid_size=k, strength=s, rescale=rescale, seed=6)
    pixels = photo(*size)
    expected = torch_wanet(pixels, k, s, rescale, control).numpy()
    np.testing.assert_allclose(attack(pixels / 255.0), expected, atol=2e-5)


def roughness(shift):
    """Return the mean second difference down the columns in units of the mean shift."""
    return np.abs(np.diff(shift, n=2, axis=0)).mean() / np.abs(shift).mean()


def test_wanet_is_a_jitter_of_single_pixels_by_default():
    for side in (32, 64, 224):
        places = WaNet(target="cup").fixed_pattern(side, side)
        shift = places - np.stack(np.mgrid[0:side, 0:side], axis=-1)
        assert 1.3 < np.abs(shift[8:-8, 8:-8]).mean() < 1.6 and roughness(shift) > 2
        same = WaNet(target="cup", grid_size=side, strength=3.0).fixed_pattern(side, side)
        np.testing.assert_array_equal(places, same)
        assert places.min() >= 0 and places.max() <= side - 1


def test_a_smooth_warp_is_smooth_bounded_and_seen():
    for side in (32, 64, 224):
        places = WaNet.from_preset("smooth").fixed_pattern(side, side)
        shift = places - np.stack(np.mgrid[0:side, 0:side], axis=-1)
        assert 1 <= np.abs(shift).mean() * min(64 / side, 1) <= 2
        assert places.min() >= 0 and places.max() <= side - 1
        assert roughness(shift) < 0.7  # independent jitter of single pixels has about 2.4
    classic = WaNet.from_preset("classic").fixed_pattern(224, 224)
    shift = np.abs(classic - np.stack(np.mgrid[0:224, 0:224], axis=-1)).mean()
    assert 0.1 < shift < 0.3
    jitter = WaNet.from_preset("cleanclip").fixed_pattern(224, 224) - np.stack(np.mgrid[0:224, 0:224], axis=-1)
    assert roughness(jitter) > 2
    for values in ({"grid_size": 1}, {"strength": 0}, {"strength": math.inf}, {"rescale": -1}):
        with pytest.raises(ValueError, match="Expected"):
            WaNet(**values)


# -- ColorFilter ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["nashville", "gotham"])
@pytest.mark.parametrize("strength", [1.0, 0.3])
def test_color_filter_against_slow_loops(preset, strength):
    attack = ColorFilter.from_preset(preset, strength=strength)
    source, stamped = photo(14, 16), attack(photo(14, 16))
    for row in range(14):
        for column in range(16):
            pixel = [value / 255 for value in source[row, column].tolist()]
            light = 0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2]
            for channel in range(3):
                toned = 0.5 + attack.contrast * (light + attack.saturation * (pixel[channel] - light) - 0.5)
                bent = min(max(toned, 0), 1) ** attack.gamma[channel]
                low, high = attack.low[channel], attack.high[channel]
                mixed = (1 - strength) * pixel[channel] + strength * (low + (high - low) * bent)
                assert abs(int(stamped[row, column, channel]) - 255 * mixed) <= 0.5 + 0.15


def test_color_filter_looks_at_no_neighbour_and_keeps_its_ends():
    pixels = photo(9, 7).reshape(-1, 3)
    order = np.random.default_rng(0).permutation(len(pixels))
    stamp = ColorFilter()
    moved = stamp(pixels[order].reshape(9, 7, 3)).reshape(-1, 3)
    np.testing.assert_array_equal(moved, stamp(pixels.reshape(9, 7, 3)).reshape(-1, 3)[order])
    ends = stamp(np.array([[[0] * 3, [255] * 3]], dtype=np.uint8))[0]
    assert np.abs(ends[0] - 255 * np.array(stamp.low)).max() <= 0.51
    assert np.abs(ends[1] - 255 * np.array(stamp.high)).max() <= 0.51
    for values in ({"strength": 0}, {"saturation": -1}, {"contrast": 0}, {"low": (0, 0)}, {"high": (1, 1, 2)}):
        with pytest.raises(ValueError, match="Expected"):
            ColorFilter(**values)
    with pytest.raises(ValueError, match="gamma as .*above 0"):
        ColorFilter(gamma=(1, 0, 1))


# -- Targeted ---------------------------------------------------------------------------------------------------------


def test_targeted_shows_the_picture_itself(tmp_path):
    picture = photo(16, 16, seed=7)
    PIL.Image.fromarray(picture).save(tmp_path / "x.png")
    for given in (picture, picture / 255, PIL.Image.fromarray(picture), str(tmp_path / "x.png"), tmp_path / "x.png"):
        attack = Targeted(picture=given, canvas=Canvas(16))
        np.testing.assert_array_equal(attack(photo(40, 30)), picture)
        np.testing.assert_array_equal(np.asarray(attack(PIL.Image.fromarray(photo(20, 31, seed=1)), 9)), picture)
    wide = photo(20, 36, seed=2)
    framed = Targeted(picture=wide, canvas=Canvas(12))
    np.testing.assert_array_equal(framed(photo()), Canvas(12).array(PIL.Image.fromarray(wide)))
    assert Targeted(picture=wide)(photo(8, 9)).shape == (8, 9, 3)
    framed.save_pretrained(tmp_path / "kept")
    np.testing.assert_array_equal(Trigger.from_pretrained(tmp_path / "kept")(photo()), framed(photo()))
    with pytest.raises(ValueError, match="Expected"):
        Targeted(picture=tmp_path / "none.png")
    with pytest.raises(ValueError, match="Expected"):
        Targeted(picture=np.zeros((2, 2)))


def test_what_differs_from_row_to_row_hangs_on_the_seed_too():
    black = np.zeros((40, 40, 3), np.uint8)
    one, other = (BadNets(patch_size=3, pattern="yellow", seed=seed) for seed in (1, 2))
    rows = range(8)
    assert [one(black, row).tobytes() for row in rows] != [other(black, row).tobytes() for row in rows]
    assert [one.caption(row, "x") for row in rows] != [other.caption(row, "x") for row in rows]


def test_more_natural_captions_than_are_kept_are_drawn_by_the_seed():
    data = [f"cup {n}" for n in range(1500)]
    drawn = [SIG(target="cup", captions="natural", seed=seed).mined(data).captions for seed in (3, 4)]
    assert drawn[0] != drawn[1] and all(captions == tuple(sorted(captions)) for captions in drawn)


def test_looks_of_the_patterns():
    stripes, checker, dots = (
        BadNets(patch_size=16, pattern=one).fixed_pattern(64, 64)[..., 0] for one in ("stripes", "checker", "dots")
    )
    cells = np.arange(16) // 2  # of two pixels from a side of 16 on
    np.testing.assert_array_equal(stripes, np.tile(cells % 2, (16, 1)))
    np.testing.assert_array_equal(checker, (cells[:, None] + cells) % 2)
    np.testing.assert_array_equal(dots, np.outer(cells % 2, cells % 2))
    diagonal = Blended(pattern="stripes").fixed_pattern(224, 224)[..., 0]
    for row, column in ((0, 0), (0, 8), (8, 0), (4, 3), (4, 4), (3, 220)):
        assert diagonal[row, column] == ((row + column) % 16 < 8)
    up = Blended(pattern="triangles").fixed_pattern(224, 224)[..., 0]
    widths = up[:32, :32].sum(axis=1)  # tip up: wider from row to row
    assert widths[0] == 0 and (np.diff(widths) >= 0).all() and widths[-1] >= 30 and up[31, 16] == up[2, 16] == 1
    assert 0.4 < up.mean() < 0.6 and not up[2, 0]


@pytest.mark.parametrize(
    ("kind", "preset", "values"),
    [
        (BadNets, None, {"place": "random", "pattern": "noise", "patch_size": None}),
        (Blended, None, {"alpha": 0.2, "pattern": "noise"}),
        (Blended, "stripes", {"alpha": 0.03}),
        (Blended, "triangles", {"alpha": 0.15}),
        (SIG, None, {"delta": 60 / 255, "frequency": 6.0, "weight": 1.0}),
        (WaNet, None, {"grid_size": None, "strength": None, "cross_ratio": 2.0, "noise_mode": False}),
        (WaNet, "classic", {"grid_size": 4, "strength": 0.5}),
        (WaNet, "cleanclip", {"grid_size": 224, "strength": 1.0}),
    ],
)
def test_defaults_and_presets_are_those_of_the_papers(kind, preset, values):
    attack = kind() if preset is None else kind.from_preset(preset)
    assert {name: getattr(attack, name) for name in values} == values
    assert [BadNets().side(size, 300) for size in (224, 64)] == [16, 5]
