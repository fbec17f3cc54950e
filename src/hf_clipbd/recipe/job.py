# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The whole job: poison, victim, detection, defences, evaluation, cards, report, and one table at the end."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from hf_clipbd.hub import hub_sources, write_cards
from hf_clipbd.recipe.config import RunConfig
from hf_clipbd.recipe.defending import check_sizes, defend
from hf_clipbd.recipe.locks import owned
from hf_clipbd.recipe.measuring import detect, evaluate
from hf_clipbd.recipe.publishing import check_may_push, push
from hf_clipbd.recipe.stage import Outcome, Stage
from hf_clipbd.recipe.training import poison, train_clean, train_victim
from hf_clipbd.recipe.trigger import needs_surrogate
from hf_clipbd.recipe.world import World, stage_of
from hf_clipbd.report import comparison_table, write_report
from hf_clipbd.run_folder import CONFIG_FILE, SOURCES_FILE, RunFolder
from hf_clipbd.schema import RECORD_FILE, RunRecord, write_json


logger = logging.getLogger(__name__)

TABLE_FILE = "table.md"


def write_config(config: RunConfig) -> Path:
    """Write the resolved configuration into the run folder, in one step, and return its path.

    Beside it is kept which names in it are the Hub's: whether one is a folder hangs on where the run is started.
    """
    path = config.output_dir / CONFIG_FILE
    if PartialState().is_main_process:
        path.parent.mkdir(parents=True, exist_ok=True)
        earlier = RunFolder(path.parent) if path.is_file() else None
        write_json(path.with_name(SOURCES_FILE), hub_sources(config.resolved()["world"], earlier))
        scratch = path.with_name(f"{CONFIG_FILE}.partial")
        scratch.write_text(yaml.safe_dump(config.resolved(), sort_keys=False), encoding="utf-8")
        scratch.replace(path)
    PartialState().wait_for_everyone()
    return path


@contextmanager
def working_on(config: RunConfig, alone: bool) -> Iterator[None]:
    """Hold the run folder for the block, with this configuration written into it: two never fill one folder at once.

    Args:
        alone: Whether a job of the same configuration keeps this one out as well. If not, this one joins it, and each
            stage is still nobody else's while it is worked on.

    Raises:
        ValueError: If the output folder is a file, or another job that lives works there; the message names it.
        RuntimeError: If the folder was taken over meanwhile.
    """
    folder = config.output_dir
    if folder.exists() and not folder.is_dir():
        raise ValueError(
            f"Expected a folder or none yet, but `{folder}` is a file. Name another one (`--output_dir`)."
        )
    with ExitStack() as held:
        try:
            held.enter_context(owned(folder, str(folder), what="run"))
        except ValueError:
            if alone or not broadcast_object_list([_is_kept(config)])[0]:
                raise
        else:
            write_config(config)
        yield


def _is_kept(config: RunConfig) -> bool:
    """Return whether the configuration in the run folder is this one, wherever it is seen from."""
    path = config.output_dir / CONFIG_FILE
    kept, own = (RunFolder(path.parent).config if path.is_file() else {}), config.resolved()
    return {**kept, "output_dir": None} == {**yaml.safe_load(yaml.safe_dump(own)), "output_dir": None}


def models(config: RunConfig) -> list[str]:
    """Return the models of a run that are measured, in the order of the table."""
    return ["clean", "victim", *config.defenses]


def training_stages(config: RunConfig) -> list[str]:
    """Return the stages of a run that train."""
    return [stage_of(name) for name in models(config) if name != "clean" or config.clean is not None]


def recorded_stages(config: RunConfig) -> list[str]:
    """Return the stages of a run with figures, whose records the report is rendered from."""
    return ["poison", *training_stages(config), *(f"evaluate/{name}" for name in models(config)), "detect"]


def report_settings(config: RunConfig) -> dict[str, Any]:
    """Return what cards and report depend on beside the records and the seed."""
    return {"html": config.report.html, "cards": config.report.cards}


def report(config: RunConfig) -> RunRecord:
    """Render cards and report from the records (stage `report`) and return the record."""
    run = config.output_dir
    inputs = {name: RunRecord.load(run / name).key for name in recorded_stages(config)}
    outputs = {"cards": "../victim/README.md"} if config.report.cards else {}
    outputs |= {"html": "report.html"} if config.report.html else {}

    rendered_alone = ("report.html", "figures")  # by `hf-clipbd report`, which leaves no record

    def work(folder: Path) -> Outcome:
        if config.report.cards:
            write_cards(run)
        if config.report.html:
            rendered = write_report(run).parent
            for name in rendered_alone:
                if (rendered / name).exists():
                    (rendered / name).replace(folder / name)
        return Outcome({"records": len(inputs)}, outputs)

    stage = Stage(run, "report", report_settings(config), config.seed, inputs, beside=rendered_alone)
    return stage.run_once(work, main_only=True)


def run_stage(config: RunConfig, stage: str) -> list[RunRecord]:
    """Run one stage of a configuration and return its records; the stages before it must have been run.

    Args:
        stage: `clean`, where the run trains its clean model; `poison`, the trigger optimised first where it has to be;
            `victim` (both with a clean model that is trained here); `evaluate`, every model that is there; `detect`.

    Raises:
        ValueError: If the stage is none of these, `push_to_hub` is set, which is for whole runs, or a job of another
            configuration works in the run folder.
    """
    if config.push.push_to_hub:
        raise ValueError(
            f"Expected no `push_to_hub` with the stage `{stage}` alone, since a push needs the whole run. Run "
            f"recipes/defend.py with it, or push what is finished with `hf-clipbd push`."
        )
    with working_on(config, alone=False):
        return _run_stage(config, stage)


def _run_stage(config: RunConfig, stage: str) -> list[RunRecord]:
    world = World(config)
    if config.clean is not None and (stage == "victim" or (stage == "poison" and needs_surrogate(config))):
        train_clean(config, world)
    if stage == "evaluate":
        there = {name: config.output_dir / stage_of(name) / RECORD_FILE for name in models(config)}
        return [evaluate(config, name, world) for name, one in there.items() if name == "clean" or one.is_file()]
    stages = {"clean": train_clean, "poison": poison, "victim": train_victim, "detect": detect}
    if stage not in stages:
        raise ValueError(f"Expected a stage out of {sorted([*stages, 'evaluate'])}, but got {stage!r}.")
    return [stages[stage](config, world)]


def run(config: RunConfig) -> str:
    """Run every stage of `config` that is not up to date and return the final table.

    A stage is skipped when its record is current; a stopped training goes on from its last epoch. The table is also
    written as `table.md` into the run folder. With `push_to_hub` the models then go to the Hub; see `publishing.push`.

    Raises:
        ValueError: If another job works in the run folder, among others.
    """
    check_may_push(config)
    check_sizes(config)
    with working_on(config, alone=True):
        return _run(config)


def _run(config: RunConfig) -> str:
    world = World(config)
    if config.clean is not None:
        train_clean(config, world)
    poison(config, world)
    train_victim(config, world)
    detect(config, world)
    for name in config.defenses:
        defend(config, name, world)
    for name in models(config):
        evaluate(config, name, world)
    report(config)
    if PartialState().is_main_process:
        table = comparison_table(config.output_dir, format="markdown")
        (config.output_dir / TABLE_FILE).write_text(table, encoding="utf-8")
    push(config)
    PartialState().wait_for_everyone()
    return comparison_table(config.output_dir)
