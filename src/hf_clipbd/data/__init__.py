# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Pairs on their way to a model: where they come from, their geometry, and the views that a defence draws of them."""

from .canvas import Canvas


__all__ = ["Canvas"]
