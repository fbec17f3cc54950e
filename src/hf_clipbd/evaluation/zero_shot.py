# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Zero-shot BA, ASR and RA of a dual encoder: clean images and any number of triggers in one pass over the data."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice, repeat, takewhile
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import PIL.Image
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from hf_clipbd.data.ahead import MOST_AHEAD, decoding_threads, made_ahead
from hf_clipbd.data.canvas import Canvas, normalize, pixel_statistics
from hf_clipbd.data.row_format import has_transform, without_decoding
from hf_clipbd.data.undecoded import as_it_is
from hf_clipbd.data.unreadable import UNREADABLE, reason
from hf_clipbd.evaluation.processes import add_over_processes, rank_and_world
from hf_clipbd.evaluation.prompts import text_classifier
from hf_clipbd.evaluation.protocol import Protocol
from hf_clipbd.features import embed_images, inference
from hf_clipbd.schema import IMAGE, LABEL, TOP_K, EvalReport


Batch = tuple[np.ndarray, np.ndarray]
"""Pixels (1 + triggers, B, H, W, 3), uint8, clean images first, and labels (B,), int64."""


class _Shard(NamedTuple):
    """This process's rows: (row number, row) of rows rank, rank + world, ...; `total` is None when streaming."""

    rows: Iterator[tuple[int, Mapping[str, Any]]]
    decode: Callable[[Any], Any]
    total: int | None


def _shard(dataset: Any, image_column: str, rank: int, world: int) -> _Shard:
    """Return this process's share of a dataset, its pictures not decoded yet where that can wait."""
    if isinstance(dataset, datasets.IterableDataset):
        shared = ((row, values) for row, values in enumerate(dataset) if row % world == rank)
        return _Shard(shared, as_it_is, None)
    numbers = range(rank, len(dataset), world)
    if isinstance(dataset, datasets.Dataset):
        plain = dataset if has_transform(dataset) else dataset.with_format(None)
        encoded, decode = without_decoding(plain, image_column)
        return _Shard(zip(numbers, encoded.select(numbers), strict=True), decode, len(numbers))
    return _Shard(((row, dataset[row]) for row in numbers), as_it_is, len(numbers))


def stamped_batches(
    task: Protocol, dataset: Any, images_a_batch: int, progress: bool, desc: str = "zero-shot"
) -> Iterator[Batch]:
    """Decode each of this process's images once, stamp it with every trigger, and yield stacked batches.

    Threads decode the next `images_a_batch` pictures meanwhile; stamped they are in their order, by the caller's.

    Args:
        task: The protocol.
        dataset: Labelled images.
        images_a_batch: Rows of the dataset in one batch.
        progress: Whether the first process shows a progress bar, on a terminal.
        desc: Its label.

    Raises:
        ValueError: If a row cannot be read (the message names it) or its label is no class.
    """
    rank, world = rank_and_world()
    shard = _shard(dataset, task.image_column, rank, world)
    silent = None if progress and rank == 0 else True  # None: shown on a terminal, not in a log
    with (
        tqdm(total=shard.total, desc=desc, unit="image", disable=silent, leave=False) as bar,
        closing(_on_canvas(task, shard, images_a_batch)) as rows,
    ):
        while True:
            variants, labels = [], []
            for row, pixels, label in islice(rows, images_a_batch):
                variants.append(task.variants(PIL.Image.fromarray(pixels), row))
                labels.append(task.label(label, row))
            if not labels:
                break
            yield np.stack(variants, axis=1), np.array(labels, dtype=np.int64)
            bar.update(len(labels))


def _on_canvas(task: Protocol, shard: _Shard, most: int) -> Iterator[tuple[int, np.ndarray, Any]]:
    """Yield number, pixels on the canvas, (H, W, 3), and label of each row, some of them decoded ahead by threads."""

    def read(numbered: tuple[int, Mapping[str, Any]]) -> tuple[int, np.ndarray, Any]:
        row, values = numbered
        if values[task.image_column] is None:
            raise ValueError(f"Row {row}: Expected an image, but the row has none.")
        try:
            return row, task.canvas.array(shard.decode(values[task.image_column])), values[task.label_column]
        except UNREADABLE as error:
            raise ValueError(f"Row {row}: {reason(error)}") from error

    if shard.decode is as_it_is:
        yield from map(read, shard.rows)  # on the canvas before the next one is decoded
    else:
        yield from made_ahead(read, shard.rows, min(most, MOST_AHEAD), decoding_threads())


