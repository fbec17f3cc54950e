# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Backdoor attacks on CLIP, defences against them and detectors of the poison, on the Hugging Face libraries."""

__version__ = "0.1.0"
