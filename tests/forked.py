# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Scripts in processes of their own, forked from one that has imported every library and done nothing else.

An interpreter that imports torch, transformers and datasets anew is busy with it for ten seconds; a fork is there at
once, and starts from the same state. There are two such servers, each with its own seed of hashes, that take turns: no
process orders its sets as the one started before it does. Not for what is about imports or what is read by them.
"""

import itertools
import multiprocessing
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import connection, forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest import mock

import numpy as np
import torch


IMPORTED = [
    "accelerate", "evaluate", "matplotlib.pyplot", "peft", "torch._dynamo", "transformers.models.clip.modeling_clip",
    "hf_clipbd.cli", "hf_clipbd.defenses", "hf_clipbd.recipe.job", "hf_clipbd.recipe.reproduce",
]  # fmt: skip
HOST = "127.0.0.1"
SERVERS = forkserver.ForkServer(), forkserver.ForkServer()
_turns = itertools.cycle(SERVERS)


def start_servers() -> None:
    """Start the processes that others are forked from, if they do not run, with the environment of this moment."""
    with mock.patch.dict(os.environ):
        os.environ.pop("PYTHONHASHSEED", None)
        for server in SERVERS:
            server.set_forkserver_preload(IMPORTED)
            server.ensure_running()


def call(function: Callable[..., None], *arguments: object) -> BaseProcess:
    """Start `function(*arguments)` in a process group of its own, on one thread."""
    start_servers()
    process = multiprocessing.get_context("forkserver").Process(target=_call, args=(function, *arguments))
    with mock.patch.object(forkserver, "connect_to_new_process", next(_turns).connect_to_new_process):
        process.start()
    return process


def start(*line: object, log: Path, env: Mapping[str, str] | None = None) -> BaseProcess:
    """Start `python line...`: a script or `-m` and a module, then its arguments.

    Args:
        line: As on a command line.
        log: The file that both outputs go to.
        env: Set in the process, over the environment of this one.
    """
    log.write_bytes(b"")
    return call(_run, [str(one) for one in line], {**os.environ, **(env or {})}, str(log))


def ended(processes: Sequence[BaseProcess], timeout: float = 300) -> list[int | None]:
    """Wait for all, or until one fails, and return their exit codes: minus the signal where one killed the process.

    None is one that still ran when the time was up or another had failed; it is killed.
    """
    until, left = time.monotonic() + timeout, list(processes)
    while left and time.monotonic() < until and all(process.exitcode in (None, 0) for process in processes):
        connection.wait([process.sentinel for process in left], until - time.monotonic())
        left = [process for process in left if process.exitcode is None]
    codes = [process.exitcode for process in processes]
    for process in left:
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
    return codes


def run(*line: object, log: Path, processes: int = 1, timeout: float = 300) -> None:
    """Run `torchrun --nproc_per_node processes line...` on the CPU; on one process without torchrun.

    The processes find each other at a store of this process, as they do at that of torchrun's agent. `log` gets the
    output of the first, those of the others lie beside it.

    Raises:
        AssertionError: Where one of them failed; it has the ends of what was printed.
    """
    env, store = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}, None
    if processes > 1:
        store = torch.distributed.TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
        env |= {"MASTER_ADDR": HOST, "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        env |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "TORCHELASTIC_RESTART_COUNT": "0"}
    logs = [log.with_name(f"{log.name}.{rank}" if rank else log.name) for rank in range(processes)]
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} if store else {} for rank in range(processes)]
    running = [start(*line, log=one, env={**env, **rank}) for one, rank in zip(logs, ranks, strict=True)]
    codes = ended(running, timeout)
    assert codes == [0] * processes, f"{codes}\n" + "\n".join(one.read_text("utf-8")[-2000:] for one in logs)


def _call(function: Callable[..., None], *arguments: object) -> None:
    os.setpgrp()
    torch.set_num_threads(1)
    np.random.seed()  # or all forks would draw alike where nothing was seeded
    function(*arguments)


def _run(line: list[str], env: dict[str, str], log: str) -> None:
    os.environ.clear()
    os.environ.update(env)
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    if line[0] == "-m":
        sys.argv = line[1:]
        runpy.run_module(line[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = line, str(Path(line[0]).parent)
        runpy.run_path(line[0], run_name="__main__")
