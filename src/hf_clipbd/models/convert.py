# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""OpenAI's and open_clip's CLIP with a ResNet tower, from their state dicts into `CLIPResNetModel`."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from hf_clipbd.models.archives import read_state_dict
from hf_clipbd.models.clip_resnet import CLIPResNetModel
from hf_clipbd.models.configuration import DOWNSAMPLING, CLIPResNetConfig
from hf_clipbd.models.files import hub_is_reachable
from hf_clipbd.models.tokenizer import build_processor


HEAD_CHANNELS = 64
"""Channels of an attention head, in the text transformer and in the attention pooling, of all of OpenAI's models."""
OPENAI_TOKENIZER = "openai/clip-vit-base-patch32"
"""Hub repository whose tokenizer every CLIP of OpenAI's and nearly every one of open_clip's uses."""

_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")
_TEXT_PREFIXES = ("transformer.", "token_embedding.", "ln_final.")
_TEXT_NAMES = ("positional_embedding", "text_projection")
_PARTS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)\.(weight|bias)$")
_JOINED = re.compile(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)$")


def convert_openai_state_dict(
    state_dict: Mapping[str, Tensor], hidden_act: str = "quick_gelu", text_heads: int | None = None
) -> CLIPResNetModel:
    """Return OpenAI's or open_clip's CLIP with a ResNet tower as a `CLIPResNetModel` in evaluation mode, float32.

    The shape (RN50, RN101, RN50x4, RN50x16, RN50x64 or any other of the kind) is read off the tensors.

    Args:
        state_dict: Tensors under OpenAI's names (`visual.layer1.0.conv1.weight`, `transformer.resblocks.0.ln_1.bias`,
            …); open_clip's, where the text tower's may start with `text.`; a leading `module.` is ignored.
        hidden_act: Activation of the text transformer, which no tensor tells: `"quick_gelu"` for OpenAI's weights and
            open_clip's `-quickgelu` models, `"gelu"` for open_clip's others.
        text_heads: Attention heads of the text transformer; channels of 64 by default.

    Returns:
        The model; `exp(logit_scale)` and every weight as in the state dict.

    Raises:
        ValueError: If the tensors are no ResNet CLIP's, or some are missing, left over or of another shape.

    Reference:
        Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021, sections 2.4
        and 2.5; names as in OpenAI's released models.
    """
    state = _openai_names(state_dict)
    if "visual.layer1.0.conv1.weight" not in state:
        found = "a Vision Transformer" if "visual.conv1.weight" in state else f"{sorted(state)[:4]}"
        raise ValueError(
            f"Expected CLIP with a ResNet image tower (`visual.layer1.0.conv1.weight`), but got {found}. "
            f"Vision Transformers are in transformers' own format on the Hub, for instance `{OPENAI_TOKENIZER}`."
        )
    with torch.device("meta"):
        model = CLIPResNetModel(_configuration(state, hidden_act, text_heads))
    _fill(model, {name: tensor for old, value in state.items() for name, tensor in _renamed(old, value)})
    return model.eval()


def _openai_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    state = {}
    for name, tensor in state_dict.items():
        name = name.removeprefix("module.").removeprefix("_orig_mod.")
        if name.startswith("text."):
            name = name.removeprefix("text.")
        if name.rsplit(".", 1)[-1] not in _NOT_WEIGHTS:
            state[name] = tensor
    return state


