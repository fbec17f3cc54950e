# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""`--dry_run`: what a command would do, told from its configuration and from records, with nothing read but these."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_clipbd.cli.console import Console


if TYPE_CHECKING:
    from hf_clipbd.attacks import Share
    from hf_clipbd.recipe.basis import Basis
    from hf_clipbd.recipe.options import DetectConfig
    from hf_clipbd.recipe.own_data import Data
    from hf_clipbd.recipe.single import Probe
    from hf_clipbd.recipe.suspects import Review
    from hf_clipbd.trainer import CLIPTrainer, CLIPTrainingConfig

FINISHED, STOPPED, TO_RUN = "finished", "stopped", "to run"
NOTE = (
    "Nothing was written. Settings and records were compared; whether data and models are the same as then is seen "
    "when the command runs."
)


@dataclass(frozen=True)
class Planned:
    """One stage of a plan.

    Args:
        name: The stage.
        state: `finished`, `stopped` (a checkpoint is there) or `to run`.
        folder: Where its outputs lie.
        rows: Rows or pictures that it works on; None where they are counted only when the data are read.
        steps: Optimiser steps of a training.
        about: What it does, or why it has to run.
    """

    name: str
    state: str
    folder: Path
    rows: int | None = None
    steps: int | None = None
    about: str = ""


def state_of(
    folder: Path,
    expected: Mapping[str, Any],
    seed: int | None = None,
    also: Iterable[Mapping[str, Any]] = (),
    whole: bool = False,
) -> tuple[str, str]:
    """Return the state of the stage that lies in a folder, and why it is not finished.

    Args:
        folder: The stage's folder.
        expected: Settings that its record must have, as far as they are known before the data are read; None for one
            that it must not have.
        seed: Seed that its record must have.
        also: Other settings that it may have instead, see `Stage.also`.
        whole: Whether these are all its settings.

    Raises:
        ValueError: If the folder of a command, which `expected` names as `kind`, holds something else.
    """
    from hf_clipbd import __version__
    from hf_clipbd.recipe.stage import CHECKPOINTS, check_folder
    from hf_clipbd.schema import RECORD_FILE, RunRecord

    if "kind" in expected:
        check_folder(folder, expected["kind"])
    steps = [path.name.removeprefix("checkpoint-") for path in (folder / CHECKPOINTS).glob("checkpoint-*")]
    if steps:
        return STOPPED, f"after step {max(map(int, steps))}"
    if not (folder / RECORD_FILE).is_file():
        return TO_RUN, ""
    record = RunRecord.load(folder)
    accepted = [json.loads(json.dumps(one)) for one in (expected, *also)]
    differing = [_differing(record.config, one, whole) for one in accepted]
    differs = [] if [] in differing else differing[0]
    differs += ["seed"] if seed not in (None, record.seed) else []
    if differs:
        return TO_RUN, f"its record has other {', '.join(differs)}"
    if record.versions.get("hf_clipbd", __version__) != __version__:
        return TO_RUN, f"its record is of version {record.versions['hf_clipbd']}"
    missing = [path for path in record.outputs.values() if not (folder / path).exists()]
    return (TO_RUN, f"`{missing[0]}` is missing") if missing else (FINISHED, "")


def _differing(recorded: Mapping[str, Any], expected: Mapping[str, Any], whole: bool) -> list[str]:
    if not whole:
        return [name for name, value in expected.items() if recorded.get(name) != value]
    shared = expected.keys() & recorded.keys()
    return [name for name in {**expected, **recorded} if name not in shared or recorded[name] != expected[name]]


def count_rows(data: "Data") -> int | None:
    """Return how many rows data of one's own have, or None where that takes reading more than a header."""
    import datasets
    import pyarrow.parquet

    from hf_clipbd.recipe.own_data import SCENES
    from hf_clipbd.recipe.training import POISONED_DATASET
    from hf_clipbd.schema import MANIFEST_FILE

    if data.source == SCENES:
        return data.n
    path = Path(data.source)
    if (path / MANIFEST_FILE).is_file() and (path / POISONED_DATASET).is_dir():
        path = path / POISONED_DATASET
    if (path / "state.json").is_file():
        n = len(datasets.load_from_disk(str(path)))
    elif path.suffix == ".parquet" and path.is_file():
        n = pyarrow.parquet.read_metadata(path).num_rows
    else:
        return data.n
    return n if data.n is None else min(n, data.n)


def plan_poison(data: "Data", shares: "Mapping[str, Share]", streaming: bool, out: Path) -> list[Planned]:
    """Return the plan of `hf-clipbd poison`: a line a trigger; raises as `check_amount`, where rows are counted."""
    from hf_clipbd.recipe.poisoning import check_amount, share_settings

    rows = count_rows(data)
    expected = {"kind": "poison", "triggers": {name: share_settings(share) for name, share in shares.items()}}
    state, why = state_of(out, expected, data.seed)
    planned = []
    for name, share in shares.items():
        if rows is not None and not streaming:
            check_amount(name, share, rows)
        if share.count is not None:
            amount = f"{share.count} rows"
        else:
            about = "" if rows is None else f", about {round(share.rate * rows)} rows"
            amount = f"a share of {share.rate:g}{about}"
        about = f"{share.attack.name} -> {share.attack.target}, {amount}{', streamed' if streaming else ''}"
        planned.append(Planned(f"poison {name}", state, out, rows, about="; ".join(filter(None, [about, why]))))
    return planned


