# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Low-rank adapters through peft: what is trained instead of the weights, and the model with them merged in."""

import copy
import logging
from typing import TYPE_CHECKING

import torch
from torch import nn

from hf_clipbd.training.arguments import ScaleArguments


if TYPE_CHECKING:
    from peft import PeftModel

logger = logging.getLogger(__name__)


def add_adapters(model: nn.Module, args: ScaleArguments) -> "PeftModel":
    """Return `model` with adapters W x + (lora_alpha / lora_r) B A x that alone are trained; B starts at zero.

    Their initial weights are drawn from `args.seed`. `logit_scale` is no layer and stays as it is. So does what lies
    inside `nn.MultiheadAttention` (the pooling of a SigLIP, the attention of open_clip's towers): it uses its weights
    without calling its layers, so adapters on those would do nothing. peft's own layer for it is not used: that of
    peft 0.21 adds the output's adapter twice, and rounds the base's weights anew in each step.

    Args:
        model: Any dual encoder; its layers are changed in place.
        args: Rank, scale, dropout and the layers that get adapters.

    Raises:
        ValueError: If `model` has adapters already, or no layer of a name in `lora_targets` that can have them.

    Reference:
        Hu et al., LoRA: Low-Rank Adaptation of Large Language Models (arXiv 2106.09685, section 4.1).
    """
    from peft import LoraConfig, PeftModel, get_peft_model  # takes a second, and few trainings want it

    if isinstance(model, PeftModel):
        raise ValueError("Expected a model without adapters, but it has some. Leave `lora` out to train those.")
    fused = [name for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)]
    layers = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and name.rpartition(".")[0] not in fused
    ]
    missing = [target for target in args.lora_targets if not any(_is_named(name, target) for name in layers)]
    if missing:
        inside = f" Those inside {', '.join(fused)} cannot have adapters." if fused else ""
        raise ValueError(
            f"Expected names of linear layers or convolutions in `lora_targets`, but got {missing}.{inside}"
        )
    if fused and not args.lora_targets:
        logger.info("No adapters inside %s, whose layers are not called: they stay as they are.", ", ".join(fused))
    wanted = [name for name in layers if not args.lora_targets or any(_is_named(name, t) for t in args.lora_targets)]
    config = LoraConfig(
        r=args.lora_r, lora_alpha=args.lora_alpha, lora_dropout=args.lora_dropout, target_modules=wanted
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(args.seed)  # and not those of the GPUs, which nothing here draws from
        return get_peft_model(model, config)


def merge_adapters(model: nn.Module) -> nn.Module:
    """Return a copy of `model` with its adapters merged into the weights, or `model` itself where it has none.

    The copy is a plain dual encoder: `save_pretrained` writes whole weights that load without peft.
    """
    if not hasattr(model, "merge_and_unload"):
        return model
    return copy.deepcopy(model).merge_and_unload()


def _is_named(layer: str, target: str) -> bool:
    return layer == target or layer.endswith(f".{target}")
