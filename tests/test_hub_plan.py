# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""`hf-clipbd push --dry_run`: what it says, against what the push then does; nothing is asked, sent or written."""

import json

import pytest
from huggingface_hub import ModelCard

from hf_clipbd.cli import main
from hf_clipbd.hub import plan_push, push_run
from test_hub_server import published, with_dataset


def planned(capsys, *words):
    capsys.readouterr()
    assert main(["push", *map(str, words), "--dry_run", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def state(folder):
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def test_a_plan_names_what_is_then_pushed(run, hub, capsys):
    before = state(run)
    words = [run, "--repo_id", "tester/it", "--what", "defend/ft"]
    plan = planned(capsys, *words)
    assert hub.seen == [] and not hub.repos and state(run) == before
    push_run(run, "tester/it", "defend/ft")
    files = published(hub, "tester/it")
    assert plan["files"] == {name: len(data) for name, data in files.items()}
    assert plan["bytes"] == sum(map(len, files.values())) and plan["estimated"] == []
    card = ModelCard(files["README.md"].decode())
    assert (plan["license"], plan["title"], plan["tags"]) == (card.data.license, card.data.model_name, card.data.tags)
    assert (plan["private"], plan["repo_type"], plan["has_token"]) == (True, "model", True)
    assert any("**It is still backdoored.**" in one and "42.6 %" in one for one in plan["says"])
    assert not planned(capsys, *words, "--public")["private"]


def test_the_plan_of_a_poisoned_set_writes_no_parquet(run, hub, tmp_path, capsys):
    with_dataset(run, tmp_path)
    before = state(run)
    plan = planned(capsys, run, "--repo_id", "tester/set", "--what", "poison", "--allow-backdoored")
    assert hub.seen == [] and state(run) == before
    assert (plan["repo_type"], plan["estimated"]) == ("dataset", ["data/train-00000-of-00001.parquet"])
    assert plan["says"][0].startswith("**This dataset is poisoned on purpose.**")
    push_run(run, "tester/set", "poison", allow_backdoored=True)
    files = published(hub, "tester/set", "dataset")
    assert set(files) == set(plan["files"])
    assert all(len(data) == plan["files"][name] for name, data in files.items() if name not in plan["estimated"])


def test_a_plan_is_a_list_for_people(run, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr("hf_clipbd.hub.planned.get_token", lambda: None)
    command = ["push", str(run), "--repo_id", "me/it", "--what", "victim", "--allow-backdoored", "--dry_run"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "to       me/it, model, private; refused if it is there and public" in shown
    assert "**This model is backdoored on purpose.**" in shown and "tags     clip, hf_clipbd, backdoor" in shown
    assert "model.safetensors" in shown and "Nothing was sent or written" in shown and "hf auth login" in shown


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(repo_id="model"), "`owner/name`"),
        (dict(what="victim"), "allow_backdoored=True"),
        (dict(what="defend/roclip"), "Expected `what` to be one of"),
        (dict(what="poison", allow_backdoored=True, base="me/victim"), "Expected a model beside `base`"),
        (dict(base="victim"), "`owner/name`"),
    ],
)
def test_a_plan_refuses_what_a_push_does(run, changes, says):
    given = {"repo_id": "me/it", "what": "defend/ft", **changes}
    for refused in (plan_push, push_run):
        with pytest.raises(ValueError, match=says):
            refused(run, **given)


def test_a_plan_finds_a_token_and_a_missing_evaluation(run):
    (run / "defend" / "ft" / "note.json").write_text('{"token": "hf_' + 34 * "a" + '"}')
    for refused in (plan_push, push_run):
        with pytest.raises(ValueError, match=r"`note.json` holds one"):
            refused(run, "me/it", "defend/ft")
    (run / "evaluate" / "cleanclip" / "record.json").unlink()
    with pytest.raises(FileNotFoundError, match="evaluate/cleanclip"):
        plan_push(run, "me/it", "defend/cleanclip")
