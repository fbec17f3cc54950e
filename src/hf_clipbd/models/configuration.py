# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Configuration of CLIP with OpenAI's ResNet image tower."""

from collections.abc import Sequence
from typing import Any

from transformers import CLIPTextConfig, PreTrainedConfig


DOWNSAMPLING = 32
"""Pixels of the input, each way, for one position of the last feature map: stem 4, then three stages of 2."""


def _at_least_one(**values: int) -> None:
    wrong = {name: value for name, value in values.items() if int(value) != value or value < 1}
    if wrong:
        raise ValueError(f"Expected whole numbers of at least 1, but got {wrong}. Change them in the configuration.")


class CLIPResNetVisionConfig(PreTrainedConfig):
    """Shape of OpenAI's modified ResNet with attention pooling; the defaults are RN50's.

    Args:
        image_size: Height and width of the input in pixels; a multiple of 32.
        layers: Bottleneck blocks of the four stages.
        width: Channels of the stem's output and of the first stage's inner convolutions; even. The stages put out
            4, 8, 16 and 32 times as many.
        num_attention_heads: Heads of the attention pooling; `width // 2` (channels of 64) where it is None.
        num_channels: Colour channels of the input.

    Raises:
        ValueError: If the numbers make no network.

    Reference:
        Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021, section 2.4.

    Example:
        >>> CLIPResNetVisionConfig(width=16, image_size=64).hidden_size
        512
    """

    model_type = "clip_resnet_vision"
    base_config_key = "vision_config"

    def __init__(
        self,
        image_size: int = 224,
        layers: Sequence[int] = (3, 4, 6, 3),
        width: int = 64,
        num_attention_heads: int | None = None,
        num_channels: int = 3,
        **kwargs: Any,
    ):
        self.image_size = image_size
        self.layers = list(layers)
        self.width = width
        self.num_attention_heads = max(width // 2, 1) if num_attention_heads is None else num_attention_heads
        self.num_channels = num_channels
        self._check()
        super().__init__(**kwargs)

    def _check(self) -> None:
        _at_least_one(width=self.width, num_attention_heads=self.num_attention_heads, num_channels=self.num_channels)
        if len(self.layers) != 4:
            raise ValueError(f"Expected `layers` of the four stages, such as (3, 4, 6, 3), but got {self.layers}.")
        _at_least_one(**{f"layers[{stage}]": blocks for stage, blocks in enumerate(self.layers)})
        if self.width % 2:
            raise ValueError(f"Expected an even `width` (the stem starts with half of it), but got {self.width}.")
        if self.image_size < DOWNSAMPLING or self.image_size % DOWNSAMPLING:
            raise ValueError(
                f"Expected `image_size` to be a multiple of {DOWNSAMPLING}, but got {self.image_size}. "
                f"Take {max(1, round(self.image_size / DOWNSAMPLING)) * DOWNSAMPLING}."
            )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"Expected `num_attention_heads` to divide {self.hidden_size} (32 times `width`), "
                f"but got {self.num_attention_heads}."
            )

    @property
    def hidden_size(self) -> int:
        """Channels of the last feature map and width of the attention pooling."""
        return self.width * 32


class CLIPResNetConfig(PreTrainedConfig):
    """Configuration of `CLIPResNetModel`: an image tower, transformers' CLIP text tower, and what joins them.

    The defaults are the shape of OpenAI's RN50.

    Args:
        vision_config: `CLIPResNetVisionConfig` or a dictionary of its arguments.
        text_config: `transformers.CLIPTextConfig` or a dictionary of its arguments. `eos_token_id` must be the
            tokenizer's, since the text is pooled there.
        projection_dim: Dimension D of the joint embedding.
        logit_scale_init_value: log s at the start, where s is the factor on cosine similarities; log(1/0.07).

    Example:
        >>> config = CLIPResNetConfig(vision_config={"width": 16, "layers": (1, 1, 1, 1), "image_size": 64})
        >>> config.vision_config.hidden_size, config.projection_dim
        (512, 1024)
    """

    model_type = "clip_resnet"
    sub_configs = {"vision_config": CLIPResNetVisionConfig, "text_config": CLIPTextConfig}

    def __init__(
        self,
        vision_config: CLIPResNetVisionConfig | dict[str, Any] | None = None,
        text_config: CLIPTextConfig | dict[str, Any] | None = None,
        projection_dim: int = 1024,
        logit_scale_init_value: float = 2.6592,
        **kwargs: Any,
    ):
        _at_least_one(projection_dim=projection_dim)
        if not isinstance(vision_config, CLIPResNetVisionConfig):
            vision_config = CLIPResNetVisionConfig(**(vision_config or {}))
        if not isinstance(text_config, CLIPTextConfig):
            text_config = CLIPTextConfig(**{"projection_dim": projection_dim, **(text_config or {})})
        self.vision_config = vision_config
        self.text_config = text_config
        self.projection_dim = projection_dim
        self.logit_scale_init_value = logit_scale_init_value
        super().__init__(**kwargs)
