# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The stages that measure: every model's BA, ASR and RA, and how well the poison is found."""

import functools
import itertools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from hf_clipbd.data.canvas import Canvas
from hf_clipbd.detection import BackdoorDetection, detect_all, performances_at_rate
from hf_clipbd.evaluation import evaluate_zero_shot
from hf_clipbd.models import load_dual_encoder
from hf_clipbd.recipe.config import DetectConfig, RunConfig
from hf_clipbd.recipe.embeddings import cached_embeddings
from hf_clipbd.recipe.stage import CHECKPOINTS, Outcome, Stage
from hf_clipbd.recipe.training import clean_model, load_trigger, poisoned_pairs
from hf_clipbd.recipe.world import World, data_fingerprint
from hf_clipbd.schema import CAPTION, IS_POISONED, SOURCE_INDEX, EvalReport, RunRecord, write_json


if TYPE_CHECKING:
    from transformers import PreTrainedModel

SCORES_FILE = "scores.parquet"
MAP_FILE = "map.json"


def load_model(config: RunConfig, name: str, world: World) -> "tuple[str, Callable[[], tuple[PreTrainedModel, Any]]]":
    """Return key and loader of a run's model: `clean`, `victim` or the name of a defence."""
    if name == "clean":
        return clean_model(config, world)
    folder = config.output_dir / ("victim" if name == "victim" else f"defend/{name}")
    return RunRecord.load(folder).key, lambda: load_dual_encoder(folder)


def measure(config: RunConfig, world: World, model: Any, processor: Any) -> EvalReport:
    """Return the zero-shot report of one model on the run's labelled images and trigger."""
    return evaluate_zero_shot(
        model.to(model_device()),
        processor,
        world.test,
        load_trigger(config),
        templates=world.prompts,
        ks=config.evaluate.ks,
        batch_size=config.evaluate.batch_size,
        include_target=config.evaluate.include_target,
        canvas=world.canvas,
    )


def evaluate(config: RunConfig, name: str, world: World | None = None) -> RunRecord:
    """Measure one model (stage `evaluate/<name>`) and return the record."""
    world = world or World(config)
    key, load = load_model(config, name, world)
    inputs = {
        "model": key,
        "poison": RunRecord.load(config.output_dir / "poison").key,
        "test": data_fingerprint(world.test),
    }
    settings = {
        "ks": config.evaluate.ks,
        "include_target": config.evaluate.include_target,
        "prompts": world.prompts,
        "canvas": [world.canvas.size, world.canvas.mode],
    }

    def work(folder: Path) -> Outcome:
        return Outcome({"report": measure(config, world, *load()).to_dict()}, {})

    return Stage(config.output_dir, f"evaluate/{name}", settings, config.seed, inputs).run_once(work)


def detect(config: RunConfig, world: World | None = None) -> RunRecord:
    """Search the poisoned set through the victim's embeddings (stage `detect`) and return the record."""
    world = world or World(config)
    victim = config.output_dir / "victim"
    inputs = {
        "victim": RunRecord.load(victim).key,
        "poison": RunRecord.load(config.output_dir / "poison").key,
    }
    options = config.detect
    names = ("detectors", "k", "reference", "rates", "draws", "map_points")
    settings = {name: getattr(options, name) for name in names}
    second = None
    if options.second is not None:
        given = options.second, functools.partial(load_dual_encoder, options.second)
        inputs["second"], second = clean_model(config, world) if options.second == "clean" else given
    stage = Stage(config.output_dir, "detect", settings, config.seed, inputs)

    def work(folder: Path) -> Outcome:
        device = model_device()
        pairs = poisoned_pairs(config)
        kept = stage.folder / CHECKPOINTS / "embeddings"  # cleared with the stage; a killed one goes on from them

        def embed(model: Any, processor: Any, canvas: Canvas | None) -> dict[str, np.ndarray]:
            return cached_embeddings(model.to(device), processor, pairs, kept, options.batch_size, canvas)

        features = embed(*load_dual_encoder(victim), world.canvas)
        if second is not None:
            features["second"] = embed(*second(), None)["image"]
        return search(features, pairs, options, str(config.attack["target"]), config.seed, folder)[0]

    return stage.run_once(work)


def process_state() -> PartialState:
    """Return the state of this process, of a group where it was launched as one of several.

    Processes on processors make a group only where they are asked to: `ACCELERATE_USE_CPU` asks, as it does in a
    training.
    """
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def model_device() -> torch.device:
    """Return where a model goes in this process.

    A processor has no number here: `cpu:0` is where a process of several is said to be, and moving a model there
    copies its weights to other addresses, on which the last bits of what it computes depend.
    """
    device = PartialState().device
    return torch.device("cpu") if device.type == "cpu" else device


def scoring_place() -> dict[str, Any]:
    """Return where scores are computed, as `detect_all` and `Reference` take it: a GPU if there is one, all processes.

    The detectors need double precision, so that another accelerator embeds only.
    """
    state = PartialState()
    return {"device": state.device if state.device.type == "cuda" else "cpu", "distributed": state.num_processes > 1}


