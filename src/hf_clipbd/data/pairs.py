# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Training pairs as views: which rows make a batch, what is drawn from each row, and how the batch is stacked.

Every draw is a pure function of (seed, epoch, row), so a resumed run, another number of workers or another number
of processes sees the same pixels and the same words.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import datasets
import numpy as np
import PIL.Image
import torch
from torch import Tensor

from hf_clipbd.data.canvas import Canvas


ImageView = Callable[[PIL.Image.Image, tuple[int, int, int]], PIL.Image.Image]
TextView = Callable[[str, tuple[int, int, int]], str]


class PairKey(NamedTuple):
    """One draw of one row: `subset` says that the row came with the extra batches and carries the extra texts."""

    epoch: int
    row: int
    subset: bool = False


@dataclass(frozen=True)
class ViewPlan:
    """Which views of a pair a defence wants: name -> function of (image or caption, (seed, epoch, row)).

    Args:
        images: Image views of every pair, in order.
        texts: Text views of every pair, in order.
        subset_texts: Further text views of the pairs that are drawn into the extra batches.
        subset_size: How many pairs are drawn into extra batches each epoch (CleanerCLIP's K).
        subset_if: Whether a pair of this caption may be drawn into them; every pair may where it is None.
    """

    images: dict[str, ImageView]
    texts: dict[str, TextView]
    subset_texts: dict[str, TextView] | None = None
    subset_size: int = 0
    subset_if: Callable[[str], bool] | None = None

    @property
    def text_names(self) -> tuple[str, ...]:
        """Names of all text views, the subset's last."""
        return (*self.texts, *(self.subset_texts or {}))


def same_image(image: PIL.Image.Image, key: tuple[int, int, int]) -> PIL.Image.Image:
    """Return the image itself: the view that every plan starts with."""
    return image


def same_caption(caption: str, key: tuple[int, int, int]) -> str:
    """Return the caption itself: the view that every plan starts with."""
    return caption


PLAIN_VIEWS = ViewPlan(images={"image": same_image}, texts={"caption": same_caption})


