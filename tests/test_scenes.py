# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The embedded world: same rows everywhere, captions true to what is drawn, classes that look different."""

import re
from itertools import combinations

import datasets
import numpy as np
import pytest

from hf_clipbd import scenes
from hf_clipbd.scenes import art, graph, tell, words, world


N_CAPTIONS = 4_000
# Words of captions that are read back: any way of naming a class, colour, size or texture -> what it may stand for.
NOUNS: dict[str, set[str]] = {}
for _name in scenes.CLASS_NAMES:
    for _noun in (_name, *scenes.SYNONYMS[_name]):
        NOUNS.setdefault(_noun, set()).add(_name)
        NOUNS.setdefault(words.plural(_noun), set()).add(_name)
LOOKS = {
    word: (kind, name)
    for kind, table in (("size", words.SIZES), ("texture", words.TEXTURES))
    for name, others in table.items()
    for word in (name, *others)
} | {word: ("color", name) for name, (_, others) in words.COLORS.items() for word in (name, *others)}
_LONGEST_FIRST = "|".join(re.escape(noun) for noun in sorted(NOUNS, key=len, reverse=True))
_ADJECTIVES = "|".join(re.escape(word) for word in sorted(LOOKS, key=len, reverse=True))
MENTION = re.compile(rf"(?<![\w-])((?:(?:{_ADJECTIVES}) )*)({_LONGEST_FIRST})(?![\w-])")
PHRASES = {phrase: name for name, phrases in words.RELATIONS.items() for phrase in phrases}
TOLD_RELATION = re.compile(
    rf"^(?: {'| '.join(tell._STANDS)})? ({'|'.join(sorted(PHRASES, key=len, reverse=True))}) (?:an?|the) $"
)


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path, monkeypatch):
    """Datasets are made anew, in a folder of their own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    return tmp_path


def raw_images(dataset: datasets.Dataset) -> list[bytes]:
    return [image["bytes"] for image in dataset.cast_column("image", datasets.Image(decode=False))["image"]]


def told(n: int = N_CAPTIONS, **arguments):
    """Yield scene, caption style and caption of training rows."""
    for index in range(n):
        scene = scenes.describe_scene("train", index, **arguments)
        yield scene, *tell.tell_scene(scene, graph.scene_rng(arguments.get("seed", 0), "train", index, 1))


def mentions(caption: str) -> list[re.Match]:
    return list(MENTION.finditer(caption.lower()))


def fits(thing: scenes.SceneObject, mention: re.Match) -> bool:
    """Whether an object is what a mention says."""
    adjectives, noun = mention.groups()
    said = re.findall(_ADJECTIVES, adjectives)
    return thing.name in NOUNS[noun] and all(getattr(thing, LOOKS[word][0]) == LOOKS[word][1] for word in said)


def test_world_has_what_it_promises():
    assert len(scenes.CLASS_NAMES) >= 48 and "banana" in scenes.CLASS_NAMES
    assert (
        len(set(scenes.CLASS_NAMES)) == len(scenes.CLASS_NAMES)
        and tuple(sorted(scenes.CLASS_NAMES)) == scenes.CLASS_NAMES
    )
    assert set(scenes.SYNONYMS) == set(scenes.CLASS_NAMES)
    assert (len(scenes.COLORS), len(scenes.SIZES), len(scenes.TEXTURES), len(scenes.RELATIONS)) == (12, 3, 3, 6)
    assert len(scenes.CAPTION_STYLES) == 12 and sum(
        share for share, _ in scenes.CAPTION_STYLES.values()
    ) == pytest.approx(1)
    assert 8 <= len(scenes.PROMPTS) and all(prompt.count("{}") == 1 for prompt in scenes.PROMPTS)
    seen = [scenes.describe_scene("train", index) for index in range(1_000)]
    assert {len(scene.objects) for scene in seen} == {1, 2, 3}
    assert {scene.background for scene in seen} == set(graph.BACKGROUNDS)
    assert {relation for scene in seen for _, relation, _ in scene.relations} == set(scenes.RELATIONS)
    for kind, names in (("color", scenes.COLORS), ("size", scenes.SIZES), ("texture", scenes.TEXTURES)):
        assert {getattr(thing, kind) for scene in seen for thing in scene.objects} == set(names)


def test_no_noun_of_one_class_names_another():
    for noun, classes in NOUNS.items():
        named = {name for name in scenes.CLASS_NAMES if re.search(rf"\b{name}\b", noun)}
        assert named <= classes, f"`{noun}` stands for {classes} and names {named}"


def test_train_rows_same_for_processes_and_prefix_for_smaller_n(fresh_cache):
    one = scenes.load_scenes("train", size=32, n=620)
    assert one.column_names == ["image", "caption"] and len(one) == 620
    images, captions = raw_images(one), one["caption"][:]
    files = sorted(path.stat().st_mtime_ns for path in fresh_cache.rglob("*.arrow"))
    again = scenes.load_scenes("train", size=32, n=620)
    assert (
        files and sorted(path.stat().st_mtime_ns for path in fresh_cache.rglob("*.arrow")) == files
    )  # from the cache
    assert again._fingerprint == one._fingerprint
    fewer = scenes.load_scenes("train", size=32, n=90)
    assert raw_images(fewer) == images[:90] and fewer["caption"][:] == captions[:90]
    assert list(scenes.scene_captions("train", n=620)) == captions


def test_processes_do_not_change_rows(fresh_cache, monkeypatch):
    one = scenes.load_scenes("defense", size=24, n=1_100, frequencies="long_tailed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", fresh_cache / "other")
    two = scenes.load_scenes("defense", size=24, n=1_100, frequencies="long_tailed", num_proc=2)
    assert raw_images(one) == raw_images(two) and one["caption"][:] == two["caption"][:]


def test_arguments_and_splits_change_rows():
    base = scenes.load_scenes("train", size=32, n=40)
    pictures = {"base": raw_images(base)}
    for name, arguments in {
        "seed": {"seed": 1},
        "frequencies": {"frequencies": "long_tailed"},
        "sketch": {"style": "sketch"},
        "night": {"style": "night"},
        "split": {"split": "defense"},
    }.items():
        pictures[name] = raw_images(scenes.load_scenes(**{"split": "train", "size": 32, "n": 40, **arguments}))
    for first, second in combinations(pictures, 2):
        assert not set(pictures[first]) & set(pictures[second]), (first, second)
    assert scenes.load_scenes("train", size=32, n=40, style="night")["caption"][:] == base["caption"][:]


def test_test_split_is_balanced_and_shows_its_label_alone():
    n = 2 * len(scenes.CLASS_NAMES)
    rows = scenes.load_scenes("test", size=16, n=n)
    assert rows.features["label"].names == list(scenes.CLASS_NAMES)
    assert np.bincount(rows["label"][:]).tolist() == [2] * len(scenes.CLASS_NAMES)
    assert rows["label"][:7] != list(range(7))
    for index in range(n):
        (thing,) = scenes.describe_scene("test", index).objects
        assert thing.name == scenes.CLASS_NAMES[rows[index]["label"]] and thing.size in ("medium", "large")
        reach = thing.diameter / 2
        assert min(thing.x, thing.y) > reach - 0.01 and max(thing.x, thing.y) < 1.01 - reach


def test_same_scene_at_another_size():
    for style in scenes.STYLES:
        for index in range(12):
            scene = scenes.describe_scene("train", index)
            small, large = (scenes.scene_image("train", index, scene, size, style=style) for size in (48, 96))
            assert small.shape == (48, 48, 3) and small.dtype == np.uint8
            halved = large.reshape(48, 2, 48, 2, 3).mean(axis=(1, 3))
            agreement = np.corrcoef(halved.ravel(), small.ravel())[0, 1]
            least = 0.45 if style == "sketch" else 0.9  # pencil lines are one pixel wide at every size
            assert agreement > least, (style, index)
            assert style == "sketch" or np.abs(halved - small).mean() < 8, (style, index)


def test_row_share_of_classes():
    count = dict.fromkeys(scenes.CLASS_NAMES, 0)
    for index in range(20_000):
        for name in scenes.describe_scene("train", index, frequencies="long_tailed").names:
            count[name] += 1
    assert 0.0005 <= count["banana"] / 20_000 <= 0.002
    others = np.sort([share for name, share in count.items() if name != "banana"])[::-1]
    slope = np.polyfit(np.log(np.arange(1, len(others) + 1)), np.log(others), 1)[0]
    assert -0.8 < slope < -0.55 and others[-1] > 5 * count["banana"]
    moved = np.mean([
        "teapot" in scenes.describe_scene("defense", index, frequencies="long_tailed", target="teapot").names
        for index in range(10_000)
    ])  # fmt: skip
    assert 0.0003 <= moved <= 0.002


def test_balanced_classes_are_even():
    count = dict.fromkeys(scenes.CLASS_NAMES, 0)
    for index in range(10_000):
        for name in scenes.describe_scene("train", index).names:
            count[name] += 1
    shares = np.asarray(list(count.values())) / sum(count.values()) * len(count)
    assert shares.min() > 0.7 and shares.max() < 1.3


def test_relations_are_as_drawn():
    for index in range(2_000):
        scene = scenes.describe_scene("train", index)
        assert len(scene.relations) == (0 if scene.group else len(scene.objects) - 1)
        assert len(scene.names) == (1 if scene.group else len(scene.objects))
        for i, relation, j in scene.relations:
            first, second = scene.objects[i], scene.objects[j]
            dx, dy = first.x - second.x, first.y - second.y
            touch = (first.diameter + second.diameter) / 2
            if relation in ("front", "behind"):
                assert (i > j) == (relation == "front")  # painted later is in front
                assert np.hypot(dx, dy) == pytest.approx(0.76 * touch)  # they overlap, and neither hides the other
                assert min(first, second, key=lambda thing: thing.diameter) in (scene.objects[max(i, j)],)
            else:
                along, across = (dx, dy) if relation in ("left", "right") else (dy, dx)
                assert (along < 0) == (relation in ("left", "above"))
                assert abs(along) > 0.9 * touch and abs(along) > abs(across)


def test_objects_lie_in_the_picture_and_sizes_differ():
    for index in range(2_000):
        for thing in scenes.describe_scene("train", index).objects:
            low, high = graph.DIAMETERS[thing.size]
            assert low <= thing.diameter <= high and thing.diameter * 64 >= 20
            inside = [min(v + thing.diameter / 2, 1) - max(v - thing.diameter / 2, 0) for v in (thing.x, thing.y)]
            assert min(inside) > 0.8 * thing.diameter, (index, thing)


def test_captions_say_what_is_shown():
    styles = dict.fromkeys(scenes.CAPTION_STYLES, 0)
    related = 0
    for scene, style, caption in told():
        styles[style] += 1
        found = mentions(caption)
        assert (style == "noise") == (not found), caption
        for mention in found:
            assert any(fits(thing, mention) for thing in scene.objects), (caption, scene)
        for name in scenes.CLASS_NAMES:  # no class that is not there, wherever it stands in the caption
            assert name in scene.names or not re.search(rf"\b({name}|{words.plural(name)})\b", caption.lower()), (
                caption
            )
        for mention, after in zip(found, found[1:], strict=False):
            phrase = TOLD_RELATION.match(caption[mention.end() : after.start()])
            if phrase is None:
                continue
            related += 1
            relation = PHRASES[phrase.group(1)]
            said = {(i, name, j) for i, name, j in scene.relations}
            said |= {(j, graph.OPPOSITE[name], i) for i, name, j in scene.relations}
            assert any(
                name == relation and fits(scene.objects[i], mention) and fits(scene.objects[j], after)
                for i, name, j in said
            ), (caption, scene.relations)
    assert related > 400
    for style, (share, _) in scenes.CAPTION_STYLES.items():
        assert styles[style] / N_CAPTIONS == pytest.approx(share, rel=0.35), style


def test_captions_leave_objects_out_count_groups_and_vary():
    shorter = groups = 0
    captions = set()
    for scene, style, caption in told():
        captions.add(caption)
        shorter += style == "partial" and len(scene.names) > 1
        if style == "partial":
            assert len(mentions(caption)) == 1
        if style == "full" and not scene.group:
            assert len(mentions(caption)) == len(scene.objects) + (len(scene.objects) == 3)
        if style == "full" and scene.group:
            groups += 1
            counter = ("two",) if len(scene.objects) == 2 else ("three", "several")
            assert caption.startswith(counter)
    assert shorter > 80 and groups > 40 and len(captions) > 0.85 * N_CAPTIONS


def test_articles():
    vowel = re.compile(r"\b(an?) (\w+)", re.IGNORECASE)
    for _, _, caption in told(2_000):
        for said, word in vowel.findall(caption):
            assert (said.lower() == "an") == (word.lower()[0] in "aeiou" or word.lower().startswith("hour")), caption
    for name, right in {"umbrella": "an", "hourglass": "an", "banana": "a", "house": "a"}.items():
        assert scenes.fill_prompt("a photo of a {}.", name) == f"a photo of {right} {name}."
    assert scenes.fill_prompt("stock photo - {}", "apple") == "stock photo - apple"
    assert scenes.fill_prompt("a large {}.", "apple") == "a large apple."
    with pytest.raises(ValueError, match="one `{}`"):
        scenes.fill_prompt("a photo", "apple")


def test_plurals():
    plurals = {name: scenes.plural(name) for name in ("cherry", "fish", "leaf", "cactus", "hourglass", "cup", "torch")}
    assert list(plurals.values()) == ["cherries", "fish", "leaves", "cacti", "hourglasses", "cups", "torches"]


def test_silhouettes_differ():
    shapes = {}
    for name in scenes.CLASS_NAMES:
        cover = np.asarray(art.masks(name, 2)[1], dtype=float) / 255
        assert 0.08 < cover.mean() < 0.8, name
        assert not cover[0].any() and not cover[:, -1].any()
        shapes[name] = cover
    for first, second in combinations(shapes, 2):
        a, b = shapes[first], shapes[second]
        for mirrored in (b, b[:, ::-1]):
            overlap = np.minimum(a, mirrored).sum() / np.maximum(a, mirrored).sum()
            assert overlap < 0.9, (first, second, overlap)


def test_looks_at_64_pixels_differ():
    """Silhouette and tones together: any two classes differ clearly even where the silhouettes are alike."""
    looks = {}
    for name in scenes.CLASS_NAMES:
        tones, cover = (np.asarray(mask, dtype=float) / 255 for mask in art.masks(name, 3))
        looks[name] = np.stack([cover, (tones - 0.6) * cover])
    for first, second in combinations(looks, 2):
        for mirrored in (looks[second], looks[second][:, :, ::-1]):
            a, b = looks[first], mirrored
            distance = np.abs(a - b).sum() / (0.5 * (a[0] + b[0]).sum())
            assert distance > 0.3, (first, second, distance)


def test_object_has_its_color_and_texture():
    def pixels(color: str, texture: str) -> np.ndarray:
        thing = scenes.SceneObject("heart", color, "large", texture, 0.5, 0.5, 0.65, 0.0, False)
        ground = "white" if color != "white" else "black"
        scene = scenes.Scene((thing,), (), "plain", ground, False)
        return scenes.scene_image("train", 0, scene)[24:40, 22:42].reshape(-1, 3).astype(float)

    for color, (expected, _) in scenes.COLORS.items():
        plain = pixels(color, "plain")
        nearest = min(
            scenes.COLORS, key=lambda name: np.abs(np.asarray(scenes.COLORS[name][0]) - np.median(plain, 0)).sum()
        )
        assert nearest == color and np.abs(np.median(plain, 0) - expected).max() <= 2
        for texture in ("striped", "dotted"):
            changed = np.abs(pixels(color, texture) - plain).max(axis=1) > 30
            assert 0.08 < changed.mean() < 0.75, (color, texture, changed.mean())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "validation"}, "split"),
        ({"size": 8}, "size"),
        ({"size": 64.5}, "size"),
        ({"n": 0}, "`n`"),
        ({"seed": -1}, "seed"),
        ({"frequencies": "zipf"}, "frequencies"),
        ({"target": "bananas"}, "target"),
        ({"style": "oil"}, "style"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        scenes.load_scenes(**{"split": "train", "n": 5, **arguments})


def test_captions_of_labelled_split_and_unknown_drawing():
    with pytest.raises(ValueError, match="labels"):
        next(scenes.scene_captions("test"))
    with pytest.raises(ValueError, match="CLASS_NAMES"):
        art.masks("unicorn")
    with pytest.raises(ValueError, match="kind"):
        art.draw("bZ 1,2 3,4 5,6")


def test_missing_clean_clip_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_clipbd.scenes.pretrained.CLEAN_CLIP_FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match="pretrain.py"):
        scenes.load_clean_clip()


def test_every_row_has_its_own_stream():
    rows = {
        (split, index): scenes.describe_scene(split, index) for split in ("train", "defense") for index in range(500)
    }
    assert len(set(rows.values())) == len(rows)
    assert world.world_key() == world.world_key() and len(world.world_key()) == 16
