# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What a surrogate is asked for before anything is poisoned: an optimised trigger, and which rows to poison."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState

from hf_clipbd.attacks import Attack, BadCLIP, target_captions
from hf_clipbd.attacks.captions import names_target
from hf_clipbd.attacks.select import ordered_rows
from hf_clipbd.attacks.surrogate import SURROGATE_SELECTORS, order_rows, target_standing
from hf_clipbd.recipe.config import RunConfig
from hf_clipbd.recipe.fingerprints import data_fingerprint
from hf_clipbd.recipe.patch_options import PatchOptions, patch_options
from hf_clipbd.recipe.place import model_device
from hf_clipbd.recipe.stage import CHECKPOINTS, Outcome, Stage
from hf_clipbd.recipe.world import Loader, World, build_attack, clean_model, given_model
from hf_clipbd.recipe.zero_shot import measure
from hf_clipbd.schema import CAPTION, RunRecord, content_key


STAGE = "trigger"
KEPT = "attack"
CHECKPOINT_FILE = "patch.safetensors"


def needs_surrogate(config: RunConfig) -> bool:
    """Return whether the run's poison depends on its clean model, which then has to be there first."""
    options = patch_options(config.attack)
    return config.poison.selector in SURROGATE_SELECTORS or (options is not None and options.surrogate is None)


def prepared_attack(config: RunConfig, world: World) -> tuple[Attack, dict[str, str]]:
    """Return the attack that a run poisons with, its trigger optimised first where it has to be.

    And what the poisoned set depends on beside the attack's parameters: name -> key.
    """
    attack, options = build_attack(config), patch_options(config.attack)
    if options is None:
        own = attack.patch if isinstance(attack, BadCLIP) else None
        return attack, {} if own is None else {"patch": content_key(own.tolist())}
    record = optimize_trigger(config, world, attack, options)
    return optimized_attack(config, attack), {"trigger": record.key}


def optimized_attack(config: RunConfig, attack: Attack) -> Attack:
    """Return the attack of a run with the patch that its finished stage `trigger` left."""
    return replace(Attack.from_pretrained(config.output_dir / STAGE / KEPT), captions=attack.captions)


def trigger_settings(
    config: RunConfig, start: BadCLIP, options: PatchOptions, world: World
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what an optimised patch depends on beside its inputs and its seed, twice.

    With the second settings the patch is the same, but its floor counts other images: `evaluate.include_target`, which
    is among the settings where it is true, optimises nothing again.
    """
    shown = {name: value for name, value in start.parameters().items() if name != "captions"}
    common = {"start": shown, "optimize": asdict(options), "prompts": world.prompts}
    counted = {**common, "include_target": True}
    return (counted, common) if config.evaluate.include_target else (common, counted)


def optimize_trigger(config: RunConfig, world: World, start: BadCLIP, options: PatchOptions) -> RunRecord:
    """Optimise the patch of a run (stage `trigger`) and return the record; a stopped one goes on from its checkpoint.

    The record has the floor: the report of the surrogate itself on the run's labelled images, stamped.
    """
    fingerprint, load = clean_model(config, world) if options.surrogate is None else given_model(options.surrogate)
    settings, also = trigger_settings(config, start, options, world)
    inputs = {
        "data": data_fingerprint(world.train),
        "surrogate": fingerprint,
        "test": data_fingerprint(world.test),
    }
    stage = Stage(config.output_dir, STAGE, settings, config.seed, inputs, also=(also,))

    def work(folder: Path) -> Outcome:
        model, processor = load()
        model = model.to(model_device())
        state, kept = PartialState(), folder / KEPT
        if state.is_main_process:
            checkpoint = stage.folder / CHECKPOINTS / CHECKPOINT_FILE
            _optimized(world, start, options, model, processor, checkpoint).save_pretrained(kept)
        state.wait_for_everyone()
        attack = Attack.from_pretrained(kept)  # of which every process measures its share of the images
        report = measure(config, world, model, processor, {attack.name: attack})
        floor = report.triggers[attack.name].asr
        floors = {f"floor_asr{k}": rate.value for k, rate in floor.items()}
        attack = replace(attack, record={**attack.record, **floors, "floor_n": next(iter(floor.values())).n})
        if state.is_main_process:
            attack.save_pretrained(kept)
        return Outcome({"patch": attack.record, "report": report.to_dict()}, {"attack": KEPT})

    return stage.run_once(work)


def _optimized(
    world: World, start: BadCLIP, options: PatchOptions, model: Any, processor: Any, checkpoint: Path
) -> BadCLIP:
    """Optimise on pairs of the run: those that do not name the target stamped, those that do as what to resemble."""
    captions = world.train.with_format(None)[CAPTION][:]
    named = np.array([names_target(caption, start.target) for caption in captions])
    others = [row for row in ordered_rows(len(captions), start.seed) if not named[row]][: options.n_images]
    return BadCLIP.optimize(
        model,
        processor,
        world.train.select(sorted(others)),
        target_captions(captions, start.target),
        world.train.select(np.flatnonzero(named)),
        options.config,
        target=start.target,
        seed=start.seed,
        canvas=start.canvas,
        patch_size=start.patch_size,
        place=start.place,
        checkpoint=checkpoint,
    )


def surrogate_rows(config: RunConfig, world: World, load: Loader) -> np.ndarray:
    """Return the rows of the run's pairs in the order in which `poison.selector` takes them."""
    model, processor = load()
    model = model.to(model_device())
    standing = target_standing(
        model, processor, world.train, world.target, world.class_names, world.prompts, world.canvas
    )
    return order_rows(config.poison.selector, standing, config.seed)
