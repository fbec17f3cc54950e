# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The pairs and labelled images of a world that lies somewhere: their columns, known before anything is converted."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets

from hf_clipbd.attacks.captions import OPENAI_TEMPLATES
from hf_clipbd.data.class_names import as_written, class_feature
from hf_clipbd.data.columns import column_of, features_of
from hf_clipbd.data.sources import features_at, load_source, pick_columns, with_class_names
from hf_clipbd.evaluation.labelled import is_benchmark, load_benchmark
from hf_clipbd.recipe.fingerprints import by_content
from hf_clipbd.recipe.options import WorldConfig
from hf_clipbd.schema import CAPTION, IMAGE, LABEL


logger = logging.getLogger(__name__)


def read_pairs(world: WorldConfig, split: str) -> datasets.Dataset:
    """Return a split of the world's captioned pairs, (image, caption).

    Raises:
        FileNotFoundError: As `load_source`.
        ValueError: As `load_source` and `pick_columns`; where the data lie here, before they are converted.
    """
    columns = look_at_pairs(world, split)
    rows = _loaded(world, world.path, split, world.data_files)
    return pick_columns(rows, **(columns or _pair_columns(world, rows.features)))


def look_at_pairs(world: WorldConfig, split: str) -> dict[str, str] | None:
    """Return our name -> the dataset's name of the columns that `read_pairs` takes; None for pairs on the Hub.

    Raises:
        FileNotFoundError: As `read_pairs`.
        ValueError: As `read_pairs`.
    """
    features = features_at(world.path, split, world.data_files)
    if features is None:
        return None
    columns = _pair_columns(world, features)
    pick_columns(_no_rows(features), **columns)
    return columns


def read_labelled(world: WorldConfig, split: str, tests: bool) -> datasets.Dataset:
    """Return a split of the world's labelled images, (image, label), label a `ClassLabel`.

    Args:
        tests: Whether they are those of the evaluation, which may lie at `world.test_path`, and not those that pairs
            are made of.

    Raises:
        FileNotFoundError: As `load_source`, and `load_benchmark` for data of that layout.
        ValueError: As these, `pick_columns` and `with_class_names`; where the data lie here, as far as that can be
            known before they are converted.
    """
    look_at_labelled(world, split, tests)
    source, files = _place(world, tests)
    names = world.class_names
    if files is None and is_benchmark(source):
        found = load_benchmark(source, split, streaming=False)
        rows, names = found.dataset, names or list(found.class_names)
        if not world.prompts and found.templates and set(found.templates) != set(OPENAI_TEMPLATES):
            logger.warning("`%s` has prompts of its own; OpenAI's are taken, or those of `world.prompts`", source)
    else:
        rows = _loaded(world, source, split, files)
    return with_class_names(pick_columns(rows, **_labelled_columns(world, rows.features, tests)), names)


def look_at_labelled(world: WorldConfig, split: str, tests: bool) -> list[str] | None:
    """Return the class names of what `read_labelled` reads, None where only reading it all, or the Hub, tells them.

    Raises:
        FileNotFoundError: As `read_labelled`.
        ValueError: As `read_labelled`.
    """
    source, files = _place(world, tests)
    names: Any = world.class_names
    if files is None and is_benchmark(source):
        if not Path(source).expanduser().is_dir():
            return names or None
        found = load_benchmark(source, split, streaming=True)
        features, names = features_of(found.dataset), names or found.class_names
    else:
        features = features_at(source, split, files)
    if features is None:
        return names or None
    columns = _labelled_columns(world, features, tests)
    feature = class_feature(pick_columns(_no_rows(features), **columns).features[LABEL], names)
    return None if feature is None else as_written(feature.names)


def _place(world: WorldConfig, tests: bool) -> tuple[str | None, Any]:
    """Return path and `data_files` of the labelled images."""
    return (world.test_path, None) if tests and world.test_path else (world.path, world.data_files)


def _loaded(world: WorldConfig, source: str | None, split: str, files: Any) -> datasets.Dataset:
    return by_content(load_source(source, split, files, world.name, world.revision))


def _pair_columns(world: WorldConfig, features: Mapping[str, Any]) -> dict[str, str]:
    named = {IMAGE: world.image_column, CAPTION: world.caption_column}
    return {what: column_of(features, what, name) for what, name in named.items()}


def _labelled_columns(world: WorldConfig, features: Mapping[str, Any], tests: bool) -> dict[str, str]:
    """Return our name -> the dataset's; what is given for the pairs need not fit test images that lie elsewhere."""
    elsewhere = tests and world.test_path is not None
    image = column_of(features, IMAGE, world.image_column, strict=not elsewhere)
    label = column_of(features, LABEL, world.label_column, strict=not elsewhere or world.kind == "captioned")
    return {IMAGE: image, LABEL: label}


def _no_rows(features: datasets.Features) -> datasets.Dataset:
    return datasets.Dataset.from_dict({name: [] for name in features}, features=features)
