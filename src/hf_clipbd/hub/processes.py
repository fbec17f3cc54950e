# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What one process does for all of them: the others wait for it, and its failure is everybody's."""

import sys
from collections.abc import Callable
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list


T = TypeVar("T")


def by_main_process(work: Callable[[], T], what: str) -> T:
    """Return what `work` gives on the main process, on every process; if it fails there, every process fails.

    The others wait as long as the process group waits for anything (`ddp_timeout` of the trainer's arguments).

    Args:
        work: Is called on the main process alone; its value has to be picklable.
        what: What it does, for the message on the other processes.

    Raises:
        RuntimeError: On the other processes, if `work` failed; it repeats the error, which the main process raises
            as it is.

    Example:
        >>> by_main_process(lambda: 3, "count")
        3
    """
    state = PartialState()
    if state.num_processes == 1:
        return work()
    told: list = [False, None]  # whether it is done, and its value or the error
    try:
        if state.is_main_process:
            told = [True, work()]
    finally:  # without an answer the others would wait until the process group gives up
        if state.is_main_process and not told[0]:
            error = sys.exception()
            told = [False, f"{type(error).__name__}: {error}"]
        broadcast_object_list(told)
    done, value = told
    if not done:
        raise RuntimeError(f"The main process could not {what}, so this one stops as well. {value}")
    return value
