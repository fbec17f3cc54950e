# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Push, list, download and load over a server that speaks the Hub's protocol, with the real client; and failures."""

import json
import logging
import shutil
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
from huggingface_hub import HfApi, ModelCard, hf_hub_download, snapshot_download

from hf_clipbd.cli import main
from hf_clipbd.hub import push_run
from hf_clipbd.models import resolve_file
from hub_server import STRANGER, TOKEN
from hub_wire import AFTER, BEFORE, HALFWAY


REPO = "tester/defended"
ALWAYS = 99


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


def test_command_pushes_in_private_and_says_what_comes_next(run, hub, capsys):
    assert main(["push", str(run), "--repo_id", REPO, "--what", "defend/ft"]) == 0
    shown = capsys.readouterr().out
    repository = hub.repos["model", REPO]
    assert f"defend/ft is at {hub.url}/{REPO}/commit/{repository.refs['main']}" in shown
    assert f"hf-clipbd verify {REPO}" in shown and repository.private
    victim = ["push", str(run), "--repo_id", "tester/victim", "--what", "victim"]
    assert main(victim) == 2 and ("model", "tester/victim") not in hub.repos
    assert main([*victim, "--allow-backdoored", "--public"]) == 0
    assert not hub.repos["model", "tester/victim"].private
    assert main(["push", str(run), "--repo_id", "stranger/it", "--what", "defend/ft"]) != 0
    assert "status 403" in capsys.readouterr().err


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
