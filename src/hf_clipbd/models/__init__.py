# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Dual encoders: CLIP with OpenAI's ResNet tower, known to transformers once imported, and loading of any other."""

from hf_clipbd.models.batch_norm import GlobalBatchNorm2d
from hf_clipbd.models.clip_resnet import CLIPResNetModel, register
from hf_clipbd.models.configuration import CLIPResNetConfig, CLIPResNetVisionConfig
from hf_clipbd.models.convert import convert_file, convert_openai_state_dict
from hf_clipbd.models.files import resolve_file
from hf_clipbd.models.loading import load_dual_encoder
from hf_clipbd.models.text_input import TextInput
from hf_clipbd.models.tokenizer import build_processor, train_tokenizer


register()

__all__ = [
    "CLIPResNetConfig",
    "CLIPResNetModel",
    "CLIPResNetVisionConfig",
    "GlobalBatchNorm2d",
    "TextInput",
    "build_processor",
    "convert_file",
    "convert_openai_state_dict",
    "load_dual_encoder",
    "resolve_file",
    "train_tokenizer",
]
