# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The stages that train a model without the backdoor: what each defence starts from, what it trains on, its record."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet

from hf_clipbd.defenses import DEFENSES, RetrainConfig
from hf_clipbd.defenses.retrain import least_suspicious
from hf_clipbd.recipe.config import RunConfig
from hf_clipbd.recipe.copies import highest_of_copies
from hf_clipbd.recipe.epochs import epoch_evaluator
from hf_clipbd.recipe.fingerprints import data_fingerprint
from hf_clipbd.recipe.searching import FIRST_COPY, SCORES_FILE
from hf_clipbd.recipe.sections import ConfigError
from hf_clipbd.recipe.steps import trainings
from hf_clipbd.recipe.training import poisoned_pairs, train_into, training_stage
from hf_clipbd.recipe.world import Loader, World, clean_model, stage_of, trained_model
from hf_clipbd.recipe.zero_shot import load_trigger
from hf_clipbd.schema import IS_POISONED, RunRecord, content_key
from hf_clipbd.trainer import CLIPTrainingConfig


@dataclass(frozen=True)
class Start:
    """What a defence starts from.

    Args:
        inputs: Name -> key or fingerprint of the model and the rows.
        figures: What is known of the rows beforehand, for the record.
    """

    inputs: dict[str, str]
    load: Loader
    pairs: Callable[[], datasets.Dataset]
    figures: dict[str, Any] = field(default_factory=dict)


def start_of(config: RunConfig, name: str, training: CLIPTrainingConfig, world: World) -> Start:
    """Return what the defence `name` starts from: the victim and clean pairs, or the clean model and poisoned pairs.

    The stages `poison` and `victim` of the run are finished.

    Raises:
        FileNotFoundError: If a stage before it left no record.
    """
    if DEFENSES[name].trains_on == "clean":
        key, load = trained_model(config.output_dir / "victim")
        inputs = {"victim": key, "data": data_fingerprint(world.defense)}
        return Start(inputs, load, lambda: world.defense, world.left_out("defense"))
    fingerprint, load = clean_model(config, world)
    inputs = {"clean": fingerprint, "poison": RunRecord.load(config.output_dir / "poison").key}
    if not isinstance(training, RetrainConfig):
        return Start(inputs, load, lambda: poisoned_pairs(config))
    RunRecord.load(config.output_dir / "detect")  # an error that names the stage where it was not run
    kept, figures = kept_rows(config, training)
    inputs["kept"] = content_key(kept.tolist())  # of what was searched, all that the training reads
    return Start(inputs, load, lambda: poisoned_pairs(config).select(kept), figures)


def check_sizes(config: RunConfig) -> None:
    """Raise `ConfigError` before anything is run where a training's batches or K pairs are more than the rows it gets.

    Where a world turns out to have fewer rows than its configuration asks for, that shows when the training starts.
    """
    for one in trainings(config):
        try:
            _ = one.steps
        except ValueError as error:
            raise ConfigError(f"Section `{one.stage.replace('defend/', 'defenses.')}`: {error}") from error


def kept_rows(config: RunConfig, training: RetrainConfig) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the poisoned set's rows that stay once the most suspicious share is dropped, and how many were dropped.

    As in the filtered dataset of a search, the share is one of distinct pictures, each of which goes by the highest
    score of its rows and is dropped with all of them. Scores of an earlier version do not say which rows are copies:
    there each row counts as a picture.

    Raises:
        ValueError: If the stage `detect` did not run the detector.
    """
    scores = pyarrow.parquet.read_table(config.output_dir / "detect" / SCORES_FILE)
    column = f"score_{training.detector}"
    if column not in scores.column_names:
        raise ValueError(
            f"Expected scores of the detector {training.detector!r} from the stage `detect`, but it ran "
            f"{config.detect.detectors}. Name it in `detect.detectors`, or another one in `defenses.retrain.detector`."
        )
    ranking, rows = scores[column].to_numpy(), np.arange(len(scores))
    first = scores[FIRST_COPY].to_numpy() if FIRST_COPY in scores.column_names else rows
    distinct = np.flatnonzero(first == rows)
    pictures = distinct[least_suspicious(highest_of_copies(ranking, first)[distinct], training.drop_share)]
    kept = np.flatnonzero(np.isin(first, pictures))
    figures: dict[str, Any] = {"dropped": len(scores) - len(kept), "kept": len(kept)}
    if IS_POISONED in scores.column_names:
        poisoned = scores[IS_POISONED].to_numpy(zero_copy_only=False)
        figures["poisoned_kept"] = int(poisoned[kept].sum())
        figures["poisoned_dropped"] = int(poisoned.sum()) - figures["poisoned_kept"]
    return kept, figures


def defend(config: RunConfig, name: str, world: World | None = None) -> RunRecord:
    """Run the defence `name` (stage `defend/<name>`) and return the record."""
    world = world or World(config)
    training = config.defenses[name]
    start = start_of(config, name, training, world)
    return train_into(
        training_stage(config, stage_of(name), training, world, start.inputs),
        DEFENSES[name].trainer,
        training,
        start.load,
        start.pairs,
        epoch_evaluator(config, world, load_trigger(config), training),
        world.canvas,
        after=lambda model, processor: start.figures,
    )
