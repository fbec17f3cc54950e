# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The trainings of a run as its configuration has them: rows, steps, and what the record of each depends on."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from accelerate import PartialState

from hf_clipbd.data.batches import PairBatchSampler
from hf_clipbd.defenses import DEFENSES, OBJECTIVES
from hf_clipbd.recipe.config import RunConfig, training_settings
from hf_clipbd.recipe.epochs import measured_settings
from hf_clipbd.recipe.world import World
from hf_clipbd.trainer import CLIPTrainer, CLIPTrainingConfig


class Training(NamedTuple):
    """One training of a run.

    Args:
        name: The defence or objective.
        rows: Pairs it is given, where the world has as many as it is asked for; None where nobody has counted them.
    """

    stage: str
    name: str
    trainer: type[CLIPTrainer]
    config: CLIPTrainingConfig
    rows: int | None

    @property
    def steps(self) -> int | None:
        """Optimiser steps, None where the rows are not known; raises as `training_steps`."""
        return None if self.rows is None else training_steps(self.trainer, self.config, self.rows)

    @property
    def pairs(self) -> int | None:
        """Pairs an epoch, with those that are drawn for batches of their own; None where the rows are not known."""
        return None if self.rows is None else self.rows + self.trainer.view_plan(self.config).subset_size

    @property
    def epochs(self) -> float:
        """Epochs, a part of one too where `max_steps` ends the training earlier; the rows have to be known."""
        if self.config.max_steps <= 0:
            return self.config.num_train_epochs
        return self.config.max_steps / steps_an_epoch(self.trainer, self.config, self.rows)


def trainings(config: RunConfig) -> Iterator[Training]:
    """Yield the trainings of a run in the order in which they are run."""
    world = config.world
    if config.clean is not None:
        rows = world.n_clean or (world.n_train if world.kind == "scenes" else None)
        yield Training("clean", "mmcl", CLIPTrainer, config.clean, rows)
    yield Training("victim", config.objective, OBJECTIVES[config.objective].trainer, config.victim, world.n_train)
    for name, training in config.defenses.items():
        yield defense_training(config, name, training)


def defense_training(config: RunConfig, name: str, training: CLIPTrainingConfig) -> Training:
    """Return the training of a defence on a run, which need not be among the run's own."""
    rows = config.world.n_defense
    if DEFENSES[name].trains_on == "poisoned":
        rows = config.world.n_train - round(getattr(training, "drop_share", 0.0) * config.world.n_train)
    return Training(f"defend/{name}", name, DEFENSES[name].trainer, training, rows)


def global_batch(config: CLIPTrainingConfig) -> int:
    """Return the pairs of one optimiser step over all processes."""
    return config.per_device_train_batch_size * PartialState().num_processes * config.gradient_accumulation_steps


def training_stage_settings(
    config: RunConfig, training: CLIPTrainingConfig, world: World, stage: str = ""
) -> dict[str, Any]:
    """Return what the result of a training stage depends on beside its inputs and its seed; no data are read for it.

    Args:
        stage: Its stage; the records of `clean` and `victim` say more than those of a defence.
    """
    own = {"clean": {"architecture": config.architecture}, "victim": {"objective": config.objective}}
    return {
        **own.get(stage, {}),
        "training": training_settings(training),
        "global_batch": global_batch(training),
        "canvas": [world.canvas.size, world.canvas.mode],
        "measured": measured_settings(config, training, world),
    }


def steps_an_epoch(trainer: type[CLIPTrainer], config: CLIPTrainingConfig, rows: int) -> int:
    """Return the optimiser steps of one epoch.

    Raises:
        ValueError: If the rows are fewer than one batch or than the pairs drawn for extra batches.
    """
    processes = PartialState().num_processes
    batch = config.per_device_train_batch_size * max(1, config.n_gpu)
    drawn = trainer.view_plan(config).subset_size
    sampler = PairBatchSampler(rows, batch, processes, config.seed, drawn, config.dataloader_drop_last)
    return -(-(len(sampler) // processes) // config.gradient_accumulation_steps)


def training_steps(trainer: type[CLIPTrainer], config: CLIPTrainingConfig, rows: int) -> int:
    """Return the optimiser steps of a training; arguments and errors are those of `steps_an_epoch`."""
    each = steps_an_epoch(trainer, config, rows)
    return config.max_steps if config.max_steps > 0 else int(-(-each * config.num_train_epochs // 1))


def training_line(trainer: type[CLIPTrainer], config: CLIPTrainingConfig) -> str:
    """Return who trains, how long, and with how large global batches."""
    epochs = "1 epoch" if config.num_train_epochs == 1 else f"{config.num_train_epochs:g} epochs"
    return f"{trainer.__name__}, {epochs}, batches of {global_batch(config)}"
