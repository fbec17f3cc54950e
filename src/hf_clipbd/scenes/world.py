# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Scenes by row number, and as a `datasets.Dataset`."""

import hashlib
import io
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from hf_clipbd.schema import CAPTION, IMAGE, LABEL, content_key

from .graph import SPLITS, Scene, build_scene, class_cumulative, scene_rng
from .render import STYLES, render_scene
from .tell import tell_scene
from .words import CLASS_NAMES


DEFAULT_ROWS = {"train": 16_000, "defense": 16_000, "test": 2_000}
_BLOCK = 500  # rows of one shard, the unit that is handed to a process
_SMALLEST = 16  # side in pixels below which nothing could be recognised


@lru_cache(maxsize=1)
def world_key() -> str:
    """Return a hash of the sources that decide what the world looks like; it changes whenever the pictures could."""
    digest = hashlib.sha256()
    for name in ("art", "drawings_nature", "drawings_things", "graph", "render", "tell", "words", "world"):
        digest.update(Path(__file__).with_name(name + ".py").read_bytes())
    return digest.hexdigest()[:16]


@lru_cache(maxsize=64)
def _label_block(seed: int, block: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng((seed, len(SPLITS), block)).permutation(len(CLASS_NAMES)).tolist())


def test_label(index: int, seed: int = 0) -> int:
    """Return the label of row `index` of the `test` split: every class once in each run of `len(CLASS_NAMES)` rows."""
    block, place = divmod(index, len(CLASS_NAMES))
    return _label_block(seed, block)[place]


def describe_scene(
    split: str, index: int, seed: int = 0, frequencies: str = "balanced", target: str = "banana"
) -> Scene:
    """Return what row `index` of `load_scenes(split, seed=seed, ...)` shows.

    Args:
        split: `train`, `defense` or `test`.
        index: Row, 0 or more.
        seed: Seed of the world, 0 or more.
        frequencies: `balanced` or `long_tailed`; the `test` split is balanced by label whatever this says.
        target: The class that is rare in a long-tailed set.

    Raises:
        ValueError: If an argument is unknown or negative.

    Example:
        >>> [thing.name for thing in describe_scene("test", 0).objects] == [CLASS_NAMES[test_label(0)]]
        True
    """
    if split not in SPLITS:
        raise ValueError(f"Expected `split` to be one of {SPLITS}, but got {split!r}.")
    if seed < 0 or index < 0:
        raise ValueError(f"Expected `seed` and `index` to be 0 or more, but got seed {seed}, index {index}.")
    cumulative = class_cumulative(frequencies, target)
    if split == "test":
        label = CLASS_NAMES[test_label(index, seed)]
        return build_scene(scene_rng(seed, split, index, 0), cumulative, only=label, sizes=("medium", "large"))
    return build_scene(scene_rng(seed, split, index, 3 if frequencies == "long_tailed" else 0), cumulative)


def scene_image(
    split: str, index: int, scene: Scene, size: int = 64, seed: int = 0, style: str = "default"
) -> np.ndarray:
    """Return the picture of row `index`, uint8 (size, size, 3), given what `describe_scene` says of that row."""
    return render_scene(scene, size, scene_rng(seed, split, index, 2), style)


def scene_captions(
    split: str = "train", n: int | None = None, seed: int = 0, frequencies: str = "balanced", target: str = "banana"
) -> Iterator[str]:
    """Yield the captions of `load_scenes` with the same arguments, without drawing a picture.

    Raises:
        ValueError: If an argument is unknown, or `split` is `test`, whose rows have labels and no captions.
    """
    if split == "test":
        raise ValueError(
            "Expected `split` to be 'train' or 'defense', but got 'test': its rows have labels, no captions."
        )
    for index in range(_row_count(split, n)):
        scene = describe_scene(split, index, seed, frequencies, target)
        yield tell_scene(scene, scene_rng(seed, split, index, 1))[1]


def _row_count(split: str, n: int | None) -> int:
    if split not in SPLITS:
        raise ValueError(f"Expected `split` to be one of {SPLITS}, but got {split!r}.")
    if n is None:
        return DEFAULT_ROWS[split]
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"Expected `n` to be a whole number of rows, 1 or more, but got {n!r}.")
    return n


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def generate_rows(
    blocks: list[tuple[int, int]], split: str, size: int, seed: int, frequencies: str, target: str, style: str
) -> Iterator[dict]:
    """Yield the rows of `load_scenes` for ranges of row numbers `(start, stop)`."""
    for start, stop in blocks:
        for index in range(start, stop):
            scene = describe_scene(split, index, seed, frequencies, target)
            row = {IMAGE: {"bytes": _png(scene_image(split, index, scene, size, seed, style)), "path": None}}
            if split == "test":
                row[LABEL] = test_label(index, seed)
            else:
                row[CAPTION] = tell_scene(scene, scene_rng(seed, split, index, 1))[1]
            yield row


def load_scenes(
    split: str = "train",
    size: int = 64,
    seed: int = 0,
    n: int | None = None,
    frequencies: str = "balanced",
    target: str = "banana",
    num_proc: int | None = None,
    style: str = "default",
) -> datasets.Dataset:
    """Return a split of the embedded world: rendered, captioned scenes, the same rows on every machine.

    Row `i` depends on `(seed, split, i)` and the other arguments and not on `n`, so a smaller `n` gives a prefix of a
    larger one; the splits draw from separate streams. The dataset is made once and kept in the cache of `datasets`.

    Args:
        split: `train` and `defense` have the columns `image, caption`; `test` has `image, label`, one object a picture
            and every class equally often.
        size: Side of the pictures in pixels, 16 or more.
        seed: Seed of the world, 0 or more.
        n: Number of rows; by default 16,000 for `train` and `defense`, 2,000 for `test`.
        frequencies: `balanced` draws every class equally often; `long_tailed` by a power law, with `target` in about
            one of 1,000 rows.
        target: The class that is rare in a long-tailed set.
        num_proc: Number of processes that draw; the rows do not depend on it.
        style: `default`, or another rendering domain for domain-shift experiments: `sketch`, `night`.

    Returns:
        The dataset, pictures as PNG.

    Raises:
        ValueError: If an argument is unknown or out of range.
    """
    if style not in STYLES:
        raise ValueError(f"Expected `style` to be one of {STYLES}, but got {style!r}.")
    if not isinstance(size, int) or size < _SMALLEST:
        raise ValueError(f"Expected `size` to be a whole number of pixels, {_SMALLEST} or more, but got {size!r}.")
    n = _row_count(split, n)
    describe_scene(split, 0, seed, frequencies, target)  # refuses the other arguments before any process starts
    blocks = [(start, min(start + _BLOCK, n)) for start in range(0, n, _BLOCK)]
    columns = {IMAGE: datasets.Image()}
    if split == "test":
        columns[LABEL] = datasets.ClassLabel(names=list(CLASS_NAMES))
    else:
        columns[CAPTION] = datasets.Value("string")
    arguments = (split, size, seed, frequencies, target, style)
    names = ("split", "size", "seed", "frequencies", "target", "style")
    return datasets.Dataset.from_generator(
        generate_rows,
        features=datasets.Features(columns),
        gen_kwargs={"blocks": blocks, **dict(zip(names, arguments, strict=True))},
        num_proc=min(num_proc, len(blocks)) if num_proc else None,
        split=datasets.NamedSplit(split),
        fingerprint=content_key("scenes", world_key(), n, arguments),
    )
