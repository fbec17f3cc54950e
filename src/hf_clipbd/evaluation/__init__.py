# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""How well a dual encoder classifies and retrieves, and how well a trigger commands it."""

from hf_clipbd.evaluation.labelled import LabelledImages, load_benchmark
from hf_clipbd.evaluation.linear_probe import ProbeReport, linear_probe
from hf_clipbd.evaluation.prompts import text_classifier
from hf_clipbd.evaluation.rates import Effectiveness, defense_effectiveness
from hf_clipbd.evaluation.retrieval import RetrievalReport, evaluate_retrieval, retrieval_asr, retrieval_recall
from hf_clipbd.evaluation.visibility import EmbeddingShift, embedding_shift
from hf_clipbd.evaluation.zero_shot import ZeroShotEvaluator, evaluate_zero_shot


__all__ = [
    "Effectiveness",
    "EmbeddingShift",
    "LabelledImages",
    "ProbeReport",
    "RetrievalReport",
    "ZeroShotEvaluator",
    "defense_effectiveness",
    "embedding_shift",
    "evaluate_retrieval",
    "evaluate_zero_shot",
    "linear_probe",
    "load_benchmark",
    "retrieval_asr",
    "retrieval_recall",
    "text_classifier",
]
