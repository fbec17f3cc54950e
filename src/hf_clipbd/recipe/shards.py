# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Shards of embeddings on disk: written one by one by any process, put together by one, whole after any kill."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from hf_clipbd.detection.rows import copies_of
from hf_clipbd.schema import write_json


STATE_FILE = "state.json"
FILES = {"image": "image.npy", "text": "text.npy", "picture": "picture.npy"}
READABLE = "readable-"
"""Goes before the names of the files without the rows that cannot be read."""


class Shards:
    """The folder of one dataset's embeddings in one model.

    `part-*.npz` are shards that a process embedded; `join` moves them into one array each, in which rows that cannot
    be read are NaN. `state.json` has the hash and the unreadable rows of each shard in the arrays, and whether copies
    were given one embedding since.

    Args:
        folder: The folder.
        n: Rows of the dataset.
        size: Rows of a shard.
    """

    def __init__(self, folder: Path, n: int, size: int):
        self.folder, self.n, self.size = folder, n, size
        self._state = self._read_state()

    def __len__(self) -> int:
        return -(-self.n // self.size)

    def rows(self, shard: int) -> range:
        """Return the row numbers of a shard."""
        return range(shard * self.size, min((shard + 1) * self.size, self.n))

    def problems(self, shard: int, digest: str) -> dict[int, str] | None:
        """Return the unreadable rows of a shard, row -> reason; None where it has to be embedded first.

        Args:
            shard: Number of the shard.
            digest: Hash of its content as it is now.
        """
        known = self._state["shards"].get(str(shard))
        if known is not None and known["digest"] == digest:
            self._part(shard).unlink(missing_ok=True)  # of an older content
            return _rows_of(known["problems"])
        if not self._part(shard).is_file():
            return None
        with np.load(self._part(shard)) as part:
            told = json.loads(str(part["about"]))
        return _rows_of(told["problems"]) if told["digest"] == digest else None

    def keep(self, shard: int, digest: str, arrays: dict[str, np.ndarray], problems: dict[int, str]) -> None:
        """Write a shard.

        Args:
            shard: Number of the shard.
            digest: Hash of its content.
            arrays: `image` and `text` of its readable rows, `picture` of all.
            problems: Its unreadable rows, row number in the dataset -> reason.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._part(shard)
        about = json.dumps({"digest": digest, "problems": problems})
        partial = path.with_suffix(f".{os.getpid()}.partial")
        with partial.open("wb") as file:
            np.savez(file, about=about, **arrays)
        partial.replace(path)

    def join(self) -> None:
        """Move all written shards into the arrays, and give copies of a picture the embedding of its first row.

        Raises:
            ValueError: If no row can be read.
        """
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
        self._state = self._read_state()
        problems: dict[int, str] = {}
        for shard in range(len(self)):
            problems |= _rows_of(self._state["shards"][str(shard)]["problems"])
        return self._open("r", READABLE if problems else ""), problems

    def _part(self, shard: int) -> Path:
        return self.folder / f"part-{shard:06d}.npz"

    def _arrays(self, parts: list[Path]) -> dict[str, np.ndarray]:
        """Return the arrays, made where they are not there yet."""
        if self._state["shards"]:
            return self._open("r+")
        widths: dict[str, int] = {}
        for path in parts:
            with np.load(path) as part:
                if not widths and len(part["image"]):
                    widths = {name: part[name].shape[1] for name in ("image", "text")}
        if not widths:
            with np.load(parts[0]) as part:
                row, why = next(iter(json.loads(str(part["about"]))["problems"].items()))
            raise ValueError(f"Expected rows that can be read, but none of {self.n} can. Row {row}: {why}")
        return self._create(self.n, widths)

    def _create(self, n: int, widths: dict[str, int], prefix: str = "") -> dict[str, np.ndarray]:
        def made(name: str, shape: tuple[int, ...], kind: type) -> np.ndarray:
            path = self.folder / (prefix + FILES[name])
            return np.lib.format.open_memmap(path, mode="w+", dtype=kind, shape=shape)

        arrays = {name: made(name, (n, width), np.float32) for name, width in widths.items()}
        return {**arrays, "picture": made("picture", (n,), np.int64)}

    def _open(self, mode: str, prefix: str = "") -> dict[str, np.ndarray]:
        return {name: np.load(self.folder / (prefix + file), mmap_mode=mode) for name, file in FILES.items()}

    def _move(self, path: Path, arrays: dict[str, np.ndarray]) -> None:
        shard = int(path.stem.removeprefix("part-"))
        rows = self.rows(shard)
        with np.load(path) as part:
            about = json.loads(str(part["about"]))
            if self._state["shards"].get(str(shard), {}).get("digest") == about["digest"]:
                path.unlink()
                return
            readable = np.ones(len(rows), dtype=bool)
            readable[[row - rows.start for row in _rows_of(about["problems"])]] = False
            for name in ("image", "text"):
                block = np.full((len(rows), arrays[name].shape[1]), np.nan, dtype=np.float32)
                if readable.any():
                    block[readable] = part[name]
                arrays[name][rows.start : rows.stop] = block
            arrays["picture"][rows.start : rows.stop] = part["picture"]
        for array in arrays.values():
            array.flush()
        self._state["finished"] = False
        self._state["shards"][str(shard)] = about
        write_json(self.folder / STATE_FILE, self._state)
        path.unlink()

    def _finish(self) -> None:
        for file in FILES.values():
            (self.folder / (READABLE + file)).unlink(missing_ok=True)
        arrays = self._open("r+")
        if any(one["problems"] for one in self._state["shards"].values()):
            arrays = self._without_unreadable(arrays)
        for rows in copies_of(arrays["picture"])[1]:
            arrays["image"][rows[1:]] = arrays["image"][rows[0]]
        for array in arrays.values():
            array.flush()
        self._state["finished"] = True
        write_json(self.folder / STATE_FILE, self._state)

    def _without_unreadable(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        bad = [row for one in self._state["shards"].values() for row in _rows_of(one["problems"])]
        readable = np.ones(self.n, dtype=bool)
        readable[bad] = False
        widths = {name: arrays[name].shape[1] for name in ("image", "text")}
        made, done = self._create(int(readable.sum()), widths, READABLE), 0
        for shard in range(len(self)):
            rows = slice(self.rows(shard).start, self.rows(shard).stop)
            count = int(readable[rows].sum())
            for name, array in made.items():
                array[done : done + count] = arrays[name][rows][readable[rows]]
            done += count
        return made

    def _read_state(self) -> dict[str, Any]:
        path = self.folder / STATE_FILE
        if not all((self.folder / name).is_file() for name in (*FILES.values(), STATE_FILE)):
            return {"finished": False, "shards": {}}
        return json.loads(path.read_text(encoding="utf-8"))


def _rows_of(problems: dict[str, str]) -> dict[int, str]:
    return {int(row): why for row, why in problems.items()}