class PairViews(torch.utils.data.Dataset):
    """Rows of an image-caption dataset, addressed by `PairKey` and drawn as the views of a plan.

    Args:
        dataset: Map-style dataset; other columns than the two are never read (a victim sees no poison label).
        plan: The views.
        canvas: Geometry of the images; views are drawn on the canvas.
        seed: Seed of the draws.
        image_column: Column of images.
        caption_column: Column of captions.

    Raises:
        ValueError: If a column is missing or the dataset is empty.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        plan: ViewPlan,
        canvas: Canvas,
        seed: int = 0,
        image_column: str = "image",
        caption_column: str = "caption",
    ):
        missing = [name for name in (image_column, caption_column) if name not in dataset.column_names]
        if missing or len(dataset) == 0:
            raise ValueError(
                f"Expected rows with columns {image_column!r} and {caption_column!r}, but got {len(dataset)} rows "
                f"with {dataset.column_names}."
            )
        self.rows = dataset.select_columns([image_column, caption_column])
        self._captions = dataset.select_columns([caption_column])
        self.plan, self.canvas, self.seed = plan, canvas, seed
        self.image_column, self.caption_column = image_column, caption_column

    def __len__(self) -> int:
        return len(self.rows)

    def in_subset(self, row: int) -> bool:
        """Return whether a row may be drawn into the extra batches (`ViewPlan.subset_if`); no image is decoded."""
        return self.plan.subset_if is None or self.plan.subset_if(self._captions[row][self.caption_column])

    def __getitem__(self, key: PairKey) -> dict[str, Any]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[PairKey]) -> list[dict[str, Any]]:
        """Return one `{"row": its number, "images": uint8 (V, H, W, 3), "texts": list of T captions}` a key."""
        rows = self.rows[[key.row for key in keys]]
        pairs = zip(keys, rows[self.image_column], rows[self.caption_column], strict=True)
        return [draw_views(self.plan, self.canvas, self.seed, key, image, caption) for key, image, caption in pairs]


def draw_views(
    plan: ViewPlan, canvas: Canvas, seed: int, key: PairKey, image: PIL.Image.Image, caption: str
) -> dict[str, Any]:
    """Return one draw of one row: `row`, `images` uint8 (V, H, W, 3) and `texts`, a list of T captions.

    Raises:
        TypeError: If the row has no image or its caption is no text.
    """
    if not isinstance(caption, str):
        raise TypeError(
            f"Expected a text as the caption of row {key.row}, but got {type(caption).__name__}. "
            "Filter such rows out before training."
        )
    draw = (seed, key.epoch, key.row)
    texts = {**plan.texts, **((plan.subset_texts or {}) if key.subset else {})}
    image = canvas(image)
    return {
        "row": key.row,
        "images": np.stack([np.asarray(view(image, draw)) for view in plan.images.values()]),
        "texts": [view(caption, draw) for view in texts.values()],
    }


class PairBatchSampler(torch.utils.data.Sampler):
    """Per-process batches of `PairKey`, epoch by epoch, the same on every rank.

    Global batches hold `batch_size * processes` rows of a permutation drawn from (seed, epoch); the incomplete last
    one is dropped or, with `drop_incomplete=False`, is a smaller batch of the rows left over, as many of them as the
    processes can share evenly, unless that is a single pair. `subset_size` rows, drawn anew each epoch, form batches
    of their own, spread evenly among the ordinary ones. Consecutive `processes` batches of the iteration make one
    global batch (the order in which Accelerate deals them out), so the global batches do not depend on how many
    processes share the work.

    Args:
        n_rows: Number of rows.
        batch_size: Pairs a process in an ordinary batch.
        processes: Number of processes.
        seed: Seed of the permutations.
        subset_size: Number of pairs in the extra batches of an epoch.
        drop_incomplete: Whether the incomplete last batch is dropped.
        in_subset: Whether a row may be drawn into the extra batches; every row may where it is None. Rows that may not
            are passed over in the order of the draw, and where fewer than `subset_size` may, those are drawn again.

    Raises:
        ValueError: If a global batch would hold a single pair, there are fewer rows than one global batch (with
            `drop_incomplete=False`, fewer than two rows a process), or fewer than `subset_size`; when iterating, if no
            row may be drawn into the extra batches.
    """

    drop_last = False

    def __init__(
        self,
        n_rows: int,
        batch_size: int,
        processes: int = 1,
        seed: int = 0,
        subset_size: int = 0,
        drop_incomplete: bool = True,
        in_subset: Callable[[int], bool] | None = None,
    ):
        global_batch = batch_size * processes
        if global_batch < 2 or subset_size == 1:
            raise ValueError(
                "Expected at least two pairs in every global batch, since one pair has nothing to be contrasted with, "
                f"but got batches of {batch_size} x {processes} and {subset_size} pairs for extra batches."
            )
        if n_rows < (global_batch if drop_incomplete else max(2, processes)):
            raise ValueError(
                f"Expected at least one global batch of {batch_size} x {processes} rows, but the dataset has "
                f"{n_rows}. Lower `per_device_train_batch_size`, or set `dataloader_drop_last` to false for a "
                "smaller batch."
            )
        if not 0 <= subset_size <= n_rows:
            raise ValueError(
                f"Expected to draw 0 to {n_rows} pairs, the size of the dataset, for the extra batches of an epoch, "
                f"but got {subset_size}. Lower `k_pairs`."
            )
        self.n_ordinary = n_rows // global_batch
        left_over = n_rows % global_batch // processes * processes
        self.left_over = 0 if drop_incomplete or left_over < 2 else left_over
        self.n_rows, self.global_batch, self.processes = n_rows, global_batch, processes
        self.seed, self.subset_size, self.epoch = seed, subset_size, 0
        self.in_subset = in_subset

    @property
    def sampler(self) -> "PairBatchSampler":
        """The object whose `set_epoch` Accelerate's sharded loaders call: this one."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose batches the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        return (self.n_ordinary + bool(self.left_over) + len(self._subset_sizes())) * self.processes

    def __iter__(self) -> Iterator[list[PairKey]]:
        for rows, subset in self._global_batches():
            keys = [PairKey(self.epoch, int(row), subset) for row in rows]
            share = len(keys) // self.processes
            for rank in range(self.processes):
                yield keys[rank * share : (rank + 1) * share]

    def _subset_sizes(self) -> list[int]:
        """Return the sizes of the extra batches, even in blocks of eight, so that 2, 4 or 8 processes share them."""
        if self.subset_size == 0:
            return []
        n_batches = -(-self.subset_size // self.global_batch)
        blocks, rest = divmod(self.subset_size, 8)
        sizes = [8 * len(part) for part in np.array_split(np.arange(blocks), n_batches)]
        sizes[-1] += rest
        return [size for size in (size - size % self.processes for size in sizes) if size]

    def _subset(self, order: np.ndarray, n: int) -> np.ndarray:
        """Return the first n rows of `order` that may be drawn, those again from the first where there are fewer."""
        if self.in_subset is None:
            return order[:n]
        rows = list(itertools.islice((row for row in order if self.in_subset(int(row))), n))
        if not rows:
            raise ValueError(
                f"Expected rows for the extra batches of {n} pairs, but none of {self.n_rows} may be drawn."
            )
        return np.resize(rows, n)

    def _global_batches(self) -> Iterator[tuple[np.ndarray, bool]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        whole = self.n_ordinary * self.global_batch
        order = rng.permutation(self.n_rows)[: whole + self.left_over]
        n_batches = self.n_ordinary + bool(self.left_over)
        ordinary = np.split(order, np.arange(1, n_batches) * self.global_batch)
        sizes = self._subset_sizes()
        drawn = (
            np.split(self._subset(rng.permutation(self.n_rows), sum(sizes)), np.cumsum(sizes)[:-1]) if sizes else []
        )
        extra_before = np.linspace(0, n_batches, len(drawn), endpoint=False).round().astype(int).tolist()
        extras = list(zip(extra_before, drawn, strict=True))
        for step in range(n_batches):
            while extras and extras[0][0] <= step:
                yield extras.pop(0)[1], True
            yield ordinary[step], False


@dataclass
class PairCollator:
    """Stacks the views of a batch and tokenises all its texts in one call.

    Args:
        tokenize: Texts -> `input_ids` and `attention_mask`, (N * T, L), as `hf_clipbd.models.text_input.TextInput`.

    Returns:
        `rows`, their numbers (N,); `pixel_values` uint8 (N, V, 3, H, W); `input_ids` and `attention_mask` (N, T, L).
        A text longer than the tokenizer's limit is cut, its end token kept.
    """

    tokenize: Callable[[list[str]], dict[str, Tensor]]

    def __call__(self, pairs: list[dict[str, Any]]) -> dict[str, Tensor]:
        pixels = torch.from_numpy(np.stack([pair["images"] for pair in pairs]))  # (N, V, H, W, 3)
        tokens = self.tokenize([text for pair in pairs for text in pair["texts"]])
        tokens = {name: tokens[name].unflatten(0, (len(pairs), -1)) for name in ("input_ids", "attention_mask")}
        rows = torch.tensor([pair["row"] for pair in pairs])
        return {"rows": rows, "pixel_values": pixels.permute(0, 1, 4, 2, 3), **tokens}
