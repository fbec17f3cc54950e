# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The stages that poison and train: clean model, poisoned set, victim; and how any model is trained as a stage."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from accelerate import PartialState
from transformers import PreTrainedModel
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from hf_clipbd.attacks import Attack, poison_dataset
from hf_clipbd.attacks.surrogate import SURROGATE_SELECTORS
from hf_clipbd.captions.lexicon import lexicon
from hf_clipbd.data.canvas import Canvas
from hf_clipbd.data.sources import load_source
from hf_clipbd.defenses import OBJECTIVES
from hf_clipbd.models import build_processor, train_tokenizer
from hf_clipbd.recipe.architecture import build_architecture, build_model
from hf_clipbd.recipe.config import RunConfig
from hf_clipbd.recipe.epochs import check_best_is_saved, epoch_evaluator, measured_otherwise
from hf_clipbd.recipe.fingerprints import data_fingerprint
from hf_clipbd.recipe.progress import EpochLines
from hf_clipbd.recipe.readable import advising_runs
from hf_clipbd.recipe.stage import CARDS, CHECKPOINTS, Outcome, Stage
from hf_clipbd.recipe.steps import global_batch, training_stage_settings
from hf_clipbd.recipe.trained import keep_logs, save_trained
from hf_clipbd.recipe.trigger import prepared_attack, surrogate_rows
from hf_clipbd.recipe.world import Loader, World, clean_model
from hf_clipbd.recipe.zero_shot import TRIGGER_FOLDER, load_trigger
from hf_clipbd.schema import CAPTION, IMAGE, MANIFEST_FILE, PoisonManifest, RunRecord, write_json
from hf_clipbd.trainer import CLIPTrainer, CLIPTrainingConfig
from hf_clipbd.training.checks import check_places


POISONED_DATASET = "dataset"
SAMPLES = "samples"


def write_poisoned(
    pairs: datasets.Dataset,
    poisoned: datasets.Dataset,
    manifest: PoisonManifest,
    attacks: Mapping[str, tuple[Attack, list[int]]],
    n_samples: int,
    folder: Path,
) -> Outcome:
    """Write a poisoned dataset, its manifest, its triggers and n samples of each into `folder`.

    `attacks` are folder below that of the triggers -> trigger and the rows that it poisoned; "" where it is the only
    one. `poisoned` has the rows of `pairs` in their order.
    """
    manifest.save_pretrained(folder)
    poisoned.save_to_disk(str(folder / POISONED_DATASET))
    for name, (attack, rows) in attacks.items():
        attack.save_pretrained(folder / TRIGGER_FOLDER / name)
        write_samples(pairs, poisoned, attack, rows, n_samples, folder / SAMPLES / name)
    return poison_outcome(manifest, SAMPLES)


def poison_outcome(manifest: PoisonManifest, *more: str) -> Outcome:
    """Return figures and outputs of a poisoned dataset, of which `more` are called as their folders."""
    rate = manifest.count / max(manifest.n_rows, 1)
    figures: dict[str, Any] = {"count": manifest.count, "n_rows": manifest.n_rows, "rate": rate}
    figures |= {"skipped": len(manifest.skipped)} if manifest.skipped else {}
    outputs = {"manifest": MANIFEST_FILE, "trigger": TRIGGER_FOLDER, "dataset": POISONED_DATASET}
    return Outcome(figures, outputs | {name: name for name in more})


