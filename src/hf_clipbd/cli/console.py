# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""How much a command says and in which form: for people, the result alone (`--quiet`), for programs (`--json`)."""

import argparse
import io
import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any


MODES = ("dry_run", "quiet", "json")
NO_BARS = {"TQDM_DISABLE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
"""What keeps bars from being drawn; both libraries look at it when they are imported."""


def start_logging(quiet: bool = False) -> None:
    """Show this package's headlines on standard output and keep the libraries under it quiet.

    Args:
        quiet: Show warnings only.
    """
    import datasets
    import transformers

    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("hf_clipbd")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    logger.propagate = False
    logging.getLogger("hf_clipbd.models").setLevel(logging.WARNING)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.logging.set_verbosity_error()
    datasets.disable_progress_bars()


@dataclass(frozen=True)
class Console:
    """What a command says while it works and how it shows its result.

    Args:
        quiet: The result alone: no headlines, no bars, no next steps. Warnings and errors stay, on standard error.
        json: The result as one JSON document on standard output; all else goes to standard error.
    """

    quiet: bool = False
    json: bool = False

    @classmethod
    def of(cls, options: argparse.Namespace) -> "Console":
        """Return the console that a command's arguments ask for."""
        return cls(options.quiet, options.json)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Let the block say what this console lets through; to be entered before anything heavy is imported."""
        if not (self.quiet or self.json):
            start_logging()
            yield
            return
        before = {name: os.environ.get(name) for name in NO_BARS}
        if self.quiet:
            os.environ.update(NO_BARS)
        try:
            with redirect_stdout(sys.stderr):
                start_logging(self.quiet)
            with redirect_stdout(io.StringIO() if self.quiet else sys.stderr):
                yield
        finally:
            for name, value in before.items():
                os.environ.pop(name, None) if value is None else os.environ.update({name: value})

    def show(self, lines: Iterable[str], values: Any, following: Sequence[str] = ()) -> None:
        """Print the result: its lines and what comes next, or its values as JSON.

        Args:
            lines: The result for people.
            values: The same for programs, JSON-able; a dictionary gets the commands that come next as `next`.
            following: Commands that come next.
        """
        if self.json:
            if following and isinstance(values, dict):
                values = {**values, "next": list(following)}
            print(json.dumps(values, indent=2, ensure_ascii=False, default=str))
            return
        for line in lines:
            print(line)
        if not self.quiet:
            for command in following:
                print(f"next     {command}")


def take_modes(arguments: Sequence[str]) -> tuple[dict[str, bool], list[str]]:
    """Return which of the modes a command line names, and its other arguments.

    Example:
        >>> take_modes(["run.yaml", "--quiet", "--seed", "1"])
        ({'dry_run': False, 'quiet': True, 'json': False}, ['run.yaml', '--seed', '1'])
    """
    spelled = {f"--{name}": name for name in MODES}
    given = {spelled[argument] for argument in arguments if argument in spelled}
    return {name: name in given for name in MODES}, [one for one in arguments if one not in spelled]
