# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The stages one at a time, on data and models of one's own: what the subcommands of `hf-clipbd` do.

Each writes the same outputs and the same record as within a run, skips what is up to date and goes on where it was
stopped.
"""

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets

from hf_clipbd import scenes
from hf_clipbd.attacks import Attack
from hf_clipbd.data.canvas import Canvas
from hf_clipbd.data.sources import (
    LabelCaptioner,
    caption_labels,
    find_column,
    load_source,
    pick_columns,
    with_class_names,
)
from hf_clipbd.evaluation import ZeroShotEvaluator
from hf_clipbd.features import model_fingerprint
from hf_clipbd.models import load_dual_encoder
from hf_clipbd.recipe.config import training_settings
from hf_clipbd.recipe.embeddings import cached_embeddings
from hf_clipbd.recipe.measuring import search
from hf_clipbd.recipe.options import DetectConfig
from hf_clipbd.recipe.stage import Outcome, Stage
from hf_clipbd.recipe.suspects import Review, write_review
from hf_clipbd.recipe.training import POISONED_DATASET, global_batch, train_into
from hf_clipbd.recipe.world import data_fingerprint
from hf_clipbd.schema import CAPTION, IMAGE, IS_POISONED, LABEL, MANIFEST_FILE, SOURCE_INDEX, TRIGGER, RunRecord
from hf_clipbd.trainer import CLIPTrainer, CLIPTrainingConfig


if TYPE_CHECKING:
    from transformers import PreTrainedModel

SCENES = "scenes"


@dataclass(frozen=True)
class Data:
    """Where rows come from and what their columns are called.

    Args:
        source: `scenes`, or what `hf_clipbd.data.sources.load_source` takes.
        split: Which split.
        image_column: Column of images; None looks for it (see `find_column`).
        caption_column: Column of captions; None likewise. Where there is none, captions are made from the labels.
        label_column: Column of labels.
        n: Take the first n rows only.
        size: Side of rendered scenes in pixels.
        seed: Seed of rendered scenes and of captions made from labels.
        target: The class that is rare in rendered scenes.
    """

    source: str
    split: str = "train"
    image_column: str | None = None
    caption_column: str | None = None
    label_column: str = "label"
    n: int | None = None
    size: int = 64
    seed: int = 0
    target: str = "banana"

    def pairs(self) -> datasets.Dataset:
        """Return rows (image, caption), with the columns of a poisoned dataset where they are there."""
        rows = self._rows
        known = {name: name for name in (IS_POISONED, SOURCE_INDEX, TRIGGER) if name in rows.column_names}
        image, caption = (find_column(rows, IMAGE, self.image_column), find_column(rows, CAPTION, self.caption_column))
        if caption is not None or self.label_column not in rows.column_names:
            return self._head(pick_columns(rows, image=image, caption=caption or CAPTION, **known))
        rows = with_class_names(pick_columns(rows, image=image, label=self.label_column, **known))
        return self._head(caption_labels(rows, LabelCaptioner(rows.features[LABEL].names, self.seed)))

    def stream(self) -> datasets.IterableDataset:
        """Return a stream of rows (image, caption), read while it is iterated.

        Raises:
            ValueError: If the source is rendered, or has no captions.
        """
        if self.source == SCENES:
            raise ValueError("Expected a source that lies somewhere to be streamed, but the scenes are rendered.")
        rows = load_source(self.source, self.split, streaming=True)
        image, caption = (find_column(rows, IMAGE, self.image_column), find_column(rows, CAPTION, self.caption_column))
        rows = pick_columns(rows, image=image, caption=caption or CAPTION)
        return rows if self.n is None else rows.take(self.n)

    def class_names(self) -> list[str] | None:
        """Return the classes of the data, None where they have none of a known name."""
        if self.source == SCENES:
            return list(scenes.CLASS_NAMES)
        return getattr(self._rows.features.get(self.label_column), "names", None)

    def whole(self) -> datasets.Dataset:
        """Return the rows of `pairs` with every column that they have."""
        return self._head(self._rows)

    def labelled(self, class_names: tuple[str, ...] = ()) -> datasets.Dataset:
        """Return rows (image, label), label a `ClassLabel`, of these names where its own are not known or wanted."""
        rows = self._rows
        image = find_column(rows, IMAGE, self.image_column)
        return self._head(with_class_names(pick_columns(rows, image=image, label=self.label_column), class_names))

    def prompts(self) -> list[str] | None:
        """Return the zero-shot prompts that go with the data; None stands for OpenAI's 80."""
        return list(scenes.PROMPTS) if self.source == SCENES else None

    @cached_property
    def _rows(self) -> datasets.Dataset:
        if self.source == SCENES:
            return scenes.load_scenes(self.split, self.size, self.seed, self.n, "long_tailed", self.target)
        stage = Path(self.source) / POISONED_DATASET
        poisoned = stage.is_dir() and (stage.parent / MANIFEST_FILE).is_file()
        return load_source(stage if poisoned else self.source, self.split)

    def _head(self, rows: datasets.Dataset) -> datasets.Dataset:
        return rows if self.n is None or self.n >= len(rows) else rows.select(range(self.n))


