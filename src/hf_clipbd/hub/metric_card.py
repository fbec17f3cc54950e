# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The card of the detection metric: that of its Space, and with the figures of a run for people to review."""

import os

from huggingface_hub import SpaceCard, SpaceCardData

from hf_clipbd.detection.revisions import recorded_name
from hf_clipbd.hub.origin import Origin
from hf_clipbd.run_folder import RunFolder
from hf_clipbd.templates import environment, method


FIGURES = ("auroc", "auprc", "fpr_at_95_tpr", "precision", "recall", "n", "n_poisoned")
GRADIO = "6.31.0"
"""Version of gradio that the Space was looked at with."""


def render_metric_card(run_folder: str | os.PathLike | None = None) -> SpaceCard:
    """Return the card of the metric `backdoor_detection`.

    Args:
        run_folder: A run whose stage `detect` is finished, for a table of what the detectors reached there; none by
            default, as in `spaces/backdoor_detection/README.md`.

    Raises:
        FileNotFoundError: If stage `detect` left no record.
        ValueError: If a figure is missing from it.
    """
    data = SpaceCardData(
        title="Backdoor Detection",
        emoji="🔎",
        colorFrom="blue",
        colorTo="red",
        sdk="gradio",
        sdk_version=GRADIO,
        app_file="app.py",
        pinned=False,
        license="apache-2.0",
        tags=["evaluate", "metric"],
        description="How well suspicion scores tell poisoned image-text pairs from clean ones.",
    )
    context = {"searched": None}
    if run_folder is not None:
        run = RunFolder(run_folder)
        searched, rates = (run.metric("detect", name) for name in ("detectors", "rates"))
        for name, one in [*searched.items(), *(item for by_name in rates.values() for item in by_name.items())]:
            missing = [figure for figure in FIGURES if figure not in one]
            if missing:
                raise ValueError(
                    f"Expected `{missing[0]}` of `{name}` in the record of stage `detect`, but it has {sorted(one)}. "
                    "Run that stage again."
                )
        settings = run.record("detect").config
        methods = {name: method(recorded_name(name, settings)) for name in searched}
        context = {
            "searched": searched,
            "rates": rates,
            "labels": {name: one["label"] for name, one in methods.items()},
            "summaries": {name: one["summary"] for name, one in methods.items()},
            "attack": method(run.manifest.attack),
            "manifest": run.manifest,
            "origin": Origin.of(run),
            "record": run.record("detect"),
        }
    return SpaceCard(environment().get_template("metric.md").render(card_data=data.to_yaml(), **context))
