# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What FSDP 2 needs to be told about a CLIP: its `logit_scale` stays whole, its embedding is that of the texts."""

import torch
from accelerate import Accelerator
from torch import nn


def prepare_for_fsdp(accelerator: Accelerator, model: nn.Module) -> None:
    """Tell FSDP 2 to leave the scalar parameters of `model` alone, which it refuses to divide.

    Every process computes the loss of the global batch and so the whole gradient of its own copy, and all copies take
    the same steps. Accelerate also asks for the input embedding, which transformers' `CLIPModel` does not name.

    Raises:
        ValueError: If the plugin is FSDP 1, which does not mix divided and whole parameters in one optimiser.
    """
    plugin = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise ValueError("Expected FSDP 2, but got FSDP 1. Set `fsdp_version: 2` in `fsdp_config`.")
    scalars = [p for p in model.parameters() if p.ndim == 0]
    for scalar in scalars:  # FSDP moves only what it divides
        scalar.data = scalar.data.to(accelerator.device)
    plugin.ignored_modules = [nn.ParameterList(scalars)]
    name_input_embedding(model)


def name_input_embedding(model: nn.Module) -> None:
    """Let `model.get_input_embeddings()` give the embedding of the texts' tokens, which NEFTune asks for too.

    Args:
        model: A dual encoder; with adapters its base is told.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if hasattr(base, "text_model"):
        base.get_input_embeddings = base.text_model.get_input_embeddings


def separate_scalars(optimizer: torch.optim.Optimizer) -> None:
    """Move scalar parameters into groups of their own, since one fused step cannot mix whole and divided ones."""
    for group in list(optimizer.param_groups):
        scalars = [p for p in group["params"] if p.ndim == 0]
        if scalars and len(scalars) < len(group["params"]):
            group["params"] = [p for p in group["params"] if p.ndim > 0]
            optimizer.add_param_group({**group, "params": scalars})
