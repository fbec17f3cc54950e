# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Which rows of a training set are poisoned: scores of embeddings, higher is more suspicious."""

from hf_clipbd.detection.activation_clustering import activation_clustering
from hf_clipbd.detection.at_rates import performance_at_rate, performances_at_rate, thinned_rows
from hf_clipbd.detection.clip_score import clip_score
from hf_clipbd.detection.cognitive_distillation import cognitive_distillation, distilled_masks, mask_sizes
from hf_clipbd.detection.combined import combined
from hf_clipbd.detection.compat_huang2025 import huang2025
from hf_clipbd.detection.conditional_sparsity import conditional_sparsity
from hf_clipbd.detection.dao import dao
from hf_clipbd.detection.detect import ALIGNED, DETECTORS, OF_REFERENCE, detect, detect_all
from hf_clipbd.detection.disagreement import disagreement
from hf_clipbd.detection.island import island
from hf_clipbd.detection.isolation_forest import isolation_forest
from hf_clipbd.detection.k_distance import k_distance
from hf_clipbd.detection.lid import lid, local_intrinsic_dimension
from hf_clipbd.detection.lof import lof
from hf_clipbd.detection.metric import BackdoorDetection
from hf_clipbd.detection.multi_scale import multi_scale
from hf_clipbd.detection.neighbors import default_k
from hf_clipbd.detection.performance import detection_performance
from hf_clipbd.detection.reference import Reference
from hf_clipbd.detection.references import References
from hf_clipbd.detection.rows import first_copies
from hf_clipbd.detection.scan import Scan, scan
from hf_clipbd.detection.shared import Shared
from hf_clipbd.detection.slof import slof
from hf_clipbd.detection.spectral import spectral_signature


__all__ = [
    "ALIGNED",
    "DETECTORS",
    "OF_REFERENCE",
    "BackdoorDetection",
    "Reference",
    "References",
    "Scan",
    "Shared",
    "activation_clustering",
    "clip_score",
    "cognitive_distillation",
    "combined",
    "conditional_sparsity",
    "dao",
    "default_k",
    "detect",
    "detect_all",
    "detection_performance",
    "disagreement",
    "distilled_masks",
    "first_copies",
    "huang2025",
    "island",
    "isolation_forest",
    "k_distance",
    "lid",
    "local_intrinsic_dimension",
    "lof",
    "mask_sizes",
    "multi_scale",
    "performance_at_rate",
    "performances_at_rate",
    "scan",
    "slof",
    "spectral_signature",
    "thinned_rows",
]
