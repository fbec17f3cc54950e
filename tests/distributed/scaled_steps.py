# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Trains as `train_steps.py` does: in chunks, with adapters, from a stream, in CleanerCLIP's other readings, resumed.

The arguments are the folders of a CLIP, of what is written, and of a SigLIP.
"""

import os
import sys

from train_steps import pairs, train


FROZEN = {"freeze_batch_norm": True}
# A checkpoint within the second of two epochs of three steps.
SAVED = {"max_steps": 5, "save_strategy": "steps", "save_steps": 4, "save_total_limit": None}
RUNS = {
    **{f"{name}-whole": (name, FROZEN) for name in ("ft", "cleanclip", "cleanerclip")},
    **{f"{name}-chunked": (name, {**FROZEN, "chunk_size": 3}) for name in ("ft", "cleanclip", "cleanerclip")},
    "accumulated": ("cleanclip", {**FROZEN, "chunk_size": 3, "gradient_accumulation_steps": 2, "max_steps": 1}),
    "adapters": ("cleanclip", {"lora": True, "lora_r": 2}),
    "stream": ("ft", {}),
    "stream-share": ("cleanerclip", {"k_share": 0.9}),
    "alternating-checkpointed": ("cleanerclip", {"subset_terms": "fc", "gradient_checkpointing": True}),
    "learned_scale": ("cleanerclip", {"learned_scale": True, "directions": "t2i"}),
    "augmented": ("cleanerclip", {"fc_images": "augmented", "negatives": "own", "fc_reduction": "sum"}),
    "siglip-warmup": ("safeclip", {"warmup_epochs": 1, "max_steps": 4}),
    "unbroken": ("ft", SAVED),
    "resumed": ("ft", SAVED),
}


if __name__ == "__main__":
    for name, (defense, changes) in RUNS.items():
        rows = pairs().to_iterable_dataset(num_shards=3) if name.startswith("stream") else None
        out, world = f"{sys.argv[2]}/{name}.safetensors", int(os.environ.get("WORLD_SIZE", "1"))
        model = sys.argv[3] if name.startswith("siglip") else sys.argv[1]
        if name == "resumed":
            changes = {**changes, "resume_from_checkpoint": f"{sys.argv[2]}/unbroken.safetensors.run/checkpoint-4"}
        train(model, defense, out, world, rows=rows, **changes)
