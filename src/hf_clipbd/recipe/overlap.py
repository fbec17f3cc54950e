# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Pictures that a probe is fitted to and measured on: then its accuracy says nothing of pictures that it never saw."""

import hashlib
import logging

import datasets
from tqdm.auto import tqdm

from hf_clipbd.data.undecoded import stored_bytes
from hf_clipbd.detection.rows import silent
from hf_clipbd.recipe.place import process_state


logger = logging.getLogger(__name__)


def check_apart(shown: datasets.Dataset, fitted: datasets.Dataset, image_column: str) -> None:
    """Raise `ValueError` where the test images lie among the training images, or these among those; warn of some.

    Pictures are the same if their bytes are; each is read once, and none is decoded.

    Args:
        shown: The test images.
        fitted: The training images.
        image_column: Column of images in both.
    """
    tested, trained = _pictures(shown, image_column), _pictures(fitted, image_column)
    both = len(tested & trained)
    counts = f"{both} of {len(tested)} distinct test images are among the {len(trained)} training images"
    if both and both in (len(tested), len(trained)):
        raise ValueError(
            f"Expected other pictures to test a probe on than those that it is fitted to, but {counts}. Name another "
            "split or dataset (`--train`, `--train_split`; `--data`, `--split`)."
        )
    if both and process_state().is_main_process:
        logger.warning("%s: the probe's accuracy is too high by what it knows of these", counts)


def _pictures(rows: datasets.Dataset, image_column: str) -> set[bytes]:
    """Return a hash of each picture's bytes."""
    encoded = rows.select_columns([image_column]).cast_column(image_column, datasets.Image(decode=False))
    shown = tqdm(encoded, "pictures of test and training", disable=silent(len(encoded)), leave=False)
    return {hashlib.sha256(stored_bytes(row[image_column])).digest() for row in shown}
