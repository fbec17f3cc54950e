# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""open_clip's checkpoints: ResNets without open_clip, the rest with it where it is installed (see `FAMILIES` too)."""

import json

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import save_file

import open_clip_families
import tiny_families
from hf_clipbd.data.canvas import Canvas, normalize, pixel_statistics
from hf_clipbd.defenses import DEFENSES
from hf_clipbd.features import embed_dataset, embed_pairs
from hf_clipbd.models import CLIPResNetModel, TextInput, load_dual_encoder, train_tokenizer
from hf_clipbd.models.open_clip import OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS, is_open_clip
from openai_weights import SHAPES, logits, random_state


STATISTICS = open_clip_families.STATISTICS


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


class Stranger:
    """What a pickle may hold beside tensors."""


def test_what_is_no_plain_state_dict_is_refused_with_the_reason(tokenizer, tmp_path):
    config = {"embed_dim": 24, "vision_cfg": {"layers": [1, 1, 1, 1]}, "text_cfg": {}}
    whole = {"a whole module": torch.nn.Linear(2, 3), "a foreign object": {"state_dict": {}, "args": Stranger()}}
    for number, (content, named) in enumerate(zip(whole.values(), ("Linear", "Stranger"), strict=True)):
        folder = write(tmp_path / str(number), config, tokenizer, content, pickled=True)
        with pytest.raises(ValueError, match=rf"it names [\w.]*{named}.*whatever code its author put there"):
            load_dual_encoder(folder)
    with pytest.raises(ValueError, match="holds list"):
        load_dual_encoder(write(tmp_path / "list", config, tokenizer, [1, 2], pickled=True))


def test_a_configuration_of_timms_beside_it_is_not_transformers(tokenizer, tmp_path):
    folder = write(tmp_path / "timm", {"embed_dim": 8, "vision_cfg": {}, "text_cfg": {}}, tokenizer)
    (folder / "config.json").write_text(json.dumps({"architecture": "eva02_base_patch16_clip_224"}))
    assert is_open_clip(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "clip"}))
    assert not is_open_clip(folder)


# -- with open_clip ---------------------------------------------------------------------------------------------------

needs_open_clip = pytest.mark.skipif(not open_clip_families.INSTALLED, reason="open_clip is not installed, or broken")
ARCHITECTURES = pytest.mark.parametrize("name", open_clip_families.SHAPES)


def theirs_and_folder(name, tokenizer, folder):
    """Return a random model of open_clip's in evaluation mode, and the folder that open_clip itself wrote of it."""
    import open_clip
    from open_clip.push_to_hf_hub import save_for_hf

    config = open_clip_families.description(name, len(tokenizer))["model_cfg"]
    given = {key: value for key, value in json.loads(json.dumps(config)).items() if key != "custom_text"}
    theirs = (open_clip.CustomTextCLIP if "custom_text" in config else open_clip.CLIP)(**given).eval()
    theirs.visual.image_mean, theirs.visual.image_std = STATISTICS["mean"], STATISTICS["std"]
    save_for_hf(theirs, tokenizer, config, folder, safe_serialization=name != "vit")  # ViT: the pickled state dict
    return theirs, folder


def their_tokens(model, processor, texts, length):
    """Return texts as open_clip pads them: zeros, or for SigLIP the tokenizer's own padding."""
    tokens = TextInput.of(model, processor)(texts)
    padded = torch.zeros(len(texts), length, dtype=torch.int64)
    for row, (ids, mask) in enumerate(zip(tokens["input_ids"], tokens["attention_mask"], strict=True)):
        padded[row, : int(mask.sum())] = ids[mask.bool()]
    return tokens, padded


def assert_equal_but_for_rounding(ours, theirs):
    """Check unit rows within 1e-5 and within a tenth of what tells two rows apart, little in a random model."""
    gap = (ours - theirs).abs().max()
    assert gap < 1e-5 and gap < 0.1 * (theirs[0] - theirs[1]).abs().max()


@needs_open_clip
@ARCHITECTURES
def test_embeddings_and_logits_are_open_clips_own(name, tokenizer, tiny_captions, tmp_path):
    theirs, folder = theirs_and_folder(name, tokenizer, tmp_path / "theirs")
    model, processor = load_dual_encoder(folder)
    assert (type(model) is CLIPResNetModel) == (name == "resnet")
    tokens, padded = their_tokens(model, processor, tiny_captions[:5], open_clip_families.LENGTH)
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        images, texts = theirs.encode_image(pixels, normalize=True), theirs.encode_text(padded, normalize=True)
        expected, _ = theirs.get_logits(pixels, padded)
        out = model(pixel_values=pixels, **tokens)
    assert_equal_but_for_rounding(out.image_embeds, images)
    assert_equal_but_for_rounding(out.text_embeds, texts)
    torch.testing.assert_close(out.logits_per_image, expected, rtol=0, atol=1e-4)