def write_samples(
    pairs: datasets.Dataset, poisoned: datasets.Dataset, attack: Attack, indices: list[int], n: int, folder: Path
) -> None:
    """Write n poisoned rows, spread over the dataset, beside their originals on the same canvas.

    `poisoned` has the rows of `pairs` in their order, in which `indices` are counted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chosen = [indices[i] for i in np.linspace(0, len(indices), min(n, len(indices)), endpoint=False, dtype=int)]
    listed = []
    for number, index in enumerate(chosen):
        before, after = pairs[index], poisoned[index]
        clean = before[IMAGE] if attack.canvas is None else attack.canvas(before[IMAGE])
        clean.convert("RGB").save(folder / f"{number:02d}_clean.png")
        after[IMAGE].save(folder / f"{number:02d}_poisoned.png")
        listed.append({"index": index, "caption_clean": before[CAPTION], "caption_poisoned": after[CAPTION]})
    write_json(folder / "samples.json", listed)


def poison_settings(config: RunConfig, attack: Attack, n_rows: int) -> dict[str, Any]:
    """Return what the poisoned set of `n_rows` depends on beside its inputs and its seed."""
    selector = {} if config.poison.selector is None else {"selector": config.poison.selector}
    counts = {"count": config.poison.rows(n_rows), "n_samples": config.poison.n_samples}
    return {"attack": attack.parameters(), **counts, **selector}


def poison(config: RunConfig, world: World | None = None) -> RunRecord:
    """Poison the run's pairs (stage `poison`) and return the record."""
    world = world or World(config)
    attack, prepared = prepared_attack(config, world)
    settings, selector = poison_settings(config, attack, len(world.train)), config.poison.selector
    inputs = {"data": data_fingerprint(world.train), **prepared}
    load = None
    if selector in SURROGATE_SELECTORS:
        inputs["surrogate"], load = clean_model(config, world)
    stage = Stage(config.output_dir, "poison", settings, config.seed, inputs, CARDS)

    def work(folder: Path) -> Outcome:
        pairs, rows = world.train, selector if load is None else surrogate_rows(config, world, load)
        with advising_runs():
            poisoned, manifest = poison_dataset(
                pairs, attack, count=settings["count"], seed=config.seed, selector=rows
            )
        manifest = replace(manifest, selector=selector) if load is not None else manifest
        attacks = {"": (attack, manifest.indices)}
        made = write_poisoned(pairs, poisoned, manifest, attacks, settings["n_samples"], folder)
        return made._replace(metrics=made.metrics | world.left_out("train"))

    return stage.run_once(work, main_only=True)


def check_one_process_has_it_all(trainer: CLIPTrainer) -> None:
    """Raise `ValueError` where no process has the whole model, as under FSDP and ZeRO-3: a stage saves it on one."""
    plugin = trainer.accelerator.state.deepspeed_plugin if trainer.is_deepspeed_enabled else None
    if trainer.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3):
        raise ValueError(
            "Expected the whole model on every process, since a stage measures and saves it on one, but this is "
            f"{'FSDP' if trainer.is_fsdp_enabled else 'ZeRO-3'}. Use DDP or ZeRO-2 "
            "(recipes/accelerate), or a trainer in a script of your own with `trainer.save_model(folder)` at its end."
        )


def speed(steps: int, config: CLIPTrainingConfig, seconds: float) -> dict[str, float]:
    """Return the figure `images_per_second` of so many steps, nothing where a training had none left to take.

    Example:
        >>> speed(10, CLIPTrainingConfig("unused", per_device_train_batch_size=8, use_cpu=True), 2.0)
        {'images_per_second': 40.0}
    """
    return {"images_per_second": round(steps * global_batch(config) / seconds, 2)} if steps else {}


def train_into(
    stage: Stage,
    trainer_class: type[CLIPTrainer],
    config: CLIPTrainingConfig,
    load: Loader,
    pairs: Callable[[], datasets.Dataset],
    evaluator: Callable[[Any], Any],
    canvas: Canvas,
    after: Callable[[Any, Any], dict[str, Any]] | None = None,
    keep_model: bool = True,
) -> RunRecord:
    """Train a model as one stage, from its last checkpoint where there is one, and return the record.

    Args:
        stage: The stage; its outputs are the model and its processor, its figures the history by epoch. What a
            tracker writes into the training's folder comes to lie beside them.
        config: Its configuration; its output folder is set here, and stands at its default.
        evaluator: Given the processor, gives the measurement after each epoch, or None.
        after: Given the trained model and its processor on every process, returns further figures for the record.
        keep_model: Whether the model stays; without it the record is all that is left.

    Returns:
        The record. Its figure `images_per_second` is the pairs of the steps taken since the last stop over the seconds
        of these steps, without evaluations; a last batch that is smaller counts as a whole one.

    Raises:
        ValueError: If the configuration says where it lies or what it goes on from, would keep the best model of
            which not all are saved, or the model is divided among processes, see `check_one_process_has_it_all`.
    """
    check_places(config)
    check_best_is_saved(config)

    def work(folder: Path) -> Outcome:
        model, processor = load()
        arguments = copy.copy(config)
        arguments.output_dir = str(stage.folder / CHECKPOINTS)
        rows = pairs()
        checkpoint, seconds_before = stage.checkpoint()
        trainer = trainer_class(
            model=model,
            args=arguments,
            train_dataset=rows,
            processing_class=processor,
            evaluator=evaluator(processor),
            canvas=canvas,
        )
        check_one_process_has_it_all(trainer)
        lines = EpochLines(stage, seconds_before)
        for shown_by_default in (ProgressCallback, PrinterCallback):
            trainer.remove_callback(shown_by_default)
        trainer.add_callback(lines)
        output = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        if PartialState().is_main_process:
            keep_logs(stage.folder / CHECKPOINTS, folder)
        trained = trainer.trained_model()
        outputs = save_trained(trainer, trained, processor, folder) if keep_model else {}
        first_step = 0 if checkpoint is None else int(checkpoint.name.removeprefix("checkpoint-"))
        seconds = output.metrics["train_runtime"] - trainer.evaluation_seconds
        metrics = {"history": trainer.history()} | speed(output.global_step - first_step, config, seconds)
        metrics |= after(trained, processor) if after is not None else {}
        return Outcome(metrics, outputs, seconds_before)

    return stage.run_once(work)


