# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Embeddings of a dataset, computed once: kept by what model and data contain, in shards that survive a kill."""

import hashlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
from accelerate import PartialState
from tqdm.auto import tqdm

from hf_clipbd.data.canvas import Canvas
from hf_clipbd.features import embed_dataset, model_fingerprint
from hf_clipbd.recipe.shards import Shards
from hf_clipbd.schema import CAPTION, IMAGE, content_key


logger = logging.getLogger(__name__)

SHARD_ROWS = 4096
HASHED_ROWS = 256
"""Encoded pictures held at once while a shard is hashed."""


def default_cache() -> Path:
    """Return where embeddings are kept: `hf_clipbd/embeddings` below the Hugging Face home."""
    return Path(datasets.config.HF_CACHE_HOME).expanduser() / "hf_clipbd" / "embeddings"


def cached_embeddings(
    model: Any,
    processor: Any,
    pairs: datasets.Dataset,
    cache: Path,
    batch_size: int = 256,
    canvas: Canvas | None = None,
    normalize: bool = True,
    unreadable: dict[int, str] | None = None,
) -> dict[str, np.ndarray]:
    """Return the unit embeddings of every pair, from the cache where model, pictures and captions are the same.

    The folder's name is a hash of the model's weights, its tokenizer, the canvas, the number of rows and the first
    shard; a shard of 4,096 rows is taken from it if a hash of its pictures' bytes and its captions is the recorded
    one, and embedded again otherwise. So neither a renamed nor an overwritten dataset or model is taken for another,
    and a job that was killed goes on at the shard where it was.

    Several processes embed a shard each in turn, and all of them have to call it; the main one puts the shards
    together. What comes out does not depend on how many there are.

    Args:
        model: Dual encoder, on the device that it is to run on.
        processor: Its processor.
        pairs: Rows (image, caption).
        cache: Folder of all caches, one that every process sees.
        batch_size: Rows a forward pass.
        canvas: Geometry of the images; the processor's by default.
        normalize: Scale embeddings to length one; else they are as the model gives them.
        unreadable: Takes row number -> what is wrong with it for the rows whose picture or caption is missing or
            broken, which are then left out of the result; without it the first such row is an error.

    Returns:
        `image` and `text`, (N, D), float32, memory-mapped; rows whose pictures have the same bytes have the image
        embedding of the first of them; and `picture`, (N,), a 64-bit number that is the same for these.

    Raises:
        ValueError: If there are no rows, a column is missing, no row can be read, or one cannot be and `unreadable`
            is None (the message names it).
    """
    if len(pairs) == 0 or not {IMAGE, CAPTION} <= set(pairs.column_names):
        raise ValueError(
            f"Expected rows with `{IMAGE}` and `{CAPTION}`, but got {len(pairs)} of {pairs.column_names}."
        )
    canvas = canvas or Canvas.of(processor)
    pairs = pairs.select_columns([IMAGE, CAPTION])
    undecoded = pairs.cast_column(IMAGE, datasets.Image(decode=False))
    first = _content(undecoded, 0)
    owner = [model_fingerprint(model), _tokenizer_fingerprint(processor), [canvas.size, canvas.mode], len(pairs)]
    owner += [] if normalize else ["as the model gives them"]
    shards = Shards(Path(cache) / content_key(*owner, SHARD_ROWS, first.digest), len(pairs), SHARD_ROWS)

    def embed(rows: range) -> tuple[dict[str, np.ndarray], dict[int, str]]:
        bad: dict[int, str] = {}
        given = {"batch_size": batch_size, "canvas": canvas, "normalize": normalize, "unreadable": bad}
        return embed_dataset(model, processor, pairs.select(rows), **given), bad

    _fill(shards, undecoded, first, embed, unreadable is None)
    PartialState().wait_for_everyone()
    if PartialState().is_main_process:
        shards.join()
    PartialState().wait_for_everyone()
    found, problems = shards.open()
    if unreadable is not None:
        unreadable.update(problems)
    return found


def _fill(
    shards: Shards,
    undecoded: datasets.Dataset,
    first: "_Content",
    embed: Callable[[range], tuple[dict[str, np.ndarray], dict[int, str]]],
    strict: bool,
) -> None:
    """Embed and write those of this process's shards that are not there as they are now.

    Args:
        shards: The folder.
        undecoded: The pairs with their pictures as bytes.
        first: Content of the first shard.
        embed: From rows to their embeddings and, counted from the first of them, the unreadable ones.
        strict: Whether an unreadable row is an error.
    """
    taken, mine = 0, _mine(shards)
    for shard in mine:
        content = _content(undecoded, shard * SHARD_ROWS) if shard else first
        problems = shards.problems(shard, content.digest)
        taken += problems is not None
        if problems is None:
            found, bad = embed(shards.rows(shard))
            problems = {shards.rows(shard)[row]: why for row, why in bad.items()}
            shards.keep(shard, content.digest, {**found, "picture": content.pictures}, problems)
        if problems and strict:
            row, why = next(iter(problems.items()))
            raise ValueError(f"Row {row}: {why} Or leave such rows out: `--on_error skip`.")
    if taken and PartialState().is_main_process:
        logger.info("%d of %d shards of embeddings were there already, in %s", taken, len(mine), shards.folder)


def _mine(shards: Shards) -> tqdm:
    """Return the numbers of the shards that this process embeds, under a bar that the main one shows."""
    state = PartialState()
    numbers = range(state.process_index, len(shards), state.num_processes)
    hidden = True if len(shards) < 2 or not state.is_main_process else None
    return tqdm(numbers, desc="embedding", unit="shard", disable=hidden)


class _Content(NamedTuple):
    """A hash of a shard's pictures and captions, and a 64-bit number for each picture, (rows,)."""

    digest: str
    pictures: np.ndarray


def _content(undecoded: datasets.Dataset, start: int) -> _Content:
    """Return what tells the rows from `start` on from any others."""
    whole, pictures = hashlib.sha256(), []
    for image, caption in _rows(undecoded, start, min(start + SHARD_ROWS, len(undecoded))):
        picture = hashlib.sha256(_encoded(image)).digest()
        whole.update(picture)
        whole.update(hashlib.sha256(str(caption).encode()).digest() if caption is not None else b"none")
        pictures.append(int.from_bytes(picture[:8], "little", signed=True))
    return _Content(whole.hexdigest()[:32], np.array(pictures, dtype=np.int64))


def _rows(undecoded: datasets.Dataset, start: int, stop: int) -> Iterator[tuple[dict[str, Any] | None, str | None]]:
    for first in range(start, stop, HASHED_ROWS):
        rows = undecoded[first : min(first + HASHED_ROWS, stop)]
        yield from zip(rows[IMAGE], rows[CAPTION], strict=True)


def _encoded(image: dict[str, Any] | None) -> bytes:
    """Return a picture's bytes; of one that is not there, what it is called."""
    if image is not None and image["bytes"] is not None:
        return image["bytes"]
    path = None if image is None else image["path"]
    try:
        return b"" if path is None else Path(path).read_bytes()
    except (OSError, ValueError):  # no such file, or no name of one: reading the row says what is wrong
        return f"no file {path}".encode("utf-8", "surrogatepass")


def _tokenizer_fingerprint(processor: Any) -> str:
    tokenizer = getattr(processor, "tokenizer", processor)
    image_processor = getattr(processor, "image_processor", None)
    statistics = [getattr(image_processor, name, None) for name in ("image_mean", "image_std")]
    limit = int(min(tokenizer.model_max_length, 1_000_000))
    return content_key(sorted(tokenizer.get_vocab().items()), limit, [str(one) for one in statistics])
