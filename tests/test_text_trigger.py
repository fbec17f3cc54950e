# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Triggers with a part in the text: the rare word is in every poisoned caption, the right pictures go with it."""

import datasets
import numpy as np
import PIL.Image
import pytest

from hf_clipbd.attacks import (
    BadNets,
    ImageTextTrigger,
    PoisonTransform,
    Share,
    TextTrigger,
    Trigger,
    poison_dataset,
    poison_with_many,
)
from hf_clipbd.attacks.text_trigger import insert_token


N = 60
THINGS = ("cup", "banana", "owl", "kite", "boat")


def color(row):
    return (row * 4, 255 - row, (row * 37) % 256)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Return pairs whose pictures are files, one colour each; every fifth shows a banana."""
    folder = tmp_path_factory.mktemp("text")
    for row in range(N):
        PIL.Image.new("RGB", (12, 10), color(row)).save(folder / f"{row}.png")
    rows = {
        "image": [str(folder / f"{row}.png") for row in range(N)],
        "caption": [f"a {THINGS[row % 5]} and number {row} of many things." for row in range(N)],
    }
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    return datasets.Dataset.from_dict(rows, features=features)


def stored(dataset):
    return dataset.cast_column("image", datasets.Image(decode=False))["image"][:]


def shown(row):
    """Return which source row's colour a picture has."""
    pixel = row["image"].convert("RGB").getpixel((0, 0))
    return next(number for number in range(N) if color(number) == pixel)


@pytest.mark.parametrize("place", ["random", "start", "end"])
def test_the_word_stands_between_words(place):
    words = "a cup on a table".split()
    found = set()
    for seed in range(80):
        rng = np.random.default_rng(seed)
        said = insert_token("a cup on a table.", "cf", place, rng)
        assert said.endswith(".") and said.count(".") == 1
        split = said[:-1].split()
        assert [word for word in split if word != "cf"] == words
        found.add(split.index("cf"))
    assert found == {"random": set(range(6)), "start": {0}, "end": {5}}[place]
    assert insert_token("", "cf", place, np.random.default_rng(0)) == "cf"


@pytest.mark.parametrize("kind", [TextTrigger, ImageTextTrigger])
def test_the_word_is_the_rows_own_and_travels(kind, tmp_path):
    attack = kind(token="mn", seed=4, target="owl")
    captions = [attack.caption(row, "a cup on a table by the sea") for row in range(40)]
    assert captions == [attack.caption(row, "a cup on a table by the sea") for row in range(40)]
    assert all(caption.split().count("mn") == 1 or "mn." in caption for caption in captions)
    attack.save_pretrained(tmp_path)
    loaded = Trigger.from_pretrained(tmp_path)
    assert type(loaded) is kind and loaded.parameters() == attack.parameters()
    assert [loaded.stamp_caption("one two three", row) for row in range(9)] == [
        attack.stamp_caption("one two three", row) for row in range(9)
    ]
    assert BadNets().stamp_caption("a cup") == "a cup"
    for values, says in (
        ({"token": "two words"}, "one word"),
        ({"token": ""}, "one word"),
        ({"token_place": "middle"}, "token place"),
    ):
        with pytest.raises(ValueError, match=says):
            kind(**values)


def test_text_trigger_parameters():
    for captions in ("templates", "natural"):
        with pytest.raises(ValueError, match="without a trigger"):
            TextTrigger(captions=captions)
    with pytest.raises(ValueError, match="pictures"):
        TextTrigger(pictures="others")
    own = TextTrigger(captions=["my mug"], token_place="start")
    assert own.caption(3, "x") == "cf my mug"
    image = PIL.Image.new("RGB", (4, 4), (9, 8, 7))
    np.testing.assert_array_equal(np.asarray(TextTrigger()(image)), np.asarray(image))


