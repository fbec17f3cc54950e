# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Only the search of `defend.py`: score every row of the poisoned set through the victim's embeddings.

    accelerate launch recipes/detect.py [CONFIG.yaml] [--section.key value ...]

Run `poison.py` and `train_victim.py` first.
"""

import sys
from pathlib import Path

from hf_clipbd.cli import run_stage, script


DEFAULT = Path(__file__).parent / "scenes" / "defend.yaml"

if __name__ == "__main__":
    sys.exit(script("detect.py", __doc__, lambda given: run_stage("detect", given, DEFAULT), sys.argv[1:]))
