# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What is known of a reference's rows besides their embeddings: their captions, or how a second space sees them."""

from typing import Any

import numpy as np

from hf_clipbd.detection.reference import Reference
from hf_clipbd.detection.rows import check_rows, matrix


def aligned_with(reference: Reference, features: Any, given: Any, of_reference: Any, name: str) -> np.ndarray:
    """Return what is aligned with the row of each point, (m, D2), float32, or raise `ValueError`.

    Args:
        reference: What rows are compared with.
        features: The searched set, (N, D).
        given: What is aligned with it, (N, D2).
        of_reference: What is aligned with the rows that the reference was drawn from, as wide; None where these are
            the searched ones.
        name: Of `given` in messages.
    """
    needed, got = int(reference.rows.max()) + 1, None if of_reference is None else len(of_reference)
    if got is None and reference.drawn_from(features):
        drawn_from, called = matrix(given), name
    elif got is not None and got >= needed:
        drawn_from, called = matrix(of_reference), f"reference_{name}"
    else:
        raise ValueError(
            f"Expected `reference_{name}`, {name} of the rows that the reference was drawn from, at least {needed} of "
            f"them, since it is no sample of the searched features, but got {got}. Give `reference_{name}`."
        )
    found, wide = drawn_from[reference.rows].astype(np.float32), matrix(given).shape[1]
    if found.shape[1] != wide:
        raise ValueError(f"Expected `{called}` of {wide} dimensions, as `{name}` has, but got {found.shape[1]}.")
    check_rows(found, f"`{called}`", reference.rows)
    return found
