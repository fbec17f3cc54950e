# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The plan of a whole run: its stages in order, which are finished, and how much is left to do."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import yaml

from hf_clipbd.cli.plans import FINISHED, TO_RUN, Planned, state_of, training_line, training_steps
from hf_clipbd.defenses import DEFENSES, OBJECTIVES
from hf_clipbd.detection.revisions import revisions
from hf_clipbd.recipe.config import RunConfig, training_settings
from hf_clipbd.recipe.embeddings import MIRRORED
from hf_clipbd.recipe.patch_options import patch_options
from hf_clipbd.recipe.training import global_batch
from hf_clipbd.recipe.trigger import needs_surrogate
from hf_clipbd.recipe.world import build_attack
from hf_clipbd.schema import RECORD_FILE, RunRecord


UNCOUNTED = ("num_proc",)
"""Keys of the section `world` that do not change the data."""


@dataclass(frozen=True)
class _Expected:
    """What is known of a stage before it runs: its settings, the stages it reads, its size."""

    settings: Mapping[str, Any]
    seed: int
    reads: tuple[str, ...] = ()
    rows: int | None = None
    steps: int | None = None
    about: str = ""


def plan_run(config: RunConfig) -> list[Planned]:
    """Return every stage of a run, in the order in which they are run.

    A stage is finished where its record has the settings of the configuration and the keys of the records it read, and
    the data are those of the `config.yaml` in the run folder. A stage that reads one which has to run has to run too.

    Args:
        config: The run.

    Raises:
        ValueError: If a training has fewer rows than a batch.
    """
    other_data = _other_data(config)
    planned: dict[str, Planned] = {}
    for name, one in _stages(config).items():
        folder = config.output_dir / name
        state, why = state_of(folder, one.settings, one.seed)
        waiting = [read for read in one.reads if planned[read].state != FINISHED]
        if state == FINISHED and waiting:
            state, why = TO_RUN, f"after {waiting[0]}"
        elif state == FINISHED and other_data:
            state, why = TO_RUN, f"its data are others: {other_data}"
        elif state == FINISHED and (stale := _stale(config, name, one.reads)):
            state, why = TO_RUN, f"{stale} was run again since"
        elif state == FINISHED and name == "detect" and _other_second(config):
            state, why = TO_RUN, "its record has another `second`"
        about = "; ".join(filter(None, [one.about, why]))
        planned[name] = Planned(name, state, folder, one.rows, one.steps, about)
    return list(planned.values())


def _stages(config: RunConfig) -> dict[str, _Expected]:
    """Return the stages in order."""
    world, own_clean = config.world, config.clean is not None
    clean = ("clean",) if own_clean else ()
    stages: dict[str, _Expected] = {}
    if own_clean:
        settings = {**_training(config, config.clean), "architecture": config.architecture}
        n = world.n_clean or (world.n_train if world.kind == "scenes" else None)
        stages["clean"] = _trained(settings, config.clean, OBJECTIVES["mmcl"].trainer, n, ())
    patch = patch_options(config.attack)
    if patch is not None:
        surrogate = clean if patch.surrogate is None else ()
        about = f"optimise the patch, {patch.config.steps} steps"
        stages["trigger"] = _Expected({}, config.seed, surrogate, patch.n_images, about=about)
    count = config.poison.rows(world.n_train)
    settings = {"count": count, "n_samples": config.poison.n_samples}
    if patch is None:
        settings["attack"] = build_attack(config).parameters()
    before = ("trigger",) if patch is not None else (clean if needs_surrogate(config) else ())
    about = f"{config.attack['name']} -> {config.attack['target']}, {count} rows"
    stages["poison"] = _Expected(settings, config.seed, before, world.n_train, about=about)
    settings = {"objective": config.objective, **_training(config, config.victim)}
    trainer = OBJECTIVES[config.objective].trainer
    stages["victim"] = _trained(settings, config.victim, trainer, world.n_train, ("poison", *clean))
    found = {
        name: getattr(config.detect, name)
        for name in ("detectors", "k", "reference", "distilled", "caption_share", "rates", "map_points")
    }
    found |= revisions(config.detect.detectors)
    reads = ("victim", "poison", *(clean if config.detect.second == "clean" else ()))
    stages["detect"] = _Expected(found, config.seed, reads, world.n_train, about=", ".join(config.detect.detectors))
    stages |= planned_defenses(config, clean)
    measured = {"ks": config.evaluate.ks, "include_target": config.evaluate.include_target}
    for name in ("clean", "victim", *config.defenses):
        trained = (*clean,) if name == "clean" else ("victim" if name == "victim" else f"defend/{name}",)
        reads = (*trained, "poison")
        stages[f"evaluate/{name}"] = _Expected(measured, config.seed, reads, world.n_test)
    rendered = {"html": config.report.html, "cards": config.report.cards}
    stages["report"] = _Expected(rendered, config.seed, tuple(stages))
    return stages


def planned_defenses(config: RunConfig, clean: tuple[str, ...]) -> dict[str, _Expected]:
    """Return what is known of the defences of a run, `defend/NAME` -> that.

    Args:
        config: The run.
        clean: The stage that trains its clean model, if there is one.
    """
    stages = {}
    for name, training in config.defenses.items():
        one = DEFENSES[name]
        rows, reads = config.world.n_defense, ("victim",)
        if one.trains_on == "poisoned":
            rows, reads = config.world.n_train, ("poison", *clean, *one.needs)
            rows -= round(getattr(training, "drop_share", 0.0) * rows)
        stages[f"defend/{name}"] = _trained(_training(config, training), training, one.trainer, rows, reads)
    return stages


def _training(config: RunConfig, training: Any) -> dict[str, Any]:
    return {"training": training_settings(training), "global_batch": global_batch(training)}


def _trained(
    settings: Mapping[str, Any], training: Any, trainer: type, rows: int | None, reads: tuple[str, ...]
) -> _Expected:
    steps = None if rows is None else training_steps(trainer, training, rows)
    return _Expected(settings, training.seed, reads, rows, steps, training_line(trainer, training))


def _other_data(config: RunConfig) -> str:
    """Return the keys of the section `world` that the run folder's configuration has otherwise, "" for none."""
    path = config.output_dir / "config.yaml"
    if not path.is_file():
        return ""
    then = yaml.safe_load(path.read_text(encoding="utf-8")).get("world", {})
    now = replace(config).resolved()["world"]
    return ", ".join(name for name in now if name not in UNCOUNTED and name in then and then[name] != now[name])


def _stale(config: RunConfig, name: str, reads: tuple[str, ...]) -> str:
    """Return the first stage whose record is another one than the stage's record says it read, "" for none."""
    inputs = RunRecord.load(config.output_dir / name).inputs
    for read in reads:
        called = "model" if name.startswith("evaluate/") and read != "poison" else read
        folder = config.output_dir / read
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