def plan_training(
    data: "Data",
    trainer: "type[CLIPTrainer]",
    config: "CLIPTrainingConfig",
    out: Path,
    streaming: bool = False,
    on_error: str = "raise",
    probe: "Probe | None" = None,
) -> list[Planned]:
    """Return the plan of `hf-clipbd train` and `defend`."""
    from hf_clipbd.recipe.steps import global_batch, training_line, training_steps
    from hf_clipbd.training.settings import training_settings

    rows, before = None if streaming else count_rows(data), _recorded(out)
    expected = {
        "kind": "train",
        "trainer": trainer.__name__,
        "training": training_settings(config),
        "global_batch": global_batch(config),
        "measured": None if probe is None else _measured(probe, before),
        "streaming": streaming or None,
        "dataloader_num_workers": _readers(data, config, before) if streaming else None,
        "on_error": None if on_error == "raise" else on_error,
    }
    state, why = state_of(out, expected, config.seed)
    steps = None if rows is None else training_steps(trainer, config, rows)
    steps = config.max_steps if streaming else steps
    about = training_line(trainer, config) + (", streamed" if streaming else "")
    return [Planned("train", state, out, rows, steps, "; ".join(filter(None, [about, why])))]


def _recorded(folder: Path) -> Mapping[str, Any]:
    """Return the configuration in the record of a folder, nothing where there is none."""
    from hf_clipbd.schema import RECORD_FILE, RunRecord

    return RunRecord.load(folder).config if (folder / RECORD_FILE).is_file() else {}


def _measured(probe: "Probe", before: Mapping[str, Any]) -> dict[str, Any]:
    """Return what stands of a probe in the record of a training.

    Of data on the Hub, which is not asked, the split `test` may have been their only one under another name.
    """
    from hf_clipbd.recipe.own_data import SCENES

    measured = {**asdict(probe), "triggers": list(probe.triggers)}
    then = (before.get("measured") or {}).get("data") or {}
    if probe.data.split == "test" and then and not (probe.data.source == SCENES or Path(probe.data.source).exists()):
        measured["data"]["split"] = then["split"]
    return measured


def _readers(data: "Data", config: "CLIPTrainingConfig", before: Mapping[str, Any]) -> int | None:
    """Return how many workers read a stream, on which its batches depend; None where the process itself does.

    There are no more of them than shards, which are counted where a record leaves it open, of local data only.
    """
    asked, then = config.dataloader_num_workers, before.get("dataloader_num_workers", 0)
    if not 0 < then < asked:
        return asked or None
    return min(asked, data.stream().num_shards) if Path(data.source).exists() else then


def plan_detect(data: "Data", options: "DetectConfig", review: "Review", basis: "Basis", out: Path) -> list[Planned]:
    """Return the plan of `hf-clipbd detect`; raises as `check_sizes`, where rows are counted."""
    from hf_clipbd.recipe.basis import LATER, check_sizes, search_settings

    rows = count_rows(data)
    if rows is not None:
        check_sizes(options, rows, rows if basis.clean is None else count_rows(basis.clean))
    searched = dict.fromkeys(LATER) | search_settings(options)
    expected = {"kind": "detect", **searched, **asdict(review), **basis.settings()}
    state, why = state_of(out, expected, data.seed)
    removed = f"about {round(review.remove * rows)} rows" if rows is not None else f"a share of {review.remove:g}"
    looked_at = {} if options.distilled is None else {"cognitive_distillation": f" of {options.distilled} rows"}
    about = f"{', '.join(name + looked_at.get(name, '') for name in options.detectors)}; {removed} filtered out"
    return [Planned("detect", state, out, rows, about="; ".join(filter(None, [about, why])))]


def plan_lines(plan: Sequence[Planned]) -> list[str]:
    """Return a plan as a table."""
    cells = [["stage", "state", "rows", "steps", "folder", ""]]
    for one in plan:
        counts = ["" if n is None else f"{n:,}" for n in (one.rows, one.steps)]
        cells.append([one.name, one.state, *counts, str(one.folder), one.about])
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = [
        "  ".join(x.rjust(w) if i in (2, 3) else x.ljust(w) for i, (x, w) in enumerate(zip(line, widths, strict=True)))
        for line in cells
    ]
    done = sum(one.state == FINISHED for one in plan)
    return [*(line.rstrip() for line in lines), "", f"{done} of {len(plan)} finished. {NOTE}"]


def show_plan(console: Console, plan: Sequence[Planned]) -> int:
    """Show a plan and return 0."""
    console.show(plan_lines(plan), [{**asdict(one), "folder": str(one.folder)} for one in plan])
    return 0
