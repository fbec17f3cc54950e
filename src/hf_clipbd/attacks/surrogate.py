# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What a surrogate takes pictures for: rank and cosine gap of the target class, and the rows chosen by them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import datasets
import numpy as np
from torch import nn

from hf_clipbd.attacks.base import Attack
from hf_clipbd.attacks.captions import OPENAI_TEMPLATES, fill_template
from hf_clipbd.attacks.patch_batches import Pictures, image_dataset, pictures
from hf_clipbd.attacks.select import ordered_rows
from hf_clipbd.attacks.shares import check_target, folded
from hf_clipbd.data.canvas import Canvas
from hf_clipbd.features import embed_dataset
from hf_clipbd.schema import CAPTION


SURROGATE_SELECTORS = ("boundary", "farthest", "mixed")
"""Selectors that look at the pictures through a surrogate; see `order_rows`."""

FLOOR_IMAGES = 1000
BLOCK_ROWS = 8192
"""Pictures whose cosines with all classes are held at once, up to twice as many: 64 MB of 1,000 classes."""


class Standing(NamedTuple):
    """Where the target stands among the classes, for each picture.

    `ranks` (N,), int64, is how many classes are closer to the picture than the target is, 0 where it is first; `gaps`
    (N,), float32, the cosine of the closest other class less that of the target.
    """

    ranks: np.ndarray
    gaps: np.ndarray


def standing_of(scores: np.ndarray, target: int) -> Standing:
    """Return rank and gap of class number `target` from cosines (N, C), C at least 2.

    Example:
        >>> standing_of(np.array([[0.5, 0.25, 0.75], [0.0, 0.5, 0.25]]), 1)
        Standing(ranks=array([2, 0]), gaps=array([ 0.5 , -0.25]))
    """
    own = scores[:, target]
    sides = [side.max(axis=1) for side in (scores[:, :target], scores[:, target + 1 :]) if side.shape[1]]
    return Standing((scores > own[:, None]).sum(axis=1), np.maximum.reduce(sides) - own)


def target_standing(
    model: nn.Module,
    processor: Any,
    images: Pictures,
    target: str,
    class_names: Sequence[str],
    templates: Sequence[str] | None = None,
    canvas: Canvas | None = None,
    batch_size: int = 256,
) -> Standing:
    """Return where the target stands for each picture, zero-shot: cosines with the mean prompt of each class.

    Args:
        model: The surrogate, any dual encoder; put into evaluation mode meanwhile.
        processor: Its processor.
        images: A dataset with a column `image`, or PIL images.
        target: Target class.
        class_names: C names, at least two, the target among them whatever its case and underscores.
        templates: Prompts with one `{}`; OpenAI's 80 by default.
        canvas: Geometry of the pictures; the processor's by default.
        batch_size: Rows a forward pass.

    Raises:
        ValueError: If the target is not among the classes, or is the only one.
    """
    classes = _classes(model, processor, target, class_names, templates, batch_size)
    return _standing(model, processor, images, classes, canvas, batch_size)


class _Classes(NamedTuple):
    """Unit mean prompt of each class, (C, D), and the number of the target."""

    weights: np.ndarray
    target: int


def _classes(
    model: nn.Module,
    processor: Any,
    target: str,
    class_names: Sequence[str],
    templates: Sequence[str] | None,
    batch_size: int = 256,
) -> _Classes:
    """Return what pictures are compared with; the arguments are those of `target_standing`."""
    names = [name.replace("_", " ") for name in class_names]
    check_target(target, names)
    if len(names) < 2:
        raise ValueError(f"Expected a target among at least two classes, but got {target!r} and {names[:5]}.")
    templates = list(OPENAI_TEMPLATES if templates is None else templates)
    prompts = [fill_template(template, name) for name in names for template in templates]
    said = datasets.Dataset.from_dict({CAPTION: prompts})
    texts = embed_dataset(model, processor, said, image_column=None, batch_size=batch_size)["text"]
    weights = texts.reshape(len(names), len(templates), -1).mean(axis=1)
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    return _Classes(weights, list(map(folded, names)).index(folded(target)))


