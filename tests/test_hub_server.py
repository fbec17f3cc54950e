# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Push, list, download and load over a server that speaks the Hub's protocol, with the real client; and failures."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from huggingface_hub import HfApi, ModelCard, hf_hub_download, snapshot_download

from fabricated_run import fabricate_run
from hf_clipbd.attacks import Attack, BadNets
from hf_clipbd.cli import main
from hf_clipbd.data.canvas import Canvas
from hf_clipbd.hub import push_run
from hf_clipbd.models import load_dual_encoder, resolve_file
from hf_clipbd.recipe.config import config_from
from hf_clipbd.recipe.measuring import measure
from hf_clipbd.recipe.verify import verify
from hf_clipbd.recipe.world import World
from hf_clipbd.schema import RunRecord
from hub_server import STRANGER, TOKEN, open_hub
from hub_wire import AFTER, BEFORE, HALFWAY


REPO = "tester/defended"
ALWAYS = 99
LOAD = """
import sys, datasets, numpy, torch, PIL.Image
from huggingface_hub import constants
from hf_clipbd.attacks import Attack, BadNets
from hf_clipbd.models import CLIPResNetModel, load_dual_encoder

repo, data, local, out = sys.argv[1:]
picture = PIL.Image.open(out + "/picture.png")


def predict(model, processor):
    inputs = processor(text=["a red boat", "a dog"], images=picture, return_tensors="pt", padding=True)
    with torch.inference_mode():
        return model.eval()(**inputs).logits_per_image


for when in ("online", "offline"):
    constants.HF_HUB_OFFLINE = when == "offline"
    model, processor = load_dual_encoder(repo)
    mine, _ = load_dual_encoder(local)
    weights = mine.state_dict()
    assert all(torch.equal(one, weights[name]) for name, one in model.state_dict().items())
    logits = predict(model, processor)
    assert torch.equal(logits, predict(mine, processor))
    assert torch.equal(logits, predict(CLIPResNetModel.from_pretrained(repo), processor))
    stamped = numpy.asarray(Attack.from_pretrained(repo)(picture, 3))
    numpy.savez(out + "/" + when, logits=logits.numpy(), stamped=stamped)
constants.HF_HUB_OFFLINE = False
rows = datasets.load_dataset(data, split="train", cache_dir=out + "/cache")
stamped = numpy.asarray(Attack.from_pretrained(data, repo_type="dataset")(picture, 3))
pixels = numpy.stack([numpy.asarray(row["image"]) for row in rows])
numpy.savez(out + "/data", pixels=pixels, is_poisoned=rows["is_poisoned"][:], stamped=stamped)
"""


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return fabricate_run(tmp_path_factory.mktemp("runs") / "original")


