# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Embeddings of a dataset, computed once: kept by what model and data contain, in shards that survive a kill."""

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from tqdm.auto import tqdm

from hf_clipbd.data.canvas import Canvas
from hf_clipbd.features import embed_dataset, model_fingerprint
from hf_clipbd.schema import CAPTION, IMAGE, content_key, write_json


logger = logging.getLogger(__name__)

SHARD_ROWS = 4096
STATE_FILE = "shards.json"
FILES = {"image": "image.npy", "text": "text.npy", "picture": "picture.npy"}


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
) -> dict[str, np.ndarray]:
    """Return the unit embeddings of every pair, from the cache where model, pictures and captions are the same.

    The folder's name is a hash of the model's weights, its tokenizer, the canvas, the number of rows and the first
    shard; a shard of 4,096 rows is taken from it if a hash of its pictures' bytes and its captions is the recorded
    one, and embedded again otherwise. So neither a renamed nor an overwritten dataset or model is taken for another,
    and a job that was killed goes on at the shard where it was.

    Args:
        model: Dual encoder.
        processor: Its processor.
        pairs: Rows (image, caption).
        cache: Folder of all caches.
        batch_size: Rows a forward pass.
        canvas: Geometry of the images; the processor's by default.

    Returns:
        `image` and `text`, (N, D), float32, memory-mapped; rows whose pictures have the same bytes have the image
        embedding of the first of them; and `picture`, (N,), a 64-bit number that is the same for these.

    Raises:
        ValueError: If there are no rows or a column is missing.
    """
    if len(pairs) == 0 or not {IMAGE, CAPTION} <= set(pairs.column_names):
        raise ValueError(
            f"Expected rows with `{IMAGE}` and `{CAPTION}`, but got {len(pairs)} of {pairs.column_names}."
        )
    canvas = canvas or Canvas.of(processor)
    pairs = pairs.select_columns([IMAGE, CAPTION])
    undecoded = pairs.cast_column(IMAGE, datasets.Image(decode=False))
    first = _shard(undecoded, 0)
    owner = [model_fingerprint(model), _tokenizer_fingerprint(processor), [canvas.size, canvas.mode], len(pairs)]
    folder = Path(cache) / content_key(*owner, SHARD_ROWS, first[0])

    def embed(rows: slice) -> dict[str, np.ndarray]:
        part = pairs.select(range(rows.start, rows.stop))
        return embed_dataset(model, processor, part, batch_size=batch_size, canvas=canvas)

    _fill(folder, undecoded, first, embed)
    return _open(folder, "r")


def _fill(
    folder: Path,
    undecoded: datasets.Dataset,
    first: tuple[str, np.ndarray],
    embed: Callable[[slice], dict[str, np.ndarray]],
) -> None:
    """Embed and write the shards that the folder does not hold as they are now.

    Args:
        folder: Where the embeddings are.
        undecoded: The pairs with their pictures as bytes.
        first: Hash and numbers of the pictures of the first shard, as `_shard` gives them.
        embed: From rows to their embeddings, `image` and `text`.
    """
    starts = range(0, len(undecoded), SHARD_ROWS)
    state, arrays = _read_state(folder), {}
    taken, seen = 0, {}
    for i, start in enumerate(tqdm(starts, desc="embedding", unit="shard", disable=len(starts) < 2 or None)):
        digest, pictures = first if i == 0 else _shard(undecoded, start)
        rows = slice(start, start + len(pictures))
        if i < len(state) and state[i] == digest:
            arrays = arrays or _open(folder)
            taken += 1
        else:
            shard = embed(rows)
            arrays = arrays or (_open(folder) if state else _create(folder, len(undecoded), shard))
            _write(arrays, rows, shard, pictures, seen)
            state[i:] = [digest, *state[i + 1 :]]
            write_json(folder / STATE_FILE, state)
        for row, picture in enumerate(pictures.tolist(), start):
            seen.setdefault(picture, row)
    if taken:
        logger.info("%d of %d shards of embeddings were there already, in %s", taken, len(starts), folder)


def _write(
    arrays: dict[str, np.ndarray],
    rows: slice,
    shard: dict[str, np.ndarray],
    pictures: np.ndarray,
    seen: dict[int, int],
) -> None:
    """Write one shard; a picture that was there before gets the very embedding it got there."""
    arrays["image"][rows], arrays["text"][rows], arrays["picture"][rows] = shard["image"], shard["text"], pictures
    firsts: dict[int, int] = {}
    for row, picture in enumerate(pictures.tolist(), rows.start):
        earlier = seen.get(picture, firsts.setdefault(picture, row))
        if earlier != row:
            arrays["image"][row] = arrays["image"][earlier]
    for array in arrays.values():
        array.flush()


def _shard(undecoded: datasets.Dataset, start: int) -> tuple[str, np.ndarray]:
    """Return a hash of a shard's pictures and captions, and a 64-bit number for each picture, (rows,)."""
    rows = undecoded[start : start + SHARD_ROWS]
    whole, pictures = hashlib.sha256(), []
    for image, caption in zip(rows[IMAGE], rows[CAPTION], strict=True):
        picture = hashlib.sha256(_encoded(image)).digest()
        whole.update(picture)
        whole.update(hashlib.sha256(str(caption).encode()).digest())
        pictures.append(int.from_bytes(picture[:8], "little", signed=True))
    return whole.hexdigest()[:32], np.array(pictures, dtype=np.int64)


def _encoded(image: dict[str, Any]) -> bytes:
    return image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()


def _tokenizer_fingerprint(processor: Any) -> str:
    tokenizer = getattr(processor, "tokenizer", processor)
    image_processor = getattr(processor, "image_processor", None)
    statistics = [getattr(image_processor, name, None) for name in ("image_mean", "image_std")]
    limit = int(min(tokenizer.model_max_length, 1_000_000))
    return content_key(sorted(tokenizer.get_vocab().items()), limit, [str(one) for one in statistics])


def _read_state(folder: Path) -> list[str]:
    """Return the hash of each shard that was written, none if a file is missing."""
    if not all((folder / name).is_file() for name in (*FILES.values(), STATE_FILE)):
        return []
    return json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))


def _create(folder: Path, n: int, shard: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    shapes = {name: (n, shard[name].shape[1]) for name in ("image", "text")} | {"picture": (n,)}
    kinds = {"image": np.float32, "text": np.float32, "picture": np.int64}
    return {
        name: np.lib.format.open_memmap(folder / file, mode="w+", dtype=kinds[name], shape=shapes[name])
        for name, file in FILES.items()
    }


def _open(folder: Path, mode: str = "r+") -> dict[str, np.ndarray]:
    return {name: np.load(folder / file, mmap_mode=mode) for name, file in FILES.items()}
