# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""How models of a run are measured: BA, ASR and RA by the run's prompts, on its canvas, with its trigger."""

from collections.abc import Mapping
from typing import Any

import datasets

from hf_clipbd.attacks import Attack
from hf_clipbd.evaluation import ZeroShotEvaluator, evaluate_zero_shot
from hf_clipbd.evaluation.protocol import on_pictures
from hf_clipbd.recipe.config import RunConfig
from hf_clipbd.recipe.place import model_device
from hf_clipbd.recipe.world import World
from hf_clipbd.schema import EPOCH_KS, EvalReport, reachable


TRIGGER_FOLDER = "trigger"


def load_trigger(config: RunConfig) -> dict[str, Attack]:
    """Return the trigger that the run's data were poisoned with, by its name; none where it is in the text alone."""
    attack = Attack.from_pretrained(config.output_dir / "poison" / TRIGGER_FOLDER)
    return on_pictures({attack.name: attack})


def measure(
    config: RunConfig, world: World, model: Any, processor: Any, triggers: Mapping[str, Attack] | None = None
) -> EvalReport:
    """Return the zero-shot report of a model on the run's labelled images with its trigger, or with other ones."""
    triggers = load_trigger(config) if triggers is None else triggers
    return evaluate_zero_shot(
        model.to(model_device()), processor, world.test, triggers, ks=world.ks, **_protocol(config, world)
    )


def evaluator(
    config: RunConfig, world: World, processor: Any, images: datasets.Dataset, triggers: Mapping[str, Attack]
) -> ZeroShotEvaluator:
    """Return what measures a model between the epochs of its training, in the way in which `measure` does."""
    ks = reachable(EPOCH_KS, len(world.class_names))
    return ZeroShotEvaluator(processor, images, triggers, ks=ks, **_protocol(config, world))


def _protocol(config: RunConfig, world: World) -> dict[str, Any]:
    return {
        "templates": world.prompts,
        "batch_size": config.evaluate.batch_size,
        "include_target": config.evaluate.include_target,
        "canvas": world.canvas,
    }
