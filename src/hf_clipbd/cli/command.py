# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""From a command line to an exit status: help, usage, one line for an error."""

import os
import sys
import tarfile
from collections.abc import Callable, Collection, Sequence
from functools import partial

from safetensors import SafetensorError

from hf_clipbd.cli.parser import Lines, Listed, build_parser


OK, WRONG, STOPPED = 0, 2, 130
"""Exit statuses: done; usage, input, data or files are wrong; stopped by Ctrl-C. 1 is that of `verify` alone."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit status.

    Args:
        arguments: The command line; that of the process by default.

    Returns:
        0, 1 if a verification failed, 2 for an error in usage, input, data or files, 130 if it was stopped. Wrong
        usage and `--help` leave by `SystemExit`, with 2 and 0.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = build_parser()
    if "_ARGCOMPLETE" in os.environ:
        _complete(parser)
    if not arguments:
        parser.print_help()
        return WRONG
    try:
        options, extra = parser.parse_known_args(arguments)
    except Listed as asked:
        return _guarded("hf-clipbd", partial(_print_lines, asked.lines), False)
    options.parser.check_extra(extra)
    from hf_clipbd.cli.actions import ACTIONS

    name = f"hf-clipbd {options.command}"
    return _guarded(name, lambda: ACTIONS[options.command](options, extra), options.traceback, options.parser.flags())


def script(name: str, text: str, act: Callable[[list[str]], int], arguments: Sequence[str]) -> int:
    """Return the exit status of a recipe: help on `-h`, `act` on the other arguments, one line for an error.

    Args:
        name: Name of the script.
        text: Its help.
        act: What it does.
        arguments: Its command line; `--traceback` shows where an error came from.
    """
    if {"-h", "--help"} & set(arguments):
        print(text)
        return OK
    given = [argument for argument in arguments if argument != "--traceback"]
    return _guarded(name, lambda: act(given), len(given) < len(arguments))


def _guarded(name: str, act: Callable[[], int], traceback: bool, flags: Collection[str] = ()) -> int:
    """Return what `act` returns, or 2 after one line on standard error for what is wrong with input, data or files.

    Args:
        name: Goes before the line.
        act: What is done.
        traceback: Let errors through.
        flags: The command's own flags: an argument of Python's that a message names is told as a flag.
    """
    try:
        return act()
    except (ValueError, TypeError, OSError, ImportError, EOFError, tarfile.TarError, SafetensorError) as error:
        if traceback:
            raise
        says = " ".join(str(error).split()) or type(error).__name__
        if "on_error" in flags:
            says = says.replace('on_error="skip"', "`--on_error skip`")
        print(f"{name}: {says}", file=sys.stderr)
        return WRONG
    except RuntimeError as error:
        if not traceback and "PytorchStreamWriter" in str(error):  # all that torch says where the disk is full
            says = f"a file could not be written, as on a disk that is full. ({_first_line(error)})"
            print(f"{name}: {says}", file=sys.stderr)
            return WRONG
        if traceback or type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported for its name
            raise
        advice = "Lower the batch size; a training takes the same batch in less memory with `--chunk_size`."
        print(f"{name}: out of memory. {advice} ({_first_line(error)})", file=sys.stderr)
        return WRONG
    except KeyboardInterrupt:
        message = "stopped. Finished stages stay, and the same command goes on after the last finished epoch."
        print(f"\n{name}: {message}", file=sys.stderr)
        return STOPPED


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def _print_lines(lines: Lines) -> int:
    print("\n".join(lines()))
    return OK


def _complete(parser: object) -> None:
    """Answer the shell, where `argcomplete` (extra `completion`) is installed; it then leaves the process."""
    try:
        import argcomplete
    except ImportError:
        return
    argcomplete.autocomplete(parser)
