# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What the detectors of one search have in common: a reference drawn once, and neighbours found once."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from hf_clipbd.detection.kept import Kept
from hf_clipbd.detection.reference import Reference


ROOM = 256
"""Megabytes of neighbours that are kept: those of 500,000 rows with 64 each."""


class Once:
    """A detector that scores one set, and does so once for each reference.

    What was scored is told apart by the reference alone, so it is for one search: the same features and options in
    every call.

    Args:
        detector: `detector(features, reference, ...) -> scores (N,)`.
    """

    def __init__(self, detector: Callable[..., np.ndarray]):
        self._detector = detector
        self._found: dict[Reference, np.ndarray] = {}

    def __call__(self, features: Any, reference: Reference, *more: Any, **options: Any) -> np.ndarray:
        """Return the scores against this reference, those that were found before where it is known."""
        if reference not in self._found:
            self._found[reference] = self._detector(features, reference, *more, **options)
        return self._found[reference]


class Shared:
    """References for the detectors of one search, which share what was found in them.

    Whoever asks for the same random rows gets the same reference, and with it its points' neighbours and those of the
    rows that were looked for before with as many neighbours or more, so the detector with the largest k best goes
    first. No score depends on it. What is kept goes when the object goes.

    Args:
        room: Megabytes of neighbours that are kept; rows beyond are searched again each time.

    Example:
        >>> import numpy as np
        >>> features, shared = np.random.default_rng(0).normal(size=(50, 4)), Shared()
        >>> shared.reference(features, 20) is shared.reference(features.copy(), 20)
        True
    """

    def __init__(self, room: float = ROOM):
        self._kept = Kept(room)
        self._references: dict[tuple, Reference] = {}
        self._given: dict[int, tuple[Reference, Reference]] = {}

    def reference(
        self, features: Any, m: int | None = None, seed: int = 0, normalize: bool = True, **options: Any
    ) -> Reference:
        """Return `Reference.sample` of these features, the one that was returned before where it is the same.

        Args:
            features: (N, D), the searched set.
            m: How many rows; min(16384, N) by default.
            seed: Seed of the choice.
            normalize: Scale rows to unit length.
            **options: `precision`, `device`, `distributed` and `backend` as in `Reference.of`.

        Raises:
            ValueError: As in `Reference.sample`.
        """
        drawn = Reference.sample(features, m, seed, normalize, **options)
        kind = normalize, drawn.precision, drawn.points.device, drawn.distributed, drawn.backend
        key = *kind, drawn.rows.tobytes(), tuple(drawn.position_of)
        return self._references.setdefault(key, dataclasses.replace(drawn, _kept=self._kept))

    def of(self, reference: Reference) -> Reference:
        """Return a reference of one's own as one that shares what is found in it; the same one each time.

        Example:
            >>> import numpy as np
            >>> clean, shared = Reference.of(np.eye(5)), Shared()
            >>> shared.of(clean) is shared.of(clean)
            True
        """
        kept = self._given.setdefault(id(reference), (reference, dataclasses.replace(reference, _kept=self._kept)))
        return kept[1]
