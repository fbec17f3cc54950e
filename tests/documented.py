# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What README and docs show: their blocks, and whether a command line they show could be meant."""

import argparse
import configparser
import dataclasses
import functools
import re
import shlex
from pathlib import Path
from typing import NamedTuple


ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
DEFAULT_RUN = ROOT / "recipes" / "scenes" / "defend.yaml"
GRIDS = {
    "recipes/grid/run.py": ROOT / "recipes/grid/learning_rate.yaml",
    "recipes/ablations/run.py": ROOT / "recipes/ablations/ablations.yaml",
}
"""Script -> the grid that it takes where its command names none."""
OTHER_PROGRAMS = {"jq"}
"""What a pipe may end in."""


class Shown(NamedTuple):
    """One fenced block: where it stands, its language, its text, and the comment right above it."""

    where: str
    language: str
    text: str
    comment: str


def blocks(page, language=None):
    """Return the fenced blocks of a page, those of one language if it is named."""
    text = page.read_text("utf-8")
    found = []
    for match in re.finditer(r"(?:<!-- (.*?) -->\n)?^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        line = text.count("\n", 0, match.start(2)) + 1
        found.append(Shown(f"{page.relative_to(ROOT)}:{line}", match[2], match[3], match[1] or ""))
    return [block for block in found if language in (None, block.language)]


def commands(text):
    """Return the command lines of a block of shell, joined where they are continued, comments left out."""
    lines = text.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


@functools.cache
def check_command(line):
    """Return what is wrong with a command line, "" if it could be meant: programs, files, flags and keys exist."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError as error:
        return str(error)
    if "|" in words:
        words, after = words[: words.index("|")], words[words.index("|") + 1 :]
        if after[0] not in OTHER_PROGRAMS:
            return f"unknown program {after[0]}"
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    checks = {"hf-clipbd": _hf_clipbd, "accelerate": _accelerate, "python": _python, "make": _make, "pip": _pip}
    if words[0] == "eval":
        return "" if line == 'eval "$(register-python-argcomplete hf-clipbd)"' else "unknown eval"
    if words[0] not in checks:
        return f"unknown program {words[0]}"
    return checks[words[0]](words[1:]) or ""


def _hf_clipbd(words):
    from hf_clipbd.cli.parser import Listed, build_parser

    try:
        options, extra = build_parser().parse_known_args(words)
        options.parser.check_extra(extra)
    except Listed:
        return ""
    except SystemExit as stop:
        return "" if stop.code == 0 else f"wrong usage: {words}"
    if options.command == "run":
        return _configuration(words[1:])
    if options.command == "poison":
        return _attack(options, extra)
    return _training(options, extra) if options.command in ("train", "defend") else ""


def _attack(options, extra):
    from hf_clipbd.attacks import ATTACKS
    from hf_clipbd.recipe.sections import read_flags

    if options.attack not in ATTACKS:
        return f"unknown attack {options.attack}"
    if options.preset is not None and options.preset not in ATTACKS[options.attack].PRESETS:
        return f"unknown preset {options.preset}"
    positional, flags = read_flags(extra)
    known = {one.name for one in dataclasses.fields(ATTACKS[options.attack])}
    unknown = set(flags) - {"attack"} | set(flags.get("attack", {})) - known
    return f"unknown keys {unknown or positional}" if unknown or positional else ""


def _training(options, extra):
    from hf_clipbd.defenses import DEFENSES
    from hf_clipbd.recipe.sections import read_flags

    name = getattr(options, "defense", "ft")
    if name not in DEFENSES:
        return f"unknown defence {name}"
    positional, flags = read_flags(extra)
    unknown = set(flags) - {one.name for one in dataclasses.fields(DEFENSES[name].config)}
    return f"unknown keys {unknown or positional}" if unknown or positional else ""


def _configuration(words):
    from hf_clipbd.cli.console import take_modes
    from hf_clipbd.recipe import ConfigError
    from hf_clipbd.recipe.config import config_from
    from hf_clipbd.recipe.sections import merge, read_flags, read_yaml

    try:
        files, flags = read_flags(take_modes(words)[1])
        files += [flags.pop("config")] if "config" in flags else []
        path = ROOT / files[0] if files else DEFAULT_RUN
        own = path.parent == ROOT / "recipes" and not path.is_file()  # stands for a file of the reader's own
        config_from(merge(read_yaml(DEFAULT_RUN if own else path), flags))
    except ConfigError as error:
        return str(error)
    return ""


@functools.cache
def _launcher():
    from accelerate.commands.launch import launch_command_parser

    return launch_command_parser()


def _accelerate(words):
    options = _launcher().parse_args(words[1:])
    if words[0] != "launch":
        return f"unknown command {words[0]}"
    if options.config_file and not (ROOT / options.config_file).is_file():
        return f"no file {options.config_file}"
    if options.module:
        known = options.training_script == "hf_clipbd.cli"
        return _hf_clipbd(options.training_script_args) if known else f"unknown module {options.training_script}"
    return _script(options.training_script, options.training_script_args)


def _python(words):
    if words[0] == "-m":
        return "" if (words[1], "src") == ("pytest", "src") else f"unknown module {words[1]}"
    return _script(words[0], words[1:])


def _script(script, words):
    if not (ROOT / script).is_file():
        return f"no file {script}"
    if script in ("recipes/defend.py", *(f"recipes/{name}.py" for name in ("poison", "train_victim", "detect"))):
        return _configuration(words)
    if script in GRIDS:
        return _grid(GRIDS[script], words)
    if script == "recipes/reproduce.py" and all(word.startswith("--") for word in words[:1]):
        return _reproduction(words)
    source = (ROOT / script).read_text("utf-8")
    flags = [word.split("=")[0] for word in words if word.startswith("--")]
    unknown = [flag for flag in flags if flag.removeprefix("--").split(".")[-1] not in source]
    return f"unknown flags {unknown}" if unknown else ""


def _reproduction(words):
    from hf_clipbd.cli.console import take_modes
    from hf_clipbd.recipe import ConfigError
    from hf_clipbd.recipe.reproduce_config import load_reproduction

    words = [str(ROOT / word) if word.endswith(".yaml") else word for word in take_modes(words)[1]]
    try:
        load_reproduction(words, ROOT / "recipes" / "reproduce" / "table1.yaml")
    except (ConfigError, FileNotFoundError) as error:
        return str(error)
    return ""


def _grid(default, words):
    from hf_clipbd.cli.console import take_modes
    from hf_clipbd.recipe import ConfigError, load_grid

    words = take_modes(words)[1]
    given = ROOT / words.pop(0) if words and not words[0].startswith("--") else default
    try:
        load_grid([str(given if given.is_file() else default), *words])  # `my_grid.yaml` is the reader's own
    except ConfigError as error:
        return str(error)
    return ""


def _make(words):
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = [word for word in words if "=" not in word]
    variables = [word.split("=")[0] for word in words if "=" in word]
    unknown = [one for one in targets if not re.search(rf"^{one}:", makefile, re.MULTILINE)]
    unknown += [one for one in variables if not re.search(rf"^{one} \?=", makefile, re.MULTILINE)]
    return f"unknown targets or variables {unknown}" if unknown else ""


def _pip(words):
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("command", choices=["install"])
    parser.add_argument("-c", dest="constraints")
    parser.add_argument("-e", action="store_true")
    parser.add_argument("package")
    options = parser.parse_args(words)
    if options.constraints and not (ROOT / options.constraints).is_file():
        return f"no file {options.constraints}"
    match = re.fullmatch(r"\.(?:\[([\w,]+)\])?", options.package)  # the clone: no index has the package
    if not match:
        return f"unknown package {options.package}"
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    unknown = set((match[1] or "").split(",")) - {""} - set(setup["options.extras_require"])
    return f"unknown extras {unknown}" if unknown else ""
