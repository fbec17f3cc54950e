# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Cognitive distillation in a search (command, run, benchmark); embeddings of images alone, for a second encoder."""

import functools
import importlib.util
import json
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet
import pytest
import torch

from hf_clipbd import features
from hf_clipbd.cli import main
from hf_clipbd.detection import mask_sizes
from hf_clipbd.features import embed_dataset, embed_images, pixel_values
from hf_clipbd.recipe import distilling, embeddings
from hf_clipbd.recipe.config import config_from
from hf_clipbd.recipe.distilling import cached_mask_sizes
from hf_clipbd.recipe.embeddings import cached_embeddings
from hf_clipbd.recipe.options import DetectConfig
from hf_clipbd.recipe.searching import search
from hf_clipbd.recipe.sections import ConfigError
from hf_clipbd.schema import RunRecord


ROOT = Path(__file__).resolve().parents[1]
COGNITIVE = "cognitive_distillation"


@pytest.fixture(scope="module")
def work(tmp_path_factory, _untouched_model, tiny_processor, tiny_pairs):
    """Return a folder with a model and 48 pairs."""
    folder = tmp_path_factory.mktemp("work")
    _untouched_model.save_pretrained(folder / "model")
    tiny_processor.save_pretrained(folder / "model")
    tiny_pairs.save_to_disk(folder / "pairs")
    return folder


def quick_sizes(model, pixels, rows, batch_size=64, seed=0):
    """Return sizes that depend on the model, each picture, its row number and the seed, and take no time."""
    with torch.no_grad():
        seen = embed_images(model, pixels(rows))[:, 0].double().sigmoid().numpy()
    return 0.2 + 0.5 * seen + np.array([np.random.default_rng([seed, int(row)]).uniform(0, 0.2) for row in rows])


@pytest.fixture(autouse=True)
def steps(monkeypatch):
    """Find masks quickly, and return a list of the rows that were looked at."""
    looked: list[int] = []

    def counted(model, pixels, rows, *given):
        looked.extend(rows.tolist())
        return quick_sizes(model, pixels, rows, *given)

    monkeypatch.setattr(distilling, "mask_sizes", counted)
    return looked


def detect(work, out, *options):
    given = ["detect", work / "pairs", "--model", work / "model", "--cache", work / "cache", "--out", out, *options]
    return main([str(one) for one in given])


def scores_of(out):
    table = pyarrow.parquet.read_table(out / "scores.parquet").to_pydict()
    return {name.removeprefix("score_"): np.array(values) for name, values in table.items() if "score_" in name}


def sizes_of(model, processor, pairs, rows, seed=0):
    """Return mask sizes straight from the model."""
    return quick_sizes(model, lambda numbers: pixel_values(processor, pairs.select(numbers)), rows, seed=seed)


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command_looks_at_what_another_detector_ranks_first(
    work, tiny_model, tiny_processor, tiny_pairs, tmp_path, steps
):
    options = ["--detectors", "slof", COGNITIVE, "--distilled", 5, "--remove", 0.1]
    assert detect(work, tmp_path / "out", *options) == 0
    scores, metrics = scores_of(tmp_path / "out"), RunRecord.load(tmp_path / "out").metrics
    first = np.sort(np.argsort(-scores["slof"])[:5])
    assert steps == first.tolist() and metrics["n_distilled"] == 5 and metrics["ranked_by"] == "slof"
    expected = np.full(48, -1.0)
    expected[first] = -sizes_of(tiny_model, tiny_processor, tiny_pairs, first)
    np.testing.assert_allclose(scores[COGNITIVE], expected, atol=1e-6)
    assert (scores[COGNITIVE][first] > -1).all() and len(set(scores[COGNITIVE][first])) == 5
    assert detect(work, tmp_path / "again", "--detectors", "slof", "lof", COGNITIVE, "--distilled", 5) == 0
    assert len(steps) == 5  # from the cache
    assert detect(work, tmp_path / "seed", *options, "--seed", 1) == 0 and len(steps) == 10


