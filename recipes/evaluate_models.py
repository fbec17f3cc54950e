# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Only the measurements of `defend.py`: zero-shot BA, ASR and RA of every model that the run has trained so far.

    accelerate launch recipes/evaluate_models.py [CONFIG.yaml] [--section.key value ...]

Run `poison.py` first; the trigger that it left is what images are stamped with. (A script called `evaluate.py` would
hide the library of that name from every script beside it.)
"""

import sys
from pathlib import Path

from hf_clipbd.cli import run_stage, script


DEFAULT = Path(__file__).parent / "scenes" / "defend.yaml"

if __name__ == "__main__":
    sys.exit(script("evaluate_models.py", __doc__, lambda given: run_stage("evaluate", given, DEFAULT), sys.argv[1:]))
