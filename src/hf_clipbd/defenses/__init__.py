# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Defences by name: each is its configuration, its trainer and what it is run on."""

from typing import Literal, NamedTuple

from hf_clipbd.defenses.cleanclip import CleanCLIPConfig, CleanCLIPTrainer
from hf_clipbd.defenses.cleanerclip import CleanerCLIPConfig, CleanerCLIPTrainer
from hf_clipbd.defenses.par import PARConfig, PARTrainer
from hf_clipbd.defenses.retrain import RetrainConfig
from hf_clipbd.defenses.roclip import RoCLIPConfig, RoCLIPTrainer
from hf_clipbd.defenses.safeclip import SafeCLIPConfig, SafeCLIPTrainer
from hf_clipbd.trainer import CLIPTrainer, CLIPTrainingConfig


class Defense(NamedTuple):
    """A defence: the dataclass that configures it, the `CLIPTrainer` that runs it, and what it is run on.

    `trains_on` is `clean` where the victim is fine-tuned on clean pairs, and `poisoned` where the clean model is
    trained on the poisoned pairs in the victim's place. `needs` names stages of a run without which it cannot run.
    """

    config: type[CLIPTrainingConfig]
    trainer: type[CLIPTrainer]
    trains_on: Literal["clean", "poisoned"] = "clean"
    needs: tuple[str, ...] = ()


DEFENSES: dict[str, Defense] = {
    "ft": Defense(CLIPTrainingConfig, CLIPTrainer),
    "cleanclip": Defense(CleanCLIPConfig, CleanCLIPTrainer),
    "cleanerclip": Defense(CleanerCLIPConfig, CleanerCLIPTrainer),
    "par": Defense(PARConfig, PARTrainer),
    "roclip": Defense(RoCLIPConfig, RoCLIPTrainer, "poisoned"),
    "safeclip": Defense(SafeCLIPConfig, SafeCLIPTrainer, "poisoned"),
    "retrain": Defense(RetrainConfig, CLIPTrainer, "poisoned", ("detect",)),
}

OBJECTIVES: dict[str, Defense] = {
    "mmcl": Defense(CLIPTrainingConfig, CLIPTrainer, "poisoned"),
    "mmcl+ssl": Defense(CleanCLIPConfig, CleanCLIPTrainer, "poisoned"),
}
"""What a victim is trained with: the image-text loss alone, or CleanCLIP's in-modal terms beside it, as pretraining
often does; CleanCLIP is known to fail against such a victim (arXiv 2311.14948)."""

__all__ = [
    "DEFENSES",
    "OBJECTIVES",
    "CleanCLIPConfig",
    "CleanCLIPTrainer",
    "CleanerCLIPConfig",
    "CleanerCLIPTrainer",
    "Defense",
    "PARConfig",
    "PARTrainer",
    "RetrainConfig",
    "RoCLIPConfig",
    "RoCLIPTrainer",
    "SafeCLIPConfig",
    "SafeCLIPTrainer",
]
