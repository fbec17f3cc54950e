# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Trainings that keep tensors beside the weights (a pool, a division of the rows), so that they too can be resumed."""

from pathlib import Path
from typing import Any

import datasets
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback

from hf_clipbd.trainer import CLIPTrainer


STATE_FILE = "defense_state.safetensors"
_ROUNDING = 1e-6


class _EpochBegin(TrainerCallback):
    """Tells the trainer which epoch begins or is gone on with."""

    def __init__(self, trainer: "StatefulTrainer"):
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        self.trainer.begin_epoch(self.trainer.epoch)


class StatefulTrainer(CLIPTrainer):
    """A `CLIPTrainer` whose state is more than weights and optimiser; it is written into every checkpoint.

    The state is the same on every process, since it comes from the gathered batch or from the whole training set.

    Raises:
        ValueError: If the training set is a stream: the state is drawn from the whole set. Also under FSDP, whose
            divided model cannot embed between epochs.
    """

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        if self.is_fsdp_enabled:
            raise ValueError(
                f"Expected one process or DDP for {type(self).__name__}, which embeds the training set between "
                "epochs, but this is FSDP. Leave FSDP out."
            )
        if not isinstance(self.rows, datasets.Dataset):
            raise ValueError(
                f"Expected a training set of known length for {type(self).__name__}, which looks at the whole of it "
                "between epochs, but got a stream. Load it without `streaming`."
            )
        self.add_callback(_EpochBegin(self))

    @property
    def rows(self) -> datasets.Dataset | None:
        """The training rows, image and caption."""
        return getattr(self.train_dataset, "rows", None)

    @property
    def epoch(self) -> int:
        """The number of the current epoch, from 0."""
        return int((self.state.epoch or 0.0) + _ROUNDING)

    def begin_epoch(self, epoch: int) -> None:
        """Do what has to be done before an epoch; called again for an epoch that is gone on with after a stop."""
        raise NotImplementedError

    def training_state(self) -> dict[str, Tensor]:
        """Return the tensors that a checkpoint has to hold."""
        raise NotImplementedError

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take up the tensors of a checkpoint."""
        raise NotImplementedError

    def forget(self) -> None:
        """Be as before any training."""
        raise NotImplementedError

    def train(self, *arguments: Any, **options: Any) -> Any:
        """Train as transformers' does, with nothing left of a training before, but what a checkpoint gives back."""
        self.forget()
        return super().train(*arguments, **options)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.training_state().items()}
            save_file(tensors, Path(output_dir) / STATE_FILE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            state = load_file(Path(checkpoint) / STATE_FILE)
            self.restore({name: tensor.to(self.args.device) for name, tensor in state.items()})
