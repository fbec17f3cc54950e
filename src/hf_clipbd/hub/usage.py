# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What loads a model and how it is called, by its type, as its card tells."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES

from hf_clipbd.models.open_clip import OPEN_CLIP_CONFIG, OpenCLIPConfig
from hf_clipbd.models.text_input import FIXED_LENGTH


@dataclass(frozen=True)
class Usage:
    """How a model of one type is loaded and called.

    Args:
        library: What loads it: transformers, open_clip or, for our architecture, hf_clipbd.
        padded: Whether every text is padded to the model's length, and the padding is read, as SigLIP wants it.
        sigmoid: Whether each logit is a probability of its own, and not one of a softmax over the texts.
        in_pipeline: Whether transformers' zero-shot pipeline knows its type.
    """

    library: str
    padded: bool = False
    sigmoid: bool = False
    in_pipeline: bool = False

    @classmethod
    def of(cls, model_type: str, description: Mapping[str, Any] | None = None) -> "Usage":
        """Return the usage of a model.

        Args:
            model_type: As in its configuration.
            description: What stands in `open_clip_config.json`, of a model of open_clip's.

        Example:
            >>> Usage.of("siglip")
            Usage(library='transformers', padded=True, sigmoid=True, in_pipeline=True)
        """
        libraries = {"clip_resnet": "hf_clipbd", OpenCLIPConfig.model_type: "open_clip"}
        padded = model_type in FIXED_LENGTH
        return cls(
            library=libraries.get(model_type, "transformers"),
            padded=padded,
            sigmoid=padded or "init_logit_bias" in (description or {}).get("model_cfg", {}),
            in_pipeline=model_type in MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        )

    @classmethod
    def of_folder(cls, folder: Path) -> "Usage":
        """Return the usage of the model in a folder.

        Raises:
            FileNotFoundError: If there is no configuration of a model.
        """
        config, description = (_read(folder / name) for name in ("config.json", OPEN_CLIP_CONFIG))
        if "model_type" in (config or {}):
            return cls.of(config["model_type"])
        if description is not None:
            return cls.of(OpenCLIPConfig.model_type, description)
        raise FileNotFoundError(
            f"Expected a model's `config.json` or `{OPEN_CLIP_CONFIG}` in `{folder}`. Train it first."
        )

    @classmethod
    def of_model(cls, model: Any) -> "Usage":
        """Return the usage of a model in memory."""
        return cls.of(model.config.model_type, getattr(model.config, "description", None))


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
