# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What a run works on: pairs to poison, clean pairs to defend with, labelled images to measure on, a clean model."""

import hashlib
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import pyarrow.compute as pc

from hf_clipbd import scenes
from hf_clipbd.attacks import ATTACKS, Attack
from hf_clipbd.data.canvas import Canvas
from hf_clipbd.data.sources import (
    ADJECTIVES,
    CAPTION_TEMPLATES,
    CONTEXTS,
    LabelCaptioner,
    caption_labels,
    load_source,
    pick_columns,
    split_rows,
    with_class_names,
)
from hf_clipbd.models import load_dual_encoder
from hf_clipbd.recipe.config import RunConfig, WorldConfig
from hf_clipbd.recipe.patch_options import patch_options
from hf_clipbd.recipe.sections import ConfigError, call_with, check_names
from hf_clipbd.schema import LABEL, reachable


if TYPE_CHECKING:
    from transformers import PreTrainedModel

SCENES_A_WORKER = 1000
VALIDATION_SEED = 1_000_000
"""Added to a world's seed, gives the seed of its validation scenes."""


def canvas_of(world: WorldConfig) -> Canvas:
    """Return the geometry that every image of a run is put on."""
    return Canvas(world.size, world.canvas)


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
    cls = ATTACKS[name]
    patch_options(config.attack)
    values.pop("optimize", None)
    given = {"seed": config.seed, "canvas": canvas_of(config.world), **values}
    return call_with(cls, given, "attack")


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
    """The data and the clean model of a run, each read when it is first asked for.

    Args:
        config: The run.
    """

    def __init__(self, config: RunConfig):
        self.config, self.world, self.seed = config, config.world, config.seed
        self.target = str(config.attack["target"])

    @property
    def canvas(self) -> Canvas:
        """Geometry of every image."""
        return canvas_of(self.world)

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
        (chosen,) = split_rows(np.zeros(len(self._labelled)), [min(world.n_test, len(self._labelled))], self.seed)
        return self._labelled.select(chosen)

    def validation(self, n: int) -> datasets.Dataset:
        """Return n labelled images of which none is in `test`, for choices among settings.

        Raises:
            ValueError: If the test split has no such n images left beside those of `test`.
        """
        if self._rendered:
            return self._scenes("test", n, seed=self.seed + VALIDATION_SEED)
        sizes = [min(self.world.n_test, len(self._labelled)), n]
        return self._labelled.select(split_rows(np.zeros(len(self._labelled)), sizes, self.seed)[1])

    @cached_property
    def _labelled(self) -> datasets.Dataset:
        """The whole test split as labelled images."""
        world = self.world
        rows = by_content(
            load_source(
                world.test_path or world.path,
                world.test_split,
                None if world.test_path else world.data_files,
                world.name,
                world.revision,
            )
        )
        rows = pick_columns(rows, image=world.image_column, label=world.label_column)
        return with_class_names(rows, world.class_names)

    @cached_property
    def clean_pairs(self) -> datasets.Dataset:
        """Pairs (image, caption) that a clean model is trained on: every class as frequent as the others."""
        n = self.world.n_clean
        if self._rendered:
            return self._scenes("train", n or self.world.n_train, frequencies="balanced")
        rows = self._captioned
        if n is None:
            return rows
        return rows.select(split_rows(np.zeros(len(rows)), [n], self.seed)[0])

    @cached_property
    def class_names(self) -> list[str]:
        """Names of the classes that compete in the evaluation."""
        return list(self.test.features[LABEL].names)

    @property
    def ks(self) -> list[int]:
        """The k of top-k that are asked for and that there are classes for."""
        return reachable(self.config.evaluate.ks, len(self.class_names))

    @property
    def prompts(self) -> list[str] | None:
        """Zero-shot prompts; None stands for OpenAI's 80."""
        return self.world.prompts or (list(scenes.PROMPTS) if self._rendered else None)

    def clean_model(self) -> "tuple[PreTrainedModel, Any]":
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
    def _source(self) -> datasets.Dataset:
        world = self.world
        return by_content(load_source(world.path, world.train_split, world.data_files, world.name, world.revision))

    @cached_property
    def _labels(self) -> datasets.Dataset:
        rows = pick_columns(self._source, image=self.world.image_column, label=self.world.label_column)
        return with_class_names(rows, self.world.class_names)

    @cached_property
    def _captioned(self) -> datasets.Dataset:
        """The whole train split as pairs (image, caption)."""
        world = self.world
        if world.kind == "captioned":
            return pick_columns(self._source, image=world.image_column, caption=world.caption_column)
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
            train, defense = (
                self._captioned,
                load_source(world.path, world.defense_split, world.data_files, world.name, world.revision),
            )
            defense = pick_columns(by_content(defense), image=world.image_column, caption=world.caption_column)
            first = split_rows(np.zeros(len(train)), [world.n_train], self.seed)[0]
            second = split_rows(np.zeros(len(defense)), [world.n_defense], self.seed)[0]
            return train.select(first), defense.select(second)
        rare, labels = None, np.zeros(len(self._captioned), dtype=int)
        if world.kind == "labelled":
            labels, rare = np.asarray(self._labels.with_format(None)[LABEL][:]), self._rare_label()
        sizes = [world.n_train, world.n_defense]
        first, second = split_rows(labels, sizes, self.seed, rare, world.target_share)
        return self._captioned.select(first), self._captioned.select(second)

    def _rare_label(self) -> int:
        names = [name.replace("_", " ") for name in self._labels.features[LABEL].names]
        check_names([self.target], names, "`attack.target`")
        return names.index(self.target)


