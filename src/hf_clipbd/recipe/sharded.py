# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What a model makes of each row, computed once: shard by shard, known by what pictures and captions contain."""

import hashlib
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from hf_clipbd.data.canvas import Canvas
from hf_clipbd.data.undecoded import stored_bytes
from hf_clipbd.features import model_fingerprint
from hf_clipbd.recipe.fingerprints import processor_fingerprint
from hf_clipbd.recipe.locks import this_host
from hf_clipbd.recipe.shards import Shards
from hf_clipbd.schema import CAPTION, IMAGE, content_key


logger = logging.getLogger(__name__)

HASHED_ROWS = 256
"""Encoded pictures held at once while a shard is hashed."""

Compute = Callable[[range], tuple[dict[str, np.ndarray], dict[int, str]]]
"""From rows to arrays of the readable ones, (n, D) each, and, counted from the first of them, the unreadable ones."""


def computed_once(
    pairs: datasets.Dataset,
    cache: Path,
    owner: Sequence[Any],
    size: int,
    names: Collection[str],
    compute: Compute,
    unreadable: dict[int, str] | None,
    desc: str,
) -> dict[str, np.ndarray]:
    """Return what `compute` makes of every row, from the cache where owner, pictures and captions are the same.

    A shard is taken from the folder if a hash of its pictures' bytes and its captions is a recorded one and it has
    every name, and computed otherwise. So a job that was killed goes on at the shard where it was, and of a dataset
    that was changed only the changed shards are computed. A dataset of another number of rows is computed anew.

    Each call puts the shards into arrays of its own, which take their room on the disk beside the shards until nobody
    holds them any more; see `Shards`. Several processes compute a shard each in turn, and all of them have to call it;
    one of each machine puts the shards together. What comes out does not depend on how many there are.

    Args:
        owner: What else the result depends on: the model and the number of rows, say; with the size and the first
            shard's content it names the folder.
        unreadable: Takes row number -> what is wrong with it for the unreadable rows, which are then left out of the
            result; without it the first such row is an error.

    Returns:
        Name -> (N, D), float32, memory-mapped; rows whose pictures have the same bytes have what the first of them
        has where it is made of the picture alone; and `picture`, (N,), a 64-bit number that is the same for these.

    Raises:
        ValueError: If there are no rows, a column is missing, no row can be read, or one cannot be and `unreadable`
            is None (the message names it).
    """
    if len(pairs) == 0 or not {IMAGE, CAPTION} <= set(pairs.column_names):
        raise ValueError(
            f"Expected rows with `{IMAGE}` and `{CAPTION}`, but got {len(pairs)} of {pairs.column_names}."
        )
    undecoded = pairs.select_columns([IMAGE, CAPTION]).cast_column(IMAGE, datasets.Image(decode=False))
    first = _content(undecoded, range(min(size, len(pairs))))
    shards = Shards(Path(cache) / content_key(*owner, size, first.digest), len(pairs), size, names)
    mine = _fill(shards, undecoded, first, compute, unreadable is None, desc)
    every = dict(gather_object(list(mine.items())))  # when all processes are through
    known = [every[shard] for shard in range(len(shards))]
    problems = {row: why for one in known for row, why in one.problems.items()}
    if len(problems) == len(pairs):
        row, why = next(iter(problems.items()))
        raise ValueError(f"Expected rows that can be read, but none of {len(pairs)} can. Row {row}: {why}")
    if unreadable is not None:
        unreadable.update(problems)
    return _joined(shards, [one.digest for one in known], problems)


def embedder(model: Any, processor: Any, canvas: Canvas, n: int) -> list[Any]:
    """Return what tells a model's view of n rows from any other: weights, tokenizer, pixel statistics, geometry."""
    return [model_fingerprint(model), processor_fingerprint(processor), [canvas.size, canvas.mode], n]


def _fill(
    shards: Shards, undecoded: datasets.Dataset, first: "_Content", compute: Compute, strict: bool, desc: str
) -> dict[int, "_Known"]:
    """Return this process's shards, each computed and written first where it is not there as it is now."""
    taken, mine = 0, _mine(shards, desc)
    known: dict[int, _Known] = {}
    for shard in mine:
        content = _content(undecoded, shards.rows(shard)) if shard else first
        problems = shards.problems(shard, content.digest)
        taken += problems is not None
        if problems is None:
            found, bad = compute(shards.rows(shard))
            problems = {shards.rows(shard)[row]: why for row, why in bad.items()}
            shards.keep(shard, content.digest, {**found, "picture": content.pictures}, problems)
        if problems and strict:
            row, why = next(iter(problems.items()))
            raise ValueError(f"Row {row}: {why} Or leave such rows out: `--on_error skip`.")
        known[shard] = _Known(content.digest, problems)
    if taken and PartialState().is_main_process:
        logger.info("%s: %d of %d shards were there already, in %s", desc, taken, len(mine), shards.folder)
    return known


def _joined(shards: Shards, digests: Sequence[str], problems: dict[int, str]) -> dict[str, np.ndarray]:
    """Return the arrays of a dataset, which one process of each machine writes for all that run there.

    So none reads a file that another machine has removed, which network file systems may refuse.
    """
    state, here = PartialState(), this_host()
    writer = gather_object([here]).index(here)
    own = shards.join(digests, problems) if writer == state.process_index else None
    written = gather_object([own])[writer]
    found = shards.open(written, shards.n - len(problems))
    state.wait_for_everyone()
    if own is not None:
        shards.remove(own)
    return found


def _mine(shards: Shards, desc: str) -> tqdm:
    """Return the numbers of the shards that this process computes, under a bar that the main one shows."""
    state = PartialState()
    numbers = range(state.process_index, len(shards), state.num_processes)
    hidden = True if len(shards) < 2 or not state.is_main_process else None
    return tqdm(numbers, desc=desc, unit="shard", disable=hidden)


class _Known(NamedTuple):
    """The hash of a shard, and its unreadable rows, row -> reason."""

    digest: str
    problems: dict[int, str]


class _Content(NamedTuple):
    """A hash of a shard's pictures and captions, and a 64-bit number for each picture, (rows,)."""

    digest: str
    pictures: np.ndarray


def _content(undecoded: datasets.Dataset, rows: range) -> _Content:
    """Return what tells these rows from any others."""
    whole, pictures = hashlib.sha256(), []
    for image, caption in _rows(undecoded, rows.start, rows.stop):
        picture = hashlib.sha256(stored_bytes(image)).digest()
        whole.update(picture)
        whole.update(hashlib.sha256(str(caption).encode()).digest() if caption is not None else b"none")
        pictures.append(int.from_bytes(picture[:8], "little", signed=True))
    return _Content(whole.hexdigest()[:32], np.array(pictures, dtype=np.int64))


def _rows(undecoded: datasets.Dataset, start: int, stop: int) -> Iterator[tuple[dict[str, Any] | None, str | None]]:
    for first in range(start, stop, HASHED_ROWS):
        rows = undecoded[first : min(first + HASHED_ROWS, stop)]
        yield from zip(rows[IMAGE], rows[CAPTION], strict=True)
