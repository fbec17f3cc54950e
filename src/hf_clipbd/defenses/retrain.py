# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Detect then retrain: drop the most suspicious share of the poisoned pairs and train the clean model on the rest."""

from dataclasses import dataclass, field

import numpy as np

from hf_clipbd.trainer import CLIPTrainingConfig


@dataclass
class RetrainConfig(CLIPTrainingConfig):
    """Arguments of training again without the most suspicious rows.

    Args:
        detector: Key of `hf_clipbd.detection.DETECTORS` whose scores of the stage `detect` are used.
        drop_share: Share of the rows that is dropped, in [0, 1).
    """

    detector: str = field(
        default="conditional_sparsity", metadata={"help": "Detector whose scores of stage `detect` count."}
    )
    drop_share: float = field(default=0.02, metadata={"help": "Share of the rows that is dropped, in [0, 1)."})

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.drop_share < 1:
            raise ValueError(f"Expected `drop_share` in [0, 1), but got {self.drop_share}.")


def least_suspicious(scores: np.ndarray, drop_share: float) -> np.ndarray:
    """Return the numbers of the rows that stay, ascending, once round(drop_share * N) of the highest scores are gone.

    Args:
        scores: (N,), higher is more suspicious; of equal scores the later row is dropped first.
        drop_share: In [0, 1).

    Raises:
        ValueError: If the share is out of range or a score is not a number.

    Example:
        >>> least_suspicious(np.array([0.1, 0.9, 0.2, 0.5]), 0.5).tolist()
        [0, 2]
    """
    if not 0 <= drop_share < 1 or np.isnan(scores).any():
        raise ValueError(
            f"Expected a share in [0, 1) and scores without NaN, but got {drop_share} and "
            f"{int(np.isnan(scores).sum())} NaN of {len(scores)}."
        )
    dropped = round(drop_share * len(scores))
    return np.sort(np.argsort(scores, kind="stable")[: len(scores) - dropped])
