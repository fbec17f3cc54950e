# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Image datasets from wherever they lie, brought to the columns `image`, `caption`, `label`; captions from labels."""

import difflib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from hf_clipbd.schema import CAPTION, IMAGE, LABEL


logger = logging.getLogger(__name__)

TABLE_FORMATS = {
    ".parquet": ("parquet", {}),
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
}
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
) -> datasets.Dataset:
    """Return one split of a dataset, wherever it lies.

    Args:
        path: A Hub id; a folder written by `save_to_disk`; a folder of images (`imagefolder`) or of Parquet files; or
            one Parquet, CSV, TSV or JSON(L) file. None where `data_files` says it all.
        split: Which split; a single file is taken whole, whatever the split is called.
        data_files: Split -> file or pattern, or the files of this split; relative to `path` where that is a folder.
        name: Configuration name on the Hub.
        revision: Revision on the Hub.

    Raises:
        FileNotFoundError: If a local path does not exist.
        ValueError: If the split is not there, or the format is not one of those above.
    """
    if data_files is not None:
        return _from_files(path, split, data_files)
    if path is None:
        raise ValueError("Expected a dataset's `path` or `data_files`, but got neither.")
    local = Path(path).expanduser()
    if local.is_file():
        return _table([local], split)
    if (local / "state.json").is_file():
        return datasets.load_from_disk(str(local))
    if (local / "dataset_dict.json").is_file():
        return _of_splits(datasets.load_from_disk(str(local)), split, path)
    if not local.exists() and _looks_local(str(path)):
        raise FileNotFoundError(f"Expected a dataset at `{path}`, but there is no such file or folder.")
    source = str(local) if local.is_dir() else str(path)
    known = datasets.get_dataset_split_names(source, name, revision=revision)
    if split not in known:
        raise ValueError(f"Expected a split `{split}` in `{path}`, but it has {known}.")
    return datasets.load_dataset(source, name, split=split, revision=revision)


def _looks_local(path: str) -> bool:
    return path.startswith((".", "/", "~")) or Path(path).suffix in TABLE_FORMATS or path.count("/") > 1


def _of_splits(found: datasets.DatasetDict, split: str, path: str | Path) -> datasets.Dataset:
    if split not in found:
        raise ValueError(f"Expected a split `{split}` in `{path}`, but it has {sorted(found)}.")
    return found[split]


def _from_files(path: str | Path | None, split: str, data_files: Any) -> datasets.Dataset:
    if isinstance(data_files, Mapping):
        if split not in data_files:
            raise ValueError(f"Expected files of the split `{split}`, but `data_files` has {sorted(data_files)}.")
        data_files = data_files[split]
    patterns = [data_files] if isinstance(data_files, str) else list(data_files)
    root = Path(path).expanduser() if path is not None else Path()
    files = [file for pattern in patterns for file in _matching(root, pattern)]
    return _table(files, split)


def _matching(root: Path, pattern: str) -> list[Path]:
    given = Path(pattern).expanduser()
    if any(sign in pattern for sign in "*?["):
        base = Path(given.anchor) if given.is_absolute() else root
        found = sorted(base.glob(str(given.relative_to(given.anchor) if given.is_absolute() else given)))
    else:
        found = [root / given] if (root / given).is_file() else []
    if not found:
        raise FileNotFoundError(f"Expected files matching `{pattern}` below `{root}`, but there are none.")
    return found


def _table(files: Sequence[Path], split: str) -> datasets.Dataset:
    formats = {file.suffix.lower() for file in files}
    if len(formats) != 1 or not formats <= set(TABLE_FORMATS):
        raise ValueError(f"Expected files of one format out of {sorted(TABLE_FORMATS)}, but got {sorted(formats)}.")
    builder, options = TABLE_FORMATS[formats.pop()]
    rows = datasets.load_dataset(builder, data_files={split: [str(file) for file in files]}, split=split, **options)
    return _absolute_paths(rows, files[0].parent) if builder in ("csv", "json") else rows


