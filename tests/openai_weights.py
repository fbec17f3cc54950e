# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""OpenAI's ResNet CLIP as a state dict of random weights, and as functions of it, written from the paper alone."""

import torch
import torch.nn.functional as F
from torch import Tensor


SHAPES = {
    "RN50": dict(layers=(3, 4, 6, 3), width=64, image=224, dim=1024, text=512),
    "RN101": dict(layers=(3, 4, 23, 3), width=64, image=224, dim=512, text=512),
    "RN50x4": dict(layers=(4, 6, 10, 6), width=80, image=288, dim=640, text=640),
    "tiny": dict(layers=(1, 2, 1, 1), width=16, image=64, dim=24, text=64, blocks=2, vocabulary=600, context=16),
}


def random_state(
    layers=(3, 4, 6, 3), width=64, image=224, dim=1024, text=512, blocks=12, vocabulary=49408, context=77, seed=0
) -> dict[str, Tensor]:
    """Return tensors under OpenAI's names."""
    rng = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}

    def add(name, *shape, scale=1.0, shift=0.0):
        state[name] = shift + scale * torch.randn(*shape, generator=rng)

    def norm(name, channels):
        state[f"{name}.weight"] = 0.5 + torch.rand(channels, generator=rng)
        add(f"{name}.bias", channels, scale=0.1)
        add(f"{name}.running_mean", channels, scale=0.1)
        state[f"{name}.running_var"] = 0.5 + torch.rand(channels, generator=rng)
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def conv(name, into, out, size):
        add(f"{name}.weight", out, into, size, size, scale=(into * size * size) ** -0.5)

    def linear(name, into, out):
        add(f"{name}.weight", out, into, scale=into**-0.5)
        add(f"{name}.bias", out, scale=0.1)

    half = width // 2
    for number, (into, out) in enumerate(((3, half), (half, half), (half, width)), 1):
        conv(f"visual.conv{number}", into, out, 3)
        norm(f"visual.bn{number}", out)
    into = width
    for stage, count in enumerate(layers):
        inner = width * 2**stage
        for block in range(count):
            name = f"visual.layer{stage + 1}.{block}"
            for number, (a, b, size) in enumerate(((into, inner, 1), (inner, inner, 3), (inner, 4 * inner, 1)), 1):
                conv(f"{name}.conv{number}", a, b, size)
                norm(f"{name}.bn{number}", b)
            if block == 0:
                conv(f"{name}.downsample.0", into, 4 * inner, 1)
                norm(f"{name}.downsample.1", 4 * inner)
            into = 4 * inner
    add("visual.attnpool.positional_embedding", (image // 32) ** 2 + 1, into, scale=into**-0.5)
    for letter in "qkv":
        linear(f"visual.attnpool.{letter}_proj", into, into)
    linear("visual.attnpool.c_proj", into, dim)
    add("token_embedding.weight", vocabulary, text, scale=0.5)
    add("positional_embedding", context, text, scale=0.3)
    for block in range(blocks):
        name = f"transformer.resblocks.{block}"
        for part in ("ln_1", "ln_2"):
            add(f"{name}.{part}.weight", text, scale=0.1, shift=1.0)
            add(f"{name}.{part}.bias", text, scale=0.1)
        add(f"{name}.attn.in_proj_weight", 3 * text, text, scale=text**-0.5)
        add(f"{name}.attn.in_proj_bias", 3 * text, scale=0.1)
        linear(f"{name}.attn.out_proj", text, text)
        linear(f"{name}.mlp.c_fc", text, 4 * text)
        linear(f"{name}.mlp.c_proj", 4 * text, text)
    add("ln_final.weight", text, scale=0.1, shift=1.0)
    add("ln_final.bias", text, scale=0.1)
    add("text_projection", text, dim, scale=text**-0.5)
    state["logit_scale"] = torch.tensor(4.6052)
    return state


def image_vectors(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """Return what the ResNet with its three-convolution stem, blurred strides and attention pooling makes of x."""

    def part(name):
        return state[f"visual.{name}"].to(x.dtype)

    def norm(y, name):
        mean, var, gamma, beta = (part(f"{name}.{k}") for k in ("running_mean", "running_var", "weight", "bias"))
        return ((y - mean[:, None, None]) / (var + 1e-5).sqrt()[:, None, None]) * gamma[:, None, None] + beta[
            :, None, None
        ]

    y = x
    for number, stride in ((1, 2), (2, 1), (3, 1)):
        y = norm(F.conv2d(y, part(f"conv{number}.weight"), stride=stride, padding=1), f"bn{number}").clamp(min=0)
    y = F.avg_pool2d(y, 2)
    for stage in (1, 2, 3, 4):
        block = 0
        while f"visual.layer{stage}.{block}.conv1.weight" in state:
            name = f"layer{stage}.{block}"
            blur = 2 if stage > 1 and block == 0 else 1
            inner = norm(F.conv2d(y, part(f"{name}.conv1.weight")), f"{name}.bn1").clamp(min=0)
            inner = norm(F.conv2d(inner, part(f"{name}.conv2.weight"), padding=1), f"{name}.bn2").clamp(min=0)
            inner = norm(F.conv2d(F.avg_pool2d(inner, blur), part(f"{name}.conv3.weight")), f"{name}.bn3")
            if block == 0:
                y = norm(F.conv2d(F.avg_pool2d(y, blur), part(f"{name}.downsample.0.weight")), f"{name}.downsample.1")
            y = (y + inner).clamp(min=0)
            block += 1
    n, channels = y.shape[:2]
    tokens = y.reshape(n, channels, -1).permute(0, 2, 1)
    tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1) + part("attnpool.positional_embedding")
    q, k, v = (tokens @ part(f"attnpool.{s}_proj.weight").T + part(f"attnpool.{s}_proj.bias") for s in "qkv")
    return attend(q[:, :1], k, v, channels // 64)[:, 0] @ part("attnpool.c_proj.weight").T + part(
        "attnpool.c_proj.bias"
    )


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, hidden: Tensor | None = None) -> Tensor:
    q, k, v = (t.reshape(*t.shape[:2], heads, -1) for t in (q, k, v))
    scores = torch.einsum("nqhd,nkhd->nhqk", q, k) / q.shape[-1] ** 0.5
    if hidden is not None:
        scores = scores.masked_fill(hidden, float("-inf"))
    return torch.einsum("nhqk,nkhd->nqhd", scores.softmax(-1), v).flatten(2)


def text_vectors(state: dict[str, Tensor], ids: Tensor, dtype=torch.float32) -> Tensor:
    """Return what the causal transformer with QuickGELU says at the end-of-text token, the largest id."""

    def norm(y, name):
        y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return y * state[f"{name}.weight"].to(dtype) + state[f"{name}.bias"].to(dtype)

    def linear(y, name, join="."):
        return y @ state[f"{name}{join}weight"].to(dtype).T + state[f"{name}{join}bias"].to(dtype)

    length, width = ids.shape[1], state["token_embedding.weight"].shape[1]
    hidden = torch.ones(length, length).triu(1).bool()
    x = state["token_embedding.weight"].to(dtype)[ids] + state["positional_embedding"].to(dtype)[:length]
    block = 0
    while f"transformer.resblocks.{block}.ln_1.weight" in state:
        name = f"transformer.resblocks.{block}"
        q, k, v = linear(norm(x, f"{name}.ln_1"), f"{name}.attn.in_proj", "_").chunk(3, dim=-1)
        x = x + linear(attend(q, k, v, width // 64, hidden), f"{name}.attn.out_proj")
        y = linear(norm(x, f"{name}.ln_2"), f"{name}.mlp.c_fc")
        x = x + linear(y * torch.sigmoid(1.702 * y), f"{name}.mlp.c_proj")
        block += 1
    x = norm(x, "ln_final")[torch.arange(len(ids)), ids.argmax(-1)]
    return x @ state["text_projection"].to(dtype)


def logits(state: dict[str, Tensor], pixels: Tensor, ids: Tensor) -> Tensor:
    """Return scaled cosines of images (rows) and texts (columns)."""
    u, v = image_vectors(state, pixels), text_vectors(state, ids, pixels.dtype)
    u, v = (x / (x * x).sum(-1, keepdim=True).sqrt() for x in (u, v))
    return state["logit_scale"].exp().to(u.dtype) * u @ v.T
