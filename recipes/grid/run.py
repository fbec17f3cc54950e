# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Train defences over a grid of settings on finished runs, and print one table from the records.

    accelerate launch recipes/grid/run.py [GRID.yaml] --grid.runs runs/seed0 runs/seed1 [--section.key value ...]

Each run folder needs the stages `poison` and `victim` (`recipes/defend.py` leaves them). A cell is a stage with its
record in RUN/NAME/CELL: a finished one is not trained again, a stopped one goes on from its last epoch, and so a grid
can be stopped and started at will. `--grid.only TITLE ...` trains some blocks only.
"""

import sys
from pathlib import Path

from hf_clipbd.cli import run_grid, script


DEFAULT = Path(__file__).parent / "learning_rate.yaml"

if __name__ == "__main__":
    sys.exit(script("run.py", __doc__, lambda given: run_grid(given, DEFAULT), sys.argv[1:]))
