# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Who works in a folder: two jobs in one stage, owners killed, silent or elsewhere, shares that do not answer."""

import errno
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from hf_clipbd.recipe import locks
from hf_clipbd.recipe.locks import LOCK_FILE, STAGE_LOCK, FolderLock, this_host
from hf_clipbd.recipe.stage import CHECKPOINTS, SCRATCH, Outcome, Stage


PATIENCE = 60


def until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def working(stage: Stage, go_on: Path) -> multiprocessing.Process:
    """Start a process that does the stage's work half, waits for `go_on`, and does the rest."""

    def work(folder):
        (folder / "rows").write_text("ha")
        until(go_on.exists)
        (folder / "rows").write_text("half and half")
        return Outcome({"by": os.getpid()}, {"rows": "rows"})

    process = multiprocessing.get_context("fork").Process(target=stage.run_once, args=(work,))
    process.start()
    until((stage.folder / SCRATCH / "rows").exists)
    return process


def at_once(folder):
    (folder / "rows").write_text("another's")
    return Outcome({"by": os.getpid()}, {"rows": "rows"})


def leave(stage: Stage, host: str, pid: int, **more) -> Path:
    """Leave the lock of a job, and return its path."""
    stage.folder.mkdir(parents=True, exist_ok=True)
    path = stage.folder / STAGE_LOCK
    path.write_text(json.dumps({"host": host, "pid": pid, "token": "theirs", **more}))
    return path


def test_a_second_job_in_a_stage_is_refused_while_the_first_one_lives(tmp_path):
    stage = Stage(tmp_path, "poison", {}, 0)
    first = working(stage, tmp_path / "go")
    for other in (stage, Stage(tmp_path, "poison", {"other": 1}, 0)):
        with pytest.raises(ValueError, match=f"stage `poison` .* but process {first.pid} on `.*Wait for it"):
            other.run_once(at_once)
    assert (stage.folder / SCRATCH / "rows").read_text() == "ha"
    (tmp_path / "go").touch()
    first.join()
    record = stage.current()
    assert record.metrics == {"by": first.pid} and (stage.folder / "rows").read_text() == "half and half"
    assert stage.run_once(at_once).metrics == record.metrics and not (stage.folder / STAGE_LOCK).exists()


def test_a_killed_job_blocks_nobody(tmp_path):
    stage = Stage(tmp_path, "poison", {}, 0)
    first = working(stage, tmp_path / "never")
    os.kill(first.pid, signal.SIGKILL)
    until(lambda: Path(f"/proc/{first.pid}/stat").read_text().split()[2] == "Z")  # nobody has waited for it yet
    assert stage.run_once(at_once).metrics == {"by": os.getpid()}
    assert sorted(path.name for path in stage.folder.iterdir()) == ["record.json", "rows"]
    first.join()


def test_the_number_of_a_dead_owner_may_be_another_process_s_by_now(tmp_path):
    stage = Stage(tmp_path, "poison", {}, 0)
    leave(stage, this_host(), os.getpid(), began="1")
    assert stage.run_once(at_once).metrics == {"by": os.getpid()}


def test_nothing_is_placed_once_another_job_took_the_stage_over(tmp_path):
    stage = Stage(tmp_path, "poison", {}, 0)
    stage.run_once(at_once)

    def overtaken(folder):
        leave(stage, "elsewhere", 1)
        return at_once(folder)

    with pytest.raises(RuntimeError, match="took the stage over"):
        Stage(tmp_path, "poison", {"other": 1}, 0).run_once(overtaken)
    assert stage.current() is not None and json.loads((stage.folder / STAGE_LOCK).read_text())["token"] == "theirs"


def test_a_job_elsewhere_is_told_by_its_signs_of_life(tmp_path, monkeypatch):
    stage = Stage(tmp_path, "poison", {}, 0)
    path = leave(stage, "elsewhere", 7)
    monkeypatch.setattr(locks.time, "sleep", lambda _: os.utime(path))
    with pytest.raises(ValueError, match="process 7 on `elsewhere`"):
        stage.run_once(at_once)
    os.utime(path, (1, 1))  # silent for long
    assert stage.run_once(at_once).metrics == {"by": os.getpid()}


