# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""RoCLIP: train on poisoned pairs, every K-th epoch with each image's nearest caption of a pool in its own's place."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_clipbd.data.pairs import ViewPlan
from hf_clipbd.defenses.cleanclip import auto_augmented, eda_augmented
from hf_clipbd.defenses.stateful import StatefulTrainer
from hf_clipbd.features import embed_dataset
from hf_clipbd.losses import image_text_loss, nearest_rows
from hf_clipbd.trainer import CLIPTrainingConfig, Views


POOL_STREAM = 4
POOL_SHARE = 0.02


@dataclass
class RoCLIPConfig(CLIPTrainingConfig):
    """Arguments of RoCLIP.

    Args:
        pool_size: Captions in the pool; by default 2 % of the rows and at least one global batch. At most as many as
            there are rows.
        match_every: K; epochs (or steps) 0, K, 2K, ... match with the pool, the others train on the pairs as they are.
        match_unit: `epoch` or `step`, what K counts.
    """

    pool_size: int | None = field(
        default=None, metadata={"help": "Captions in the pool; 2 % of the rows by default, and a batch at least."}
    )
    match_every: int = field(default=2, metadata={"help": "Match with the pool every so many epochs or steps."})
    match_unit: str = field(default="epoch", metadata={"help": "What `match_every` counts: epoch or step."})

    def __post_init__(self):
        super().__post_init__()
        for name in ("pool_size", "match_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"Expected `{name}` of at least 1, but got {value}.")
        if self.match_unit not in ("epoch", "step"):
            raise ValueError(f'Expected match_unit "epoch" or "step", but got {self.match_unit!r}.')


class RoCLIPTrainer(StatefulTrainer):
    """Trains with L_CLIP(A(x), A(t)), and every K-th epoch with L_CLIP(A(x), z_nn(x)).

    z_nn(x) is the embedding nearest to the image's in a pool of earlier captions. A poisoned image lies near the
    captions of what it shows, and its own caption is seldom in a pool that is small beside the training set, so the
    pair is taken apart. The pool starts with captions drawn at random from the training set; then every batch's
    captions enter after its loss has been taken, and the oldest leave.

    Reference:
        RoCLIP (Yang et al., arXiv 2303.06854): the pool, the matching by the image every few epochs, augmented images
        and texts throughout. **Reconstructed**: that pool and batch meet in the symmetric loss, that pool embeddings
        stay as they were when they entered, that the first epoch matches (a model that starts out trained would learn
        the poison in it otherwise), K by steps, and the pool as a share of the rows, 2 %.
    """

    config_class = RoCLIPConfig

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.pool: Tensor | None = None

    @classmethod
    def view_plan(cls, args: RoCLIPConfig) -> ViewPlan:
        """Return the AutoAugment view of the image and the EDA view of the caption."""
        return ViewPlan(images={"image": auto_augmented}, texts={"caption": eda_augmented})

    def begin_epoch(self, epoch: int) -> None:
        """Fill the pool before the first step with captions drawn from the seed, as the model embeds them then."""
        if self.pool is not None:
            return
        rng = np.random.default_rng((self.train_dataset.seed, POOL_STREAM))
        drawn = rng.permutation(len(self.rows))[: self._pool_size()]
        captions = self.rows.select(drawn)
        model = self.accelerator.unwrap_model(self.model)
        column = self.args.caption_column
        embedded = embed_dataset(model, self.processing_class, captions, image_column=None, caption_column=column)
        self.pool = torch.from_numpy(embedded["text"]).to(self.args.device)

    def _pool_size(self) -> int:
        batch = self._train_batch_size * self.accelerator.num_processes
        return self.args.pool_size or max(batch, round(POOL_SHARE * len(self.rows)))

    def matches(self) -> bool:
        """Return whether the current step matches with the pool."""
        count = self.epoch if self.args.match_unit == "epoch" else self.state.global_step
        return count % self.args.match_every == 0

    def loss_terms(self, views: Views) -> dict[str, Tensor]:
        """Return the term `matched` or `clip`, and let the batch's captions into the pool."""
        images, texts = views.images["image"], views.texts["caption"]
        if self.matches():
            matched = nearest_rows(images, self.pool.to(images.dtype))
            # 0 times the texts: every parameter then takes part in the step, as DistributedDataParallel expects
            terms = {"matched": image_text_loss(images, matched, views.scale, views.bias) + 0.0 * texts.sum()}
        else:
            terms = {"clip": image_text_loss(images, texts, views.scale, views.bias)}
        self.pool = torch.cat([self.pool, texts.detach().to(self.pool.dtype)])[-len(self.pool) :]
        return terms

    def training_state(self) -> dict[str, Tensor]:
        """Return the pool."""
        return {"pool": self.pool}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take up the pool."""
        self.pool = state["pool"]

    def forget(self) -> None:
        """Have no pool."""
        self.pool = None
