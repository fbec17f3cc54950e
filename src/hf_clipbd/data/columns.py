# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Which columns of a stranger's dataset are images and captions, and the two of them under our names."""

import difflib
import logging
from typing import Any

import datasets

from hf_clipbd.schema import CAPTION, IMAGE


logger = logging.getLogger(__name__)

IMAGE_NAMES = (
    "image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp", "image_path", "file_path", "filepath", "file",
    "path",
)  # fmt: skip
CAPTION_NAMES = (
    "caption", "text", "txt", "sentence", "title", "description", "alt_text", "prompt", "captions", "sentences",
)  # fmt: skip
"""What columns of images and captions are called out there, in the order in which they are looked for."""

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
    if given is not None:
        return given
    features = rows.features or {}
    typed = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    named = [name for name in (IMAGE_NAMES if what == IMAGE else CAPTION_NAMES) if name in features]
    if what == IMAGE and typed:
        named = [name for name in named if name in typed] or typed
        if named[0] not in IMAGE_NAMES and len(typed) > 1:
            raise ValueError(f"Expected one column of images, but there are {typed}. Set `image_column`.")
    if not named:
        if what == CAPTION:
            return None
        raise ValueError(
            f"Expected a column of images, but found none among {list(features)}. {separator_hint(list(features))}"
            f"Set `image_column`."
        )
    if named[0] != what:
        logger.info("column `%s` is taken as the %s", named[0], what)
    return named[0]


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
