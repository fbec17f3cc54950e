# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What a search is for: the page of suspects, the threshold, and the dataset without them; no labels are needed."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from hf_clipbd.detection.groups import suspicious_groups
from hf_clipbd.detection.rows import copies_of
from hf_clipbd.detection.threshold import cut_share
from hf_clipbd.report.suspects import Suspects, write_suspects
from hf_clipbd.schema import CAPTION, IMAGE, IS_POISONED


PAGE_FILE = "suspects.html"
FILTERED_DATASET = "filtered"
SUSPICION = "suspicion"


@dataclass(frozen=True)
class Review:
    """How the findings are cut and shown.

    Args:
        remove: Share of the distinct pictures that is left out of the filtered dataset, with their copies, in (0, 1).
        shown: Groups and single rows on the page.
        filtered: Write the filtered dataset.
    """

    remove: float = 0.01
    shown: int = 80
    filtered: bool = True


def write_review(
    names: tuple[str, str],
    pairs: datasets.Dataset,
    whole: datasets.Dataset,
    embeddings: dict[str, np.ndarray],
    scores: dict[str, np.ndarray],
    review: Review,
    seed: int,
    folder: Path,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Write the page and the filtered dataset of a search and return figures and outputs for its record.

    Args:
        names: What was searched and in which model, for the heading.
        pairs: Rows (image, caption), with `is_poisoned` where it is known.
        whole: The same rows with all their columns.
        embeddings: `image` (N, D) and `picture` (N,).
        scores: Score of every row by each detector; the first one ranks and cuts.
        review: How.
        seed: Seed of the groups' reference.
        folder: Where to write.
    """
    detector, ranking = next(iter(scores.items()))
    first, copies = copies_of(embeddings["picture"])
    captions = pairs.with_format(None)[CAPTION][:]
    cut = cut_share(ranking[first == np.arange(len(first))], review.remove)  # each picture once
    groups = suspicious_groups(
        embeddings["image"], ranking, first, captions, max(0.01, review.remove), seed, review.shown
    )
    known = np.asarray(pairs.with_format(None)[IS_POISONED][:]) if IS_POISONED in pairs.column_names else None
    suspects = Suspects(*names, detector, ranking, cut, groups, copies, known)
    write_suspects(folder / PAGE_FILE, suspects, lambda row: (pairs[row][IMAGE], captions[row]))
    outputs = {"page": PAGE_FILE}
    if review.filtered:
        kept = np.flatnonzero(ranking < cut.threshold)
        _scored(whole, ranking).select(kept).save_to_disk(str(folder / FILTERED_DATASET))
        outputs["filtered"] = FILTERED_DATASET
    metrics = {
        "ranked_by": detector,
        "cut": {**asdict(cut), "excess": cut.excess},
        "n_removed": int((ranking >= cut.threshold).sum()),
        "groups": [_told(group.rows, group.nearby, group.caption, group.repeats) for group in groups[:20]],
        "n_pictures_repeated": len(copies),
        "n_copies": sum(len(rows) - 1 for rows in copies),
        "copies": [{"n": len(rows), "rows": rows[:10]} for rows in copies[:20]],
    }
    return metrics, outputs


def _told(rows: Sequence[int], nearby: Sequence[int], caption: str | None, repeats: int) -> dict[str, Any]:
    return {"rows": list(rows), "n_nearby": len(nearby), "caption": caption, "repeats": repeats}


def _scored(whole: datasets.Dataset, scores: np.ndarray) -> datasets.Dataset:
    """Return the rows with their score as a column; one of that name, left from an earlier search, is replaced."""
    rows = whole.remove_columns(SUSPICION) if SUSPICION in whole.column_names else whole
    return rows.add_column(SUSPICION, scores)
