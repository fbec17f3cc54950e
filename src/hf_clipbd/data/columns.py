# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Which columns of a stranger's dataset are images and captions, and the two of them under our names."""

import difflib
import logging
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

import datasets

from hf_clipbd.schema import CAPTION, IMAGE, LABEL, MANIFEST_FILE, PoisonManifest


logger = logging.getLogger(__name__)

IMAGE_NAMES = (
    "image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp", "image_path", "file_path", "filepath", "file",
    "path",
)  # fmt: skip
CAPTION_NAMES = (
    "caption", "text", "txt", "sentence", "title", "description", "alt_text", "prompt", "captions", "sentences",
)  # fmt: skip
LABEL_NAMES = (LABEL, "cls", "labels", "class")
"""What columns of images, captions and labels are called out there, in the order in which they are looked for."""

Rows = datasets.Dataset | datasets.IterableDataset


def find_column(rows: Rows, what: str, given: str | None = None) -> str | None:
    """Return the column that holds the images or captions; None if there are no captions.

    A column that the user names is taken as it is. Else it is the first of `IMAGE_NAMES` or `CAPTION_NAMES` that is
    there, and failing that, for images, the only column of 🤗 Datasets' type `Image`.

    Args:
        rows: Any dataset.
        what: `"image"` or `"caption"`.
        given: The user's own choice.

    Raises:
        ValueError: If no column of images is found, or more than one could be it.

    Example:
        >>> find_column(datasets.Dataset.from_dict({"jpg": ["a.jpg"], "txt": ["a cup"]}), "caption")
        'txt'
    """
    return _found(rows.features or {}, what) if given is None else given


def column_of(features: Mapping[str, Any], what: str, name: str, strict: bool = True) -> str:
    """Return the column called `name`; where there is none and that is our own name for it, the one that is found.

    Labels are looked for under `LABEL_NAMES`, or as the only column of 🤗 Datasets' type `ClassLabel`. Where nothing
    is found the name comes back, for `pick_columns` to refuse.

    Args:
        features: Column -> its type.
        what: `"image"`, `"caption"` or `"label"`.
        name: What the user calls it, `what` by default.
        strict: Take another name than our own at its word.

    Raises:
        ValueError: If it is looked for, and no column of images is found or more than one could be it.

    Example:
        >>> column_of({"jpg": datasets.Image(), "cls": datasets.Value("int64")}, "label", "label")
        'cls'
    """
    if name in features or (strict and name != what):
        return name
    if what != LABEL:
        return _found(features, what) or name
    typed = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    found = next(iter([column for column in LABEL_NAMES if column in features] or typed * (len(typed) == 1)), name)
    if found != name:
        logger.info("column `%s` is taken as the %s", found, what)
    return found


def _found(features: Mapping[str, Any], what: str) -> str | None:
    """Return the column of images or captions of a dataset with these columns; see `find_column`."""
    typed = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    named = [name for name in (IMAGE_NAMES if what == IMAGE else CAPTION_NAMES) if name in features]
    if what == IMAGE and typed:
        named = [name for name in named if name in typed] or typed
        if named[0] not in IMAGE_NAMES and len(typed) > 1:
            raise ValueError(f"Expected one column of images, but there are {typed}. Set `image_column`.")
    if not named:
        if what == CAPTION:
            return None
        _check_rows(features)
        raise ValueError(
            f"Expected a column of images, but found none among {list(features)}. {separator_hint(list(features))}"
            f"Set `image_column`."
        )
    if named[0] != what:
        logger.info("column `%s` is taken as the %s", named[0], what)
    return named[0]


def features_of(rows: Rows) -> datasets.Features:
    """Return the columns of rows; of a stream that does not know its own those of its first ones."""
    return rows.features if rows.features is not None else rows._resolve_features().features


def pick_columns(rows: Rows, **columns: str) -> Any:
    """Return only the named columns, under the names `image`, `caption`, `label`; images are decoded as images.

    Args:
        rows: Any dataset, streaming or not.
        **columns: Our name -> the dataset's name, for instance `caption="text"`.

    Raises:
        ValueError: If a column is not there (the message names the nearest one), or captions are no texts.

    Example:
        >>> rows = datasets.Dataset.from_dict({"text": ["a cup"], "url": ["-"]})
        >>> pick_columns(rows, caption="text").column_names
        ['caption']
    """
    names = list(rows.features or rows.column_names or [])
    for ours, theirs in columns.items():
        if theirs not in names:
            _check_rows(names)
            near = difflib.get_close_matches(theirs, names, n=1)
            hint = separator_hint(names) or (f"Did you mean `{near[0]}`? " if near else "")
            raise ValueError(
                f"Expected a column `{theirs}` ({ours}), but the dataset has {names}. {hint}Set `{ours}_column`."
            )
    rows = rows.select_columns(list(columns.values()))
    feature = rows.features[columns[IMAGE]] if IMAGE in columns else None
    streamed = isinstance(rows, datasets.IterableDataset) and isinstance(feature, datasets.Image) and feature.decode
    if streamed:  # to rename a column, a stream decodes its images and compresses them once more
        rows = rows.cast_column(columns[IMAGE], datasets.Image(mode=feature.mode, decode=False))
    rows = rows.rename_columns({theirs: ours for ours, theirs in columns.items() if ours != theirs})
    if streamed:
        rows = rows.cast_column(IMAGE, feature)
    elif feature is not None and not isinstance(feature, datasets.Image):
        rows = rows.cast_column(IMAGE, datasets.Image())
    if CAPTION in columns:
        rows = _texts(rows)
    return rows


def separator_hint(names: list[str]) -> str:
    """Return what to do where all names are in one, for instance of a CSV of `image;caption`; else "".

    Example:
        >>> separator_hint(["image;caption"])[:46]
        "This one column is a line that ';' separates: "
    """
    found = [sign for sign in (";", "|", "\t", ",") if len(names) == 1 and sign in names[0]]
    if not found:
        return ""
    return (
        f"This one column is a line that {found[0]!r} separates: put commas between the cells of a `.csv` and tabs "
        f"between those of a `.tsv`. "
    )


def _check_rows(names: Collection[str]) -> None:
    """Raise `ValueError` where the columns are those of a manifest, which 🤗 Datasets reads as rows."""
    if {field.name for field in fields(PoisonManifest)} <= set(names):
        raise ValueError(
            f"Expected a dataset, but the folder holds a `{MANIFEST_FILE}` alone: which rows were poisoned, not the "
            f"rows. Name a folder that `hf-clipbd poison` wrote, or put the rows beside the manifest, into a folder "
            f"`dataset`: `poisoned.save_to_disk('FOLDER/dataset')`."
        )


def _texts(rows: Rows) -> Rows:
    """Return the rows with captions as texts: numbers are spelled, lists of several captions an image are refused."""
    feature = rows.features[CAPTION]
    if isinstance(feature, datasets.Value):
        return rows if feature.dtype in ("string", "large_string") else rows.cast_column(CAPTION, _TEXT)
    raise ValueError(
        f"Expected one caption an image, but the column holds {feature}. Keep one of them first, for instance with "
        f"`dataset.map(lambda row: {{'caption': row['captions'][0]}})`."
    )


_TEXT = datasets.Value("string")
