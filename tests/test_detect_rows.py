# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""`hf-clipbd detect` on rows as they come: broken, missing, overwritten, copied; from every source; killed; shared."""

import copy
import errno
import io
import itertools
import os
import shutil
import signal
import tarfile
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import PIL.Image
import pyarrow.parquet
import pytest
import torch

from hf_clipbd.cli import main
from hf_clipbd.detection import DETECTORS, Reference, combined, slof
from hf_clipbd.features import embed_dataset
from hf_clipbd.models import load_dual_encoder
from hf_clipbd.recipe import embeddings, sharded
from hf_clipbd.recipe.basis import NEED_CAPTIONS
from hf_clipbd.recipe.embeddings import cached_embeddings
from hf_clipbd.recipe.locks import this_host
from hf_clipbd.recipe.shards import Shards
from hf_clipbd.schema import RunRecord
from hub_server import Content, Repository
from test_picture_kinds import BROKEN


SCRIPT = Path(__file__).parent / "distributed" / "detect_in_shards.py"
FEATURES = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
KINDS = {name: {"image": {"bytes": data, "path": "x.png"}} for name, data in BROKEN.items()}
KINDS |= {"none": {"image": None}, "no file": {"image": {"bytes": None, "path": "/nowhere/x.png"}}}
SLOW = ("isolation_forest", "cognitive_distillation")
KINDS |= {"no caption": {"caption": None}}


@pytest.fixture(scope="module")
def model(tmp_path_factory, _untouched_model, tiny_processor):
    """Return the folder of a small random model."""
    folder = tmp_path_factory.mktemp("model")
    _untouched_model.save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def broken(tiny_pairs):
    """Return 48 pairs, some of which cannot be read, and which."""
    rows = list(tiny_pairs.cast_column("image", datasets.Image(decode=False)))
    where = {3 + 4 * i: kind for i, kind in enumerate(KINDS)}  # rows 3 to 31: two shards of ten have one, some two
    rows = [{**row, **(KINDS[where[i]] if i in where else {})} for i, row in enumerate(rows)]
    return datasets.Dataset.from_list(rows, features=FEATURES), where


@pytest.fixture(scope="module")
def other(tmp_path_factory, _untouched_model, tiny_processor):
    """Return the folder of another model: the same with weights of its own."""
    folder = tmp_path_factory.mktemp("other")
    changed = copy.deepcopy(_untouched_model)
    with torch.no_grad():
        changed.vision_model.conv1.weight.mul_(-1)
    changed.save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    return folder


def detect(data, model, out, *options):
    """Run the command and return its status."""
    given = ["detect", str(data), "--model", str(model), "--out", str(out), "--cache", str(out.parent / "cache")]
    return main([*given, *map(str, options)])


def table_of(out):
    return pyarrow.parquet.read_table(out / "scores.parquet").to_pydict()


def scores_of(out):
    return np.array(next(values for name, values in table_of(out).items() if name.startswith("score_")))


# -- rows that cannot be read -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_that_cannot_be_read_is_named(kind, tiny_model, tiny_processor, tiny_pairs, tmp_path, monkeypatch):
    rows = list(tiny_pairs.cast_column("image", datasets.Image(decode=False)).select(range(9)))
    rows[7] |= KINDS[kind]
    pairs = datasets.Dataset.from_list(rows, features=FEATURES)
    says = "Row 7: Expected (an image|a text|pixels)"
    with pytest.raises(ValueError, match=says):
        embed_dataset(tiny_model, tiny_processor, pairs, batch_size=4)
    monkeypatch.setattr(embeddings, "SHARD_ROWS", 5)
    for _ in range(2):  # embedded, and from the cache
        with pytest.raises(ValueError, match=f"{says}.*--on_error skip"):
            cached_embeddings(tiny_model, tiny_processor, pairs, tmp_path)
    skipped: dict[int, str] = {}
    kept = embed_dataset(tiny_model, tiny_processor, pairs, batch_size=4, unreadable=skipped)
    assert list(skipped) == [7] and "0x" not in skipped[7]
    alone = embed_dataset(tiny_model, tiny_processor, pairs.select([*range(7), 8]))
    for name in ("image", "text"):
        np.testing.assert_allclose(kept[name], alone[name], atol=1e-5)


