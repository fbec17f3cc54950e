# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Results for programs, and the commands that come next."""

import argparse
import json
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hf_clipbd.attacks import ATTACKS
from hf_clipbd.attacks.folder import ATTACK_FILE
from hf_clipbd.recipe.zero_shot import TRIGGER_FOLDER
from hf_clipbd.schema import RunRecord


def record_values(record: RunRecord, folder: Path) -> dict[str, Any]:
    """Return a stage's record as `--json` shows it: figures and what lies where."""
    outputs = {name: str(folder / path) for name, path in record.outputs.items()}
    kept = {"stage": record.stage, "folder": str(folder), "metrics": record.metrics, "outputs": outputs}
    return kept | {"seed": record.seed, "seconds": record.seconds, "key": record.key}


def _trigger_flags(triggers: Iterable[str | Path]) -> list[str]:
    return [part for trigger in triggers for part in ("--trigger", str(trigger))]


def _triggers_beside(source: Path) -> list[str]:
    """Return the triggers in a folder that `poison` wrote, nothing for other sources."""
    folder = source / TRIGGER_FOLDER
    several = sorted(path.parent for path in folder.glob(f"*/{ATTACK_FILE}"))
    return list(map(str, [folder] if (folder / ATTACK_FILE).is_file() else several))


def _is_text(trigger: str) -> bool:
    """Return whether a trigger is a local one in captions alone: retrieval measures it, classification does not."""
    path = Path(trigger) / ATTACK_FILE
    attack = json.loads(path.read_text(encoding="utf-8")).get("attack") if path.is_file() else None
    return attack in ATTACKS and not ATTACKS[attack].stamps_pictures


def after_poison(options: argparse.Namespace) -> list[str]:
    """Return the commands that come after `poison`."""
    model, test = ("scenes", "scenes") if options.source == "scenes" else ("MODEL", "LABELLED_IMAGES")
    size = ["--size", str(options.size)] if test == "scenes" and options.size != 64 else []
    victim = options.out.parent / "victim"
    measured = ["--test", test, *_trigger_flags([options.out / "trigger"])]
    if options.config is not None or not ATTACKS[options.attack].stamps_pictures:
        measured = []
    return [_line("train", options.out, "--model", model, *measured, *size, "--out", victim)]


def after_training(options: argparse.Namespace, source: str) -> list[str]:
    """Return the commands that come after `train` and `defend`.

    Args:
        options: The arguments of the command.
        source: The pairs it trained on.
    """
    triggers = options.trigger or _triggers_beside(Path(source)) or ["TRIGGER"]
    in_text = all(map(_is_text, triggers))
    data = "PAIRS" if in_text else options.test or "LABELLED_IMAGES"
    protocol = ["--protocol", "retrieval"] if in_text else []
    size = ["--size", str(options.size)] if data == "scenes" and options.size != 64 else []
    out = options.out.parent
    kept = ["--out", out / f"{options.out.name}-{'retrieval' if in_text else 'ba-asr'}"]
    measured = _line("evaluate", options.out, "--data", data, *protocol, *_trigger_flags(triggers), *size, *kept)
    if options.command == "defend":
        return [measured]
    found = _line("detect", source, "--model", options.out, "--out", out / "found")
    pairs = "scenes" if options.test == "scenes" else "CLEAN_PAIRS"
    chosen = ["--defense", "cleanerclip", "--data", pairs]
    return [measured, found, _line("defend", options.out, *chosen, *size, "--out", out / "defended")]


def after_evaluate(options: argparse.Namespace) -> list[str]:
    """Return the command that comes after `evaluate`, where it left a record: beside that of the undefended model."""
    if options.out is None or options.protocol == "retrieval":
        return []
    return [_line("compare", "UNDEFENDED", options.out, "--baseline", "UNDEFENDED")]


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
