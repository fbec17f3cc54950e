# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The checkpoints of a stopped training: whose they are, which are whole, and what becomes of another one's."""

import json
import logging
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from hf_clipbd.schema import write_json


logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
ASIDE = ".checkpoints"
"""In the folder of a stage: the checkpoints of other settings, until those asked for have one of their own."""
KEY_FILE = "key.json"


def claim(stage: Path, key: str, name: str) -> None:
    """Leave whole checkpoints of `key` alone in the folder of a stage, with a note of their seconds.

    Those of another key are set aside, so that a value which is mistyped and put right at once costs nothing: they are
    taken up again where their key is asked for, and removed by `note_seconds` once there is a new one.
    """
    folder, aside = stage / CHECKPOINTS, stage / ASIDE
    if folder.is_dir() and read_key(folder).get("key") != key:
        if whole(folder) and read_key(aside).get("key") != key:
            logger.info("%-20s checkpoints of another configuration go once this one has its own", name)
            remove(aside)
            os.replace(folder, aside)
        else:
            remove(folder)
    if not folder.is_dir() and read_key(aside).get("key") == key:
        os.replace(aside, folder)
    remove(*(set(folder.glob("checkpoint-*")) - set(whole(folder).values())))


def whole(folder: Path) -> dict[int, Path]:
    """Return step -> checkpoint, of those that a training goes on from as if it had never been stopped.

    Their `trainer_state.json`, written last, can be read; no file of tensors breaks off, as a machine that crashed may
    leave it; and the optimiser's state is there, without which transformers would go on all the same.
    """
    found = {}
    for path in folder.glob("checkpoint-*"):
        step = _read_json(path / "trainer_state.json").get("global_step")
        if isinstance(step, int) and _has_optimizer(path) and not any(map(_breaks_off, path.iterdir())):
            found[step] = path
    return found


def _has_optimizer(checkpoint: Path) -> bool:
    """Return whether the optimiser's state is there: a file, FSDP's file or folder, or DeepSpeed's folder."""
    return any(any(checkpoint.glob(name)) for name in ("optimizer*", "global_step*"))


def _breaks_off(path: Path) -> bool:
    """Return whether a file of tensors ends before what it says that it holds; only its index is read."""
    if path.suffix in (".pt", ".pth", ".bin"):
        return not zipfile.is_zipfile(path)  # the index of torch's files is at their end
    if path.suffix != ".safetensors":
        return False
    try:
        with safe_open(path, "pt"):
            return False
    except SafetensorError:
        return True


def read_key(folder: Path) -> dict[str, Any]:
    """Return the `key` that the checkpoints in a folder belong to and their `seconds`, or nothing."""
    return _read_json(folder / KEY_FILE)


def _read_json(path: Path) -> dict[str, Any]:
    """Return what a file says, nothing where it is missing or was cut short."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def note_seconds(stage: Path, key: str, seconds: float) -> None:
    """Write beside the checkpoints whose they are and how many seconds they took so far."""
    write_json(stage / CHECKPOINTS / KEY_FILE, {"key": key, "seconds": round(seconds, 3)})
    if whole(stage / CHECKPOINTS):
        remove(stage / ASIDE)


def remove(*paths: Path) -> None:
    """Remove files and whole folders, those of them that are there; of a link the link alone."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
