# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""CLIP with OpenAI's ResNet image tower as a `PreTrainedModel`; transformers has Vision Transformer towers only."""

import math
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPProcessor,
    CLIPTextModel,
    CLIPTokenizer,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
from transformers.models.clip.modeling_clip import CLIPOutput

from hf_clipbd.losses import clip_loss
from hf_clipbd.models.configuration import CLIPResNetConfig
from hf_clipbd.models.resnet_tower import AttentionPool2d, Bottleneck, ModifiedResNet


class CLIPResNetModel(PreTrainedModel):
    """CLIP as OpenAI trained it with a ResNet: modified ResNet with attention pooling, and a causal text transformer.

    Loads and saves like any model of transformers, and holds OpenAI's RN50, RN101 and RN50x4. Activation
    checkpointing covers the text tower only: the image tower's batch normalisation must see each batch once.

    Reference:
        Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021, section 2.4.

    Example:
        >>> vision = {"width": 2, "layers": (1, 1, 1, 1), "image_size": 32}
        >>> text = {"vocab_size": 600, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
        ...         "num_attention_heads": 2, "bos_token_id": 598, "eos_token_id": 599}
        >>> model = CLIPResNetModel(CLIPResNetConfig(vision, text, projection_dim=4)).eval()
        >>> model(torch.tensor([[598, 5, 599]]), torch.zeros(2, 3, 32, 32)).logits_per_image.shape
        torch.Size([2, 1])
    """

    config_class = CLIPResNetConfig
    base_model_prefix = "clip_resnet"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["CLIPTextEmbeddings", "CLIPEncoderLayer", "Bottleneck", "AttentionPool2d"]
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: CLIPResNetConfig):
        super().__init__(config)
        self.vision_model = ModifiedResNet(config.vision_config, config.projection_dim)
        self.text_model = CLIPTextModel._from_config(config.text_config)
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draw OpenAI's initial weights for the image tower and the projection; the text tower draws its own."""
        if isinstance(module, nn.Conv2d):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            return
        super()._init_weights(module)
        if isinstance(module, AttentionPool2d):
            channels = module.c_proj.in_features
            init.normal_(module.positional_embedding, std=channels**-0.5)
            for projection in (module.q_proj, module.k_proj, module.v_proj, module.c_proj):
                init.normal_(projection.weight, std=channels**-0.5)
        elif isinstance(module, CLIPResNetModel):
            init.normal_(module.text_projection.weight, std=module.text_projection.in_features**-0.5)
            init.constant_(module.logit_scale, float(module.config.logit_scale_init_value))
            # Here and not above: transformers passes over modules that have no parameter of their own.
            for block in module.modules():
                if isinstance(block, Bottleneck):
                    init.zeros_(block.bn3.weight)

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embedding of the text tower."""
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding of the text tower."""
        self.text_model.set_input_embeddings(value)

    def get_image_features(self, pixel_values: Tensor) -> BaseModelOutputWithPooling:
        """Return image features.

        Args:
            pixel_values: Normalised pixels, (N, 3, image_size, image_size).

        Returns:
            `pooler_output` (N, D), projected and not normalised; `last_hidden_state`, the last feature map.
        """
        return self.vision_model(pixel_values)

    def get_text_features(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None
    ) -> BaseModelOutputWithPooling:
        """Return text features, taken at the first end-of-text token.

        Autocast on a CPU leaves this tower in float32, as attention in bfloat16 is several times slower there.

        Args:
            input_ids: Token ids, (M, L), each row with an end-of-text token.
            attention_mask: 1 for tokens, 0 for padding, (M, L).
            position_ids: Positions, (M, L); 0 … L−1 by default.

        Returns:
            `pooler_output` (M, D), projected and not normalised; `last_hidden_state` (M, L, hidden_size).
        """
        keep_float = torch.autocast("cpu", enabled=False) if input_ids.device.type == "cpu" else nullcontext()
        with keep_float:
            output = self.text_model(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids)
            output.pooler_output = self.text_projection(output.pooler_output)
        return output

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        return_loss: bool | None = None,
        return_dict: bool | None = None,
    ) -> CLIPOutput | tuple:
        """Return embeddings of images and texts and their scaled cosine similarities.

        Args:
            input_ids: Token ids, (M, L).
            pixel_values: Normalised pixels, (N, 3, image_size, image_size); N may differ from M.
            attention_mask: 1 for tokens, 0 for padding, (M, L).
            position_ids: Positions, (M, L); 0 … L−1 by default.
            return_loss: Whether to compute the contrastive loss of this process's pairs; needs N = M.
            return_dict: False gives a tuple.

        Returns:
            `image_embeds` (N, D) and `text_embeds` (M, D) with unit rows, `logits_per_image` (N, M),
            `logits_per_text` (M, N), the towers' outputs, and `loss` () where it was asked for.
        """
        image_output = self.get_image_features(pixel_values)
        text_output = self.get_text_features(input_ids, attention_mask, position_ids)
        image_embeds = _unit(image_output.pooler_output)  # (N, D)
        text_embeds = _unit(text_output.pooler_output)  # (M, D)
        scale = self.logit_scale.exp()
        logits_per_text = scale * text_embeds @ image_embeds.T  # (M, N)
        output = CLIPOutput(
            loss=clip_loss(image_embeds, text_embeds, scale) if return_loss else None,
            logits_per_image=logits_per_text.T,
            logits_per_text=logits_per_text,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            text_model_output=text_output,
            vision_model_output=image_output,
        )
        return output.to_tuple() if return_dict is False else output


def _unit(features: Tensor) -> Tensor:
    """Return rows of length one, in float32 where the features have half precision."""
    return F.normalize(features.float() if features.dtype in (torch.float16, torch.bfloat16) else features, dim=-1)


def register() -> None:
    """Make transformers' Auto classes, and with them its pipelines, know CLIPResNet."""
    AutoConfig.register(CLIPResNetConfig.model_type, CLIPResNetConfig, exist_ok=True)
    AutoModel.register(CLIPResNetConfig, CLIPResNetModel, exist_ok=True)
    AutoModelForZeroShotImageClassification.register(CLIPResNetConfig, CLIPResNetModel, exist_ok=True)
    AutoProcessor.register(CLIPResNetConfig, CLIPProcessor, exist_ok=True)
    AutoTokenizer.register(CLIPResNetConfig, tokenizer_class=CLIPTokenizer, exist_ok=True)
    # Not through AutoImageProcessor.register, which transformers 5.17 refuses without torchvision.
    IMAGE_PROCESSOR_MAPPING.register(CLIPResNetConfig, {"pil": CLIPImageProcessorPil}, exist_ok=True)
