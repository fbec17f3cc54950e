# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The plan of a whole run: its stages in order, which are finished, and how much is left to do."""

from collections.abc import Mapping
from pathlib import Path

import yaml

from hf_clipbd.cli.plans import FINISHED, TO_RUN, Planned, state_of
from hf_clipbd.recipe.config import RunConfig
from hf_clipbd.recipe.embeddings import MIRRORED
from hf_clipbd.recipe.plan import expected_stages
from hf_clipbd.run_folder import CONFIG_FILE
from hf_clipbd.schema import RECORD_FILE, RunRecord


UNCOUNTED = ("num_proc",)
"""Keys of the section `world` that do not change the data."""


def plan_run(config: RunConfig) -> list[Planned]:
    """Return every stage of a run, in the order in which they are run; raises as `expected_stages`.

    A stage is finished where its record has the settings of the configuration and the keys of the records it read, and
    the data are those of the `config.yaml` in the run folder. A stage that reads one which has to run has to run too.

    Args:
        config: The run.
    """
    other_data = _other_data(config)
    planned: dict[str, Planned] = {}
    for name, one in expected_stages(config).items():
        folder = config.output_dir / name
        state, why = state_of(folder, one.settings, one.seed, one.also, whole=True)
        waiting = [read for read in one.reads.values() if planned[read].state != FINISHED]
        if state == FINISHED and waiting:
            state, why = TO_RUN, f"after {waiting[0]}"
        elif state == FINISHED and other_data:
            state, why = TO_RUN, f"its data are others: {other_data}"
        elif state == FINISHED and (stale := stale_input(config.output_dir, name, one.reads)):
            state, why = TO_RUN, f"{stale} was run again since"
        elif state == FINISHED and name == "detect" and _other_second(config):
            state, why = TO_RUN, "its record has another `second`"
        about = "; ".join(filter(None, [one.about, why]))
        planned[name] = Planned(name, state, folder, one.rows, one.steps, about)
    return list(planned.values())


def _other_data(config: RunConfig) -> str:
    """Return the keys of the section `world` that the run folder's configuration has otherwise, "" for none."""
    path = config.output_dir / CONFIG_FILE
    if not path.is_file():
        return ""
    then = yaml.safe_load(path.read_text(encoding="utf-8")).get("world", {})
    now = config.resolved()["world"]
    return ", ".join(name for name in now if name not in UNCOUNTED and name in then and then[name] != now[name])


def stale_input(run: Path, name: str, reads: Mapping[str, str]) -> str:
    """Return the first stage whose record is another one than a stage's record says it read, "" for none.

    Args:
        run: The run folder.
        name: The stage, which has a record.
        reads: What its record calls the stages that it reads -> these.
    """
    inputs = RunRecord.load(run / name).inputs
    for called, read in reads.items():
        folder = run / read
        if called in inputs and (folder / RECORD_FILE).is_file() and inputs[called] != RunRecord.load(folder).key:
            return read
    return ""


def _other_second(config: RunConfig) -> bool:
    """Return whether the search is no more without a second encoder, with one, or with mirrored pictures, as it was.

    Which encoder it was is not looked at.
    """
    before = RunRecord.load(config.output_dir / "detect").inputs.get("second")
    now = config.detect.second
    return (before is None, before == MIRRORED) != (now is None, now == MIRRORED)