def search(
    features: dict[str, np.ndarray],
    pairs: datasets.Dataset,
    options: DetectConfig,
    target: str | None,
    seed: int,
    folder: Path,
    compared: Mapping[str, Any] | None = None,
    unreadable: Mapping[int, str] | None = None,
) -> tuple[Outcome, dict[str, np.ndarray]]:
    """Score every row of `pairs` by every detector and write scores and, where the truth is known, figures and a map.

    Every process calls it; the rows are shared among them, and the main one writes.

    Args:
        features: Embeddings of the readable pairs in the suspected model, `image` and `text`, (N, D), and of the
            images in another encoder, `second`, (N, D2), for the detectors that take `others`.
        pairs: The set it was trained on (image, caption); with `is_poisoned` and `source_index` if known.
        options: Detectors and their sizes.
        target: The attack's target, whose own rows the map shows apart.
        seed: Seed of reference and draws.
        folder: Where scores and map go.
        compared: What `detect_all` takes besides: a `reference` of one's own, say. By default a random one is drawn.
        unreadable: Row number -> what is wrong with it, for the rows that have no features.

    Returns:
        The outcome, and the scores of each detector, one a row of `pairs`: NaN where it cannot be read.
    """
    given = dict(compared or {})
    if given.get("reference") is None:
        given |= {"m": options.reference, **scoring_place()}
    score = functools.partial(detect_all, detectors=options.detectors, k=options.k, **given)
    aligned = {"texts": features["text"]} | ({"others": features["second"]} if "second" in features else {})
    found = score(features["image"], seed=seed, **aligned)
    readable = np.ones(len(pairs), dtype=bool)
    readable[list(unreadable or {})] = False
    known = pairs.with_format(None)
    row = known[SOURCE_INDEX][:] if SOURCE_INDEX in pairs.column_names else list(range(len(pairs)))
    scores = {name: _spread(one, readable) for name, one in found.items()}
    columns: dict[str, Any] = {"row": row, **{f"score_{name}": one for name, one in scores.items()}}
    if unreadable:
        columns["problem"] = [unreadable.get(number) for number in range(len(pairs))]
    outputs = {"scores": SCORES_FILE}
    metrics: dict[str, Any] = {"n": len(pairs)}
    if IS_POISONED in pairs.column_names:
        columns[IS_POISONED] = np.asarray(known[IS_POISONED][:], dtype=bool)
        poisoned = columns[IS_POISONED][readable]
        if 0 < poisoned.sum() < len(poisoned):
            metrics |= _performance(found, score, aligned, features["image"], poisoned, options, seed)
        if PartialState().is_main_process:
            captions = list(itertools.compress(known[CAPTION][:], readable))
            write_json(folder / MAP_FILE, _map(features["image"], captions, poisoned, target, options, seed))
        outputs["map"] = MAP_FILE
    if PartialState().is_main_process:
        pyarrow.parquet.write_table(pyarrow.table(columns), folder / SCORES_FILE)
    return Outcome(metrics, outputs), scores


def _spread(scores: np.ndarray, readable: np.ndarray) -> np.ndarray:
    """Return one score a row, NaN for those that cannot be read."""
    spread = np.full(len(readable), np.nan)
    spread[readable] = scores
    return spread


def _performance(
    scores: dict[str, np.ndarray],
    score: Callable[..., dict[str, np.ndarray]],
    aligned: dict[str, np.ndarray],
    features: np.ndarray,
    poisoned: np.ndarray,
    options: DetectConfig,
    seed: int,
) -> dict[str, Any]:
    """Return the figures at the set's own rate, and those at lower ones, on the main process; {} on the others."""
    rates: dict[str, dict[str, Any]] = {}
    for rate in options.rates:
        found = performances_at_rate(score, features, poisoned, rate, options.draws, seed, aligned)
        kept = ("worst", "n_draws", "thinned_search_set")
        rates[f"{rate:g}"] = {name: one["mean"] | {key: one[key] for key in kept} for name, one in found.items()}
    if not PartialState().is_main_process:
        return {}
    metric = BackdoorDetection()
    own = {name: metric.compute(predictions=one, references=poisoned.astype(int)) for name, one in scores.items()}
    return {"detectors": own, "rates": rates}


def _map(
    features: np.ndarray,
    captions: list[str],
    poisoned: np.ndarray,
    target: str | None,
    options: DetectConfig,
    seed: int,
) -> dict[str, list]:
    """Return the first two principal components of at most `map_points` rows: poisoned, of the target, other."""
    word = re.compile(rf"\b{re.escape(target)}\b", re.IGNORECASE) if target else None
    shows_target = np.array([bool(word and word.search(caption)) for caption in captions]) & ~poisoned
    rng = np.random.default_rng([seed, len(features)])
    chosen: list[np.ndarray] = []
    for group in (poisoned, shows_target):
        rows = np.flatnonzero(group)
        chosen.append(rng.permutation(rows)[: options.map_points // 4])
    others = np.flatnonzero(~poisoned & ~shows_target)
    chosen.append(rng.permutation(others)[: options.map_points - sum(map(len, chosen))])
    rows = np.concatenate(chosen)
    centred = features[rows] - features[rows].mean(axis=0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
    kinds = np.repeat(["poisoned", "target", "clean"], [len(group) for group in chosen])
    return {"points": np.round(centred @ axes.T, 5).tolist(), "kind": kinds.tolist()}
