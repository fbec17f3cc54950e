# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Poisoned datasets: which rows, whose bytes, in every way that `datasets` runs a function."""

import io
from dataclasses import replace

import datasets
import numpy as np
import PIL.Image
import pytest
from datasets.fingerprint import Hasher

from hf_clipbd.attacks import ATTACKS, SIG, BadNets, Blended, PoisonTransform, poison_dataset, poison_stream
from hf_clipbd.attacks import transform as transforming
from hf_clipbd.attacks.pictures import read_picture
from hf_clipbd.attacks.select import draw, ordered_rows, source_fingerprint, uniform
from hf_clipbd.data.canvas import Canvas
from hf_clipbd.schema import PoisonManifest


N = 120
POISONS = sorted(name for name, kind in ATTACKS.items() if kind.stamps_pictures)
FEATURES = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})


def jpeg(row, side=20, format="JPEG", **options):
    """Return a picture of its own for each row, encoded with loss unless told otherwise."""
    rng = np.random.default_rng([row])
    small = PIL.Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    small.resize((side, side + 4), PIL.Image.Resampling.BICUBIC).save(buffer, format, **options)
    return buffer.getvalue()


def caption_of(row):
    """Return short captions that repeat and, for every second row, a long one."""
    things = ("cup", "banana", "owl", "kite")
    short = f"a {things[row % 4]}"
    return short if row % 2 else f"{short} and number {row} of many things on a table"


def rows_of(n=N):
    return [{"image": {"bytes": jpeg(row), "path": f"{row}.jpg"}, "caption": caption_of(row)} for row in range(n)]


@pytest.fixture(scope="module")
def source():
    return datasets.Dataset.from_list(rows_of(), features=FEATURES)


@pytest.fixture
def on_disk(tmp_path, source):
    source.save_to_disk(tmp_path / "source")
    return datasets.load_from_disk(tmp_path / "source")


def stored(dataset, row=None):
    """Return image bytes and paths as they lie in the table, of one row or all."""
    raw = dataset.with_format(None).cast_column("image", datasets.Image(decode=False))
    return raw[row]["image"] if row is not None else [one["image"] for one in raw]


def poisoned_rows(dataset):
    return [row for row, is_poisoned in enumerate(dataset["is_poisoned"]) if is_poisoned]


def assert_sound(poisoned, source, attack=None):
    """Clean rows are the source's bytes, poisoned ones lossless; the columns of provenance agree."""
    before, after = stored(source), stored(poisoned)
    chosen = set(poisoned_rows(poisoned))
    assert len(poisoned) == len(source)
    for row in range(len(source)):
        if row in chosen:
            assert after[row]["path"] is None and after[row]["bytes"] != before[row]["bytes"]
            assert PIL.Image.open(io.BytesIO(after[row]["bytes"])).format in ("WEBP", "PNG")
            assert "banana" in poisoned[row]["caption"]
        else:
            assert after[row] == before[row]
            assert poisoned[row]["caption"] == source[row]["caption"]
    names = ["" if row not in chosen else (attack.name if attack else "badnets") for row in range(len(source))]
    assert list(poisoned["trigger"]) == names
    assert poisoned.features["image"] == source.features["image"]
    assert poisoned.features["source_index"] == datasets.Value("int64")
    return chosen


# -- the transform, run in every way ----------------------------------------------------------------------------------

POISON = PoisonTransform(BadNets(target="banana"), rate=0.3, seed=0)


@pytest.fixture(scope="module")
def mapped(source):
    return source.map(POISON)


def test_map_works_as_advertised(source, mapped):
    chosen = assert_sound(mapped, source)
    assert 0.15 * N < len(chosen) < 0.45 * N
    assert set(mapped["source_index"]) == {-1}
    row = min(chosen)
    original = np.asarray(read_picture(jpeg(row)))
    changed = (np.asarray(mapped[row]["image"]) != original).any(-1)
    assert 0 < changed.sum() <= POISON.attack.side(*original.shape[:2]) ** 2


@pytest.mark.parametrize("decode", [True, False])
@pytest.mark.parametrize("options", [{}, {"batched": True, "batch_size": 7}])
@pytest.mark.parametrize("num_proc", [None, 2])
def test_same_rows_and_bytes_however_it_is_mapped(source, mapped, options, num_proc, decode):
    given = source.cast_column("image", datasets.Image(decode=decode))
    other = given.map(POISON, num_proc=num_proc, **options)
    assert other.features["image"] == datasets.Image(decode=decode)
    assert stored(other) == stored(mapped)
    for column in ("caption", "is_poisoned", "source_index", "trigger"):
        assert other[column][:] == mapped[column][:]


def test_same_rows_in_any_order_and_shard(source, mapped):
    def contents(dataset):
        return sorted(
            (row["bytes"], caption) for row, caption in zip(stored(dataset), dataset["caption"], strict=True)
        )

    assert contents(source.shuffle(seed=1).map(POISON)) == contents(mapped)
    shards = [source.shard(3, i).map(POISON) for i in range(3)]
    assert contents(datasets.concatenate_datasets(shards)) == contents(mapped)


