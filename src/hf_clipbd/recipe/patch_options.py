# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What the section `attack` of a run says about a patch that is optimised first."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hf_clipbd.attacks import BadCLIP
from hf_clipbd.attacks.optimize_patch import PatchConfig
from hf_clipbd.recipe.sections import ConfigError, call_with, check_keys, scalar


OWN_KEYS = ("n_images", "surrogate")


@dataclass(frozen=True)
class PatchOptions:
    """`attack.optimize`: the keys of `PatchConfig`, and these.

    Args:
        n_images: Pictures of other classes that it is optimised on, at most.
        surrogate: Folder or Hub id of the surrogate; None is the run's clean model, as in the paper.

    Raises:
        ValueError: If there are to be no pictures.
    """

    config: PatchConfig = field(default_factory=PatchConfig)
    n_images: int = 10_000
    surrogate: str | None = None

    def __post_init__(self) -> None:
        if self.n_images < 1:
            raise ValueError(f"`n_images` is at least 1, but got {self.n_images}.")


def patch_options(attack: Mapping[str, Any]) -> PatchOptions | None:
    """Return how the trigger of a run is optimised, or None where it is not.

    It is where the attack is BadCLIP, no `attack.patch` is given and `attack.optimize` is not `false`.

    Raises:
        ConfigError: If a key of `attack.optimize` is unknown or a value refused, or another attack has the key.
    """
    given = scalar(attack.get("optimize"))
    if attack.get("name") != BadCLIP.name or attack.get("patch") is not None:
        if given:
            raise ConfigError("Expected `attack.optimize` beside `attack.name: badclip` without a `patch` only.")
        return None
    if given is False:
        return None
    if given is not None and not isinstance(given, Mapping):
        raise ConfigError(f"Expected `attack.optimize` to map keys to values or to be `false`, but got {given!r}.")
    values = dict(given or {})
    known = [one.name for one in dataclasses.fields(PatchConfig)]
    check_keys(values, [*known, *OWN_KEYS], "attack.optimize")
    own = {name: values.pop(name) for name in OWN_KEYS if name in values}
    config = call_with(PatchConfig, values, "attack.optimize")
    return call_with(PatchOptions, {"config": config, **own}, "attack.optimize")