def test_what_a_job_of_other_settings_is_writing_stays(tmp_path):
    finished = Stage(tmp_path, "poison", {}, 0)
    finished.run_once(at_once)
    other = working(Stage(tmp_path, "poison", {"other": 1}, 0), tmp_path / "go")
    assert finished.run_once(at_once).metrics == {"by": os.getpid()}
    assert (finished.folder / SCRATCH / "rows").exists()
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    (finished.folder / CHECKPOINTS).mkdir()
    finished.run_once(at_once)
    assert sorted(path.name for path in finished.folder.iterdir()) == ["record.json", "rows"]


@pytest.mark.parametrize("text", ['{"host": "abc', "7", "\0\0"])
def test_a_lock_cut_short_within_its_text_is_waited_for_and_then_succeeded(tmp_path, text):
    (tmp_path / LOCK_FILE).write_text(text)
    assert not FolderLock(tmp_path).take()
    os.utime(tmp_path / LOCK_FILE, (1, 1))
    lock = FolderLock(tmp_path)
    assert lock.take() and lock.is_ours()
    assert [path.name for path in tmp_path.iterdir()] == [LOCK_FILE]


def test_a_lock_appears_whole_where_there_are_links_and_at_all_where_there_are_none(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(errno.EPERM, "no links here")

    opened = []
    monkeypatch.setattr(FolderLock, "_create_without_link", lambda *_: opened.append(1))
    assert FolderLock(tmp_path / "linked").take() and not FolderLock(tmp_path / "linked").take() and not opened
    monkeypatch.undo()
    monkeypatch.setattr(os, "link", no_links)
    assert FolderLock(tmp_path / "not").take() and not FolderLock(tmp_path / "not").take()
    assert [path.name for path in tmp_path.rglob("lock*")] == [LOCK_FILE] * 2


def answers(monkeypatch, lock: FolderLock, failures: int) -> list[int]:
    """Let the first reads of a lock fail as a share's do, and return a list that grows with each read."""
    read, reads = Path.read_bytes, []

    def stale(path):
        if path == lock.path:
            reads.append(1)
            if len(reads) <= failures:
                raise OSError(errno.ESTALE, "Stale file handle")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", stale)
    return reads


def test_an_owner_survives_a_share_that_fails_once(tmp_path, monkeypatch):
    lock = FolderLock(tmp_path, stale_after=0.2)
    assert lock.take()
    reads = answers(monkeypatch, lock, 1)
    with lock:
        until(lambda: len(reads) > 3)
        assert lock._thread.is_alive() and not lock.lost
    assert not lock.path.exists()


def test_an_owner_that_cannot_reach_its_lock_stops(tmp_path, monkeypatch):
    interrupted = []
    monkeypatch.setattr("_thread.interrupt_main", lambda: interrupted.append(True))
    lock = FolderLock(tmp_path, stale_after=0.1)
    assert lock.take()
    reads = answers(monkeypatch, lock, 10**6)
    with pytest.raises(RuntimeError, match="out of reach"), lock:
        until(lambda: interrupted)
    assert lock.lost and len(reads) > 3


def test_a_lock_that_is_another_s_in_the_end_is_an_error(tmp_path):
    lock = FolderLock(tmp_path)
    assert lock.take()
    with pytest.raises(RuntimeError, match="took the cell over"), lock:
        lock.path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "token": "theirs"}))
    assert lock.owner()["token"] == "theirs"


def test_an_owner_gives_signs_of_life(tmp_path):
    lock = FolderLock(tmp_path, stale_after=0.2)
    assert lock.take()
    os.utime(lock.path, (1, 1))
    with lock:
        until(lambda: time.time() - lock.path.stat().st_mtime < PATIENCE)
    assert not lock.path.exists()


def test_what_another_job_finished_meanwhile_is_not_done_again(tmp_path, monkeypatch):
    stage, looked = Stage(tmp_path, "poison", {}, 0), Stage.current
    monkeypatch.setattr(Stage, "current", lambda self: at_the_last_moment(self, looked))

    def at_the_last_moment(self, look):
        found = look(self)  # nothing yet
        monkeypatch.setattr(Stage, "current", looked)
        self.run_once(at_once)  # and now another job has done it
        return found

    def never(folder):
        raise AssertionError("done twice")

    assert stage.run_once(never).metrics == {"by": os.getpid()}
