# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""OpenAI's image tower: a ResNet with a three-convolution stem, anti-aliased strides and attention pooling.

Parameters have OpenAI's names (`conv1`, `layer1.0.bn3`, `attnpool.positional_embedding`, …): its state dicts fit.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from hf_clipbd.models.batch_norm import GlobalBatchNorm2d
from hf_clipbd.models.configuration import DOWNSAMPLING, CLIPResNetVisionConfig


class Bottleneck(nn.Module):
    """Residual block 1×1, 3×3, 1×1 whose stride is an average pooling before the last convolution.

    All convolutions have stride 1; a block of stride s pools s×s after the second one, and the shortcut pools s×s
    before its 1×1 convolution, which keeps high frequencies from folding into low ones.

    Args:
        in_channels: Channels of the input.
        channels: Channels of the inner convolutions; the block puts out four times as many.
        stride: 1 or 2.
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int = 1):
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = GlobalBatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = GlobalBatchNorm2d(channels)
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = GlobalBatchNorm2d(out_channels)
        self.downsample = None
        if stride > 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, bias=False), GlobalBatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, (N, 4·channels, H/stride, W/stride), for an input (N, in_channels, H, W)."""
        shortcut = x if self.downsample is None else self.downsample(self.pool(x))
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        x = self.bn3(self.conv3(self.pool(x)))
        return F.relu(x + shortcut, inplace=True)


class AttentionPool2d(nn.Module):
    """Pooling of a feature map by attention with its mean as the one query, projected to the joint embedding.

    With tokens t₀ = mean of all positions and t₁ … t_P the positions, each with a learned positional embedding added:
    out = W_c · concat_heads(softmax(q₀ Kᵀ / √d) V) + b_c, where q₀ is the projection of t₀, and K, V those of
    t₀ … t_P, and d the channels of a head.

    Args:
        grid: Height and width of the feature map; P = grid².
        channels: Channels C of the feature map.
        num_heads: Attention heads.
        output_dim: Dimension D of the result.

    Reference:
        Radford et al. 2021, section 2.4 ("attention pooling").
    """

    def __init__(self, grid: int, channels: int, num_heads: int, output_dim: int):
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(grid**2 + 1, channels) / channels**0.5)
        self.q_proj = nn.Linear(channels, channels)
        self.k_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.c_proj = nn.Linear(channels, output_dim)
        self.num_heads = num_heads

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, D) for a feature map (N, C, grid, grid)."""
        tokens = x.flatten(2).transpose(1, 2)  # (N, P, C)
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
        tokens = tokens + self.positional_embedding.to(tokens.dtype)  # (N, 1 + P, C)
        query, key, value = self.q_proj(tokens[:, :1]), self.k_proj(tokens), self.v_proj(tokens)
        heads = [t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (query, key, value)]
        pooled = F.scaled_dot_product_attention(*heads)  # (N, heads, 1, C / heads)
        return self.c_proj(pooled.transpose(1, 2).flatten(2).squeeze(1))  # (N, D)


class ModifiedResNet(nn.Module):
    """OpenAI's ResNet: three-convolution stem with average pooling, four bottleneck stages, attention pooling.

    Args:
        config: Shape of the tower.
        output_dim: Dimension D of the embedding.
    """

    def __init__(self, config: CLIPResNetVisionConfig, output_dim: int):
        super().__init__()
        self.config = config
        width = config.width
        self.conv1 = nn.Conv2d(config.num_channels, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = GlobalBatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = GlobalBatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = GlobalBatchNorm2d(width)
        self.avgpool = nn.AvgPool2d(2)
        in_channels = width
        for stage, blocks in enumerate(config.layers):
            channels = width * 2**stage
            strides = [1 if stage == 0 else 2] + [1] * (blocks - 1)
            inputs = [in_channels] + [channels * Bottleneck.expansion] * (blocks - 1)
            layer = [Bottleneck(n_in, channels, stride) for n_in, stride in zip(inputs, strides, strict=True)]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layer))
            in_channels = channels * Bottleneck.expansion
        grid = config.image_size // DOWNSAMPLING
        self.attnpool = AttentionPool2d(grid, in_channels, config.num_attention_heads, output_dim)

    def forward(self, pixel_values: Tensor) -> BaseModelOutputWithPooling:
        """Return the last feature map and its projected attention pooling.

        Args:
            pixel_values: Normalised pixels, (N, num_channels, image_size, image_size).

        Returns:
            `last_hidden_state` (N, 32·width, image_size/32, image_size/32) and `pooler_output` (N, D).

        Raises:
            ValueError: If the images have another shape than the configuration's.
        """
        size, channels = self.config.image_size, self.config.num_channels
        if pixel_values.dim() != 4 or tuple(pixel_values.shape[1:]) != (channels, size, size):
            raise ValueError(
                f"Expected `pixel_values` of shape (N, {channels}, {size}, {size}), but got "
                f"{tuple(pixel_values.shape)}. Resize the images with the model's own processor."
            )
        x = pixel_values.to(dtype=self.conv1.weight.dtype, memory_format=torch.channels_last)
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = F.relu(norm(conv(x)), inplace=True)
        x = self.avgpool(x)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        return BaseModelOutputWithPooling(last_hidden_state=x, pooler_output=self.attnpool(x))