def test_nothing_to_embed_is_said(tiny_model, tiny_processor, tiny_pairs, tmp_path):
    rows = [{**row, "image": None} for row in tiny_pairs.select(range(4))]
    pairs = datasets.Dataset.from_list(rows, features=FEATURES)
    with pytest.raises(ValueError, match="none of 4 can. Row 0: Expected an image"):
        cached_embeddings(tiny_model, tiny_processor, pairs, tmp_path, unreadable={})


def test_the_command_stops_at_a_row_or_leaves_it_out(broken, model, tmp_path, capsys):
    pairs, where = broken
    pyarrow.parquet.write_table(pairs.data.table, tmp_path / "pairs.parquet")  # `save_to_disk` reads the pictures
    assert detect(tmp_path / "pairs.parquet", model, tmp_path / "out") == 2
    assert "Row 3: Expected an image" in capsys.readouterr().err and not (tmp_path / "out/scores.parquet").exists()
    options = ["--on_error", "skip", "--remove", 0.1, "--json"]
    assert detect(tmp_path / "pairs.parquet", model, tmp_path / "out", *options) == 0
    table, scores = table_of(tmp_path / "out"), scores_of(tmp_path / "out")
    assert len(scores) == 48 and np.flatnonzero(np.isnan(scores)).tolist() == list(where)
    assert [i for i, problem in enumerate(table["problem"]) if problem is not None] == list(where)
    metrics = RunRecord.load(tmp_path / "out").metrics
    assert metrics["n_unreadable"] == len(where) and metrics["cut"]["n"] == 48 - len(where)
    assert [one["row"] for one in metrics["unreadable"]] == list(where)
    assert metrics["unreadable"][0]["problem"] == table["problem"][3]
    page = (tmp_path / "out/suspects.html").read_text("utf-8")
    assert f"{len(where)} rows have a picture or a caption" in page and "<li>row 31: Expected a text" in page
    filtered = datasets.load_from_disk(str(tmp_path / "out/filtered"))
    assert len(filtered) == 48 - len(where) - metrics["n_removed"] and not set(filtered["caption"]) & {None}
    good = [i for i in range(48) if i not in where]
    pairs.select(good).save_to_disk(tmp_path / "good")
    assert detect(tmp_path / "good", model, tmp_path / "alone", "--remove", 0.1) == 0
    np.testing.assert_allclose(scores[good], scores_of(tmp_path / "alone"), atol=1e-4)
    assert "problem" not in table_of(tmp_path / "alone")
    groups = RunRecord.load(tmp_path / "alone").metrics["groups"]
    assert [one["rows"] for one in metrics["groups"]] == [[good[row] for row in one["rows"]] for one in groups]


def test_a_row_that_was_mended_is_embedded(broken, tiny_pairs, tiny_model, tiny_processor, tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "SHARD_ROWS", 10)
    pairs, where = broken
    skipped: dict[int, str] = {}
    found = cached_embeddings(tiny_model, tiny_processor, pairs, tmp_path, unreadable=skipped)
    assert list(skipped) == list(where) and len(found["image"]) == 48 - len(where) == len(found["picture"])
    mended = datasets.concatenate_datasets([pairs.select(range(20)), tiny_pairs.select(range(20, 48))])
    skipped = {}
    found = cached_embeddings(tiny_model, tiny_processor, mended, tmp_path, unreadable=skipped)
    assert list(skipped) == [row for row in where if row < 20] and len(list(tmp_path.iterdir())) == 1
    expected = embed_dataset(tiny_model, tiny_processor, mended, unreadable={})
    np.testing.assert_allclose(found["image"], expected["image"], atol=1e-5)
    np.testing.assert_allclose(found["text"], expected["text"], atol=1e-5)


# -- killed, and several processes ------------------------------------------------------------------------------------


def files_of(cache):
    return {path.name: path.read_bytes() for path in cache.rglob("*") if path.is_file()}


