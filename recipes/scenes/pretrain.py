# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Pretrain the small clean CLIP of the embedded world, which `hf_clipbd.scenes.load_clean_clip` ships.

    accelerate launch recipes/scenes/pretrain.py [CONFIG.yaml] [--section.key value ...]

The stage `clean` of `pretrain.yaml` and nothing else. A stopped run goes on from its last epoch; model, processor and
record are written to OUTPUT_DIR/clean, whose files are those in `src/hf_clipbd/scenes/clean_clip`.
"""

import sys
from pathlib import Path

from hf_clipbd.cli import run_stage, script


DEFAULT = Path(__file__).with_suffix(".yaml")

if __name__ == "__main__":
    sys.exit(script("pretrain.py", __doc__, lambda given: run_stage("clean", given, DEFAULT), sys.argv[1:]))