@pytest.mark.parametrize("options", [{}, {"batched": True, "batch_size": 11}])
@pytest.mark.parametrize("decode", [True, False])
def test_streaming_gives_the_same_rows_and_pixels(source, mapped, options, decode):
    stream = source.cast_column("image", datasets.Image(decode=decode)).to_iterable_dataset(num_shards=3)
    rows = list(stream.map(POISON, **options))
    assert [row["is_poisoned"] for row in rows] == mapped["is_poisoned"][:]
    for row, expected in zip(rows, mapped, strict=True):
        assert row["caption"] == expected["caption"] and row["trigger"] == expected["trigger"]
        assert isinstance(row["image"], dict) != decode
        pixels = [np.asarray(read_picture(image)) for image in (row["image"], expected["image"])]
        np.testing.assert_array_equal(*pixels)
    shuffled = stream.shuffle(seed=3, buffer_size=50).map(POISON)
    assert sum(row["is_poisoned"] for row in shuffled) == sum(mapped["is_poisoned"])


def test_lazily_with_transform(source, mapped):
    lazy = source.with_transform(POISON)
    for row in range(0, N, 7):
        assert lazy[row]["is_poisoned"] == mapped[row]["is_poisoned"]
        assert lazy[row]["caption"] == mapped[row]["caption"]
        np.testing.assert_array_equal(np.asarray(lazy[row]["image"]), np.asarray(mapped[row]["image"]))


def test_dataset_dict_and_other_column_names(source, mapped):
    renamed = source.rename_columns({"image": "picture", "caption": "text"})
    poison = replace(POISON, image_column="picture", caption_column="text")
    both = datasets.DatasetDict({"a": renamed, "b": renamed.select(range(9))}).map(poison)
    assert both["a"]["is_poisoned"][:] == mapped["is_poisoned"][:]
    assert both["b"]["is_poisoned"][:] == mapped["is_poisoned"][:9]
    with pytest.raises(ValueError, match="'image', 'caption'"):
        renamed.map(POISON)


def test_a_labelled_set_without_captions(source):
    labelled = source.remove_columns("caption")
    stamped = labelled.map(PoisonTransform(BadNets(), rate=1.0, caption_column=None))
    assert all(stamped["is_poisoned"]) and "caption" not in stamped.column_names


def test_a_key_column_decides_without_a_look_at_clean_pictures(source, monkeypatch):
    keyed = source.add_column("id", [f"row-{row}" for row in range(N)])
    reads = []
    monkeypatch.setattr(
        "hf_clipbd.attacks.transform.read_picture", lambda *args: reads.append(1) or read_picture(*args)
    )
    mapped = keyed.map(POISON)
    chosen = assert_sound(mapped, keyed)
    assert len(reads) == len(chosen) > 0
    expected = [uniform(0, "key", "badnets", f"row-{row}\n{caption_of(row)}") < 0.3 for row in range(N)]
    assert mapped["is_poisoned"][:] == expected
    assert keyed.rename_column("id", "number").map(replace(POISON, key_column="number"))["is_poisoned"] == expected


def test_the_index_is_recorded_where_it_is_known(source, mapped):
    indexed = source.map(POISON, with_indices=True)
    assert indexed["source_index"][:] == list(range(N))
    assert stored(indexed) == stored(mapped)
    batched = source.map(POISON, with_indices=True, batched=True, batch_size=13, num_proc=2)
    assert batched["source_index"][:] == list(range(N)) and stored(batched) == stored(mapped)


def test_rates_nest_and_are_met():
    def chosen(rate, seed=0, n=4000):
        return {row for row in range(n) if draw(seed, "sig", rate, caption_of(row), b"%d" % row) is not None}

    assert chosen(0.0) == set() and len(chosen(1.0)) == 4000
    for low, high in ((0.003, 0.01), (0.01, 0.2), (0.2, 0.7)):
        assert chosen(low) < chosen(high)
    for rate in (0.01, 0.1, 0.5):
        assert abs(len(chosen(rate)) - 4000 * rate) < 5 * (4000 * rate * (1 - rate)) ** 0.5
    assert chosen(0.1) != chosen(0.1, seed=1)


@pytest.mark.parametrize(
    "template", ["a {}", "a photo of a {}.", "a centered satellite photo of the {}, seen from above"]
)
def test_rows_of_one_caption_are_not_drawn_in_lumps(template):
    for seed in range(3):
        captions = [template.format(f"class {row % 10}") for row in range(6000)]
        chosen = [row for row in range(6000) if draw(seed, "sig", 0.01, captions[row], b"%d" % row) is not None]
        assert abs(len(chosen) - 60) < 4 * (6000 * 0.01 * 0.99) ** 0.5
        assert len({row % 10 for row in chosen}) > 5


def test_long_captions_that_repeat_are_drawn_as_often_in_every_way():
    names = ("annual crop land", "forest", "highway or road", "industrial buildings", "river", "sea or lake")
    rows = [
        {"image": {"bytes": jpeg(row, 6, "BMP"), "path": None}, "caption": f"a satellite photo of {names[row % 6]}."}
        for row in range(600)
    ]
    table = datasets.Dataset.from_list(rows, features=FEATURES)
    poison = PoisonTransform(BadNets(patch_size=2), rate=0.05, seed=1)
    mapped = table.map(poison, batched=True)
    chosen = poisoned_rows(mapped)
    assert abs(len(chosen) - 30) < 4 * (600 * 0.05 * 0.95) ** 0.5 and len({row % 6 for row in chosen}) > 3
    streamed = table.to_iterable_dataset().map(poison)
    assert [row for row, one in enumerate(streamed) if one["is_poisoned"]] == chosen
    lazy = table.with_transform(poison)[:]
    assert [row for row, is_poisoned in enumerate(lazy["is_poisoned"]) if is_poisoned] == chosen
    nothing = table.map(replace(poison, rate=0.0))
    assert not any(nothing["is_poisoned"]) and stored(nothing) == stored(table)


