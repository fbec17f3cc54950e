# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The papers' tables and figures again: one whole job for every attack and seed, and one page from their records.

    accelerate launch recipes/reproduce.py                                     # recipes/reproduce/table1.yaml
    accelerate launch recipes/reproduce.py --config recipes/reproduce/table2.yaml
    accelerate launch recipes/reproduce.py --only "wanet/*" "*/seed0"          # some of its cells
    accelerate launch recipes/reproduce.py --dry_run                           # checks and the plan; runs nothing
    accelerate launch recipes/reproduce.py --seeds 0 --victim.num_train_epochs 1 --output_dir runs/quick

A cell is a job of `recipes/defend.py` in OUTPUT_DIR/ATTACK/seedN. Finished cells are left as they are, a stopped one
goes on where it was, and any number of processes may work on one folder, on several machines if they share it: each
takes the next cell that nobody has, and the cell of a process that was killed. Tables (`table.md`) and figures are
rendered from the records after every cell. Options: output_dir, seeds, select, only, title, table, keep_models (the
weights and the poisoned dataset of a finished cell are deleted without it), keep_embeddings, stale_after, dry_run.
Sections of a run, such as `--evaluate.epoch_images 200`, hold for all cells. `--quiet` shows the result alone,
`--json` shows it for programs.

    python recipes/reproduce.py collect runs/reproduce/table1 recipes/reproduce/records/table1   # of finished cells
    python recipes/reproduce.py collect_grid GRID.yaml RECORDS --grid.runs RUN_FOLDER ...        # of a grid
    python recipes/reproduce.py results                                        # RESULTS.md, from these records alone
"""

import sys
from pathlib import Path

from hf_clipbd.cli import script
from hf_clipbd.cli.console import Console


FOLDER = Path(__file__).resolve().parent / "reproduce"
DEFAULT = FOLDER / "table1.yaml"
RESULTS = FOLDER.parents[1] / "RESULTS.md"


def reproduce(arguments: list[str]) -> int:
    """Run a reproduction and return 0, or print its plan and return 1 if something that it needs is missing."""
    from hf_clipbd.recipe.reproduce_config import load_reproduction

    shown = {mode: f"--{mode}" in arguments for mode in ("quiet", "json")}
    console = Console(**shown)
    reproduction = load_reproduction([one for one in arguments if one.lstrip("-") not in shown], DEFAULT)
    cells = [cell.name for cell in reproduction.chosen]
    if reproduction.options.dry_run:
        from hf_clipbd.recipe.reproduce_plan import plan

        found = plan(reproduction)
        console.show([found.text], {"ok": found.ok, "checks": [one._asdict() for one in found.checks], "cells": cells})
        return 0 if found.ok else 1
    with console.working():
        from accelerate import PartialState

        from hf_clipbd.recipe.reproduce import run_reproduction

        text = run_reproduction(reproduction)
    if PartialState().is_main_process:
        table = str(reproduction.folder / reproduction.options.table)
        console.show([f"\n{text}", f"written to {table}"], {"table": table, "cells": cells})
    return 0


def collect(arguments: list[str]) -> int:
    """Copy the records of finished cells from one folder to another, say where they lie, and return 0."""
    from hf_clipbd.recipe.reproduce_results import collect as copy

    if len(arguments) != 2:
        raise ValueError(f"Expected a folder of cells and one for their records, but got {arguments}.")
    for path in copy(*arguments):
        print(f"written to {path}")
    return 0


def collect_grid(arguments: list[str]) -> int:
    """Copy the records of a grid's cells, say how many, and return 0."""
    from hf_clipbd.recipe.grid_config import load_grid
    from hf_clipbd.recipe.reproduce_results import collect_grid as copy

    if len(arguments) < 2:
        raise ValueError(f"Expected a grid's YAML and a folder for its records, then flags, but got {arguments}.")
    copied = copy(load_grid([arguments[0], *arguments[2:]]), arguments[1])
    print(f"{len(copied)} records written to {arguments[1]}")
    return 0


def results(arguments: list[str]) -> int:
    """Write RESULTS.md, or the file that is named, and its pictures from the committed records and return 0."""
    from hf_clipbd.recipe.reproduce_parts import FIGURES
    from hf_clipbd.recipe.reproduce_results import render_pictures, render_results

    path = Path(arguments[0]) if arguments else RESULTS
    path.write_text(render_results(FOLDER), encoding="utf-8")
    drawn = render_pictures(FOLDER, FOLDER / FIGURES)
    print(f"written to {path}, {len(drawn)} pictures to {FOLDER / FIGURES}")
    return 0


ACTIONS = {"collect": collect, "collect_grid": collect_grid, "results": results}


def act(arguments: list[str]) -> int:
    """Do what the first argument says, run a reproduction where it names nothing else, and return the exit status."""
    if arguments and arguments[0] in ACTIONS:
        return ACTIONS[arguments[0]](arguments[1:])
    return reproduce(arguments)


if __name__ == "__main__":
    sys.exit(script("reproduce.py", __doc__, act, sys.argv[1:]))
