# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Work that threads do before it is asked for: in order, and no more than so much of it at once."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar


Given = TypeVar("Given")
Made = TypeVar("Made")

MOST_THREADS = 16
"""Threads that decode in one process at most; Pillow lets others run while it decodes and resizes."""
MOST_AHEAD = 1024
"""Pictures that are decoded at most before they are asked for."""


def decoding_threads() -> int:
    """Return how many threads decode in this process: its share of the cores, at most `MOST_THREADS`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    local = os.environ.get("LOCAL_WORLD_SIZE", "")  # set by torchrun and `accelerate launch`
    return max(1, min(MOST_THREADS, cores // max(1, int(local) if local.isdecimal() else 1)))


def made_ahead(
    work: Callable[[Given], Made], items: Iterable[Given], most: int = 1, threads: int = 1
) -> Iterator[Made]:
    """Yield `work(item)` for each item in order, made by threads while the caller is busy with the last one.

    What comes out does not depend on the number of threads. An error of an item is raised in its turn. Where the
    caller stops, what was not begun is not done.

    Args:
        work: What a thread does; it may not depend on what was done before, unless there is one thread.
        items: Taken from by the caller's thread.
        most: Items that are made at most before they are asked for.
        threads: How many threads.

    Example:
        >>> list(made_ahead(len, ["a", "bcd", ""], most=2, threads=2))
        [1, 3, 0]
    """
    pool, pending = ThreadPoolExecutor(threads, thread_name_prefix="ahead"), deque[Future[Made]]()
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > most:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
