# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What a run works on: pairs to poison, clean pairs to defend with, labelled images to measure on, models."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from transformers import PreTrainedModel

from hf_clipbd import scenes
from hf_clipbd.attacks import ATTACKS, Attack
from hf_clipbd.data.canvas import Canvas
from hf_clipbd.data.class_names import as_written
from hf_clipbd.data.sources import (
    ADJECTIVES,
    CAPTION_TEMPLATES,
    CONTEXTS,
    LabelCaptioner,
    caption_labels,
    split_rows,
)
from hf_clipbd.evaluation.protocol import class_names_of
from hf_clipbd.features import model_fingerprint
from hf_clipbd.models import load_dual_encoder
from hf_clipbd.recipe.config import RunConfig
from hf_clipbd.recipe.patch_options import patch_options
from hf_clipbd.recipe.readable import without_unreadable
from hf_clipbd.recipe.sections import ConfigError, call_with, check_names
from hf_clipbd.recipe.world_rows import read_labelled, read_pairs
from hf_clipbd.schema import LABEL, RunRecord, reachable


Loader = Callable[[], tuple[PreTrainedModel, Any]]
"""Gives a model and its processor."""
SCENES_A_WORKER = 1000
VALIDATION_SEED = 1_000_000
"""Added to a world's seed, gives the seed of its validation scenes."""


def build_attack(config: RunConfig) -> Attack:
    """Return the attack of a run, on the run's canvas.

    Raises:
        ConfigError: If its name is unknown, an argument is, or it refuses one.
    """
    values = dict(config.attack)
    name = values.pop("name", None)
    if "target" not in values or name is None:
        raise ConfigError("Expected section `attack` to have a `name` and a `target`.")
    check_names([name], ATTACKS, "`attack.name`")
    if config.world.kind == "scenes":
        check_names([values["target"]], scenes.CLASS_NAMES, "`attack.target`")
    patch_options(config.attack)
    values.pop("optimize", None)
    canvas = Canvas(config.world.size, config.world.canvas)
    return call_with(ATTACKS[name], {"seed": config.seed, "canvas": canvas, **values}, "attack")


@contextmanager
def _progress_bars() -> Iterator[None]:
    """Show the bars of 🤗 Datasets for the block, unless the environment says no: drawing scenes takes a while."""
    hidden = datasets.are_progress_bars_disabled()
    if datasets.config.HF_DATASETS_DISABLE_PROGRESS_BARS:
        yield
        return
    datasets.enable_progress_bars()
    yield
    if hidden:
        datasets.disable_progress_bars()


