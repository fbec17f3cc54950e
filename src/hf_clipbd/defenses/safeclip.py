# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""SafeCLIP: train on poisoned pairs, the image-text loss on those a mixture model trusts, in-modal on the rest."""

import logging
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

from hf_clipbd.defenses.cleanclip import CleanCLIPConfig, CleanCLIPTrainer
from hf_clipbd.defenses.stateful import StatefulTrainer
from hf_clipbd.features import embed_dataset
from hf_clipbd.losses import gather_with_grad, image_text_loss, in_modal_loss
from hf_clipbd.trainer import Views


logger = logging.getLogger(__name__)


@dataclass
class SafeCLIPConfig(CleanCLIPConfig):
    """Arguments of SafeCLIP.

    Args:
        warmup_epochs: Epochs of in-modal terms alone before the pairs are divided, fewer than there are in all.
        safe_probability: Posterior of the component of higher similarity from which on a pair is safe.
        safe_growth: By how much the safe share of the rows grows each epoch after the first division.
    """

    warmup_epochs: int = field(default=1, metadata={"help": "Epochs of in-modal terms alone."})
    safe_probability: float = field(default=0.9, metadata={"help": "Posterior from which on a pair is safe."})
    safe_growth: float = field(default=0.01, metadata={"help": "Growth of the safe share each epoch."})

    def __post_init__(self):
        super().__post_init__()
        if self.warmup_epochs < 0 or not 0 <= self.safe_probability <= 1 or not 0 <= self.safe_growth <= 1:
            raise ValueError(
                "Expected `warmup_epochs` of at least 0, `safe_probability` and `safe_growth` in [0, 1], "
                f"but got {self.warmup_epochs}, {self.safe_probability} and {self.safe_growth}."
            )
        if self.max_steps <= 0 and self.warmup_epochs >= self.num_train_epochs:
            raise ValueError(
                "Expected `warmup_epochs` below `num_train_epochs`, since the image-text loss comes after them, but "
                f"got {self.warmup_epochs} and {self.num_train_epochs:g}. Train for more epochs, or warm up for fewer."
            )


@dataclass(frozen=True)
class RowViews(Views):
    """Views with the number of each row of the global batch, (N,)."""

    rows: Tensor | None = None


def safe_count(similarities: np.ndarray, probability: float, seed: int = 0) -> int:
    """Return how many pairs are safe: those whose posterior of the higher of two Gaussians is at least `probability`.

    Pairs more similar than the higher Gaussian's mean are safe too, whatever their posterior: a wide lower Gaussian
    would otherwise claim the upper tail.

    Args:
        similarities: Cosine of image and caption of every pair, (N,), N of at least 2.
        probability: In [0, 1].
        seed: Seed of the mixture's start.

    Reference:
        SafeCLIP (Yang et al., arXiv 2310.05862); the upper tail is ours.

    Example:
        >>> similarities = np.concatenate([np.linspace(0.1, 0.2, 10), np.linspace(0.7, 0.8, 30)])
        >>> safe_count(similarities, 0.9)
        30
    """
    column = similarities.reshape(-1, 1).astype(np.float64)
    mixture = GaussianMixture(n_components=2, random_state=seed).fit(column)
    higher = int(mixture.means_[:, 0].argmax())
    posterior = mixture.predict_proba(column)[:, higher]
    return int(((posterior >= probability) | (column[:, 0] >= mixture.means_[higher, 0])).sum())


def most_similar(similarities: np.ndarray, n: int) -> np.ndarray:
    """Return which rows, (N,) bool, are the n of highest similarity, the first of equal ones.

    Example:
        >>> most_similar(np.array([0.2, 0.9, 0.5]), 2).tolist()
        [False, True, True]
    """
    chosen = np.zeros(len(similarities), dtype=bool)
    chosen[np.argsort(-similarities, kind="stable")[:n]] = True
    return chosen


