# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""A reproduction's plan: what would be run, whether it could be, and about what it takes; reads and writes nothing."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from hf_clipbd.data.sources import load_source
from hf_clipbd.models import CLIPResNetConfig
from hf_clipbd.recipe.config import RunConfig
from hf_clipbd.recipe.defending import rows_of
from hf_clipbd.recipe.reproduce_config import ReproduceCell, Reproduction
from hf_clipbd.recipe.stage import elapsed
from hf_clipbd.schema import RECORD_FILE, RunRecord
from hf_clipbd.trainer import CLIPTrainingConfig


COST = {"cleanclip": 2.1, "cleanerclip": 2.2, "par": 1.7, "mmcl+ssl": 2.1}
"""Time of a step beside that of plain fine-tuning: CleanCLIP's and CleanerCLIP's from recipes/scenes/records; PAR's
counts one forward pass more, and was not measured."""
VIEWS = {"cleanclip": 2, "cleanerclip": 2, "safeclip": 2, "mmcl+ssl": 2}
"""Pictures of a pair that a step keeps activations of; PAR's frozen model keeps none."""
BYTES_A_PIXEL = 0.75
"""Of a stored picture; what the scenes' PNGs take, and more than photographs as JPEG do."""
ACTIVATIONS_A_PIXEL = 2000
"""Bytes that a ResNet-50 keeps for the backward pass, a pixel of the input, in single precision; a rough figure."""
HALF = 0.5
"""Of the activations, in bf16 or fp16."""
CHECKPOINTED = 0.3
"""Of the activations, where layers are computed again in the backward pass, as a ResNet's are not; a rough figure."""
STATES = 4
"""Weights, gradients and AdamW's two moments."""
SHIPPED_BYTES = 4_700_000
GB = 1e9


class Check(NamedTuple):
    """One thing that has to be there.

    Args:
        ok: Whether it is; None where that cannot be told without a download.
        text: What was looked at and what was found.
    """

    ok: bool | None
    text: str


class Plan(NamedTuple):
    """A plan for people, and whether every check that could be made went well.

    Args:
        text: The plan.
        ok: Whether nothing that was looked for is missing.
        checks: What was looked for.
    """

    text: str
    ok: bool
    checks: tuple[Check, ...] = ()


def _source_check(what: str, source: str) -> Check:
    if Path(source).expanduser().exists():
        return Check(True, f"{what} `{source}` is there")
    if source.count("/") == 1 and not source.startswith((".", "/", "~")):
        return Check(None, f"{what} `{source}` is no local path; as a Hub id it would be downloaded")
    return Check(False, f"{what} `{source}` is missing")


def _classes_check(config: RunConfig) -> Check:
    world, target = config.world, str(config.attack["target"])
    names = list(world.class_names)
    source = world.test_path or world.path
    if world.kind == "scenes":
        return Check(True, f"the target `{target}` is a class of the scenes")
    if not names and source is not None and Path(source).expanduser().exists():
        rows = load_source(source, world.test_split, None if world.test_path else world.data_files, streaming=True)
        label = (rows.features or {}).get(world.label_column)
        names = [name.replace("_", " ") for name in getattr(label, "names", [])]
    if not names:
        return Check(None, f"whether `{target}` is a class of `{source}` is not known before it is read")
    return Check(target in names, f"the target `{target}` is {'' if target in names else 'not '}one of its classes")


def checks(reproduction: Reproduction) -> list[Check]:
    """Return whether data, models, class names and disk are there, each question once."""
    found: dict[str, Check] = {}
    for cell in reproduction.chosen:
        config, world = cell.config, cell.config.world
        asked = [_classes_check(config)]
        for what, source in (("data", world.path), ("test images", world.test_path)):
            asked += [_source_check(what, source)] if source is not None else []
        if world.clean_model not in ("scenes", "train"):
            asked.append(_source_check("clean model", world.clean_model))
        asked += [_source_check(f"{key} of {cell.attack}", source) for key, source in cell.absent.items()]
        asked += [
            _source_check(f"measure `{name}`", one.data) for name, one in cell.measures.items() if one.data != "scenes"
        ]
        found |= {check.text: check for check in asked}
    needed, free = _disk(reproduction), _free(reproduction.folder)
    found["disk"] = Check(needed < free, f"disk: about {needed / GB:.1f} GB needed, {free / GB:.1f} GB free")
    if reproduction.options.device_memory is not None:
        found["memory"] = _memory_check(reproduction, reproduction.options.device_memory)
    return list(found.values())


