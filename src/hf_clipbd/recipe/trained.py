# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What a training leaves in the folder of its stage: the model, its processor, its adapters, and logs."""

import shutil
from pathlib import Path
from typing import Any

from accelerate import PartialState

from hf_clipbd.hub.adapters import ADAPTER
from hf_clipbd.models.open_clip import OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS, OpenCLIPModel
from hf_clipbd.recipe.checkpoints import KEY_FILE
from hf_clipbd.trainer import CLIPTrainer


def keep_logs(checkpoints: Path, folder: Path) -> None:
    """Copy what trackers wrote beside the checkpoints of a training into `folder`: TensorBoard's `runs`, for one.

    They are no longer there once the stage is done, and still there where it is killed before that.
    """
    for path in checkpoints.iterdir():
        if path.name != KEY_FILE and not path.name.startswith("checkpoint-"):
            if path.is_dir() and not path.is_symlink():
                shutil.copytree(path, folder / path.name, symlinks=True)
            else:
                shutil.copy2(path, folder / path.name, follow_symlinks=False)


def save_trained(trainer: CLIPTrainer, trained: Any, processor: Any, folder: Path) -> dict[str, str]:
    """Save a trained model, its processor and its adapters from the main process, and return what lies where."""
    if PartialState().is_main_process:
        trained.save_pretrained(folder)
        _save_processor(processor, folder)
        if trainer.args.lora:
            trainer.accelerator.unwrap_model(trainer.model).save_pretrained(folder / ADAPTER)
    outputs = {"model": "model.safetensors", "config": "config.json"}
    if isinstance(trained, OpenCLIPModel):
        outputs = {"model": OPEN_CLIP_WEIGHTS[0], "config": OPEN_CLIP_CONFIG}
    return {**outputs, "adapter": ADAPTER} if trainer.args.lora else outputs


def _save_processor(processor: Any, folder: Path) -> None:
    """Save a processor without what calls leave in its tokenizer.

    A training that goes on from its last step has not called it, and is to save the same bytes as an unbroken one.
    """
    backend = getattr(processor.tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()
    processor.save_pretrained(folder)