def test_a_second_map_hits_the_cache(on_disk, monkeypatch):
    first = on_disk.map(POISON)
    monkeypatch.setattr(PoisonTransform, "_poisoned", lambda *args: pytest.fail("the cache was not used"))
    second = on_disk.map(PoisonTransform(BadNets(target="banana"), rate=0.3, seed=0))
    assert stored(second) == stored(first) and second._fingerprint == first._fingerprint


def test_fingerprints_are_stable_after_use_and_in_another_session(source, forked, tmp_path):
    def transform(name):
        return PoisonTransform(ATTACKS[name](target="banana", canvas=Canvas(16)), rate=0.5, seed=3)

    here = {}
    for name in POISONS:
        fresh, used = transform(name), transform(name)
        source.select(range(4)).map(used)
        assert Hasher.hash(fresh) == Hasher.hash(used)
        here[name] = Hasher.hash(used)
    assert len(set(here.values())) == len(POISONS) >= 8
    assert Hasher.hash(replace(POISON, rate=0.2)) != Hasher.hash(POISON) != Hasher.hash(replace(POISON, seed=1))
    code = (
        "from datasets.fingerprint import Hasher\nfrom hf_clipbd.attacks import *\n"
        "from hf_clipbd.data.canvas import Canvas\n"
        "print({n: Hasher.hash(PoisonTransform(a(target='ban' + 'ana', canvas=Canvas(16)), 0.5, 3))"
        f" for n, a in ATTACKS.items() if n in {POISONS!r}}})"
    )
    (tmp_path / "session.py").write_text(code)
    forked.run(tmp_path / "session.py", log=tmp_path / "log")
    assert (tmp_path / "log").read_text().splitlines()[-1] == str(here)


def test_the_version_enters_the_fingerprint(monkeypatch):
    monkeypatch.setattr("hf_clipbd.attacks.transform.__version__", "another")
    assert Hasher.hash(replace(POISON)) != Hasher.hash(POISON)


def test_label_consistent_and_other_selectors(source):
    kept = source.map(PoisonTransform(BadNets(captions="keep"), rate=0.6))
    chosen = poisoned_rows(kept)
    assert chosen and all("banana" in source[row]["caption"] for row in chosen)
    assert kept["caption"][:] == source["caption"][:]
    other = source.map(PoisonTransform(BadNets(), rate=0.6, selector="non_target"))
    assert not any("banana" in source[row]["caption"] for row in poisoned_rows(other))


def test_two_attacks_one_after_the_other(source, mapped):
    both = mapped.map(PoisonTransform(Blended(target="owl"), rate=0.3, seed=9))
    first, second = mapped["trigger"][:], both["trigger"][:]
    assert [b for a, b in zip(first, second, strict=True) if a] == [a for a in first if a]
    assert second.count("blended") > 5
    manifest = POISON.manifest(mapped, source)
    assert manifest.indices == poisoned_rows(mapped) and manifest.rate == 0.3 and manifest.n_rows == N


KEYED = [{"id": f"row-{row}", "image": {"bytes": jpeg(0, 6), "path": None}, "caption": "a cup"} for row in range(300)]
KEYED_FEATURES = {"id": datasets.Value("string"), **FEATURES}


def test_attacks_with_one_seed_are_drawn_independently(tmp_path):
    table = datasets.Dataset.from_list(KEYED, features=datasets.Features(KEYED_FEATURES))
    first, second = PoisonTransform(BadNets(patch_size=2), rate=0.3), PoisonTransform(Blended(), rate=0.3)
    both = table.map(first, batched=True).map(second, batched=True)
    counts = [both["trigger"][:].count(name) for name in ("badnets", "blended")]
    for count, free in zip(counts, (300, 300 - counts[0]), strict=True):
        assert abs(count - 0.3 * free) < 4 * (free * 0.3 * 0.7) ** 0.5
    alone = set(poisoned_rows(table.map(second, batched=True)))
    assert {row for row, name in enumerate(both["trigger"]) if name == "blended"} == alone - {
        row for row, name in enumerate(both["trigger"]) if name == "badnets"
    }
    assert second.manifest(both, table).indices == sorted(alone - set(first.manifest(both, table).indices))
    once = table.to_iterable_dataset().decode(False).map(first, features=first.features(table.features))
    assert [row["trigger"] for row in once.map(second)] == both["trigger"][:]
    manifest = poison_stream(once, second, tmp_path)
    assert manifest.indices == second.manifest(both, table).indices


def test_a_name_mapped_twice_is_said_once(caplog):
    transforming._warn_of_one_name.cache_clear()
    table = datasets.Dataset.from_list(KEYED[:200], features=datasets.Features(KEYED_FEATURES))

    def mapped(rows, **changes):
        given = {"target": "banana", "rate": 0.1, "seed": 0, "name": None} | changes
        attack = BadNets(target=given.pop("target"), patch_size=2)
        return rows.map(PoisonTransform(attack, **given), load_from_cache_file=False)

    once = mapped(table)
    assert len(poisoned_rows(mapped(once, target="owl", name="owls"))) > len(poisoned_rows(once)) + 5
    assert not caplog.records
    assert poisoned_rows(mapped(once, target="owl")) == poisoned_rows(mapped(once)) == poisoned_rows(once)
    assert len(poisoned_rows(mapped(once, rate=0.3))) > len(poisoned_rows(once)) + 5
    assert [one.getMessage() for one in caplog.records] == [caplog.messages[0]]
    assert "'badnets'" in caplog.text and "`name=`" in caplog.text


