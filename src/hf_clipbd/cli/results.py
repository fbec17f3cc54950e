# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Results for programs, and the commands that come next."""

import argparse
import shlex
from pathlib import Path
from typing import Any

from hf_clipbd.schema import RunRecord


def record_values(record: RunRecord, folder: Path) -> dict[str, Any]:
    """Return a stage's record as `--json` shows it: figures and what lies where."""
    outputs = {name: str(folder / path) for name, path in record.outputs.items()}
    kept = {"stage": record.stage, "folder": str(folder), "metrics": record.metrics, "outputs": outputs}
    return kept | {"seed": record.seed, "seconds": record.seconds, "key": record.key}


def after_poison(options: argparse.Namespace) -> list[str]:
    """Return the commands that come after `poison`."""
    model, test = ("scenes", "scenes") if options.source == "scenes" else ("MODEL", "LABELLED_IMAGES")
    size = ["--size", str(options.size)] if test == "scenes" and options.size != 64 else []
    victim = options.out.parent / "victim"
    measured = ["--test", test, "--trigger", str(options.out / "trigger")] if options.config is None else []
    return [_line("train", options.out, "--model", model, *measured, *size, "--out", victim)]


def after_training(options: argparse.Namespace, source: str) -> list[str]:
    """Return the commands that come after `train` and `defend`.

    Args:
        options: The arguments of the command.
        source: The pairs it trained on.
    """
    data = options.test or "LABELLED_IMAGES"
    triggers = [part for trigger in options.trigger or ["TRIGGER"] for part in ("--trigger", trigger)]
    size = ["--size", str(options.size)] if data == "scenes" and options.size != 64 else []
    out = options.out.parent
    measured = _line(
        "evaluate", options.out, "--data", data, *triggers, *size, "--out", out / f"{options.out.name}-ba-asr"
    )
    if options.command == "defend":
        return [measured]
    found = _line("detect", source, "--model", options.out, "--out", out / "found")
    pairs = "scenes" if options.test == "scenes" else "CLEAN_PAIRS"
    chosen = ["--defense", "cleanerclip", "--data", pairs]
    return [measured, found, _line("defend", options.out, *chosen, *size, "--out", out / "defended")]


def after_evaluate(options: argparse.Namespace) -> list[str]:
    """Return the command that comes after `evaluate`, where it left a record."""
    if options.out is None or options.protocol == "retrieval":
        return []
    return [_line("compare", options.out, "OTHER_EVALUATION", "--baseline", options.out.stem)]


def after_detect(options: argparse.Namespace, outputs: dict[str, str]) -> list[str]:
    """Return the command that comes after `detect`: training without the rows that were removed."""
    if "filtered" not in outputs:
        return []
    return [
        _line(
            "train", options.out / outputs["filtered"], "--model", "MODEL", "--out", options.out.parent / "retrained"
        )
    ]


def _line(*parts: Any) -> str:
    return "hf-clipbd " + shlex.join(map(str, parts))
