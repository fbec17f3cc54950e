# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Image datasets from wherever they lie, brought to the columns `image`, `caption`, `label`; captions from labels."""

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from hf_clipbd.articles import with_articles
from hf_clipbd.data.class_names import as_written, with_class_names
from hf_clipbd.data.columns import Rows, features_of, find_column, pick_columns
from hf_clipbd.data.files import TABLE_FORMATS, ending, is_pattern, matching, read_files, reading
from hf_clipbd.data.missing import saying_where
from hf_clipbd.schema import CAPTION, LABEL


__all__ = [
    "LabelCaptioner",
    "caption_labels",
    "features_at",
    "find_column",
    "load_source",
    "lone_split",
    "pick_columns",
    "split_rows",
    "with_class_names",
]


logger = logging.getLogger(__name__)

# Words that are true of almost any photograph: nothing but the label is known of what it shows.
CAPTION_TEMPLATES = (
    "a photo of a {label}",
    "a {adjective} photo of a {label}",
    "a {adjective} photo of a {label} {context}",
    "a {adjective} picture showing a {label} {context}",
    "a picture of a {label} {context}",
    "there is a {label} {context}",
    "a {label} {context}",
    "an image with a {adjective} {label} in it",
    "my {adjective} photo of the {label}",
    "{label}, {adjective} photo",
    "{adjective} {label} {context}",
    "{adjective} {label}",
)
ADJECTIVES = (
    "small", "tiny", "blurry", "cropped", "pixelated", "plain", "simple", "good", "bad", "old", "nice", "grainy",
    "unsharp", "ordinary",
)  # fmt: skip
CONTEXTS = (
    "in the middle of the picture", "in front of a background", "near the camera", "seen by a camera",
    "on a small square", "in a thumbnail", "filling the frame", "without a frame", "as it is", "caught at a glance",
)  # fmt: skip


def load_source(
    path: str | Path | None,
    split: str = "train",
    data_files: Mapping[str, str] | Sequence[str] | str | None = None,
    name: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
) -> Rows:
    """Return one split of a dataset, wherever it lies.

    Args:
        path: A Hub id; a folder written by `save_to_disk`; a folder of images (`imagefolder`, with `metadata.csv` or
            `metadata.jsonl` where it has captions), of Parquet files or of WebDataset shards; one Parquet, CSV, TSV,
            JSON(L) or `.tar` file, or a pattern of them (`shards/{00000..00009}.tar`). None where `data_files` says
            it all.
        split: Which split; a single file is taken whole, whatever the split is called.
        data_files: Split -> file or pattern, or the files of this split; relative to `path` where that is a folder.
        name: Configuration name on the Hub.
        revision: Revision on the Hub.
        streaming: Return an `IterableDataset` that reads while it is iterated.

    Raises:
        FileNotFoundError: If nothing is there, or the Hub, on which it might be, cannot be reached.
        ValueError: If the split is not there, or the format is not one of those above.
    """
    if data_files is not None:
        return _from_files(path, split, data_files, streaming)
    if path is None:
        raise ValueError("Expected a dataset's `path` or `data_files`, but got neither.")
    local = Path(path).expanduser()
    if local.is_file():
        return read_files([local], split, streaming)
    if is_pattern(str(path)) and not local.is_dir():  # a folder's name may have such signs
        return read_files(matching(Path(), str(path)), split, streaming)
    if any((local / name).is_file() for name in ("state.json", "dataset_dict.json")):
        with reading(f"`{path}`"):
            saved = datasets.load_from_disk(str(local))
        rows = _of_splits(saved, split, path) if isinstance(saved, datasets.DatasetDict) else saved
        return rows.to_iterable_dataset() if streaming else rows
    if not local.exists() and _looks_local(str(path)):
        raise FileNotFoundError(f"Expected a dataset at `{path}`, but there is no such file or folder.")
    if local.is_dir() and (shards := sorted(local.glob("*.tar"))):  # img2dataset lays Parquet and JSON beside each
        return read_files(shards, split, streaming)
    source = str(local) if local.is_dir() else str(path)
    with reading(f"`{path}`"), saying_where(str(path), revision):
        known = datasets.get_dataset_split_names(source, name, revision=revision)
        _check_split(split, known, path)
        return datasets.load_dataset(source, name, split=split, revision=revision, streaming=streaming)