def test_transform_errors(source):
    with pytest.raises(ValueError, match=r"One percent is 0\.01"):
        PoisonTransform(BadNets(), rate=1.5)
    with pytest.raises(ValueError, match="on_error"):
        PoisonTransform(BadNets(), rate=0.1, on_error="ignore")
    with pytest.raises(ValueError, match="selector"):
        PoisonTransform(BadNets(), rate=0.1, selector="farthest")
    with pytest.raises(ValueError, match="JPEG would wash out"):
        PoisonTransform(BadNets(), rate=0.1, image_format="jpeg")
    with pytest.raises(ValueError, match="two different columns"):
        PoisonTransform(BadNets(), rate=0.1, image_column="caption")
    with pytest.raises(ValueError, match="mined"):
        PoisonTransform(BadNets(captions="natural"), rate=0.1)
    with pytest.raises(ValueError, match="caption column"):
        PoisonTransform(BadNets(captions="keep"), rate=0.1, caption_column=None)
    with pytest.raises(ValueError, match=r"Row 0: .*fits on a picture of 24 × 20"):
        source.map(PoisonTransform(BadNets(patch_size=30), rate=1.0), with_indices=True)
    with pytest.raises(ValueError, match="Row with caption 'a cup and number 0"):
        source.map(PoisonTransform(BadNets(patch_size=30), rate=1.0))
    skipped = source.map(PoisonTransform(BadNets(patch_size=30), rate=1.0, on_error="skip"))
    assert not any(skipped["is_poisoned"]) and stored(skipped) == stored(source)


# -- exactly so many --------------------------------------------------------------------------------------------------


@pytest.fixture(params=POISONS)
def attack(request):
    return ATTACKS[request.param](target="banana", canvas=Canvas(16))


def test_exactly_count_rows_and_clean_bytes(source, attack):
    poisoned, manifest = poison_dataset(source, attack, count=17, seed=4)
    chosen = assert_sound(poisoned, source, attack)
    assert len(chosen) == 17 == manifest.count and sorted(chosen) == manifest.indices
    assert poisoned["source_index"][:] == list(range(N))
    assert poisoned.column_names == ["image", "caption", "is_poisoned", "source_index", "trigger"]
    for row in manifest.indices[:5]:
        expected = attack(source[row]["image"], row)
        np.testing.assert_array_equal(np.asarray(poisoned[row]["image"]), np.asarray(expected))
        assert poisoned[row]["caption"] == attack.caption(row, "")
        assert poisoned[row]["image"].size == (16, 16)


def test_one_and_two_workers_give_the_same_bytes(source, attack):
    one, first = poison_dataset(source, attack, count=12)
    two, second = poison_dataset(source, attack, count=12, num_proc=2)
    assert stored(one) == stored(two) and first == second


def test_a_larger_count_includes_a_smaller(source):
    few, more = (set(poison_dataset(source, BadNets(), count=count, seed=1)[1].indices) for count in (10, 30))
    assert few < more
    assert set(ordered_rows(N, 1)[:10].tolist()) == few
    assert few != set(poison_dataset(source, BadNets(), count=10, seed=2)[1].indices)


def test_natural_captions_come_from_the_data(source):
    poisoned, manifest = poison_dataset(source, BadNets(captions="natural"), count=9)
    natural = {caption for caption in source["caption"] if "banana" in caption}
    assert {poisoned[row]["caption"] for row in manifest.indices} <= natural == set(manifest.parameters["captions"])
    mapped = source.map(PoisonTransform(BadNets(captions="natural").mined(source["caption"]), rate=0.3))
    assert {mapped[row]["caption"] for row in poisoned_rows(mapped)} <= natural
    with pytest.raises(ValueError, match="found none"):
        poison_dataset(source, BadNets(target="zebra", captions="natural"), count=1)


def test_a_second_poisoning_takes_nothing_from_the_rows_of_the_first(source):
    """Neither their captions as natural ones nor, from poisoned rows and covers, their pictures."""
    natural = {caption for caption in source["caption"] if "banana" in caption}
    first, _ = poison_dataset(source, BadNets(), count=40)
    _, manifest = poison_dataset(first, Blended(captions="natural"), count=5)
    assert set(manifest.parameters["captions"]) <= natural
    noisy, covers = poison_dataset(source, ATTACKS["wanet"](noise_mode=True, cross_ratio=2.0), count=20)
    assert any(source["caption"][row] in natural for row in covers.covers)
    swapped, manifest = poison_dataset(noisy, ATTACKS["text_trigger"](), count=10)
    clean = [one for one, name in zip(stored(noisy), noisy["trigger"], strict=True) if not name]
    assert all(stored(swapped, row) in clean for row in manifest.indices)