def test_stopped_anywhere_the_cache_ends_the_same(broken, tiny_model, tiny_processor, tmp_path, monkeypatch):
    """The n-th shard is not written, or not read again, for every n; the next call goes on from there."""
    monkeypatch.setattr(embeddings, "SHARD_ROWS", 10)
    pairs = broken[0].select([*range(48), 0, 1])  # two copies
    given = (tiny_model, tiny_processor, pairs)
    expected = cached_embeddings(*given, tmp_path / "whole", unreadable={})
    whole, steps = files_of(tmp_path / "whole"), itertools.count()
    assert len(whole) == 5 and all(name.startswith("part-") for name in whole)

    def stopping(real):
        def step(*given, **named):
            if next(steps) == stop:
                raise KeyboardInterrupt
            return real(*given, **named)

        return step

    for step in ("keep", "_load"):
        monkeypatch.setattr(Shards, step, stopping(getattr(Shards, step)))
    for stop in range(10):  # five shards, each written and read
        steps, cache = itertools.count(), tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt):
            cached_embeddings(*given, cache, unreadable={})
        assert len(files_of(cache)) == min(stop, 5)
        again = cached_embeddings(*given, cache, unreadable={})
        assert files_of(cache) == whole, stop
        assert all(np.array_equal(again[name], expected[name]) for name in expected)
        np.testing.assert_array_equal(again["image"][-2:], again["image"][:2])


def test_killed_or_shared_by_two_processes_it_ends_as_unbroken(broken, model, forked, tmp_path, monkeypatch):
    pyarrow.parquet.write_table(broken[0].data.table, tmp_path / "pairs.parquet")

    def command(name):
        given = ["detect", tmp_path / "pairs.parquet", "--model", model, "--out", tmp_path / name / "out", "--quiet"]
        return [str(one) for one in [*given, "--on_error", "skip", "--cache", tmp_path / name / "cache"]]

    log = tmp_path / "log"
    killed = forked.start(SCRIPT, 3, *command("killed"), log=log)
    assert forked.ended([killed]) == [-signal.SIGKILL], log.read_text()
    assert len(list((tmp_path / "killed/cache").glob("*/part-*.npz"))) == 3
    forked.run(SCRIPT, -1, *command("two"), log=log, processes=2)
    monkeypatch.setattr(embeddings, "SHARD_ROWS", 10)  # as in the script
    assert [main(command(name)) for name in ("killed", "whole")] == [0, 0]
    for name in ("killed", "two"):
        assert files_of(tmp_path / name / "cache") == files_of(tmp_path / "whole/cache")
        np.testing.assert_array_equal(scores_of(tmp_path / name / "out"), scores_of(tmp_path / "whole/out"))
        assert table_of(tmp_path / name / "out")["problem"] == table_of(tmp_path / "whole/out")["problem"]
    assert RunRecord.load(tmp_path / "two/out").processes == 2


ROWS = np.arange(20, dtype=np.float32).reshape(10, 2)


def job(folder, digests=("a", "b"), names=("image",)):
    """Write what is not there of ten rows in shards of five."""
    shards = Shards(folder, len(ROWS), 5, names)
    for shard, digest in enumerate(digests):
        if shards.problems(shard, digest) is None:
            of = slice(5 * shard, 5 * shard + 5)
            arrays = {name: ROWS[of] + ord(digest) - ord("ab"[shard]) for name in names}
            shards.keep(shard, digest, {**arrays, "picture": np.arange(10)[of]}, {})
    return shards


def used(shards, digests=("a", "b")):
    """Return the arrays as a job takes them."""
    joined = shards.join(digests, {})
    found = shards.open(joined, len(ROWS))
    shards.remove(joined)
    return found


def test_jobs_that_share_a_folder_have_files_of_their_own_while_they_need_them(tmp_path, monkeypatch):
    first, second = job(tmp_path), job(tmp_path)
    joined = first.join(["a", "b"], {})
    found = used(second)  # while the first one's files are there
    assert np.array_equal(first.open(joined, 10)["image"], ROWS) and np.array_equal(found["image"], ROWS)
    assert len([*tmp_path.glob("joined-*")]) == 2  # what one has opened has no name any more, and can be read
    first.remove(joined)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".npz", ".npz"]
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr(os, "access", lambda *_: False)  # a folder that may only be read is open to all
    joined = first.join(["a", "b"], {})
    assert joined.parent == tmp_path / "elsewhere" and np.array_equal(first.open(joined, 10)["image"], ROWS)


