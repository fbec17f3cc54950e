# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Fine-tuning defences by name: each is its configuration and its trainer."""

from typing import NamedTuple

from hf_clipbd.defenses.cleanclip import CleanCLIPConfig, CleanCLIPTrainer
from hf_clipbd.defenses.cleanerclip import CleanerCLIPConfig, CleanerCLIPTrainer
from hf_clipbd.trainer import CLIPTrainer, CLIPTrainingConfig


class Defense(NamedTuple):
    """A defence: the dataclass that configures it and the `CLIPTrainer` that runs it."""

    config: type[CLIPTrainingConfig]
    trainer: type[CLIPTrainer]


DEFENSES: dict[str, Defense] = {
    "ft": Defense(CLIPTrainingConfig, CLIPTrainer),
    "cleanclip": Defense(CleanCLIPConfig, CleanCLIPTrainer),
    "cleanerclip": Defense(CleanerCLIPConfig, CleanerCLIPTrainer),
}

__all__ = [
    "DEFENSES",
    "CleanCLIPConfig",
    "CleanCLIPTrainer",
    "CleanerCLIPConfig",
    "CleanerCLIPTrainer",
    "Defense",
]
