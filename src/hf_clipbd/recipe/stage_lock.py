# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""One job at a time in the folder of a stage: a second one that is started there is refused."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from hf_clipbd.recipe.locks import BEATS, FolderLock


logger = logging.getLogger(__name__)

STAGE_LOCK = ".lock.json"
STALE_AFTER = 120.0
"""Seconds without a sign of life after which the owner of a stage counts as dead where its process cannot be seen."""


@contextmanager
def owned(folder: Path, name: str, stale_after: float = STALE_AFTER) -> Iterator[FolderLock | None]:
    """Hold the folder of a stage for the block, the main process for all of its job.

    What a killed process left there is taken over: at once where it ran on this machine, else after `stale_after`.

    Args:
        folder: The stage's folder; made where there is none.
        name: The stage, for messages.
        stale_after: Seconds.

    Yields:
        The lock on the main process, None on the others.

    Raises:
        ValueError: On every process, if another job that lives works on the stage; the message names it.
        RuntimeError: If the stage was taken over meanwhile.
    """
    state = PartialState()
    lock = FolderLock(folder, stale_after, STAGE_LOCK, "stage")
    other = _living_owner(lock, name) if state.is_main_process else None
    if state.num_processes > 1:
        other = broadcast_object_list([other])[0]
    if other is not None:
        raise ValueError(
            f"Expected stage `{name}` to be nobody else's, but {other} works on it (`{lock.path}`). Wait for it, stop "
            f"it, or name another folder."
        )
    if state.is_main_process:
        with lock:
            yield lock
    else:
        yield None


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
