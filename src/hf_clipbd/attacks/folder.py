# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""How an attack is kept: its parameters, its pattern, and a picture of what it stamps, checked when it is loaded."""

import json
import os
from collections.abc import Mapping
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
from safetensors.numpy import load_file, save_file

from hf_clipbd import __version__
from hf_clipbd.attacks.checks import check_loadable
from hf_clipbd.schema import write_json


if TYPE_CHECKING:
    from hf_clipbd.attacks.base import Attack

ATTACK_FILE = "attack.json"
PATTERN_FILE = "pattern.safetensors"
PICTURE_FILE = "trigger.png"
PREVIEW_SIDE = 224
LARGEST_SIDE = 4096
"""Of a canvas, a patch or a grid in a trigger that is loaded; beyond it a stranger's file could exhaust the memory."""


def preview_of(attack: "Attack") -> np.ndarray:
    """Return what `Attack.preview` does."""
    chart = _chart(_preview_side(attack))
    return np.concatenate([chart, attack(chart)], axis=1)


def _preview_side(attack: "Attack") -> int:
    return attack.canvas.size if attack.canvas and attack.canvas.mode != "native" else PREVIEW_SIDE


def save_attack(attack: "Attack", folder: str | os.PathLike) -> Path:
    """Write what `Attack.save_pretrained` says."""
    from hf_clipbd.attacks import ATTACKS

    check_loadable(attack, ATTACKS)
    folder = Path(folder)
    values = {"attack": attack.name, "parameters": attack.parameters(), "version": __version__}
    _check_sides(values["parameters"])
    picture = attack.preview()
    if not np.array_equal(picture, attack.preview()):
        raise ValueError(
            f"Expected `{type(attack).__name__}.stamp` to stamp the same row alike each time, but it does not. Draw "
            "what differs from row to row from `rng` alone, and put a network into evaluation mode."
        )
    write_json(folder / ATTACK_FILE, values)
    own = {field.name: getattr(attack, field.name) for field in fields(attack)}
    tensors = {name: value for name, value in own.items() if isinstance(value, np.ndarray)}
    if (pattern := attack.fixed_pattern(len(picture), len(picture))) is not None:
        tensors["stamped_pattern"] = pattern
    (folder / PATTERN_FILE).unlink(missing_ok=True)  # that of another attack
    if tensors:
        save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, folder / PATTERN_FILE)
    PIL.Image.fromarray(picture).save(folder / PICTURE_FILE)
    return folder


def load_attack(
    wanted: type["Attack"], id_or_path: str | os.PathLike, revision: str | None, repo_type: str
) -> "Attack":
    """Return the attack of the class `wanted` that `Attack.from_pretrained` says."""
    from hf_clipbd.attacks import ATTACKS
    from hf_clipbd.models.files import resolve_file

    values = json.loads(resolve_file(id_or_path, ATTACK_FILE, revision, repo_type).read_text(encoding="utf-8"))
    if values.get("attack") not in ATTACKS:
        raise ValueError(
            f"Expected an attack among {sorted(ATTACKS)}, but got {values.get('attack')!r}. If it is one "
            "of your own, import first what puts its class into `ATTACKS`."
        )
    kind = ATTACKS[values["attack"]]
    if not issubclass(kind, wanted):
        raise TypeError(f"Expected {wanted.__name__} in {id_or_path}, but it holds {kind.__name__}. Use `Attack`.")
    parameters = dict(values["parameters"])
    unknown = sorted(set(parameters) - {field.name for field in fields(kind)})
    if unknown:
        raise ValueError(f"Expected parameters of {kind.__name__}, but got unknown {unknown}.")
    _check_sides(parameters)
    arrays = [name for name, value in parameters.items() if isinstance(value, Mapping) and "tensor" in value]
    if arrays:
        tensors = load_file(resolve_file(id_or_path, PATTERN_FILE, revision, repo_type))
        parameters |= {name: tensors[name] for name in arrays}
    attack = kind.from_files(parameters, lambda name: resolve_file(id_or_path, name, revision, repo_type))
    _check_preview(attack, resolve_file(id_or_path, PICTURE_FILE, revision, repo_type))
    return attack


def _check_sides(parameters: Mapping[str, Any]) -> None:
    """Raise `ValueError` if a canvas, a patch or a grid is too large, before anything of that size is made."""
    canvas = parameters.get("canvas") or {}
    sides = {name: one for name, one in parameters.items() if name != "seed"}
    sides |= {"canvas": canvas.get("size")} if isinstance(canvas, Mapping) and canvas.get("mode") != "native" else {}
    for name, side in sides.items():
        if isinstance(side, (int, float)) and side > LARGEST_SIDE:
            raise ValueError(f"Expected a trigger whose {name} is at most {LARGEST_SIDE}, but got {side}.")


def _check_preview(attack: "Attack", path: Path) -> None:
    side = _preview_side(attack)
    try:
        with PIL.Image.open(path) as picture:
            if picture.size != (2 * side, side):  # known from the header
                raise ValueError(
                    f"Expected {PICTURE_FILE} in {path.parent} to show a canvas of {side} px twice, {2 * side} × "
                    f"{side} px, but it has {picture.width} × {picture.height}. The files do not belong together."
                )
            saved = np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise ValueError(f"Expected a picture in {path}, but got {type(error).__name__}: {error}") from error
    apart = np.abs(saved.astype(int) - attack.preview()).max()
    if apart > 1:  # one level: floating-point sums may round differently on another processor
        raise ValueError(
            f"Expected the trigger in {path.parent} to stamp what its {PICTURE_FILE} shows, but pixels are up to "
            f"{apart} levels apart. The files do not belong together, or this version of hf_clipbd "
            f"({__version__}) stamps differently."
        )


@lru_cache(maxsize=4)
def _chart(side: int) -> np.ndarray:
    """Return colours that run smoothly and a grid of lines, so that a patch, a wave and a warp all show."""
    rows, columns = np.mgrid[0:side, 0:side]
    chart = np.stack([rows, columns, (rows + columns) / 2], axis=-1) * (160 / side) + 48
    spacing = max(4, side // 8)
    chart[(rows % spacing == spacing // 2) | (columns % spacing == spacing // 2)] = 24
    return chart.round().astype(np.uint8)
