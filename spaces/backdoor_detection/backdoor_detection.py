# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The metric as `evaluate.load` finds it: that of the package, by name."""

import hf_clipbd.detection.metric


class BackdoorDetection(hf_clipbd.detection.metric.BackdoorDetection):
    """Detection performance of suspicion scores; see `hf_clipbd.detection.BackdoorDetection`."""
