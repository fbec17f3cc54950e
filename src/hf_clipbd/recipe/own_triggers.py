# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Triggers of one's own, out of folders or Hub repositories, each by a name that no other has."""

import json
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError

from hf_clipbd.attacks import Attack


def triggers_by_name(folders: Sequence[str]) -> dict[str, Attack]:
    """Return the triggers in these folders or Hub repositories by their names, by folder where names coincide.

    Raises:
        ValueError: If a folder is given twice, or a file in one is broken.
    """
    attacks = [_trigger(folder) for folder in folders]
    names, ends = [attack.name for attack in attacks], told_apart([Path(folder).resolve().parts for folder in folders])
    called = [name if names.count(name) == 1 else end for name, end in zip(names, ends, strict=True)]
    called = called if len(set(called)) == len(called) else ends  # a folder is called as another one's attack
    if len(set(called)) < len(called):
        raise ValueError(f"Expected each trigger once, but got {list(folders)}.")
    return dict(zip(called, attacks, strict=True))


def _trigger(folder: str) -> Attack:
    try:
        return Attack.from_pretrained(folder)
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"Expected a trigger in `{folder}`, but a file of it is broken: {error}.") from error


def told_apart(paths: Sequence[tuple[str, ...]]) -> list[str]:
    """Return the ends of paths, all of one length, the shortest with which no two are the same.

    Example:
        >>> told_apart([("runs", "a", "trigger"), ("runs", "b", "trigger")])
        ['a/trigger', 'b/trigger']
    """
    names: list[str] = []
    for length in range(1, max(map(len, paths), default=1) + 1):
        names = ["/".join(one[-length:]) for one in paths]
        if len(set(names)) == len(names):
            break
    return names