class SafeCLIPTrainer(StatefulTrainer, CleanCLIPTrainer):
    """Trains with in-modal terms alone first, then with L_CLIP on safe pairs and in-modal terms on risky ones.

    Before each epoch after the warm-up all pairs are embedded as they are. Of their similarities, before the first
    such epoch, a mixture of two Gaussians says how many pairs are safe; that share grows by `safe_growth` each epoch,
    and the pairs of highest similarity fill it. In a batch of N with S safe and R risky pairs

        L = w_clip·S/N·L_CLIP(safe) + w_in·R/N·L_in(risky),

    the negatives of each kind being the batch's others of that kind. Every process embeds all pairs.

    Raises:
        ValueError: If `max_steps` ends within the warm-up.

    Reference:
        SafeCLIP (Yang et al., arXiv 2310.05862): in-modal warm-up, mixture of two Gaussians on the cosine of image and
        caption, threshold 0.9, in-modal terms on risky pairs, a safe set that grows. **Reconstructed**: the in-modal
        terms are CleanCLIP's (the paper has nearest-neighbour pools), no epoch at a low learning rate on all pairs
        comes between (a model that starts out trained can tell the pairs already), the weighting by shares, the growth
        by similarity.
    """

    config_class = SafeCLIPConfig

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.forget()
        self._check_steps()

    def _check_steps(self) -> None:
        batches = len(self._batch_sampler()) // self.accelerator.num_processes
        warm_up = self.args.warmup_epochs * math.ceil(batches / self.args.gradient_accumulation_steps)
        if 0 < self.args.max_steps <= warm_up:
            raise ValueError(
                f"Expected `max_steps` above {warm_up}, the steps of `warmup_epochs`, since the image-text loss comes "
                f"after them, but got {self.args.max_steps}. Train for more steps, or warm up for fewer epochs."
            )

    def begin_epoch(self, epoch: int) -> None:
        """Divide the pairs, unless it is an epoch of the warm-up or they have been divided for it."""
        first = self.args.warmup_epochs
        if epoch < first or epoch == self.divided_at:
            return
        similarities = self._similarities()
        if epoch == first:
            self.first_count = safe_count(similarities, self.args.safe_probability, self.args.seed)
        grown = round(self.args.safe_growth * (epoch - first) * len(similarities))
        safe = most_similar(similarities, min(len(similarities), self.first_count + grown))
        self.safe, self.divided_at = torch.from_numpy(safe).to(self.args.device), epoch
        logger.info("epoch %d: %d of %d pairs are taken as safe", epoch + 1, int(safe.sum()), len(safe))

    def _similarities(self) -> np.ndarray:
        columns = (self.args.image_column, self.args.caption_column)
        model = self.accelerator.unwrap_model(self.model)
        embedded = embed_dataset(model, self.processing_class, self.rows, *columns, canvas=self.train_dataset.canvas)
        return (embedded["image"] * embedded["text"]).sum(axis=1)

    def embed_views(self, model: nn.Module, inputs: dict[str, Tensor]) -> RowViews:
        """Return the embeddings of all views of the global batch with the numbers of its rows."""
        views = super().embed_views(model, inputs)
        return RowViews(**vars(views), rows=gather_with_grad(inputs["rows"]))

    def loss_terms(self, views: RowViews) -> dict[str, Tensor]:
        """Return the weighted terms `clip` on safe pairs and `in_modal` on risky ones; a kind of no pairs gives 0."""
        args, images, texts = self.args, views.images, views.texts
        if self.divided_at < 0:
            safe, risky = None, torch.ones(len(views.rows), dtype=torch.bool, device=views.rows.device)
        else:
            safe = self.safe[views.rows]
            risky = ~safe
        scalars = views.scale if views.bias is None else views.scale + views.bias
        nothing = 0.0 * (scalars + sum(one.sum() for one in (*images.values(), *texts.values())))
        terms = {} if safe is None else {"clip": nothing}
        terms["in_modal"] = nothing
        if safe is not None and safe.any():
            between = image_text_loss(images["image"][safe], texts["caption"][safe], views.scale, views.bias)
            terms["clip"] = nothing + args.clip_weight * safe.float().mean() * between
        if risky.any():
            kept = [one[risky] for one in (images["image"], images["augmented"], texts["caption"], texts["augmented"])]
            within = in_modal_loss(*kept, views.scale)
            terms["in_modal"] = nothing + args.in_modal_weight * risky.float().mean() * within
        return terms

    def training_state(self) -> dict[str, Tensor]:
        """Return the division of the rows, the epoch it was made for and the first count of safe rows."""
        return {"safe": self.safe, "divided": torch.tensor([self.first_count, self.divided_at])}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take up a division."""
        self.safe = state["safe"]
        self.first_count, self.divided_at = map(int, state["divided"].tolist())

    def forget(self) -> None:
        """Have no division of the rows."""
        self.safe = torch.zeros(len(self.rows), dtype=torch.bool, device=self.args.device)
        self.first_count, self.divided_at = 0, -1
