# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Tiny random models of open_clip's own architectures, where open_clip is installed: ViT, ResNet, EVA-02, SigLIP."""

from typing import Any

from hf_clipbd.models import build_processor, train_tokenizer
from hf_clipbd.models.open_clip import OpenCLIPConfig, OpenCLIPModel


try:
    import open_clip  # noqa: F401
    import timm
except (ImportError, RuntimeError):  # RuntimeError: a torchvision that does not fit torch
    INSTALLED = False
else:
    INSTALLED = True

SIZE, LENGTH, DIMENSION = 32, 24, 12
STATISTICS = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.25]}
TEXT = {"context_length": LENGTH, "width": 32, "heads": 2, "layers": 1}
EVA, SIGLIP = "eva02_nano_patch8_clip_32", "vit_nano_patch8_siglip_32"
TIMM = {"image_size": SIZE, "timm_model_pretrained": False}

SHAPES: dict[str, dict[str, Any]] = {
    "vit": {"vision_cfg": {"image_size": SIZE, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}},
    "resnet": {"vision_cfg": {"image_size": SIZE, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64}},
    # The layouts of open_clip's EVA02-B-16 and ViT-B-16-SigLIP.
    "eva": {
        "vision_cfg": {**TIMM, "timm_model_name": EVA, "timm_pool": "token", "timm_proj": None},
        "custom_text": True,
    },
    "siglip": {
        "vision_cfg": {**TIMM, "timm_model_name": SIGLIP, "timm_pool": "map", "timm_proj": "none"},
        "text_cfg": {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}},
        "init_logit_bias": -10,
        "custom_text": True,
    },
}


def _eva(**given: Any) -> Any:
    """Return timm's EVA-02 with the options of `eva02_base_patch16_clip_224`, one block of 16 channels."""
    options = {"qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True, "scale_attn_inner": True}
    options |= {"mlp_ratio": 4 * 2 / 3, "use_rot_pos_emb": True, "ref_feat_shape": (4, 4)}
    return timm.models.eva.Eva(SIZE, 8, embed_dim=16, depth=1, num_heads=2, **{**options, **given})


def _siglip(**given: Any) -> Any:
    """Return timm's ViT with the options of `vit_base_patch16_siglip_224`, one block of 12 channels."""
    return timm.models.vision_transformer.VisionTransformer(
        SIZE, 8, embed_dim=DIMENSION, depth=1, num_heads=2, class_token=False, **given
    )


def register() -> None:
    """Make timm know the two tiny image towers by name."""
    for name, build in ((EVA, _eva), (SIGLIP, _siglip)):

        def entry(pretrained: bool = False, build: Any = build, **given: Any) -> Any:
            return build(**{key: value for key, value in given.items() if key in ("num_classes", "global_pool")})

        entry.__name__, entry.__module__ = name, __name__
        timm.models.register_model(entry)


def description(name: str, vocabulary: int) -> dict[str, Any]:
    """Return what stands in `open_clip_config.json` of a tiny model."""
    shape = SHAPES[name]
    text = {**TEXT, "vocab_size": vocabulary, **shape.get("text_cfg", {})}
    squash = {"resize_mode": "squash"} if name == "siglip" else {}
    return {
        "model_cfg": {"embed_dim": DIMENSION, **shape, "text_cfg": text},
        "preprocess_cfg": {**STATISTICS, **squash},
    }


def model_and_processor(name: str, captions: list[str]) -> tuple[Any, Any]:
    """Return a tiny random model as this package wraps it, and a processor."""
    tokenizer = train_tokenizer(captions, 600, LENGTH)
    model = OpenCLIPModel(OpenCLIPConfig(description(name, len(tokenizer))))
    return model, build_processor(tokenizer, SIZE)


if INSTALLED:
    register()
