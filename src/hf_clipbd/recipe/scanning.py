# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""How well incoming images that carry a run's trigger are told from clean ones by `hf_clipbd.detection.scan`."""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np
from accelerate.utils import gather_object
from torch import Tensor

from hf_clipbd.data.canvas import Canvas
from hf_clipbd.detection import detection_performance, scan
from hf_clipbd.evaluation.protocol import Protocol
from hf_clipbd.evaluation.zero_shot import embed_batches, stamped_batches
from hf_clipbd.features import embed_dataset
from hf_clipbd.schema import IMAGE, LABEL


ALARM = 0.01
"""An image is flagged if at most this share of the reference scores as high."""

Encoder = tuple[Any, Any]
"""A dual encoder and its processor."""


def embed_stamped(
    encoder: Encoder, test: datasets.Dataset, triggers: Mapping[str, Any], batch_size: int, canvas: Canvas
) -> tuple[np.ndarray, np.ndarray]:
    """Return the unit embeddings of labelled images, clean and stamped, and which of them each trigger counts for.

    Every process takes its share of the images, and all of them return the same.

    Args:
        batch_size: Images a forward pass, each stamped copy counted.

    Returns:
        (1 + triggers, N, D), float32, the clean ones first; (triggers, N), whether an image is of another class than
        the trigger's target.
    """
    task = Protocol.of(encoder[1], test, triggers, (1,), False, canvas, None, IMAGE, LABEL)
    found: list[tuple[np.ndarray, np.ndarray]] = []

    def see(features: Tensor, labels: Tensor) -> None:
        found.append((features.float().cpu().numpy(), labels.cpu().numpy()))

    embed_batches(*encoder, stamped_batches(task, test, max(1, batch_size // task.n_variants), True, "stamped"), see)
    shares = gather_object([(np.concatenate([f for f, _ in found], axis=1), np.concatenate([y for _, y in found]))])
    features = np.empty((task.n_variants, len(test), shares[0][0].shape[2]), dtype=np.float32)
    labels = np.empty(len(test), dtype=np.int64)
    for rank, (embedded, own) in enumerate(shares):  # of n processes each has every n-th image
        features[:, rank :: len(shares)], labels[rank :: len(shares)] = embedded, own
    return features, np.stack([labels != target for target in task.targets.values()])


def scan_figures(
    encoder: Encoder,
    second: Encoder,
    test: datasets.Dataset,
    reference: datasets.Dataset,
    triggers: Mapping[str, Any],
    detectors: Sequence[str],
    batch_size: int,
    canvas: Canvas,
) -> dict[str, Any]:
    """Return how well each detector tells stamped test images from clean ones, image by image.

    Args:
        second: Another one, for `disagreement`.
        detectors: Keys of `hf_clipbd.detection.DETECTORS` that `scan` takes.

    Returns:
        Trigger -> detector -> `auroc`; `flagged` and `false_alarms`, the shares of stamped and of clean images that at
        most 1 % of the reference scores as high as; `n_stamped` and `n_clean`, how many there were.
    """
    seen, counted = embed_stamped(encoder, test, triggers, batch_size, canvas)
    known = embed_dataset(*encoder, reference, caption_column=None, batch_size=batch_size, canvas=canvas)["image"]
    aligned: dict[str, list[np.ndarray]] = {}
    if "disagreement" in detectors:
        others = embed_stamped(second, test, triggers, batch_size, canvas)[0]
        apart = embed_dataset(*second, reference, caption_column=None, batch_size=batch_size, canvas=canvas)["image"]
        aligned["disagreement"] = [others, apart]
    figures: dict[str, Any] = {name: {} for name in triggers}
    for detector in detectors:
        others, apart = aligned.get(detector, (None, None))
        found = [
            scan(one, known, detector, others=None if others is None else others[number], reference_others=apart)
            for number, one in enumerate(seen)
        ]
        for name, stamped, rows in zip(triggers, found[1:], counted, strict=True):
            scores = np.concatenate([found[0].scores, stamped.scores[rows]])
            truth = np.arange(len(scores)) >= len(test)
            figures[name][detector] = {
                "auroc": detection_performance(scores, truth)["auroc"],
                "flagged": float((stamped.exceeded[rows] <= ALARM).mean()),
                "false_alarms": float((found[0].exceeded <= ALARM).mean()),
                "n_clean": len(test),
                "n_stamped": int(rows.sum()),
            }
    return figures