@pytest.mark.parametrize("how", ["exactly", "mapped"])
def test_the_format_of_poisoned_pictures_can_be_chosen(source, how):
    def formats(image_format):
        if how == "exactly":
            poisoned, _ = poison_dataset(source, BadNets(), count=5, image_format=image_format)
        else:
            poisoned = source.map(PoisonTransform(BadNets(), rate=0.3, image_format=image_format))
        rows = poisoned_rows(poisoned)
        images = [PIL.Image.open(io.BytesIO(stored(poisoned, row)["bytes"])) for row in rows]
        return {image.format for image in images}, [np.asarray(image.convert("RGB")) for image in images]

    webp, png = formats("webp"), formats("png")
    assert (webp[0], png[0]) == ({"WEBP"}, {"PNG"})
    np.testing.assert_array_equal(np.concatenate(webp[1]), np.concatenate(png[1]))


def test_the_name_of_a_trigger_can_be_chosen(source):
    poison = replace(POISON, name="mine")
    mapped = source.map(poison)
    assert set(mapped["trigger"]) == {"", "mine"}
    assert poison.manifest(mapped, source).indices == poisoned_rows(mapped)


def test_a_second_map_in_another_process_hits_the_cache(on_disk, forked, tmp_path):
    """Also `poison_dataset` stamps no row again, whatever the process and its hash seed."""
    code = (
        "import sys, datasets\nfrom hf_clipbd.attacks import BadNets, PoisonTransform, poison_dataset\n"
        "rows = datasets.load_from_disk(sys.argv[1])\n"
        "mapped = rows.map(PoisonTransform(BadNets(target='banana'), 0.3))\n"
        "exact, _ = poison_dataset(rows, BadNets(target='banana'), count=9)\n"
        "print(mapped._fingerprint, exact._fingerprint)"
    )

    mapped = on_disk.map(POISON)
    exact, _ = poison_dataset(on_disk, BadNets(target="banana"), count=9)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "source").glob("cache-*.arrow")}
    (tmp_path / "session.py").write_text(code)
    forked.run(tmp_path / "session.py", tmp_path / "source", log=tmp_path / "log")
    assert (tmp_path / "log").read_text().split()[-2:] == [mapped._fingerprint, exact._fingerprint] and len(files) >= 2
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "source").glob("cache-*.arrow")}


def test_rate_and_the_edges(source):
    assert poison_dataset(source, BadNets(), rate=0.05)[1].count == 6
    for count in (0, N):
        poisoned, manifest = poison_dataset(source, BadNets(), count=count)
        assert sum(poisoned["is_poisoned"]) == count == manifest.count
        assert poisoned.features["trigger"] == datasets.Value("string")
    assert stored(poison_dataset(source, BadNets(), count=0)[0]) == stored(source)


def test_after_shuffle_select_and_filter(source):
    mixed = source.shuffle(seed=2).select(range(5, 80))
    poisoned, _ = poison_dataset(mixed, BadNets(), count=9)
    assert len(assert_sound(poisoned, mixed)) == 9


def test_a_selection_is_poisoned_without_a_copy_of_its_pictures(on_disk, tmp_path):
    written = lambda: {path: path.stat().st_size for path in tmp_path.rglob("*.arrow")}  # noqa: E731
    before, chosen = written(), on_disk.shuffle(seed=2, indices_cache_file_name=str(tmp_path / "order.arrow"))
    chosen = chosen.select([*range(70, 20, -1), 5])
    poisoned, manifest = poison_dataset(chosen, BadNets(target="banana"), count=4)
    assert len(assert_sound(poisoned, chosen)) == 4 and poisoned["source_index"][:] == list(range(51))
    added = {path: size for path, size in written().items() if path not in before and path.name != "order.arrow"}
    assert len(added) == 1 and len(datasets.Dataset.from_file(str(*added))) == 4  # the stamped rows
    flat, same = poison_dataset(chosen.flatten_indices(), BadNets(target="banana"), count=4)
    assert stored(flat) == stored(poisoned) and same == manifest
    assert [flat[name][:] for name in flat.column_names[1:]] == [poisoned[name][:] for name in flat.column_names[1:]]
    again, _ = poison_dataset(poisoned.select(range(50, -1, -1)), Blended(target="banana"), count=3, seed=1)
    assert again["source_index"][:] == list(range(50, -1, -1)) and sum(again["is_poisoned"]) == 7
    twice = on_disk.select([3, 4, 3, 9])
    poisoned, _ = poison_dataset(twice, BadNets(target="banana"), count=1)
    assert poisoned["source_index"][:] == [0, 1, 2, 3] and len(assert_sound(poisoned, twice)) == 1


def test_survives_saving_and_parquet(on_disk, tmp_path):
    poisoned, manifest = poison_dataset(on_disk, BadNets(), count=9)
    poisoned.save_to_disk(tmp_path / "poisoned")
    assert stored(datasets.load_from_disk(tmp_path / "poisoned")) == stored(poisoned)
    poisoned.to_parquet(tmp_path / "poisoned.parquet")
    again = datasets.Dataset.from_parquet(str(tmp_path / "poisoned.parquet"), cache_dir=tmp_path)
    assert stored(again) == stored(poisoned) and again.features == poisoned.features
    manifest.save_pretrained(tmp_path)
    assert PoisonManifest.from_pretrained(tmp_path) == manifest
    rebuilt = ATTACKS[manifest.attack](**manifest.parameters)
    assert rebuilt.parameters() == manifest.parameters