def _memory_check(reproduction: Reproduction, device: float) -> Check:
    needed: dict[str, float] = {}
    for config in (cell.config for cell in reproduction.chosen):
        for one in trainings(config):
            needed[one.stage] = max(needed.get(one.stage, 0.0), memory_bytes(config, one.name, one.config) / GB)
    stage = max(needed, key=lambda name: needed[name])
    text = f"memory: `{stage}` takes about {needed[stage]:.1f} GB of a device's {device:g}"
    advice = (
        "; bf16, `chunk_size` (a ResNet's with `freeze_batch_norm`), `gradient_checkpointing` (not a ResNet's), or "
        "smaller batches on more devices need less"
    )
    return Check(needed[stage] <= device, text if needed[stage] <= device else text + advice)


def _free(folder: Path) -> int:
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def weight_bytes(config: RunConfig) -> int:
    """Return the size of the clean model's weights where they are local, a ResNet-50 CLIP's otherwise."""
    if config.world.clean_model == "scenes":
        return SHIPPED_BYTES
    local = Path(config.world.clean_model).expanduser()
    sizes = [path.stat().st_size for path in local.glob("*.safetensors")] if local.is_dir() else []
    return sum(sizes) or 408_000_000


def has_resnet(config: RunConfig) -> bool:
    """Return whether the clean model's image tower is OpenAI's ResNet, as is assumed where it is not local."""
    if config.clean is not None:
        return config.architecture.get("kind", "resnet") == "resnet"
    path = Path(config.world.clean_model).expanduser() / "config.json"
    if not path.is_file():
        return True
    return json.loads(path.read_text(encoding="utf-8")).get("model_type") == CLIPResNetConfig.model_type


def _picture_bytes(config: RunConfig) -> float:
    return config.world.size**2 * BYTES_A_PIXEL


def _disk(reproduction: Reproduction) -> float:
    """Return the bytes at the fullest moment: what finished cells keep, and one cell with data and checkpoint."""
    kept, peak = 0.0, 0.0
    for cell in reproduction.chosen:
        config = cell.config
        models, rows = weight_bytes(config) * (1 + len(config.defenses)), config.world.n_train
        whole = rows * _picture_bytes(config) + models + (STATES - 1) * weight_bytes(config)
        small = rows * 4096.0 if reproduction.options.keep_embeddings else 0.0
        peak = max(peak, whole)
        kept += small + (rows * _picture_bytes(config) + models if reproduction.options.keep_models else 0.0)
    return kept + peak


def memory_bytes(config: RunConfig, name: str, one: CLIPTrainingConfig) -> float:
    """Return about what a training takes on one device: states, and activations of the largest batch or chunk.

    Args:
        config: The job.
        name: The defence or objective.
        one: Its configuration.
    """
    pictures = min(one.per_device_train_batch_size, one.chunk_size or one.per_device_train_batch_size)
    activations = pictures * VIEWS.get(name, 1) * config.world.size**2 * ACTIVATIONS_A_PIXEL
    activations *= HALF if one.bf16 or one.fp16 else 1
    again = getattr(one, "activation_checkpointing", False) or one.gradient_checkpointing  # the new name and the old
    activations *= CHECKPOINTED if again and not has_resnet(config) else 1
    activations *= 1 if config.world.clean_model != "scenes" else 0.25  # the shipped network is far narrower
    return (STATES + (name == "par")) * weight_bytes(config) + activations


