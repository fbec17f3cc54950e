# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Trains each model folder with CleanCLIP on however many processes it is launched with: OUT FOLDER..."""

import os
import sys
from pathlib import Path

from train_steps import train


if __name__ == "__main__":
    for folder in sys.argv[2:]:
        out = f"{sys.argv[1]}/{Path(folder).name}.safetensors"
        train(folder, "cleanclip", out, int(os.environ.get("WORLD_SIZE", "1")))
