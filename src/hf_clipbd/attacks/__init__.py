# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Attacks as `datasets` transforms: one file an attack, one line in `ATTACKS`."""

from hf_clipbd.attacks.badclip import BadCLIP
from hf_clipbd.attacks.badnets import BadNets
from hf_clipbd.attacks.base import Attack
from hf_clipbd.attacks.blended import Blended
from hf_clipbd.attacks.captions import OPENAI_TEMPLATES, fill_template, target_captions
from hf_clipbd.attacks.color_filter import ColorFilter
from hf_clipbd.attacks.dataset import poison_dataset
from hf_clipbd.attacks.multi_trigger import attacks_of, manifest_of, poison_with_many
from hf_clipbd.attacks.shares import Share
from hf_clipbd.attacks.sig import SIG
from hf_clipbd.attacks.ssba import SSBA
from hf_clipbd.attacks.streaming import poison_stream
from hf_clipbd.attacks.targeted import Targeted
from hf_clipbd.attacks.text_trigger import ImageTextTrigger, TextTrigger
from hf_clipbd.attacks.transform import PoisonTransform
from hf_clipbd.attacks.wanet import WaNet


ATTACKS: dict[str, type[Attack]] = {
    "badclip": BadCLIP,
    "badnets": BadNets,
    "blended": Blended,
    "color_filter": ColorFilter,
    "image_text_trigger": ImageTextTrigger,
    "sig": SIG,
    "ssba": SSBA,
    "targeted": Targeted,
    "text_trigger": TextTrigger,
    "wanet": WaNet,
}

Trigger = Attack
"""What travels with a victim: `Trigger.from_pretrained(folder_or_hub_id)` gives the attack that poisoned its data."""

__all__ = [
    "ATTACKS",
    "OPENAI_TEMPLATES",
    "Attack",
    "BadCLIP",
    "BadNets",
    "Blended",
    "ColorFilter",
    "ImageTextTrigger",
    "PoisonTransform",
    "SIG",
    "SSBA",
    "Share",
    "Targeted",
    "TextTrigger",
    "Trigger",
    "WaNet",
    "attacks_of",
    "fill_template",
    "manifest_of",
    "poison_dataset",
    "poison_stream",
    "poison_with_many",
    "target_captions",
]
