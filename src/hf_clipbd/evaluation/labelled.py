# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Labelled images with their class names and prompts, as CLIP's benchmarks keep them: a dataset and two text files."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from hf_clipbd.data.columns import features_of
from hf_clipbd.models import resolve_file
from hf_clipbd.schema import IMAGE, LABEL


CLASSES_FILE = "classnames.txt"
BENCHMARK = "clip-benchmark/"
TEMPLATES_FILE = "zeroshot_classification_templates.txt"
LABEL_COLUMNS = ("cls", LABEL)

MEAN_PER_CLASS = ("pets", "caltech101", "fgvc_aircraft", "flowers")
"""Parts of the last names of datasets whose linear probe the field reports as mean accuracy of the classes."""


@dataclass(frozen=True)
class LabelledImages:
    """Images with labels, and the words for the classes.

    Args:
        dataset: Rows, a `Dataset` or, streaming, an `IterableDataset`.
        class_names: C names in the order of the labels.
        templates: Prompts with `{}` for the class name; None stands for OpenAI's 80.
        image_column: Column of images. Columns keep the names that they have: renaming those of a streaming dataset
            makes `datasets` decode each picture and encode it again, JPEG and WebP with loss.
        label_column: Column of class numbers.
    """

    dataset: Any
    class_names: tuple[str, ...]
    templates: tuple[str, ...] | None = None
    image_column: str = IMAGE
    label_column: str = LABEL


def _lines(path: str | os.PathLike) -> list[str]:
    """Return the lines of a text file without the space around them and without blank ones at its end."""
    return [line.strip() for line in Path(path).read_text(encoding="utf-8").rstrip().splitlines()]


def read_class_names(path: str | os.PathLike) -> list[str]:
    """Return the class names of a text file, one a line, in the order of the labels.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is blank, which would leave a class without a name, or all are.
    """
    names = _lines(path)
    blank = [number for number, name in enumerate(names, 1) if not name]
    if blank or not names:
        raise ValueError(f"Expected a class name on each line of {path}, but lines {blank[:5] or 'all'} are blank.")
    return names


def read_templates(path: str | os.PathLike) -> list[str]:
    """Return the prompts of a text file, one a line; `{c}`, the benchmark's own hole, is read as `{}`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line has no hole for the class name, or more than one.
    """
    templates = [line.replace("{c}", "{}") for line in _lines(path) if line]
    wrong = [template for template in templates if template.count("{}") != 1]
    if wrong or not templates:
        raise ValueError(f"Expected prompts with one `{{}}` or `{{c}}` in {path}, but got {wrong[:3] or 'none'}.")
    return templates


def is_benchmark(source: str | os.PathLike) -> bool:
    """Return whether a source has the benchmark's layout: a Hub id of its owner, or a folder with `classnames.txt`.

    Example:
        >>> is_benchmark("clip-benchmark/wds_imagenet1k"), is_benchmark("uoft-cs/cifar10")
        (True, False)
    """
    return str(source).startswith(BENCHMARK) or (Path(source).expanduser() / CLASSES_FILE).is_file()


def load_benchmark(id_or_path: str | os.PathLike, split: str = "test", streaming: bool = True) -> LabelledImages:
    """Return one split of a dataset in the layout of `clip-benchmark/wds_*`, with its class names and prompts.

    The layout: `classnames.txt`, `zeroshot_classification_templates.txt`, and webdataset shards `SPLIT/*.tar` whose
    samples have a picture (`.jpg`, `.png`, `.webp`) and a class number (`.cls`).

    Args:
        id_or_path: Hub id such as "clip-benchmark/wds_imagenet1k" (its 1,000 curated names and 80 prompts), or a local
            folder of this layout.
        split: Folder of the shards.
        streaming: Read the shards one after the other instead of converting them to a table on disk first.

    Raises:
        FileNotFoundError: If the folder, a text file or the shards are not there.
        ValueError: If the samples hold no picture or no class number.
    """
    names = tuple(read_class_names(resolve_file(id_or_path, CLASSES_FILE, repo_type="dataset")))
    try:
        templates = tuple(read_templates(resolve_file(id_or_path, TEMPLATES_FILE, repo_type="dataset")))
    except FileNotFoundError:
        templates = None
    folder = Path(id_or_path).expanduser()
    if folder.is_dir():
        shards = sorted((folder / split).glob("*.tar"), key=_shard_number)
        if not shards:
            found = sorted({path.parent.name for path in folder.glob("*/*.tar")})
            raise FileNotFoundError(f"Expected shards `{split}/*.tar` in {folder}, but found splits {found}.")
        files: Any = [str(shard) for shard in shards]
    else:
        files = f"hf://datasets/{id_or_path}/{split}/*.tar"
    rows = datasets.load_dataset("webdataset", data_files={split: files}, split=split, streaming=streaming)
    image, label = _columns(rows)
    return LabelledImages(rows.select_columns([image, label]), names, templates, image, label)


def _shard_number(path: Path) -> tuple[int, str]:
    return (int(path.stem) if path.stem.isdecimal() else -1, path.name)


def _columns(rows: Any) -> tuple[str, str]:
    """Return the names of the columns of pictures and of class numbers."""
    names = features_of(rows)
    pictures = [name for name, feature in names.items() if isinstance(feature, datasets.Image)]
    labels = [name for name in LABEL_COLUMNS if name in names]
    if not pictures or not labels:
        raise ValueError(f"Expected a picture and a class number (`.cls`), but got columns {sorted(names)}.")
    return pictures[0], labels[0]


def uses_mean_per_class(name: str) -> bool:
    """Return whether the field reports a dataset's linear probe as the mean accuracy of its classes.

    Args:
        name: Hub id, path or name of the dataset; what comes before its last `/` says nothing.

    Example:
        >>> uses_mean_per_class("clip-benchmark/wds_vtab-pets"), uses_mean_per_class("/home/pets/wds_food101")
        (True, False)
    """
    last = Path(name).name.lower().replace("-", "_")
    return any(part in last for part in MEAN_PER_CLASS)
