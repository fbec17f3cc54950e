# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""When a training logs, measures, saves and ends: early, on a stream, or at once where nothing is left to train."""

import copy
import logging
from typing import Any

from transformers import EarlyStoppingCallback, TrainerControl, TrainerState

from hf_clipbd.data.batches import PairBatchSampler
from hf_clipbd.training.arguments import ScaleArguments


logger = logging.getLogger(__name__)

POINTS = 20
"""How often a training on a stream logs, measures and saves, where its configuration says each epoch."""
_KINDS = ("logging", "eval", "save")


class StopEarly(EarlyStoppingCallback):
    """Stops a training whose figure gets no better, and keeps it stopped where it is resumed after that."""

    def on_train_begin(
        self, args: ScaleArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say that a training whose checkpoint has no patience left is over."""
        super().on_train_begin(args, state, control, **kwargs)
        self.early_stopping_patience = args.early_stopping_patience  # not the one that the checkpoint had
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_training_stop = True


class GoesOnWhereItStopped:
    """Resumes with the batches of the epoch that a training was stopped in, and takes no step where it had ended.

    transformers tells a sampler its epoch through one wrapper at most; on several processes a loader that skips the
    batches of before has two. It looks whether a training is over only after another step.
    """

    _sampler: PairBatchSampler | None = None  # none on a stream, which knows its epoch by itself

    def _run_epoch(self, *arguments: Any, **options: Any) -> None:
        if self._sampler is not None:
            self._sampler.set_epoch(options["epoch"])
        if not self.control.should_training_stop and self.state.global_step < self.state.max_steps:
            super()._run_epoch(*arguments, **options)
        else:
            self.control.should_training_stop = True


def paced_for_stream(args: ScaleArguments) -> ScaleArguments:
    """Return a copy of `args` that logs, measures and saves every so many steps where `args` say each epoch.

    Of a stream nobody knows where an epoch ends; transformers counts all `max_steps` as one, so that nothing would
    be saved before the last step. Strategies other than `epoch` stay as they are.

    Args:
        args: The configuration; `max_steps` is set.

    Example:
        >>> from hf_clipbd.training.arguments import CLIPTrainingConfig
        >>> paced = paced_for_stream(CLIPTrainingConfig("unused", max_steps=1000, use_cpu=True))
        >>> paced.save_strategy.value, paced.save_steps, paced.logging_steps, paced.eval_strategy.value
        ('steps', 50, 50, 'no')
    """
    paced, every = copy.copy(args), max(1, args.max_steps // POINTS)
    paced.num_train_epochs = 1.0  # as the steps are counted and shown
    changed = [kind for kind in _KINDS if getattr(args, f"{kind}_strategy") == "epoch"]
    for kind in changed:
        strategy = type(getattr(args, f"{kind}_strategy"))
        setattr(paced, f"{kind}_strategy", strategy("steps"))
        setattr(paced, f"{kind}_steps", every)
    if changed:
        names = ", ".join(f"{kind}_strategy" for kind in changed)
        logger.info("A stream has no epochs: %s by `epoch` means every %d of %d steps.", names, every, args.max_steps)
    return paced
