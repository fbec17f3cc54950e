# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What the stage `clean` builds: a CLIP with OpenAI's ResNet tower or with a ViT, and the options of its tokenizer."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_clipbd.models import CLIPResNetConfig, CLIPResNetModel, CLIPResNetVisionConfig
from hf_clipbd.recipe.config import RunConfig
from hf_clipbd.recipe.sections import ConfigError, call_with, check_keys, check_names, scalar


TOKENIZER_OPTIONS = {"vocab_size": 8192, "model_max_length": 32}
KINDS = ("resnet", "vit")

Architecture = CLIPResNetConfig | CLIPConfig


def build_architecture(config: RunConfig) -> tuple[Architecture, dict[str, int]]:
    """Return the clean model's configuration and its tokenizer's options, out of the section `architecture`.

    `kind: resnet`, the default, takes the arguments of `CLIPResNetConfig`; `kind: vit` those of transformers'
    `CLIPConfig`, with `vision_config` and `text_config` those of `CLIPVisionConfig` and `CLIPTextConfig`. The image
    size is the canvas's; the vocabulary and the text length come from the tokenizer once it is trained.

    Raises:
        ConfigError: If the kind or a key is unknown or a value refused.
    """
    values = dict(config.architecture)
    tokenizer = {name: int(values.pop(name, default)) for name, default in TOKENIZER_OPTIONS.items()}
    kind = values.pop("kind", KINDS[0])
    check_names([kind], KINDS, "`architecture.kind`")
    whole = CLIPResNetConfig if kind == "resnet" else CLIPConfig
    known = ("kind", *TOKENIZER_OPTIONS, *(p for p in inspect.signature(whole).parameters if p != "kwargs"))
    check_keys(values, known, "architecture")
    vision = {"image_size": config.world.size, **(values.pop("vision_config", None) or {})}
    text = dict(values.pop("text_config", None) or {})
    if kind == "vit":
        return _vit(values, vision, text), tokenizer
    vision = call_with(CLIPResNetVisionConfig, vision, "architecture.vision_config")
    return call_with(whole, {**values, "vision_config": vision, "text_config": text}, "architecture"), tokenizer


def _vit(values: Mapping[str, Any], vision: Mapping[str, Any], text: Mapping[str, Any]) -> CLIPConfig:
    """Return the configuration of a CLIP with a ViT; what transformers would find only when it builds it is told."""
    towers = {}
    for name, build, given in (
        ("vision_config", CLIPVisionConfig, dict(vision)),
        ("text_config", CLIPTextConfig, dict(text)),
    ):
        where = f"architecture.{name}"
        numbers = {key: scalar(value) for key, value in given.items()}
        wrong = {key: value for key, value in numbers.items() if key in _SIZES and not _is_size(value)}
        if wrong:
            raise ConfigError(f"Expected whole numbers of at least 1 in section `{where}`, but got {wrong}.")
        plain = build()
        width, heads = (numbers.get(key, getattr(plain, key)) for key in ("hidden_size", "num_attention_heads"))
        if width % heads:
            raise ConfigError(
                f"Expected `{where}.num_attention_heads` to divide `hidden_size` {width}, but got {heads}."
            )
        size, patch = (numbers.get(key, getattr(plain, key, 1)) for key in ("image_size", "patch_size"))
        if name == "vision_config" and size % patch:
            raise ConfigError(f"Expected `{where}.patch_size` to divide the image size {size}, but got {patch}.")
        towers[name] = call_with(build, numbers, where)
    return call_with(CLIPConfig, {**values, **towers}, "architecture")


_SIZES = frozenset(
    "hidden_size intermediate_size num_hidden_layers num_attention_heads patch_size image_size num_channels".split()
)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def build_model(architecture: Architecture, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """Return a model with random weights for a trained tokenizer.

    The sizes and numbers of the tokenizer go into the text part of `architecture`.
    """
    text = architecture.text_config
    text.vocab_size, text.max_position_embeddings = len(tokenizer), tokenizer.model_max_length
    text.bos_token_id, text.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    text.pad_token_id = tokenizer.pad_token_id
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if isinstance(architecture, CLIPResNetConfig):
            return CLIPResNetModel(architecture).to(memory_format=torch.channels_last)
        return CLIPModel(architecture)
