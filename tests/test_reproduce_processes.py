# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Real processes on one folder of a reproduction: each cell is done once, a killed owner is succeeded."""

import os
import re
import signal
import time
from contextlib import ExitStack

import pytest
import yaml

from hf_clipbd.recipe.locks import LOCK_FILE, FolderLock
from hf_clipbd.recipe.reproduce import run_reproduction
from hf_clipbd.recipe.reproduce_config import load_reproduction
from hf_clipbd.schema import RECORD_FILE
from test_reproduce import ROOT, values


PATIENCE, STALE = 300, 20


@pytest.fixture
def shared(tmp_path, _untouched_model, tiny_processor):
    """Return the YAML of two cells and the folder that they lie in."""
    clean = tmp_path / "clean"
    _untouched_model.save_pretrained(clean)
    tiny_processor.save_pretrained(clean)
    whole = values(output_dir=str(tmp_path / "cells"), stale_after=STALE, keep_embeddings=False)
    whole["world"] |= {"clean_model": str(clean)}
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump(whole))
    return path, tmp_path / "cells"


def until(condition, processes):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert [process.exitcode for process in processes] == [None] * len(processes) and time.monotonic() < deadline
        time.sleep(0.02)


def test_two_processes_share_the_cells_and_one_succeeds_the_other_that_was_killed(shared, forked, tmp_path):
    path, cells = shared
    made = load_reproduction([str(path)])
    badnets, blended = (FolderLock(cell.config.output_dir, STALE) for cell in made.cells)
    logs = [tmp_path / "one.log", tmp_path / "two.log"]
    with ExitStack() as held:  # until both are there, so that neither has done everything before the other began
        for lock in (badnets, blended):
            assert lock.take()
            held.enter_context(lock)
        both = [forked.start(ROOT / "recipes" / "reproduce.py", path, log=log) for log in logs]
        until(lambda: all("others work on badnets/seed0, blended/seed0" in log.read_text() for log in logs), both)
    until(lambda: {badnets.owner().get("pid"), blended.owner().get("pid")} == {one.pid for one in both}, both)

    number = [one.pid for one in both].index(badnets.owner()["pid"])
    killed, other = both[number], both[1 - number]
    finished = cells / "badnets" / "seed0" / "poison" / RECORD_FILE
    until(finished.exists, both)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.join()
    assert badnets.path.exists() and not (cells / "badnets" / "seed0" / "cell" / RECORD_FILE).exists()
    before = finished.stat().st_mtime_ns
    text = logs[1 - number]
    assert forked.ended([other], PATIENCE) == [0], text.read_text()
    text = text.read_text()
    done = re.findall(r"cell (\w+/seed\d), (\d) of 2 done", text)
    assert done == [("blended/seed0", "0"), ("badnets/seed0", "1")], text  # each once, its own first
    assert text.count("owner is gone, the cell is taken over") == 1
    assert finished.stat().st_mtime_ns == before  # what the killed one had finished was not done again
    assert not list(cells.rglob(f"{LOCK_FILE}*"))

    alone = load_reproduction([str(path), "--output_dir", str(tmp_path / "alone")])
    table = run_reproduction(alone)
    assert (cells / "table.md").read_text() == table and "2 of 2 cells" in table
    assert table in text