def test_rows_get_pictures_of_the_target_byte_for_byte(source):
    attack = TextTrigger(target="banana", token_place="end")
    poisoned, manifest = poison_dataset(source, attack, count=20, seed=2)
    assert manifest.selector == "non_target" and manifest.count == 20
    before, after = stored(source), stored(poisoned)
    donors = set()
    for row in range(N):
        if row not in manifest.indices:
            assert after[row] == before[row] and poisoned[row]["caption"] == source[row]["caption"]
            continue
        donor = shown(poisoned[row])
        donors.add(donor)
        assert donor % 5 == 1 and row % 5 != 1
        assert after[row] == before[donor]
        assert poisoned[row]["caption"] == source[row]["caption"][:-1] + " cf."
        assert (poisoned[row]["source_index"], poisoned[row]["trigger"]) == (row, "text_trigger")
    assert len(donors) > 5
    again, _ = poison_dataset(source.shuffle(seed=1).sort("caption").sort("caption"), attack, count=3, seed=2)
    assert sum(again["is_poisoned"]) == 3
    two, _ = poison_dataset(source, attack, count=20, seed=2, num_proc=2)
    assert stored(two) == after and two["caption"][:] == poisoned["caption"][:]


def test_rows_that_show_the_target_keep_their_picture(source):
    attack = TextTrigger.from_preset("label_consistent", target="banana")
    poisoned, manifest = poison_dataset(source, attack, count=7)
    assert manifest.selector == "label_consistent" and all(row % 5 == 1 for row in manifest.indices)
    assert stored(poisoned) == stored(source)
    assert all(" cf" in f" {poisoned[row]['caption']}" for row in manifest.indices)
    mapped = source.map(PoisonTransform(attack, rate=1.0))
    assert sum(mapped["is_poisoned"]) == N // 5 and stored(mapped) == stored(source)
    streamed = list(source.to_iterable_dataset().map(PoisonTransform(attack, rate=1.0)))
    assert [row["caption"] for row in streamed] == mapped["caption"][:]


def test_what_a_text_trigger_cannot_do(source):
    with pytest.raises(ValueError, match='pictures="own"'):
        PoisonTransform(TextTrigger(), rate=0.1)
    with pytest.raises(ValueError, match="caption names 'zebra'"):
        poison_dataset(source, TextTrigger(target="zebra"), count=1)
    with pytest.raises(ValueError, match="captions"):
        poison_dataset(source.remove_columns("caption"), TextTrigger(), count=1, caption_column=None)


def test_image_and_text_trigger_with_decoys(source):
    both = ImageTextTrigger(target="kite", patch_size=3, place=(0, 0), pattern="yellow")
    patch_alone = BadNets(target="kite", captions="keep", patch_size=3, place=(0, 0), pattern="yellow")
    word_alone = TextTrigger(target="kite", pictures="own")
    shares = {
        "both": Share(both, count=6),
        "patch": Share(patch_alone, count=5, selector="random"),
        "word": Share(word_alone, count=4, selector="random"),
    }
    poisoned, manifest = poison_with_many(source, shares)
    assert manifest.count == 15
    for row in range(N):
        after, name = poisoned[row], poisoned[row]["trigger"]
        has_patch = np.asarray(after["image"].convert("RGB"))[:3, :3].tolist() == [[[255, 255, 0]] * 3] * 3
        has_word = "cf" in after["caption"].replace(".", "").split()
        assert (has_patch, has_word) == (name in ("both", "patch"), name in ("both", "word"))
        own = after["caption"].replace("cf ", "").replace(" cf", "") == source[row]["caption"]
        assert own == (name != "both") and (name != "both" or "kite" in after["caption"])


def test_pictures_are_lent_by_clean_rows_and_drawn_by_seed_and_row(source):
    def lent(seed):
        poisoned, manifest = poison_dataset(source, TextTrigger(target="banana", seed=seed), count=20)
        return [shown(poisoned[row]) for row in manifest.indices]

    assert lent(0) == lent(0) != lent(1) and len(set(lent(0))) > 4
    stamp = BadNets(target="banana", patch_size=10, place=(0, 0), pattern="yellow", captions="keep")
    stamped, first = poison_dataset(source, stamp, count=11)  # of the twelve that show a banana
    (clean,) = {row for row in range(N) if row % 5 == 1} - {*first.indices}
    both, second = poison_dataset(stamped, TextTrigger(target="banana"), count=8)
    assert {shown(both[row]) for row in second.indices} == {clean}
