# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""From YAML and flags to dataclasses: one mapping a section, every unknown key an error that names it."""

import dataclasses
import difflib
import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from transformers.hf_argparser import HfArgumentParser


Section = TypeVar("Section")
MOST_NAMES = 16
"""Names that a message lists where none is close; `TrainingArguments` alone has over a hundred."""


SYNONYMS = {
    "lr": "learning_rate",
    "epochs": "num_train_epochs",
    "num_epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "train_batch_size": "per_device_train_batch_size",
    "wd": "weight_decay",
    "warmup": "warmup_steps",
    "steps": "max_steps",
}
"""What keys of transformers are called elsewhere, which is not how they are spelled."""


class ConfigError(ValueError):
    """A configuration that cannot be meant: an unknown key, a value of the wrong type, a contradiction."""


def nearest(name: str, known: Iterable[str], where: str = "") -> str:
    """Return "; did you mean ...?" for the names closest to `name`, or the list of those known where none is close.

    `where` is the dotted path that goes before each name shown.

    Example:
        >>> nearest("lerning_rate", ["learning_rate", "seed"], "victim")
        '; did you mean `victim.learning_rate`?'
    """
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    shown = [f"`{where}.{one}`" if where else f"`{one}`" for one in close or known]
    if close:
        return f"; did you mean {' or '.join(shown)}?"
    return f"; known are {', '.join(shown)}." if len(shown) <= MOST_NAMES else "."


def check_keys(values: Iterable[str], known: Iterable[str], where: str, what: str = "key") -> None:
    """Raise `ConfigError` for the first of `values` that is not `known`, by its dotted path below `where`."""
    known = set(known)
    for key in values:
        if key not in known:
            path = f"{where}.{key}" if where else key
            meant = SYNONYMS[key] if SYNONYMS.get(key) in known else key
            raise ConfigError(f"Unknown {what} `{path}`{nearest(meant, {meant} & known or known, where)}")


def check_names(values: Iterable[str], known: Iterable[str], what: str) -> None:
    """Raise `ConfigError` for the first of `values` that is not among the `known` values of the option `what`."""
    known = set(known)
    for value in values:
        if value not in known:
            raise ConfigError(f"Unknown {what} {value!r}{nearest(str(value), known)}")


def _section(where: str) -> str:
    return f"Section `{where}`" if where else "Options"


class _SectionParser(HfArgumentParser):
    """The parser of one section; a value that does not fit is a `ConfigError` instead of an exit with usage."""

    def error(self, message: str):
        raise ConfigError(message)


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value) if isinstance(value, (dict, list)) else str(value)


def _as_arguments(parser: HfArgumentParser, values: Mapping[str, Any]) -> list[str]:
    """Return `values` as command-line arguments, so that the parser's own types coerce them ('1e-5' to a float)."""
    actions = {action.dest: action for action in parser._actions}
    arguments = []
    for key, value in values.items():
        if value is None or value == []:  # neither can be written as an argument
            parser.set_defaults(**{key: value})
        elif actions[key].nargs == "+":
            arguments += [f"--{key}", *map(_as_text, value if isinstance(value, list) else [value])]
        else:
            arguments.append(f"--{key}={_as_text(value)}")
    return arguments


def parse_section(cls: type[Section], values: Mapping[str, Any], where: str) -> Section:
    """Return the dataclass `cls` filled with `values` through `HfArgumentParser`, text coerced to each field's type.

    Args:
        cls: A dataclass, `TrainingArguments` and its subclasses among them.
        values: Key -> value as YAML or the command line gives it; None sets a field to None.
        where: Dotted path of the section, for messages.

    Raises:
        ConfigError: If a key is unknown, a value does not fit its type, or the dataclass refuses the values.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"Expected section `{where}` to map keys to values, but got {values!r}.")
    check_keys(values, (field.name for field in dataclasses.fields(cls) if field.init), where)
    parser = _SectionParser(cls, add_help=False, allow_abbrev=False)
    try:
        (section,) = parser.parse_args_into_dataclasses(_as_arguments(parser, values), look_for_args_file=False)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{_section(where)}: {error}") from error
    return section


def call_with(build: Callable[..., Section], values: Mapping[str, Any], where: str) -> Section:
    """Return `build(**values)` for a class that is no dataclass section (an attack, a model configuration).

    Values are read as `typed` says.

    Raises:
        ConfigError: If a key is no argument of `build`, or it refuses the values.
    """
    parameters = inspect.signature(build).parameters.values()
    check_keys(values, [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)], where)
    try:
        return build(**typed(build, values))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{_section(where)}: {error}") from error


def typed(build: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with text read as YAML scalars ('4' is a number, and so is '1e-5').

    Where `build` takes text alone, numbers and truth values are text instead: a class may be called 7, or "none".
    """
    parameters = inspect.signature(build).parameters
    text = {name for name, one in parameters.items() if _is_text(one.annotation)}
    return {key: _texts(value) if key in text else scalar(value) for key, value in values.items()}


