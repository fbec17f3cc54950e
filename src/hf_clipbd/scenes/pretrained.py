# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The small clean CLIP that comes with the embedded world."""

from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from transformers import CLIPProcessor, PreTrainedModel

CLEAN_CLIP_FOLDER = Path(__file__).parent / "clean_clip"


def load_clean_clip() -> "tuple[PreTrainedModel, CLIPProcessor]":
    """Return the clean CLIP that was pretrained on balanced scenes, in eval mode, and its processor.

    Raises:
        FileNotFoundError: If the package data is missing.
    """
    if not (CLEAN_CLIP_FOLDER / "config.json").is_file():
        raise FileNotFoundError(
            f"Expected the clean CLIP of the embedded world in `{CLEAN_CLIP_FOLDER}`, but there is none. "
            "Reinstall the package, or make it anew with `python recipes/scenes/pretrain.py`."
        )
    from hf_clipbd.models import load_dual_encoder  # imports torch, which the scenes themselves do without

    return load_dual_encoder(CLEAN_CLIP_FOLDER)
