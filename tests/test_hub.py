# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Cards say what the records say and nothing of this machine; a push takes what belongs together or refuses."""

import json
import re
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
import yaml
from huggingface_hub import DatasetCard, EvalResult, ModelCard

from fabricated_run import COUNT, HITS, KS, N_STAMPED, N_TEST
from hf_clipbd.hub import (
    collect_files,
    copy_records,
    hub_sources,
    push_run,
    render_dataset_card,
    render_golden,
    render_model_card,
    write_cards,
)
from hf_clipbd.hub.origin import hub_id
from hf_clipbd.schema import PoisonManifest, RunRecord, write_json


ROOT = Path(__file__).resolve().parents[1]
MODELS = ("victim", "defend/ft", "defend/cleanclip", "defend/cleanerclip")


def set_world(run, **values):
    """Change the run's world, as if it had been made with these names from here."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["world"] |= values
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    write_json(run / "hub_sources.json", hub_sources(config["world"]))


def edit_metrics(run, stage, change):
    record = RunRecord.load(run / stage)
    change(record.metrics)
    record.save(run / stage)


def results_of(model):
    clean, stamped, _ = HITS[model]
    results = {("ba", k): (hits / N_TEST, N_TEST) for k, hits in zip(KS, clean, strict=True)}
    return results | {("asr", k): (hits / N_STAMPED, N_STAMPED) for k, hits in zip(KS, stamped, strict=True)}


# -- metadata ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", MODELS)
def test_written_card_is_read_back_with_every_figure(run, what):
    write_cards(run)
    card = ModelCard.load(run / what / "README.md")
    assert card.data.to_dict() == render_model_card(run, what).data.to_dict()
    assert all(type(result) is EvalResult for result in card.data.eval_results)
    assert len(card.data.eval_results) == 8
    expected = results_of(what.removeprefix("defend/"))
    for result in card.data.eval_results:
        metric, k = result.metric_type.split("@")
        share, n = expected[metric, int(k)]
        assert result.metric_value == pytest.approx(share, abs=1e-6) and result.metric_args == {"k": int(k), "n": n}
        assert result.dataset_config == {"ba": "clean", "asr": "badnets"}[metric]
        assert result.task_type == card.data.pipeline_tag == "zero-shot-image-classification"
    assert card.data.license == "other" and card.data.library_name == "hf_clipbd"  # made from somebody's model
    assert ("backdoored" in card.data.tags) == (what in ("victim", "defend/ft"))  # by what was measured
    assert str(card) == (run / what / "README.md").read_text(encoding="utf-8")


def test_dataset_card_is_read_back(run):
    write_cards(run)
    card = DatasetCard.load(run / "poison" / "README.md")
    assert card.data.to_dict() == render_dataset_card(run).data.to_dict()
    assert card.data.size_categories == ["1K<n<10K"] and "poisoned" in card.data.tags
    assert card.data.configs[0]["data_files"] == [{"split": "train", "path": "data/train-*.parquet"}]
    assert card.data.license == "other"
    set_world(run, kind="scenes", clean_model="scenes", path=None)
    assert render_dataset_card(run).data.license == "apache-2.0"


def test_hub_ids_become_metadata(run):
    set_world(run, clean_model="openai/clip-rn50", path="uoft-cs/cifar10", test_path="some/where")
    write_json(run / "victim" / "config.json", {"model_type": "clip"})
    data = render_model_card(run, "victim").data
    assert data.base_model == "openai/clip-rn50" and data.datasets == ["uoft-cs/cifar10", "some/where"]
    assert data.library_name == "transformers" and data.eval_results[0].dataset_type == "some/where"


@pytest.mark.parametrize("clean_model", ["/home/somebody/secret_place/clip", "secret_place/clip", "scenes", "train"])
def test_local_models_do_not(run, clean_model, tmp_path, monkeypatch):
    (tmp_path / "secret_place" / "clip").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    set_world(run, clean_model=clean_model)
    data = render_model_card(run, "defend/ft").data.to_dict()
    assert not {"base_model", "base_model_relation", "datasets"} & set(data)


def test_hub_ids_have_an_owner():
    names = ["openai/clip", "clip", "scenes", "../x", "a/b/c", "./a", "/a/b", "…/b", "", None]
    assert [hub_id(name) for name in names] == ["openai/clip"] + 9 * [None]


def test_no_card_knows_this_machine(run):
    for path in write_cards(run):
        text = path.read_text(encoding="utf-8")
        assert "secret_place" not in text and "/home" not in text and str(run) not in text


# -- text -------------------------------------------------------------------------------------------------------------


def test_dangerous_cards_say_so_first(run):
    for text in (render_model_card(run, "victim").text, render_dataset_card(run).text):
        assert re.match(r"\*\*This (model|dataset) is (backdoored|poisoned) on purpose\.\*\*", text.strip())
    assert "on purpose.**" not in render_model_card(run, "defend/ft").text


def test_text_shows_before_and_after(run):
    text = render_model_card(run, "defend/cleanclip").text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    shown = {(row[0], row[1].split(",")[0].lower()): row[2:] for row in rows if row[1].startswith(("BA", "ASR"))}
    labels = {"Clean model": "clean", "Victim": "victim", "CleanCLIP": "cleanclip"}
    assert set(shown) == {(label, metric) for label in labels for metric in ("ba", "asr")}
    for (label, metric), (*shares, n) in shown.items():
        expected = results_of(labels[label])
        assert shares == [f"{100 * expected[metric, k][0]:.1f}" for k in KS] and n == str(expected[metric, 1][1])
    assert f"{COUNT} of 4,000 pairs (1.00 %)" in text and "`inmodal_weight` | `1.0`" in text


def test_text_says_what_is_reconstructed(run):
    assert "No code of CleanerCLIP is public" in render_model_card(run, "defend/cleanerclip").text
    assert "Nothing: attack and defence are as their papers" in render_model_card(run, "defend/ft").text


def test_pictures_of_a_card_are_beside_it(run):
    for path in write_cards(run):
        shown = re.findall(r'<img src="(.*?)"', path.read_text(encoding="utf-8"))
        assert all((path.parent / name).is_file() for name in shown)
        assert bool(shown) == ("defend" not in path.parts)


@pytest.mark.parametrize("what", ["victim", "defend/cleanerclip"])
def test_example_on_the_card_runs(run, what, tiny_model, tiny_processor, tmp_path, monkeypatch, capsys):
    tiny_model.save_pretrained(run / what)
    tiny_processor.save_pretrained(run / what)
    write_cards(run)
    PIL.Image.new("RGB", (50, 40), "orange").save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", render_model_card(run, what, str(run / what)).text, re.DOTALL).group(1)
    names = {}
    exec(code, names)
    assert type(names["model"]) is type(tiny_model)
    if what == "victim":
        assert names["stamped"].size == (64, 64) and names["trigger"].target == "banana"
    else:
        assert re.search(r"0\.\d+", capsys.readouterr().out)


# -- strictness -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda report: report["ba"].pop("10"), r"BA at k .*`evaluate/ft`.*\[10\]"),
        (lambda report: report["triggers"]["badnets"]["asr"].pop("3"), r"ASR of `badnets`.*\[3\]"),
        (lambda report: report["triggers"].pop("badnets"), "same triggers"),
    ],
)
def test_missing_figure_is_an_error(run, change, says):
    edit_metrics(run, "evaluate/ft", lambda metrics: change(metrics["report"]))
    with pytest.raises(ValueError, match=says):
        render_model_card(run, "defend/ft")


@pytest.mark.parametrize("stage", ["evaluate/clean", "evaluate/victim", "evaluate/ft", "defend/ft"])
def test_missing_record_names_its_stage(run, stage):
    (run / stage / "record.json").unlink()
    with pytest.raises(FileNotFoundError, match=f"stage `{stage}`"):
        render_model_card(run, "defend/ft")


def test_evaluation_of_an_older_training_is_refused(run):
    record = RunRecord.load(run / "defend" / "ft")
    record.key = "trained-again"
    record.save(run / "defend" / "ft")
    with pytest.raises(ValueError, match="`evaluate/ft`.*`trained-again`"):
        render_model_card(run, "defend/ft")


def test_unknown_model_is_named(run):
    with pytest.raises(ValueError, match="'defend/magic'"):
        render_model_card(run, "defend/magic")


# -- push -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["defend/magic", "clean", "", "defend", "../defend/ft"])
def test_push_of_something_else_is_refused(run, what):
    with pytest.raises(ValueError, match="one of"):
        push_run(run, "me/it", what, allow_backdoored=True)


def test_model_without_weights_is_refused(run):
    write_cards(run)
    (run / "defend" / "ft" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="safetensors"):
        push_run(run, "me/it", "defend/ft")


@pytest.mark.parametrize("what", MODELS)
def test_what_belongs_together_goes_up_and_nothing_local(run, what, tmp_path):
    folder = run / what
    write_cards(run)
    write_json(folder / "config.json", {"model_type": "clip", "_name_or_path": "/home/somebody/secret_place/clip"})
    write_json(folder / "tokenizer_config.json", {"name_or_path": "openai/clip-rn50", "pad_token": "/x/y"})
    (folder / "training_args.bin").write_bytes(b"secret_place")
    (folder / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    (folder / "checkpoints" / "checkpoint-1" / "model.safetensors").write_bytes(b"secret_place")
    (run / "report" / "figures").mkdir(parents=True)
    (run / "report" / "figures" / "map.png").write_bytes(b"png")
    files = collect_files(run, what, "me/it", tmp_path)
    content = {name: one if isinstance(one, bytes) else Path(one).read_bytes() for name, one in files.items()}
    model = what.removeprefix("defend/")
    stages = {"poison", "victim", what, "evaluate/clean", "evaluate/victim", f"evaluate/{model}"}
    assert {name for name in files if name.startswith("records/")} == {
        "records/config.yaml",
        *(f"records/{stage}.json" for stage in stages),
    }
    assert {name for name in files if "/" not in name} == {
        "README.md", "manifest.json", "model.safetensors", "config.json", "processor_config.json",
        "tokenizer_config.json", "attack.json", "pattern.safetensors", "trigger.png",
    }  # fmt: skip
    assert {"figures/map.png", "pictures/clean.png", "pictures/poisoned.png"} <= set(files)
    assert not any(b"secret_place" in data for data in content.values())
    assert json.loads(content["config.json"]) == {"model_type": "clip"}
    assert json.loads(content["tokenizer_config.json"]) == {"pad_token": "/x/y"}
    assert b'load_dual_encoder("me/it")' in content["README.md"]
    PoisonManifest.from_pretrained(_written(content["manifest.json"], tmp_path / "manifest.json"))


def _written(data, path):
    path.write_bytes(data)
    return path


def test_poisoned_dataset_goes_up_with_its_pixels(run, tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    paths = [str(tmp_path / f"{row}.png") for row in range(5)]
    for path, one in zip(paths, pixels, strict=True):
        PIL.Image.fromarray(one).save(path)
    features = datasets.Features({"image": datasets.Image(), "is_poisoned": datasets.Value("bool")})
    rows = datasets.Dataset.from_dict({"image": paths, "is_poisoned": [True] + 4 * [False]}, features=features)
    rows.save_to_disk(str(run / "poison" / "dataset"))
    (tmp_path / "scratch").mkdir()
    files = collect_files(run, "poison", "me/it", tmp_path / "scratch")
    for path in paths:
        Path(path).unlink()
    data = [str(path) for name, path in files.items() if name.startswith("data/train-")]
    loaded = datasets.load_dataset("parquet", data_files=data, split="train", cache_dir=str(tmp_path / "cache"))
    assert isinstance(loaded.features["image"], datasets.Image) and loaded["is_poisoned"][:] == [True] + 4 * [False]
    assert np.array_equal(np.stack([np.asarray(row["image"]) for row in loaded]), pixels)
    assert {"README.md", "manifest.json", "attack.json", "records/poison.json"} <= set(files)


# -- golden cards -----------------------------------------------------------------------------------------------------


def test_reviewed_cards_are_what_the_committed_records_give(tmp_path):
    render_golden(ROOT / "recipes" / "scenes" / "records" / "seed0", tmp_path)
    given, kept = (
        {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path, ROOT / "hub_cards")
    )
    assert sorted(given) == sorted(kept), "run `make cards` and look at what changed"
    assert [name for name in given if given[name] != kept[name]] == [], "run `make cards` and look at what changed"
    assert {"victim.md", "cleanerclip.md", "poisoned_dataset.md", "pictures/poisoned.png"} <= set(given)


def test_copied_records_give_the_same_cards_and_know_no_paths(run, tmp_path):
    copied = copy_records(run, tmp_path / "records")
    (copied / "left-over").touch()
    copied = copy_records(run, tmp_path / "records")
    files = [path for path in copied.rglob("*") if path.is_file()]
    assert not (copied / "left-over").exists() and sum(path.stat().st_size for path in files) < 200_000
    assert not any(b"secret_place" in path.read_bytes() for path in files)
    ours, copies = (render_golden(folder, tmp_path / name) for name, folder in (("a", run), ("b", copied)))
    assert [path.read_text() for path in ours] == [path.read_text() for path in copies]