def test_one_process_of_each_machine_writes_the_files_and_removes_them(tmp_path, monkeypatch):
    shards, here = job(tmp_path), this_host()
    joined = shards.join(["a", "b"], {})
    for rank, join in ((2, pytest.fail), (1, lambda *_: joined)):  # the first of three is on another machine
        state = SimpleNamespace(process_index=rank, wait_for_everyone=lambda: None)
        monkeypatch.setattr(sharded, "PartialState", lambda state=state: state)
        monkeypatch.setattr(
            sharded, "gather_object", lambda own: ["x", here, here] if own == [here] else [None, joined, None]
        )
        monkeypatch.setattr(shards, "join", join)
        assert np.array_equal(sharded._joined(shards, ["a", "b"], {})["image"], ROWS)
        assert len([*tmp_path.glob("joined-*")]) == (0 if rank == 1 else 2)


def test_a_shard_of_fewer_names_does_not_replace_one_of_more(tmp_path):
    few = Shards(tmp_path, 10, 5, ("image",))
    more = job(tmp_path, names=("image", "text"))
    few.keep(0, "a", {"image": ROWS[:5], "picture": np.arange(5)}, {})  # by a job that had not found it yet
    assert sorted(used(more)) == ["image", "picture", "text"] and np.array_equal(used(few)["image"], ROWS)
    assert len([*tmp_path.iterdir()]) == 2


def test_a_shard_whose_content_is_broken_is_told_and_computed_by_the_next_job(tmp_path):
    shards = job(tmp_path)
    path = next(tmp_path.glob("*-b.npz"))
    broken = path.read_bytes().replace(ROWS[5:].tobytes(), bytes(ROWS[5:].nbytes))
    path.write_bytes(broken)
    with pytest.raises(OSError, match=f"shard 1 in the cache `{tmp_path}` as it was written, but it is broken"):
        shards.join(["a", "b"], {})
    assert [one.name for one in tmp_path.iterdir()] == ["part-000000-a.npz"]
    assert np.array_equal(used(job(tmp_path))["image"], ROWS)


def test_what_a_killed_job_was_writing_goes_after_a_day(tmp_path):
    shards = job(tmp_path)
    left = [tmp_path / "joined-0.image", tmp_path / "part-000000-a.0.partial"]
    for path in left:
        path.touch()
    used(shards)
    assert all(map(Path.exists, left))
    for path in left:
        os.utime(path, (1, 1))
    used(shards)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".npz", ".npz"]


