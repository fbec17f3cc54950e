# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Several processes, one push: the main one makes the one commit, the others wait, and its failure ends them all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest

from fabricated_run import fabricate_run
from hf_clipbd.hub import by_main_process
from hub_server import TOKEN, HubServer
from hub_wire import BEFORE


pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parent / "distributed" / "push_together.py"
NAMES = ["banana", "boat", "house", "dog", "clock", "tree", "bottle", "kite", "cup", "owl", "bell"]
LAUNCH = [
    "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
    "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
]  # fmt: skip
"""`--multi_gpu` with ACCELERATE_USE_CPU: two processes on gloo; `--cpu --num_processes 2` would start one."""


@pytest.fixture(scope="module")
def launched(tmp_path_factory, _untouched_model, tiny_processor):
    """Return the server, what each process wrote, and how two of them ended that a last failure found unprepared."""
    folder = tmp_path_factory.mktemp("together")
    for part in (_untouched_model, tiny_processor):
        part.save_pretrained(folder / "model")
    rng = np.random.default_rng(5)
    pictures = [PIL.Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(15)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    rows = {"image": pictures, "label": rng.integers(0, len(NAMES), 15).tolist()}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(folder / "images"))
    fabricate_run(folder / "run")
    with HubServer({TOKEN: "tester"}) as hub:
        hub.fail("commit", BEFORE)
        hub.fail("commit", BEFORE, after=1)  # the first of the run, once the trainer has pushed
        environment = {
            **os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(folder / "home"),
            "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        given = [folder / "model", folder / "images", folder / "run", folder]
        command = [sys.executable, *LAUNCH, SCRIPT, *given]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
        told = [json.loads(path.read_text()) for path in sorted(folder.glob("[0-9].json"))]
        yield hub, told, done


def test_main_process_makes_the_one_commit_and_all_learn_of_it(launched):
    hub, told, _ = launched
    assert [one["processes"] for one in told] == [2, 2]
    repository = hub.repos["model", "tester/trained"]
    assert repository.private and len(repository.commits) == 2, "an empty first one and the push"
    assert told[0]["pushed"] == told[1]["pushed"] == f"{hub.url}/tester/trained/commit/{repository.refs['main']}"
    assert json.loads(repository.files["records/train.json"].data)["processes"] == 2
    pushed = hub.repos["model", "tester/run-ft"]
    assert len(pushed.commits) == 2
    assert (
        told[0]["run_pushed"]
        == told[1]["run_pushed"]
        == {"defend/ft": f"{hub.url}/tester/run-ft/commit/{pushed.refs['main']}"}
    )
    assert set(hub.repos) == {("model", "tester/trained"), ("model", "tester/run-ft")}
    assert hub.seen.count("commit") == 4 and hub.leaked == []


def test_failure_of_the_main_process_is_told_on_all(launched):
    _, told, _ = launched
    for name, what in (("broken", "push to `tester/trained`"), ("run_broken", "push the run")):
        first, second = (one[name] for one in told)
        assert first.startswith("ConnectionError: ") and "Push again" in first
        assert second == f"RuntimeError: The main process could not {what}, so this one stops as well. {first}"


def test_failure_that_nobody_catches_ends_all_processes_with_its_words(launched):
    _, told, done = launched
    assert len(told) == 2 and done.returncode != 0
    assert "PermissionError: The Hub does not know you (status 401)" in done.stderr
    assert "RuntimeError: The main process could not log in to the Hub" in done.stderr
    assert TOKEN not in done.stdout + done.stderr and "zzz" not in done.stdout + done.stderr


def test_one_process_alone_keeps_the_error():
    assert by_main_process(lambda: "done", "do it") == "done"
    with pytest.raises(KeyError, match="gone"):
        by_main_process(lambda: {}["gone"], "do it")
