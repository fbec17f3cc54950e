# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Guards of the loop: losses and gradients that are not finite end it, and the scale of the logits stays bounded."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import get_last_checkpoint

from hf_clipbd.training.arguments import ScaleArguments


ROWS_SHOWN = 64
MAX_LOGIT_SCALE = math.log(100.0)


class NonFiniteLossError(ValueError):
    """A training that would have taken a step on a loss or gradient that is NaN or infinite."""


class ClampLogitScale(TrainerCallback):
    """Keeps exp(logit_scale) at most 100 after each optimiser step (Radford et al., arXiv 2103.00020, section 2.5).

    A SigLIP, which has a logit_bias and was trained without a bound, is left alone.
    """

    def on_optimizer_step(
        self,
        args: ScaleArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Clamp the model's `logit_scale`."""
        if getattr(model, "logit_bias", None) is None:
            with torch.no_grad():
                model.logit_scale.clamp_(max=MAX_LOGIT_SCALE)


class FiniteGuard(TrainerCallback):
    """Raises `NonFiniteLossError` before an optimiser step on a loss or gradient that is not finite.

    The message names the step, the rows of this process's batches, every term of the loss, the gradient's norm and
    the last checkpoint. The weights are those of the step before and no checkpoint is touched, so the training can be
    resumed from the last one. All processes have the same loss and gradient, and stop together.

    Every optimiser step waits once for the sum of the losses and the norm; `logging_nan_inf_filter`, which would wait
    twice for each batch, is off by default. Under fp16 only losses are looked at, since there the gradient scaler
    skips steps with infinite gradients on purpose. DeepSpeed steps within the backward pass, so there the weights have
    been changed when this raises, but no checkpoint has. With `max_grad_norm=0` no norm is computed, and losses alone
    are looked at.
    """

    def __init__(self):
        self._batches: list[tuple[Tensor, dict[str, Tensor]]] = []
        self._norm: Tensor | float | None = None

    def on_train_begin(
        self, args: ScaleArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Forget the batches of a training that was interrupted before its optimiser's step."""
        self._batches, self._norm = [], None

    def note_batch(self, rows: Tensor, terms: dict[str, Tensor]) -> None:
        """Keep a batch's row numbers (N,) and the terms of its loss until the optimiser's next step."""
        self._batches.append((rows, {name: term.detach() for name, term in terms.items()}))

    def note_norm(self, norm: Tensor | float) -> None:
        """Keep the norm of the gradient of the optimiser's next step."""
        self._norm = norm

    def on_pre_optimizer_step(
        self, args: ScaleArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at what was noted since the last step, and forget it.

        Raises:
            NonFiniteLossError: If a loss or the gradient's norm is not finite.
        """
        scaler = getattr(kwargs.get("optimizer"), "scaler", None)  # of fp16 chosen by the launcher, not by `args`
        batches, norm = self._batches, None if args.fp16 or scaler is not None else self._norm
        self._batches, self._norm = [], None
        total = sum(term for _, terms in batches for term in terms.values())
        total = torch.as_tensor(total) + (0.0 if norm is None else norm)
        if not torch.isfinite(total):
            raise NonFiniteLossError(_message(args, state, batches, norm))


def _message(
    args: ScaleArguments,
    state: TrainerState,
    batches: list[tuple[Tensor, dict[str, Tensor]]],
    norm: Tensor | float | None,
) -> str:
    shown = []
    for rows, terms in batches:
        loss = ", ".join(f"{name} = {float(term):.6g}" for name, term in terms.items())
        numbers = rows.tolist()
        more = f" and {len(numbers) - ROWS_SHOWN} more" if len(numbers) > ROWS_SHOWN else ""
        shown.append(f"{loss} on rows {numbers[:ROWS_SHOWN]}{more}")
    gradient = "" if norm is None else f"; norm of the gradient: {float(norm):.6g}"
    last = get_last_checkpoint(args.output_dir)
    kept = f"The last checkpoint is {last}" if last else "No checkpoint had been written"
    return (
        f"Expected a finite loss and gradient, but at step {state.global_step + 1} (epoch {state.epoch or 0:.2f}) got "
        f"{'; '.join(shown)}{gradient}. The step was not taken. {kept}. Lower the learning rate, or "
        "look at these rows."
    )