def test_a_job_that_cannot_write_its_files_leaves_none(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    shards = job(tmp_path)
    monkeypatch.setattr("hf_clipbd.recipe.shards.copies_of", full)
    with pytest.raises(OSError, match="No space"):
        shards.join(["a", "b"], {})
    assert len([*tmp_path.iterdir()]) == 2
    monkeypatch.undo()
    next(tmp_path.glob("*-a.npz")).unlink()
    with pytest.raises(FileNotFoundError, match="shard 0 with .* Run again"):
        shards.join(["a", "b"], {})
    assert len([*tmp_path.iterdir()]) == 1


def test_two_datasets_of_one_first_shard_have_each_its_own_rows(
    tiny_model, tiny_processor, tiny_pairs, tmp_path, monkeypatch
):
    """A clean set and its poisoned version, held at once; what they share is embedded once."""
    monkeypatch.setattr(embeddings, "SHARD_ROWS", 10)
    given, real, calls = (tiny_model, tiny_processor), embeddings.embed_dataset, []
    monkeypatch.setattr(embeddings, "embed_dataset", lambda *a, **b: calls.append(len(a[2])) or real(*a, **b))
    other = tiny_pairs.select([*range(20), *range(29, 19, -1), *range(30, 40), *range(47, 39, -1)])
    one = cached_embeddings(*given, tiny_pairs, tmp_path)
    two = cached_embeddings(*given, other, tmp_path)
    again = cached_embeddings(*given, tiny_pairs, tmp_path)
    assert calls == [10, 10, 10, 10, 8, 10, 8]
    for rows, found in ((tiny_pairs, one), (other, two), (tiny_pairs, again)):
        expected = real(*given, rows)
        for name in ("image", "text"):
            np.testing.assert_allclose(found[name], expected[name], atol=1e-5)


def test_jobs_on_two_datasets_in_one_folder_take_nothing_from_each_other(tmp_path):
    jobs = [(job(tmp_path, digests), digests) for digests in ("ab", "ac")]
    assert len([*tmp_path.iterdir()]) == 3
    found = [used(shards, digests) for shards, digests in jobs]
    for (_, digests), arrays in zip(jobs, found, strict=True):
        expected = ROWS + np.repeat([0, ord(digests[1]) - ord("b")], 5)[:, None]
        np.testing.assert_array_equal(arrays["image"], expected)


@pytest.mark.parametrize("content", [b"", bytes(100), None], ids=["empty", "zeros", "half"])
def test_a_shard_that_a_crash_of_the_machine_cut_short_is_computed_again(content, tmp_path):
    shards, (part, _) = job(tmp_path), sorted(tmp_path.iterdir())
    whole = part.read_bytes()
    part.write_bytes(whole[: len(whole) // 2] if content is None else content)
    assert shards.problems(0, "a") is None and shards.problems(1, "b") == {}
    job(tmp_path)
    assert part.read_bytes() == whole


# -- sources, and files that change -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sources(tmp_path_factory, tiny_pairs):
    """Return the same 48 pairs in every form that is read."""
    folder = tmp_path_factory.mktemp("sources")
    (folder / "pictures").mkdir()
    rows = list(tiny_pairs.cast_column("image", datasets.Image(decode=False)))
    for i, row in enumerate(rows):
        (folder / f"pictures/{i:02}.png").write_bytes(row["image"]["bytes"])
    lines = [f"pictures/{i:02}.png\t{row['caption']}\n" for i, row in enumerate(rows)]
    (folder / "pairs.tsv").write_text("".join(lines))
    (folder / "pairs.csv").write_text("image,caption\n" + "".join(lines).replace("\t", ","))
    tiny_pairs.to_parquet(folder / "pairs.parquet")
    tiny_pairs.save_to_disk(folder / "saved")
    with tarfile.open(folder / "pairs.tar", "w") as shard:
        for i, row in enumerate(rows):
            for ending, data in ((".png", row["image"]["bytes"]), (".txt", row["caption"].encode())):
                member = tarfile.TarInfo(f"{i:02}{ending}")
                member.size = len(data)
                shard.addfile(member, io.BytesIO(data))
    return folder


@pytest.mark.parametrize("name", ["pairs.tsv", "pairs.csv", "pairs.parquet", "pairs.tar"])
def test_every_source_gives_the_same_scores(name, sources, model, tmp_path, monkeypatch):
    options = ["--detectors", "slof", "conditional_sparsity"]
    assert detect(sources / "saved", model, tmp_path / "saved", *options) == 0
    monkeypatch.setattr(embeddings, "embed_dataset", None)  # the same content: nothing is embedded again
    columns = ["--image_column", "png", "--caption_column", "txt"] if name.endswith(".tar") else []
    assert detect(sources / name, model, tmp_path / "other", *options, *columns) == 0
    assert table_of(tmp_path / "other") == table_of(tmp_path / "saved")
    assert len(datasets.load_from_disk(str(tmp_path / "other/filtered"))) == 47


def test_a_dataset_of_the_hub(hub, tiny_pairs, model, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
    tiny_pairs.to_parquet(tmp_path / "train.parquet")
    data = Content((tmp_path / "train.parquet").read_bytes(), large=True)
    hub.repos["dataset", "tester/pairs"] = Repository(private=False)
    hub.repos["dataset", "tester/pairs"].add("rows", {"data/train-00000-of-00001.parquet": data})
    hub.store[data.oid] = data.data
    tiny_pairs.save_to_disk(tmp_path / "pairs")
    assert detect("tester/pairs", model, tmp_path / "hub") == 0
    assert detect(tmp_path / "pairs", model, tmp_path / "disk") == 0
    assert table_of(tmp_path / "hub") == table_of(tmp_path / "disk")


def test_pictures_overwritten_under_their_names_are_seen(sources, model, tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pairs.csv").write_text((sources / "pairs.csv").read_text())

    def write(turned):
        for path in (sources / "pictures").iterdir():
            picture = PIL.Image.open(path)
            (picture.rotate(180) if turned else picture).save(tmp_path / "pictures" / path.name)

    poison = ["poison", str(tmp_path / "pairs.csv"), "--target", "banana", "--count", "4", "--size", "32"]
    poison += ["--out", str(tmp_path / "poison")]
    records, stamped = [], []
    for turned in (False, False, True):
        if turned or not records:
            write(turned)
        assert detect(tmp_path / "pairs.csv", model, tmp_path / "out") == 0 and main(poison) == 0
        records.append([RunRecord.load(tmp_path / name) for name in ("out", "poison")])
        rows = datasets.load_from_disk(str(tmp_path / "poison/dataset"))
        (first, *_) = np.flatnonzero(rows["is_poisoned"])
        stamped.append(np.asarray(rows[int(first)]["image"].convert("RGB")))
    first, again, after = records
    assert [one.key for one in first] == [one.key for one in again]
    assert all(one.key != other.key for one, other in zip(again, after, strict=True))
    assert not np.array_equal(stamped[1], stamped[2])
    assert first[0].seconds == again[0].seconds != after[0].seconds


# -- what rows are compared with --------------------------------------------------------------------------------------


def test_a_clean_reference_for_every_detector(sources, tiny_pairs, model, other, tmp_path, capsys):
    tiny_pairs.select(range(30)).save_to_disk(tmp_path / "benign")
    clean = ["--clean_reference", tmp_path / "benign"]
    options = ["--detectors", "slof", "conditional_sparsity", "clip_score", "--no_filtered"]
    outs = {"plain": [], "clean": clean, "few": [*clean, "--reference", 10], "two": clean}
    for name, more in outs.items():
        second = ["--second", other, "--detectors", "disagreement", "--no_filtered"] if name == "two" else options
        assert detect(sources / "saved", model, tmp_path / name, *second, *more) == 0
    for one, other in itertools.combinations(("plain", "clean", "few"), 2):
        assert not np.allclose(scores_of(tmp_path / one), scores_of(tmp_path / other))
    assert np.isfinite(scores_of(tmp_path / "two")).all()
    record = RunRecord.load(tmp_path / "clean")
    assert record.config["clean_reference"] == str(tmp_path / "benign") and "clean_reference" in record.inputs
    assert detect(sources / "saved", model, tmp_path / "x", "--detectors", "clip_score", *clean) == 2
    assert "Expected no clean reference" in capsys.readouterr().err
    assert detect(sources / "saved", model, tmp_path / "x", "--clean_reference", tmp_path / "none") == 2
    assert "no such file or folder" in capsys.readouterr().err


def test_a_clean_reference_that_begins_as_the_searched_rows_do(model, tiny_pairs, tmp_path, monkeypatch):
    """As a clean set and its poisoned version may; the cache keeps them apart."""
    tiny_pairs.to_parquet(tmp_path / "searched.parquet")
    tiny_pairs.select([*range(16), *range(47, 15, -1)]).to_parquet(tmp_path / "clean.parquet")
    for name in ("shared", "own"):
        monkeypatch.setattr(embeddings, "SHARD_ROWS", {"shared": 16, "own": 48}[name])
        options = ["--clean_reference", tmp_path / "clean.parquet", "--no_filtered"]
        assert detect(tmp_path / "searched.parquet", model, tmp_path / name / "out", *options) == 0
    np.testing.assert_allclose(scores_of(tmp_path / "shared/out"), scores_of(tmp_path / "own/out"), atol=1e-4)


def test_a_clean_reference_by_hand(tiny_model, tiny_processor, tiny_pairs, sources, tmp_path):
    for parameter in tiny_model.vision_model.attnpool.c_proj.parameters():
        parameter.data.mul_(1000)  # so that raw features lie as far apart as a real model's
    model = tmp_path / "model"
    tiny_model.save_pretrained(model)
    tiny_processor.save_pretrained(model)
    tiny_pairs.select(range(30)).save_to_disk(tmp_path / "clean")
    options = ["--detectors", "slof", "--k", 5, "--clean_reference", tmp_path / "clean"]
    for normalize, more in ((True, []), (False, ["--raw"])):
        out = tmp_path / f"out{normalize}"
        assert detect(sources / "saved", model, out, *options, *more) == 0
        found = embed_dataset(tiny_model, tiny_processor, tiny_pairs, normalize=normalize)["image"]
        assert np.allclose(np.linalg.norm(found, axis=1), 1) == normalize
        assert scores_of(out).std() > 0.01
        expected = slof(found, Reference.of(found[:30], normalize, "float32"), 5)
        np.testing.assert_allclose(scores_of(out), expected, rtol=1e-3)


def test_a_clean_reference_has_names_of_its_own(sources, tiny_pairs, model, tmp_path, capsys):
    """Columns and split that are named for the searched rows are those of the reference where it has them."""
    named = tiny_pairs.rename_columns({"image": "foo", "caption": "bar"})
    datasets.DatasetDict({"crawl": named}).save_to_disk(tmp_path / "searched")
    tiny_pairs = tiny_pairs.select(range(30))
    same = named.select(range(30)).add_column("image", ["no picture"] * 30)
    datasets.DatasetDict({"train": tiny_pairs, "rest": tiny_pairs}).save_to_disk(tmp_path / "own")
    datasets.DatasetDict({"train": tiny_pairs.select(range(9)), "crawl": same}).save_to_disk(tmp_path / "alike")
    columns = ["--image_column", "foo", "--caption_column", "bar", "--split", "crawl", "--no_filtered"]
    scores = []
    for name in ("own", "alike"):
        clean = ["--clean_reference", tmp_path / name]
        assert detect(tmp_path / "searched", model, tmp_path / f"by {name}", *columns, *clean) == 0
        scores.append(scores_of(tmp_path / f"by {name}"))
    assert np.array_equal(*scores)
    assert capsys.readouterr().out.count("own` has no split `crawl`; `train` is taken") == 1
    tiny_pairs.remove_columns("image").save_to_disk(tmp_path / "words")
    broken = tiny_pairs.select(range(8)).map(lambda row: {"caption": None}, features=FEATURES)
    broken.save_to_disk(tmp_path / "broken")
    for name, says in (("words", "column of images"), ("broken", "Row 0: Expected a text")):
        clean = ["--clean_reference", tmp_path / name]
        assert detect(sources / "saved", model, tmp_path / "x", *clean) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert f"`{tmp_path / name}`" in line and says in line


def test_the_second_encoder_is_another_one(sources, model, other, tmp_path, capsys):
    shutil.copytree(model, tmp_path / "copy")
    assert detect(sources / "saved", model, tmp_path / "x", "--second", tmp_path / "copy") == 2
    assert "Expected another encoder beside the suspected model" in capsys.readouterr().err
    assert detect(sources / "saved", model, tmp_path / "x", "--second", other) == 0


def test_mirrored_pictures_stand_in_for_a_second_encoder(sources, model, tiny_pairs, tmp_path, capsys):
    given = ["--second", "mirrored", "--no_filtered"]
    assert detect(sources / "saved", model, tmp_path / "found", *given, "--clean_reference", sources / "saved") == 0
    assert detect(sources / "saved", model, tmp_path / "itself", *given) == 0
    record = RunRecord.load(tmp_path / "found")
    assert record.inputs["second"] == "mirrored" and record.config["detectors"] == ["combined"]
    loaded = load_dual_encoder(model)
    saved = datasets.load_from_disk(sources / "saved")
    seen, mirrored = embed_dataset(*loaded, saved), embed_dataset(*loaded, saved, mirrored=True)["image"]
    expected = combined(seen["image"], texts=seen["text"], others=mirrored)
    np.testing.assert_allclose(scores_of(tmp_path / "itself"), expected, rtol=1e-4, atol=1e-4)
    assert detect(sources / "saved", model, tmp_path / "x", "--detectors", "disagreement") == 2
    assert "`--second mirrored`" in capsys.readouterr().err


# -- what is known of rows --------------------------------------------------------------------------------------------


def test_the_truth_is_taken_a_column_at_a_time(sources, tiny_pairs, model, tmp_path, capsys):
    known = {"is_poisoned": [int(row % 6 == 0) for row in range(48)], "source_index": list(range(48, 0, -1))}
    options = ["--detectors", "slof", "--no_filtered"]
    for name, values in known.items():
        tiny_pairs.add_column(name, values).save_to_disk(tmp_path / name)
        rates = ["--rates", 0.1] if name == "is_poisoned" else []
        assert detect(tmp_path / name, model, tmp_path / f"by {name}", *options, *rates) == 0
        found = table_of(tmp_path / f"by {name}")
        assert set(found) & set(known) == {name} and found[name] == values
    metrics = RunRecord.load(tmp_path / "by is_poisoned").metrics
    assert set(metrics["detectors"]) == {"slof"} and metrics["rates"]["0.1"]["slof"]["n_poisoned"] == 4
    assert "known poison" in (tmp_path / "by is_poisoned/suspects.html").read_text("utf-8")
    capsys.readouterr()
    tiny_pairs.add_column("is_poisoned", [False] * 48).save_to_disk(tmp_path / "clean")
    tiny_pairs.add_column("is_poisoned", ["no"] * 47 + ["yes"]).save_to_disk(tmp_path / "words")
    for rows, more, says in (
        (sources / "saved", ["--rates", 0.1], "`is_poisoned`, from which figures at lower poison rates"),
        (tmp_path / "is_poisoned", ["--rates", 0.1, 0.5], "a rate between 0.024 and 0.17, the set's own, but got 0.5"),
        (tmp_path / "clean", ["--rates", 0.1], "but 0 of 48 are poisoned"),
        (tmp_path / "words", [], "row 0 has 'no'"),
    ):
        assert detect(rows, "no/model", tmp_path / "x", *options, *more) == 2  # before a model is looked for
        assert says in capsys.readouterr().err


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, tiny_pairs):
    """Return a folder of 48 pictures and nothing else, the last two of which are copies of the first."""
    folder = tmp_path_factory.mktemp("alone") / "pictures"
    folder.mkdir()
    rows = list(tiny_pairs.cast_column("image", datasets.Image(decode=False)))
    for i in range(48):
        (folder / f"{i:02}.png").write_bytes(rows[i if i < 46 else 0]["image"]["bytes"])
    return folder


def test_pictures_alone_are_searched_and_shown(pictures, model, other, tmp_path, capsys):
    assert detect(pictures, model, tmp_path / "out") == 0
    record = RunRecord.load(tmp_path / "out")
    assert record.metrics["ranked_by"] == "multi_scale" and record.metrics["copies"] == [{"n": 3, "rows": [0, 46, 47]}]
    assert "there are no captions" in capsys.readouterr().out
    page = (tmp_path / "out/suspects.html").read_text("utf-8")
    assert "The most suspicious pictures of" in page and "caption" not in page.split("<main")[1].split("<footer")[0]
    kept = datasets.load_from_disk(str(tmp_path / "out/filtered"))
    assert kept.column_names == ["image", "suspicion"] and len(kept) == 47
    assert detect(pictures, model, tmp_path / "two", "--second", other, "--no_filtered", "--shown", 0) == 0
    assert RunRecord.load(tmp_path / "two").metrics["ranked_by"] == "disagreement"


def test_detectors_of_pictures_alone(pictures, sources, model, tmp_path, capsys):
    alone = [name for name in DETECTORS if name not in (*NEED_CAPTIONS, *SLOW, "disagreement")]
    few = ["--no_filtered", "--n", 20, "--shown", 0]
    assert detect(pictures, model, tmp_path / "out", *few, "--detectors", *alone) == 0
    assert len(table_of(tmp_path / "out")) == len(alone) + 2
    for name in NEED_CAPTIONS:
        second = ["--second", "no/model"] if name == "combined" else []
        assert detect(pictures, "no/model", tmp_path / "x", *few, "--detectors", "slof", name, *second) == 2
        assert f"Expected captions, which `{name}` compares" in capsys.readouterr().err
    clean = ["--clean_reference", pictures, "--no_filtered"]
    assert detect(sources / "saved", model, tmp_path / "clean", *clean, "--detectors", "slof", "clip_score") == 0
    assert detect(sources / "saved", "no/model", tmp_path / "x", *clean) == 2
    assert "captions in the clean reference as well" in capsys.readouterr().err


def test_a_name_of_nothing_is_said_to_be_neither_here_nor_on_the_hub(sources, model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for data, more in (("nothere", []), (sources / "saved", ["--clean_reference", "nothere"])):
        assert detect(data, model, tmp_path / "x", *more) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert "There is no file or folder 'nothere' here, and the Hub cannot be reached" in line
