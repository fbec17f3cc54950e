# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The processes of one measurement: how many there are, what they add up, and work of which each does a part."""

from collections.abc import Callable, Iterator

import numpy as np
import torch.distributed as dist
from torch import Tensor


def rank_and_world() -> tuple[int, int]:
    """Return this process's number and how many there are; (0, 1) without `torch.distributed`."""
    ready = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if ready else (0, 1)


def add_over_processes(counts: Tensor) -> Tensor:
    """Return the sum of a table of counts over all processes, on the CPU; every process has to call it."""
    if rank_and_world()[1] > 1:
        counts = counts.cuda() if "nccl" in dist.get_backend() else counts  # which adds up on GPUs alone
        dist.all_reduce(counts)
    return counts.cpu()


def shared_out(parts: int, compute: Callable[[int], np.ndarray]) -> Iterator[np.ndarray]:
    """Yield `compute(0)`, `compute(1)`, ... on every process, each part computed by one of them.

    Every process has to go through all of it. What comes out does not depend on how many there are, as long as a part
    depends on its number alone.

    Args:
        parts: How many there are.
        compute: From the number of a part to its array.
    """
    rank, world = rank_and_world()
    if world == 1:
        yield from map(compute, range(parts))
        return
    mine = {part: compute(part) for part in range(rank, parts, world)}
    for part in range(parts):
        told = [mine.pop(part, None)]
        dist.broadcast_object_list(told, src=part % world)
        yield told[0]
