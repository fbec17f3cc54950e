# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What the `--list_...` flags show: attacks, trainings, defences and detectors with their options."""

import dataclasses
from collections.abc import Iterator
from typing import Any


OFTEN_SET = ("num_train_epochs", "bf16", "dataloader_num_workers", "gradient_accumulation_steps", "report_to")
"""Keys of transformers' own that trainings of this kind are mostly given."""


def attack_lines() -> Iterator[str]:
    """Yield each attack with its options and presets."""
    from hf_clipbd.recipe import poisoning

    return poisoning.attack_lines()


def training_lines() -> Iterator[str]:
    """Yield the keys of a plain training: our own, and those of transformers that are mostly set."""
    from hf_clipbd.trainer import CLIPTrainingConfig

    yield "keys of CLIPTrainingConfig:"
    yield from _keys(CLIPTrainingConfig, ())
    yield "and those of transformers.TrainingArguments, among them:"
    yield from _keys(CLIPTrainingConfig, (), OFTEN_SET)


def defense_lines() -> Iterator[str]:
    """Yield each defence with what it is run on and the keys that it adds to a plain training's."""
    from hf_clipbd.defenses import DEFENSES
    from hf_clipbd.trainer import CLIPTrainingConfig

    for name, one in DEFENSES.items():
        needs = f", after {', '.join(one.needs)} (`hf-clipbd run` only)" if one.needs else ""
        yield f"{name}: {_first_line(one.trainer)} On {one.trains_on} pairs{needs}."
        yield from _keys(one.config, tuple(field.name for field in dataclasses.fields(CLIPTrainingConfig)))
    yield "and for each the keys of a plain training: hf-clipbd train --list_options"


def detector_lines() -> Iterator[str]:
    """Yield each detector with what it scores; higher is more suspicious."""
    from hf_clipbd.detection import DETECTORS

    for name, one in DETECTORS.items():
        yield f"{name}: {_first_line(one).removeprefix('Return').lstrip(', ')}"


def _first_line(documented: Any) -> str:
    return " ".join((documented.__doc__ or "").strip().split("\n\n")[0].split())


def _keys(cls: type, without: tuple[str, ...], only: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield a line for each field that a class has beside transformers' own, or for those of `only`."""
    from transformers import TrainingArguments

    ours = [one for one in reversed(cls.__mro__) if not issubclass(TrainingArguments, one)]
    own = [name for one in ours for name in one.__annotations__]
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name in only or dict.fromkeys(own):
        if name in without or name == "output_dir":
            continue
        field = fields[name]
        default = field.default if field.default is not dataclasses.MISSING else field.default_factory()
        text = " ".join(str(field.metadata.get("help", "")).split())
        first = text.split(". ")[0].rstrip(".")
        yield f"    --{name} (default: {getattr(default, 'value', default)})  {first}."
