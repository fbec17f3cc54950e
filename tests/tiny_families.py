# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""A tiny random model and processor of every family of dual encoders, built from configurations alone."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

import open_clip_families
from hf_clipbd.models import (
    CLIPResNetConfig,
    CLIPResNetModel,
    build_processor,
    convert_openai_state_dict,
    train_tokenizer,
)
from openai_weights import random_state


SIZE, PATCH, LENGTH = 32, 8, 24
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = {**TOWER, "image_size": SIZE, "patch_size": PATCH}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # or two processes draw other masks
SQUARE = {"height": SIZE, "width": SIZE}


def words_of(captions: list[str]) -> list[str]:
    return sorted({word for caption in captions for word in caption.lower().split()})


def word_tokenizer(captions: list[str], length: int = LENGTH) -> Any:
    """Return a word-level tokenizer that ends texts with </s>, which also pads them, as SigLIP's does."""
    vocab = {token: number for number, token in enumerate(["</s>", "<unk>", *words_of(captions)])}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    inner.normalizer, inner.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    special = {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    return hf.PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=length, **special)


def bert_tokenizer(captions: list[str]) -> Any:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words_of(captions)]
    return hf.BertTokenizer(vocab={token: number for number, token in enumerate(tokens)}, model_max_length=LENGTH)


def xlm_tokenizer(captions: list[str]) -> Any:
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *("▁" + word for word in words_of(captions)), "<mask>"]
    return hf.XLMRobertaTokenizer(vocab=[(piece, -1.0) for piece in pieces], model_max_length=512)


def gemma_tokenizer(captions: list[str]) -> Any:
    letters = sorted(set("".join(captions).lower()) - {" "})
    vocab = {token: n for n, token in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *letters])}
    return hf.Siglip2Tokenizer(vocab=vocab, merges=[], model_max_length=LENGTH)


def special_ids(tokenizer: Any) -> dict[str, int]:
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def clip(captions: list[str]) -> tuple[Any, Any]:
    tokenizer = train_tokenizer(captions, 600, LENGTH)
    text = {**TOWER, **special_ids(tokenizer), "max_position_embeddings": LENGTH}
    model = hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=12))
    return model, build_processor(tokenizer, SIZE)


def metaclip(captions: list[str]) -> tuple[Any, Any]:
    """MetaCLIP is CLIP with other weights and the sigmoid approximation of GELU."""
    tokenizer = train_tokenizer(captions, 600, LENGTH)
    text = {**TOWER, **special_ids(tokenizer), "max_position_embeddings": LENGTH, "hidden_act": "quick_gelu"}
    vision = {**VISION, "hidden_act": "quick_gelu"}
    return hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)), build_processor(
        tokenizer, SIZE
    )


def metaclip_2(captions: list[str]) -> tuple[Any, Any]:
    tokenizer = xlm_tokenizer(captions)
    text = {**TOWER, **special_ids(tokenizer), "max_position_embeddings": LENGTH}
    config = hf.MetaClip2Config(text_config=text, vision_config=VISION, projection_dim=12)
    images = build_processor(train_tokenizer(captions, 600, LENGTH), SIZE).image_processor
    return hf.MetaClip2Model(config), hf.CLIPProcessor(images, tokenizer)


def siglip(captions: list[str]) -> tuple[Any, Any]:
    tokenizer = word_tokenizer(captions)
    text = {**TOWER, "vocab_size": len(tokenizer), "max_position_embeddings": LENGTH, "projection_size": 16}
    model = hf.SiglipModel(hf.SiglipConfig(text_config=text, vision_config=VISION))
    return model, hf.SiglipProcessor(hf.SiglipImageProcessorPil(size=SQUARE), tokenizer)


def siglip_2_fixed(captions: list[str]) -> tuple[Any, Any]:
    """SigLIP 2 at a fixed resolution is SigLIP's architecture with another tokenizer."""
    tokenizer = gemma_tokenizer(captions)
    text = {**TOWER, "vocab_size": len(tokenizer), "max_position_embeddings": LENGTH, "projection_size": 16}
    model = hf.SiglipModel(hf.SiglipConfig(text_config=text, vision_config=VISION))
    return model, hf.SiglipProcessor(hf.SiglipImageProcessorPil(size=SQUARE), tokenizer)


