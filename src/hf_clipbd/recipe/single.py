# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The stages one at a time, on data and models of one's own: what the subcommands of `hf-clipbd` do.

Each writes the same outputs and the same record as within a run, skips what is up to date and goes on where it was
stopped.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets

from hf_clipbd import scenes
from hf_clipbd.attacks import Attack
from hf_clipbd.data.canvas import Canvas
from hf_clipbd.data.sources import LabelCaptioner, caption_labels, load_source, pick_columns, with_class_names
from hf_clipbd.evaluation import ZeroShotEvaluator, evaluate_zero_shot
from hf_clipbd.models import load_dual_encoder
from hf_clipbd.recipe.config import training_settings
from hf_clipbd.recipe.measuring import search
from hf_clipbd.recipe.options import DetectConfig
from hf_clipbd.recipe.stage import Stage
from hf_clipbd.recipe.training import POISONED_DATASET, global_batch, train_into, write_poison
from hf_clipbd.recipe.world import data_fingerprint, model_fingerprint
from hf_clipbd.schema import CAPTION, IMAGE, IS_POISONED, LABEL, SOURCE_INDEX, TOP_K, EvalReport, RunRecord
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
        image_column: Column of images.
        caption_column: Column of captions; where it is missing, captions are made from the labels.
        label_column: Column of labels.
        n: Take the first n rows only.
        size: Side of rendered scenes in pixels.
        seed: Seed of rendered scenes and of captions made from labels.
        target: The class that is rare in rendered scenes.
    """

    source: str
    split: str = "train"
    image_column: str = "image"
    caption_column: str = "caption"
    label_column: str = "label"
    n: int | None = None
    size: int = 64
    seed: int = 0
    target: str = "banana"

    def pairs(self) -> datasets.Dataset:
        """Return rows (image, caption), with the columns of a poisoned dataset where they are there."""
        rows = self._rows()
        known = {name: name for name in (IS_POISONED, SOURCE_INDEX) if name in rows.column_names}
        if self.caption_column in rows.column_names or self.label_column not in rows.column_names:
            return self._head(pick_columns(rows, image=self.image_column, caption=self.caption_column, **known))
        rows = with_class_names(pick_columns(rows, image=self.image_column, label=self.label_column, **known))
        return self._head(caption_labels(rows, LabelCaptioner(rows.features[LABEL].names, self.seed)))

    def labelled(self) -> datasets.Dataset:
        """Return rows (image, label), label a `ClassLabel`."""
        return self._head(
            with_class_names(pick_columns(self._rows(), image=self.image_column, label=self.label_column))
        )

    def prompts(self) -> list[str] | None:
        """Return the zero-shot prompts that go with the data; None stands for OpenAI's 80."""
        return list(scenes.PROMPTS) if self.source == SCENES else None

    def _rows(self) -> datasets.Dataset:
        if self.source == SCENES:
            return scenes.load_scenes(self.split, self.size, self.seed, self.n, "long_tailed", self.target)
        stage = Path(self.source) / POISONED_DATASET
        return load_source(stage if (stage / "state.json").is_file() else self.source, self.split)

    def _head(self, rows: datasets.Dataset) -> datasets.Dataset:
        return rows if self.n is None or self.n >= len(rows) else rows.select(range(self.n))


def load_any(model: str) -> "tuple[PreTrainedModel, Any]":
    """Return a model and its processor: `scenes` is the shipped clean CLIP, anything else a folder or Hub id."""
    return scenes.load_clean_clip() if model == SCENES else load_dual_encoder(model)


def stage_at(out: Path, kind: str, settings: dict[str, Any], seed: int, inputs: dict[str, str]) -> Stage:
    """Return a stage that lies in the folder `out` itself."""
    return Stage(out.parent, out.name, {"kind": kind, **settings}, seed, inputs)


def poison_data(data: Data, attack: Attack, count: int | None, rate: float | None, out: Path) -> RunRecord:
    """Poison rows of `data` into the folder `out` and return the record; see `write_poison`."""
    pairs = data.pairs().select_columns([IMAGE, CAPTION])
    rows = max(1, round(rate * len(pairs))) if count is None else count
    settings = {"attack": attack.parameters(), "count": rows}
    stage = stage_at(out, "poison", settings, data.seed, {"data": data_fingerprint(pairs)})
    return stage.run_once(lambda folder: write_poison(pairs, attack, rows, data.seed, 8, folder), main_only=True)


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
    """Return the triggers in these folders or Hub repositories by their names."""
    attacks = [Attack.from_pretrained(folder) for folder in folders]
    return {attack.name: attack for attack in attacks}


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


def evaluate_model(
    model: str, data: Data, triggers: tuple[str, ...], include_target: bool, prompts: list[str] | None
) -> EvalReport:
    """Return the zero-shot report of `model` on labelled images, with any number of triggers."""
    loaded, processor = load_any(model)
    rows = data.labelled()
    ks = [k for k in TOP_K if k <= len(rows.features[LABEL].names)]
    return evaluate_zero_shot(
        loaded,
        processor,
        rows,
        load_triggers(triggers),
        templates=prompts or data.prompts(),
        ks=ks,
        include_target=include_target,
    )


def detect_in(model: str, data: Data, options: DetectConfig, out: Path) -> RunRecord:
    """Score the rows of `data` through `model` into the folder `out` and return the record; see `search`."""
    loaded, processor = load_any(model)
    pairs = data.pairs()
    inputs = {"model": model_fingerprint(loaded), "data": data_fingerprint(pairs)}
    stage = stage_at(out, "detect", asdict(options), data.seed, inputs)
    return stage.run_once(
        lambda folder: search(loaded, processor, pairs, options, None, None, data.seed, folder), main_only=True
    )
