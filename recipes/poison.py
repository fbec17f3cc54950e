# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Only the first stage of `defend.py`: stamp rows of the training pairs and replace their captions.

    accelerate launch recipes/poison.py [CONFIG.yaml] [--section.key value ...]

It writes the poisoned dataset, its manifest and the trigger into `poison/` of the run folder.
"""

import sys
from pathlib import Path

from hf_clipbd.cli import run_stage, script


DEFAULT = Path(__file__).parent / "scenes" / "defend.yaml"

if __name__ == "__main__":
    sys.exit(script("poison.py", __doc__, lambda given: run_stage("poison", given, DEFAULT), sys.argv[1:]))