def _prepared(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yield the same batches, the next one being prepared by a thread while the caller works on this one."""
    following = iter(batches)
    with closing(made_ahead(lambda _: next(following, None), repeat(None))) as prepared:
        yield from takewhile(lambda batch: batch is not None, prepared)


def embed_batches(
    model: nn.Module, processor: Any, batches: Iterable[Batch], see: Callable[[Tensor, Tensor], None]
) -> None:
    """Embed batches of clean and stamped images, and call `see` with each one's embeddings and labels.

    Args:
        model: Dual encoder.
        processor: Its processor.
        batches: As `stamped_batches` yields them.
        see: Gets unit embeddings (1 + triggers, B, D) and labels (B,), both on the model's device.
    """
    mean, std = pixel_statistics(processor)
    with inference(model) as device:
        for pixels, labels in _prepared(batches):
            stacked = torch.from_numpy(pixels).to(device).flatten(0, 1).permute(0, 3, 1, 2)  # (V * B, 3, H, W)
            features = embed_images(model, normalize(stacked, mean, std))
            see(features.unflatten(0, pixels.shape[:2]), torch.from_numpy(labels).to(device))


def _measure(
    model: nn.Module,
    processor: Any,
    task: Protocol,
    templates: Sequence[str] | None,
    batches: Iterable[Batch],
    text_batch_size: int,
    cache: str | Path | None = None,
) -> EvalReport:
    """Count the hits of this process's batches, add up those of all processes, and return the report."""
    model = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    classifier = text_classifier(model, processor, task.names, templates, text_batch_size, cache, together=True)
    counts = torch.zeros(task.counts_shape, dtype=torch.int64, device=classifier.device)

    def see(features: Tensor, labels: Tensor) -> None:
        counts.add_(task.count(features @ classifier.T, labels))

    embed_batches(model, processor, batches, see)
    return task.report(add_over_processes(counts))


def evaluate_zero_shot(
    model: nn.Module,
    processor: Any,
    dataset: Any,
    triggers: Mapping[str, Any] | Iterable[Any] | None = None,
    templates: Sequence[str] | None = None,
    ks: Sequence[int] = TOP_K,
    batch_size: int = 256,
    include_target: bool = False,
    canvas: Canvas | None = None,
    progress: bool = True,
    class_names: Sequence[str] | None = None,
    image_column: str = IMAGE,
    label_column: str = LABEL,
    cache: str | Path | None = None,
) -> EvalReport:
    """Return the zero-shot report of a model: BA@k and, for each trigger, ASR@k and RA@k, each beside its n.

    With p(x) the classes in descending order of the cosine between image and class weight:
    BA@k = share of clean images with their label among the first k; ASR@k = share of stamped images with the target
    there; RA@k = share of the same stamped images with their true label there. Stamped images of the target class are
    left out of ASR and RA unless `include_target` is set. Under `torch.distributed` each process takes its share of
    the rows, and all of them return the same report.

    Args:
        model: Dual encoder, bare or wrapped for data parallelism; put into evaluation mode meanwhile.
        processor: Its processor.
        dataset: Labelled images: a `Dataset`, an `IterableDataset` (kept streaming) or a sequence of dictionaries. A
            format such as "torch" is taken off, a transform of its own (`with_transform`) is kept.
        triggers: Attacks whose stamp is measured, by name or as a list (their `name` then names them).
        templates: Prompts with one `{}`; OpenAI's 80 by default.
        ks: The k to report, each in [1, C].
        batch_size: Images a forward pass, the clean one and its stamped copies each counted.
        include_target: Count the target's own images too, as the papers do.
        canvas: Geometry of the images; by default the processor's, with the framing of the triggers.
        progress: Whether to show a progress bar.
        class_names: C names where the label column is no `ClassLabel`; its own names otherwise, `_` read as a space.
        image_column: Column of images.
        label_column: Column of class numbers.
        cache: Folder in which the text classifier is kept; see `text_classifier`.

    Returns:
        The report; shares in [0, 1].

    Raises:
        ValueError: If a column or the class names are missing, a target is not among them, a k is out of range, a
            label is no class, or a trigger stamps on another canvas.

    Reference:
        The measures of CleanCLIP (arXiv 2303.03323) and CleanerCLIP; leaving out the target's own images is ours.
    """
    task = Protocol.of(
        processor, dataset, triggers, ks, include_target, canvas, class_names, image_column, label_column
    )
    batches = stamped_batches(task, dataset, max(1, batch_size // task.n_variants), progress)
    return _measure(model, processor, task, templates, batches, batch_size, cache)


class ZeroShotEvaluator:
    """Zero-shot evaluation repeated on one set: images are decoded and stamped once and kept in memory as bytes.

    Memory: (1 + triggers) * images * size * size * 3 bytes, divided over the processes.

    Args:
        processor: Processor of the models that will be measured.
        dataset: Labelled images.
        triggers: As in `evaluate_zero_shot`.
        templates: As there.
        ks: As there.
        batch_size: As there.
        include_target: As there.
        canvas: As there.
        class_names: As there.
        image_column: As there.
        label_column: As there.

    Raises:
        ValueError: As `evaluate_zero_shot`; what can be checked is checked when it is built.
    """

    def __init__(
        self,
        processor: Any,
        dataset: Any,
        triggers: Mapping[str, Any] | Iterable[Any] | None = None,
        templates: Sequence[str] | None = None,
        ks: Sequence[int] = (1, 10),
        batch_size: int = 256,
        include_target: bool = False,
        canvas: Canvas | None = None,
        class_names: Sequence[str] | None = None,
        image_column: str = IMAGE,
        label_column: str = LABEL,
    ):
        self.processor = processor
        self.dataset = dataset
        self.templates = templates
        self.batch_size = batch_size
        self.task = Protocol.of(
            processor, dataset, triggers, ks, include_target, canvas, class_names, image_column, label_column
        )
        self._batches: list[Batch] = []
        self._shard: tuple[int, int] | None = None

    def report(self, model: nn.Module) -> EvalReport:
        """Return the full report of `model`, the same that `evaluate_zero_shot` gives."""
        if self._shard != rank_and_world():
            per_batch = max(1, self.batch_size // self.task.n_variants)
            self._batches = list(stamped_batches(self.task, self.dataset, per_batch, progress=False))
            self._shard = rank_and_world()
        return _measure(model, self.processor, self.task, self.templates, self._batches, self.batch_size)

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Return `{"ba1": ..., "asr1_<trigger>": ..., "ra1_<trigger>": ...}`, shares in [0, 1], for a training log."""
        report = self.report(model)
        values = {f"ba{k}": rate.value for k, rate in report.ba.items()}
        for name, trigger in report.triggers.items():
            values |= {f"asr{k}_{name}": rate.value for k, rate in trigger.asr.items()}
            values |= {f"ra{k}_{name}": rate.value for k, rate in trigger.ra.items()}
        return values
