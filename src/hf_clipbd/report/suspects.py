# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The page of the most suspicious pairs: pictures and captions in groups, the threshold, and repeated pictures."""

import base64
import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from hf_clipbd.detection.groups import Group
from hf_clipbd.detection.threshold import Cut
from hf_clipbd.templates import environment, method, public


SIDE = 160
"""Longer side of a picture on the page, in pixels."""
IN_A_GROUP, NEARBY, COPIED, UNREADABLE = 12, 6, 24, 100
"""Shown of a group, of what lies near it, of pictures that occur several times, and of rows that cannot be read."""


@dataclass(frozen=True)
class Suspects:
    """What the page shows.

    Args:
        dataset: What was searched, for the heading.
        model: In which model's embeddings.
        detector: Name of the detector that ranks.
        scores: (N,), higher is more suspicious; one for all rows of a picture, NaN for rows that cannot be read.
        cut: The threshold, read from distinct pictures.
        groups: Suspicious rows, the most surprising group first; on the page those of which every row is below the
            threshold come after the others. A group may be the copies of one picture.
        copies: Rows whose picture occurs several times, one list a picture, the most frequent first.
        is_poisoned: (N,), where the truth is known.
        unreadable: Row number -> what is wrong with it.
        captioned: Whether the rows have captions.
    """

    dataset: str
    model: str
    detector: str
    scores: np.ndarray
    cut: Cut
    groups: Sequence[Group]
    copies: Sequence[Sequence[int]] = ()
    is_poisoned: np.ndarray | None = None
    unreadable: Mapping[int, str] = field(default_factory=dict)
    captioned: bool = True

    @property
    def n_removed(self) -> int:
        """Rows at or above the threshold, copies of pictures included."""
        return int((self.scores >= self.cut.threshold).sum())

    @property
    def ranks(self) -> np.ndarray:
        """Rank of each row, 1 the most suspicious; a copy has the rank of its picture and takes no place."""
        counted = np.ones(len(self.scores), dtype=np.int64)
        for rows in self.copies:
            counted[list(rows[1:])] = 0
        order = np.argsort(-self.scores, kind="stable")  # NaN comes last
        ranks = np.empty(len(self.scores), dtype=np.int64)
        ranks[order] = counted[order].cumsum()
        for rows in self.copies:
            ranks[list(rows)] = ranks[rows[0]]
        return ranks


def write_suspects(path: Path, suspects: Suspects, pair: Callable[[int], tuple[PIL.Image.Image, str]]) -> Path:
    """Write the page and return its path; it stands alone, the pictures are in it.

    Args:
        path: HTML file.
        suspects: What it shows.
        pair: From a row number to its picture and caption, "" where it has none; asked for the rows shown alone.
    """
    ranks = suspects.ranks
    spare = {row for rows in suspects.copies for row in rows[1:]}

    def plates(rows: Sequence[int]) -> list[dict[str, Any]]:
        return [_plate(row, *pair(row), suspects, int(ranks[row])) for row in rows]

    groups = [
        {
            "rows": plates(group.rows[:IN_A_GROUP]),
            "n": len(group.rows),
            "more": max(0, len(group.rows) - IN_A_GROUP),
            "best": int(ranks[list(group.rows)].min()),
            "worst": int(ranks[list(group.rows)].max()),
            "removed": int((suspects.scores[list(group.rows)] >= suspects.cut.threshold).sum()),
            "nearby": plates(group.nearby[:NEARBY]),
            "n_nearby": len(group.nearby),
            "copied": not spare.isdisjoint(group.rows),
            "caption": group.caption,
            "repeats": group.repeats,
        }
        for group in suspects.groups
        if len(group.rows) > 1
    ]
    groups.sort(key=lambda group: group["removed"] == 0)  # stable: the rest of the order stays
    alone = [group.rows[0] for group in suspects.groups if len(group.rows) == 1]
    singles = plates(sorted(alone, key=lambda row: ranks[row]))
    copies = [{"n": len(rows), **plates(rows[:1])[0]} for rows in suspects.copies[:COPIED]]
    context = {
        "dataset": public(suspects.dataset),
        "model": public(suspects.model),
        "detector": method(suspects.detector),
        "cut": suspects.cut,
        "n_rows": len(suspects.scores),
        "n_rows_removed": suspects.n_removed,
        "groups": groups,
        "n_above": sum(group["removed"] > 0 for group in groups),
        "singles": singles,
        "copies": copies,
        "n_copied": len(suspects.copies),
        "n_spare": len(spare),
        "unreadable": list(itertools.islice(suspects.unreadable.items(), UNREADABLE)),
        "n_unreadable": len(suspects.unreadable),
        "captioned": suspects.captioned,
        "known": suspects.is_poisoned is not None,
    }
    path.write_text(environment().get_template("suspects.html").render(context), encoding="utf-8")
    return path


def _plate(row: int, image: PIL.Image.Image, caption: str, suspects: Suspects, rank: int) -> dict[str, Any]:
    score = float(suspects.scores[row])
    return {
        "row": row,
        "rank": rank,
        "score": f"{score:.3g}",
        "picture": _picture(image),
        "caption": caption,
        "removed": score >= suspects.cut.threshold,
        "poisoned": suspects.is_poisoned is not None and bool(suspects.is_poisoned[row]),
    }


def _picture(image: PIL.Image.Image) -> str:
    """Return a picture as a `data:` address, small ones enlarged without smoothing so that pixels can be seen."""
    image = image.convert("RGB")
    scale = SIDE / max(image.size)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    image = image.resize(size, PIL.Image.Resampling.NEAREST if scale > 1 else PIL.Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode("ascii")