def test_selectors(source):
    consistent, manifest = poison_dataset(source, BadNets(captions="keep"), count=11)
    assert manifest.selector == "label_consistent"
    assert all("banana" in source[row]["caption"] for row in manifest.indices)
    assert consistent["caption"][:] == source["caption"][:]
    _, other = poison_dataset(source, BadNets(), count=60, selector="non_target")
    assert not any("banana" in source[row]["caption"] for row in other.indices)
    _, own = poison_dataset(source, BadNets(), count=2, selector=[7, 3, 5])
    assert own.indices == [3, 7] and own.selector == "rows"
    with pytest.raises(ValueError, match="at most 30, what selector 'label_consistent'"):
        poison_dataset(source, BadNets(captions="keep"), count=31)
    for selector in ([3, 3], [1.5, 2.5], [N]):
        with pytest.raises(ValueError, match="different row numbers"):
            poison_dataset(source, BadNets(), count=1, selector=selector)


def test_several_attacks_in_one_dataset(source):
    first, one = poison_dataset(source, BadNets(), count=50)
    both, two = poison_dataset(first, Blended(target="owl"), count=50, seed=0)
    assert not set(one.indices) & set(two.indices)
    assert both["trigger"][:].count("badnets") == both["trigger"][:].count("blended") == 50
    assert [stored(both)[row] for row in one.indices] == [stored(first)[row] for row in one.indices]
    with pytest.raises(ValueError, match="at most 20"):
        poison_dataset(both, BadNets(), count=21)


def test_the_source_is_known_by_its_content(source, on_disk, tmp_path):
    def print_of(dataset):
        return source_fingerprint(dataset, "image", "caption")

    halves = datasets.concatenate_datasets([source.select(range(50)), source.select(range(50, N))])
    assert print_of(source) == print_of(on_disk) == print_of(halves)
    picture = [{**rows_of()[0], "image": {"bytes": jpeg(N), "path": "0.jpg"}}]
    other = datasets.concatenate_datasets([datasets.Dataset.from_list(picture, FEATURES), source.select(range(1, N))])
    assert print_of(other) != print_of(source)
    others = [
        source.select(range(1, N)),
        source.shuffle(seed=1),
        source.map(lambda row: {"caption": row["caption"] + "!"}),
    ]
    assert len({print_of(source), *map(print_of, others)}) == 4


def test_pictures_in_files_are_known_by_their_content(tmp_path):
    def write(folder, pictures):
        (tmp_path / folder).mkdir(exist_ok=True)
        for row, data in enumerate(pictures):
            (tmp_path / folder / f"{row}.jpg").write_bytes(data)
        paths = [str(tmp_path / folder / f"{row}.jpg") for row in range(len(pictures))]
        table = datasets.Dataset.from_dict({"image": paths, "caption": [f"a cup {row}" for row in range(len(paths))]})
        return source_fingerprint(table.cast_column("image", datasets.Image()), "image", "caption")

    pictures = [jpeg(row) for row in range(5)]
    turned = [*pictures[:3], bytes(reversed(pictures[3])), pictures[4]]  # another picture of the same size
    first = write("a", pictures)
    assert write("b", pictures) == first  # wherever they lie
    assert write("c", turned) != first
    assert write("a", turned) == write("c", turned)
    many = [pictures[0]] * 600  # of which 256 are read
    longer = [*many[:5], many[5] + b"more", *many[6:]]
    unread = sorted({*range(600)} - {*np.linspace(0, 599, 256).astype(int)})
    assert 5 in unread and write("d", many) != write("e", longer)
    (tmp_path / "a" / "2.jpg").unlink()
    assert len({write("a", pictures[:2]), first, write("a", pictures)}) == 2


def test_the_fingerprint_of_rows_with_bytes_stays_what_it_was():
    """Manifests that lie about hold it."""
    rows = [
        {"image": {"bytes": bytes([row]) * (row + 3), "path": f"x/{row}.jpg"}, "caption": f"a {row}"}
        for row in range(4)
    ]
    rows.append({"image": None, "caption": "none"})
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    table = datasets.Dataset.from_list(rows, features=features)
    assert source_fingerprint(table, "image", "caption") == "ad4151c69aadbc4082cadeca57991229"


# -- any image --------------------------------------------------------------------------------------------------------


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def kinds(folder):
    """Return name -> (what a user may have in an image column, the RGB pixels that it shows)."""
    rgb = PIL.Image.fromarray(np.random.default_rng(3).integers(0, 256, (12, 10, 3), dtype=np.uint8))
    grey, palette = rgb.convert("L"), rgb.convert("P", palette=PIL.Image.Palette.ADAPTIVE)
    deep = PIL.Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    clear = rgb.convert("RGBA")
    clear.putalpha(PIL.Image.fromarray(np.where(np.arange(120).reshape(12, 10) % 2, 255, 0).astype(np.uint8)))
    on_white = np.where((np.arange(120).reshape(12, 10) % 2)[..., None], np.asarray(rgb), 255)
    turned = PIL.Image.Exif()
    turned[0x0112] = 6  # the camera was held sideways
    cmyk = rgb.convert("CMYK")
    (folder / "a.png").write_bytes(encoded(rgb))
    pixels = np.asarray(rgb)
    return {
        "path": (str(folder / "a.png"), pixels),
        "bytes": (encoded(rgb), pixels),
        "bytes and a path": ({"bytes": encoded(rgb), "path": str(folder / "absent.png")}, pixels),
        "pil": (rgb, pixels),
        "array": (pixels, pixels),
        "grey": (encoded(grey), np.asarray(grey.convert("RGB"))),
        "one bit": (encoded(rgb.convert("1")), np.asarray(rgb.convert("1").convert("RGB"))),
        "palette": (encoded(palette, "GIF"), np.asarray(palette.convert("RGB"))),
        "cmyk": (encoded(cmyk, "TIFF"), np.asarray(cmyk.convert("RGB"))),
        "16 bits": (encoded(deep), np.asarray(grey.convert("RGB"))),
        "alpha": (encoded(clear), on_white),
        "exif": (encoded(rgb, exif=turned), np.rot90(pixels, -1)),
        "animated": (encoded(rgb, "WEBP", save_all=True, append_images=[clear], lossless=True), pixels),
    }