@pytest.fixture
def run(original, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(original, tmp_path / "run")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A server that the client of this process talks to, in the name of `tester`, with no waits between retries."""
    with open_hub(monkeypatch, tmp_path / "hub_cache") as server:
        yield server


def published(hub, repo_id=REPO, kind="model"):
    return {path: one.data for path, one in hub.repos[kind, repo_id].files.items() if path != ".gitattributes"}


def with_dataset(run, tmp_path):
    """Give the run a poisoned dataset of five pictures that lie in files, and return their pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    paths = [str(tmp_path / f"{row}.png") for row in range(5)]
    for path, one in zip(paths, pixels, strict=True):
        PIL.Image.fromarray(one).save(path)
    features = datasets.Features({"image": datasets.Image(), "is_poisoned": datasets.Value("bool")})
    rows = datasets.Dataset.from_dict({"image": paths, "is_poisoned": [True] + 4 * [False]}, features=features)
    rows.save_to_disk(str(run / "poison" / "dataset"))
    return pixels


def valid_config(run, **world):
    """Give the run a configuration that `hf-clipbd run` takes, and return it: the invented one has invented keys."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["world"] |= world
    config["defenses"] = {name: {"num_train_epochs": 3} for name in config["defenses"]}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    return config


# -- push, list, download ---------------------------------------------------------------------------------------------


def test_one_private_commit_with_all_that_belongs_together(run, hub, tmp_path):
    (run / "report" / "figures").mkdir(parents=True)
    PIL.Image.new("RGB", (9, 9)).save(run / "report" / "figures" / "map.png")
    address = push_run(run, REPO)
    repository = hub.repos["model", REPO]
    assert repository.private and list(repository.titles.values())[1:] == ["Add defend/cleanerclip with its records"]
    assert address == f"{hub.url}/{REPO}/commit/{repository.refs['main']}"
    files = published(hub)
    assert {
        "README.md", "model.safetensors", "config.json", "processor_config.json", "attack.json", "trigger.png",
        "manifest.json", "figures/map.png", "pictures/poisoned.png", "records/config.yaml", "records/poison.json",
        "records/evaluate/cleanerclip.json", "records/defend/cleanerclip.json",
    } <= set(files)  # fmt: skip
    assert files["model.safetensors"] == (run / "defend" / "cleanerclip" / "model.safetensors").read_bytes()
    assert {"validate", "batch", "upload", "verify", "commit"} <= set(hub.seen) and hub.seen.count("commit") == 1
    api = HfApi()
    assert [one.id for one in api.list_models(author="tester")] == [REPO]
    assert list(HfApi(token=STRANGER).list_models(author="tester")) == []
    assert sorted(api.list_repo_files(REPO)) == sorted([*files, ".gitattributes"])
    folder = Path(snapshot_download(REPO))
    assert {name: (folder / name).read_bytes() for name in files} == files
    assert len(ModelCard.load(REPO).data.eval_results) == 8


def test_same_push_again_makes_no_commit(run, hub):
    assert push_run(run, REPO) == push_run(run, REPO)
    assert hub.seen.count("commit") == 1


def test_other_model_in_the_same_place_leaves_nothing_of_the_first(run, hub):
    push_run(run, REPO)
    first = hub.repos["model", REPO].refs["main"]
    HfApi().create_tag(REPO, tag="v1")
    HfApi().upload_file(path_or_fileobj=b"mine", path_in_repo="notes.md", repo_id=REPO)
    push_run(run, REPO, "defend/ft")
    files = published(hub)
    assert "records/defend/ft.json" in files and files["notes.md"] == b"mine"
    assert not [name for name in files if "cleanerclip" in name]
    old = hf_hub_download(REPO, "records/defend/cleanerclip.json", revision="v1")
    assert old == hf_hub_download(REPO, "records/defend/cleanerclip.json", revision=first)


def test_backdoored_and_unevaluated_things_are_not_sent(run, hub):
    for what in ("victim", "poison"):
        with pytest.raises(ValueError, match="allow_backdoored=True"):
            push_run(run, REPO, what)
    shutil.rmtree(run / "evaluate" / "ft")
    with pytest.raises(FileNotFoundError, match="evaluate/ft"):
        push_run(run, REPO, "defend/ft")
    with pytest.raises(ValueError, match="owner/name"):
        push_run(run, "defended")
    assert hub.seen == [] and hub.repos == {}


def test_victim_goes_up_on_request_and_says_what_it_is(run, hub):
    push_run(run, "tester/victim", "victim", allow_backdoored=True)
    card = ModelCard.load("tester/victim")
    assert hub.repos["model", "tester/victim"].private and "backdoored" in card.data.tags
    assert card.text.strip().startswith("**This model is backdoored on purpose.**")


def test_nothing_private_goes_into_a_public_repository(run, hub):
    HfApi().create_repo(REPO, private=False)
    with pytest.raises(ValueError, match="is public"):
        push_run(run, REPO)
    assert published(hub) == {} and hub.store == {}
    push_run(run, REPO, private=False)
    assert "model.safetensors" in published(hub)


# -- load and predict -------------------------------------------------------------------------------------------------


def test_loaded_model_trigger_and_dataset_are_what_was_pushed(run, hub, tmp_path, tiny_model, tiny_processor):
    tiny_model.save_pretrained(run / "defend" / "cleanerclip")
    tiny_processor.save_pretrained(run / "defend" / "cleanerclip")
    pixels = with_dataset(run, tmp_path)
    push_run(run, REPO)
    push_run(run, "tester/poisoned", "poison", allow_backdoored=True)
    picture = PIL.Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    picture.save(tmp_path / "picture.png")
    environment = {
        **os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
    }  # fmt: skip
    local = str(run / "defend" / "cleanerclip")
    job = [sys.executable, "-c", LOAD, REPO, "tester/poisoned", local, str(tmp_path)]
    done = subprocess.run(job, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    inputs = tiny_processor(text=["a red boat", "a dog"], images=picture, return_tensors="pt", padding=True)
    with torch.inference_mode():
        logits = tiny_model(**inputs).logits_per_image
    stamped = np.asarray(Attack.from_pretrained(run / "poison" / "trigger")(picture, 3))
    assert not np.array_equal(stamped, np.asarray(picture))
    for when in ("online", "offline"):
        got = np.load(tmp_path / f"{when}.npz")
        assert np.allclose(got["logits"], logits.numpy(), atol=1e-4) and np.array_equal(got["stamped"], stamped)
    data = np.load(tmp_path / "data.npz")
    assert np.array_equal(data["pixels"], pixels) and data["is_poisoned"].tolist() == [True] + 4 * [False]
    assert np.array_equal(data["stamped"], stamped)
    assert hub.leaked == [] and TOKEN not in done.stdout + done.stderr


def test_published_model_is_measured_again(run, hub, tiny_model, tiny_processor, capsys):
    folder = run / "defend" / "cleanerclip"
    tiny_model.save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    config = valid_config(run, kind="scenes", path=None, size=32, n_test=70, clean_model="scenes")
    BadNets(target="banana", seed=7, patch_size=4, canvas=Canvas(32)).save_pretrained(run / "poison" / "trigger")
    parsed = config_from({**config, "output_dir": str(run)})
    measured = measure(parsed, World(parsed), *load_dual_encoder(folder))
    record = RunRecord.load(run / "evaluate" / "cleanerclip")
    record.metrics["report"] = measured.to_dict()
    record.save(run / "evaluate" / "cleanerclip")
    push_run(run, REPO)
    first = hub.repos["model", REPO].refs["main"]
    record.metrics["report"]["ba"]["1"]["value"] = 0.9
    record.save(run / "evaluate" / "cleanerclip")
    push_run(run, REPO)
    rates = {"BA@1": measured.ba[1].value, "ASR@1 badnets": measured.triggers["badnets"].asr[1].value}
    shown = {one.figure: (one.model, one.recorded, one.measured) for one in verify(REPO, revision=first)}
    assert shown == {figure: ("cleanerclip", rate, rate) for figure, rate in rates.items()}
    assert main(["verify", REPO]) == 1
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()[1:]] == ["DIFFERS", "recorded"]


def test_images_of_another_machine_have_to_be_given(run, hub):
    valid_config(run)
    push_run(run, REPO)
    with pytest.raises(FileNotFoundError, match=r"…/invented_photographs.*`--data`"):
        list(verify(REPO))


# -- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "broken"),
    [
        ("defend/cleanerclip", ("upload", HALFWAY)),
        ("victim", ("upload", HALFWAY)),
        ("poison", ("upload", HALFWAY)),
        ("defend/cleanerclip", ("commit", BEFORE)),
        ("poison", ("commit", 500)),
        ("victim", ("batch", 500)),
        ("defend/cleanerclip", ("preupload", 429)),
    ],
)
def test_push_that_breaks_leaves_nothing_and_a_second_completes_it(run, hub, tmp_path, what, broken):
    with_dataset(run, tmp_path)
    kind = "dataset" if what == "poison" else "model"
    hub.fail(*broken, times=ALWAYS)
    with pytest.raises(ConnectionError, match="Push again"):
        push_run(run, REPO, what, allow_backdoored=True)
    assert published(hub, kind=kind) == {} and hub.repos[kind, REPO].private
    hub.heal()
    push_run(run, REPO, what, allow_backdoored=True)
    assert {"README.md", "records/poison.json"} < set(published(hub, kind=kind))


def test_what_has_arrived_is_not_sent_again(run, hub):
    hub.fail("commit", BEFORE)
    with pytest.raises(ConnectionError):
        push_run(run, REPO)
    sent = hub.seen.count("upload")
    push_run(run, REPO)
    assert sent > 0 and hub.seen.count("upload") == sent


def test_answer_that_is_lost_is_no_second_commit(run, hub):
    hub.fail("commit", AFTER)
    with pytest.raises(ConnectionError, match="broke"):
        push_run(run, REPO)
    push_run(run, REPO)
    assert hub.seen.count("commit") == 1 and "README.md" in published(hub)


@pytest.mark.parametrize(("what", "how"), [("upload", HALFWAY), ("upload", 500), ("batch", 429), ("preupload", 500)])
def test_passing_trouble_is_ridden_out(run, hub, what, how):
    hub.fail(what, how, times=2)
    push_run(run, REPO)
    assert "model.safetensors" in published(hub) and len(hub.waits) >= 2


def test_client_waits_as_long_as_the_server_asks(run, hub):
    hub.fail("batch", 429, **{"Retry-After": "7"})
    push_run(run, REPO)
    assert hub.waits == [8.0]


def test_somebody_elses_commit_in_between_stops_the_push(run, hub, monkeypatch):
    create_commit = HfApi.create_commit

    def after_another(self, repo_id, *arguments, **options):
        hub.repos["model", repo_id].add("Another", {})
        return create_commit(self, repo_id, *arguments, **options)

    monkeypatch.setattr(HfApi, "create_commit", after_another)
    with pytest.raises(OSError, match="commit has happened since"):
        push_run(run, REPO)
    assert published(hub) == {}


@pytest.mark.parametrize(
    ("repo_id", "token", "status"), [("tester/it", "", 401), ("stranger/it", TOKEN, 403), ("tester/it", "wrong", 401)]
)
def test_who_may_not_write_is_told_so(run, hub, monkeypatch, repo_id, token, status):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(PermissionError, match=rf"status {status}.*hf auth login"):
        push_run(run, repo_id)
    assert hub.repos == {}


def test_revoked_right_in_the_middle_is_told_so(run, hub):
    hub.fail("commit", 403)
    with pytest.raises(PermissionError, match="does not let you write to `tester/defended`"):
        push_run(run, REPO)
    assert published(hub) == {}


def test_card_the_hub_refuses_is_an_error_before_any_upload(run, hub):
    hub.fail("validate", 400)
    with pytest.raises(ValueError, match="Invalid metadata in README.md"):
        push_run(run, REPO)
    assert hub.store == {} and published(hub) == {}


@pytest.mark.parametrize(
    ("token", "file", "revision", "says"),
    [
        ("", "attack.json", None, "that you may read"),
        (STRANGER, "attack.json", None, "that you may read"),
        (TOKEN, "attack.json", "v9", "no revision 'v9'"),
        (TOKEN, "absent.json", None, "no file 'absent.json'"),
    ],
)
def test_what_cannot_be_downloaded_is_told_so(run, hub, monkeypatch, token, file, revision, says):
    push_run(run, REPO)
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(FileNotFoundError, match=says):
        resolve_file(REPO, file, revision)


def test_hub_in_trouble_is_no_missing_file_in_the_cache(run, hub):
    push_run(run, REPO)
    path = resolve_file(REPO, "attack.json")
    hub.fail("resolve", 500, times=ALWAYS)
    assert resolve_file(REPO, "attack.json") == path
    with pytest.raises(FileNotFoundError, match="Hub cannot be reached"):
        resolve_file(REPO, "manifest.json")


def test_download_that_breaks_halfway_is_completed(run, hub):
    weights = run / "defend" / "cleanerclip" / "model.safetensors"
    weights.write_bytes(np.random.default_rng(0).bytes(300_000))
    push_run(run, REPO)
    hub.fail("content", HALFWAY)
    assert Path(hf_hub_download(REPO, "model.safetensors")).read_bytes() == weights.read_bytes()
    assert hub.seen.count("content") == 2


# -- token ------------------------------------------------------------------------------------------------------------


def test_token_is_in_nothing_that_is_sent_or_logged(run, hub, caplog, capfd):
    for stage in ("poison", "victim", "evaluate/victim", "defend/cleanerclip"):
        path = run / stage / "record.json"
        record = json.loads(path.read_text())
        path.write_text(json.dumps({**record, "command": f"defend.py --hub_token {TOKEN} --seed 7"}))
    hub.fail("upload", 500, times=2)
    with caplog.at_level(logging.DEBUG):
        push_run(run, REPO)
    hub.fail("batch", 500, times=ALWAYS)
    (run / "defend" / "cleanerclip" / "model.safetensors").write_bytes(b"others")
    with caplog.at_level(logging.DEBUG), pytest.raises(ConnectionError) as broken:
        push_run(run, REPO)
    shown = capfd.readouterr()
    assert TOKEN not in caplog.text + shown.out + shown.err + str(broken.value)
    assert "records/defend/cleanerclip.json" in published(hub)
    assert not [name for name, data in published(hub).items() if TOKEN.encode() in data]
    assert hub.leaked == []


@pytest.mark.parametrize("secret", [STRANGER, "an-enterprise-token"])
def test_file_that_holds_a_token_is_not_sent(run, hub, monkeypatch, secret):
    monkeypatch.setenv("HF_TOKEN", secret)
    (run / "defend" / "cleanerclip" / "tokenizer_config.json").write_text(json.dumps({"auth": secret}))
    with pytest.raises(ValueError, match="`tokenizer_config.json` holds one"):
        push_run(run, REPO)
    assert hub.seen == []
