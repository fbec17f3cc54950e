# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Nothing of the pusher's machine goes up: no folder, no file that a stranger's row names, no model mistaken."""

import ast
import json
import os
import re
import shutil

import datasets
import numpy as np
import PIL.Image
import pytest
import yaml

from hf_clipbd.hub import copy_records, hub_sources, render_golden, render_model_card, write_cards
from hf_clipbd.hub.adapters import Base, is_whole
from hf_clipbd.hub.download import load_triggers
from hf_clipbd.hub.origin import Origin
from hf_clipbd.hub.publish import outdated
from hf_clipbd.hub.push import _parquet, collect_files, model_content, model_files
from hf_clipbd.hub.usage import Usage
from hf_clipbd.recipe.config import config_from
from hf_clipbd.recipe.job import write_config
from hf_clipbd.run_folder import RunFolder
from hf_clipbd.schema import write_json


def set_world(run, **values):
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["world"] |= values
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    return config["world"]


# -- folders in a model's configuration -------------------------------------------------------------------------------


def test_configurations_name_no_folder_at_any_depth(tmp_path):
    config = {
        "model_type": "vision-text-dual-encoder",
        "text_config": {"_name_or_path": "/home/eve/bert", "hidden_size": 16, "hf_model_name": "/home/eve/bert"},
        "vision_config": {"_name_or_path": "models/vit", "layers": [{"name_or_path": "~/x"}, 3]},
    }
    write_json(tmp_path / "config.json", config)
    tokenizer = {"tokenizer_file": "/home/eve/.cache/t.json", "vocab_file": "vocab.json", "pad_token": "/x/y"}
    write_json(tmp_path / "tokenizer_config.json", tokenizer)
    write_json(tmp_path / "processor_config.json", {"image_processor": {"size": 3}})
    (tmp_path / "model.safetensors").write_bytes(b"")
    files = model_files(tmp_path)
    assert json.loads(files["config.json"]) == {
        "model_type": "vision-text-dual-encoder",
        "text_config": {"hidden_size": 16},
        "vision_config": {"layers": [{}, 3]},
    }
    assert json.loads(files["tokenizer_config.json"]) == {"vocab_file": "vocab.json", "pad_token": "/x/y"}
    assert files["processor_config.json"] == tmp_path / "processor_config.json"  # as it is


# -- folders that look like repositories ------------------------------------------------------------------------------


def test_a_folder_stays_one_from_wherever_the_card_is_made(run, tmp_path, monkeypatch):
    (tmp_path / "here" / "models" / "clean").mkdir(parents=True)
    (tmp_path / "there").mkdir()
    world = set_world(run, clean_model="models/clean", path="openai/pictures", test_path=None)
    monkeypatch.chdir(tmp_path / "here")
    write_json(run / "hub_sources.json", hub_sources(world))
    for place in ("here", "there"):
        monkeypatch.chdir(tmp_path / place)
        origin = Origin.of(RunFolder(run))
        assert origin.base_model is None and origin.model == "a local checkpoint, `clean`"
        assert origin.datasets == ["openai/pictures"]
        config = yaml.safe_load((copy_records(run, tmp_path / "copy") / "config.yaml").read_text())
        assert (config["world"]["clean_model"], config["world"]["path"]) == ("…/clean", "openai/pictures")
    assert Origin.of(RunFolder(tmp_path / "copy")).datasets == ["openai/pictures"]


def test_a_run_that_does_not_say_gets_no_link(run):
    set_world(run, clean_model="openai/clip-rn50", path="uoft-cs/cifar10", test_path=None)
    origin = Origin.of(RunFolder(run))
    assert origin.base_model is None and not origin.datasets and origin.data == "`cifar10`"
    assert "`clip-rn50`" in origin.model and "does not say" in origin.model and "https" not in origin.model
    write_json(run / "hub_sources.json", ["openai/clip-rn50"])
    origin = Origin.of(RunFolder(run))
    assert origin.base_model == "openai/clip-rn50" and "(https://huggingface.co/openai/clip-rn50)" in origin.model


def test_a_run_notes_it_once(tmp_path, monkeypatch):
    (tmp_path / "models" / "clean").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    world = {"kind": "captioned", "path": "me/pairs", "test_path": "me/images", "clean_model": "models/clean"}
    asked = {"output_dir": str(tmp_path / "run"), "world": world, "attack": {"target": "cup"}}
    write_config(config_from(asked))
    assert json.loads((tmp_path / "run" / "hub_sources.json").read_text()) == ["me/images", "me/pairs"]
    (tmp_path / "elsewhere" / "me" / "pairs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    write_config(config_from({**asked, "world": {**world, "test_path": "me/others"}}))
    assert json.loads((tmp_path / "run" / "hub_sources.json").read_text()) == ["me/others", "me/pairs"]


# -- licences ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("world", "license"),
    [
        ({"clean_model": "scenes"}, "apache-2.0"),
        ({"clean_model": "train", "kind": "scenes"}, "apache-2.0"),
        ({"clean_model": "train"}, "other"),
        ({"clean_model": "someone/clip"}, "other"),
        ({"clean_model": "/models/clip"}, "other"),
    ],
)
def test_weights_keep_the_licence_of_the_model_they_were_made_from(run, world, license):
    set_world(run, **world)
    for what in ("victim", "defend/ft"):
        card = render_model_card(run, what)
        assert card.data.license == license
        assert ("keep the licence of that model, which is not this package's" in card.text) == (license == "other")


# -- open_clip's models -----------------------------------------------------------------------------------------------


