# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Neighbours of blocks that were searched before, as long as there is room for them."""

from collections.abc import Callable

import numpy as np
from torch import Tensor

from hf_clipbd.detection.nearest import Neighbors


class Kept:
    """The nearest rows of blocks that were searched before, by what a block contains.

    k neighbours are the first k of more. A block that there is no room for is searched again each time, so that memory
    is bounded whatever the size of the set.

    Args:
        room: Megabytes.
    """

    def __init__(self, room: float):
        self._left = room * 2**20
        self._found: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def nearest(self, owner: int, block: np.ndarray, k: int, search: Callable[[], Neighbors]) -> Neighbors:
        """Return the k nearest rows of a block: those kept, else those that `search` finds.

        Args:
            owner: The `id` of the reference that is searched.
            block: (B, D), float32.
            k: How many.
            search: Finds them.
        """
        key = owner, hash(block.tobytes())
        known = self._found.get(key)
        if known is not None and known[1].shape[1] >= k:
            return Neighbors(known[0][:, :k], known[1][:, :k].long())
        found = search()
        kept = found.distances, found.positions.int()
        more = sum(part.nbytes for part in kept) - sum(part.nbytes for part in known or ())
        if more <= self._left:
            self._found[key] = kept
            self._left -= more
        return found
