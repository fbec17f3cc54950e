# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Who works on a cell: a lock file in a shared folder, with its owner and a sign of life."""

import _thread
import json
import logging
import os
import socket
import threading
import uuid
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any


logger = logging.getLogger(__name__)

LOCK_FILE = "lock.json"
BEATS = 10
"""Signs of life within the time after which an owner counts as dead."""


def this_host() -> str:
    """Return what names the machine and, in a container, the space in which its process numbers mean something."""
    space = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()}:{os.stat(space).st_ino}" if space.exists() else socket.gethostname()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class CellLock:
    """The right to work on one cell, kept for as long as the block runs: `with lock:` after `lock.take()` was true.

    The lock is a file that is created in one step and carries host, process number and a token of its owner; a thread
    renews its time stamp. It is taken over where the owner was a process of this machine that is gone, or where it has
    given no sign of life for `stale_after` seconds, by the clock of the folder's file system. An owner that finds its
    lock taken over (its machine had been asleep) stops.

    Args:
        folder: The cell's folder.
        stale_after: Seconds.
    """

    def __init__(self, folder: Path, stale_after: float = 300.0):
        self.path, self.stale_after = Path(folder) / LOCK_FILE, stale_after
        self.token = uuid.uuid4().hex
        self.lost = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def owner(self) -> dict[str, Any]:
        """Return host, pid and token of whoever holds the cell, empty where nobody does or it is being written."""
        try:
            return json.loads(self.path.read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return {}

    def take(self) -> bool:
        """Try to take the cell and return whether it is ours now."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and self._is_stale():
            self._remove(self.owner().get("token"))
        return self._create(json.dumps({"host": this_host(), "pid": os.getpid(), "token": self.token}))

    def _create(self, text: str) -> bool:
        try:
            with self.path.open("x", encoding="utf-8") as file:  # fails where there is one, in one step
                file.write(text)
        except FileExistsError:
            return False
        return True

    def _own_file(self, kind: str) -> Path:
        return self.path.with_name(f"{LOCK_FILE}.{kind}.{self.token}")

    def _is_stale(self) -> bool:
        owner, clock = self.owner(), self._own_file("clock")
        if owner.get("host") == this_host() and not _alive(int(owner["pid"])):
            return True
        clock.touch()
        try:
            return clock.stat().st_mtime - self.path.stat().st_mtime > self.stale_after
        except FileNotFoundError:
            return False
        finally:
            clock.unlink(missing_ok=True)

    def _remove(self, token: str | None) -> None:
        """Take a dead owner's file away, and put it back if another process had been quicker to take the cell over."""
        away = self._own_file("old")
        try:
            os.replace(self.path, away)
        except FileNotFoundError:
            return
        text = away.read_text(encoding="utf-8")
        if json.loads(text or "{}").get("token") == token:
            logger.info("%s: its owner is gone, the cell is taken over", self.path.parent)
        else:
            self._create(text)
        away.unlink()

    def _beat(self) -> None:
        while not self._stop.wait(self.stale_after / BEATS):
            if self.owner().get("token") != self.token:
                self.lost = True
                _thread.interrupt_main()
                return
            with suppress(FileNotFoundError):  # taken away just now, which the next look tells
                os.utime(self.path)

    def __enter__(self) -> "CellLock":
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self.lost:
            raise RuntimeError(
                f"Expected to keep the lock `{self.path}`, but another process took the cell over, since this one "
                f"gave no sign of life for {self.stale_after:g} s. Start it again once the other one is done."
            ) from error
        if self.owner().get("token") == self.token:
            self.path.unlink()
