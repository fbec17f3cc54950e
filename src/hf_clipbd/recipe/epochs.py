# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What the trainings of a run are measured on after each epoch, and on which images a choice among epochs rests."""

from collections.abc import Callable, Mapping
from typing import Any

import datasets
import numpy as np

from hf_clipbd.attacks import Attack
from hf_clipbd.evaluation import ZeroShotEvaluator
from hf_clipbd.recipe.config import RunConfig
from hf_clipbd.recipe.sections import ConfigError
from hf_clipbd.recipe.world import World
from hf_clipbd.recipe.zero_shot import evaluator
from hf_clipbd.trainer import CLIPTrainingConfig
from hf_clipbd.training.settings import saves_fewer


def chooses(training: CLIPTrainingConfig | None) -> bool:
    """Return whether a training stops or keeps its best model by what is measured after each epoch.

    Raises:
        ConfigError: If it goes by a figure on stamped images (ASR, RA), which a defender does not know, or by
            measurements of models that are not saved, see `check_best_is_saved`.
    """
    if training is None or not (training.load_best_model_at_end or training.early_stopping_patience is not None):
        return False
    if _takes_trigger(training.metric_for_best_model):
        raise ConfigError(
            "Expected a `metric_for_best_model` that is known without the trigger, but got "
            f"{training.metric_for_best_model!r}. Leave it out, which means `ba1`."
        )
    check_best_is_saved(training)
    return True


def _takes_trigger(metric: str | None) -> bool:
    return (metric or "").removeprefix("eval_").startswith(("asr", "ra"))


def check_best_is_saved(training: CLIPTrainingConfig) -> None:
    """Raise `ConfigError` where `load_best_model_at_end` would find the best model unsaved and keep the last one."""
    if saves_fewer(training):
        raise ConfigError(
            f"Expected a checkpoint at every evaluation beside `load_best_model_at_end`, but got `save_steps` "
            f"{training.save_steps} and `eval_steps` {training.eval_steps}: a best model that was not saved cannot be "
            "loaded. Set `save_steps` to `eval_steps`."
        )


def epoch_evaluator(
    config: RunConfig, world: World, triggers: dict[str, Attack], training: CLIPTrainingConfig | None = None
) -> Callable[[Any], Any]:
    """Return what `train_into` asks for its measurements: a function of the processor.

    Where the training `chooses`, the images are `world.validation`, of which none is reported on; else they are a part
    of `world.test`.
    """
    choosing = chooses(training)

    def images() -> datasets.Dataset:
        if choosing:
            return world.validation(config.evaluate.epoch_images)
        n = min(config.evaluate.epoch_images, len(world.test))
        return world.test.select(np.linspace(0, len(world.test), n, endpoint=False, dtype=int))

    def build(processor: Any) -> ZeroShotEvaluator | None:
        if config.evaluate.epoch_images == 0:
            return None
        return evaluator(config, world, processor, images(), triggers)

    return build


def measured_settings(config: RunConfig, training: CLIPTrainingConfig, world: World) -> dict[str, Any]:
    """Return what the measurements after each epoch depend on, for the record of a training."""
    measured = {name: getattr(config.evaluate, name) for name in ("epoch_images", "include_target")}
    chosen = {"images": "validation"} if chooses(training) else {}
    return {**measured, **chosen, "prompts": world.prompts}


def measured_otherwise(settings: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """Return the settings of trainings that give the same model, but whose ASR by epoch counts other images.

    Where no step and no choice among epochs rests on it, `evaluate.include_target` trains nothing again: the history
    stays as it was measured, and its record says how.
    """
    if _takes_trigger(settings["training"].get("metric_for_best_model")):
        return ()
    measured = settings["measured"]
    return ({**settings, "measured": {**measured, "include_target": not measured["include_target"]}},)