def test_by_name_it_looks_at_every_row_and_ranks(work, tiny_model, tiny_processor, tiny_pairs, tmp_path):
    assert detect(work, tmp_path / "out", "--detectors", COGNITIVE, "clip_score") == 0
    scores = scores_of(tmp_path / "out")
    assert list(scores) == [COGNITIVE, "clip_score"]
    expected = -sizes_of(tiny_model, tiny_processor, tiny_pairs, np.arange(48))
    np.testing.assert_allclose(scores[COGNITIVE], expected, atol=1e-6)
    metrics = RunRecord.load(tmp_path / "out").metrics
    assert metrics["ranked_by"] == COGNITIVE and metrics["n_distilled"] == metrics["n"] == 48


def test_rows_that_cannot_be_read_are_passed_over(work, tiny_model, tiny_processor, tiny_pairs, tmp_path, steps):
    rows = list(tiny_pairs.cast_column("image", datasets.Image(decode=False)))
    rows[3] |= {"image": {"bytes": b"no picture", "path": None}}
    table = datasets.Dataset.from_list(rows, features=tiny_pairs.features).data.table
    pyarrow.parquet.write_table(table, tmp_path / "pairs.parquet")
    given = ["--model", work / "model", "--detectors", COGNITIVE, "--on_error", "skip", "--out", tmp_path / "out"]
    given += ["--cache", tmp_path / "cache"]
    assert main(["detect", str(tmp_path / "pairs.parquet"), *map(str, given)]) == 0
    numbers = np.array([row for row in range(48) if row != 3])
    scores = scores_of(tmp_path / "out")[COGNITIVE]
    assert steps == numbers.tolist() and np.isnan(scores[3])
    expected = -sizes_of(tiny_model, tiny_processor, tiny_pairs, numbers)  # by the row's number in the dataset
    np.testing.assert_allclose(scores[numbers], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--detectors", "slof", "--distilled", "5"], "`detectors` does not name"),
        (["--detectors", COGNITIVE, "slof", "--distilled", "5"], "name one before"),
        (["--detectors", "slof", COGNITIVE, "--distilled", "0"], "at least 1, but got 0"),
        (["--detectors", "slof", COGNITIVE, "--raw"], "Leave `--raw` out"),
        (["--detectors", COGNITIVE, "--clean_reference", "scenes"], "Expected no clean reference"),
        (["--detectors", "disagreement"], "`disagreement` needs. Pass `--second`"),
        (["--detectors", "slof", "combined"], "`combined` needs. Pass `--second`"),
    ],
)
def test_what_does_not_go_together_is_said_at_once(options, says, work, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hf_clipbd.recipe.single.load_any", None)
    for more in ([], ["--dry_run"]):
        assert detect(work, tmp_path / "out", *options, *more) == 2
        assert says in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_plan_says_how_many_rows(work, tmp_path, capsys):
    assert detect(work, tmp_path, "--detectors", COGNITIVE, "--dry_run") == 0
    assert f"{COGNITIVE}; " in capsys.readouterr().out
    assert detect(work, tmp_path, "--detectors", "slof", COGNITIVE, "lid", "--distilled", 7, "--dry_run") == 0
    assert f"slof, {COGNITIVE} of 7 rows, lid; " in capsys.readouterr().out


# -- kept masks -------------------------------------------------------------------------------------------------------


def test_masks_in_earnest(tiny_model, tiny_processor, tiny_pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(distilling, "mask_sizes", functools.partial(mask_sizes, steps=2))
    found = cached_mask_sizes(tiny_model, tiny_processor, tiny_pairs, tmp_path, np.array([1, 30]))
    pixels = pixel_values(tiny_processor, tiny_pairs.select([1, 30]))
    expected = mask_sizes(tiny_model, lambda rows: pixels[np.searchsorted([1, 30], rows)], [1, 30], steps=2)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert ((found > 0) & (found < 1)).all()


def test_a_killed_distillation_goes_on(tiny_model, tiny_processor, tiny_pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(distilling, "SHARD_ROWS", 10)
    rows, calls = np.array([*range(3, 40), 45]), []

    def dying(model, pixels, part, *given):
        calls.append(len(part))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return quick_sizes(model, pixels, part, *given)

    monkeypatch.setattr(distilling, "mask_sizes", dying)
    given = (tiny_model, tiny_processor, tiny_pairs, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        cached_mask_sizes(*given, rows)
    found = cached_mask_sizes(*given, rows)
    assert calls == [10, 10, 10, 10, 8]
    np.testing.assert_allclose(found, sizes_of(tiny_model, tiny_processor, tiny_pairs, rows), atol=1e-6)
    cached_mask_sizes(*given, rows)
    assert len(calls) == 5
    cached_mask_sizes(*given, rows + 1)  # other rows
    assert len(calls) == 9
    cached_mask_sizes(*given, rows, seed=1)
    assert len(calls) == 13
    for parameter in tiny_model.parameters():
        parameter.data.mul_(1.01)
    cached_mask_sizes(*given, rows)
    assert len(calls) == 17


# -- the run ----------------------------------------------------------------------------------------------------------


def test_a_search_with_known_poison(tiny_pairs, tmp_path):
    rng = np.random.default_rng([1])
    poisoned = np.arange(48) % 6 == 0
    pairs = tiny_pairs.add_column("is_poisoned", poisoned)
    embedded = {"image": rng.normal(size=(48, 8)), "text": rng.normal(size=(48, 8))}
    sizes = np.where(poisoned, 0.2, 0.6) + 0.1 * rng.uniform(size=48)
    given = {"rates": [0.1], "draws": 2, "map_points": 8, "k": 4}
    asked = []

    def distill(rows):
        asked.append(rows)
        return sizes[rows]

    options = DetectConfig(detectors=["k_distance", COGNITIVE], **given)
    whole, scores = search(embedded, pairs, options, None, 0, tmp_path, distill=distill)
    np.testing.assert_array_equal(scores[COGNITIVE], -sizes)
    assert whole.metrics["detectors"][COGNITIVE]["auroc"] == 1 and list(scores) == ["k_distance", COGNITIVE]
    assert whole.metrics["rates"]["0.1"][COGNITIVE]["auroc"] == 1  # of masks found once
    assert len(asked) == 1 and whole.metrics["n_distilled"] == 48
    options = DetectConfig(detectors=["k_distance", COGNITIVE], distilled=10, **given)
    part, scores = search(embedded, pairs, options, None, 0, tmp_path, distill=distill)
    np.testing.assert_array_equal(asked[1], np.sort(np.argsort(-scores["k_distance"])[:10]))
    assert (scores[COGNITIVE] == -1).sum() == 38 and part.metrics["n_distilled"] == 10
    assert part.metrics["detectors"][COGNITIVE]["n"] == 48
    assert list(part.metrics["rates"]["0.1"]) == ["k_distance"]
    assert part.metrics["rates"]["0.1"] == {"k_distance": whole.metrics["rates"]["0.1"]["k_distance"]}


def run_config(out, **detecting):
    """Return a run on 64 scenes."""
    return config_from(
        {
            "output_dir": str(out),
            "world": {"size": 32, "n_train": 64, "n_defense": 16, "n_test": 20},
            "poison": {"count": 8},
            "detect": {"rates": [0.05], "draws": 1, "map_points": 8, **detecting},
        }
    )


@pytest.fixture(scope="module")
def poisoned_run(tmp_path_factory, _untouched_model, tiny_processor):
    """Return a run folder with a poisoned set and a victim that learned nothing of it."""
    from hf_clipbd.recipe import poison

    run = tmp_path_factory.mktemp("poisoned") / "run"
    poison(run_config(run))
    _untouched_model.save_pretrained(run / "victim")
    tiny_processor.save_pretrained(run / "victim")
    RunRecord("victim", "key", {}, {}, 0, {}).save(run / "victim")
    one = {"1": {"value": 0.5, "n": 2}}
    report = {"report": {"ba": one, "triggers": {"badnets": {"asr": one}}}}
    RunRecord("evaluate/victim", "key", {}, report, 0, {}).save(run / "evaluate/victim")
    return run


def test_the_stage_of_a_run(poisoned_run, steps):
    from hf_clipbd.recipe import detect as detect_stage

    plain = detect_stage(run_config(poisoned_run))
    assert "distilled" not in plain.config and "n_distilled" not in plain.metrics
    record = detect_stage(run_config(poisoned_run, detectors=["slof", COGNITIVE], distilled=6))
    assert record.config["distilled"] == 6 and record.metrics["n_distilled"] == 6
    assert len(steps) == 6 and list(record.metrics["detectors"]) == ["slof", COGNITIVE]
    assert list(record.metrics["rates"]["0.05"]) == ["slof"]
    scores = scores_of(poisoned_run / "detect")
    assert (scores[COGNITIVE] > -1).sum() == 6


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"detect": {"distilled": 5}}, "`detect`: `distilled` is for the detector"),
        ({"detect": {"distilled": 5, "detectors": [COGNITIVE]}}, "name one before"),
        ({"detect": {"distilled": -1, "detectors": ["slof", COGNITIVE]}}, "at least 1, but got -1"),
        (
            {
                "detect": {"distilled": 5, "detectors": ["slof", COGNITIVE]},
                "defenses": {"retrain": {"detector": COGNITIVE, "drop_share": 0.01}},
            },
            "at least the 160 rows",
        ),
    ],
)
def test_a_run_that_could_not_work_is_refused(sections, says):
    with pytest.raises(ConfigError, match=says):
        config_from(sections)
    config_from({"detect": {"distilled": 5, "detectors": ["slof", COGNITIVE]}})