def _configuration(state: Mapping[str, Tensor], hidden_act: str, text_heads: int | None) -> CLIPResNetConfig:
    """Return the configuration of a model with these tensors, read off their names and shapes."""
    needed = ("visual.attnpool.positional_embedding", "token_embedding.weight", "positional_embedding")
    missing = [name for name in (*needed, "text_projection", "logit_scale") if name not in state]
    if missing:
        raise ValueError(f"Expected a whole CLIP, both towers, but the state dict has no {', '.join(missing)}.")
    stages = [re.compile(rf"visual\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4)]
    layers = [1 + max(int(m[1]) for m in map(stage.match, state) if m) for stage in stages]
    width = state["visual.layer1.0.conv1.weight"].shape[0]
    positions, channels = state["visual.attnpool.positional_embedding"].shape
    vision = {
        "layers": layers,
        "width": width,
        "image_size": round((positions - 1) ** 0.5) * DOWNSAMPLING,
        "num_attention_heads": max(1, channels // HEAD_CHANNELS),
    }
    vocabulary, hidden = state["token_embedding.weight"].shape
    text = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": state["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        "num_hidden_layers": 1 + max(int(m[1]) for m in map(_JOINED.match, state) if m),
        "num_attention_heads": text_heads or max(1, hidden // HEAD_CHANNELS),
        "max_position_embeddings": state["positional_embedding"].shape[0],
        "hidden_act": hidden_act,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
    }
    return CLIPResNetConfig(vision, text, projection_dim=state["text_projection"].shape[1])


def _renamed(name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    """Return our names and tensors for one of OpenAI's; attention's joined input projection gives three."""
    if name.startswith("visual."):
        return [(f"vision_model.{name.removeprefix('visual.')}", tensor)]
    if match := _JOINED.match(name):
        layer, kind = f"text_model.encoder.layers.{match[1]}.self_attn", match[2]
        return [(f"{layer}.{one}_proj.{kind}", part) for one, part in zip("qkv", tensor.chunk(3), strict=True)]
    if (match := _BLOCK.match(name)) and match[2] in _PARTS:
        return [(f"text_model.encoder.layers.{match[1]}.{_PARTS[match[2]]}.{match[3]}", tensor)]
    if name.startswith("ln_final."):
        return [(f"text_model.final_layer_norm.{name.removeprefix('ln_final.')}", tensor)]
    if name == "text_projection":
        return [("text_projection.weight", tensor.T)]
    places = {
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
    }
    return [(places.get(name, name), tensor.reshape(()) if name == "logit_scale" else tensor)]


def _fill(model: CLIPResNetModel, state: dict[str, Tensor]) -> None:
    """Put the tensors in the place of the model's own, which are on no device."""
    own = model.state_dict()
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    missing = sorted(set(own) - set(state) - counters)
    unknown = sorted(set(state) - set(own))
    shapes = [f"{name} {tuple(x.shape)}" for name, x in state.items() if name in own and x.shape != own[name].shape]
    if missing or unknown or shapes:
        raise ValueError(
            f"Expected the tensors of a ResNet CLIP of this shape, but missing are {missing[:5]}, left over "
            f"{unknown[:5]}, of another shape {shapes[:5]}."
        )
    whole = {name: x.detach().to(torch.float32, copy=True).contiguous() for name, x in state.items()}
    whole |= {name: torch.tensor(int(state.get(name, 0))) for name in counters}
    model.load_state_dict(whole, assign=True)
    for module in model.modules():  # what is no parameter and not saved was left on no device too
        for name, buffer in list(module._buffers.items()):
            if buffer is not None and buffer.is_meta:
                if name != "position_ids":
                    raise ValueError(f"Expected to know how to fill the buffer {name}, but this version adds it.")
                module._buffers[name] = torch.arange(buffer.shape[-1]).expand(buffer.shape)


def convert_file(
    path: str | os.PathLike, out: str | os.PathLike, tokenizer: str | None = None, hidden_act: str = "quick_gelu"
) -> CLIPResNetModel:
    """Convert a weight file of OpenAI's or open_clip's ResNet CLIP into a folder that `load_dual_encoder` takes.

    Args:
        path: What `read_state_dict` takes: `.safetensors`, `.pt` or a TorchScript archive.
        out: Folder for configuration, safetensors and processor.
        tokenizer: Folder or Hub id of CLIP's tokenizer; `OPENAI_TOKENIZER` by default.
        hidden_act: As in `convert_openai_state_dict`.

    Returns:
        The model that was written.

    Raises:
        FileNotFoundError: If the file is not there, or the tokenizer cannot be had.
        ValueError: If the file cannot be read safely, is no ResNet CLIP, or the tokenizer has another vocabulary.
    """
    model = convert_openai_state_dict(read_state_dict(path), hidden_act)
    processor = openai_processor(model.config.vision_config.image_size, tokenizer)
    vocabulary = model.config.text_config.vocab_size
    if len(processor.tokenizer) != vocabulary:
        raise ValueError(
            f"Expected a tokenizer of {vocabulary} tokens, but {tokenizer or OPENAI_TOKENIZER} has "
            f"{len(processor.tokenizer)}. Pass the one that the model was trained with."
        )
    model.save_pretrained(out)
    processor.save_pretrained(Path(out))
    return model


def openai_processor(image_size: int, tokenizer: str | None = None, **statistics: Any) -> Any:
    """Return CLIP's processor for images of `image_size`, with the tokenizer of a folder or Hub repository.

    Raises:
        FileNotFoundError: If the tokenizer cannot be had.
    """
    source = tokenizer or OPENAI_TOKENIZER
    local = not Path(source).is_dir() and not hub_is_reachable()
    try:
        found = AutoTokenizer.from_pretrained(source, local_files_only=local, trust_remote_code=False)
    except OSError as error:
        raise FileNotFoundError(
            f"Expected CLIP's tokenizer in `{source}`, but cannot reach it. Pass `--tokenizer FOLDER`, for instance "
            f"one that holds any transformers CLIP model with OpenAI's vocabulary."
        ) from error
    return build_processor(found, image_size, **statistics)
