# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Several attacks in one dataset: each as many rows as asked, none twice, one manifest that says it all."""

import io

import datasets
import numpy as np
import PIL.Image
import pytest

from hf_clipbd.attacks import (
    ATTACKS,
    SIG,
    BadNets,
    Blended,
    ColorFilter,
    Share,
    Targeted,
    attacks_of,
    manifest_of,
    poison_dataset,
    poison_with_many,
)
from hf_clipbd.data.canvas import Canvas
from hf_clipbd.schema import PoisonManifest


N = 90


def picture(row):
    pixels = np.random.default_rng([row]).integers(0, 256, (18, 16, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def source():
    things = ("cup", "banana", "owl")
    rows = [{"image": {"bytes": picture(row), "path": None}, "caption": f"a {things[row % 3]}"} for row in range(N)]
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    return datasets.Dataset.from_list(rows, features=features)


def stored(dataset):
    return dataset.cast_column("image", datasets.Image(decode=False))["image"][:]


def shares():
    return {
        "corner": Share(BadNets(target="banana", place="corner", canvas=Canvas(16)), count=11),
        "middle": Share(BadNets(target="owl", place="middle", seed=5), rate=0.1),
        "filter": Share(ColorFilter(target="cup", captions="keep"), count=7),
        "wave": Share(SIG(target="owl"), count=4, selector=[88, 3, 40, 5, 60, 2, 71, 9, 33]),
    }


def test_every_share_is_as_large_as_asked_and_none_overlap(source):
    poisoned, manifest = poison_with_many(source, shares(), seed=3)
    counts = {"corner": 11, "middle": 9, "filter": 7, "wave": 4}
    assert manifest.attack == "multi_trigger" and manifest.target == "banana, owl, cup"
    assert manifest.count == sum(counts.values()) == len(set(manifest.indices)) and manifest.n_rows == N
    before, after = stored(source), stored(poisoned)
    named = {row: name for name in counts for row in manifest_of(manifest, name).indices}
    assert {name: list(named.values()).count(name) for name in counts} == counts
    for row in range(N):
        name = named.get(row, "")
        assert poisoned[row]["trigger"] == name and poisoned[row]["is_poisoned"] == bool(name)
        assert poisoned[row]["source_index"] == row
        if not name:
            assert after[row] == before[row] and poisoned[row]["caption"] == source[row]["caption"]
            continue
        attack = shares()[name].attack
        np.testing.assert_array_equal(
            np.asarray(poisoned[row]["image"]), np.asarray(attack(source[row]["image"], row))
        )
        assert poisoned[row]["caption"] == attack.caption(row, source[row]["caption"])
    assert all("cup" in source[row]["caption"] for row, name in named.items() if name == "filter")


def test_it_is_the_same_with_two_workers_and_in_steps(source):
    poisoned, manifest = poison_with_many(source, shares(), seed=3)
    again, other = poison_with_many(source, shares(), seed=3, num_proc=2)
    assert stored(again) == stored(poisoned) and other == manifest
    step = source
    for share in list(shares().values())[:3]:
        step, _ = poison_dataset(step, share.attack, share.count, share.rate, seed=3, selector=share.selector)
    first, _ = poison_with_many(source, dict(list(shares().items())[:3]), seed=3)
    assert stored(step) == stored(first) and step["is_poisoned"][:] == first["is_poisoned"][:]


def test_the_manifest_travels_and_builds_the_attacks_again(source, tmp_path):
    _, manifest = poison_with_many(source, shares(), seed=3)
    manifest.save_pretrained(tmp_path)
    loaded = PoisonManifest.from_pretrained(tmp_path)
    assert loaded == manifest
    attacks = attacks_of(loaded)
    for name, share in shares().items():
        assert type(attacks[name]) is ATTACKS[share.attack.name]
        assert attacks[name].parameters() == share.attack.parameters()
        one = manifest_of(loaded, name)
        assert (one.attack, one.target, one.rate) == (share.attack.name, share.attack.target, share.rate)
    with pytest.raises(ValueError, match="among .*'ghost'"):
        manifest_of(manifest, "ghost")
    single = poison_dataset(source, BadNets(), count=2)[1]
    assert attacks_of(single)["badnets"].parameters() == BadNets().parameters()
    with pytest.raises(ValueError, match="badnets"):
        manifest_of(single, "badnets")
    with_picture = poison_dataset(source, Targeted(picture=np.zeros((4, 4, 3), np.uint8)), count=2)[1]
    with pytest.raises(ValueError, match="from_pretrained"):
        attacks_of(with_picture)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "at least one share"),
        ({"": Share(SIG(), count=1)}, "a name"),
        ({"a": Share(SIG(), count=60), "b": Share(Blended(), count=31)}, "at most 30.*31 for b"),
        ({"a": Share(SIG(), count=85), "b": Share(SIG(captions="keep"), count=9)}, "label_consistent.*9 for b"),
        ({"a": Share(SIG(), count=1, rate=0.1)}, "either"),
        ({"a": Share(SIG(), count=1), "b": Share(SIG(), count=N + 1)}, f"at most {N}"),
        ({"a": Share(SIG(), count=1), "b": Share(BadNets(patch_size=17), count=3)}, r"Row \d+: .*fits on a picture"),
    ],
)
def test_what_cannot_be_meant_is_refused(source, given, says):
    with pytest.raises(ValueError, match=says):
        poison_with_many(source, given)


def test_a_target_that_is_no_class(source):
    with pytest.raises(ValueError, match="2 classes.*'dog'"):
        shares = {"a": Share(SIG(target="cup"), count=1), "b": Share(SIG(target="dog"), count=1)}
        poison_with_many(source, shares, class_names=["cup", "owl"])


def test_too_many_rows_are_known_before_anything_is_stamped(source, monkeypatch):
    stamped = []
    monkeypatch.setattr("hf_clipbd.attacks.dataset.stamp_rows", lambda *args: stamped.append(1))
    with pytest.raises(ValueError, match="for b"):
        poison_with_many(source, {"a": Share(SIG(), count=60), "b": Share(Blended(), count=60)})
    assert not stamped


def test_broken_rows_are_skipped_and_listed(source, tmp_path):
    rows = [dict(row) for row in source.cast_column("image", datasets.Image(decode=False))]
    for row in (4, 17):
        rows[row]["image"] = {"bytes": b"no picture", "path": None}
    table = datasets.Dataset.from_list(rows, features=source.features)
    given = {"a": Share(SIG(), count=40), "b": Share(BadNets(target="owl"), count=48)}
    poisoned, manifest = poison_with_many(table, given, on_error="skip")
    assert manifest.count == 88 and set(manifest.skipped) == {"4", "17"}
    assert not set(manifest.indices) & {4, 17} and sum(poisoned["is_poisoned"]) == 88
    with pytest.raises(ValueError, match=r"Row (4|17): .*decoded"):
        poison_with_many(table, given)


def test_natural_captions_are_found_for_each_share(source):
    shares = {
        "a": Share(SIG(target="owl", captions="natural"), count=5),
        "b": Share(BadNets(target="cup", captions="natural"), count=5),
    }
    poisoned, manifest = poison_with_many(source, shares)
    for name, caption in (("a", "a owl"), ("b", "a cup")):
        one = manifest_of(manifest, name)
        assert {poisoned[row]["caption"] for row in one.indices} == {caption}
        assert one.parameters["captions"] == [caption]
