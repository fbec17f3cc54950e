# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The steps in which a steganographic pair is trained: how, towards what, and on from a checkpoint."""

import logging
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from hf_clipbd.models.steganography import SteganographyPair


logger = logging.getLogger(__name__)

CHECKPOINT_FILE = "checkpoint.pt"
READ = 0.95
"""Share of the bits read from which on the residual is quietened."""
LOUDEST = 20.0
"""PSNR in dB at which a training starts."""
_STEADY = 0.95  # what the running mean of the bit accuracy keeps of itself at a step


@dataclass(frozen=True)
class SteganographyTraining:
    """How a pair is trained.

    Args:
        psnr: PSNR in dB that the residual is quietened to, from 20 dB at the start.
        ramp_steps: Steps over which it is, counted while the bits are read with an accuracy of at least 95 %.
        sameness: Largest share of the residual's energy that may be common to two pictures with the same bits, in
            (0, 1]; at 1 the residual comes out as much the same pattern on every picture.
        steps: Optimiser steps.
        batch_size: Pictures a step, an even number: two pictures share their bits.
        learning_rate: Peak of AdamW's learning rate; it warms up for 50 steps and falls along a cosine.
        n_images: Pictures of the dataset that are trained on, at most, drawn by the seed.
        n_test: Pictures that are measured on and not trained on.
        save_steps: Steps between two checkpoints.
        seed: Seed of weights, pictures, bits and resizing.

    Raises:
        ValueError: If one of them is out of range.
    """

    psnr: float = 29.0
    ramp_steps: int = 170
    sameness: float = 0.5
    steps: int = 1000
    batch_size: int = 16
    learning_rate: float = 1e-3
    n_images: int = 4000
    n_test: int = 500
    save_steps: int = 100
    seed: int = 0

    def __post_init__(self):
        for name in ("ramp_steps", "steps", "batch_size", "n_images", "n_test", "save_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"Expected {name} of at least 1, but got {getattr(self, name)}.")
        if self.batch_size % 2:
            raise ValueError(f"Expected an even batch_size, but got {self.batch_size}.")
        if not 0 < self.sameness <= 1:
            raise ValueError(f"Expected a sameness in (0, 1], but got {self.sameness}.")
        if self.seed < 0 or not self.learning_rate > 0 or not self.psnr >= LOUDEST:
            got = f"{self.seed}, {self.learning_rate} and {self.psnr}"
            raise ValueError(
                f"Expected a seed of at least 0, a positive learning rate and a PSNR from {LOUDEST} dB, but got {got}."
            )


def steganography_loss(logits: Tensor, bits: Tensor, residual: Tensor, psnr: float, sameness: float) -> Tensor:
    """Return BCE(logits, b) + max(0, MSE / MSE* − 1) + max(0, C − sameness).

    MSE is the residual's mean square and MSE* = 10^(−psnr / 10), so the residual settles at the PSNR wanted and not at
    silence. C = Σᵢ ⟨rᵢ, rᵢ₊ₕ⟩ / ½ Σⱼ ⟨rⱼ, rⱼ⟩, h = N / 2, is the share of its energy that is common to pictures i and
    i + h, which carry the same bits: 1 for a fixed pattern, 0 where they have nothing in common.

    Args:
        logits: (N, n_bits), positive for a one; N is even.
        bits: (N, n_bits), zeros and ones; the second half repeats the first.
        residual: (N, 3, S, S), what was added, in units of [0, 1] pixels.
        psnr: In dB.
        sameness: In (0, 1].

    Reference:
        StegaStamp (arXiv 1904.05343, section 3.3) and the SSBA attack (arXiv 2012.03816) weigh image losses against
        the bits' cross-entropy, rising from zero; hinge, rising PSNR and the last term are ours.

    Example:
        >>> zeros, residual = torch.zeros(2, 1), torch.full((2, 3, 1, 1), 0.2)
        >>> loss = steganography_loss(zeros, zeros, residual, psnr=20, sameness=0.5)  # ln 2 + 3 + 0.5
        >>> round(float(loss), 4)
        4.1931
    """
    mse = residual.square().mean()
    first, second = residual.chunk(2)
    common = (first * second).mean() / mse.clamp_min(1e-12)
    excess = F.relu(mse / 10 ** (-psnr / 10) - 1) + F.relu(common - sameness)
    return F.binary_cross_entropy_with_logits(logits, bits) + excess


def as_stored(images: Tensor) -> Tensor:
    """Return the pictures rounded to 8 bits; the gradient passes as if they were not.

    Args:
        images: In [0, 1], any shape.
    """
    return images + ((images * 255).round() / 255 - images).detach()


class TrainingRun:
    """One training: the pair, its optimiser, and how far it is; it goes on from a checkpoint of the same key."""

    def __init__(self, pair: SteganographyPair, training: SteganographyTraining, key: str, folder: Path):
        self.pair, self.training, self.key, self.path = pair, training, key, folder / CHECKPOINT_FILE
        self.networks = nn.ModuleList([pair.encoder, pair.decoder]).train()
        self.optimizer = torch.optim.AdamW(self.networks.parameters(), lr=training.learning_rate, weight_decay=1e-4)
        self.done: dict[str, Any] = {"step": 0, "accuracy": 0.5, "psnr": LOUDEST, "seconds": 0.0, "history": []}
        if self.path.is_file():
            self._go_on()

    def train(self, pixels: np.ndarray, progress: bool) -> None:
        """Take the steps that are left."""
        done, steps = self.done, self.training.steps
        started = time.monotonic() - done["seconds"]
        with tqdm(total=steps, initial=done["step"], desc="Steganography", disable=not progress) as bar:
            while done["step"] < steps:
                mse = self._learn(pixels, done["step"])
                done["step"] += 1
                done["seconds"] = time.monotonic() - started
                bar.update()
                if done["step"] % self.training.save_steps == 0:
                    decibels = round(-10 * math.log10(max(mse, 1e-12)), 2)
                    accuracy = round(done["accuracy"], 4)
                    done["history"].append({"step": done["step"], "bit_accuracy": accuracy, "psnr": decibels})
                    bar.set_postfix(bits=f"{accuracy:.3f}", psnr=f"{decibels:.1f}")
                    self._save()
        self.networks.eval()

    def _learn(self, pixels: np.ndarray, step: int) -> float:
        """Take one step and return the residual's mean square."""
        training, done, size = self.training, self.done, self.pair.config.size
        rng = np.random.default_rng([training.seed, step, 1])
        images = as_images(pixels[rng.integers(0, len(pixels), training.batch_size)])
        drawn = torch.from_numpy(rng.integers(0, 2, (training.batch_size // 2, self.pair.config.n_bits)))
        bits = drawn.float().repeat(2, 1)
        stamped = self.pair.encoder(images, bits)
        seen = as_stored(stamped)
        if rng.random() < 0.5:
            side = int(rng.integers(size // 2, size))
            smaller = F.interpolate(seen, size=(side, side), mode="bilinear", antialias=True)
            seen = F.interpolate(smaller, size=(size, size), mode="bilinear", antialias=True)
        logits, residual = self.pair.decoder(seen), stamped - images
        loss = steganography_loss(logits, bits, residual, done["psnr"], training.sameness)
        for group in self.optimizer.param_groups:
            group["lr"] = training.learning_rate * _schedule(step, training.steps)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.networks.parameters(), 1.0)
        self.optimizer.step()
        read = float(((logits > 0) == bits.bool()).float().mean())
        done["accuracy"] = _STEADY * done["accuracy"] + (1 - _STEADY) * read
        if done["accuracy"] >= READ:
            rise = (training.psnr - LOUDEST) / training.ramp_steps
            done["psnr"] = min(training.psnr, done["psnr"] + rise)
        return float(residual.detach().square().mean())

    def _save(self) -> None:
        """Write the checkpoint in one step, so that a kill leaves the old one or the new one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        scratch = self.path.with_suffix(".partial")
        states = {"networks": self.networks.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save({"key": self.key, "done": self.done, **states}, scratch)
        os.replace(scratch, self.path)

    def _go_on(self) -> None:
        saved = torch.load(self.path, weights_only=True)
        if saved["key"] != self.key:
            logger.info("The checkpoint in %s is of another configuration and is left behind.", self.path.parent)
            return
        self.networks.load_state_dict(saved["networks"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.done = saved["done"]
        logger.info("Goes on from step %d.", self.done["step"])


def as_images(pixels: np.ndarray) -> Tensor:
    """Return uint8 (N, S, S, 3) as (N, 3, S, S), float32 in [0, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float() / 255


def _schedule(step: int, steps: int) -> float:
    """Return the share of the peak learning rate: 50 steps up, then a cosine to a fiftieth."""
    return min(1.0, (step + 1) / 50) * (0.51 + 0.49 * math.cos(math.pi * step / steps))