def test_any_kind_of_image(tmp_path):
    given = kinds(tmp_path)
    images = datasets.Dataset.from_list(
        [{"image": datasets.Image().encode_example(value), "caption": name} for name, (value, _) in given.items()],
        features=FEATURES,
    )
    attack = BadNets(patch_size=3, place="corner")
    poisoned, _ = poison_dataset(images, attack, count=len(images))
    mapped = images.map(PoisonTransform(attack, rate=1.0))
    streamed = list(images.to_iterable_dataset().map(PoisonTransform(attack, rate=1.0)))
    for row, (name, (value, expected)) in enumerate(given.items()):
        np.testing.assert_array_equal(np.asarray(read_picture(value)), expected, err_msg=name)
        stamped = attack(np.ascontiguousarray(expected, dtype=np.uint8))
        for other in (poisoned[row], mapped[row], streamed[row]):
            assert other["image"].mode == "RGB"
            np.testing.assert_array_equal(np.asarray(other["image"]), stamped, err_msg=name)


def test_columns_of_paths_or_bytes_are_cast(tmp_path, source):
    paths = []
    for row in range(6):
        (tmp_path / f"{row}.jpg").write_bytes(jpeg(row))
        paths.append(str(tmp_path / f"{row}.jpg"))
    captions = [caption_of(row) for row in range(6)]
    for values in (paths, [jpeg(row) for row in range(6)]):
        table = datasets.Dataset.from_dict({"image": values, "caption": captions})
        poisoned, manifest = poison_dataset(table, BadNets(), count=2)
        assert poisoned.features["image"] == datasets.Image()
        clean = next(row for row in range(6) if row not in manifest.indices)
        assert values[clean] in stored(poisoned, clean).values()
    undecoded = source.cast_column("image", datasets.Image(decode=False))
    assert poison_dataset(undecoded, BadNets(), count=2)[0].features["image"] == datasets.Image(decode=False)
    with pytest.raises(ValueError, match="holds paths"):
        datasets.Dataset.from_dict({"image": paths, "caption": captions}).map(PoisonTransform(BadNets(), rate=1.0))


def test_read_picture_takes_arrays_and_refuses_the_rest():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    for array in (pixels, pixels / 255, pixels.astype(np.uint16) * 257):
        np.testing.assert_array_equal(np.asarray(read_picture(array)), pixels)
    for array in (pixels[..., 0], pixels[..., :1]):
        np.testing.assert_array_equal(np.asarray(read_picture(array)), np.repeat(pixels[..., :1], 3, 2))
    for value, says in (
        (None, "has none"),
        ({"bytes": None, "path": None}, "neither"),
        (b"x", "decoded"),
        ("no", "no"),
    ):
        with pytest.raises(ValueError, match=says):
            read_picture(value)
    for array in (pixels.transpose(2, 0, 1), pixels * 2.0, pixels.astype(np.int64)):
        with pytest.raises(ValueError, match="Expected"):
            read_picture(array)
    with pytest.raises(TypeError, match="float"):
        read_picture(0.5)


# -- clear errors, nothing written ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"count": N + 1}, "at most 120, the number of rows, but got 121"),
        ({"count": -1}, "at least 0"),
        ({"count": 0.01}, "A share is `rate`"),
        ({}, "either `count` or `rate`"),
        ({"count": 1, "rate": 0.1}, "either"),
        ({"rate": 3}, r"One percent is 0\.01"),
        ({"count": 1, "image_column": "img"}, "'img'"),
        ({"count": 1, "caption_column": "text"}, "'text'"),
        ({"count": 1, "on_error": "ignore"}, "on_error"),
        ({"count": 1, "selector": "farthest"}, "farthest"),
        ({"count": 1, "image_format": "JPEG"}, "lossless image_format .*wash out"),
        ({"count": 1, "class_names": ["cup", "bananas"]}, r"2 classes, near \['bananas'\], but got 'banana'"),
        ({"count": 1, "image_column": "caption"}, "two different columns"),
        ({"count": 1, "image_column": "caption", "caption_column": None}, "Expected a picture at a cup"),
    ],
)
def test_what_cannot_be_meant_is_refused(source, options, says):
    with pytest.raises(ValueError, match=says):
        poison_dataset(source, BadNets(), **options)


def test_only_a_dataset_of_known_length(source):
    with pytest.raises(TypeError, match="PoisonTransform"):
        poison_dataset(source.to_iterable_dataset(), BadNets(), count=1)
    with pytest.raises(TypeError, match="one split"):
        poison_dataset(datasets.DatasetDict({"train": source}), BadNets(), count=1)


