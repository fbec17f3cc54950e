# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What a search compares rows with: one random reference, several whose scores are combined, or one of the user's."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from hf_clipbd.detection.nearest import Precision
from hf_clipbd.detection.reference import Reference
from hf_clipbd.detection.shared import Shared


@dataclass(frozen=True)
class References:
    """The references of one search, as `detect` is told them.

    Args:
        reference: What rows are compared with, ready: `Reference.of(clean)` of a clean set's embeddings in the
            suspected model, `Reference.of(features)` for the whole set. How it was built decides what the other
            arguments would say; beside it they are errors, but for the seed and `normalize`, which have no use then.
        count: How many random ones; reference i is drawn by `seed + i`, and each costs a search.
        combine: Of several: the `"mean"` of a row's scores, which no unlucky draw decides, or their `"maximum"`, for
            rows that one draw alone shows. Scores against references of one size are in the same units.
        m: Rows of a random one.
        seed: Seed of the first.
        normalize: Scale rows to unit length.
        device: Where to compute, the processor by default.
        precision: As in `Reference.of`.
        distributed: As there.

    Raises:
        TypeError: If the reference is none.
        ValueError: If there are none, `combine` is unknown, or a reference is given beside what builds one.
    """

    reference: Reference | None = None
    count: int = 1
    combine: Literal["mean", "maximum"] = "mean"
    m: int | None = None
    seed: int = 0
    normalize: bool = True
    device: str | torch.device | None = None
    precision: Precision | None = None
    distributed: bool = False

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"Expected at least one reference, but got references={self.count}.")
        if self.combine not in ("mean", "maximum"):
            raise ValueError(f'Expected combine "mean" or "maximum", but got {self.combine!r}.')
        if self.reference is not None and not isinstance(self.reference, Reference):
            raise TypeError(
                f"Expected a `Reference`, but got {type(self.reference).__name__}. Make one of embeddings: "
                "`Reference.of(embeddings)`."
            )
        building = self._told("references", "m", "device", "precision", "distributed")
        if self.reference is not None and building:
            raise ValueError(
                f"Expected a `reference` without {building}, which its making decides. Give them to `Reference.of`."
            )

    def _told(self, *names: str) -> list[str]:
        """Return which of some arguments are not at their defaults."""
        told = {
            "reference": self.reference is not None,
            "references": self.count != 1,
            "m": self.m is not None,
            "device": self.device is not None,
            "precision": self.precision is not None,
            "distributed": self.distributed,
        }
        return [name for name in names if told[name]]

    def check_unused(self, by: str, *names: str) -> None:
        """Raise `ValueError` if an argument was given that has no effect there.

        Args:
            by: What makes no use of them, for the message.
            *names: Which.
        """
        told = self._told(*names)
        if told:
            raise ValueError(f"Expected {by} without {told}, of which it makes no use.")

    def scores(
        self, score: Callable[[Reference], np.ndarray], features: Any, m: int | None, shared: Shared | None
    ) -> np.ndarray:
        """Return what `score(reference)` gives for each of the references, combined, (N,).

        Args:
            score: From a `Reference` to scores (N,).
            features: (N, D), what random ones are drawn from.
            m: Rows of a random one where the search was not told.
            shared: What the detectors of one search have in common.
        """
        found = (score(one) for one in self._of(features, self.m if self.m is not None else m, shared))
        total = next(found)
        for one in found:
            total = np.maximum(total, one) if self.combine == "maximum" else total + one
        return total if self.combine == "maximum" else total / self.count

    def _of(self, features: Any, m: int | None, shared: Shared | None) -> Iterator[Reference]:
        if self.reference is not None:
            yield self.reference if shared is None else shared.of(self.reference)
            return
        draw = Reference.sample if shared is None else shared.reference
        options = {"device": self.device or "cpu", "precision": self.precision, "distributed": self.distributed}
        for i in range(self.count):
            yield draw(features, m, self.seed + i, self.normalize, **options)
