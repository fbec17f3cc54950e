# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The stages that measure: every model's BA, ASR and RA, and how well the poison is found."""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from hf_clipbd.data.canvas import Canvas
from hf_clipbd.detection.revisions import revisions
from hf_clipbd.models import load_dual_encoder
from hf_clipbd.recipe.config import RunConfig
from hf_clipbd.recipe.distilling import cached_mask_sizes
from hf_clipbd.recipe.embeddings import MIRRORED, cached_embeddings
from hf_clipbd.recipe.fingerprints import data_fingerprint
from hf_clipbd.recipe.place import model_device
from hf_clipbd.recipe.readable import advising_runs
from hf_clipbd.recipe.searching import search
from hf_clipbd.recipe.stage import CHECKPOINTS, Outcome, Stage
from hf_clipbd.recipe.training import poisoned_pairs
from hf_clipbd.recipe.world import Loader, World, clean_model, given_model, stage_of, trained_model
from hf_clipbd.recipe.zero_shot import measure
from hf_clipbd.schema import RunRecord


def load_model(config: RunConfig, name: str, world: World) -> tuple[str, Loader]:
    """Return key and loader of a run's model: `clean`, `victim` or the name of a defence."""
    if name == "clean":
        return clean_model(config, world)
    return trained_model(config.output_dir / stage_of(name))


def evaluation_settings(config: RunConfig, world: World) -> dict[str, Any]:
    """Return what an evaluation depends on beside its inputs and its seed."""
    return {
        "ks": config.evaluate.ks,
        "include_target": config.evaluate.include_target,
        "prompts": world.prompts,
        "canvas": [world.canvas.size, world.canvas.mode],
    }


def evaluate(config: RunConfig, name: str, world: World | None = None) -> RunRecord:
    """Measure one model (stage `evaluate/<name>`) and return the record."""
    world = world or World(config)
    key, load = load_model(config, name, world)
    inputs = {
        "model": key,
        "poison": RunRecord.load(config.output_dir / "poison").key,
        "test": data_fingerprint(world.test),
    }
    settings = evaluation_settings(config, world)

    def work(folder: Path) -> Outcome:
        return Outcome({"report": measure(config, world, *load()).to_dict(), **world.left_out("test")}, {})

    return Stage(config.output_dir, f"evaluate/{name}", settings, config.seed, inputs).run_once(work)


def detect_settings(config: RunConfig) -> dict[str, Any]:
    """Return what a search depends on beside its inputs and its seed: later options only where they are given."""
    options = config.detect
    later = [name for name in ("distilled", "caption_share") if getattr(options, name)]
    names = ("detectors", "k", "reference", "rates", "draws", "map_points", *later)
    return {name: getattr(options, name) for name in names} | revisions(options.detectors)


def detect(config: RunConfig, world: World | None = None) -> RunRecord:
    """Search the poisoned set through the victim's embeddings (stage `detect`) and return the record."""
    world = world or World(config)
    victim = config.output_dir / "victim"
    inputs = {
        "victim": RunRecord.load(victim).key,
        "poison": RunRecord.load(config.output_dir / "poison").key,
    }
    options = config.detect
    second = None
    if options.second == MIRRORED:
        inputs["second"] = MIRRORED
    elif options.second is not None:
        inputs["second"], second = (
            clean_model(config, world) if options.second == "clean" else given_model(options.second)
        )
    stage = Stage(config.output_dir, "detect", detect_settings(config), config.seed, inputs)

    def work(folder: Path) -> Outcome:
        device = model_device()
        pairs = poisoned_pairs(config)
        kept = stage.folder / CHECKPOINTS / "embeddings"  # cleared with the stage; a killed one goes on from them

        def embed(
            model: Any, processor: Any, canvas: Canvas | None, texts: bool, mirrored: bool = False
        ) -> dict[str, np.ndarray]:
            given = {"batch_size": options.batch_size, "canvas": canvas, "texts": texts, "mirrored": mirrored}
            return cached_embeddings(model.to(device), processor, pairs, kept, **given)

        model, processor = load_dual_encoder(victim)
        with advising_runs():
            features = embed(model, processor, world.canvas, True)
            if second is not None:
                features["second"] = embed(*second(), None, False)["image"]
            elif options.second == MIRRORED:
                features["second"] = embed(model, processor, world.canvas, False, mirrored=True)["image"]
        given = {"canvas": world.canvas, "seed": config.seed}
        distill = functools.partial(cached_mask_sizes, model, processor, pairs, kept, **given)
        target = str(config.attack["target"])
        return search(features, pairs, options, target, config.seed, folder, distill=distill)[0]

    return stage.run_once(work)
