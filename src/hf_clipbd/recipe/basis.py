# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What a search rests on, and what is refused before any row is embedded for it."""

from dataclasses import asdict, dataclass
from typing import Any

from hf_clipbd.detection import ALIGNED
from hf_clipbd.detection.detect import WITHOUT_REFERENCE
from hf_clipbd.detection.reference import DEFAULT_M
from hf_clipbd.detection.revisions import revisions
from hf_clipbd.recipe.distilling import DISTILLATION
from hf_clipbd.recipe.options import DetectConfig
from hf_clipbd.recipe.own_data import Data


WITHOUT_NEIGHBOURS = ("isolation_forest", "spectral_signature", "activation_clustering", *WITHOUT_REFERENCE)
"""Detectors that take k and do not use it."""
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
    """Raise `ValueError` where detectors are asked for that what they rest on does not go with.

    Args:
        options: The detectors.
        basis: What the search rests on.
        second: Another encoder, if there is one.
    """
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

    Args:
        options: The detectors, their k and the size of the reference.
        rows: Rows that are searched.
        drawn_from: Rows that the reference is drawn from; None where nobody knows yet.
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
