# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The stages of a run as functions of its configuration; a name is imported when it is first used."""

from importlib import import_module
from typing import Any


_MODULES = {
    "ConfigError": "sections",
    "RunConfig": "config",
    "config_from": "config",
    "load_config": "config",
    "poison": "training",
    "train_clean": "training",
    "train_victim": "training",
    "defend": "defending",
    "evaluate": "measuring",
    "detect": "measuring",
    "GridConfig": "grid_config",
    "load_grid": "grid_config",
    "run_grid": "grid",
    "report": "job",
    "run": "job",
}

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module `{__name__}` has no attribute `{name}`")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
