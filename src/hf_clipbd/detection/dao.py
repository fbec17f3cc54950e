# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""DAO: SLOF with each ratio raised to the neighbour's local dimension."""

import math
from typing import Any

import numpy as np
import torch

from hf_clipbd.detection.lid import local_intrinsic_dimension
from hf_clipbd.detection.neighbors import neighbor_scores, prepared
from hf_clipbd.detection.reference import FLOOR, Reference


LARGEST_LOG = 700.0
"""Logarithms above this one are cut to it, so that every score is a finite double."""


def dao(
    features: Any, reference: Reference | None = None, k: int | None = None, logarithm: bool = False
) -> np.ndarray:
    """Return the dimensionality-aware outlier factor: mean over o in N_k(x) of (d_k(x) / d_k(o)) ** LID(o).

    Args:
        features: (N, D).
        reference: What rows are compared with; a random sample of the features by default.
        k: Number of neighbours, at least 2; 0.4 % of the reference by default.
        logarithm: Return the natural logarithm of the factor: the same order, without its enormous range.

    Returns:
        (N,), float64; higher is more suspicious.

    Raises:
        ValueError: If k is out of range or the features are no finite matrix.

    Reference:
        Anderberg et al., "Dimensionality-Aware Outlier Detection", SDM 2024; on CLIP embeddings Huang et al., ICLR
        2025 (arXiv 2502.01385). Follows the formula: the public code lets the zero distance of a row to itself into
        LID(o), which all but switches the exponent off.
    """
    reference, k = prepared(features, reference, k)
    table = reference.table(k).distances.double().clamp_min(FLOOR)  # (m, k)
    log_k_distance, dimension = table[:, -1].log(), local_intrinsic_dimension(table)  # (m,)

    def score(distances, positions):
        log_ratios = distances[:, -1:].log() - log_k_distance[positions]  # (B, k)
        log_mean = torch.logsumexp(dimension[positions] * log_ratios, dim=1) - math.log(k)
        return log_mean if logarithm else log_mean.clamp(max=LARGEST_LOG).exp()

    return neighbor_scores(features, reference, k, score, "DAO")
