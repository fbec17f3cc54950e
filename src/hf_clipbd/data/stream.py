# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Training pairs from a stream whose length nobody knows: batches in its order, rows known by their content."""

import hashlib
import itertools
import logging
from collections.abc import Iterator
from typing import Any

import datasets
import PIL.Image
import torch

from hf_clipbd.data.canvas import Canvas
from hf_clipbd.data.pairs import PairKey, ViewPlan, draw_views
from hf_clipbd.data.undecoded import as_it_is


logger = logging.getLogger(__name__)

_ADVICE = (
    "Leave such rows out with `dataset.filter`, where the picture is broken after "
    "`dataset.cast_column({image_column!r}, datasets.Image(decode=False))`, or train without streaming and with "
    "`--on_error skip`."
)
_QUOTED = 60  # characters of a caption that an error quotes


class PairStream(torch.utils.data.IterableDataset):
    """An endless run of batches of views, epoch after epoch, from a streaming dataset.

    What differs from a dataset of known length (`PairViews`):

    - An epoch cannot be permuted: rows go through a shuffle buffer, refilled each epoch in an order drawn from (seed,
      epoch), and shards are shuffled. Neighbours in the stream stay neighbours within the buffer's length.
    - A row has no number. Its draws come from (seed, epoch, content), a hash of caption and image file, which stands
      for its number in a batch; errors about a row quote its caption. Two equal rows are drawn alike.
    - Every process reads the whole stream and decodes its own share of each global batch, so that two processes train
      as one does. Within a process, workers divide the shards among themselves, so batches depend on their number.
    - The stream begins again when it ends; the incomplete last batch is dropped. Only `max_steps` ends a training.
    - Resuming reads the stream again from its start up to the step.
    - K pairs of an epoch cannot be drawn, so a plan with a `subset_size` is refused. With a `subset_share` a row is
      drawn in an epoch where a hash of (seed, epoch, content) falls into that share. The rows drawn wait until they
      fill a global batch, which then comes between two ordinary ones; those left at an epoch's end wait for the next.

    Args:
        dataset: `datasets.IterableDataset`, for instance from `load_dataset(..., streaming=True)`.
        plan: The views.
        canvas: Geometry of the images.
        seed: Seed of the order and the draws.
        image_column: Column of images.
        caption_column: Column of captions.
        shuffle_buffer: Rows in the shuffle buffer; 0 keeps the order of the stream.

    Raises:
        ValueError: If a column is missing, the stream is empty or the plan draws a subset of an epoch; when rows are
            drawn, if a row has no image, or one that cannot be read.
        TypeError: If a row has no caption.
    """

    def __init__(
        self,
        dataset: datasets.IterableDataset,
        plan: ViewPlan,
        canvas: Canvas,
        seed: int = 0,
        image_column: str = "image",
        caption_column: str = "caption",
        shuffle_buffer: int = 1000,
    ):
        if plan.subset_size:
            raise ValueError(
                f"Expected a training set of known length, of which {plan.subset_size} pairs are drawn each epoch, "
                "but got a stream. Download it (`load_dataset` without `streaming`), or set `k_share`."
            )
        columns = dataset.column_names or list(next(iter(dataset), {}))
        missing = [name for name in (image_column, caption_column) if name not in columns]
        if missing:
            raise ValueError(
                f"Expected a stream of rows with columns {image_column!r} and {caption_column!r}, but got {columns}."
            )
        dataset = dataset.select_columns([image_column, caption_column])
        if dataset.features is not None and isinstance(dataset.features[image_column], datasets.Image):
            dataset = dataset.cast_column(image_column, datasets.Image(decode=False))  # a rank decodes its share only
        self.rows = dataset.shuffle(seed=seed, buffer_size=shuffle_buffer) if shuffle_buffer else dataset
        self.plan, self.canvas, self.seed = plan, canvas, seed
        self.image_column, self.caption_column = image_column, caption_column
        self.batch_size, self.process, self.processes = 1, 0, 1

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        worker = torch.utils.data.get_worker_info()
        if worker is not None and worker.id >= self.rows.num_shards:
            return
        size = self.batch_size * self.processes
        waiting: list[dict[str, Any]] = []
        for epoch in itertools.count():
            self.rows.set_epoch(epoch)
            batches = _whole(iter(self.rows), size)
            first = next(batches, None)
            if first is None:
                raise ValueError(
                    f"Expected at least one global batch of {self.batch_size} x {self.processes} rows, but the stream "
                    "(or this worker's shards of it) ended before. Lower `per_device_train_batch_size`."
                )
            for batch in itertools.chain([first], batches):
                yield [self._views(epoch, row) for row in self._share(batch)]
                waiting += [row for row in batch if self._is_drawn(epoch, row)] if self.plan.subset_share else []
                if len(waiting) >= size:
                    yield [self._views(epoch, row, subset=True) for row in self._share(waiting)]
                    del waiting[:size]

    def loader(
        self, batch_size: int, process: int, processes: int, workers: int, **options: Any
    ) -> torch.utils.data.DataLoader:
        """Return the loader of one process.

        Args:
            batch_size: Pairs a process and batch.
            process: Rank of the process.
            processes: Their number.
            workers: Processes that draw views, at most as many as the stream has shards.
            **options: Passed to `torch.utils.data.DataLoader`.

        Raises:
            ValueError: If a global batch would hold a single pair.
        """
        if batch_size * processes < 2:
            raise ValueError("Expected at least two pairs in every global batch, but got one.")
        if workers > self.rows.num_shards:
            logger.warning(
                "The stream has %d shards, so %d of %d workers read it.",
                self.rows.num_shards,
                self.rows.num_shards,
                workers,
            )
            workers = self.rows.num_shards
        self.batch_size, self.process, self.processes = batch_size, process, processes
        if workers == 0:
            options = {**options, "prefetch_factor": None, "persistent_workers": False}
        return torch.utils.data.DataLoader(self, batch_size=None, num_workers=workers, **options)

    def _share(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return batch[self.process * self.batch_size : (self.process + 1) * self.batch_size]

    def _is_drawn(self, epoch: int, row: dict[str, Any]) -> bool:
        image, caption = row[self.image_column], row[self.caption_column]
        text = f"{self.seed} {epoch} {content_number(image, caption)}"
        drawn = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) < self.plan.subset_share * 2**64
        return drawn and (self.plan.subset_if is None or self.plan.subset_if(caption))

    def _views(self, epoch: int, row: dict[str, Any], subset: bool = False) -> dict[str, Any]:
        image, caption = row[self.image_column], row[self.caption_column]
        key = PairKey(epoch, content_number(image, caption), subset)
        decode = datasets.Image().decode_example if isinstance(image, dict) else as_it_is
        name, advice = _name(caption), _ADVICE.format(image_column=self.image_column)
        return draw_views(self.plan, self.canvas, self.seed, key, image, caption, decode, name, advice)


def _whole(rows: Iterator[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    while len(batch := list(itertools.islice(rows, size))) == size:
        yield batch


def _name(caption: Any) -> str:
    """Return what errors call a row: by the beginning of its caption, on one line."""
    if not isinstance(caption, str):
        return "a row of the stream"
    said = " ".join(caption.split())
    return f'the row "{said}"' if len(said) <= _QUOTED else f'the row "{said[:_QUOTED]}..."'


def content_number(image: dict[str, Any] | PIL.Image.Image | None, caption: str) -> int:
    """Return a number of 63 bits that stands for a row of a stream: a hash of its caption and its image.

    Args:
        image: The undecoded image of `datasets` (`bytes` and `path`), a decoded one, or None for a row without.
        caption: The caption.

    Example:
        >>> content_number({"bytes": b"...", "path": None}, "a cup") == content_number({"bytes": b"..."}, "a cup")
        True
    """
    digest = hashlib.blake2b(str(caption).encode(), digest_size=8)
    if isinstance(image, dict):
        digest.update(image["bytes"] if image.get("bytes") is not None else str(image.get("path")).encode())
    elif image is not None:
        digest.update(image.tobytes())
    return int.from_bytes(digest.digest()) >> 1
