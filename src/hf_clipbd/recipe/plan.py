# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The stages of a run before it is run: what the record of each will say it depends on, and what it works on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hf_clipbd.attacks.surrogate import SURROGATE_SELECTORS
from hf_clipbd.defenses import DEFENSES
from hf_clipbd.recipe.config import RunConfig
from hf_clipbd.recipe.epochs import measured_otherwise
from hf_clipbd.recipe.job import models, report_settings
from hf_clipbd.recipe.measuring import detect_settings, evaluation_settings
from hf_clipbd.recipe.patch_options import patch_options
from hf_clipbd.recipe.steps import Training, training_line, training_stage_settings, trainings
from hf_clipbd.recipe.training import poison_settings
from hf_clipbd.recipe.trigger import KEPT, STAGE, optimized_attack, trigger_settings
from hf_clipbd.recipe.world import World, build_attack, stage_of
from hf_clipbd.schema import RECORD_FILE, RunRecord


@dataclass(frozen=True)
class Expected:
    """What is known of a stage before it runs.

    Args:
        settings: What its record will say it depends on, as `Stage.config`.
        reads: What its record calls the stages that it reads -> these.
        rows: Rows or pictures that it works on; None where nobody has counted them.
        steps: Optimiser steps of a training.
        also: Other settings that its record may have, as `Stage.also`.
    """

    settings: Mapping[str, Any]
    seed: int
    reads: Mapping[str, str] = field(default_factory=dict)
    rows: int | None = None
    steps: int | None = None
    about: str = ""
    also: tuple[Mapping[str, Any], ...] = ()


def expected_stages(config: RunConfig) -> dict[str, Expected]:
    """Return the stages of a run in the order in which they are run; no data are read for it.

    Raises:
        ValueError: If a training has fewer rows than a batch.
    """
    world, seed = World(config), config.seed
    trained = _trained(config, world)
    stages = {"clean": trained.pop("clean")} if "clean" in trained else {}
    stages |= _poison(config, world)
    stages["victim"] = trained.pop("victim")
    reads = _same("victim", "poison") | (_own_clean(config, "second") if config.detect.second == "clean" else {})
    about = ", ".join(config.detect.detectors)
    stages["detect"] = Expected(detect_settings(config), seed, reads, config.world.n_train, about=about)
    stages |= trained
    measured = evaluation_settings(config, world)
    for name in models(config):
        reads = _own_clean(config, "model") if name == "clean" else {"model": stage_of(name)}
        stages[f"evaluate/{name}"] = Expected(measured, seed, reads | _same("poison"), config.world.n_test)
    stages["report"] = Expected(report_settings(config), seed, _same(*stages))
    return stages


def _same(*stages: str) -> dict[str, str]:
    """Return the reads of a stage whose record calls stages by their names."""
    return {stage: stage for stage in stages}


def _own_clean(config: RunConfig, called: str) -> dict[str, str]:
    """Return the stage that trains the run's clean model, by what a record calls it, where there is one."""
    return {} if config.clean is None else {called: "clean"}


def _poison(config: RunConfig, world: World) -> dict[str, Expected]:
    """Return the stage `poison`, and before it `trigger` where the patch is optimised."""
    stages, attack, patch = {}, build_attack(config), patch_options(config.attack)
    reads = _own_clean(config, "surrogate") if config.poison.selector in SURROGATE_SELECTORS else {}
    if patch is not None:
        settings, also = trigger_settings(config, attack, patch, world)
        start = _own_clean(config, "surrogate") if patch.surrogate is None else {}
        about = f"optimise the patch, {patch.config.steps} steps"
        stages[STAGE] = Expected(settings, config.seed, start, patch.n_images, about=about, also=(also,))
        reads |= _same(STAGE)
        if (config.output_dir / STAGE / KEPT).is_dir():
            attack = optimized_attack(config, attack)
    settings = poison_settings(config, attack, _rows_read(config))
    about = f"{attack.name} -> {attack.target}, {settings['count']} rows"
    about += "; rows that cannot be read are left out" if config.world.on_error == "skip" else ""
    stages["poison"] = Expected(settings, config.seed, reads, config.world.n_train, about=about)
    return stages


def _rows_read(config: RunConfig) -> int:
    """Return how many pairs the stage `poison` read, of which it takes a share; those asked for where it did not."""
    folder = config.output_dir / "poison"
    if config.world.on_error == "raise" or not (folder / RECORD_FILE).is_file():
        return config.world.n_train
    return RunRecord.load(folder).metrics["n_rows"]


def _trained(config: RunConfig, world: World) -> dict[str, Expected]:
    """Return the stages that train."""
    stages = {}
    for one in trainings(config):
        settings = training_stage_settings(config, one.config, world, one.stage)
        about, also = training_line(one.trainer, one.config), measured_otherwise(settings)
        stages[one.stage] = Expected(settings, one.config.seed, _reads(config, one), one.rows, one.steps, about, also)
    return stages


def _reads(config: RunConfig, one: Training) -> dict[str, str]:
    """Return the stages that a training reads."""
    if one.stage == "clean":
        return {}
    needs = ()
    if one.stage != "victim":
        if DEFENSES[one.name].trains_on == "clean":
            return _same("victim")
        needs = DEFENSES[one.name].needs
    return _own_clean(config, "clean") | _same("poison", *needs)