class World:
    """The data and the clean model of a run, each read when it is first asked for, by every process of several.

    With `world.on_error` `skip` the rows that cannot be read are left out when they are chosen, so that there are as
    many fewer; see `without_unreadable`.

    Attributes:
        unreadable: What was read with `skip` (`train`, `defense`, `test`, ...) -> row of its split -> why it was left
            out.
    """

    def __init__(self, config: RunConfig):
        self.config, self.world, self.seed = config, config.world, config.seed
        self.target = str(config.attack["target"])
        self.unreadable: dict[str, dict[str, str]] = {}

    @property
    def canvas(self) -> Canvas:
        """Geometry of every image."""
        return Canvas(self.world.size, self.world.canvas)

    @cached_property
    def train(self) -> datasets.Dataset:
        """Pairs (image, caption) that are poisoned, trained on and searched."""
        return self._scenes("train", self.world.n_train) if self._rendered else self._pairs[0]

    @cached_property
    def defense(self) -> datasets.Dataset:
        """Clean pairs (image, caption) that the defences fine-tune on."""
        return self._scenes("defense", self.world.n_defense) if self._rendered else self._pairs[1]

    @cached_property
    def test(self) -> datasets.Dataset:
        """Labelled images (image, label), label a `ClassLabel`."""
        world = self.world
        if self._rendered:
            return self._scenes("test", world.n_test)
        (chosen,) = self._drawn(self._labelled, min(world.n_test, len(self._labelled)))
        return self._read("test", self._labelled, chosen)

    def validation(self, n: int) -> datasets.Dataset:
        """Return n labelled images of which none is in `test`, for choices among settings.

        Raises:
            ValueError: If the test split has no such n images left beside those of `test`.
        """
        if self._rendered:
            return self._scenes("test", n, seed=self.seed + VALIDATION_SEED)
        _, chosen = self._drawn(self._labelled, min(self.world.n_test, len(self._labelled)), n)
        return self._read("validation", self._labelled, chosen)

    @cached_property
    def _labelled(self) -> datasets.Dataset:
        """The whole test split as labelled images."""
        return read_labelled(self.world, self.world.test_split, tests=True)

    @cached_property
    def clean_pairs(self) -> datasets.Dataset:
        """Pairs (image, caption) that a clean model is trained on: every class as frequent as the others."""
        n = self.world.n_clean
        if self._rendered:
            return self._scenes("train", n or self.world.n_train, frequencies="balanced")
        return self._read("clean", self._captioned, None if n is None else self._drawn(self._captioned, n)[0])

    @cached_property
    def class_names(self) -> list[str]:
        """Names of the classes that compete in the evaluation, two of which may be alike."""
        return as_written(self.test.features[LABEL].names)

    def left_out(self, what: str) -> dict[str, Any]:
        """Return the figure `unreadable` of a stage's record, rows of their split; nothing where none were left out.

        Why each was is in the run folder alone, since it names files of this machine.

        Args:
            what: A key of `unreadable`, of rows that were read already.
        """
        found = [int(row) for row in self.unreadable.get(what, ())]
        return {"unreadable": found} if found else {}

    @property
    def ks(self) -> list[int]:
        """The k of top-k that are asked for and that there are classes for."""
        return reachable(self.config.evaluate.ks, len(self.class_names))

    @property
    def prompts(self) -> list[str] | None:
        """Zero-shot prompts; None stands for OpenAI's 80."""
        return self.world.prompts or (list(scenes.PROMPTS) if self._rendered else None)

    def clean_model(self) -> tuple[PreTrainedModel, Any]:
        """Return the clean model and its processor, where the run does not train them itself."""
        if self.world.clean_model == "scenes":
            return scenes.load_clean_clip()
        return load_dual_encoder(self.world.clean_model)

    @property
    def _rendered(self) -> bool:
        return self.world.kind == "scenes"

    def _scenes(self, split: str, n: int, frequencies: str | None = None, seed: int | None = None) -> datasets.Dataset:
        world = self.world
        workers = world.num_proc or min(os.cpu_count() or 1, n // SCENES_A_WORKER)
        wanted = frequencies or world.frequencies
        rare = world.rare or self.target
        seed = self.seed if seed is None else seed
        with _progress_bars():
            return scenes.load_scenes(split, world.size, seed, n, wanted, rare, workers if workers > 1 else None)

    @cached_property
    def _labels(self) -> datasets.Dataset:
        """The whole train split as labelled images, of which pairs are made."""
        return read_labelled(self.world, self.world.train_split, tests=False)

    @cached_property
    def _captioned(self) -> datasets.Dataset:
        """The whole train split as pairs (image, caption)."""
        world = self.world
        if world.kind == "captioned":
            return read_pairs(world, world.train_split)
        captioner = LabelCaptioner(
            self._labels.features[LABEL].names,
            self.seed,
            world.caption_templates or CAPTION_TEMPLATES,
            world.adjectives or ADJECTIVES,
            world.contexts or CONTEXTS,
        )
        return caption_labels(self._labels, captioner)

    @cached_property
    def _pairs(self) -> tuple[datasets.Dataset, datasets.Dataset]:
        """Disjoint pairs to poison and to defend with."""
        world = self.world
        if world.kind == "captioned" and world.defense_split is not None:
            train, defense = self._captioned, read_pairs(world, world.defense_split)
            first, second = self._drawn(train, world.n_train)[0], self._drawn(defense, world.n_defense)[0]
            return self._read("train", train, first), self._read("defense", defense, second)
        rare, labels = None, np.zeros(len(self._captioned), dtype=int)
        if world.kind == "labelled":
            labels, rare = np.asarray(self._labels.with_format(None)[LABEL][:]), self._rare_label()
        sizes = [world.n_train, world.n_defense]
        first, second = split_rows(labels, sizes, self.seed, rare, world.target_share)
        return self._read("train", self._captioned, first), self._read("defense", self._captioned, second)

    def _drawn(self, rows: datasets.Dataset, *sizes: int) -> list[np.ndarray]:
        """Return the numbers of random rows, disjoint and so many each."""
        return split_rows(np.zeros(len(rows)), list(sizes), self.seed)

    def _rare_label(self) -> int:
        names = class_names_of(self._labels, LABEL)
        check_names([self.target], names, "`attack.target`")
        return names.index(self.target)

    def _read(self, what: str, rows: datasets.Dataset, chosen: np.ndarray | None) -> datasets.Dataset:
        """Return chosen rows (None for all), without those that cannot be read where `world.on_error` says so."""
        if self.world.on_error == "raise":
            return rows if chosen is None else rows.select(chosen)
        kept, self.unreadable[what] = without_unreadable(rows, chosen, self.canvas, self.config.output_dir, what)
        return kept


def clean_model(config: RunConfig, world: World) -> tuple[str, Loader]:
    """Return key or fingerprint of the run's clean model and what loads it."""
    if config.clean is not None:
        return trained_model(config.output_dir / "clean")
    model, _ = world.clean_model()
    return model_fingerprint(model), world.clean_model


def trained_model(folder: Path) -> tuple[str, Loader]:
    """Return the key of the stage that trained a model in its folder, and what loads it."""
    return RunRecord.load(folder).key, lambda: load_dual_encoder(folder)


def given_model(source: str) -> tuple[str, Loader]:
    """Return the fingerprint of a model in a folder or on the Hub, and what gives it."""
    model, processor = load_dual_encoder(source)
    return model_fingerprint(model), lambda: (model, processor)


def stage_of(model: str) -> str:
    """Return the stage that trains a model of a run: `clean`, `victim` or `defend/NAME`."""
    return model if model in ("clean", "victim") else f"defend/{model}"
