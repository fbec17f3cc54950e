# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Shards of what a model makes of rows, on disk: written by any process, joined by one, whole after any kill."""

import json
import os
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hf_clipbd.recipe.joined import EMBEDDINGS, PICTURE, READABLE, STATE_FILE, Joined, Shard, names_of, rows_of
from hf_clipbd.recipe.locks import FolderLock
from hf_clipbd.schema import content_key


LOCK = ".lock.json"
STALE_AFTER = 120.0
"""Seconds without a sign of life after which a job on another machine counts as dead."""
_LOOK = 0.05
"""Seconds between two looks whether another job is through."""


class Shards:
    """The folder of what one model makes of rows: shards that were computed, and arrays of whole datasets.

    `part-*.npz` are shards that a process computed, known by their number and a hash of their content. `join` puts
    those of one dataset into its own folder below, named by the hashes of all of them; see `Joined`. Datasets that
    have a shard in common compute it once: what is no part any more is copied from the arrays of the other one, which
    are never written to again. So each caller keeps its own rows, whatever else is joined meanwhile.

    Some shards may have more names than others, so that whoever asks for images alone is served by what was computed
    with texts, and not the other way round. Several jobs may use a folder at once: each computes what it finds
    missing, and they join and open in turn.

    Args:
        folder: The folder.
        n: Rows of the dataset.
        size: Rows of a shard.
        names: The arrays that are asked for, beside `picture`.
    """

    def __init__(self, folder: Path, n: int, size: int, names: Collection[str] = EMBEDDINGS):
        self.folder, self.n, self.size, self.names = folder, n, size, tuple(names)
        self._joined = self._all_joined()

    def __len__(self) -> int:
        return -(-self.n // self.size)

    def rows(self, shard: int) -> range:
        """Return the row numbers of a shard."""
        return range(shard * self.size, min((shard + 1) * self.size, self.n))

    def problems(self, shard: int, digest: str) -> dict[int, str] | None:
        """Return the unreadable rows of a shard, row -> reason; None where it has to be computed first.

        Args:
            shard: Number of the shard.
            digest: Hash of its content as it is now.
        """
        try:
            told = _about(self._part(shard, digest))
        except FileNotFoundError:  # or another job has just joined it
            told = None
        if told is not None and set(self.names) <= set(names_of(told)):
            return rows_of(told["problems"])
        there = self._holding(shard, digest)
        return None if there is None else there.problems(shard)

    def keep(self, shard: int, digest: str, arrays: dict[str, np.ndarray], problems: dict[int, str]) -> None:
        """Write a shard.

        Args:
            shard: Number of the shard.
            digest: Hash of its content.
            arrays: What was asked for of its readable rows, (n, D) each, and `picture` of all.
            problems: Its unreadable rows, row number in the dataset -> reason.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._part(shard, digest)
        about = json.dumps({"digest": digest, "problems": problems, "names": sorted({*arrays} - {PICTURE})})
        partial = path.with_suffix(f".{os.getpid()}.partial")
        with partial.open("wb") as file:
            np.savez(file, about=about, **arrays)
        partial.replace(path)

    def join(self, digests: Sequence[str]) -> None:
        """Put the shards of a dataset into its arrays, and give copies of a picture what its first row has.

        Args:
            digests: Hash of each shard.

        Raises:
            ValueError: If no row can be read.
        """
        with self._turn():
            self._joined = self._all_joined()  # another job may have been here since
            own = self._own(digests)
            missing = [shard for shard, digest in enumerate(digests) if self._lacks(own, shard, digest)]
            if missing:
                arrays = own.widened(self._load(shard, digests[shard]) for shard in missing)
                for shard in missing:
                    own.put(shard, self._load(shard, digests[shard]), arrays)
                    self._part(shard, digests[shard]).unlink(missing_ok=True)
            for part in {self._part(*one) for one in enumerate(digests)} & set(self.folder.glob("part-*.npz")):
                part.unlink()  # of another job, which computed it too
            if not own.state["finished"]:
                own.finish()

    def open(self, digests: Sequence[str]) -> tuple[dict[str, np.ndarray], dict[int, str]]:
        """Return the arrays of a dataset's readable rows, memory-mapped, and the unreadable ones, row -> reason.

        Args:
            digests: Hash of each shard; they have been joined.
        """
        with self._turn():
            own = self._own(digests)
            problems: dict[int, str] = {}
            for shard in range(len(self)):
                problems |= own.problems(shard)
            return own.open("r", self.names, READABLE if problems else ""), problems

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Hold the folder for the block, once no other job does; one that may only be read is nobody's to hold."""
        if not os.access(self.folder, os.W_OK):
            yield
            return
        lock = FolderLock(self.folder, STALE_AFTER, LOCK, "cache")
        while not lock.take():
            time.sleep(_LOOK)
        with lock:
            yield

    def _part(self, shard: int, digest: str) -> Path:
        return self.folder / f"part-{shard:06d}-{digest}.npz"

    def _own(self, digests: Sequence[str]) -> Joined:
        return Joined(self.folder / content_key(*digests), self.n, self.size)

    def _all_joined(self) -> list[Joined]:
        """Return all arrays that there are; those of an older version lie in the folder itself."""
        states = sorted([*self.folder.glob(STATE_FILE), *self.folder.glob(f"*/{STATE_FILE}")])
        return [Joined(path.parent, self.n, self.size) for path in states]

    def _holding(self, shard: int, digest: str) -> Joined | None:
        """Return arrays that have a shard with all names."""
        return next((one for one in self._joined if one.has(shard, digest, self.names)), None)

    def _lacks(self, own: Joined, shard: int, digest: str) -> bool:
        """Return whether arrays have no such shard, or a part has more of it."""
        part = self._part(shard, digest)
        more = names_of(_about(part)) if part.exists() else ()
        return not own.has(shard, digest, {*self.names, *more})

    def _load(self, shard: int, digest: str) -> Shard:
        part = self._part(shard, digest)
        if part.exists() and set(self.names) <= set(names_of(about := _about(part))):
            with np.load(part) as arrays:
                return Shard(about, {name: arrays[name] for name in (*names_of(about), PICTURE)})
        there = self._holding(shard, digest)
        if there is None:
            raise FileNotFoundError(f"Expected shard {shard} in the cache `{self.folder}`, but it is gone. Run again.")
        return there.load(shard)


def _about(part: Path) -> dict[str, Any]:
    with np.load(part) as arrays:
        return json.loads(str(arrays["about"]))