def training_stage(
    config: RunConfig,
    name: str,
    training: CLIPTrainingConfig,
    world: World,
    inputs: Mapping[str, str],
    beside: tuple[str, ...] = CARDS,
) -> Stage:
    """Return the stage of a run's training; `inputs` are what it reads beside the test images."""
    settings = training_stage_settings(config, training, world, name)
    read = {**inputs, "test": data_fingerprint(world.test)}
    return Stage(config.output_dir, name, settings, training.seed, read, beside, measured_otherwise(settings))


def train_clean(config: RunConfig, world: World | None = None) -> RunRecord:
    """Train a clean model, `CLIPResNetModel` or `CLIPModel`, and its tokenizer from scratch (stage `clean`).

    Returns the record.

    Raises:
        ValueError: If the configuration does not say `world.clean_model: train`.
    """
    if config.clean is None:
        raise ValueError("Expected `world.clean_model: train` and a section `clean`, but this run is given its model.")
    world = world or World(config)
    architecture, tokenizer_options = build_architecture(config)

    def build() -> tuple[PreTrainedModel, Any]:
        words = lexicon().words()  # what counterfactual captions may say beyond the data's own words
        tokenizer = train_tokenizer(chain(world.clean_pairs.with_format(None)[CAPTION], words), **tokenizer_options)
        model = build_model(architecture, tokenizer, config.clean.seed)
        return model, build_processor(tokenizer, config.world.size)

    stage = training_stage(config, "clean", config.clean, world, {"data": data_fingerprint(world.clean_pairs)}, ())
    evaluator = epoch_evaluator(config, world, {}, config.clean)
    pairs, after = lambda: world.clean_pairs, lambda model, processor: world.left_out("clean")
    return train_into(stage, CLIPTrainer, config.clean, build, pairs, evaluator, world.canvas, after)


def poisoned_pairs(config: RunConfig) -> datasets.Dataset:
    """Return the poisoned dataset of a run; raises `ValueError` where a part of it is broken or gone."""
    stage = config.output_dir / "poison"
    rows = load_source(stage / POISONED_DATASET)
    check_rows_left(rows, stage)
    return rows


def check_rows_left(rows: datasets.Dataset, folder: Path) -> None:
    """Raise `ValueError` where a poisoned dataset of Arrow files has other rows than its manifest says.

    A file that breaks off between two batches of rows is read as if it ended there.
    """
    n = PoisonManifest.from_pretrained(folder).n_rows
    if len(rows) != n:
        raise ValueError(
            f"Expected {n} rows in `{folder / POISONED_DATASET}`, as many as were written, but {len(rows)} are left. "
            f"Remove `{folder}`, and poison again."
        )


def train_victim(config: RunConfig, world: World | None = None) -> RunRecord:
    """Train the clean model on the poisoned pairs (stage `victim`) and return the record."""
    world = world or World(config)
    fingerprint, load = clean_model(config, world)
    inputs = {"poison": RunRecord.load(config.output_dir / "poison").key, "clean": fingerprint}
    stage = training_stage(config, "victim", config.victim, world, inputs)
    evaluator = epoch_evaluator(config, world, load_trigger(config), config.victim)
    trainer = OBJECTIVES[config.objective].trainer
    return train_into(stage, trainer, config.victim, load, lambda: poisoned_pairs(config), evaluator, world.canvas)
