# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""How well a dual encoder classifies, and how well a trigger commands it."""

from hf_clipbd.evaluation.rates import Effectiveness, defense_effectiveness
from hf_clipbd.evaluation.zero_shot import ZeroShotEvaluator, evaluate_zero_shot, text_classifier


__all__ = ["Effectiveness", "ZeroShotEvaluator", "defense_effectiveness", "evaluate_zero_shot", "text_classifier"]
