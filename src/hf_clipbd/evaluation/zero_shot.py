# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Zero-shot BA, ASR and RA of a dual encoder: clean images and any number of triggers in one pass over the data."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import datasets
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm.auto import tqdm

from hf_clipbd.attacks.captions import OPENAI_TEMPLATES, fill_template
from hf_clipbd.data.canvas import Canvas, normalize, pixel_statistics
from hf_clipbd.evaluation.protocol import Protocol
from hf_clipbd.features import embed_images, embed_texts, inference, tokenize
from hf_clipbd.schema import IMAGE, LABEL, TOP_K, EvalReport


Batch = tuple[np.ndarray, np.ndarray]
"""Pixels (1 + triggers, B, H, W, 3), uint8, clean images first, and labels (B,), int64."""


def text_classifier(
    model: nn.Module,
    processor: Any,
    class_names: Sequence[str],
    templates: Sequence[str] | None = None,
    batch_size: int = 256,
) -> Tensor:
    """Return one unit weight vector for each class: w_c = unit(mean over templates t of unit(text(t(c)))).

    Args:
        model: Dual encoder.
        processor: Its processor or tokenizer.
        class_names: C names, as people write them.
        templates: Sentences with one `{}`; OpenAI's 80 by default.
        batch_size: Prompts a forward pass; memory does not grow with the number of classes times templates.

    Returns:
        (C, D), float32, on the model's device.

    Raises:
        ValueError: If there are no classes or no templates, or a template has no `{}`.

    Reference:
        Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021, section 3.1.4
        (prompt ensembling in embedding space).
    """
    templates = list(OPENAI_TEMPLATES if templates is None else templates)
    if isinstance(class_names, str) or not class_names or not templates:
        raise ValueError(f"Expected lists of class names and of templates, but got {class_names!r} and {templates!r}.")
    holeless = [template for template in templates if "{}" not in template]
    if holeless:
        raise ValueError(f"Expected templates with a `{{}}` for the class name, but got {holeless[:3]}.")
    prompts = ((c, fill_template(template, name)) for c, name in enumerate(class_names) for template in templates)
    sums: Tensor | None = None
    with inference(model) as device:
        while chunk := list(islice(prompts, batch_size)):
            tokens = {name: x.to(device) for name, x in tokenize(processor, [text for _, text in chunk]).items()}
            features = embed_texts(model, **tokens)  # (B, D)
            if sums is None:
                sums = torch.zeros(len(class_names), features.shape[1], device=device)
            sums.index_add_(0, torch.tensor([c for c, _ in chunk], device=device), features)
        return nn.functional.normalize(sums, dim=-1)


def _rank_and_world() -> tuple[int, int]:
    ready = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if ready else (0, 1)


def _shard(dataset: Any, rank: int, world: int) -> tuple[Iterator[tuple[int, Mapping[str, Any]]], int | None]:
    """Return (row number, row) for rows rank, rank + world, ... and how many there are (None when streaming)."""
    if isinstance(dataset, datasets.IterableDataset):
        return ((row, values) for row, values in enumerate(dataset) if row % world == rank), None
    rows = range(rank, len(dataset), world)
    if isinstance(dataset, datasets.Dataset):
        return zip(rows, dataset.with_format(None).select(rows), strict=True), len(rows)
    return ((row, dataset[row]) for row in rows), len(rows)


def _stamped(task: Protocol, dataset: Any, images_a_batch: int, progress: bool) -> Iterator[Batch]:
    """Decode each of this process's images once, stamp it with every trigger, and yield stacked batches."""
    rank, world = _rank_and_world()
    rows, total = _shard(dataset, rank, world)
    silent = None if progress and rank == 0 else True  # None: shown on a terminal, not in a log
    with tqdm(total=total, desc="zero-shot", unit="image", disable=silent, leave=False) as bar:
        while chunk := list(islice(rows, images_a_batch)):
            variants = [task.variants(values[task.image_column], row) for row, values in chunk]
            labels = [task.label(values[task.label_column], row) for row, values in chunk]
            yield np.stack(variants, axis=1), np.array(labels, dtype=np.int64)
            bar.update(len(chunk))


def _measure(
    model: nn.Module,
    processor: Any,
    task: Protocol,
    templates: Sequence[str] | None,
    batches: Iterable[Batch],
    text_batch_size: int,
) -> EvalReport:
    """Count the hits of this process's batches, add up those of all processes, and return the report."""
    model = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    classifier = text_classifier(model, processor, task.names, templates, text_batch_size)  # (C, D)
    mean, std = pixel_statistics(processor)
    with inference(model) as device:
        counts = torch.zeros(task.counts_shape, dtype=torch.int64, device=device)
        for pixels, labels in batches:
            stacked = torch.from_numpy(pixels).to(device).flatten(0, 1).permute(0, 3, 1, 2)  # (V * B, 3, H, W)
            features = embed_images(model, normalize(stacked, mean, std))
            scores = (features @ classifier.T).unflatten(0, pixels.shape[:2])  # (V, B, C)
            counts += task.count(scores, torch.from_numpy(labels).to(device))
        if _rank_and_world()[1] > 1:
            dist.all_reduce(counts)
    return task.report(counts.cpu())


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
        dataset: Labelled images: a `Dataset`, an `IterableDataset` (kept streaming) or a sequence of dictionaries.
        triggers: Attacks whose stamp is measured, by name or as a list (their `name` then names them).
        templates: Prompts with one `{}`; OpenAI's 80 by default.
        ks: The k to report, each in [1, C].
        batch_size: Images a forward pass, the clean one and its stamped copies each counted.
        include_target: Count the target's own images too, as the papers do.
        canvas: Geometry of the images; the processor's by default.
        progress: Whether to show a progress bar.
        class_names: C names where the label column is no `ClassLabel`; its own names otherwise, `_` read as a space.
        image_column: Column of images.
        label_column: Column of class numbers.

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
    batches = _stamped(task, dataset, max(1, batch_size // task.n_variants), progress)
    return _measure(model, processor, task, templates, batches, batch_size)


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
        if self._shard != _rank_and_world():
            per_batch = max(1, self.batch_size // self.task.n_variants)
            self._batches = list(_stamped(self.task, self.dataset, per_batch, progress=False))
            self._shard = _rank_and_world()
        return _measure(model, self.processor, self.task, self.templates, self._batches, self.batch_size)

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Return `{"ba1": ..., "asr1_<trigger>": ..., "ra1_<trigger>": ...}`, shares in [0, 1], for a training log."""
        report = self.report(model)
        values = {f"ba{k}": rate.value for k, rate in report.ba.items()}
        for name, trigger in report.triggers.items():
            values |= {f"asr{k}_{name}": rate.value for k, rate in trigger.asr.items()}
            values |= {f"ra{k}_{name}": rate.value for k, rate in trigger.ra.items()}
        return values