def _is_text(annotation: Any) -> bool:
    parts = get_args(annotation)
    return all(map(_is_text, parts)) if parts else annotation in (str, type(None))


def _texts(value: Any) -> Any:
    if isinstance(value, list):
        return [_texts(one) for one in value]
    return _as_text(value) if isinstance(value, (bool, int, float)) else value


def scalar(value: Any) -> Any:
    """Return text from the command line as the number, truth value or None that it spells; anything else unchanged.

    Example:
        >>> [scalar(x) for x in ("4", "1e-5", "true", "null", "cup", 0.5)]
        [4, 1e-05, True, None, 'cup', 0.5]
    """
    if isinstance(value, list):
        return [scalar(one) for one in value]
    if not isinstance(value, str):
        return value
    spelled = {"true": True, "false": False, "null": None, "none": None}
    if value.lower() in spelled:
        return spelled[value.lower()]
    for number in (int, float):
        try:
            return number(value)
        except ValueError:
            continue
    return value


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `over` laid on it, nested mappings merged key by key.

    Example:
        >>> merge({"a": {"x": 1, "y": 2}}, {"a": {"y": 3}})
        {'a': {'x': 1, 'y': 3}}
    """
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return the mapping that a YAML file holds.

    Raises:
        ConfigError: If there is no such file, it is no YAML, or it holds something else than a mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"Expected a YAML configuration at `{path}`, but there is no such file.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"Expected YAML in `{path}`, but it cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"Expected a mapping of sections in `{path}`, but got {type(values).__name__}.")
    return values


def read_flags(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Return the positional arguments and the flags as a nested mapping: `--a.b 1` is `{"a": {"b": "1"}}`.

    `--a.b=1` means the same, several values make a list, a flag without a value is "true", and `null` is None.

    Raises:
        ConfigError: If a flag is given twice or is both a value and a section.

    Example:
        >>> read_flags(["run.yaml", "--victim.learning_rate", "1e-3", "--seed=7"])
        (['run.yaml'], {'victim': {'learning_rate': '1e-3'}, 'seed': '7'})
    """
    positional: list[str] = []
    flags: dict[str, list[str]] = {}
    current = positional
    for argument in arguments:
        if argument.startswith("--") and len(argument) > 2:
            name, equals, value = argument[2:].partition("=")
            name = name.replace("-", "_")
            if name in flags:
                raise ConfigError(f"Expected the flag `--{name}` once, but it was given twice.")
            flags[name] = current = [value] if equals else []
            if equals:
                current = positional
        else:
            current.append(argument)
    nested: dict[str, Any] = {}
    for name, values in flags.items():
        *path, last = name.split(".")
        level = nested
        for part in path:
            level = level.setdefault(part, {})
            if not isinstance(level, dict):
                raise ConfigError(f"Expected `--{name}` to go below a section, but `{part}` was given a value.")
        if last in level:
            raise ConfigError(f"Expected `--{name}` to be a value, but keys below it were given too.")
        texts = [None if text.lower() == "null" else text for text in values]
        level[last] = "true" if not texts else texts[0] if len(texts) == 1 else texts
    return positional, nested


def one_yaml(arguments: Sequence[str], default: str | Path | None, what: str) -> tuple[Path, dict[str, Any]]:
    """Return the YAML that a command line names, positional or by `--config`, and its other flags.

    Args:
        arguments: For instance `["recipes/scenes/defend.yaml", "--victim.learning_rate", "1e-3"]`.
        default: The YAML where the command line names none.
        what: What the YAML holds, for messages.

    Raises:
        ConfigError: If there is none or more than one, or as `read_flags`.
    """
    positional, flags = read_flags(arguments)
    named = flags.pop("config", None)
    files = [*positional, *([] if named is None else [named])] or ([] if default is None else [default])
    if len(files) != 1:
        raise ConfigError(f"Expected one YAML with {what}, but got {list(map(str, files))}.")
    return Path(files[0]), flags
