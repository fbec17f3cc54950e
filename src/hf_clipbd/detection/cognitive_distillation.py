# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Cognitive distillation: how little of a picture is enough to keep its embedding."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_clipbd.detection.reference import Reference
from hf_clipbd.features import embed_images


def distilled_masks(
    embed: Callable[[Tensor], Tensor],
    pixels: Tensor,
    steps: int = 100,
    lr: float = 0.1,
    alpha: float = 0.001,
    beta: float = 10.0,
    noise: Tensor | None = None,
) -> Tensor:
    """Return the mask of each picture that keeps its embedding at least mask.

    m = argmin |f(x) - f(x m + (1 - m) d)|_1 + alpha |m|_1 + beta TV(m), with m = (tanh(w) + 1) / 2 in [0, 1], found by
    Adam from w = 0.9; |.|_1 is a sum, TV the mean absolute difference of neighbouring mask values.

    Args:
        embed: Pictures (B, 3, H, W) to embeddings (B, D), differentiable.
        pixels: Normalised pictures, (B, 3, H, W).
        steps: Steps of Adam.
        lr: Its learning rate.
        alpha: Weight of the mask's size.
        beta: Weight of its roughness.
        noise: d, one value a channel for each picture, (B, 3, 1, 1), what masked places are filled with; 0 (the mean
            colour) by default.

    Returns:
        (B, 1, H, W), in [0, 1].
    """
    fill = torch.zeros_like(pixels[:, :, :1, :1]) if noise is None else noise
    with torch.no_grad():
        wanted = embed(pixels)
    w = torch.full_like(pixels[:, :1], 0.9).requires_grad_()
    adam = torch.optim.Adam([w], lr=lr, betas=(0.1, 0.1))
    for _ in range(steps):
        mask = (w.tanh() + 1) / 2
        away = (embed(pixels * mask + (1 - mask) * fill) - wanted).abs().sum(1)
        size = mask.flatten(1).sum(1)
        rough = mask.diff(dim=2).abs().flatten(1).mean(1) + mask.diff(dim=3).abs().flatten(1).mean(1)
        adam.zero_grad()
        (w.grad,) = torch.autograd.grad((away + alpha * size + beta * rough).sum(), [w])
        adam.step()
    return (w.detach().tanh() + 1) / 2


def cognitive_distillation(
    features: Any,
    reference: Reference | None = None,
    k: int | None = None,
    model: nn.Module | None = None,
    pixels: Callable[[np.ndarray], Tensor] | None = None,
    rows: Any = None,
    batch_size: int = 64,
    seed: int = 0,
    **options: Any,
) -> np.ndarray:
    """Return minus the size of the smallest mask that keeps a picture's embedding, -|m|_1 / (H W).

    A trigger that decides the embedding alone leaves a small mask, so the sign is turned for higher to be more
    suspicious (the public code never turns it). It costs about 3 `steps` forward passes a picture and is meant for a
    part of a set, for instance what another detector ranks first.

    Args:
        features: (N, D), or anything else of N rows: only their number is used, the model is asked itself.
        reference: Taken and not used, so that every detector is called alike.
        k: Likewise.
        model: The suspected model.
        pixels: From row numbers (B,) to normalised pictures (B, 3, H, W).
        rows: (N,), row numbers to ask `pixels` for; 0 to N - 1 by default.
        batch_size: Pictures at once.
        seed: Seed of the fill colours, which depend on (seed, row).
        **options: `steps`, `lr`, `alpha` and `beta` of `distilled_masks`.

    Returns:
        (N,), float64, in [-1, 0]; higher is more suspicious.

    Raises:
        ValueError: If model or pixels are missing.

    Reference:
        Huang et al., "Distilling Cognitive Backdoor Patterns within an Image", ICLR 2023, equations 1 and 2; on CLIP
        embeddings of images alone in Huang et al., ICLR 2025. The weights are our choice for unit embeddings.

    Example:
        >>> model, pictures = nn.Linear(1, 1), torch.rand(5, 3, 8, 8)  # in earnest: the suspected model
        >>> model.get_image_features = lambda pixel_values: pixel_values.flatten(1)
        >>> first = np.array([3, 1])  # rows that another detector ranks first
        >>> found = cognitive_distillation(first, model=model, pixels=lambda rows: pictures[rows], rows=first, steps=2)
        >>> found.shape
        (2,)
    """
    if model is None or pixels is None:
        raise ValueError("Expected cognitive distillation to be given the `model` and `pixels`, but one is missing.")
    rows = np.arange(len(features)) if rows is None else np.asarray(rows)
    in_training = [module for module in model.modules() if module.training]
    model.eval()
    device = next(model.parameters()).device
    scores = np.empty(len(rows))
    try:
        for start in range(0, len(rows), batch_size):
            block = rows[start : start + batch_size]
            colours = np.stack([np.random.default_rng([seed, int(row)]).normal(size=3) for row in block])
            noise = torch.from_numpy(colours).float().to(device)[:, :, None, None]
            pictures = pixels(block).to(device)
            masks = distilled_masks(lambda x: embed_images(model, x), pictures, noise=noise, **options)
            scores[start : start + len(block)] = -masks.flatten(1).double().mean(1).cpu().numpy()
    finally:
        for module in in_training:
            module.training = True
    return scores