class Training(NamedTuple):
    """One training of a job.

    Args:
        stage: Its stage.
        name: The defence or objective.
        config: Its configuration.
        pairs: Pairs an epoch, with those that are drawn for batches of their own.
    """

    stage: str
    name: str
    config: CLIPTrainingConfig
    pairs: int

    @property
    def steps(self) -> int:
        """Optimiser steps in one process."""
        batch = self.config.per_device_train_batch_size * self.config.gradient_accumulation_steps
        return int(self.pairs // batch * self.config.num_train_epochs)

    def seconds(self, speed: float) -> float:
        """Return about its time at `speed` pairs a second of plain fine-tuning."""
        return self.pairs * self.config.num_train_epochs * COST.get(self.name, 1.0) / speed


def trainings(config: RunConfig) -> Iterator[Training]:
    """Yield every training of a job."""
    world = config.world
    if config.clean is not None:
        yield Training("clean", "mmcl", config.clean, world.n_clean or world.n_train)
    yield Training("victim", config.objective, config.victim, world.n_train)
    for name, one in config.defenses.items():
        yield Training(f"defend/{name}", name, one, rows_of(config, name) + getattr(one, "k_pairs", 0))


def _state(cell: ReproduceCell) -> str:
    """Return which stages of a cell have a record; whether it is current only a run can tell."""
    folder = cell.config.output_dir
    if (folder / "cell" / RECORD_FILE).is_file():
        same = RunRecord.load(folder / "cell").config == cell.settings
        return "finished" if same else "finished with other settings, will be run again"
    stages = sorted(path.parent.relative_to(folder).as_posix() for path in folder.rglob(RECORD_FILE))
    return f"begun: {', '.join(stages)}" if stages else "to be run"


def _cost_lines(config: RunConfig, speed: float | None) -> Iterator[str]:
    for one in trainings(config):
        settings = one.config
        batch = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
        took = f", about {elapsed(one.seconds(speed))}" if speed else ""
        yield (
            f"  {one.stage:20} {one.pairs} pairs x {settings.num_train_epochs:g} epochs, batch {batch}, "
            f"{one.steps} steps, learning rate {settings.learning_rate:g}, "
            f"{memory_bytes(config, one.name, settings) / GB:.1f} GB{took}"
        )
    if speed:
        yield f"  trainings about {elapsed(sum(one.seconds(speed) for one in trainings(config)))} a cell"


def plan(reproduction: Reproduction) -> Plan:
    """Return what a reproduction would do: its checks, its cells and their state, sizes, memory, disk and time.

    Times are for one process and count trainings alone; they are given where `images_per_second` is.
    """
    options, made = reproduction.options, checks(reproduction)
    words = {True: "ok      ", False: "MISSING ", None: "unknown "}
    lines = [f"{options.title}: {len(reproduction.chosen)} of {len(reproduction.cells)} cells", "", "Checks"]
    lines += [f"  {words[check.ok]} {check.text}" for check in made]
    lines += ["", f"Cells, in {reproduction.folder}"]
    lines += [f"  {cell.name:28} {_state(cell)}" for cell in reproduction.chosen]
    shown: dict[str, list[str]] = {}
    for cell in reproduction.chosen:
        text = "\n".join(_cost_lines(cell.config, options.images_per_second))
        shown.setdefault(text, []).append(cell.attack)
    for text, attacks in shown.items():
        lines += ["", f"Trainings of {', '.join(dict.fromkeys(attacks))}", text]
    if options.images_per_second:
        speed = options.images_per_second
        seconds = sum(one.seconds(speed) for cell in reproduction.chosen for one in trainings(cell.config))
        lines += ["", f"All trainings: about {seconds / 3600:.1f} hours in one process at "
                      f"{speed:g} pairs a second."]  # fmt: skip
    measures = next(iter(reproduction.chosen)).measures
    lines += ["", f"Measured besides: {', '.join(measures)}."] if measures else []
    lines += ["", "Nothing was run, downloaded or written."]
    return Plan("\n".join(lines), all(check.ok is not False for check in made), tuple(made))
