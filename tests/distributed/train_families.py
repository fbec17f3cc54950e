# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Trains each model folder with each defence on however many processes it is launched with: OUT FOLDER...

Beside what `train_steps` writes, each file says how far the embeddings of the saved and loaded model are from those of
the trained one.
"""

import os
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from train_steps import pairs, train


sys.path.insert(0, str(Path(__file__).parents[1]))  # open_clip's tiny architectures have to be known to timm

import tiny_families  # noqa: E402, F401
from hf_clipbd.features import embed_dataset  # noqa: E402
from hf_clipbd.models import load_dual_encoder  # noqa: E402


def gap_after_loading(trainer, folder: str) -> float:
    """Load what was saved and return the largest gap between embeddings before and after."""
    rows = pairs(6)
    kept = embed_dataset(trainer.accelerator.unwrap_model(trainer.model), trainer.processing_class, rows)
    again = embed_dataset(*load_dual_encoder(folder, dtype=torch.float64), rows)
    return max(float(np.abs(again[name] - kept[name]).max()) for name in kept)


if __name__ == "__main__":
    rows, world = pairs(), int(os.environ.get("WORLD_SIZE", "1"))
    for folder in sys.argv[2:]:
        for defense in ("cleanerclip", "par", "roclip", "safeclip"):  # CleanerCLIP's terms have those of the others
            out = f"{sys.argv[1]}/{Path(folder).name}.{defense}.safetensors"
            trainer = train(folder, defense, out, world, rows=rows, max_steps=2)
            trainer.save_model(out + ".saved")  # every process calls it
            trainer.accelerator.wait_for_everyone()
            if trainer.is_world_process_zero():
                gap = gap_after_loading(trainer, out + ".saved")
                save_file({**load_file(out), "gap": torch.tensor(gap)}, out)
