# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Neighbours found by faiss's exact index, an optional stand-in for the engine's own search on processors."""

from typing import Any

import torch
from torch import Tensor

from hf_clipbd.detection.nearest import Neighbors, candidates, ranked


def faiss_module() -> Any:
    """Return faiss, or raise `ImportError` that says how to install it."""
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            'Expected faiss for backend "faiss", but it is not installed. Install it by `pip install '
            '"hf-clipbd[faiss]"` (the package faiss-cpu), or use backend "torch".'
        ) from error
    return faiss


class FaissPoints:
    """Points in faiss's `IndexFlatL2`, searched as `nearest.Points` are.

    The index gives somewhat more than k candidates, of which the row itself is taken out by its number, and their
    distances are computed and ranked as the engine's own search does. It holds a copy of the points.

    Args:
        points: (m, D), float32, on the processor.

    Raises:
        ImportError: If faiss is not installed.
    """

    def __init__(self, points: Tensor):
        self.points = points
        self.squared = points.square().sum(1)  # (m,)
        self._index = faiss_module().IndexFlatL2(points.shape[1])
        self._index.add(points.numpy())

    def nearest(self, queries: Tensor, own: Tensor, k: int) -> Neighbors:
        """Return the k nearest points of each query, the one at `own` left out.

        Args:
            queries: (B, D), float32.
            own: (B,), the position of each query's own point, or -1.
            k: Neighbours, in [1, m - 1].
        """
        wanted = min(candidates(k, rough=False) + 1, len(self.points))  # one more for the row itself
        _, columns = self._index.search(queries.contiguous().numpy(), wanted)
        return ranked(queries, own, self.points, self.squared, torch.from_numpy(columns), k)
