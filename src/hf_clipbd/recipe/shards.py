# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Shards of what a model makes of rows, on disk: written by any process, joined by one, whole after any kill."""

import json
import os
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hf_clipbd.detection.rows import copies_of
from hf_clipbd.recipe.locks import FolderLock
from hf_clipbd.schema import write_json


STATE_FILE = "state.json"
EMBEDDINGS = ("image", "text")
PICTURE = "picture"
OF_PICTURES = ("image", "mask")
"""Names of what copies of a picture share."""
READABLE = "readable-"
"""Goes before the names of the files without the rows that cannot be read."""
LOCK = ".lock.json"
STALE_AFTER = 120.0
"""Seconds without a sign of life after which a job on another machine counts as dead."""
_LOOK = 0.05
"""Seconds between two looks whether another job is through."""


class Shards:
    """The folder of what one model makes of one dataset's rows: arrays of a row each, `NAME.npy`, and `picture.npy`.

    `part-*.npz` are shards that a process computed; `join` moves them into one array each, in which rows that cannot
    be read are NaN. `state.json` has the hash, the unreadable rows and the names of each shard in the arrays, and
    whether copies were given one value since. One folder may hold some shards with more names than others, so that
    whoever asks for images alone is served by what was computed with texts, and not the other way round.

    Several jobs may use a folder at once: each computes what it finds missing, and they join and open it in turn.

    Args:
        folder: The folder.
        n: Rows of the dataset.
        size: Rows of a shard.
        names: The arrays that are asked for, beside `picture`.
    """

    def __init__(self, folder: Path, n: int, size: int, names: Collection[str] = EMBEDDINGS):
        self.folder, self.n, self.size, self.names = folder, n, size, tuple(names)
        self._state = self._read_state()

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
        part = self._part(shard)
        try:
            told = _about(part)
        except FileNotFoundError:  # or another job has just joined it
            told = None
        if told is not None and told["digest"] != digest:
            part.unlink(missing_ok=True)  # of another content
            told = None
        for known in (self._state["shards"].get(str(shard)), told):
            if known is not None and known["digest"] == digest and set(self.names) <= set(_names_of(known)):
                return _rows_of(known["problems"])
        return None

    def keep(self, shard: int, digest: str, arrays: dict[str, np.ndarray], problems: dict[int, str]) -> None:
        """Write a shard.

        Args:
            shard: Number of the shard.
            digest: Hash of its content.
            arrays: What was asked for of its readable rows, (n, D) each, and `picture` of all.
            problems: Its unreadable rows, row number in the dataset -> reason.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._part(shard)
        about = json.dumps({"digest": digest, "problems": problems, "names": sorted({*arrays} - {PICTURE})})
        partial = path.with_suffix(f".{os.getpid()}.partial")
        with partial.open("wb") as file:
            np.savez(file, about=about, **arrays)
        partial.replace(path)

    def join(self) -> None:
        """Move all written shards into the arrays, and give copies of a picture what its first row has.

        Raises:
            ValueError: If no row can be read.
        """
        with self._turn():
            self._state = self._read_state()  # another job on the same data may have been here since
            parts = sorted(self.folder.glob("part-*.npz"))
            if parts:
                arrays = self._arrays(parts)
                for path in parts:
                    self._move(path, arrays)
            if not self._state["finished"]:
                self._finish()

    def open(self) -> tuple[dict[str, np.ndarray], dict[int, str]]:
        """Return the arrays of the readable rows, memory-mapped, and the unreadable ones, row -> reason."""
        with self._turn():
            self._state = self._read_state()
            problems: dict[int, str] = {}
            for shard in range(len(self)):
                problems |= _rows_of(self._state["shards"][str(shard)]["problems"])
            return self._open("r", self.names, READABLE if problems else ""), problems

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

    def _part(self, shard: int) -> Path:
        return self.folder / f"part-{shard:06d}.npz"

    def _arrays(self, parts: list[Path]) -> dict[str, np.ndarray]:
        """Return the arrays, those made that are not there yet."""
        widths: dict[str, int] = {}
        for path in parts:
            with np.load(path) as part:
                readable = {name: part[name] for name in _names_of(_about(path)) if len(part[name])}
                widths |= {name: array.shape[1] for name, array in readable.items()}
        held = _held(self._state)
        if not held and not widths:
            row, why = next(iter(_about(parts[0])["problems"].items()))
            raise ValueError(f"Expected rows that can be read, but none of {self.n} can. Row {row}: {why}")
        new = {name: width for name, width in widths.items() if name not in held}
        return self._open("r+", held) | self._create(self.n, new) if held else self._create(self.n, new, picture=True)

    def _create(
        self, n: int, widths: dict[str, int], prefix: str = "", picture: bool = False
    ) -> dict[str, np.ndarray]:
        shapes: dict[str, tuple[tuple[int, ...], type]] = {
            name: ((n, width), np.float32) for name, width in widths.items()
        }
        shapes |= {PICTURE: ((n,), np.int64)} if picture else {}
        return {
            name: np.lib.format.open_memmap(self._file(name, prefix), mode="w+", dtype=kind, shape=shape)
            for name, (shape, kind) in shapes.items()
        }

    def _file(self, name: str, prefix: str = "") -> Path:
        return self.folder / f"{prefix}{name}.npy"

    def _open(self, mode: str, names: Collection[str], prefix: str = "") -> dict[str, np.ndarray]:
        return {name: np.load(self._file(name, prefix), mmap_mode=mode) for name in (*names, PICTURE)}

    def _move(self, path: Path, arrays: dict[str, np.ndarray]) -> None:
        shard, about = int(path.stem.removeprefix("part-")), _about(path)
        names = [name for name in _names_of(about) if name in arrays]
        known = self._state["shards"].get(str(shard), {})
        held = _names_of(known) if known.get("digest") == about["digest"] else ()
        if set(names) <= set(held):
            path.unlink()
            return
        rows = self.rows(shard)
        readable = np.ones(len(rows), dtype=bool)
        readable[[row - rows.start for row in _rows_of(about["problems"])]] = False
        with np.load(path) as part:
            for name in names:
                block = np.full((len(rows), arrays[name].shape[1]), np.nan, dtype=np.float32)
                if readable.any():
                    block[readable] = part[name]
                arrays[name][rows.start : rows.stop] = block
            arrays[PICTURE][rows.start : rows.stop] = part[PICTURE]
        for array in arrays.values():
            array.flush()
        self._state["finished"] = False
        self._state["shards"][str(shard)] = {**about, "names": sorted({*held, *names})}
        write_json(self.folder / STATE_FILE, self._state)
        path.unlink()

    def _finish(self) -> None:
        for path in self.folder.glob(f"{READABLE}*.npy"):
            path.unlink()
        arrays = self._open("r+", _held(self._state))
        if any(one["problems"] for one in self._state["shards"].values()):
            arrays = self._without_unreadable(arrays)
        for rows in copies_of(arrays[PICTURE])[1]:
            for name in OF_PICTURES:
                if name in arrays:
                    arrays[name][rows[1:]] = arrays[name][rows[0]]
        for array in arrays.values():
            array.flush()
        self._state["finished"] = True
        write_json(self.folder / STATE_FILE, self._state)

    def _without_unreadable(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        bad = [row for one in self._state["shards"].values() for row in _rows_of(one["problems"])]
        readable = np.ones(self.n, dtype=bool)
        readable[bad] = False
        widths = {name: array.shape[1] for name, array in arrays.items() if name != PICTURE}
        made, done = self._create(int(readable.sum()), widths, READABLE, picture=True), 0
        for shard in range(len(self)):
            rows = slice(self.rows(shard).start, self.rows(shard).stop)
            count = int(readable[rows].sum())
            for name, array in made.items():
                array[done : done + count] = arrays[name][rows][readable[rows]]
            done += count
        return made

    def _read_state(self) -> dict[str, Any]:
        path = self.folder / STATE_FILE
        if path.is_file():
            state = json.loads(path.read_text(encoding="utf-8"))
            if all(self._file(name).is_file() for name in (*_held(state), PICTURE)):
                return state
        return {"finished": False, "shards": {}}


def _about(part: Path) -> dict[str, Any]:
    with np.load(part) as arrays:
        return json.loads(str(arrays["about"]))


def _names_of(about: dict[str, Any]) -> list[str]:
    """Return what a shard has; those of an older version had both embeddings and did not say so."""
    return about.get("names", list(EMBEDDINGS))


def _held(state: dict[str, Any]) -> list[str]:
    """Return the names that any shard in the arrays has."""
    return sorted({name for one in state["shards"].values() for name in _names_of(one)})


def _rows_of(problems: dict[str, str]) -> dict[int, str]:
    return {int(row): why for row, why in problems.items()}