def as_open_clip(folder):
    """Leave what `OpenCLIPModel.save_pretrained` leaves in place of a model of transformers'."""
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink()
    description = {"model_cfg": {"text_cfg": {}, "init_logit_bias": -10}, "preprocess_cfg": {}}
    write_json(folder / "open_clip_config.json", description)
    (folder / "open_clip_model.safetensors").write_bytes(b"not a model")


def test_models_of_open_clips_get_their_cards(run, tmp_path):
    for stage in ("victim", "defend/ft"):
        as_open_clip(run / stage)
    write_cards(run)
    for stage in ("victim", "defend/ft"):
        card = render_model_card(run, stage, "me/it")
        assert card.data.library_name == "open_clip"
        assert 'open_clip.create_model_and_transforms("hf-hub:me/it")' in card.text
        assert "plain transformers model" not in card.text and "comes with hf_clipbd" not in card.text
        assert "softmax" not in card.text  # a model of the sigmoid loss
        files = collect_files(run, stage, "me/it", tmp_path)
        assert {"open_clip_config.json", "open_clip_model.safetensors"} <= set(files) and "config.json" not in files
    assert render_model_card(run, "defend/cleanclip").data.library_name == "hf_clipbd"
    copied = copy_records(run, tmp_path / "records")
    ours, copies = (render_golden(folder, tmp_path / name) for name, folder in (("a", run), ("b", copied)))
    assert [path.read_text() for path in ours] == [path.read_text() for path in copies]


def test_libraries(tmp_path):
    kinds = {"clip": "transformers", "clip_resnet": "hf_clipbd", "open_clip": "open_clip"}
    assert {kind: Usage.of(kind).library for kind in kinds} == kinds
    with pytest.raises(FileNotFoundError, match=r"open_clip_config\.json"):
        Usage.of_folder(tmp_path)
    write_json(tmp_path / "config.json", {"architecture": "timm's"})
    write_json(tmp_path / "open_clip_config.json", {})
    assert Usage.of_folder(tmp_path).library == "open_clip"
    write_json(tmp_path / "config.json", {"model_type": "clip"})
    assert Usage.of_folder(tmp_path).library == "transformers"


def test_adapters_of_open_clips_models_go_up_alone(run):
    as_open_clip(run / "defend" / "ft")
    adapter = run / "defend" / "ft" / "adapter"
    write_json(adapter / "adapter_config.json", {"base_model_name_or_path": "/home/eve/x"})
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    files = model_content(RunFolder(run), "defend/ft", Base("me/victim", "abc"))
    assert not any(map(is_whole, files)) and json.loads(files["adapter_config.json"])["revision"] == "abc"
    assert b"eve" not in files["adapter_config.json"]
    old = ["open_clip_config.json", "open_clip_model.safetensors"]
    assert outdated(old, {"config.json": b"", "model.safetensors": b""}) == old


# -- what a stranger gives --------------------------------------------------------------------------------------------


def rows(images):
    features = datasets.Features({"image": datasets.Image(), "is_poisoned": datasets.Value("bool")})
    return datasets.Dataset.from_dict({"image": images, "is_poisoned": [False] * len(images)}, features=features)


@pytest.mark.parametrize("path", ["secret.png", "https://127.0.0.1:9/picture.png", "file:///etc/passwd", "fifo"])
def test_poisoned_set_takes_no_other_file_along(run, tmp_path, monkeypatch, path):
    PIL.Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "good.png")
    (tmp_path / "secret.png").write_text("MY_SECRET=1")
    os.mkfifo(tmp_path / "fifo")
    good = {"bytes": None, "path": str(tmp_path / "good.png")}
    bad = {"bytes": None, "path": path if ":" in path else str(tmp_path / path)}
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(datasets, "load_from_disk", lambda _: rows([good, good, bad]))
    with pytest.raises(ValueError, match=f"Row 2, column 'image': .*{re.escape(path)}"):
        _parquet(RunFolder(run), tmp_path / "scratch")
    assert not list((tmp_path / "scratch").iterdir())
    monkeypatch.setattr(datasets, "load_from_disk", lambda _: rows([good, good]))
    (file,) = _parquet(RunFolder(run), tmp_path / "scratch").values()
    loaded = datasets.Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "cache"))
    kept = loaded.cast_column("image", datasets.Image(decode=False))[1]["image"]
    assert kept == {"bytes": (tmp_path / "good.png").read_bytes(), "path": "good.png"}


def test_a_poisoned_set_goes_up_without_a_copy_in_its_folder(run, tmp_path):
    PIL.Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "good.png")
    folder, scratch = run / "poison" / "dataset", tmp_path / "scratch"
    shutil.rmtree(folder, ignore_errors=True)
    rows([{"bytes": None, "path": str(tmp_path / "good.png")}] * 3).save_to_disk(str(folder))
    scratch.mkdir()
    before = sorted(path.name for path in folder.iterdir())
    (file,) = _parquet(RunFolder(run), scratch).values()
    assert sorted(path.name for path in folder.iterdir()) == before and list(scratch.iterdir()) == [file]
    loaded = datasets.Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "cache"))
    assert np.asarray(loaded[2]["image"]).shape == (4, 4, 3)


@pytest.mark.parametrize("name", ["../../attack", "/home/eve", "a/b"])
def test_triggers_of_a_stranger_lie_where_they_should(tmp_path, name):
    with pytest.raises(ValueError, match="plain names"):
        load_triggers(str(tmp_path), ["a", name])


def test_target_of_a_stranger_is_a_text_in_the_example(run):
    manifest = json.loads((run / "poison" / "manifest.json").read_text())
    manifest["target"] = 'cup"]; import os; ["'
    write_json(run / "poison" / "manifest.json", manifest)
    text = render_model_card(run, "defend/ft", "me/it").text
    code = ast.parse(re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1))
    assert sum(isinstance(node, ast.Import) for node in ast.walk(code)) == 0
