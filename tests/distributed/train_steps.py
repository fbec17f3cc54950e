# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Trains two steps with one defence on however many processes it is launched with, and saves what came out."""

import os
import sys

import numpy as np
import torch
from datasets import Dataset, Features, Image, Value
from safetensors.torch import save_file
from transformers import TrainerCallback

from hf_clipbd.data.canvas import Canvas
from hf_clipbd.defenses import DEFENSES
from hf_clipbd.models import load_dual_encoder


# What makes every part of a defence take part in three steps.
OPTIONS = {
    "cleanclip": {"max_grad_norm": 1.0},  # the default, clipped; the others are not
    "cleanerclip": {"k_pairs": 16, "tau_neg": 0.2},
    "roclip": {"pool_size": 20, "match_every": 2, "match_unit": "step"},
    "safeclip": {"warmup_epochs": 0, "safe_probability": 0.6},
}


class RecordGradients(TrainerCallback):
    """Keeps the gradients of the first step, as the optimiser is about to see them."""

    def __init__(self):
        self.gradients: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if not self.gradients:
            named = getattr(model, "module", model).named_parameters()
            self.gradients = {name: p.grad.clone() for name, p in named if p.grad is not None}


def pairs(n: int = 48, size: int = 32) -> Dataset:
    """Return n pairs of noise and captions."""
    rng = np.random.default_rng(3)
    nouns, colours = ("cup", "dog", "tree", "house"), ("red", "large", "small")
    captions = [f"a {rng.choice(colours)} {rng.choice(nouns)} next to a {rng.choice(colours)} ball" for _ in range(n)]
    images = [rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(n)]
    return Dataset.from_dict(
        {"image": images, "caption": captions}, features=Features({"image": Image(), "caption": Value("string")})
    )


def train(model_folder: str, defense: str, out: str, world: int, global_batch: int = 16, rows=None, **changes):
    """Train three steps in double precision; write first gradients, losses and last parameters to the file `out`.

    With `resume_from_checkpoint` among the changes it goes on from there.

    Returns the trainer.
    """
    config, trainer_class = DEFENSES[defense].config, DEFENSES[defense].trainer
    model, processor = load_dual_encoder(model_folder, dtype=torch.float64)
    recorder = RecordGradients()
    args = config(
        output_dir=out + ".run",
        per_device_train_batch_size=global_batch // world,
        learning_rate=1e-3,
        use_cpu=True,
        logging_strategy="steps",
        logging_steps=1,
        warmup_steps=0,
        disable_tqdm=True,
        seed=1,
        **{"max_steps": 3, "max_grad_norm": 0.0, "save_strategy": "no", **OPTIONS.get(defense, {}), **changes},
    )
    rows = pairs() if rows is None else rows
    trainer = trainer_class(model, args, rows, processor, canvas=Canvas(32), callbacks=[recorder])
    if trainer.accelerator.num_processes != world:
        raise RuntimeError(f"Expected {world} processes, but Accelerate sees {trainer.accelerator.num_processes}.")
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    if trainer.is_world_process_zero():
        logs = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        tensors = {f"grad.{name}": value for name, value in recorder.gradients.items()}
        tensors |= {f"param.{name}": value.detach().clone() for name, value in trainer.model.state_dict().items()}
        save_file({**tensors, "losses": torch.tensor(logs, dtype=torch.float64)}, out)
    return trainer


if __name__ == "__main__":
    for name in DEFENSES:
        train(sys.argv[1], name, f"{sys.argv[2]}/{name}.safetensors", int(os.environ.get("WORLD_SIZE", "1")))