def siglip_2(captions: list[str]) -> tuple[Any, Any]:
    tokenizer = gemma_tokenizer(captions)
    text = {**TOWER, "vocab_size": len(tokenizer), "max_position_embeddings": LENGTH, "projection_size": 16}
    vision = {**TOWER, "patch_size": PATCH, "num_patches": (SIZE // PATCH) ** 2}
    images = hf.Siglip2ImageProcessorPil(patch_size=PATCH, max_num_patches=(SIZE // PATCH) ** 2)
    model = hf.Siglip2Model(hf.Siglip2Config(text_config=text, vision_config=vision))
    return model, hf.Siglip2Processor(images, tokenizer)


def altclip(captions: list[str]) -> tuple[Any, Any]:
    tokenizer = xlm_tokenizer(captions)
    positions = LENGTH + tokenizer.pad_token_id + 1
    text = {**TOWER, **special_ids(tokenizer), "max_position_embeddings": positions, "project_dim": 16, **STILL}
    config = hf.AltCLIPConfig(text_config=text, vision_config=VISION, projection_dim=12)
    images = build_processor(train_tokenizer(captions, 600, LENGTH), SIZE).image_processor
    return hf.AltCLIPModel(config), hf.AltCLIPProcessor(images, tokenizer)


def chinese_clip(captions: list[str]) -> tuple[Any, Any]:
    tokenizer = bert_tokenizer(captions)
    text = {**TOWER, **STILL, "vocab_size": len(tokenizer), "pad_token_id": 0, "max_position_embeddings": LENGTH}
    config = hf.ChineseCLIPConfig(text_config=text, vision_config=VISION, projection_dim=12)
    images = hf.ChineseCLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size=SQUARE)
    return hf.ChineseCLIPModel(config), hf.ChineseCLIPProcessor(images, tokenizer)


def vision_text(captions: list[str]) -> tuple[Any, Any]:
    tokenizer = bert_tokenizer(captions)
    text = hf.BertConfig(**TOWER, **STILL, vocab_size=len(tokenizer), max_position_embeddings=LENGTH)
    config = hf.VisionTextDualEncoderConfig.from_vision_text_configs(hf.ViTConfig(**VISION), text, projection_dim=12)
    images = hf.ViTImageProcessorPil(size=SQUARE)
    return hf.VisionTextDualEncoderModel(config), hf.VisionTextDualEncoderProcessor(images, tokenizer)


def clip_resnet(captions: list[str]) -> tuple[Any, Any]:
    tokenizer = train_tokenizer(captions, 600, LENGTH)
    text = {**TOWER, **special_ids(tokenizer), "max_position_embeddings": LENGTH}
    vision = {"image_size": SIZE, "layers": (1, 1, 1, 1), "width": 4}
    return CLIPResNetModel(CLIPResNetConfig(vision, text, projection_dim=12)), build_processor(tokenizer, SIZE)


def openai_resnet(captions: list[str]) -> tuple[Any, Any]:
    """OpenAI's names and layout, converted: RN50 but for its size."""
    tokenizer = train_tokenizer(captions, 600, LENGTH)
    shape = {"layers": (1, 2, 1, 1), "width": 8, "image": SIZE, "dim": 12, "text": 64, "blocks": 1}
    state = random_state(**shape, vocabulary=len(tokenizer), context=LENGTH)
    return convert_openai_state_dict(state), build_processor(tokenizer, SIZE)


FAMILIES: dict[str, Callable[[list[str]], tuple[Any, Any]]] = {
    one.__name__: one
    for one in (
        clip, metaclip, metaclip_2, siglip, siglip_2_fixed, siglip_2, altclip, chinese_clip, vision_text, clip_resnet,
        openai_resnet,
    )
}  # fmt: skip
if open_clip_families.INSTALLED:
    FAMILIES |= {
        f"open_clip_{name}": functools.partial(open_clip_families.model_and_processor, name)
        for name in open_clip_families.SHAPES
    }


def write(family: str, captions: list[str], folder: Path, seed: int = 0) -> Path:
    """Write a tiny random model of a family and its processor into `folder`, and return it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, processor = FAMILIES[family](captions)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