@needs_open_clip
@pytest.mark.parametrize("name", ["vit", "eva", "siglip"])
def test_open_clip_loads_what_we_saved_and_a_run_goes_on(name, tokenizer, tiny_pairs, tmp_path):
    import open_clip

    _, folder = theirs_and_folder(name, tokenizer, tmp_path / "theirs")
    model, processor = load_dual_encoder(folder)

    def trainer(**changes):
        args = DEFENSES["ft"].config(
            str(tmp_path / "run"), per_device_train_batch_size=16, use_cpu=True, disable_tqdm=True, max_steps=2,
            save_strategy="steps", save_steps=1, save_total_limit=None, **changes,
        )  # fmt: skip
        return DEFENSES["ft"].trainer(load_dual_encoder(folder)[0], args, tiny_pairs, processor)

    unbroken = trainer()
    unbroken.train()
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-1"))
    for key, value in unbroken.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key
    at_last = embed_dataset(*load_dual_encoder(tmp_path / "run/checkpoint-2"), tiny_pairs)
    unbroken.save_model(str(tmp_path / "saved"))
    loaded = open_clip.create_model(f"local-dir:{tmp_path / 'saved'}").eval()
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    model = unbroken.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded.encode_image(pixels), model.get_image_features(pixels), rtol=0, atol=1e-6)
    kept = embed_dataset(model, processor, tiny_pairs)
    again = embed_dataset(*load_dual_encoder(tmp_path / "saved"), tiny_pairs)
    for modality in ("image", "text"):
        np.testing.assert_array_equal(again[modality], kept[modality])
        np.testing.assert_array_equal(at_last[modality], kept[modality])


@needs_open_clip
def test_a_text_tower_of_transformers_inside_open_clip_sees_its_own_padding(tiny_captions, tmp_path):
    import open_clip
    from transformers import XLMRobertaConfig

    inner = tiny_families.xlm_tokenizer(tiny_captions)
    sizes = {**tiny_families.TOWER, **tiny_families.special_ids(inner), "max_position_embeddings": 30}
    XLMRobertaConfig(**sizes).save_pretrained(tmp_path / "tower")
    text = {"hf_model_name": str(tmp_path / "tower"), "hf_proj_type": "mlp", "hf_pooler_type": "mean_pooler"}
    config = {**open_clip_families.description("vit", 1)["model_cfg"], "text_cfg": {**text, "context_length": 24}}
    given = {**config, "text_cfg": {**text, "context_length": 24, "hf_model_pretrained": False}}
    theirs = open_clip.CustomTextCLIP(**json.loads(json.dumps(given))).eval()
    model, processor = load_dual_encoder(write(tmp_path / "xlm", config, inner, theirs.state_dict()))
    texts = ["a boat", tiny_captions[0]]
    padded = inner(texts, padding="max_length", max_length=24, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        found = model.get_text_features(**TextInput.of(model, processor)(texts))
        torch.testing.assert_close(found, theirs.encode_text(padded), rtol=0, atol=1e-5)


@needs_open_clip
def test_texts_are_cleaned_as_open_clip_cleans_siglips(tokenizer, tmp_path):
    from open_clip.tokenizer import canonicalize_text

    config = open_clip_families.description("siglip", len(tokenizer))
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"clean": "canonicalize"}
    _, folder = theirs_and_folder("siglip", tokenizer, tmp_path / "theirs")
    (folder / OPEN_CLIP_CONFIG).write_text(json.dumps(config))
    _, processor = load_dual_encoder(folder)
    for text in ("A photo of a Red_Boat.", " the big, old  dog! "):
        assert processor.tokenizer(text)["input_ids"] == tokenizer(canonicalize_text(text))["input_ids"]
    processor.save_pretrained(folder)
    _, again = load_dual_encoder(folder)
    assert again.tokenizer("A Boat.")["input_ids"] == tokenizer("a boat")["input_ids"]


def openai_tokenizer():
    """Return OpenAI's tokenizer out of the file of merges that comes with open_clip."""
    import gzip

    from open_clip.tokenizer import bytes_to_unicode, default_bpe
    from transformers import CLIPTokenizer

    lines = gzip.open(default_bpe()).read().decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    merges = [tuple(line.split()) for line in lines]
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(one + "</w>" for one in letters), *map("".join, merges), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)


@needs_open_clip
@pytest.mark.slow
@pytest.mark.parametrize("name", ["RN50", "EVA02-B-16"])
def test_real_shapes_from_strings_and_pictures(name, tmp_path):
    """The shape of the detection paper's checkpoints and that of EVA-CLIP: open_clip's own tokenizer and transform."""
    import open_clip
    from open_clip.push_to_hf_hub import save_for_hf
    from open_clip.transform import PreprocessCfg, image_transform_v2

    torch.manual_seed(0)
    theirs = open_clip.create_model(name, load_weights=False).eval()
    save_for_hf(theirs, openai_tokenizer(), open_clip.get_model_config(name), tmp_path, safe_serialization=True)
    model, processor = load_dual_encoder(tmp_path)
    shades = np.random.default_rng(0).integers(0, 256, (13, 13, 3), dtype=np.uint8)
    pictures = [PIL.Image.fromarray(one).resize((260, 260)) for one in (shades, shades[::-1])]
    texts = ["A photo of a dog.", "two red  bananas on a table, under a lamp"]
    prepare = image_transform_v2(PreprocessCfg(**theirs.visual.preprocess_cfg), is_train=False)
    pixels = torch.from_numpy(np.stack([Canvas.of(processor).array(one) for one in pictures])).permute(0, 3, 1, 2)
    with torch.no_grad():
        ids, prepared = open_clip.get_tokenizer(name)(texts), torch.stack([prepare(one) for one in pictures])
        expected = theirs.encode_image(prepared, normalize=True), theirs.encode_text(ids, normalize=True)
        seen, tokens = normalize(pixels, *pixel_statistics(processor)), TextInput.of(model, processor)(texts)
        found = embed_pairs(model, seen, **tokens)
    for ours, others in zip(found, expected, strict=True):
        assert_equal_but_for_rounding(ours, others)
