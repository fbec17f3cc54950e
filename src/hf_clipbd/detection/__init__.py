# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Which rows of a training set are poisoned: scores of embeddings, higher is more suspicious."""

from hf_clipbd.detection.at_rates import performance_at_rate, thinned_rows
from hf_clipbd.detection.clip_score import clip_score
from hf_clipbd.detection.dao import dao
from hf_clipbd.detection.detect import DETECTORS, detect
from hf_clipbd.detection.isolation_forest import isolation_forest
from hf_clipbd.detection.k_distance import k_distance
from hf_clipbd.detection.lid import lid, local_intrinsic_dimension
from hf_clipbd.detection.lof import lof
from hf_clipbd.detection.metric import BackdoorDetection
from hf_clipbd.detection.neighbors import Reference, default_k
from hf_clipbd.detection.performance import detection_performance
from hf_clipbd.detection.rows import first_copies
from hf_clipbd.detection.slof import slof


__all__ = [
    "DETECTORS",
    "BackdoorDetection",
    "Reference",
    "clip_score",
    "dao",
    "default_k",
    "detect",
    "detection_performance",
    "first_copies",
    "isolation_forest",
    "k_distance",
    "lid",
    "local_intrinsic_dimension",
    "lof",
    "performance_at_rate",
    "slof",
    "thinned_rows",
]
