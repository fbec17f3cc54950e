# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The embedded world: rendered, captioned scenes, class names, prompts, and a small clean CLIP pretrained on them."""

from .graph import FREQUENCIES, SPLITS, Scene, SceneObject
from .pretrained import load_clean_clip
from .render import STYLES
from .tell import CAPTION_STYLES
from .words import CLASS_NAMES, COLORS, PROMPTS, RELATIONS, SIZES, SYNONYMS, TEXTURES, article, fill_prompt, plural
from .world import describe_scene, load_scenes, scene_captions, scene_image, test_label


__all__ = [
    "CAPTION_STYLES",
    "CLASS_NAMES",
    "COLORS",
    "FREQUENCIES",
    "PROMPTS",
    "RELATIONS",
    "SIZES",
    "SPLITS",
    "STYLES",
    "SYNONYMS",
    "TEXTURES",
    "Scene",
    "SceneObject",
    "article",
    "describe_scene",
    "fill_prompt",
    "load_clean_clip",
    "load_scenes",
    "plural",
    "scene_captions",
    "scene_image",
    "test_label",
]
