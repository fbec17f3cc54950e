# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Who works in a folder: a lock file with its owner and a sign of life, for machines that share the folder."""

import _thread
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list


logger = logging.getLogger(__name__)

LOCK_FILE = "lock.json"
STAGE_LOCK = ".lock.json"
STALE_AFTER = 120.0
"""Seconds without a sign of life after which the owner of a stage counts as dead where its process cannot be seen."""
BEATS = 10
"""Signs of life within the time after which an owner counts as dead."""


def this_host() -> str:
    """Return what names the machine and, in a container, the space in which its process numbers mean something."""
    space = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()}:{os.stat(space).st_ino}" if space.exists() else socket.gethostname()


def _began(pid: int) -> str | None:
    """Return what tells a process from a later one of its number, "" where nothing does; None where it is gone."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    try:
        state, *others = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return ""
    return None if state in ("Z", "X") else others[18]  # field 22 of proc(5): ticks from the machine's start


def _parsed(text: str | bytes) -> dict[str, Any]:
    """Return what a lock file says, nothing where its writing was cut short."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


class FolderLock:
    """The right to work in one folder, kept for as long as the block runs: `with lock:` after `lock.take()` was true.

    The lock is a file that appears whole, in one step, and carries host, process and a token of its owner; a thread
    renews its time stamp. It is taken over where the owner was a process of this machine that is gone, or where it has
    given no sign of life for `stale_after` seconds, by the clock of the folder's file system. An owner that finds its
    lock taken over (its machine had been asleep), or cannot reach it for that long, stops.

    It is no `filelock.SoftFileLease`, which succeeds an owner only where the file system exchanges two names in one
    step: NFS and SMB refuse that, so what a killed job held there would be held for ever. Nor does that one take over
    an empty file, which a machine that crashed may leave.

    Args:
        stale_after: Seconds.
        what: What the folder holds, for messages.
    """

    def __init__(self, folder: Path, stale_after: float = 300.0, name: str = LOCK_FILE, what: str = "cell"):
        self.path, self.stale_after, self.what = Path(folder) / name, stale_after, what
        self.token = uuid.uuid4().hex
        self.lost = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def owner(self) -> dict[str, Any]:
        """Return host, pid and token of whoever holds the folder, empty where nobody does or it is being written."""
        try:
            return _parsed(self.path.read_bytes())
        except FileNotFoundError:
            return {}

    def is_ours(self) -> bool:
        """Return whether the lock is there and ours."""
        return self.owner().get("token") == self.token

    def owner_is_here(self) -> bool:
        """Return whether the owner is a process of this machine that lives."""
        owner = self.owner()
        return owner.get("host") == this_host() and not self._is_gone(owner)

    def last_sign(self) -> int | None:
        """Return the time of the owner's last sign of life, by the folder's clock; None where there is no lock."""
        try:
            return self.path.stat().st_mtime_ns
        except FileNotFoundError:
            return None

    def take(self) -> bool:
        """Try to take the folder and return whether it is ours now."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and self._is_stale():
            self._remove(self.owner().get("token"))
        owner = {"host": this_host(), "pid": os.getpid(), "began": _began(os.getpid()), "token": self.token}
        return self._create(json.dumps(owner))

    def _create(self, text: str) -> bool:
        own = self._own_file("new")
        own.write_text(text, encoding="utf-8")
        try:
            os.link(own, self.path)  # fails where there is one, in one step
        except FileExistsError:
            return own.stat().st_nlink > 1  # NFS may answer so for a link that was made
        except OSError:  # a file system without links
            return self._create_without_link(text)
        finally:
            own.unlink()
        return True

    def _create_without_link(self, text: str) -> bool:
        try:
            with self.path.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            return False
        return True

    def _own_file(self, kind: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{kind}.{self.token}")

    @staticmethod
    def _is_gone(owner: dict[str, Any]) -> bool:
        """Return whether the process of an owner on this machine has ended, its number given to another one or not."""
        began = _began(int(owner["pid"]))
        return began is None or bool(began and owner.get("began") and began != owner["began"])

    def _is_stale(self) -> bool:
        owner, clock = self.owner(), self._own_file("clock")
        if owner.get("host") == this_host() and self._is_gone(owner):
            return True
        clock.touch()
        try:
            return clock.stat().st_mtime - self.path.stat().st_mtime > self.stale_after
        except FileNotFoundError:
            return False
        finally:
            clock.unlink(missing_ok=True)

    def _remove(self, token: str | None) -> None:
        """Take a dead owner's file away, and put it back if another process had been quicker to take the folder."""
        away = self._own_file("old")
        try:
            os.replace(self.path, away)
        except FileNotFoundError:
            return
        text = away.read_text(encoding="utf-8", errors="replace")
        if _parsed(text).get("token") == token:
            logger.info("%s: its owner is gone, the %s is taken over", self.path.parent, self.what)
        else:
            self._create(text)
        away.unlink()

    def _beat(self) -> None:
        reached = time.monotonic()
        while not self._stop.wait(self.stale_after / BEATS):
            try:
                kept = self.is_ours()
                if kept:
                    os.utime(self.path)
            except FileNotFoundError:  # taken away just now, which the next look tells
                continue
            except OSError as error:  # a share that does not answer, or a stale handle: the next look may do
                logger.warning("%s cannot be reached: %s", self.path, error)
                kept = time.monotonic() - reached < self.stale_after
            else:
                reached = time.monotonic()
            if not kept:
                self.lost = True
                _thread.interrupt_main()
                return

    def check(self) -> None:
        """Raise `RuntimeError` unless the lock is there and ours."""
        if self.lost or not self.is_ours():
            raise RuntimeError(
                f"Expected to keep the lock `{self.path}`, but it was lost: another process took the {self.what} "
                f"over, since this one was silent for {self.stale_after:g} s, or the file is gone or out of reach. "
                f"Start it again once nobody else works there."
            )

    def __enter__(self) -> "FolderLock":
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self.lost or (error is None and not self.is_ours()):
            try:
                self.check()
            except RuntimeError as lost:
                raise lost from error
        if self.is_ours():
            self.path.unlink()