def load_any(model: str) -> "tuple[PreTrainedModel, Any]":
    """Return a model and its processor: `scenes` is the shipped clean CLIP, anything else a folder or Hub id."""
    return scenes.load_clean_clip() if model == SCENES else load_dual_encoder(model)


def stage_at(out: Path, kind: str, settings: dict[str, Any], seed: int, inputs: dict[str, str]) -> Stage:
    """Return a stage that lies in the folder `out` itself."""
    return Stage(out.parent, out.name, {"kind": kind, **settings}, seed, inputs)


@dataclass(frozen=True)
class Probe:
    """What a training is measured on after each epoch.

    Args:
        data: Labelled images.
        triggers: Folders or Hub ids of triggers.
    """

    data: Data
    triggers: tuple[str, ...] = ()

    def evaluator(self, processor: Any) -> ZeroShotEvaluator:
        """Return the measurement for models of this processor."""
        rows = self.data.labelled()
        ks = [k for k in (1, 10) if k <= len(rows.features[LABEL].names)]
        return ZeroShotEvaluator(processor, rows, load_triggers(self.triggers), self.data.prompts(), ks)


def load_triggers(folders: tuple[str, ...] | list[str]) -> dict[str, Attack]:
    """Return the triggers in these folders or Hub repositories by their names, by folder where names coincide."""
    attacks = [Attack.from_pretrained(folder) for folder in folders]
    names = [attack.name for attack in attacks]
    alone = [names.count(name) == 1 for name in names]
    return {
        name if single else Path(folder).name: attack
        for name, single, folder, attack in zip(names, alone, folders, attacks, strict=True)
    }


def train_model(
    model: str,
    data: Data,
    trainer_class: type[CLIPTrainer],
    config: CLIPTrainingConfig,
    probe: Probe | None,
    canvas: Canvas | None,
    out: Path,
) -> RunRecord:
    """Train `model` on pairs with any of the trainers, into the folder `out`, and return the record."""
    loaded, processor = load_any(model)
    pairs = data.pairs().select_columns([IMAGE, CAPTION])
    canvas = canvas or Canvas.of(processor)
    settings = {
        "trainer": trainer_class.__name__,
        "training": training_settings(config),
        "global_batch": global_batch(config),
        "canvas": [canvas.size, canvas.mode],
        "measured": None if probe is None else {**asdict(probe), "triggers": list(probe.triggers)},
    }
    inputs = {"model": model_fingerprint(loaded), "data": data_fingerprint(pairs)}
    evaluator = (lambda _: None) if probe is None else probe.evaluator
    stage = stage_at(out, "train", settings, config.seed, inputs)
    return train_into(stage, trainer_class, config, lambda: (loaded, processor), lambda: pairs, evaluator, canvas)


def detect_in(
    model: str, second: str | None, data: Data, options: DetectConfig, review: Review, cache: Path, out: Path
) -> RunRecord:
    """Search the rows of `data` through `model` into the folder `out` and return the record; no labels are needed.

    Writes the scores of every row, the page of suspects and the dataset without them; see `search` and `write_review`.

    Args:
        model: The model that was trained on the data: a folder, a Hub id or `scenes`.
        second: Another encoder, for the detectors that compare two; likewise.
        data: The rows.
        options: Detectors and their sizes; the first one ranks.
        review: How the findings are cut and shown.
        cache: Where embeddings are kept; see `cached_embeddings`.
        out: Folder of the outputs.
    """
    loaded, processor = load_any(model)
    pairs, whole = data.pairs(), data.whole()
    inputs = {"model": model_fingerprint(loaded), "data": data_fingerprint(pairs)}
    other = None if second is None else load_any(second)
    if other is not None:
        inputs["second"] = model_fingerprint(other[0])
    stage = stage_at(out, "detect", {**asdict(options), **asdict(review)}, data.seed, inputs)

    def work(folder: Path) -> Outcome:
        embeddings = cached_embeddings(loaded, processor, pairs, cache, options.batch_size)
        if other is not None:
            embeddings["second"] = cached_embeddings(*other, pairs, cache, options.batch_size)["image"]
        found, scores = search(embeddings, pairs, options, None, data.seed, folder)
        names = Path(data.source).name or data.source, Path(model).name or model
        metrics, outputs = write_review(names, pairs, whole, embeddings, scores, review, data.seed, folder)
        return Outcome(found.metrics | metrics, found.outputs | outputs)

    return stage.run_once(work, main_only=True)
