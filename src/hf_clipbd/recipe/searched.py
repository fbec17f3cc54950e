# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The rows of a search and those they are compared with, and what is refused of them before a model is loaded."""

import contextlib
from collections.abc import Iterator

import datasets
import numpy as np

from hf_clipbd.detection import OF_REFERENCE, thinned_rows
from hf_clipbd.recipe.basis import Basis
from hf_clipbd.recipe.options import DetectConfig
from hf_clipbd.recipe.own_data import Data
from hf_clipbd.schema import IS_POISONED


NEED_CAPTIONS = ("conditional_sparsity", "combined", "clip_score")
"""Detectors that cannot do without captions."""


def searched_rows(data: Data, options: DetectConfig, basis: Basis) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """Return the rows that are searched and, where there are any, the clean ones that they are compared with.

    Args:
        data: Where the rows come from.
        options: The detectors, and the rates at which they are to be measured.
        basis: What the search rests on.

    Raises:
        ValueError: If a detector compares captions and there are none, the truth is asked for and unknown, a rate
            cannot be had, or the clean reference cannot be read as pairs.
    """
    with naming_reference(basis):
        clean = None if basis.clean is None else basis.clean.searched()
    rows = data.searched()
    _check_captions(data, options, basis)
    _check_truth(rows, data, options)
    return rows, clean


@contextlib.contextmanager
def naming_reference(basis: Basis) -> Iterator[None]:
    """Let errors of the block about what is in the clean reference name it; others would be read as the set's own."""
    try:
        yield
    except ValueError as error:
        if basis.clean is None:
            raise
        raise ValueError(f"In the clean reference `{basis.clean.source}`: {error}") from error


def _check_captions(data: Data, options: DetectConfig, basis: Basis) -> None:
    """Raise `ValueError` where a detector compares captions that the searched or the clean rows do not have."""
    needed = [name for name in options.detectors if name in NEED_CAPTIONS]
    if needed and not data.captioned:
        raise ValueError(
            f"Expected captions, which `{needed[0]}` compares, but `{data.source}` has none among "
            f"{data.whole().column_names}. Name their column (`--caption_column`), or search the pictures alone "
            "(`--detectors multi_scale`)."
        )
    compared = [name for name in options.detectors if "reference_texts" in OF_REFERENCE.get(name, ())]
    if compared and data.captioned and basis.clean is not None and not basis.clean.captioned:
        raise ValueError(
            f"Expected captions in the clean reference as well, with which `{compared[0]}` compares those of "
            f"`{data.source}`, but `{basis.clean.source}` has none among {basis.clean.whole().column_names}. Take "
            "another reference, or a detector of pictures alone (`--detectors multi_scale`)."
        )


def _check_truth(rows: datasets.Dataset, data: Data, options: DetectConfig) -> None:
    """Raise `ValueError` where `is_poisoned` is no truth, or rates are asked for that it does not give."""
    if IS_POISONED not in rows.column_names:
        if options.rates:
            raise ValueError(
                f"Expected a column `{IS_POISONED}`, from which figures at lower poison rates are computed, but "
                f"`{data.source}` has none. Leave `--rates` out."
            )
        return
    truth = rows.with_format(None)[IS_POISONED][:]
    wrong = next((row for row, one in enumerate(truth) if one not in (0, 1)), None)  # True == 1
    if wrong is not None:
        raise ValueError(
            f"Expected true or false (or 1 or 0) in column `{IS_POISONED}` of `{data.source}`, but row {wrong} has "
            f"{truth[wrong]!r}. Mend it, or rename the column if it says something else."
        )
    poisoned = np.asarray(truth, dtype=bool)
    if options.rates and poisoned.all() == poisoned.any():
        raise ValueError(
            f"Expected clean and poisoned rows for figures at lower poison rates, but {int(poisoned.sum())} of "
            f"{len(poisoned)} are poisoned. Leave `--rates` out."
        )
    for rate in options.rates:
        thinned_rows(poisoned, rate, data.seed)
