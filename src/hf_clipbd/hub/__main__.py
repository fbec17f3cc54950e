# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""`python -m hf_clipbd.hub RUN FOLDER [METRIC]`: render a run's cards for people to review, and the metric's own one.

`make cards` calls it; METRIC is the file of the card that the metric's Space shows, which has no figures of a run.
"""

import sys

from hf_clipbd.hub.golden import render_golden
from hf_clipbd.hub.metric_card import render_metric_card


if len(sys.argv) not in (3, 4):
    sys.exit("usage: python -m hf_clipbd.hub RUN_FOLDER CARD_FOLDER [METRIC_CARD]")
render_golden(sys.argv[1], sys.argv[2])
if len(sys.argv) == 4:
    render_metric_card().save(sys.argv[3])