def _standing(
    model: nn.Module,
    processor: Any,
    images: Pictures,
    classes: _Classes,
    canvas: Canvas | None,
    batch_size: int = 256,
) -> Standing:
    """Return where the target stands for each picture; cosines with all classes are held for a block of them."""
    seen = embed_dataset(
        model, processor, image_dataset(images), caption_column=None, batch_size=batch_size, canvas=canvas
    )["image"]
    blocks = np.array_split(seen, max(1, len(seen) // BLOCK_ROWS))
    found = [standing_of(block @ classes.weights.T, classes.target) for block in blocks]
    return Standing(*map(np.concatenate, zip(*found, strict=True)))


def order_rows(selector: str, standing: Standing, seed: int = 0) -> np.ndarray:
    """Return all rows, those to poison first at the front, as `poison_dataset(selector=...)` takes them.

    `boundary` puts first what the surrogate takes for the target's neighbour: rank 1, 2, ..., of equal rank the
    smaller gap; what it already takes for the target comes last. `farthest` goes from the last rank and the largest
    gap. `mixed` takes one row of `boundary`, one of `farthest` and one at random in turn, so every count has a third
    of each.

    Args:
        selector: One of `SURROGATE_SELECTORS`.
        standing: See `target_standing`.
        seed: Seed of the random third, and of the order among equals.

    Returns:
        (N,), int64, each row once.

    Raises:
        ValueError: If the selector is none of these.

    Reference:
        BadCLIP (Liang et al., arXiv 2311.12075), poisoned sample selection. The thirds are the paper's; the exact
        order by rank and gap is **reconstructed**.

    Example:
        >>> standing = Standing(np.array([1, 0, 5, 1]), np.array([0.2, -0.1, 0.6, 0.1]))
        >>> order_rows("boundary", standing).tolist(), order_rows("farthest", standing).tolist()
        ([3, 0, 2, 1], [2, 0, 3, 1])
    """
    if selector not in SURROGATE_SELECTORS:
        raise ValueError(f"Expected a selector among {SURROGATE_SELECTORS}, but got {selector!r}.")
    drawn = ordered_rows(len(standing.ranks), seed)
    ranks, gaps = standing.ranks[drawn], standing.gaps[drawn]
    boundary = drawn[np.lexsort((gaps, ranks, ranks == 0))]
    farthest = drawn[np.lexsort((-gaps, -ranks))]
    if selector != "mixed":
        return boundary if selector == "boundary" else farthest
    taken: dict[int, None] = {}
    sources = [iter(order.tolist()) for order in (boundary, farthest, drawn)]
    for turn in range(len(drawn)):
        row = next(row for row in sources[turn % 3] if row not in taken)
        taken[row] = None
    return np.fromiter(taken, np.int64, len(drawn))


def target_share(
    model: nn.Module,
    processor: Any,
    images: Pictures,
    attack: Attack,
    class_names: Sequence[str],
    templates: Sequence[str] | None = None,
) -> dict[str, float | int]:
    """Return the share of pictures that a clean model takes for the target, with the stamp and without it.

    Up to 1,000 pictures, spread evenly. Those that are taken for the target unstamped are left out of `floor`.

    Returns:
        `floor`, `floor_clean` in [0, 1] and their `n`s, `floor_n` and `floor_clean_n`.
    """
    rows = np.unique(np.linspace(0, len(images) - 1, min(FLOOR_IMAGES, len(images))).astype(int))
    plain = pictures(images, rows)
    stamped = [attack(image, int(row)) for row, image in zip(rows, plain, strict=True)]
    classes = _classes(model, processor, attack.target, class_names, templates)
    first = [_standing(model, processor, seen, classes, attack.canvas).ranks == 0 for seen in (plain, stamped)]
    others = ~first[0]
    return {
        "floor": float(first[1][others].mean()) if others.any() else 0.0,
        "floor_n": int(others.sum()),
        "floor_clean": float(first[0].mean()),
        "floor_clean_n": len(rows),
    }
