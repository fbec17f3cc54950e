# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Captions: a rule-based parser, CleanerCLIP's factual and counterfactual sub-captions, EDA and spans."""

from .eda import augment_caption
from .parser import Parse, parse
from .parsers import parser_named
from .spans import sample_span
from .sub_captions import counterfactual_caption, factual_caption
from .whole import counterfactual_whole, whole_caption


__all__ = [
    "Parse",
    "augment_caption",
    "counterfactual_caption",
    "counterfactual_whole",
    "factual_caption",
    "parse",
    "parser_named",
    "sample_span",
    "whole_caption",
]
