# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What the figures of a job depend on, without what is merely handled or stands at its default."""

import dataclasses
from typing import TYPE_CHECKING, Any

from hf_clipbd.recipe.config import PLAIN_SECTIONS, RunConfig, training_settings


if TYPE_CHECKING:
    from hf_clipbd.trainer import CLIPTrainingConfig

HANDLING = ("num_proc", "batch_size", "map_points")
"""Keys of the plain sections that change no figure: a finished cell stays finished where they differ."""
MEASURED = ("world", "poison", "evaluate", "detect")
"""Plain sections that figures depend on."""


def settings_of(config: RunConfig) -> dict[str, Any]:
    """Return what the figures of a job depend on, as JSON; an option that has its default is left out.

    So a cell stays finished when the package gets a new option whose default is what was done before.
    """
    resolved = config.resolved()
    kept = {"attack": resolved["attack"], "objective": config.objective, "architecture": config.architecture}
    for name in MEASURED:
        plain = {one.name: one for one in dataclasses.fields(PLAIN_SECTIONS[name])}
        given = {key: value for key, value in resolved[name].items() if key not in HANDLING}
        kept[name] = {key: value for key, value in given.items() if value != _default(plain[key])}
    trained = {"clean": config.clean, "victim": config.victim, **config.defenses}
    kept["trained"] = {name: _changed(one) for name, one in trained.items() if one is not None}
    return kept


def _default(one: dataclasses.Field) -> Any:
    return one.default if one.default_factory is dataclasses.MISSING else one.default_factory()


def _changed(training: "CLIPTrainingConfig") -> dict[str, Any]:
    """Return the settings of a training that differ from its class's own."""
    plain = training_settings(type(training)(output_dir="unused", use_cpu=training.use_cpu))
    return {key: value for key, value in training_settings(training).items() if value != plain.get(key)}
