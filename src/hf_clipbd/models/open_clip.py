# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""open_clip's checkpoints: ResNets become `CLIPResNetModel`, anything else runs in open_clip itself (an extra)."""

import copy
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Regex, normalizers
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.clip.modeling_clip import CLIPOutput

from hf_clipbd.models.archives import read_state_dict
from hf_clipbd.models.convert import convert_openai_state_dict, openai_processor
from hf_clipbd.models.files import has_file, resolve_file


OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_CHECKPOINT, _CHECKPOINT_WEIGHTS = "checkpoint-", "model.safetensors"
"""A trainer's checkpoints, and the only name of a weight file that it resumes from."""
_PUNCTUATION = r"[!-/:-@\[-`{-~]"
"""What Python calls punctuation."""


class OpenCLIPConfig(PreTrainedConfig):
    """Configuration of `OpenCLIPModel`.

    Args:
        description: What stands in `open_clip_config.json`: `model_cfg` and `preprocess_cfg`.
    """

    model_type = "open_clip"

    def __init__(self, description: dict[str, Any] | None = None, **kwargs: Any):
        self.description = description or {"model_cfg": {"text_cfg": {}}, "preprocess_cfg": {}}
        text = self.description["model_cfg"]["text_cfg"]
        self.max_position_embeddings = int(text.get("context_length", 77))
        self.fixed_length_text = bool(text.get("no_causal_mask", False))
        super().__init__(**kwargs)


