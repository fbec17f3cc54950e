# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The way to the Hugging Face Hub: cards rendered from records, and a run's models and data in one commit each."""

from typing import Any

from hf_clipbd.hub.cards import CARD_FILE, card_rates, render_dataset_card, render_model_card, write_cards
from hf_clipbd.hub.download import TRAINED_RECORD, load_triggers
from hf_clipbd.hub.golden import copy_records, render_golden
from hf_clipbd.hub.metric_card import render_metric_card
from hf_clipbd.hub.origin import hub_sources
from hf_clipbd.hub.planned import PlannedPush, plan_push
from hf_clipbd.hub.processes import by_main_process
from hf_clipbd.hub.publish import check_login, check_repo_id
from hf_clipbd.hub.push import collect_files, push_run


__all__ = [
    "CARD_FILE",
    "TRAINED_RECORD",
    "PlannedPush",
    "TrainedPublisher",
    "by_main_process",
    "card_rates",
    "check_login",
    "check_repo_id",
    "collect_files",
    "copy_records",
    "hub_sources",
    "load_triggers",
    "plan_push",
    "push_run",
    "render_dataset_card",
    "render_golden",
    "render_metric_card",
    "render_model_card",
    "write_cards",
]


def __getattr__(name: str) -> Any:
    if name == "TrainedPublisher":  # brings transformers' Trainer, which takes seconds, and few callers want it
        from hf_clipbd.hub.trained import TrainedPublisher

        return TrainedPublisher
    raise AttributeError(f"module `{__name__}` has no attribute `{name}`")
