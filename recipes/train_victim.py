# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Only the victim of `defend.py`: fine-tune the clean model on the pairs that `poison.py` has poisoned.

    accelerate launch recipes/train_victim.py [CONFIG.yaml] [--section.key value ...]

Where the configuration says `world.clean_model: train`, the clean model is trained first.
"""

import sys
from pathlib import Path

from hf_clipbd.cli import run_stage, script


DEFAULT = Path(__file__).parent / "scenes" / "defend.yaml"

if __name__ == "__main__":
    sys.exit(script("train_victim.py", __doc__, lambda given: run_stage("victim", given, DEFAULT), sys.argv[1:]))
