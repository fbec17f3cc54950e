# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Cognitive distillation: how little of a picture is enough to keep its embedding."""

from collections.abc import Callable, Sequence
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
    alpha: float = 0.01,
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
        alpha: Weight of the mask's size. Masks hardly shrink where it is small: at 0.001 those of a victim of the
            embedded world kept three quarters of each picture, poisoned or not.
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


def mask_sizes(
    model: nn.Module,
    pixels: Callable[[np.ndarray], Tensor],
    rows: Sequence[int] | np.ndarray,
    batch_size: int = 64,
    seed: int = 0,
    **options: Any,
) -> np.ndarray:
    """Return the size of each picture's smallest mask that keeps its embedding, |m|_1 / (H W).

    It costs about three forward passes a step and picture, some three hundred with the default of 100 steps, and is
    meant for a part of a set, for instance what another detector ranks first.

    Args:
        model: The suspected model, with `get_image_features`.
        pixels: From row numbers (B,) to normalised pictures (B, 3, H, W).
        rows: (N,), the row numbers to ask it for.
        batch_size: Pictures at once; sizes depend on it by rounding alone.
        seed: Seed of the fill colours, which depend on (seed, row).
        **options: `steps`, `lr`, `alpha` and `beta` of `distilled_masks`.

    Returns:
        (N,), float64, in [0, 1].

    Reference:
        As of `cognitive_distillation`.

    Example:
        >>> model, pictures = nn.Linear(1, 1), torch.rand(5, 3, 8, 8)  # in earnest: the suspected model
        >>> model.get_image_features = lambda pixel_values: pixel_values.flatten(1)
        >>> mask_sizes(model, lambda rows: pictures[rows], np.array([3, 1]), steps=2).shape
        (2,)
    """
    rows = np.asarray(rows)
    in_training = [module for module in model.modules() if module.training]
    model.eval()
    device = next(model.parameters()).device
    sizes = np.empty(len(rows))
    try:
        for start in range(0, len(rows), batch_size):
            block = rows[start : start + batch_size]
            colours = np.stack([np.random.default_rng([seed, int(row)]).normal(size=3) for row in block])
            noise = torch.from_numpy(colours).float().to(device)[:, :, None, None]
            masks = distilled_masks(lambda x: embed_images(model, x), pixels(block).to(device), noise=noise, **options)
            sizes[start : start + len(block)] = masks.flatten(1).cpu().double().mean(1).numpy()
    finally:
        for module in in_training:
            module.training = True
    return sizes


def cognitive_distillation(
    features: Any, reference: Reference | None = None, k: int | None = None, masks: Any = None
) -> np.ndarray:
    """Return minus the size of the smallest mask that keeps a picture's embedding, -|m|_1 / (H W).

    A trigger that decides the embedding alone leaves a small mask, so the sign is turned for higher to be more
    suspicious (the public code never turns it).

    Args:
        features: (N, D), or anything else of N rows: only their number is used.
        reference: Taken and not used, so that every detector is called alike.
        k: Likewise.
        masks: Size of each row's mask, (N,), in [0, 1], as `mask_sizes` gives it; 1 for rows that were not looked at,
            which are then the least suspicious.

    Returns:
        (N,), float64, in [-1, 0]; higher is more suspicious.

    Raises:
        ValueError: If there is no mask size in [0, 1] for each row.

    Reference:
        Huang et al., "Distilling Cognitive Backdoor Patterns within an Image", ICLR 2023, equations 1 and 2; on CLIP
        embeddings of images alone in Huang et al., ICLR 2025. The weights are our choice for unit embeddings;
        alpha was chosen on BadNets victims of the embedded world.

    Example:
        >>> cognitive_distillation(np.zeros((3, 8)), masks=[0.5, 0.125, 1.0]).tolist()
        [-0.5, -0.125, -1.0]
    """
    sizes = np.asarray([] if masks is None else masks, dtype=np.float64)
    fits = sizes.shape == (len(features),)
    if not fits or not ((sizes >= 0) & (sizes <= 1)).all():
        got = "none" if masks is None else "others" if fits else f"shape {sizes.shape}"
        raise ValueError(
            f"Expected `masks` to hold a size in [0, 1] for each of {len(features)} rows, but got {got}. "
            "`hf_clipbd.detection.mask_sizes` gives them."
        )
    return -sizes