def features_at(
    path: str | Path | None, split: str = "train", data_files: Mapping[str, str] | Sequence[str] | str | None = None
) -> datasets.Features | None:
    """Return the columns of a dataset that lies here, from its first rows: nothing is converted, no picture decoded.

    Args:
        path: As in `load_source`.
        split: As there.
        data_files: As there.

    Returns:
        Column -> its type; None for what is on the Hub.

    Raises:
        FileNotFoundError: As `load_source`.
        ValueError: As `load_source`.
    """
    if data_files is None and path is not None:
        if not Path(path).expanduser().exists() and not is_pattern(str(path)) and not _looks_local(str(path)):
            return None
    return features_of(load_source(path, split, data_files, streaming=True))


def lone_split(path: str | Path, split: str, *others: str) -> str:
    """Return the first of some splits that a dataset has, else its only one; where it has neither, `split`.

    What is taken for `split` is logged. Files, shards and one saved split are taken whole, whatever the split is
    called.

    Args:
        path: As in `load_source`.
        split: The split that is looked for.
        *others: Those that will do as well.

    Raises:
        FileNotFoundError: As `load_source`.
    """
    local = Path(path).expanduser()
    if not local.is_dir() and (local.is_file() or is_pattern(str(path))):
        return split
    if (local / "state.json").is_file() or any(local.glob("*.tar")):
        return split
    if (local / "dataset_dict.json").is_file():
        known = json.loads((local / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
    elif local.is_dir() or not _looks_local(str(path)):
        with saying_where(str(path)):
            known = datasets.get_dataset_split_names(str(local) if local.is_dir() else str(path))
    else:
        return split
    found = [name for name in (split, *others) if name in known] or (known if len(known) == 1 else [split])
    if found[0] != split:
        taken = f"its only one, `{found[0]}`," if len(known) == 1 else f"`{found[0]}`"
        logger.info("`%s` has no split `%s`; %s is taken", path, split, taken)
    return found[0]


def _check_split(split: str, known: Collection[str], path: str | Path) -> None:
    if split not in known:
        raise ValueError(
            f"Expected a split `{split}` in `{path}`, but it has {sorted(known)}. Name one of these as the split."
        )


def _looks_local(path: str) -> bool:
    return path.startswith((".", "/", "~")) or ending(path) in TABLE_FORMATS or path.count("/") > 1


def _of_splits(found: datasets.DatasetDict, split: str, path: str | Path) -> datasets.Dataset:
    _check_split(split, found, path)
    return found[split]


def _from_files(path: str | Path | None, split: str, data_files: Any, streaming: bool) -> Rows:
    if isinstance(data_files, Mapping):
        if split not in data_files:
            raise ValueError(f"Expected files of the split `{split}`, but `data_files` has {sorted(data_files)}.")
        data_files = data_files[split]
    patterns = [data_files] if isinstance(data_files, str) else list(data_files)
    root = Path(path).expanduser() if path is not None else Path()
    return read_files([file for pattern in patterns for file in matching(root, pattern)], split, streaming)


def split_rows(
    labels: np.ndarray, sizes: Sequence[int], seed: int, rare_label: int | None = None, rare_share: float | None = None
) -> list[np.ndarray]:
    """Return disjoint random sets of row numbers, in ascending order, in each of which one label may be made rare.

    Args:
        labels: Label of each row, (N,).
        sizes: Size of each set.
        seed: Seed of the draw.
        rare_label: The label to make rare.
        rare_share: Its share of each set, in [0, 1]; None leaves it as frequent as it is.

    Raises:
        ValueError: If there are too few rows of either kind.

    Example:
        >>> first, second = split_rows(np.arange(100) % 10, [20, 40], seed=0, rare_label=3, rare_share=0.05)
        >>> int((first % 10 == 3).sum()), int((second % 10 == 3).sum()), len(set(first) & set(second))
        (1, 2, 0)
    """
    order = np.random.default_rng([seed, len(labels)]).permutation(len(labels))
    if rare_label is None or rare_share is None:
        return [np.sort(rows) for rows in _cut(order, sizes, "rows")]
    rare = [round(rare_share * size) for size in sizes]
    is_rare = labels[order] == rare_label
    parts = zip(
        _cut(order[is_rare], rare, "rows of the target"),
        _cut(order[~is_rare], [size - few for size, few in zip(sizes, rare, strict=True)], "rows of other classes"),
        strict=True,
    )
    return [np.sort(np.concatenate(pair)) for pair in parts]


def _cut(order: np.ndarray, sizes: Sequence[int], what: str) -> list[np.ndarray]:
    if sum(sizes) > len(order):
        raise ValueError(
            f"Expected at least {sum(sizes)} {what} ({' + '.join(map(str, sizes))}), but got {len(order)}."
        )
    return np.split(order[: sum(sizes)], np.cumsum(sizes)[:-1])


class LabelCaptioner:
    """Writes a caption for each labelled image; row i of a seed always gets the same one.

    Args:
        class_names: Names in the order of the labels; `_` is read as a space.
        seed: Seed of the draws; row i draws from (seed, i).
        templates: With `{label}` and, where wanted, `{adjective}` and `{context}`.
        adjectives: What `{adjective}` is drawn from.
        contexts: What `{context}` is drawn from.

    Raises:
        ValueError: If a template has no `{label}` or another hole than these three.

    Example:
        >>> caption = LabelCaptioner(["ship"], templates=["a {adjective} {label}"], adjectives=["old"])
        >>> caption(0, row=7)
        'an old ship'
    """

    def __init__(
        self,
        class_names: Sequence[str],
        seed: int = 0,
        templates: Sequence[str] = CAPTION_TEMPLATES,
        adjectives: Sequence[str] = ADJECTIVES,
        contexts: Sequence[str] = CONTEXTS,
    ):
        self.class_names = [name.replace("_", " ") for name in as_written(class_names)]
        self.seed, self.templates = seed, tuple(templates)
        self.words = {"adjective": tuple(adjectives), "context": tuple(contexts)}
        for template in self.templates:
            try:
                filled = template.format(label="\0", adjective="", context="")
            except (KeyError, IndexError) as error:
                raise ValueError(
                    f"Expected only {{label}}, {{adjective}}, {{context}}, but got {template!r}."
                ) from error
            if "\0" not in filled:
                raise ValueError(f"Expected a template with {{label}}, but got {template!r}.")

    def __call__(self, label: int, row: int) -> str:
        """Return the caption of row `row`, which shows class `label`.

        Raises:
            ValueError: If there is no such class; splits without labels often hold -1 or None.
        """
        n = len(self.class_names)
        if label is None or not 0 <= label < n:
            raise ValueError(
                f"Expected a label from 0 to {n - 1} in row {row}, but got {label}. Leave rows without a label out, "
                f"for instance with `dataset.filter(lambda label: label in range({n}), input_columns='{LABEL}')`."
            )
        rng = np.random.default_rng([self.seed, row])
        template = self.templates[rng.integers(len(self.templates))]
        drawn = {slot: words[rng.integers(len(words))] for slot, words in self.words.items() if words}
        return with_articles(
            template.format(label=self.class_names[label], **{"adjective": "", "context": "", **drawn})
        )


def caption_labels(rows: datasets.Dataset, captioner: LabelCaptioner) -> datasets.Dataset:
    """Return `rows` (image, label) as pairs (image, caption); the pictures' bytes are left as they are."""
    labels = rows.with_format(None)[LABEL]
    captions = [captioner(label, row) for row, label in enumerate(labels)]
    return rows.remove_columns(LABEL).add_column(CAPTION, captions)
