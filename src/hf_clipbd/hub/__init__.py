# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The way to the Hugging Face Hub: cards rendered from records, and a run's models and data in one commit."""

from hf_clipbd.hub.cards import render_dataset_card, render_model_card, write_cards
from hf_clipbd.hub.golden import copy_records, render_golden
from hf_clipbd.hub.push import collect_files, push_run


__all__ = [
    "collect_files",
    "copy_records",
    "push_run",
    "render_dataset_card",
    "render_golden",
    "render_model_card",
    "write_cards",
]
