# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""open_clip's checkpoints: ResNets without open_clip, the rest with it where it is installed."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hf_clipbd.defenses import DEFENSES
from hf_clipbd.features import embed_dataset
from hf_clipbd.models import CLIPResNetModel, TextInput, load_dual_encoder, train_tokenizer
from hf_clipbd.models.open_clip import OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS, is_open_clip
from openai_weights import SHAPES, logits, random_state


STATISTICS = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.25]}


@pytest.fixture
def tokenizer(tiny_captions):
    return train_tokenizer(tiny_captions, 600, 16)


def write(folder, model_cfg, tokenizer, state=None, pickled=False):
    folder.mkdir()
    tokenizer.save_pretrained(folder)
    (folder / OPEN_CLIP_CONFIG).write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": STATISTICS}))
    if state is not None and pickled:
        torch.save(state, folder / OPEN_CLIP_WEIGHTS[1])
    elif state is not None:
        save_file(state, folder / OPEN_CLIP_WEIGHTS[0])
    return folder


@pytest.mark.parametrize("pickled", [False, True])
def test_a_resnet_needs_no_open_clip(pickled, tokenizer, tmp_path):
    shape = {**SHAPES["tiny"], "vocabulary": len(tokenizer)}
    state = random_state(**shape)
    text = {"context_length": 16, "vocab_size": len(tokenizer), "width": 64, "heads": 1, "layers": 2}
    vision = {"image_size": 64, "layers": [1, 2, 1, 1], "width": 16}
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text, "quick_gelu": True}
    folder = write(tmp_path / "rn", config, tokenizer, state, pickled)
    assert is_open_clip(folder)
    model, processor = load_dual_encoder(folder)
    assert type(model) is CLIPResNetModel and list(processor.image_processor.image_mean) == STATISTICS["mean"]
    tokens = TextInput.of(model, processor)(["a red banana", "an old dog beside a boat"])
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = model(pixel_values=pixels, **tokens).logits_per_image
    torch.testing.assert_close(found, logits(state, pixels, tokens["input_ids"]), rtol=0, atol=1e-4)
    config["quick_gelu"] = False
    other, _ = load_dual_encoder(write(tmp_path / "gelu", config, tokenizer, state))
    assert other.config.text_config.hidden_act == "gelu"
    model.save_pretrained(tmp_path / "again")
    assert not is_open_clip(tmp_path / "again")


def test_what_is_missing_is_named(tokenizer, tmp_path):
    folder = write(tmp_path / "empty", {"embed_dim": 8, "vision_cfg": {}, "text_cfg": {}}, tokenizer)
    with pytest.raises(FileNotFoundError, match="open_clip_pytorch_model.bin"):
        load_dual_encoder(folder)


def vit(width, tokenizer, timm=False):
    """Return configurations of a tiny ViT of open_clip's, and of a tiny EVA-CLIP."""
    text = {"context_length": 16, "vocab_size": len(tokenizer), "width": 64, "heads": 1, "layers": 1}
    vision = {"image_size": 32, "layers": 1, "width": width, "head_width": 32, "patch_size": 8}
    if timm:
        vision = {"image_size": 28, "timm_model_name": "eva02_tiny_patch14_224", "timm_model_pretrained": False,
                  "timm_pool": "token", "timm_proj": "linear"}  # fmt: skip
    return {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text, "custom_text": timm}


@pytest.mark.parametrize("timm", [False, True], ids=["vit", "eva"])
def test_open_clip_models_load_train_and_save(timm, tokenizer, tiny_pairs, tmp_path):
    open_clip = pytest.importorskip("open_clip", exc_type=(ImportError, RuntimeError))
    config = vit(64, tokenizer, timm)
    given = {name: value for name, value in config.items() if name != "custom_text"}
    theirs = (open_clip.CustomTextCLIP if timm else open_clip.CLIP)(**json.loads(json.dumps(given))).eval()
    folder = write(tmp_path / "theirs", config, tokenizer, theirs.state_dict())
    model, processor = load_dual_encoder(folder)
    tokens = TextInput.of(model, processor)(tiny_pairs["caption"][:5])
    padded = torch.zeros(5, 16, dtype=torch.int64)
    for row, (ids, mask) in enumerate(zip(tokens["input_ids"], tokens["attention_mask"], strict=True)):
        padded[row, : int(mask.sum())] = ids[mask.bool()]
    size = config["vision_cfg"]["image_size"]
    pixels = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        images, texts = theirs.encode_image(pixels, normalize=True), theirs.encode_text(padded, normalize=True)
        out = model(pixel_values=pixels, **tokens)
    torch.testing.assert_close(out.image_embeds, images, rtol=0, atol=1e-5)
    torch.testing.assert_close(out.text_embeds, texts, rtol=0, atol=1e-5)
    args = DEFENSES["cleanclip"].config(
        str(tmp_path / "run"),
        max_steps=2,
        per_device_train_batch_size=8,
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = DEFENSES["cleanclip"].trainer(model, args, tiny_pairs, processor)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    after = embed_dataset(model, processor, tiny_pairs)
    again = embed_dataset(*load_dual_encoder(tmp_path / "saved"), tiny_pairs)
    for modality in ("image", "text"):
        np.testing.assert_allclose(again[modality], after[modality], atol=1e-6)
