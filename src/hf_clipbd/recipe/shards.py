# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Shards of what a model makes of rows, on disk: written once by any process, put together by each job for itself."""

import json
import os
import tempfile
import time
import uuid
import zipfile
from collections.abc import Collection, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np

from hf_clipbd.detection.rows import copies_of


PICTURE = "picture"
OF_PICTURES = ("image", "mask")
"""Names of what copies of a picture share."""
JOINED = "joined-"
"""Goes before the names of the files of a job that is putting shards together."""
LEFT_AFTER = 86_400.0
"""Seconds after which files that a killed job was writing are removed."""


class Shards:
    """The folder of what one model makes of rows: shards that were computed, each in a file that stays as it is.

    `part-NUMBER-HASH.npz` has a shard, known by its number and a hash of its content, so datasets that have one in
    common compute it once, and several jobs may use a folder at once. Shards may have more names than are asked for:
    whoever asks for images alone is served by what was computed with texts, and not the other way round.

    `join` puts the shards of a dataset into one file a name for the job that called it; the files are removed as soon
    as that job has opened them, so that their room is free again once it has let go of the arrays or was killed. Until
    then a dataset takes its room on the disk twice. They lie in the folder, or in that for temporary files (`TMPDIR`)
    where the folder may only be read.

    Args:
        names: The arrays that are asked for, beside `picture`.
    """

    def __init__(self, folder: Path, n: int, size: int, names: Collection[str]):
        self.folder, self.n, self.size, self.names = folder, n, size, (*names, PICTURE)

    def __len__(self) -> int:
        return -(-self.n // self.size)

    def rows(self, shard: int) -> range:
        """Return the row numbers of a shard."""
        return range(shard * self.size, min((shard + 1) * self.size, self.n))

    def problems(self, shard: int, digest: str) -> dict[int, str] | None:
        """Return the unreadable rows of a shard, row -> reason; None where it has to be computed first."""
        try:
            with np.load(self._part(shard, digest)) as part:
                told = json.loads(str(part["about"]))["problems"] if set(self.names) <= set(part.files) else None
        except (FileNotFoundError, EOFError, ValueError, zipfile.BadZipFile):  # cut short where a machine crashed
            return None
        return None if told is None else {int(row): why for row, why in told.items()}

    def keep(self, shard: int, digest: str, arrays: dict[str, np.ndarray], problems: dict[int, str]) -> None:
        """Write a shard, unless another job has written all of it meanwhile.

        Args:
            arrays: What was asked for of its readable rows, (n, D) each, and `picture` of all.
            problems: Its unreadable rows, row number in the dataset -> reason.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._part(shard, digest)
        partial = path.with_suffix(f".{uuid.uuid4().hex}.partial")
        with partial.open("wb") as file:
            np.savez(file, about=json.dumps({"problems": problems}), **arrays)
        if self.problems(shard, digest) is None:
            partial.replace(path)
        else:
            partial.unlink()

    def join(self, digests: Sequence[str], problems: Collection[int]) -> Path:
        """Write the readable rows of a dataset, one file a name, copies of a picture with what its first row has.

        Returns:
            What the files' names begin with, for `open` and `remove`.

        Raises:
            FileNotFoundError: If a shard is gone.
            OSError: If a shard's content is no longer what was written; the next job computes it anew.
        """
        self._clear_left()
        place = self.folder if os.access(self.folder, os.W_OK) else Path(tempfile.gettempdir())
        joined = place / f"{JOINED}{uuid.uuid4().hex}"
        readable = np.ones(self.n, dtype=bool)
        readable[list(problems)] = False
        with ExitStack() as undone:
            undone.callback(self.remove, joined)
            self._write(joined, digests, readable)
            arrays = self.open(joined, int(readable.sum()), "r+")
            for rows in copies_of(arrays[PICTURE])[1]:
                for name in set(OF_PICTURES) & set(arrays):
                    arrays[name][rows[1:]] = arrays[name][rows[0]]
            undone.pop_all()
        return joined

    def open(self, joined: Path, n: int, mode: str = "r") -> dict[str, np.ndarray]:
        """Return what `join` wrote, name -> (n, D), float32, and `picture`, (n,), int64, memory-mapped.

        Args:
            joined: What it returned.
            n: Number of readable rows.
            mode: As of `numpy.memmap`.
        """
        found = {name: np.memmap(_file(joined, name), _kind(name), mode) for name in self.names}
        return {name: array if name == PICTURE else array.reshape(n, -1) for name, array in found.items()}

    def remove(self, joined: Path) -> None:
        """Remove what `join` wrote; whoever of this machine has opened it keeps it."""
        for name in self.names:
            with suppress(OSError):  # one that cannot be removed now is cleared later
                _file(joined, name).unlink()

    def _write(self, joined: Path, digests: Sequence[str], readable: np.ndarray) -> None:
        with ExitStack() as opened:
            files = {name: opened.enter_context(_file(joined, name).open("xb")) for name in self.names}
            for shard, digest in enumerate(digests):
                for name, array in self._load(shard, digest).items():
                    rows = self.rows(shard)
                    taken = array[readable[rows.start : rows.stop]] if name == PICTURE else array
                    files[name].write(np.ascontiguousarray(taken, _kind(name)))

    def _load(self, shard: int, digest: str) -> dict[str, np.ndarray]:
        try:
            with np.load(self._part(shard, digest)) as part:
                return {name: part[name] for name in self.names}
        except (FileNotFoundError, KeyError) as error:
            raise FileNotFoundError(
                f"Expected shard {shard} with {self.names} in the cache `{self.folder}`, but it was removed. "
                "Run again."
            ) from error
        except (EOFError, ValueError, zipfile.BadZipFile) as error:  # a checksum that does not fit
            with suppress(OSError):
                self._part(shard, digest).unlink()
            raise OSError(
                f"Expected shard {shard} in the cache `{self.folder}` as it was written, but it is broken: {error}. "
                "It is removed where that can be done. Run again."
            ) from error

    def _clear_left(self) -> None:
        for path in [*self.folder.glob(f"{JOINED}*"), *self.folder.glob("*.partial")]:
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > LEFT_AFTER:
                    path.unlink()

    def _part(self, shard: int, digest: str) -> Path:
        return self.folder / f"part-{shard:06d}-{digest}.npz"


def _file(joined: Path, name: str) -> Path:
    return joined.with_name(f"{joined.name}.{name}")


def _kind(name: str) -> type:
    return np.int64 if name == PICTURE else np.float32
