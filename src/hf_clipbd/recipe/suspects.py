# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What a search is for: the page of suspects, the threshold, and the dataset without them; no labels are needed."""

import itertools
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from hf_clipbd.data.path_rows import unfit_files
from hf_clipbd.detection.groups import suspicious_groups
from hf_clipbd.detection.rows import copies_of
from hf_clipbd.detection.threshold import cut_share
from hf_clipbd.recipe.copies import copied_groups, group_of, highest_of_copies, in_order
from hf_clipbd.recipe.place import scoring_place
from hf_clipbd.report.suspects import Suspects, write_suspects
from hf_clipbd.schema import CAPTION, IMAGE, IS_POISONED


logger = logging.getLogger(__name__)

PAGE_FILE = "suspects.html"
FILTERED_DATASET = "filtered"
SUSPICION = "suspicion"
LISTED = 1000
"""Unreadable rows that a record lists; `scores.parquet` has all of them."""


@dataclass(frozen=True)
class Review:
    """How the findings are cut and shown.

    Args:
        remove: Share of the distinct pictures that is left out of the filtered dataset, with their copies, in (0, 1).
        shown: Groups and single rows on the page.

    Raises:
        ValueError: If a number is out of range.
    """

    remove: float = 0.01
    shown: int = 80
    filtered: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.remove < 1:
            raise ValueError(f"Expected a share of rows to remove in (0, 1), but got {self.remove:g}.")
        if self.shown < 0:
            raise ValueError(f"Expected `shown`, rows on the page, of at least 0, but got {self.shown}.")


def write_review(
    names: tuple[str, str],
    pairs: datasets.Dataset,
    whole: datasets.Dataset,
    embeddings: dict[str, np.ndarray],
    scores: dict[str, np.ndarray],
    review: Review,
    seed: int,
    folder: Path,
    unreadable: Mapping[int, str] | None = None,
    normalize: bool = True,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Write the page and the filtered dataset of a search and return figures and outputs for its record.

    A picture goes by the highest score that any of its rows has: detectors that look at captions give copies of it
    different ones, and either all of them are removed or none.

    Args:
        names: What was searched and in which model, for the heading.
        pairs: Rows (image, caption), with `is_poisoned` where it is known; the caption is "" where there is none.
        whole: The same rows with all their columns.
        embeddings: `image`, `text` (n, D), where there are captions, and `picture` (n,) of the rows that can be read.
        scores: Score of every row by each detector, (N,), NaN where it cannot be read; the first one ranks and cuts.
        normalize: Scale embeddings to unit length, as the scores were computed.
    """
    detector, ranking = next(iter(scores.items()))
    numbers = np.flatnonzero(np.isfinite(ranking))  # (n,) rows that can be read
    first, copies = copies_of(embeddings["picture"])
    said = pairs.with_format(None)[CAPTION][:]
    captions = [said[row] for row in numbers] if "text" in embeddings else None
    settled = highest_of_copies(ranking[numbers], first)
    cut = cut_share(settled[first == np.arange(len(first))], review.remove)  # each picture once
    place = {"normalize": normalize, "device": scoring_place()["device"]}  # not shared: the main process is alone here
    sizes = {"share": max(0.01, review.remove), "seed": seed, "most": review.shown}
    groups = suspicious_groups(embeddings["image"], settled, first, captions, **sizes, **place)
    groups += [] if captions is None else copied_groups(copies, settled, first, embeddings["text"], captions, seed)
    groups = [group_of(numbers, one) for one in in_order(groups)]
    copies = [numbers[rows].tolist() for rows in copies]
    scored = np.full(len(ranking), np.nan)
    scored[numbers] = settled
    known = np.asarray(pairs.with_format(None)[IS_POISONED][:]) if IS_POISONED in pairs.column_names else None
    captioned = captions is not None
    suspects = Suspects(*names, detector, scored, cut, groups, copies, known, unreadable or {}, captioned)
    write_suspects(folder / PAGE_FILE, suspects, lambda row: (pairs[row][IMAGE], said[row]))
    outputs = {"page": PAGE_FILE}
    if review.filtered:
        kept = np.flatnonzero(scored < cut.threshold)
        _pictures_alone(_scored(whole, ranking).select(kept)).save_to_disk(str(folder / FILTERED_DATASET))
        outputs["filtered"] = FILTERED_DATASET
    metrics = {
        "ranked_by": detector,
        "cut": {**asdict(cut), "excess": cut.excess},
        "n_removed": suspects.n_removed,
        "groups": [
            {"rows": list(one.rows), "n_nearby": len(one.nearby), "caption": one.caption, "repeats": one.repeats}
            for one in groups[:20]
        ],
        "n_pictures_repeated": len(copies),
        "n_copies": sum(len(rows) - 1 for rows in copies),
        "copies": [{"n": len(rows), "rows": rows[:10]} for rows in copies[:20]],
    }
    return metrics | _listed(unreadable or {}), outputs


def _pictures_alone(rows: datasets.Dataset) -> datasets.Dataset:
    """Return the rows without columns that name files other than pictures, which saving them would take in."""
    strange = {column: (row, problem) for row, column, problem in unfit_files(rows)}
    for column, (row, problem) in strange.items():
        logger.warning("column %r is left out of the filtered dataset; row %d: %s", column, row, problem)
    return rows.remove_columns(list(strange))


def _listed(unreadable: Mapping[int, str]) -> dict[str, Any]:
    first = itertools.islice(unreadable.items(), LISTED)
    listed = [{"row": row, "problem": why} for row, why in first]
    return {"n_unreadable": len(unreadable), "unreadable": listed} if unreadable else {}


def _scored(whole: datasets.Dataset, scores: np.ndarray) -> datasets.Dataset:
    """Return the rows with their score as a column; one of that name, left from an earlier search, is replaced."""
    rows = whole.remove_columns(SUSPICION) if SUSPICION in whole.column_names else whole
    return rows.add_column(SUSPICION, scores)
