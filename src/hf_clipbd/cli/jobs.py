# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Whole configurations: every stage of a run, one of them, or a grid; what the recipes call."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hf_clipbd.cli.console import Console, take_modes


if TYPE_CHECKING:
    from hf_clipbd.cli.plans import Planned
    from hf_clipbd.recipe import RunConfig


def _configured(arguments: Sequence[str], default: Path | None) -> "tuple[Console, RunConfig, bool]":
    """Return where to print, the configuration, and whether it is only to be planned."""
    modes, rest = take_modes(arguments)
    console = Console(modes["quiet"], modes["json"])
    with console.working():
        from hf_clipbd.recipe import load_config

        return console, load_config(rest, default), modes["dry_run"]


def run_job(arguments: Sequence[str], default: Path | None = None) -> int:
    """Run a whole configuration (a YAML, then flags), print the final table and where things lie, and return 0.

    Args:
        arguments: A YAML, then flags, and any of `--dry_run`, `--quiet`, `--json`.
        default: The YAML where the arguments name none.
    """
    console, config, dry_run = _configured(arguments, default)
    if dry_run:
        return _plan(console, config)
    with console.working():
        from hf_clipbd.recipe import run

        table = run(config)
    if _is_main():
        _show_run(console, config, table)
    return 0


def run_stage(stage: str, arguments: Sequence[str], default: Path | None = None) -> int:
    """Run one stage of a configuration, the stages before it having been run, and return 0.

    Args:
        stage: `clean`, `poison`, `victim`, `evaluate` or `detect`.
        arguments: A YAML, then flags, and any of `--dry_run`, `--quiet`, `--json`.
        default: The YAML where the arguments name none.
    """
    console, config, dry_run = _configured(arguments, default)
    if dry_run:
        return _plan(console, config, stage)
    with console.working():
        from hf_clipbd.recipe.job import run_stage as run_one

        records = run_one(config, stage)
    if _is_main():
        from hf_clipbd.cli.results import record_values
        from hf_clipbd.recipe.shown import record_lines

        shown = [(record, config.output_dir / record.stage) for record in records]
        lines = [line for record, folder in shown for line in record_lines(record, folder)]
        console.show(lines, [record_values(record, folder) for record, folder in shown])
    return 0


def run_grid(arguments: Sequence[str], default: Path | None = None) -> int:
    """Train the cells of a grid on finished runs (a YAML, then flags), print the table and where it lies, return 0.

    Args:
        arguments: A YAML, then flags, and any of `--dry_run`, `--quiet`, `--json`.
        default: The YAML where the arguments name none.
    """
    modes, rest = take_modes(arguments)
    console = Console(modes["quiet"], modes["json"])
    with console.working():
        from hf_clipbd.recipe import load_grid
        from hf_clipbd.recipe import run_grid as run_cells

        grid = load_grid(rest, default)
        table = "" if modes["dry_run"] else run_cells(grid)
    if modes["dry_run"]:
        from hf_clipbd.cli.plan_grid import plan_grid

        return _show_plan(console, plan_grid(grid))
    if _is_main():
        path = Path(grid.options.output_dir) / "table.md"
        console.show([f"\n{table}", f"written to {path}"], {"table": str(path), "cells": [c.name for c in grid.cells]})
    return 0


def _is_main() -> bool:
    from hf_clipbd.recipe.place import process_state

    return process_state().is_main_process


def _plan(console: Console, config: "RunConfig", stage: str | None = None) -> int:
    from hf_clipbd.cli.plan_run import plan_run

    stages = [one for one in plan_run(config) if stage is None or one.name.split("/")[0] == stage]
    return _show_plan(console, stages)


def _show_plan(console: Console, planned: "list[Planned]") -> int:
    """Show a plan on the main process, and return 0."""
    from hf_clipbd.cli.plans import show_plan

    return show_plan(console, planned) if _is_main() else 0


def _show_run(console: Console, config: "RunConfig", table: str) -> None:
    from hf_clipbd.recipe.job import models
    from hf_clipbd.schema import RunRecord

    out = config.output_dir
    trained = ["victim", *(f"defend/{name}" for name in config.defenses)]
    lines = [f"\n{table}", f"table    {out / 'table.md'}"]
    if config.report.html:
        lines.append(f"report   {out / 'report' / 'report.html'}")
    lines += [
        "models   " + ", ".join(str(out / name) for name in trained),
        f"poison   {out / 'poison'} (manifest, trigger, dataset)",
    ]
    reports = {name: RunRecord.load(out / "evaluate" / name).metrics for name in models(config)}
    values = {
        "output_dir": str(out),
        "models": [str(out / name) for name in trained],
        "evaluate": {name: one["report"] for name, one in reports.items()},
        "detect": RunRecord.load(out / "detect").metrics,
    }
    following = [f"hf-clipbd verify {shlex.quote(str(out))}"]
    if config.defenses:
        following.append(
            f"hf-clipbd push {shlex.quote(str(out))} --repo_id OWNER/NAME --what defend/{list(config.defenses)[-1]}"
        )
    console.show(lines, values, following)
