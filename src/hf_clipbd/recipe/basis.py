# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What a search rests on: its rows, those they are compared with, and what is refused before a model is loaded."""

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import datasets
import numpy as np

from hf_clipbd.detection import ALIGNED, OF_REFERENCE, thinned_rows
from hf_clipbd.detection.detect import WITHOUT_REFERENCE
from hf_clipbd.detection.reference import DEFAULT_M
from hf_clipbd.detection.revisions import revisions
from hf_clipbd.recipe.distilling import DISTILLATION
from hf_clipbd.recipe.options import DetectConfig
from hf_clipbd.recipe.own_data import Data
from hf_clipbd.schema import IS_POISONED


WITHOUT_NEIGHBOURS = ("isolation_forest", "spectral_signature", "activation_clustering", *WITHOUT_REFERENCE)
"""Detectors that take k and do not use it."""
NEED_CAPTIONS = ("conditional_sparsity", "combined", "clip_score")
"""Detectors that cannot do without captions."""
LATER = ("caption_share",)
"""Options that came after the first records."""
FEWEST_ROWS = 3
"""Rows below which none can be told from the others."""


@dataclass(frozen=True)
class Basis:
    """What a search rests on.

    Args:
        on_error: `"raise"` at a row whose picture or caption is missing or broken, or `"skip"` it: it gets no score.
        raw: Embeddings as the model gives them; else they are scaled to length one.
        clean: Clean rows that the searched ones are compared with; random ones of the searched set by default.

    Raises:
        ValueError: If `on_error` is another word.
    """

    on_error: str = "raise"
    raw: bool = False
    clean: Data | None = None

    def __post_init__(self) -> None:
        if self.on_error not in ("raise", "skip"):
            raise ValueError(f'Expected on_error "raise" or "skip", but got {self.on_error!r}.')

    def settings(self) -> dict[str, Any]:
        """Return what stands in the record."""
        clean = None if self.clean is None else self.clean.source
        return {"on_error": self.on_error, "raw": self.raw, "clean_reference": clean}


def search_settings(options: DetectConfig) -> dict[str, Any]:
    """Return what of the detectors stands in the record: options that came later only where they are given."""
    given = {name: value for name, value in asdict(options).items() if name not in LATER or value is not None}
    return given | revisions(options.detectors)


def check_search(options: DetectConfig, basis: Basis, second: str | None) -> None:
    """Raise `ValueError` where detectors are asked for that what they rest on does not go with."""
    if basis.clean is not None and set(options.detectors) <= set(WITHOUT_REFERENCE):
        raise ValueError(f"Expected no clean reference, for {options.detectors} compares rows with no others.")
    compared = [name for name in options.detectors if "others" in ALIGNED.get(name, ())]
    if compared and second is None:
        raise ValueError(
            f"Expected another encoder to compare with, which `{compared[0]}` needs. Pass `--second`; "
            "`--second mirrored` takes the suspected model itself, on mirrored pictures."
        )
    if DISTILLATION in options.detectors and basis.raw:
        raise ValueError(f"Expected embeddings of length one for `{DISTILLATION}`. Leave `--raw` out.")
    wrong = [rate for rate in options.rates if not 0 < rate < 1]
    if wrong:
        raise ValueError(f"Expected poison rates in (0, 1), but got {wrong[0]:g}. One percent is 0.01.")


def check_sizes(options: DetectConfig, rows: int, drawn_from: int | None) -> None:
    """Raise `ValueError` where a search has too few rows for what it is asked; copies of pictures count as rows here.

    `drawn_from` is how many rows the reference is drawn from; None where nobody knows yet.
    """
    if rows < FEWEST_ROWS:
        raise ValueError(f"Expected at least {FEWEST_ROWS} rows to search, but got {rows}. Take more of them.")
    if drawn_from is None or set(options.detectors) <= set(WITHOUT_REFERENCE):
        return
    if drawn_from < FEWEST_ROWS:
        raise ValueError(f"Expected at least {FEWEST_ROWS} clean rows, but got {drawn_from}. Take more of them.")
    m = min(DEFAULT_M, drawn_from) if options.reference is None else options.reference
    if not FEWEST_ROWS <= m <= drawn_from:
        raise ValueError(
            f"Expected `reference` in [{FEWEST_ROWS}, {drawn_from}], the number of rows it is drawn from, but got {m}."
        )
    if options.k is None or set(options.detectors) <= set(WITHOUT_NEIGHBOURS):
        return
    if not 1 <= options.k < m:
        raise ValueError(f"Expected `k` in [1, {m - 1}] for {m} reference rows, but got {options.k}.")


def searched_rows(data: Data, options: DetectConfig, basis: Basis) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """Return the rows that are searched and, where there are any, the clean ones that they are compared with.

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