# -- the benchmark ----------------------------------------------------------------------------------------------------


@pytest.fixture
def table():
    spec = importlib.util.spec_from_file_location("detectors_table", ROOT / "benchmarks" / "detectors_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_benchmark_has_a_row_for_it(table, poisoned_run, tmp_path, steps, monkeypatch, capsys):
    table.RATES = (0.125, 0.05)
    out, line = tmp_path / "table.json", ["detectors_table.py", str(poisoned_run), "--draws", "1"]
    line += ["--cache", str(tmp_path / "cache"), "--out", str(out), "--only", "slof"]
    monkeypatch.setattr(sys, "argv", [*line, COGNITIVE, "--distilled", "12"])
    table.main()
    (victim,) = json.loads(out.read_text("utf-8"))["victims"].values()
    assert victim["n_distilled"] == len(steps) == 8 + 12 and list(victim["rates"]) == ["0.125", "0.05"]
    for cells in victim["rates"].values():
        assert list(cells["detectors"]) == ["slof", COGNITIVE]
    assert f"| {COGNITIVE} | " in out.with_suffix(".md").read_text("utf-8")
    monkeypatch.setattr(sys, "argv", [*line, "--distilled", "12"])
    with pytest.raises(SystemExit):
        table.main()
    assert "goes with --only cognitive_distillation" in capsys.readouterr().err


def test_the_benchmark_estimates_from_some_clean_rows(table, tiny_model, tiny_processor, tiny_pairs, tmp_path, steps):
    poisoned = np.arange(48) % 6 == 0
    given = (tiny_model, tiny_processor, tiny_pairs, poisoned)
    masks, looked = table.masks_of(*given, 10, tmp_path)
    assert looked == 18 == len(steps) and set(np.flatnonzero(poisoned)) < set(steps)
    clean = [row for row in steps if not poisoned[row]]
    others = np.setdiff1d(np.arange(48), steps)
    assert set(masks[others]) <= set(masks[clean]) and len(set(masks[others])) > 3
    np.testing.assert_allclose(masks[steps], sizes_of(tiny_model, tiny_processor, tiny_pairs, steps), atol=1e-6)
    assert table.masks_of(*given, None, tmp_path)[1] == 48
    arrays = {"is_poisoned": poisoned, "image": np.random.default_rng(0).normal(size=(48, 8)), "masks": masks}
    victim = {
        "attack": "badnets",
        "seed": 0,
        "ba@1": 0.5,
        "asr@1": 1.0,
        "run": "x",
        "rates": {},
        "n_distilled": looked,
    }
    table.RATES = (0.1,)
    list(table.fill(victim, arrays, [COGNITIVE, "k_distance", "clip_score"], 1))
    assert list(victim["rates"]["0.1"]["detectors"]) == [COGNITIVE, "k_distance"]
    assert "looked at 18 rows" in table.markdown({"victims": {"x": victim}})


# -- images alone -----------------------------------------------------------------------------------------------------


@pytest.fixture
def embedded(monkeypatch):
    """Return a list of (rows, whether with their texts) that grows with each shard that is embedded."""
    calls, real = [], embeddings.embed_dataset

    def counted(model, processor, rows, **options):
        calls.append((len(rows), options["texts"]))
        return real(model, processor, rows, **options)

    monkeypatch.setattr(embeddings, "SHARD_ROWS", 20)
    monkeypatch.setattr(embeddings, "embed_dataset", counted)
    return calls


def test_images_alone_are_taken_from_a_full_cache_but_not_the_other_way_round(
    tiny_model, tiny_processor, tiny_pairs, tmp_path, embedded
):
    given = (tiny_model, tiny_processor, tiny_pairs)
    alone = cached_embeddings(*given, tmp_path / "a", texts=False)
    assert embedded == [(20, False), (20, False), (8, False)] and sorted(alone) == ["image", "picture"]
    assert not list((tmp_path / "a").glob("*/text.npy"))
    whole = cached_embeddings(*given, tmp_path / "a")
    assert embedded[3:] == [(20, True), (20, True), (8, True)] and sorted(whole) == ["image", "picture", "text"]
    expected = embed_dataset(*given)
    for name in ("image", "text"):
        np.testing.assert_allclose(whole[name], expected[name], atol=1e-5)
    np.testing.assert_allclose(alone["image"], expected["image"], atol=1e-5)
    again = cached_embeddings(*given, tmp_path / "a", texts=False)
    assert len(embedded) == 6 and sorted(again) == ["image", "picture"]
    assert len(cached_embeddings(*given, tmp_path / "a")) == 3 and len(embedded) == 6


def test_a_changed_shard_of_images_alone_leaves_no_stale_text(
    tiny_model, tiny_processor, tiny_pairs, tmp_path, embedded
):
    given = (tiny_model, tiny_processor)
    cached_embeddings(*given, tiny_pairs, tmp_path)
    other = tiny_pairs.select([*range(25), 24, *range(26, 48)])  # in the second shard
    cached_embeddings(*given, other, tmp_path, texts=False)
    assert embedded[3:] == [(20, False)]
    found = cached_embeddings(*given, other, tmp_path)
    assert embedded[4:] == [(20, True)] and len(list(tmp_path.iterdir())) == 1
    np.testing.assert_allclose(found["text"], embed_dataset(*given, other)["text"], atol=1e-5)
    assert cached_embeddings(*given, tiny_pairs, tmp_path, texts=False)["image"].shape == (48, 16)
    assert len(embedded) == 5  # as it was


def test_a_full_job_that_was_killed_goes_on_beside_images_alone(
    tiny_model, tiny_processor, tiny_pairs, tmp_path, embedded, monkeypatch
):
    given = (tiny_model, tiny_processor, tiny_pairs, tmp_path)
    cached_embeddings(*given, texts=False)
    real = embeddings.embed_dataset

    def dying(model, processor, rows, **options):
        if len(embedded) == 4:
            raise KeyboardInterrupt
        return real(model, processor, rows, **options)

    monkeypatch.setattr(embeddings, "embed_dataset", dying)
    with pytest.raises(KeyboardInterrupt):
        cached_embeddings(*given)
    monkeypatch.setattr(embeddings, "embed_dataset", real)
    found = cached_embeddings(*given, texts=False)
    assert len(embedded) == 4  # what was done stays, though nobody asked for its texts
    np.testing.assert_allclose(found["image"], embed_dataset(*given[:3])["image"], atol=1e-5)
    found = cached_embeddings(*given)
    assert embedded[4:] == [(20, True), (8, True)]
    np.testing.assert_allclose(found["text"], embed_dataset(*given[:3])["text"], atol=1e-5)


def test_the_same_rows_are_left_out_with_and_without_texts(tiny_model, tiny_processor, tiny_pairs, tmp_path):
    rows = list(tiny_pairs.cast_column("image", datasets.Image(decode=False)).select(range(9)))
    rows[2] |= {"image": None}
    rows[5] |= {"caption": None}
    pairs = datasets.Dataset.from_list(rows, features=tiny_pairs.features)
    for name, asked in (("one", (False, True)), ("other", (True, False))):
        found = []
        for texts in asked:
            bad: dict[int, str] = {}
            given = (tiny_model, tiny_processor, pairs, tmp_path / name)
            found.append(np.array(cached_embeddings(*given, unreadable=bad, texts=texts)["image"]))
            assert list(bad) == [2, 5]
        assert found[0].shape == (7, 16)
        np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    with pytest.raises(ValueError, match="Row 2"):
        cached_embeddings(tiny_model, tiny_processor, pairs, tmp_path / "one", texts=False)


def test_a_cache_of_an_older_version_does_no_harm(tiny_model, tiny_processor, tiny_pairs, tmp_path, embedded):
    given = (tiny_model, tiny_processor, tiny_pairs, tmp_path)
    cached_embeddings(*given)
    (folder,) = tmp_path.iterdir()
    for part in folder.iterdir():
        part.unlink()
    for place in (folder, folder / "hash of all shards"):  # arrays of whole datasets lay there
        place.mkdir(exist_ok=True)
        (place / "state.json").write_text(json.dumps({"finished": True, "shards": {"0": {}}}))
        np.save(place / "image.npy", np.zeros((48, 16), np.float32))
    found = cached_embeddings(*given)
    np.testing.assert_allclose(found["text"], embed_dataset(*given[:3])["text"], atol=1e-5)
    assert len(embedded) == 6


def test_a_second_encoder_embeds_no_captions(work, tmp_path, monkeypatch):
    counts = {"images": 0, "texts": 0}
    for name in counts:
        real = getattr(features, f"embed_{name}")

        def counted(model, *given, name=name, real=real, **options):
            counts[name] += 1
            return real(model, *given, **options)

        monkeypatch.setattr(features, f"embed_{name}", counted)
    given = ["--model", "scenes", "--second", work / "model", "--cache", tmp_path / "cache", "--no_filtered"]
    assert detect(work, tmp_path / "out", *given, "--cache", tmp_path / "cache") == 0
    assert counts == {"images": 2, "texts": 1}
    assert np.isfinite(scores_of(tmp_path / "out")["combined"]).all()


def test_kept_masks_are_those_of_rows_seed_and_weights(tiny_model, tiny_processor, tiny_pairs, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(distilling, "mask_sizes", lambda m, p, rows, *_: calls.append(1) or np.full(len(rows), 0.5))

    def masks(rows=(3, 1), seed=0):
        distilling.cached_mask_sizes(tiny_model, tiny_processor, tiny_pairs, tmp_path, np.array(rows), seed=seed)
        return len(calls)

    assert [masks(), masks(), masks(seed=1), masks((1, 3)), masks((3, 2))] == [1, 1, 2, 3, 4]
    monkeypatch.setattr(distilling, "OPTIONS", {**distilling.OPTIONS, "alpha": 0.5})
    assert masks() == 5
