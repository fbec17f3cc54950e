# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""CleanerCLIP's ablations on finished runs: λ2/λ1, five pairs of temperatures, K, and ASR by epoch.

    accelerate launch recipes/ablations/run.py [GRID.yaml] --grid.runs runs/seed0 runs/seed1 [--section.key value ...]

The grid of `recipes/grid/run.py` with another YAML: a cell is a stage of its run with its record, a finished one is
not trained again, a stopped one goes on from its last epoch. Tables and figures are rendered from the records after
each cell. `--grid.only "Temperatures"` trains one block only.
"""

import sys
from pathlib import Path

from hf_clipbd.cli import run_grid, script


DEFAULT = Path(__file__).parent / "ablations.yaml"

if __name__ == "__main__":
    sys.exit(script("run.py", __doc__, lambda given: run_grid(given, DEFAULT), sys.argv[1:]))
