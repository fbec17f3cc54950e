# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Trains as `train_steps.py` does, whole batches beside chunks, with adapters, and from a stream."""

import os
import sys

from train_steps import pairs, train


FROZEN = {"freeze_batch_norm": True}
RUNS = {
    **{f"{name}-whole": (name, FROZEN) for name in ("ft", "cleanclip", "cleanerclip")},
    **{f"{name}-chunked": (name, {**FROZEN, "chunk_size": 3}) for name in ("ft", "cleanclip", "cleanerclip")},
    "accumulated": ("cleanclip", {**FROZEN, "chunk_size": 3, "gradient_accumulation_steps": 2, "max_steps": 1}),
    "adapters": ("cleanclip", {"lora": True, "lora_r": 2}),
    "stream": ("ft", {}),
}


if __name__ == "__main__":
    for name, (defense, changes) in RUNS.items():
        rows = pairs().to_iterable_dataset(num_shards=3) if name == "stream" else None
        out, world = f"{sys.argv[2]}/{name}.safetensors", int(os.environ.get("WORLD_SIZE", "1"))
        train(sys.argv[1], defense, out, world, rows=rows, **changes)
