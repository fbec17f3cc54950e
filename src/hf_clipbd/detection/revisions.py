# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Detectors whose definition changed after figures of it had been recorded: which one a record's figures are of."""

from collections.abc import Iterable, Mapping
from typing import Any


REVISIONS = {"conditional_sparsity": 2, "combined": 2}
"""Name -> how many definitions there were, where more than one: the first of both took a mean for the median."""
SETTING = "revisions"


def revisions(detectors: Iterable[str]) -> dict[str, dict[str, int]]:
    """Return what a search's settings say of its detectors, so that one with an older definition is not taken for it.

    Example:
        >>> revisions(["conditional_sparsity", "slof"]), revisions(["slof"])
        ({'revisions': {'conditional_sparsity': 2}}, {})
    """
    known = {name: REVISIONS[name] for name in detectors if name in REVISIONS}
    return {SETTING: known} if known else {}


def recorded_name(detector: str, settings: Mapping[str, Any]) -> str:
    """Return the name, among all methods', of the definition that a recorded search went by.

    Args:
        detector: A key of `DETECTORS`.
        settings: Those of the search.

    Example:
        >>> recorded_name("combined", {"revisions": {"combined": 2}}), recorded_name("combined", {})
        ('combined', 'combined_1')
    """
    revision = settings.get(SETTING, {}).get(detector, 1)
    return detector if revision == REVISIONS.get(detector, 1) else f"{detector}_{revision}"