def _absolute_paths(rows: datasets.Dataset, folder: Path) -> datasets.Dataset:
    """Cast each text column whose first entry is a picture's path, relative to the table's folder, to images."""
    if len(rows) == 0:
        return rows
    first = rows[0]
    for column, value in first.items():
        if isinstance(value, str) and (folder / value).suffix.lower() in _PICTURES and (folder / value).is_file():
            rows = rows.map(_with_folder, fn_kwargs={"column": column, "folder": str(folder.resolve())})
            rows = rows.cast_column(column, datasets.Image())
    return rows


_PICTURES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"})


def _with_folder(row: dict[str, Any], column: str, folder: str) -> dict[str, Any]:
    return {column: str(Path(folder) / row[column])}


def pick_columns(rows: datasets.Dataset, **columns: str) -> datasets.Dataset:
    """Return only the named columns, under the names `image`, `caption`, `label`; images are decoded as images.

    Args:
        rows: Any dataset.
        **columns: Our name -> the dataset's name, for instance `caption="text"`.

    Raises:
        ValueError: If a column is not there; the message names the nearest one.

    Example:
        >>> rows = datasets.Dataset.from_dict({"text": ["a cup"], "url": ["-"]})
        >>> pick_columns(rows, caption="text").column_names
        ['caption']
    """
    for ours, theirs in columns.items():
        if theirs not in rows.column_names:
            near = difflib.get_close_matches(theirs, rows.column_names, n=1)
            hint = f" Did you mean `{near[0]}`?" if near else ""
            raise ValueError(
                f"Expected a column `{theirs}` ({ours}), but the dataset has {rows.column_names}.{hint} "
                f"Set `{ours}_column`."
            )
    rows = rows.select_columns(list(columns.values()))
    rows = rows.rename_columns({theirs: ours for ours, theirs in columns.items() if ours != theirs})
    if IMAGE in columns and not isinstance(rows.features[IMAGE], datasets.Image):
        rows = rows.cast_column(IMAGE, datasets.Image())
    return rows


def with_class_names(rows: datasets.Dataset, names: Sequence[str] = ()) -> datasets.Dataset:
    """Return `rows` with `label` as a `ClassLabel`, of the given `names` where the column does not know its own.

    Raises:
        ValueError: If the column is no `ClassLabel` and no names are given.
    """
    if isinstance(rows.features[LABEL], datasets.ClassLabel) and not names:
        return rows
    if not names:
        raise ValueError(f"Expected a ClassLabel column, but got {rows.features[LABEL]}. Set `class_names`.")
    return rows.cast_column(LABEL, datasets.ClassLabel(names=list(names)))


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
        self.class_names = [name.replace("_", " ") for name in class_names]
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
        """Return the caption of row `row`, which shows class `label`."""
        rng = np.random.default_rng([self.seed, row])
        template = self.templates[rng.integers(len(self.templates))]
        drawn = {slot: words[rng.integers(len(words))] for slot, words in self.words.items() if words}
        return _articles(template.format(label=self.class_names[label], **{"adjective": "", "context": "", **drawn}))


def _articles(caption: str) -> str:
    """Return the caption with `a` and `an` as the next word's first letter asks for, and single spaces."""
    words = caption.split()
    for i, following in enumerate(words[1:]):
        if words[i] in ("a", "an"):
            words[i] = "an" if following[0] in "aeiou" else "a"
    return " ".join(words)


def caption_labels(rows: datasets.Dataset, captioner: LabelCaptioner) -> datasets.Dataset:
    """Return `rows` (image, label) as pairs (image, caption); the pictures' bytes are left as they are."""
    labels = rows.with_format(None)[LABEL]
    captions = [captioner(label, row) for row, label in enumerate(labels)]
    return rows.remove_columns(LABEL).add_column(CAPTION, captions)