@contextmanager
def owned(
    folder: Path, name: str, stale_after: float = STALE_AFTER, what: str = "stage"
) -> Iterator[FolderLock | None]:
    """Hold the folder of a stage, or of a whole run, for the block, the main process for all of its job.

    What a killed process left there is taken over: at once where it ran on this machine, else after `stale_after`.

    Args:
        name: What the folder is called in messages.
        stale_after: Seconds.
        what: What it holds.

    Yields:
        The lock on the main process, None on the others.

    Raises:
        ValueError: On every process, if another job that lives works on it; the message names that one.
        RuntimeError: If it was taken over meanwhile.
    """
    is_main = PartialState().is_main_process
    lock = FolderLock(folder, stale_after, STAGE_LOCK, what)
    other = broadcast_object_list([_living_owner(lock, name) if is_main else None])[0]
    if other is not None:
        raise ValueError(
            f"Expected {what} `{name}` to be nobody else's, but {other} works on it (`{lock.path}`). Wait for it, "
            f"stop it, or name another folder."
        )
    with lock if is_main else nullcontext() as own:
        yield own


def _living_owner(lock: FolderLock, name: str) -> str | None:
    """Take the lock and return None, or return which process holds it and lives."""
    seen = None
    while not lock.take():
        owner, sign = lock.owner(), lock.last_sign()
        if sign is None:
            continue  # given back just now
        if lock.owner_is_here() or (seen is not None and sign != seen):
            return f"process {owner.get('pid')} on `{str(owner.get('host')).split(':')[0]}`"
        if seen is None:
            logger.info("%-20s waits for a sign of life of process %s elsewhere", name, owner.get("pid"))
        seen = sign
        time.sleep(lock.stale_after / BEATS / 2)
    return None