def data_fingerprint(dataset: datasets.Dataset) -> str:
    """Return the fingerprint of a dataset: equal for the same source, columns and rows on this machine.

    🤗 Datasets tells a table of paths by the table alone; so name, size and time of change of each picture that lies
    in a file of its own are part of it, and a picture overwritten under its name makes another dataset. Pictures whose
    bytes are in the rows are not looked at.
    """
    known = f"{dataset._fingerprint}-{len(dataset)}"
    columns = [name for name, feature in dataset.features.items() if isinstance(feature, datasets.Image)]
    columns = [name for name in columns if _in_files(dataset, name)]
    if not columns:
        return known
    plain = dataset.with_format(None).select_columns(columns)
    for name in columns:
        plain = plain.cast_column(name, datasets.Image(decode=False))
    files = hashlib.blake2b(digest_size=8)
    for table in plain.with_format("arrow").iter(1000):
        for name in columns:
            inside = pc.is_valid(pc.struct_field(table[name], "bytes")).to_pylist()
            paths = pc.struct_field(table[name], "path").to_pylist()
            for path in itertools.compress(paths, (not there for there in inside)):
                files.update(_state_of(path).encode("utf-8", "surrogatepass"))
    return f"{known}-{files.hexdigest()}"


def by_content(dataset: datasets.Dataset) -> datasets.Dataset:
    """Return the same rows; what 🤗 Datasets keeps of them on disk is not taken for that of overwritten pictures."""
    fingerprint = data_fingerprint(dataset)
    if fingerprint == f"{dataset._fingerprint}-{len(dataset)}":  # no pictures in files of their own
        return dataset
    return dataset.select(range(len(dataset)), new_fingerprint=fingerprint)


def _in_files(dataset: datasets.Dataset, column: str) -> bool:
    """Return whether pictures of a column lie in files of their own; only offsets of the bytes are read."""
    return any(
        pc.and_(pc.is_valid(pc.struct_field(chunk, "path")), pc.is_null(pc.struct_field(chunk, "bytes"))).true_count
        for chunk in dataset.data.column(column).chunks
    )


def _state_of(path: str | None) -> str:
    """Return what tells a file's content without reading it, ending in a line feed."""
    if path is None:
        return "none\n"
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # missing, or an address that is no file here
        return f"{path} missing\n"
    return f"{path} {found.st_size} {found.st_mtime_ns}\n"
