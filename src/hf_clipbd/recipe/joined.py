# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What a model makes of the rows of one dataset: its shards put together into one array a name."""

import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hf_clipbd.detection.rows import copies_of
from hf_clipbd.schema import write_json


STATE_FILE = "state.json"
EMBEDDINGS = ("image", "text")
PICTURE = "picture"
OF_PICTURES = ("image", "mask")
"""Names of what copies of a picture share."""
READABLE = "readable-"
"""Goes before the names of the files without the rows that cannot be read."""


class Shard(NamedTuple):
    """What is known of a shard, and its arrays: those of the readable rows, (n, D) each, and `picture` of all."""

    about: dict[str, Any]
    arrays: dict[str, np.ndarray]


class Joined:
    """Arrays of one dataset, a row each: `NAME.npy` and `picture.npy`, in which rows that cannot be read are NaN.

    `state.json` has the hash, the unreadable rows and the names of each shard in them, and whether copies were given
    one value since.

    Args:
        folder: The folder.
        n: Rows.
        size: Rows of a shard.
    """

    def __init__(self, folder: Path, n: int, size: int):
        self.folder, self.n, self.size = folder, n, size
        self.state = self._read_state()

    def problems(self, shard: int) -> dict[int, str]:
        """Return the unreadable rows of a shard that is there, row -> reason."""
        return rows_of(self.state["shards"][str(shard)]["problems"])

    def has(self, shard: int, digest: str, names: Collection[str]) -> bool:
        """Return whether a shard of this content is there, with all of these names."""
        known = self.state["shards"].get(str(shard))
        return known is not None and known["digest"] == digest and set(names) <= set(names_of(known))

    def load(self, shard: int) -> Shard:
        """Return a shard out of the arrays."""
        about, rows = self.state["shards"][str(shard)], self._rows(shard)
        readable = _readable(about, rows)
        block = {name: one[rows.start : rows.stop] for name, one in self.open("r", names_of(about)).items()}
        return Shard(about, {name: np.array(x if name == PICTURE else x[readable]) for name, x in block.items()})

    def widened(self, shards: Iterable[Shard]) -> dict[str, np.ndarray]:
        """Return the arrays to write to, those made that shards bring and that are not there yet.

        Raises:
            ValueError: If no row of any shard can be read.
        """
        widths: dict[str, int] = {}
        problems: dict[int, str] = {}
        for about, arrays in shards:
            widths |= {name: arrays[name].shape[1] for name in names_of(about) if len(arrays[name])}
            problems = problems or rows_of(about["problems"])
        held = _held(self.state)
        if not held and not widths:
            row, why = next(iter(problems.items()))
            raise ValueError(f"Expected rows that can be read, but none of {self.n} can. Row {row}: {why}")
        self.folder.mkdir(exist_ok=True)
        new = {name: width for name, width in widths.items() if name not in held}
        made = self._create(self.n, new, picture=not held)
        return self.open("r+", held) | made if held else made

    def put(self, shard: int, kept: Shard, arrays: dict[str, np.ndarray]) -> None:
        """Write what a shard brings that is not there yet.

        Args:
            shard: Its number.
            kept: What it has.
            arrays: What `widened` gave.
        """
        rows, known = self._rows(shard), self.state["shards"].get(str(shard), {"names": []})
        readable, held = _readable(kept.about, rows), names_of(known)
        names = [name for name in names_of(kept.about) if name in arrays]
        for name in set(names) - set(held):
            block = np.full((len(rows), arrays[name].shape[1]), np.nan, dtype=np.float32)
            if readable.any():
                block[readable] = kept.arrays[name]
            arrays[name][rows.start : rows.stop] = block
        arrays[PICTURE][rows.start : rows.stop] = kept.arrays[PICTURE]
        for array in arrays.values():
            array.flush()
        self.state["finished"] = False
        self.state["shards"][str(shard)] = {**kept.about, "names": sorted({*held, *names})}
        write_json(self.folder / STATE_FILE, self.state)

    def finish(self) -> None:
        """Give copies of a picture what its first row has, and make the arrays without unreadable rows."""
        for path in self.folder.glob(f"{READABLE}*.npy"):
            path.unlink()
        arrays = self.open("r+", _held(self.state))
        if any(one["problems"] for one in self.state["shards"].values()):
            arrays = self._without_unreadable(arrays)
        for rows in copies_of(arrays[PICTURE])[1]:
            for name in OF_PICTURES:
                if name in arrays:
                    arrays[name][rows[1:]] = arrays[name][rows[0]]
        for array in arrays.values():
            array.flush()
        self.state["finished"] = True
        write_json(self.folder / STATE_FILE, self.state)

    def open(self, mode: str, names: Collection[str], prefix: str = "") -> dict[str, np.ndarray]:
        """Return the arrays of some names, and `picture`, memory-mapped."""
        return {name: np.load(self._file(name, prefix), mmap_mode=mode) for name in (*names, PICTURE)}

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

    def _rows(self, shard: int) -> range:
        return range(shard * self.size, min((shard + 1) * self.size, self.n))

    def _file(self, name: str, prefix: str = "") -> Path:
        return self.folder / f"{prefix}{name}.npy"

    def _without_unreadable(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        bad = [row for one in self.state["shards"].values() for row in rows_of(one["problems"])]
        readable = np.ones(self.n, dtype=bool)
        readable[bad] = False
        widths = {name: array.shape[1] for name, array in arrays.items() if name != PICTURE}
        made, done = self._create(int(readable.sum()), widths, READABLE, picture=True), 0
        for start in range(0, self.n, self.size):
            rows = slice(start, min(start + self.size, self.n))
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


def names_of(about: dict[str, Any]) -> list[str]:
    """Return what a shard has; those of an older version had both embeddings and did not say so."""
    return about.get("names", list(EMBEDDINGS))


def rows_of(problems: dict[str, str]) -> dict[int, str]:
    """Return unreadable rows as JSON has them, row -> reason, with their numbers as such."""
    return {int(row): why for row, why in problems.items()}


def _held(state: dict[str, Any]) -> list[str]:
    """Return the names that any shard in the arrays has."""
    return sorted({name for one in state["shards"].values() for name in names_of(one)})


def _readable(about: dict[str, Any], rows: range) -> np.ndarray:
    """Return which rows of a shard can be read, (rows,)."""
    readable = np.ones(len(rows), dtype=bool)
    readable[[row - rows.start for row in rows_of(about["problems"])]] = False
    return readable
