# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Attacks as `datasets` transforms: one file an attack, one line in `ATTACKS`."""

from hf_clipbd.attacks.badnets import BadNets
from hf_clipbd.attacks.base import Attack
from hf_clipbd.attacks.blended import Blended
from hf_clipbd.attacks.captions import OPENAI_TEMPLATES, fill_template, target_captions
from hf_clipbd.attacks.dataset import poison_dataset
from hf_clipbd.attacks.sig import SIG
from hf_clipbd.attacks.transform import PoisonTransform
from hf_clipbd.attacks.wanet import WaNet


ATTACKS: dict[str, type[Attack]] = {
    "badnets": BadNets,
    "blended": Blended,
    "sig": SIG,
    "wanet": WaNet,
}

Trigger = Attack
"""What travels with a victim: `Trigger.from_pretrained(folder_or_hub_id)` gives the attack that poisoned its data."""

__all__ = [
    "ATTACKS",
    "OPENAI_TEMPLATES",
    "Attack",
    "BadNets",
    "Blended",
    "PoisonTransform",
    "SIG",
    "Trigger",
    "WaNet",
    "fill_template",
    "poison_dataset",
    "target_captions",
]
