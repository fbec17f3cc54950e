# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""A reproduction's plan: what would be run, whether it could be, and about what it takes; reads and writes nothing."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hf_clipbd.data.files import is_pattern
from hf_clipbd.models import CLIPResNetConfig
from hf_clipbd.recipe import steps
from hf_clipbd.recipe.config import RunConfig
from hf_clipbd.recipe.reproduce_config import ReproduceCell, Reproduction
from hf_clipbd.recipe.stage import elapsed
from hf_clipbd.recipe.steps import Training, global_batch
from hf_clipbd.recipe.world_rows import look_at_labelled, look_at_pairs
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


def _pairs_check(config: RunConfig) -> Check | None:
    """Return whether the run finds its pairs' columns; None where they are rendered, missing or on the Hub."""
    world = config.world
    if world.kind == "scenes" or not _is_here(world.path, world.data_files):
        return None
    try:
        if world.kind == "labelled":
            look_at_labelled(world, world.train_split, tests=False)
            return Check(True, "pairs: captions are made of labels")
        columns = [look_at_pairs(world, split) for split in (world.train_split, world.defense_split) if split]
    except (FileNotFoundError, ValueError) as error:
        return Check(False, f"pairs: {error}")
    named = ", ".join(f"{what} in `{name}`" for what, name in columns[0].items())
    return Check(True, f"pairs: {named}")


def _classes_check(config: RunConfig) -> Check:
    """Return whether the target is a class of the test images, which are looked at as the run reads them."""
    world, target = config.world, str(config.attack["target"])
    source = world.test_path or world.path
    if world.kind == "scenes":
        return Check(True, f"the target `{target}` is a class of the scenes")
    names: list[str] | None = world.class_names
    if _is_here(source, None if world.test_path else world.data_files):
        try:
            names = look_at_labelled(world, world.test_split, tests=True)
        except (FileNotFoundError, ValueError) as error:
            return Check(False, f"test images: {error}")
    if not names:
        return Check(None, f"whether `{target}` is a class of `{source}` is not known before it is read")
    found = target in {name.replace("_", " ") for name in names}
    return Check(found, f"the target `{target}` is {'' if found else 'not '}one of its classes")


def _is_here(source: str | None, files: Any) -> bool:
    """Return whether data can be looked at without a download; what is missing has a check of its own."""
    return files is not None or source is not None and (is_pattern(source) or Path(source).expanduser().exists())


def checks(reproduction: Reproduction) -> list[Check]:
    """Return whether data, models, class names and disk are there, each question once."""
    found: dict[str, Check] = {}
    for cell in reproduction.chosen:
        config, world = cell.config, cell.config.world
        asked = [one for one in (_pairs_check(config), _classes_check(config)) if one is not None]
        if world.on_error == "skip" and world.kind != "scenes":
            asked.append(Check(True, "rows that cannot be read are left out: each picture is decoded once beforehand"))
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


def _disk(reproduction: Reproduction) -> float:
    """Return the bytes at the fullest moment: what finished cells keep, and one cell with data and checkpoint."""
    kept, peak = 0.0, 0.0
    for cell in reproduction.chosen:
        config = cell.config
        rows = config.world.n_train
        large = rows * config.world.size**2 * BYTES_A_PIXEL + weight_bytes(config) * (1 + len(config.defenses))
        peak = max(peak, large + (STATES - 1) * weight_bytes(config))
        kept += rows * 4096.0 if reproduction.options.keep_embeddings else 0.0
        kept += large if reproduction.options.keep_models else 0.0
    return kept + peak


def memory_bytes(config: RunConfig, name: str, one: CLIPTrainingConfig) -> float:
    """Return about what a training takes on one device: states, and activations of the largest batch or chunk."""
    pictures = min(one.per_device_train_batch_size, one.chunk_size or one.per_device_train_batch_size)
    activations = pictures * VIEWS.get(name, 1) * config.world.size**2 * ACTIVATIONS_A_PIXEL
    activations *= HALF if one.bf16 or one.fp16 else 1
    again = getattr(one, "activation_checkpointing", False) or one.gradient_checkpointing  # the new name and the old
    activations *= CHECKPOINTED if again and not has_resnet(config) else 1
    activations *= 1 if config.world.clean_model != "scenes" else 0.25  # the shipped network is far narrower
    return (STATES + (name == "par")) * weight_bytes(config) + activations


def trainings(config: RunConfig) -> Iterator[Training]:
    """Yield every training of a job; where nobody has counted the rows of one, it is taken to have the victim's."""
    for one in steps.trainings(config):
        yield one if one.rows is not None else one._replace(rows=config.world.n_train)


def _seconds(config: RunConfig, speed: float) -> dict[str, float]:
    """Return about the time of each training of a job at `speed` pairs a second of plain fine-tuning."""
    return {one.stage: one.pairs * one.epochs * COST.get(one.name, 1.0) / speed for one in trainings(config)}


def _state(cell: ReproduceCell) -> str:
    """Return which stages of a cell have a record; whether it is current only a run can tell."""
    folder = cell.config.output_dir
    if (folder / "cell" / RECORD_FILE).is_file():
        same = RunRecord.load(folder / "cell").config == cell.settings
        return "finished" if same else "finished with other settings, will be run again"
    stages = sorted(path.parent.relative_to(folder).as_posix() for path in folder.rglob(RECORD_FILE))
    return f"begun: {', '.join(stages)}" if stages else "to be run"


def _cost_lines(config: RunConfig, speed: float | None) -> Iterator[str]:
    seconds = _seconds(config, speed) if speed else {}
    for one in trainings(config):
        settings = one.config
        took = f", about {elapsed(seconds[one.stage])}" if speed else ""
        yield (
            f"  {one.stage:20} {one.pairs} pairs x {one.epochs:g} epochs, batch {global_batch(settings)}, "
            f"{one.steps} steps, learning rate {settings.learning_rate:g}, "
            f"{memory_bytes(config, one.name, settings) / GB:.1f} GB{took}"
        )
    if speed:
        yield f"  trainings about {elapsed(sum(seconds.values()))} a cell"


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
        seconds = sum(sum(_seconds(cell.config, speed).values()) for cell in reproduction.chosen)
        lines += ["", f"All trainings: about {seconds / 3600:.1f} hours in one process at "
                      f"{speed:g} pairs a second."]  # fmt: skip
    measures = next(iter(reproduction.chosen)).measures
    lines += ["", f"Measured besides: {', '.join(measures)}."] if measures else []
    lines += ["", "Nothing was run, downloaded or written."]
    return Plan("\n".join(lines), all(check.ok is not False for check in made), tuple(made))
