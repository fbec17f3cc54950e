# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""`python -m hf_clipbd.hub RUN FOLDER`: render a run's cards into a folder for people to review (`make cards`)."""

import sys

from hf_clipbd.hub.golden import render_golden


if len(sys.argv) != 3:
    sys.exit("usage: python -m hf_clipbd.hub RUN_FOLDER CARD_FOLDER")
render_golden(sys.argv[1], sys.argv[2])
