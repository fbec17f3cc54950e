# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""A server without Xet, which the client does not find out by itself: an error says what to do."""

import pytest
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars
from huggingface_hub.utils._runtime import is_xet_available

from fabricated_run import fabricate_run
from hf_clipbd.hub import push_run


REPO = "tester/defended"


@pytest.fixture(autouse=True)
def no_bars():
    disable_progress_bars()
    yield
    enable_progress_bars()


@pytest.fixture
def run(tmp_path):
    return fabricate_run(tmp_path / "run")


@pytest.fixture
def with_xet(hub, monkeypatch):
    """Let the client use Xet, as it does by default where `hf_xet` is installed."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    if not is_xet_available():
        pytest.skip("hf_xet is not installed")


def test_push_through_xet_to_a_server_without_it_says_what_to_do(run, hub, with_xet, monkeypatch):
    with pytest.raises(ConnectionError, match="set HF_HUB_DISABLE_XET=1") as refused:
        push_run(run, REPO)
    assert "404" in str(refused.value) and any("xet-write-token" in path for path in hub.unknown)
    assert set(hub.repos["model", REPO].files) == {".gitattributes"} and hub.repos["model", REPO].private
    assert "commit" not in hub.seen and hub.store == {}
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    push_run(run, REPO)
    assert "model.safetensors" in hub.repos["model", REPO].files and "upload" in hub.seen


def test_download_with_xet_from_a_server_without_it_goes_over_http(run, hub, monkeypatch):
    push_run(run, REPO)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    path = hf_hub_download(REPO, "model.safetensors")
    with open(path, "rb") as file:
        assert file.read() == (run / "defend" / "cleanerclip" / "model.safetensors").read_bytes()
    assert "content" in hub.seen and not any("xet" in one for one in hub.unknown)


def test_offline_is_told_as_such(run, hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE"):
        push_run(run, REPO)
    assert hub.seen == []