class OpenCLIPModel(PreTrainedModel):
    """A model of open_clip's with the members of a dual encoder; saved in open_clip's own format.

    Args:
        config: The configuration.

    Raises:
        ImportError: If open_clip is not installed.
    """

    config_class = OpenCLIPConfig
    base_model_prefix = "encoder"
    main_input_name = "input_ids"

    def __init__(self, config: OpenCLIPConfig):
        super().__init__(config)
        self.encoder = _build(config.description["model_cfg"])
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Leave every weight as open_clip drew it."""

    @property
    def logit_scale(self) -> Tensor:
        """log s, the parameter of the wrapped model."""
        return self.encoder.logit_scale

    @property
    def logit_bias(self) -> Tensor | None:
        """b of a model trained with the sigmoid loss, else None."""
        return getattr(self.encoder, "logit_bias", None)

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Return projected image features, (N, D), of normalised pixels (N, 3, H, W)."""
        return self.encoder.encode_image(pixel_values)

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return projected text features, (M, D), of token ids (M, L), which are padded to the model's length."""
        length = self.config.max_position_embeddings
        padded = input_ids.new_full((len(input_ids), length), self._padding)
        if attention_mask is not None and not self.config.fixed_length_text:
            input_ids = input_ids.where(attention_mask.bool(), self._padding)
        padded[:, : input_ids.shape[1]] = input_ids[:, :length]
        return self.encoder.encode_text(padded)

    @property
    def _padding(self) -> int:
        """Token id of padding; a text tower of transformers' inside open_clip tells the words from it by its id."""
        inner = getattr(getattr(self.encoder, "text", None), "config", None)
        own = self.config.description["model_cfg"]["text_cfg"].get("pad_id", 0)
        return int(own if inner is None else inner.pad_token_id)

    def forward(self, input_ids: Tensor, pixel_values: Tensor, attention_mask: Tensor | None = None) -> CLIPOutput:
        """Return unit embeddings of images (N, D) and texts (M, D), and their scaled cosines."""
        images, texts = self.get_image_features(pixel_values), self.get_text_features(input_ids, attention_mask)
        precise = torch.promote_types(images.dtype, torch.float32)
        images, texts = normalize(images.to(precise), dim=-1), normalize(texts.to(precise), dim=-1)
        logits = self.logit_scale.exp() * images @ texts.T + (0 if self.logit_bias is None else self.logit_bias)
        return CLIPOutput(logits_per_image=logits, logits_per_text=logits.T, image_embeds=images, text_embeds=texts)

    def save_pretrained(
        self, save_directory: str | os.PathLike, state_dict: dict[str, Tensor] | None = None, **kwargs: Any
    ) -> None:
        """Write `open_clip_config.json` and `open_clip_model.safetensors`, as open_clip's own hub tools do.

        In a trainer's checkpoint the weights go to `model.safetensors`, which is what a trainer resumes from.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.config.description, indent=2)
        (folder / OPEN_CLIP_CONFIG).write_text(text + "\n", encoding="utf-8")
        state = self.state_dict() if state_dict is None else state_dict
        whole = {name: x.detach().cpu().contiguous().clone() for name, x in state.items()}
        if folder.name.startswith(_CHECKPOINT):
            save_file(whole, folder / _CHECKPOINT_WEIGHTS, metadata={"format": "pt"})
        else:
            save_file(_bare(whole), folder / OPEN_CLIP_WEIGHTS[0], metadata={"format": "pt"})


def _bare(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("encoder."): x for name, x in state.items()}


def _build(model_cfg: dict[str, Any]) -> nn.Module:
    try:
        import open_clip
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that does not fit torch
        raise ImportError(
            f"Expected open_clip for this model, but it cannot be imported ({error}). Install "
            "`hf_clipbd[open_clip]` with a torchvision that fits your torch. ResNet models need neither."
        ) from error
    given = copy.deepcopy(model_cfg)
    custom = given.pop("custom_text", False) or "hf_model_name" in given.get("text_cfg", {})
    if "multimodal_cfg" in given:
        raise ValueError("Expected a dual encoder, but the checkpoint is a CoCa, which also has a caption decoder.")
    given["text_cfg"]["hf_model_pretrained"] = given["vision_cfg"]["timm_model_pretrained"] = False  # no downloads
    return (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**given)


def is_open_clip(id_or_path: str | os.PathLike, revision: str | None = None) -> bool:
    """Return whether a folder or Hub repository holds an open_clip checkpoint and no model of transformers'.

    A `config.json` without a `model_type` is timm's, as it stands beside EVA-CLIP's checkpoints, and does not count.
    """
    try:
        own = json.loads(resolve_file(id_or_path, "config.json", revision).read_text(encoding="utf-8"))
    except FileNotFoundError:
        own = {}
    if "model_type" in own:
        return False
    return has_file(id_or_path, OPEN_CLIP_CONFIG, revision)


def load_open_clip(
    id_or_path: str | os.PathLike, revision: str | None = None, dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedModel, Any]:
    """Return a model of open_clip's in evaluation mode and a processor for it.

    A ResNet becomes a `CLIPResNetModel` and needs no further package; any other model, EVA-CLIP for instance, runs in
    open_clip. Weights are read without running anything that is in them. The tokenizer is the one beside the weights,
    the one that the configuration names, or OpenAI's.

    Args:
        id_or_path: Folder or Hub id with `open_clip_config.json` and weights beside it.
        revision: Branch, tag or commit on the Hub.
        dtype: Type of the weights in memory.

    Raises:
        FileNotFoundError: If a file is missing.
        ImportError: If the model needs open_clip and it is not installed.
        ValueError: If the weights cannot be read safely or do not fit the configuration.
    """
    described = resolve_file(id_or_path, OPEN_CLIP_CONFIG, revision)
    description = json.loads(described.read_text(encoding="utf-8"))
    model_cfg, preprocess = description["model_cfg"], description.get("preprocess_cfg", {})
    state = read_state_dict(_weights(id_or_path, revision))
    text, vision = model_cfg["text_cfg"], model_cfg["vision_cfg"]
    if isinstance(vision.get("layers"), list):
        activation = "quick_gelu" if model_cfg.get("quick_gelu") else "gelu"
        model: PreTrainedModel = convert_openai_state_dict(state, activation, text.get("heads"))
    else:
        model = OpenCLIPModel(OpenCLIPConfig(description)).to(dtype)
        try:
            model.encoder.load_state_dict(_todays_names(model.encoder, _bare(state)))
        except RuntimeError as error:
            raise ValueError(
                f"Expected the weights of the model that {OPEN_CLIP_CONFIG} names, but {error}"
            ) from error
    beside = has_file(id_or_path, "tokenizer.json", revision)
    tokenizer = str(described.parent) if beside else text.get("hf_tokenizer_name")
    statistics = {name: preprocess[name] for name in ("mean", "std") if name in preprocess}
    size = preprocess.get("size", vision.get("image_size", 224))
    processor = openai_processor(size if isinstance(size, int) else size[0], tokenizer, **statistics)
    if preprocess.get("resize_mode") == "squash":
        processor.image_processor.size = processor.image_processor.crop_size
        processor.image_processor.do_center_crop = False
    _clean(processor.tokenizer, text.get("tokenizer_kwargs", {}).get("clean"))
    return model.to(dtype).eval(), processor


def _clean(tokenizer: Any, how: str | None) -> None:
    """Have a tokenizer lower-case texts, and for `canonicalize` take out punctuation, as open_clip does for SigLIP."""
    if how not in ("canonicalize", "lower"):
        return
    steps = [normalizers.Lowercase()]
    if how == "canonicalize":
        steps += [normalizers.Replace("_", " "), normalizers.Replace(Regex(_PUNCTUATION), "")]
    steps += [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Sequence([*steps, *([backend.normalizer] if backend.normalizer else [])])


def _todays_names(encoder: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights that an older open_clip wrote under the names and shapes of the installed one."""
    from open_clip.model import convert_to_custom_text_state_dict

    if "positional_embedding" in state and hasattr(encoder, "text"):
        state = convert_to_custom_text_state_dict(state)
    state = {name: x for name, x in state.items() if not name.endswith("embeddings.position_ids")}
    for name in ("logit_scale", "logit_bias"):
        if name in state and getattr(encoder, name, None) is not None:
            state[name] = state[name].reshape(getattr(encoder, name).shape)
    return state


def _weights(id_or_path: str | os.PathLike, revision: str | None) -> Path:
    for name in (*OPEN_CLIP_WEIGHTS, _CHECKPOINT_WEIGHTS):  # the last is somebody else's where the first two are there
        try:
            return resolve_file(id_or_path, name, revision)
        except FileNotFoundError as error:
            missing = error
    raise FileNotFoundError(f"Expected weights in {' or '.join(OPEN_CLIP_WEIGHTS)}. {missing}") from missing
