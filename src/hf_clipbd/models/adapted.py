# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""A dual encoder kept as low-rank adapters: its base is loaded, the adapters are put onto it and merged in."""

import json
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hf_clipbd.models.files import has_file, resolve_file


if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def is_adapted(id_or_path: str | os.PathLike, revision: str | None = None) -> bool:
    """Return whether a folder or Hub repository holds adapters and no model of its own."""
    return not has_file(id_or_path, "config.json", revision) and has_file(id_or_path, CONFIG, revision)


def load_adapted(
    id_or_path: str | os.PathLike,
    revision: str | None,
    load_base: "Callable[[str, str | None], tuple[PreTrainedModel, Any]]",
) -> "tuple[PreTrainedModel, Any]":
    """Return the base model with the adapters merged in, and its processor.

    Args:
        id_or_path: Folder or Hub id of the adapters; `adapter_config.json` names their base and its revision.
        revision: Branch, tag or commit of the adapters on the Hub.
        load_base: Given the base's Hub id or folder and revision, returns it with its processor.

    Raises:
        FileNotFoundError: If the adapters' weights or their base are not there.
        ValueError: If the configuration names no base.

    Reference:
        Hu et al., LoRA (arXiv 2106.09685): merged weights are W + (alpha / r) B A.
    """
    from peft import PeftModel  # takes a second, and few models want it

    config = resolve_file(id_or_path, CONFIG, revision)
    values = json.loads(config.read_text(encoding="utf-8"))
    folder = resolve_file(id_or_path, WEIGHTS, revision).parent
    base = values.get("base_model_name_or_path")
    if not base:
        raise ValueError(f"Expected `{CONFIG}` of {str(id_or_path)!r} to name its base model, but it names none.")
    model, processor = load_base(base, values.get("revision"))
    return PeftModel.from_pretrained(model, str(folder)).merge_and_unload().eval(), processor
