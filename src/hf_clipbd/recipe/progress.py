# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What a training shows while it runs: one bar, and one line an epoch."""

import time
from typing import Any

from tqdm.auto import tqdm
from transformers.trainer_callback import ProgressCallback

from hf_clipbd.recipe.stage import Stage


def epoch_line(entry: dict[str, float], epochs: float) -> str:
    """Return the figures of a log entry as one line: losses plain, rates in percent.

    Example:
        >>> epoch_line({"epoch": 1.0, "eval_ba1": 0.9, "eval_asr1_badnets": 0.035}, 4)
        'epoch 1/4  BA@1 90.0  ASR@1 3.5'
        >>> epoch_line({"epoch": 2.0, "loss": 1.25, "loss_clip": 1.25, "learning_rate": 1e-3}, 4)
        'epoch 2/4  loss 1.250 (clip 1.250)'
    """
    parts = [f"epoch {entry['epoch']:g}/{epochs:g}"]
    if "loss" in entry:
        terms = ", ".join(f"{k.removeprefix('loss_')} {v:.3f}" for k, v in entry.items() if k.startswith("loss_"))
        parts.append(f"loss {entry['loss']:.3f} ({terms})")
    if "eval_ba1" in entry:
        parts.append(f"BA@1 {100 * entry['eval_ba1']:.1f}")
    parts += [f"ASR@1 {100 * value:.1f}" for name, value in entry.items() if name.startswith("eval_asr1_")]
    return "  ".join(parts)


class EpochLines(ProgressCallback):
    """Writes one readable line an epoch above the bar, and notes the time spent beside each checkpoint.

    With `disable_tqdm` there is no bar; the lines are written all the same.

    Args:
        seconds_before: What earlier attempts spent on the checkpoint that this one goes on from.
    """

    def __init__(self, stage: Stage, seconds_before: float):
        super().__init__()
        self.stage, self.seconds_before = stage, seconds_before
        self.started = time.perf_counter()
        self._losses: dict[str, float] = {}

    @property
    def seconds(self) -> float:
        """Seconds of training so far, those of earlier attempts included."""
        return self.seconds_before + time.perf_counter() - self.started

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar."""
        if state.is_world_process_zero:
            hidden = {"disable": True} if args.disable_tqdm else {}  # else tqdm goes by its own `TQDM_DISABLE`
            self.training_bar = tqdm(total=state.max_steps, dynamic_ncols=True, **hidden)
        self.current_step = 0

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Write the line, the losses beside the measurement that follows them; other entries are left out."""
        if not state.is_world_process_zero or self.training_bar is None or logs is None:
            return
        measured = any(name.startswith("eval_") for name in logs)
        if "loss" in logs and args.eval_strategy != "no":
            self._losses = dict(logs)
        elif "loss" in logs or measured:
            entry = {"epoch": state.epoch or 0.0, **self._losses, **logs}
            self.training_bar.write(f"  {self.stage.name}  {epoch_line(entry, args.num_train_epochs)}")

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the seconds that the checkpoint took."""
        if state.is_world_process_zero:
            self.stage.note_seconds(self.seconds)
