# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The parser of `hf-clipbd` and of its subcommands; it imports nothing heavy, so that help comes at once."""

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from hf_clipbd import __version__
from hf_clipbd.cli.texts import DESCRIPTION, EPILOG, GROUPS, TEXTS


Lines = Callable[[], Iterable[str]]
TAKES_FLAGS = ("run", "poison", "train", "defend")
"""Subcommands whose further flags are keys of a configuration."""
PLANNED = ("run", "poison", "train", "defend", "detect", "push")
"""Subcommands that show their plan with `--dry_run`."""


class Listed(Exception):
    """A flag that lists something was met: nothing else on the command line matters."""

    def __init__(self, lines: Lines):
        super().__init__()
        self.lines = lines


class Listing(argparse.Action):
    """A flag that shows a list and stops, whatever else is missing.

    Args:
        lines: Gives the list.
    """

    def __init__(self, option_strings: Sequence[str], dest: str, lines: Lines, help: str | None = None):
        super().__init__(option_strings, dest=argparse.SUPPRESS, default=argparse.SUPPRESS, nargs=0, help=help)
        self.lines = lines

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Leave the parser."""
        raise Listed(self.lines)


class CommandParser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line."""

    given: Sequence[str] = ()
    """The arguments that are parsed: of a subcommand those after its name."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse what is known, as `argparse` does."""
        self.given = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Leave with status 2 after one line on standard error, which names a misspelt flag where one is missing."""
        if "required" in message:
            message += self._misspelt(re.findall(r"--\w[\w-]*", message))
        end = "" if message.endswith(("?", ".")) else "."
        self.exit(2, f"{self.prog}: error: {message}{end} See `{self.prog} --help`.\n")

    def _misspelt(self, missing: Sequence[str]) -> str:
        """Return which unknown flag may be one of those that are missing, "" for none."""
        known = {option for action in self._actions for option in action.option_strings}
        flags = [argument.split("=")[0] for argument in self.given if argument.startswith("--")]
        for flag in flags:
            close = difflib.get_close_matches(flag, missing, n=1)
            if flag not in known and close:
                return f"; by `{flag}` did you mean `{close[0]}`?"
        return ""

    def group(self, title: str) -> argparse._ArgumentGroup:
        """Return the group of options of this title, made where it is not there yet."""
        there = [group for group in self._action_groups if group.title == title]
        return there[0] if there else self.add_argument_group(title)

    def flags(self) -> dict[str, str]:
        """Return the command's own flags as keys are spelled: `allow_backdoored` -> `--allow-backdoored`."""
        known = (option for action in self._actions for option in action.option_strings if option.startswith("--"))
        return {option.removeprefix("--").replace("-", "_"): option for option in known}

    def check_extra(self, extra: Sequence[str]) -> None:
        """Leave with status 2 where arguments are left over that are no keys of a configuration.

        `--key value` ahead of the first positional argument is wrong usage too: nobody but the configuration knows
        whether a key has a value, so that argument may have been taken for it or its value for that argument.

        Args:
            extra: What is left over.
        """
        if not extra:
            return
        if self.prog.split()[-1] in TAKES_FLAGS:
            self._check_order()
            return
        known = [option for action in self._actions for option in action.option_strings]
        close = difflib.get_close_matches(extra[0].split("=")[0], known, n=1)
        hint = f"; did you mean `{close[0]}`?" if close else ""
        self.error(f"unknown arguments: {' '.join(extra)}{hint}")

    def _check_order(self) -> None:
        waiting = iter(self.given)
        takers = {option: action for action in self._actions for option in action.option_strings}
        first = next(action.metavar or action.dest for action in self._actions if not action.option_strings)
        for argument in waiting:
            name = argument.split("=")[0]
            if not argument.startswith("--"):
                return
            if name not in takers and "=" not in argument:
                self.error(f"{first.upper()} comes first, before `{name}` and other keys of the configuration")
            if "=" not in argument and takers[name].nargs is None:
                next(waiting, None)


def build_parser() -> CommandParser:
    """Return the parser of all subcommands."""
    from hf_clipbd.cli.options import ADD

    width = max(map(len, TEXTS))
    listed = "\n\n".join(
        "\n".join([f"{title}:", *(f"  {name:{width}}  {TEXTS[name].summary}" for name in names)])
        for title, names in GROUPS.items()
    )
    parser = CommandParser(
        "hf-clipbd",
        usage="hf-clipbd COMMAND [options]     (hf-clipbd COMMAND --help says more)",
        description=f"{DESCRIPTION}\n\n{listed}",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version", action="version", version=f"hf-clipbd {__version__}", help="show the version and stop"
    )
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", help=argparse.SUPPRESS, prog="hf-clipbd"
    )
    for names in GROUPS.values():
        for name in names:
            command = _command(commands, name)
            ADD[name](command)
            _add_output(command, name)
    return parser


def _command(commands: Any, name: str) -> CommandParser:
    text = TEXTS[name]
    shown = "\n".join(["examples:", *(f"  {example}" for example in text.examples)])
    parser = commands.add_parser(
        name,
        description=text.description,
        epilog=shown,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(parser=parser)
    return parser


def _add_output(parser: CommandParser, name: str) -> None:
    output = parser.group("output")
    if name in PLANNED:
        output.add_argument("--dry_run", action="store_true", help="show what would be done, and write nothing")
    output.add_argument("--quiet", action="store_true", help="the result alone: no headlines, bars or next steps")
    output.add_argument("--json", action="store_true", help="the result as JSON on standard output")
    output.add_argument(
        "--traceback", action="store_true", default=argparse.SUPPRESS, help="show where an error came from"
    )
