# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""A token is in no record, card, log or error: not with the client's debug output, nor where a server repeats it."""

import json
import logging
import traceback

import pytest
from huggingface_hub import constants

from fabricated_run import fabricate_run
from hf_clipbd.hub import check_login, push_run
from hf_clipbd.schema import RunRecord, command_line
from hub_server import TOKEN


REPO = "tester/defended"
UNLIKE = "an-enterprise-token"
ALWAYS = 99


@pytest.fixture
def run(tmp_path):
    return fabricate_run(tmp_path / "run")


@pytest.fixture
def logged(caplog, monkeypatch):
    """All that the client and everything under it log at the lowest level, its own debug output included."""
    monkeypatch.setattr(constants, "HF_DEBUG", True)
    names = ["huggingface_hub", "hf_clipbd", "httpx2", "httpcore2", "httpx", "httpcore", "urllib3"]
    loggers = [logging.getLogger(name) for name in names]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.DEBUG)
        one.addHandler(caplog.handler)
    with caplog.at_level(logging.DEBUG):
        yield caplog
    for one, level in zip(loggers, levels, strict=True):
        one.removeHandler(caplog.handler)
        one.setLevel(level)


@pytest.mark.parametrize("token", [TOKEN, UNLIKE])
def test_debug_output_of_the_client_shows_no_token(run, hub, logged, capfd, monkeypatch, token):
    hub.users[token] = "tester"
    monkeypatch.setenv("HF_TOKEN", token)
    hub.fail("upload", 500, times=2)
    push_run(run, REPO, token=token)
    shown = capfd.readouterr()
    assert "curl" in logged.text and "/commit/main" in logged.text and "500" in logged.text
    assert token not in logged.text + shown.out + shown.err
    assert hub.leaked == []


@pytest.mark.parametrize("token", [TOKEN, UNLIKE])
@pytest.mark.parametrize(
    ("what", "status"),
    [
        ("create", 401), ("create", 400), ("info", 404), ("validate", 400), ("preupload", 500), ("batch", 422),
        ("upload", 400), ("verify", 400), ("commit", 403), ("commit", 412), ("commit", 429), ("commit", 500),
    ],
)  # fmt: skip
def test_server_that_repeats_the_token_is_not_repeated(run, hub, monkeypatch, capfd, what, status, token):
    hub.users[token] = "tester"
    hub.echoes = True
    monkeypatch.setenv("HF_TOKEN", token)
    hub.fail(what, status, times=ALWAYS)
    with pytest.raises((OSError, ValueError)) as refused:
        push_run(run, REPO)
    told = "".join(traceback.format_exception(refused.value))
    shown = capfd.readouterr()
    assert what in hub.seen and token not in told + shown.out + shown.err
    assert not [one for one in hub.repos.values() if "README.md" in one.files]


def test_login_that_fails_shows_no_token(hub):
    hub.echoes = True
    with pytest.raises(PermissionError, match="hf auth login") as refused:
        check_login("hf_" + 30 * "z")
    assert "zzz" not in "".join(traceback.format_exception(refused.value))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--hub_token", UNLIKE],
        [f"--victim.hub_token={UNLIKE}"],
        ["--defenses.ft.hub_token", TOKEN],
        [f"--note={TOKEN}"],
    ],
)
def test_record_keeps_no_token_of_the_command_line(tmp_path, monkeypatch, arguments):
    monkeypatch.setattr("sys.argv", ["/home/eve/defend.py", *arguments, "--seed", "7"])
    RunRecord("train", "key", {}, {}, 0).save(tmp_path)
    text = (tmp_path / "record.json").read_text()
    command = json.loads(text)["command"]
    assert UNLIKE not in text and TOKEN not in text and command.endswith("--seed 7")
    assert command.startswith("defend.py --") and "home" not in command


def test_command_line_is_kept_otherwise():
    assert command_line(["run", "--token_place", "x", "--n", "3", "token", "y"]) == "run --token_place x --n 3 token y"
