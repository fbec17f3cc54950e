# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""How far a trigger moves a model's embeddings: what can be known of an attack before a victim is trained."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_clipbd.data.canvas import Canvas
from hf_clipbd.evaluation.processes import add_over_processes
from hf_clipbd.evaluation.protocol import Protocol
from hf_clipbd.evaluation.zero_shot import embed_batches, stamped_batches
from hf_clipbd.schema import IMAGE, LABEL


@dataclass(frozen=True)
class EmbeddingShift:
    """How far a trigger moves unit embeddings, in units of their own spread.

    Args:
        common: Length of the mean move: what all pictures share, and what a victim can tie to the target.
        own: Root of the mean squared move of single pictures; `common / own` is 1 where all move alike.
        n: Number of pictures.
    """

    common: float
    own: float
    n: int


def embedding_shift(
    model: nn.Module,
    processor: Any,
    dataset: Any,
    triggers: Mapping[str, Any] | Iterable[Any],
    batch_size: int = 256,
    canvas: Canvas | None = None,
    progress: bool = True,
    class_names: Sequence[str] | None = None,
    image_column: str = IMAGE,
    label_column: str = LABEL,
) -> dict[str, EmbeddingShift]:
    """Return for each trigger how far it moves the embeddings of a model that never saw it.

    With unit embeddings e_i of N pictures, their mean ē, and e'_i those of the stamped copies:
    spread² = mean ‖e_i − ē‖², common = ‖mean (e'_i − e_i)‖ / spread, own = √(mean ‖e'_i − e_i‖²) / spread.
    A trigger that the clean model hardly sees (common of a few hundredths) takes many more steps and a higher poison
    rate to be learned than one that moves all pictures one way; it says nothing about how well it resists a defence.
    Under `torch.distributed` each process takes its share of the rows, and all of them return the same.

    Args:
        model: Dual encoder that victims will start from, or one like it.
        processor: Its processor.
        dataset: Labelled images, as for `evaluate_zero_shot`; some hundreds are enough.
        triggers: Attacks, by name or as a list (their `name` then names them).
        batch_size: Images a forward pass, the clean one and its stamped copies each counted.
        canvas: Geometry of the images; by default the processor's, with the framing of the triggers.
        progress: Whether to show a progress bar.
        class_names: C names where the label column is no `ClassLabel`.
        image_column: Column of images.
        label_column: Column of class numbers.

    Returns:
        Name -> shift, in the order of the triggers.

    Raises:
        ValueError: If there are fewer than two pictures or all have one embedding, and as `evaluate_zero_shot`.

    Reference:
        Ours.
    """
    task = Protocol.of(processor, dataset, triggers, (1,), False, canvas, class_names, image_column, label_column)
    # summed over pictures: embeddings of clean and stamped ones (1 + V, D); in column D their number, squared moves
    sums: list[Tensor] = []

    def see(features: Tensor, labels: Tensor) -> None:
        features = features.double().cpu()
        moves = (features - features[:1]).square().sum((1, 2))  # (1 + V)
        moves[0] = len(labels)
        sums.append(torch.cat([features.sum(1), moves[:, None]], dim=1))

    images_a_batch = max(1, batch_size // task.n_variants)
    embed_batches(model, processor, stamped_batches(task, dataset, images_a_batch, progress, "shift"), see)
    if int(add_over_processes(torch.tensor(not sums, dtype=torch.int64))):  # all processes raise, or none
        raise ValueError("Expected pictures for every process, but at least one got none. Pass more of them.")
    total = add_over_processes(torch.stack(sums).sum(0))
    n = int(total[0, -1])
    means, moves = total[:, :-1] / n, total[1:, -1] / n
    spread = float((1 - means[0].square().sum()).clamp(min=0).sqrt())
    if n < 2 or spread < 1e-6:
        raise ValueError(f"Expected at least two pictures with embeddings of their own, but got {n}. Pass others.")
    common = (means[1:] - means[0]).norm(dim=1) / spread
    own = moves.sqrt() / spread
    found = zip(common.tolist(), own.tolist(), strict=True)
    return {name: EmbeddingShift(*values, n) for name, values in zip(task.triggers, found, strict=True)}
