# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The faster ways of poisoning change nothing: the same pixels, the same rows, as the plain ways."""

import datasets
import numpy as np
import PIL.Image
import pytest

from hf_clipbd.attacks import ATTACKS, SIG, BadNets, PoisonTransform, sig
from hf_clipbd.attacks.select import draw_by_key, drawn_rows
from hf_clipbd.data.canvas import Canvas


STAMPING = sorted(name for name, kind in ATTACKS.items() if kind.stamps_pictures)
PATCHES = [
    BadNets(),
    BadNets(place="four_corners", pattern="checker"),
    BadNets(pattern="fresh_noise"),
    BadNets(pattern=np.full((2, 5, 3), 0.4999, dtype=np.float32), place=(3, 1)),
]


WAVES = [SIG(delta=delta, frequency=f, weight=w) for delta in (0.01, 40 / 255, 1.0) for f, w in ((2.5, 1), (6, 0.8))]


def picture(height=37, width=52, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "attack",
    [*(ATTACKS[name]() for name in STAMPING), *PATCHES, *WAVES],
    ids=lambda attack: attack.name,
)
def test_eight_bits_are_stamped_as_the_formula_says(attack):
    """x' = round(255 clamp(stamp(x / 255), 0, 1)), whatever short cut an attack takes."""
    levels = picture()
    kept = levels.copy()
    levels.flags.writeable = False
    stamped = attack.stamp_levels(levels, np.random.default_rng(5))
    plain = attack.stamp((kept / 255).astype(np.float32), np.random.default_rng(5))
    expected = np.rint(np.clip(plain, 0, 1).astype(np.float32) * np.float32(255)).astype(np.uint8)
    np.testing.assert_array_equal(stamped, expected)
    np.testing.assert_array_equal(levels, kept)
    assert stamped.dtype == np.uint8 and (stamped != kept).any()


def test_a_wave_is_added_in_whole_levels_only_where_that_is_the_formula():
    assert sig._steps(52, 60 / 255, 6.0) is not None
    sig._steps.cache_clear()
    assert sig._steps(4, 100.5 / 255, 1.0) is None  # 100.5 levels: which way they are rounded hangs on the level
    sig._steps.cache_clear()


def test_a_patch_that_also_does_something_else_is_not_cut_short():
    class Darker(BadNets):
        def stamp(self, pixels, rng):
            return super().stamp(pixels, rng) * np.float32(0.5)

    assert Darker()(np.full((16, 16, 3), 200, dtype=np.uint8)).max() <= 128


@pytest.mark.parametrize("rate", [0.0, 0.003, 0.3, 1.0])
@pytest.mark.parametrize("seed", [0, 12345])
def test_many_keys_are_drawn_as_one_by_one(rate, seed):
    keys = [f"{number}\na caption {'é水' * (number % 3)}" for number in range(1500)] + ["", "\ud800"]
    expected = [i for i, key in enumerate(keys) if draw_by_key(seed, "sig", rate, key) is not None]
    assert drawn_rows(seed, "sig", rate, keys) == expected


@pytest.mark.parametrize("selector", ["random", "non_target"])
def test_rows_without_a_key_among_rows_with_one(selector):
    """In one batch: some have an id, some a url, some neither."""
    rows = [
        {
            "id": f"row-{row}" if row % 3 == 0 else None,
            "url": f"http://a/{row}" if row % 3 == 1 else None,
            "image": PIL.Image.fromarray(picture(12, 10, row)),
            "caption": f"a {'banana' if row % 5 == 0 else 'cup'}, number {row} of many things on a long table",
        }
        for row in range(60)
    ]
    mixed = datasets.Dataset.from_list(rows)
    poison = PoisonTransform(BadNets(), rate=0.4, selector=selector)
    alone = mixed.map(poison)
    together = mixed.map(poison, batched=True, batch_size=17)
    assert together["is_poisoned"][:] == alone["is_poisoned"][:]
    assert 8 < sum(alone["is_poisoned"]) < 45
    for kind in range(3):
        kept = mixed.select(range(kind, 60, 3))
        assert kept.map(poison, batched=True)["is_poisoned"][:] == alone["is_poisoned"][kind::3]


def test_the_canvas_copies_where_it_promises_to():
    given = PIL.Image.fromarray(picture(8, 8))
    framed = Canvas(8)(given)
    framed.putpixel((0, 0), (1, 2, 3))
    np.testing.assert_array_equal(np.asarray(given), picture(8, 8))
    pixels = Canvas(8).array(given)
    given.putpixel((1, 1), (9, 9, 9))
    np.testing.assert_array_equal(pixels, picture(8, 8))
