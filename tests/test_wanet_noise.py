# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""WaNet's noise mode: further rows get the warp with noise on its grid and keep their captions."""

import datasets
import numpy as np
import pytest
import torch

from hf_clipbd.attacks import (
    PoisonTransform,
    Share,
    WaNet,
    attacks_of,
    poison_dataset,
    poison_stream,
    poison_with_many,
)
from hf_clipbd.attacks.base import PATTERN_STREAM
from hf_clipbd.attacks.multi_trigger import manifest_of
from hf_clipbd.schema import PoisonManifest
from test_attacks import photo


NOISE = WaNet(target="boat", seed=1, noise_mode=True)


def stored(dataset):
    return dataset.cast_column("image", datasets.Image(decode=False))["image"][:]


@pytest.fixture(scope="module")
def poisoned(tiny_pairs):
    return poison_dataset(tiny_pairs, NOISE, count=7, seed=2)


def test_the_noise_against_torch():
    warp = WaNet(target="boat", seed=1, noise_mode=True, grid_size=8)
    cover, source = warp.cover.attack, photo(33, 20)
    noise = np.random.default_rng([1, 5, 0]).uniform(-1, 1, (2, 33, 20))
    control = np.random.default_rng([1, 0, PATTERN_STREAM]).uniform(-1, 1, (2, 8, 8))
    control = torch.from_numpy(control / np.abs(control).mean())[None]
    offsets = torch.nn.functional.interpolate(control, size=(33, 20), mode="bicubic", align_corners=True)[0].numpy()
    identity = np.stack(np.meshgrid(np.linspace(-1, 1, 20), np.linspace(-1, 1, 33)))
    grid = np.clip(identity + (3 * offsets + noise) / 33, -1, 1).transpose(1, 2, 0)[None]
    pixels = torch.from_numpy(source / 255).permute(2, 0, 1)[None]
    expected = torch.nn.functional.grid_sample(pixels, torch.from_numpy(grid), align_corners=True)[0].permute(1, 2, 0)
    np.testing.assert_allclose(cover(source / 255, 5), expected.numpy(), atol=1e-5)


def test_covers_differ_from_row_to_row_and_from_the_trigger():
    cover, source = NOISE.cover.attack, photo(40, 40)
    assert not np.array_equal(cover(source, 1), cover(source, 2))
    np.testing.assert_array_equal(cover(source, 1), cover(source, 1))
    assert not np.array_equal(cover(source, 1), NOISE(source, 1))
    np.testing.assert_array_equal(NOISE(source, 1), WaNet(target="boat", seed=1)(source, 1))
    assert WaNet().cover is None and NOISE.cover.ratio == 2


def assert_covered(dataset, source, manifest):
    covers, chosen = set(manifest.covers), set(manifest.indices)
    assert chosen and covers and not chosen & covers
    before, after = stored(source), stored(dataset)
    for row, one in enumerate(dataset):
        assert one["is_poisoned"] == (row in chosen)
        assert one["trigger"] == ("wanet" if row in chosen else "wanet_cover" if row in covers else "")
        assert (one["caption"] == source[row]["caption"]) == (row not in chosen)
        assert (after[row] == before[row]) == (row not in chosen | covers)
    row = min(covers)
    assert np.asarray(dataset[row]["image"]).shape == np.asarray(source[row]["image"]).shape


def test_exactly_so_many(tiny_pairs, poisoned):
    dataset, manifest = poisoned
    assert_covered(dataset, tiny_pairs, manifest)
    assert manifest.count == 7 and len(manifest.covers) == 14
    row = manifest.covers[3]
    expected = NOISE.cover.attack(np.asarray(tiny_pairs[row]["image"]), row)
    np.testing.assert_array_equal(np.asarray(dataset[row]["image"]), expected)
    plain, without = poison_dataset(tiny_pairs, WaNet(target="boat", seed=1), count=7, seed=2)
    assert without.indices == manifest.indices and without.covers == []
    both = [stored(one) for one in (dataset, plain)]
    assert all(both[0][row] == both[1][row] for row in manifest.indices)


def test_workers_and_another_attack_after_it(tiny_pairs, poisoned):
    dataset, manifest = poisoned
    again, _ = poison_dataset(tiny_pairs, NOISE, count=7, seed=2, num_proc=2)
    assert stored(again) == stored(dataset)
    more, others = poison_dataset(dataset, WaNet(target="dog", noise_mode=True), count=9, seed=2)
    touched = set(manifest.indices) | set(manifest.covers)
    assert not touched & (set(others.indices) | set(others.covers))
    assert more["trigger"].count("wanet") == 16 and more["trigger"].count("wanet_cover") == 14 + 18


def test_too_few_rows_are_told_before_any_is_stamped(tiny_pairs):
    with pytest.raises(ValueError, match="at most 48, .* but got 51"):
        poison_dataset(tiny_pairs, NOISE, count=17)


def test_the_transform_covers_too(tiny_pairs):
    transform = PoisonTransform(NOISE, 0.2, seed=3)
    mapped = tiny_pairs.map(transform)
    manifest = transform.manifest(mapped, tiny_pairs)
    assert_covered(mapped, tiny_pairs, manifest)
    assert manifest.count < len(manifest.covers)
    without = tiny_pairs.map(PoisonTransform(WaNet(target="boat", seed=1), 0.2, seed=3))
    assert without["is_poisoned"][:] == mapped["is_poisoned"][:]
    batched = tiny_pairs.map(transform, batched=True, batch_size=7)
    assert stored(batched) == stored(mapped) and batched["trigger"][:] == mapped["trigger"][:]
    twice = mapped.map(PoisonTransform(WaNet(target="dog"), 1.0))
    assert [twice["trigger"][row] for row in manifest.covers] == ["wanet_cover"] * len(manifest.covers)


def test_a_stream_covers_too(tiny_pairs, tmp_path):
    transform = PoisonTransform(NOISE, 0.2, seed=3)
    expected = transform.manifest(tiny_pairs.map(transform), tiny_pairs)
    manifest = poison_stream(tiny_pairs.to_iterable_dataset(), transform, tmp_path)
    assert (manifest.indices, manifest.covers) == (expected.indices, expected.covers)


def test_several_triggers_and_the_manifest_on_disk(tiny_pairs, tmp_path):
    shares = {"warp": Share(NOISE, count=3), "other": Share(WaNet(target="dog"), count=2)}
    dataset, manifest = poison_with_many(tiny_pairs, shares)
    own = manifest_of(manifest, "warp")
    assert len(own.covers) == 6 and dataset["trigger"].count("warp_cover") == 6
    assert attacks_of(manifest)["warp"].noise_mode
    own.save_pretrained(tmp_path)
    assert PoisonManifest.from_pretrained(tmp_path).covers == own.covers


def test_noise_mode_travels(tmp_path):
    NOISE.save_pretrained(tmp_path)
    loaded = WaNet.from_pretrained(tmp_path)
    np.testing.assert_array_equal(loaded.cover.attack(photo(), 3), NOISE.cover.attack(photo(), 3))
    with pytest.raises(ValueError, match="cross ratio"):
        WaNet(cross_ratio=0)
