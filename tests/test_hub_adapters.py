# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Low-rank adapters over the Hub's protocol: small, onto the base they name by its commit, with the same logits."""

import json
import shutil

import numpy as np
import PIL.Image
import pytest
import torch
from huggingface_hub import HfApi, ModelCard, snapshot_download
from peft import PeftModel

from fabricated_run import fabricate_run, give_adapters
from hf_clipbd.hub import plan_push, push_run
from hf_clipbd.models import CLIPResNetModel, load_dual_encoder
from hub_wire import AFTER, BEFORE, HALFWAY


BASE, REPO = "tester/victim", "tester/adapters"
ALWAYS = 99


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return fabricate_run(tmp_path_factory.mktemp("runs") / "original")


@pytest.fixture
def run(original, tmp_path, tiny_model, tiny_processor):
    """A run whose defence trained adapters, as the stage leaves it, and whose victim is on the disk."""
    run = shutil.copytree(original, tmp_path / "run")
    tiny_model.save_pretrained(run / "victim")
    folder = run / "defend" / "cleanerclip"
    give_adapters(run, "defend/cleanerclip", tiny_model, 0.1)
    for where in (folder, run / "victim"):
        tiny_processor.save_pretrained(where)
    return run


def logits(model, processor):
    pixels = np.random.default_rng(3).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    texts = ["a red boat", "a dog"]
    inputs = processor(text=texts, images=PIL.Image.fromarray(pixels), return_tensors="pt", padding=True)
    with torch.inference_mode():
        return model.eval()(**inputs).logits_per_image


def push(run):
    return push_run(run, REPO, "defend/cleanerclip", base=BASE)


def test_adapters_come_back_onto_their_base_with_the_same_logits(run, hub):
    push_run(run, BASE, "victim", allow_backdoored=True)
    push(run)
    files = {path: one.data for path, one in hub.repos["model", REPO].files.items()}
    assert hub.repos["model", REPO].private and "model.safetensors" not in files and "config.json" not in files
    assert {"adapter_model.safetensors", "adapter_config.json", "attack.json", "records/evaluate/victim.json"} <= set(
        files
    )
    assert len(files["adapter_model.safetensors"]) < (run / "victim" / "model.safetensors").stat().st_size / 2
    head = hub.repos["model", BASE].refs["main"]
    named = json.loads(files["adapter_config.json"])
    assert (named["base_model_name_or_path"], named["revision"]) == (BASE, head)
    assert not any(str(run).encode() in data for data in files.values())

    whole, victim = (load_dual_encoder(run / what) for what in ("defend/cleanerclip", "victim"))
    assert not torch.allclose(logits(*whole), logits(*victim), atol=1e-2)
    assert torch.allclose(logits(*load_dual_encoder(REPO)), logits(*whole), atol=1e-5)
    onto = PeftModel.from_pretrained(CLIPResNetModel.from_pretrained(BASE), snapshot_download(REPO))
    assert torch.allclose(logits(onto, whole[1]), logits(*whole), atol=1e-4)

    HfApi().upload_file(path_or_fileobj=b"other weights", path_in_repo="model.safetensors", repo_id=BASE)
    assert torch.allclose(logits(*load_dual_encoder(REPO)), logits(*whole), atol=1e-5)


def test_a_plan_of_adapters_names_what_goes_up_and_leaves_the_base_alone(run, hub):
    plan = plan_push(run, REPO, "defend/cleanerclip", base=BASE)
    assert hub.seen == [] and plan.base == BASE
    push_run(run, BASE, "victim", allow_backdoored=True)
    push(run)
    files = {path: len(one.data) for path, one in hub.repos["model", REPO].files.items() if path != ".gitattributes"}
    assert plan.files == files


def test_card_of_adapters_names_their_base(run, hub):
    push_run(run, BASE, "victim", allow_backdoored=True)
    push(run)
    card = ModelCard.load(REPO)
    data = card.data
    assert (data.base_model, data.to_dict()["base_model_relation"], data.library_name) == (BASE, "adapter", "peft")
    assert "lora" in data.tags and "backdoored" not in data.tags and len(data.eval_results) == 8
    assert f"on top of [`{BASE}`]" in card.text and "which is backdoored" in card.text
    assert hub.repos["model", BASE].refs["main"][:7] in card.text


def test_base_that_is_not_what_was_trained_on_is_refused(run, hub):
    with pytest.raises(OSError, match="tester/victim"):
        push(run)
    HfApi().create_repo(BASE)
    with pytest.raises(ValueError, match="Push that model first"):
        push(run)
    HfApi().upload_file(path_or_fileobj=b"other weights", path_in_repo="model.safetensors", repo_id=BASE)
    with pytest.raises(ValueError, match="model.safetensors"):
        push(run)
    assert ("model", REPO) not in hub.repos


def test_run_without_adapters_has_none_to_push(run, hub):
    push_run(run, BASE, "victim", allow_backdoored=True)
    shutil.rmtree(run / "defend" / "cleanerclip" / "adapter")
    with pytest.raises(FileNotFoundError, match="`lora`"):
        push(run)
    with pytest.raises(ValueError, match="Leave `base` out"):
        push_run(run, REPO, "poison", allow_backdoored=True, base=BASE)
    assert ("model", REPO) not in hub.repos


@pytest.mark.parametrize("broken", [("upload", HALFWAY), ("commit", BEFORE), ("commit", AFTER), ("batch", 500)])
def test_push_of_adapters_that_breaks_is_completed_by_a_second(run, hub, broken):
    push_run(run, BASE, "victim", allow_backdoored=True)
    hub.fail(*broken, times=1 if broken[1] == AFTER else ALWAYS)
    with pytest.raises(ConnectionError, match="Push again"):
        push(run)
    there = set(hub.repos["model", REPO].files)
    assert hub.repos["model", REPO].private
    assert there == {".gitattributes"} if broken[1] != AFTER else "adapter_model.safetensors" in there
    hub.heal()
    push(run)
    assert len(hub.repos["model", REPO].commits) == 2
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors"} < set(hub.repos["model", REPO].files)


def test_whole_model_in_the_place_of_adapters_and_back(run, hub):
    push_run(run, BASE, "victim", allow_backdoored=True)
    push_run(run, REPO, "defend/cleanerclip")
    push(run)
    assert not {"model.safetensors", "config.json"} & set(hub.repos["model", REPO].files)
    push_run(run, REPO, "defend/cleanerclip")
    assert not {"adapter_model.safetensors", "adapter_config.json"} & set(hub.repos["model", REPO].files)
