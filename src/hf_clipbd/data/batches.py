# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Which rows make a batch: permutations of the rows, and the extra batches of some pairs of each epoch."""

import itertools
import logging
import math
from collections.abc import Callable, Iterator

import numpy as np
import torch

from hf_clipbd.data.pairs import PairKey


logger = logging.getLogger(__name__)


class PairBatchSampler(torch.utils.data.Sampler):
    """Per-process batches of `PairKey`, epoch by epoch, the same on every rank.

    Global batches hold `batch_size * processes` rows of a permutation drawn from (seed, epoch); the incomplete last
    one is dropped or, with `drop_incomplete=False`, is a smaller batch of the rows left over, as many of them as the
    processes can share evenly, unless that is a single pair. `subset_size` rows, drawn anew each epoch, form batches
    of their own, each of at least two pairs and at most a global batch, spread evenly among the ordinary ones.
    Consecutive `processes` batches of the iteration make one global batch (the order in which Accelerate deals them
    out), so the global batches do not depend on how many processes share the work: 1, 2, 3, 4, 6, 8, 12 or 24 that
    divide the batch and `subset_size`. Other numbers share the same rows in batches of other sizes; where they do not
    divide `subset_size`, fewer rows are drawn, which is logged.

    Args:
        n_rows: Number of rows.
        batch_size: Pairs a process in an ordinary batch.
        processes: Number of processes.
        seed: Seed of the permutations.
        subset_size: Number of pairs in the extra batches of an epoch.
        drop_incomplete: Whether the incomplete last batch is dropped.
        in_subset: Whether a row may be drawn into the extra batches; every row may where it is None. Rows that may not
            are passed over in the order of the draw, and where fewer than `subset_size` may, those are drawn again.

    Raises:
        ValueError: If a global batch would hold a single pair, there are fewer rows than one global batch (with
            `drop_incomplete=False`, fewer than two rows a process), or fewer than `subset_size`; when iterating, if no
            row may be drawn into the extra batches.
    """

    drop_last = False

    def __init__(
        self,
        n_rows: int,
        batch_size: int,
        processes: int = 1,
        seed: int = 0,
        subset_size: int = 0,
        drop_incomplete: bool = True,
        in_subset: Callable[[int], bool] | None = None,
    ):
        global_batch = batch_size * processes
        if global_batch < 2 or subset_size == 1:
            raise ValueError(
                "Expected at least two pairs in every global batch, since one pair has nothing to be contrasted with, "
                f"but got batches of {batch_size} x {processes} and {subset_size} pairs for extra batches."
            )
        if n_rows < (global_batch if drop_incomplete else max(2, processes)):
            raise ValueError(
                f"Expected at least one global batch of {batch_size} x {processes} rows, but the dataset has "
                f"{n_rows}. Lower `per_device_train_batch_size`, or set `dataloader_drop_last` to false for a "
                "smaller batch."
            )
        if not 0 <= subset_size <= n_rows:
            raise ValueError(
                f"Expected to draw 0 to {n_rows} pairs, the size of the dataset, for the extra batches of an epoch, "
                f"but got {subset_size}. Lower `k_pairs`."
            )
        self.n_ordinary = n_rows // global_batch
        left_over = n_rows % global_batch // processes * processes
        self.left_over = 0 if drop_incomplete or left_over < 2 else left_over
        self.n_rows, self.global_batch, self.processes = n_rows, global_batch, processes
        self.seed, self.subset_size, self.epoch = seed, _shareable(subset_size, global_batch, processes), 0
        self.in_subset = in_subset

    @property
    def sampler(self) -> "PairBatchSampler":
        """The object whose `set_epoch` Accelerate's sharded loaders call: this one."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose batches the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        return (self.n_ordinary + bool(self.left_over) + len(self._subset_sizes())) * self.processes

    def __iter__(self) -> Iterator[list[PairKey]]:
        for rows, subset in self._global_batches():
            keys = [PairKey(self.epoch, int(row), subset) for row in rows]
            share = len(keys) // self.processes
            for rank in range(self.processes):
                yield keys[rank * share : (rank + 1) * share]

    def _subset_sizes(self) -> list[int]:
        """Return the sizes of the extra batches: blocks of pairs shared out evenly, the last batch with the rest.

        A block is what divides both the global batch and 24, so that 2, 3, 4, 6, 8, 12 or 24 processes share it, and a
        multiple of the number of processes. No batch is then larger than a global batch.
        """
        if self.subset_size == 0:
            return []
        n_batches = -(-self.subset_size // self.global_batch)
        block = math.lcm(math.gcd(self.global_batch, 24), self.processes)
        blocks, rest = divmod(self.subset_size, block)
        sizes = [block * len(part) for part in np.array_split(np.arange(blocks), n_batches)]
        sizes[-1] += rest
        if sizes[-1] == 1:  # a block is a global batch, and one pair is left over
            sizes[-2:] = [sizes[-2] - 1, 2]
        return sizes

    def _subset(self, order: np.ndarray, n: int) -> np.ndarray:
        """Return the first n rows of `order` that may be drawn, those again from the first where there are fewer."""
        if self.in_subset is None:
            return order[:n]
        rows = list(itertools.islice((row for row in order if self.in_subset(int(row))), n))
        if not rows:
            raise ValueError(
                f"Expected rows for the extra batches of {n} pairs, but none of {self.n_rows} may be drawn."
            )
        return np.resize(rows, n)

    def _global_batches(self) -> Iterator[tuple[np.ndarray, bool]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        whole = self.n_ordinary * self.global_batch
        order = rng.permutation(self.n_rows)[: whole + self.left_over]
        n_batches = self.n_ordinary + bool(self.left_over)
        ordinary = np.split(order, np.arange(1, n_batches) * self.global_batch)
        sizes = self._subset_sizes()
        drawn = (
            np.split(self._subset(rng.permutation(self.n_rows), sum(sizes)), np.cumsum(sizes)[:-1]) if sizes else []
        )
        extra_before = np.linspace(0, n_batches, len(drawn), endpoint=False).round().astype(int).tolist()
        extras = list(zip(extra_before, drawn, strict=True))
        for step in range(n_batches):
            while extras and extras[0][0] <= step:
                yield extras.pop(0)[1], True
            yield ordinary[step], False


def _shareable(subset_size: int, global_batch: int, processes: int) -> int:
    """Return how many of `subset_size` pairs so many processes can share in batches of at least two; logged if fewer.

    Raises:
        ValueError: If that is none.
    """
    shared = subset_size - subset_size % processes
    shared -= shared % 2 if global_batch == 2 else 0
    if subset_size and not shared:
        raise ValueError(
            f"Expected at least as many pairs for the extra batches as there are processes, but got {subset_size} for "
            f"{processes}. Raise `k_pairs`."
        )
    if shared < subset_size:
        logger.warning(
            "%d of %d pairs are drawn for the extra batches of an epoch, which is what global batches of %d on %d "
            "processes can share evenly.",
            shared,
            subset_size,
            global_batch,
            processes,
        )
    return shared
