# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Where things are computed: the state of this process, where its models go, where its scores are computed."""

from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env


PATIENCE = timedelta(days=1)
"""How long processes wait for one that works alone: an optimised trigger or a large poisoned set takes hours."""


def process_state() -> PartialState:
    """Return the state of this process, of a group where it was launched as one of several.

    Processes on processors make a group only where they are asked to: `ACCELERATE_USE_CPU` asks, as it does in a
    training.
    """
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=PATIENCE)


def model_device() -> torch.device:
    """Return where a model goes in this process.

    A processor has no number here: `cpu:0` is where a process of several is said to be, and moving a model there
    copies its weights to other addresses, on which the last bits of what it computes depend.
    """
    device = process_state().device
    return torch.device("cpu") if device.type == "cpu" else device


def scoring_place() -> dict[str, Any]:
    """Return where scores are computed, as `detect_all` and `Reference` take it: a GPU if there is one, all processes.

    The detectors need double precision, so that another accelerator embeds only.
    """
    state = PartialState()
    return {"device": state.device if state.device.type == "cuda" else "cpu", "distributed": state.num_processes > 1}
