# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Templates of cards and report, what they say about each method, and what must never leave the machine."""

import re
from collections.abc import Iterable
from functools import cache
from importlib import resources
from typing import Any

import jinja2
import yaml

from hf_clipbd.schema import TOKEN


_WORD = r"(?:[^\s/'\"]|(?<=\w)'(?=\w))+"
_FOLDER = rf"{_WORD}(?:(?<![,;:.]) (?![-~]){_WORD})*(?<![:=])/+"  # rather a word too many goes than one stays
_NAME = r"(?:[^\s/'\",;:]|(?<=\w)'(?=\w))+"
_LOCAL_PATH = re.compile(
    rf"(?:file:(?://[\w.-]*(?=/))?|(?<![\w/.…]))(?!(?<=:)//)(?:~[\w.-]*)?/+(?:{_FOLDER})*({_NAME})/*"
)
_WINDOWS_PATH = re.compile(r"(?<!\w)(?:[A-Za-z]:|\\)\\(?:[^\\/:*?\"<>|\r\n]+\\)*([^\\/:*?\"<>|\s',;]+)\\?")


def percent(share: float, digits: int = 1) -> str:
    """Return a share in [0, 1] as people read it, in percent without the sign.

    Example:
        >>> percent(0.9128)
        '91.3'
    """
    return f"{100 * share:.{digits}f}"


def public(value: Any) -> Any:
    """Return JSON-able `value` without what only concerns this machine: folders above a path's last name, Hub tokens.

    Where a text goes on after a path cannot be told from a folder with spaces in its name, so what stands between two
    of its slashes goes, too. Relative paths stay.

    Args:
        value: Any nesting of dictionaries, lists and plain values.

    Example:
        >>> public({"command": "run --output_dir /home/eve/runs/a --seed 0", "data": "file:///home/eve/my data/x"})
        {'command': 'run --output_dir …/a --seed 0', 'data': '…/x'}
    """
    if isinstance(value, dict):
        return {public(name): public(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [public(one) for one in value]
    if isinstance(value, str):
        return TOKEN.sub("hf_…", _WINDOWS_PATH.sub(r"…/\1", _LOCAL_PATH.sub(r"…/\1", value)))
    return value


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as one level of dotted names; unset ones (None) are left out.

    Example:
        >>> flat({"seed": 0, "victim": {"epochs": 2, "note": None}})
        {'seed': 0, 'victim.epochs': 2}
    """
    settings: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            settings |= flat(value, f"{prefix}{name}.")
        elif value is not None:
            settings[f"{prefix}{name}"] = value
    return settings


@cache
def _notes() -> dict[str, dict[str, Any]]:
    return yaml.safe_load(resources.files(__name__).joinpath("methods.yaml").read_text(encoding="utf-8"))


def method(name: str) -> dict[str, Any]:
    """Return what people are told about a model, attack, defence or detector of this name.

    Returns:
        `label` (for headings), `summary` (a sentence or two), `reconstructed` (sentences on what the paper leaves
        open and we filled in), `papers` (keys of `papers`). A name of the user's own is its own label.

    Example:
        >>> method("cleanerclip")["label"]
        'CleanerCLIP'
    """
    own = f"`{name}` is none of the methods that this package describes; see its own documentation."
    described = _notes()["methods"].get(name, {"summary": own, "reconstructed": [own]})
    return {"label": name, "reconstructed": [], "papers": [], **described}


def objective(name: str) -> dict[str, Any]:
    """Return what people are told about what a victim was trained with: `name`, `summary` and `papers`.

    Example:
        >>> objective("mmcl")["summary"]
        'the symmetric CLIP loss'
    """
    own = {"summary": f"the objective `{name}`, which this package does not describe", "papers": []}
    return {"name": name, **_notes()["objectives"].get(name, own)}


def described_methods() -> list[str]:
    """Return the names that `method` knows more about than the name."""
    return sorted(_notes()["methods"])


def papers(*names: str, keys: Iterable[str] = ()) -> list[dict[str, str]]:
    """Return the papers behind methods and of these `keys`, each once.

    Returns:
        For each `key`, `title`, `authors`, `venue`, `arxiv`, `year`, `kind`.
    """
    keys = dict.fromkeys([*(key for name in names for key in method(name)["papers"]), *keys])
    return [{"key": key, **_notes()["papers"][key]} for key in keys]


@cache
def environment() -> jinja2.Environment:
    """Return the strict environment of all templates: an undefined name is an error, HTML is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hf_clipbd", "templates"),
        undefined=jinja2.StrictUndefined,
        autoescape=jinja2.select_autoescape(enabled_extensions=("html",), default=False),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["percent"] = percent
    return environment