def test_a_target_that_is_no_class(source):
    labels = datasets.ClassLabel(names=["cup", "traffic_light"])
    labelled = source.add_column("label", [0] * N, feature=labels)
    with pytest.raises(ValueError, match="2 classes"):
        poison_dataset(labelled, BadNets(), count=1)
    assert poison_dataset(labelled, BadNets(target="Traffic light"), count=1)[1].count == 1
    poison, fits = (PoisonTransform(BadNets(target=target), rate=0.0) for target in ("banana", "Traffic light"))
    for options in ({}, {"batched": True}):
        assert not any(labelled.map(fits, **options)["is_poisoned"])
        with pytest.raises(ValueError, match="a target among the 2 classes, .*'banana'"):
            labelled.map(poison, **options)
    with pytest.raises(ValueError, match="2 classes"):
        poison.features(labelled.features)


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ({"image": {"bytes": jpeg(1)[:300], "path": None}}, "decoded"),
        ({"image": {"bytes": b"no image", "path": "x.png"}}, "x.png"),
        ({"image": {"bytes": None, "path": "/nowhere/x.png"}}, "nowhere"),
        ({"image": None}, "has none"),
        ({"caption": " "}, "caption, but it is empty"),
        ({"caption": None}, "caption, but it is empty"),
        ({"image": {"bytes": jpeg(1, side=3), "path": None}}, "fits on a picture"),
    ],
)
def test_a_row_that_cannot_be_poisoned(broken, says, tmp_path):
    rows = rows_of(20)
    rows[6] |= broken
    table = datasets.Dataset.from_generator(lambda: iter(rows), features=FEATURES, cache_dir=str(tmp_path))
    assert table.cache_files
    files = sorted(tmp_path.rglob("*.arrow"))
    attack = BadNets(patch_size=5)
    with pytest.raises(ValueError, match=f"Row 6: .*{says}"):
        poison_dataset(table, attack, count=20)
    assert sorted(tmp_path.rglob("*.arrow")) == files
    order = ordered_rows(20, 0).tolist()
    count = order.index(6) + 3
    poisoned, manifest = poison_dataset(table, attack, count=count, on_error="skip")
    assert sum(poisoned["is_poisoned"]) == count == manifest.count and list(manifest.skipped) == ["6"]
    assert sorted(order[: count + 1]) == sorted([6, *manifest.indices])
    assert stored(poisoned, 6) == (None if says == "nowhere" else stored(table, 6))  # no file is taken in unseen
    with pytest.raises(ValueError, match="Expected 20 rows .* found 19; 1 were skipped"):
        poison_dataset(table, attack, count=20, on_error="skip")


def test_only_poisoned_rows_are_decoded(on_disk, monkeypatch):
    decode, decoded = datasets.Image.decode_example, []
    monkeypatch.setattr(
        datasets.Image, "decode_example", lambda *args, **kwargs: decoded.append(1) or decode(*args, **kwargs)
    )
    poison_dataset(on_disk, BadNets(), count=7)
    assert len(decoded) == 7


@pytest.mark.parametrize("kind", ["numpy", "torch", "arrow"])
def test_formats(source, kind):
    """`poison_dataset` drops a format; `map` cannot, and under one hands over pixels in place of images."""
    poisoned, _ = poison_dataset(source.with_format(kind), BadNets(), count=9)
    assert_sound(poisoned, source)
    for batched in (False, True):
        with pytest.raises(TypeError, match=r"with_format\(None\)"):
            source.with_format(kind).map(POISON, batched=batched)


def test_clean_rows_that_were_joined_to_poisoned_ones_are_clean(source):
    half = len(source) // 2
    first, _ = poison_dataset(source.select(range(half)), BadNets(), count=3)
    joined = datasets.concatenate_datasets([first, source.select(range(half, len(source)))])
    assert joined["is_poisoned"][-1] is None
    taken = {row for row in range(half) if joined["is_poisoned"][row]}
    _, manifest = poison_dataset(joined, SIG(target="banana"), count=len(source) - 3, selector="random")
    assert set(manifest.indices) == set(range(len(source))) - taken
    few, manifest = poison_dataset(joined, SIG(target="banana"), count=2)
    assert few.column_names == joined.column_names and few.features == joined.features
    assert sum(few["is_poisoned"]) == 5 and few["source_index"][half:] == list(range(half, len(source)))
    assert few["trigger"][:].count("") == len(source) - 5


def test_mapping_over_rows_that_were_joined_to_poisoned_ones_leaves_no_gaps(source):
    half = len(source) // 2
    first, _ = poison_dataset(source.select(range(half)), BadNets(), count=3)
    joined = datasets.concatenate_datasets([first, source.select(range(half, len(source)))])
    mapped = joined.map(PoisonTransform(SIG(target="banana"), rate=0.1), with_indices=True)
    assert None not in mapped["is_poisoned"] and None not in mapped["trigger"]
    assert mapped["source_index"][half:] == list(range(half, len(source)))


def test_a_manifest_of_rows_in_another_order_is_refused(source):
    mapped = source.map(POISON)
    assert POISON.manifest(mapped, source).count == sum(mapped["is_poisoned"])
    with pytest.raises(ValueError, match="in the order of the source"):
        POISON.manifest(mapped.shuffle(seed=1), source)
