# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Every family of dual encoders through one path: load, embed, train with each defence, save, load again."""

import copy
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import normalizers, processors

from hf_clipbd.data.canvas import Canvas, normalize, pixel_statistics
from hf_clipbd.defenses import DEFENSES
from hf_clipbd.evaluation import evaluate_zero_shot, text_classifier
from hf_clipbd.features import embed_dataset, embed_images, embed_pairs, embed_texts, logit_bias
from hf_clipbd.hub import render_model_card
from hf_clipbd.losses import image_text_loss, sigmoid_loss
from hf_clipbd.models import TextInput, load_dual_encoder
from hf_clipbd.models.open_clip import OPEN_CLIP_CONFIG
from hf_clipbd.recipe.embeddings import cached_embeddings
from hf_clipbd.recipe.sharded import processor_fingerprint
from tiny_families import FAMILIES, LENGTH, PATCH, SIZE, write


SIGLIPS = ("siglip", "siglip_2_fixed", "siglip_2", "open_clip_siglip")


@pytest.fixture(scope="module")
def folders(tiny_captions, tmp_path_factory):
    root = tmp_path_factory.mktemp("families")
    return {name: write(name, tiny_captions, root / name) for name in FAMILIES}


@pytest.fixture(params=FAMILIES)
def family(request, folders):
    return request.param, folders[request.param]


def seen(pixels, processor):
    """Return the pixels (N, H, W, 3) as the model sees them."""
    return normalize(torch.tensor(pixels).permute(0, 3, 1, 2), *pixel_statistics(processor))


def unit(output):
    x = output if torch.is_tensor(output) else output.pooler_output
    return x / x.norm(dim=-1, keepdim=True)


def test_embeddings_are_those_of_the_processor_and_the_model(family, tiny_captions):
    name, folder = family
    model, processor = load_dual_encoder(folder)
    assert not model.training and Canvas.of(processor).size == SIZE
    pixels = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
    inputs = processor.image_processor([PIL.Image.fromarray(one) for one in pixels], return_tensors="pt")
    texts = tiny_captions[:3]
    padding = {"padding": "max_length", "max_length": LENGTH} if name in SIGLIPS else {"padding": True}
    padding = {**padding, "truncation": True, "return_tensors": "pt"}
    tokens = processor.tokenizer(texts, return_attention_mask=name not in SIGLIPS, **padding)
    tokens = {key: value for key, value in tokens.items() if key != "token_type_ids"}
    with torch.no_grad():
        torch.testing.assert_close(
            embed_images(model, seen(pixels, processor)), unit(model.get_image_features(**inputs)), rtol=0, atol=1e-5
        )
        ours = TextInput.of(model, processor)(texts)
        torch.testing.assert_close(
            embed_texts(model, **ours), unit(model.get_text_features(**tokens)), rtol=0, atol=1e-5
        )
        images, captions = embed_pairs(model, seen(pixels, processor), **ours)
    torch.testing.assert_close(images, embed_images(model, seen(pixels, processor)).detach())
    torch.testing.assert_close(captions, embed_texts(model, **ours).detach())
    assert (logit_bias(model) is not None) == (name in SIGLIPS)


def test_a_text_has_the_same_vector_alone_and_beside_longer_ones(family, tiny_captions):
    model, processor = load_dual_encoder(family[1])
    tokenize = TextInput.of(model, processor)
    texts = ["a boat", tiny_captions[0], " ".join(tiny_captions)]
    assert tokenize(texts)["input_ids"].shape[1] == tokenize.max_length == LENGTH
    with torch.no_grad():
        together = embed_texts(model, **tokenize(texts))
        alone = torch.cat([embed_texts(model, **tokenize([text])) for text in texts])
    torch.testing.assert_close(together, alone, rtol=0, atol=2e-6)


# -- what tells its embeddings from others ----------------------------------------------------------------------------


def test_a_processor_is_known_by_all_it_does_and_not_by_its_last_call(family, tiny_captions):
    model, processor = load_dual_encoder(family[1])
    tokenizer, known = processor.tokenizer, processor_fingerprint(processor)
    TextInput.of(model, processor)(tiny_captions[:2])
    tokenizer(tiny_captions[:2], padding="max_length", truncation=True, max_length=5)
    assert processor_fingerprint(processor) == known == processor_fingerprint(load_dual_encoder(family[1])[1])
    seen = {known}
    processor.image_processor.do_normalize = False
    seen.add(processor_fingerprint(processor))
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(7)
    seen.add(processor_fingerprint(processor))
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("a", "b")
    seen.add(processor_fingerprint(processor))
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("$A $A", "$A $B", [])
    seen.add(processor_fingerprint(processor))
    assert len(seen) == 5


def test_nothing_kept_is_taken_for_what_another_tokenizer_or_processor_makes(folders, tiny_pairs, tmp_path):
    model, processor = load_dual_encoder(folders["siglip"])
    pairs = tiny_pairs.select(range(3))

    def results(cache):
        found = cached_embeddings(model, processor, pairs, cache / "rows")
        weights = text_classifier(model, processor, ["Banana", "Dog"], ["A {}"], cache=cache / "classes")
        return [np.array(found["image"]), np.array(found["text"]), weights.numpy()]

    right = results(tmp_path)
    processor.image_processor.do_normalize = False
    processor.tokenizer.backend_tokenizer.normalizer = normalizers.Replace("a", "A")
    wrong, alone = results(tmp_path), results(tmp_path / "empty")
    for one, other, fresh in zip(right, wrong, alone, strict=True):
        assert not np.array_equal(one, other) and np.array_equal(other, fresh)


# -- how a card says that it is called --------------------------------------------------------------------------------


def test_the_call_on_a_card_gives_the_models_own_embeddings(family, run, tmp_path, monkeypatch, capsys):
    name, folder = family
    stage = run / "defend" / "ft"
    (stage / "config.json").unlink()
    for config in ("config.json", OPEN_CLIP_CONFIG):
        if (folder / config).is_file():
            shutil.copy(folder / config, stage / config)
    text = render_model_card(run, "defend/ft", str(folder)).text
    block = re.search(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL).group(1)
    assert ("sigmoid()" in block, "softmax(-1)" in block) == (name in SIGLIPS, name not in SIGLIPS)
    assert ("pipeline(" in text) == (name != "vision_text" and not name.startswith("open_clip"))
    monkeypatch.chdir(tmp_path)
    PIL.Image.new("RGB", (SIZE, SIZE), "red").save("photo.png")
    if name == "siglip_2":  # whose processor goes by the published models' patches, not by its own settings
        block = block.replace("**padding)", f"patch_size={PATCH}, max_num_patches={(SIZE // PATCH) ** 2}, **padding)")
    names: dict = {}
    exec(compile(block, f"card of {name}", "exec"), names)
    assert "tensor([[" in capsys.readouterr().out
    model, processor, inputs = (names[one] for one in ("model", "processor", "inputs"))
    with torch.inference_mode():
        shown = model(**inputs).text_embeds
        ours = embed_texts(model, **TextInput.of(model, processor)(names["texts"]))
    torch.testing.assert_close(shown / shown.norm(dim=-1, keepdim=True), ours, rtol=0, atol=1e-5)


# -- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("defense", ["ft", "cleanclip", "cleanerclip"])  # the others: `test_two_processes_...`
def test_each_defence_trains_and_what_it_saves_loads_as_it_was(defense, family, tiny_pairs, tmp_path):
    model, processor = load_dual_encoder(family[1])
    before = embed_dataset(model, processor, tiny_pairs)
    args = DEFENSES[defense].config(
        output_dir=str(tmp_path),
        per_device_train_batch_size=16,
        max_steps=2,
        learning_rate=1e-2,
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        warmup_steps=0,
        **({"k_pairs": 16} if defense == "cleanerclip" else {}),
    )
    trainer = DEFENSES[defense].trainer(model, args, tiny_pairs, processor)
    trainer.train()
    assert all(math.isfinite(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry)
    trainer.save_model(str(tmp_path / "saved"))
    after = embed_dataset(model, processor, tiny_pairs)
    assert {len(after["image"]), len(after["text"])} == {len(tiny_pairs)}
    loaded, its_processor = load_dual_encoder(tmp_path / "saved")
    again = embed_dataset(loaded, its_processor, tiny_pairs)
    for modality in ("image", "text"):
        assert np.abs(after[modality] - before[modality]).max() > 1e-4
        np.testing.assert_array_equal(again[modality], after[modality])


def test_zero_shot_runs(family, tiny_pairs):
    model, processor = load_dual_encoder(family[1])
    rows = [{"image": row["image"], "label": number % 3} for number, row in enumerate(tiny_pairs)]
    report = evaluate_zero_shot(
        model, processor, rows, ks=(1, 3), class_names=["banana", "boat", "kite"], templates=["a {}"]
    )
    assert report.ba[3].value == 1.0 and report.ba[1].n == len(rows)


@pytest.mark.slow
def test_two_processes_train_as_one_and_save_what_loads(folders, forked, tmp_path):
    """Take every family through the defences on one process and on two, both started once.

    CleanerCLIP's loss has the terms of FT and CleanCLIP in it; `test_trainer.py` has every defence by itself.
    """
    script = Path(__file__).parent / "distributed/train_families.py"
    for world in (1, 2):
        out = tmp_path / str(world)
        out.mkdir()
        forked.run(script, out, *folders.values(), processes=world, log=tmp_path / f"{world}.log", timeout=500)
    trained = ("cleanerclip", "par", "roclip", "safeclip")
    for what in (f"{name}.{defense}" for name in folders for defense in trained):
        one, two = (load_file(tmp_path / f"{world}/{what}.safetensors") for world in (1, 2))
        assert max(one["gap"], two["gap"]) < 1e-14, what  # double precision; other batches round otherwise
        assert two["losses"].tolist() == pytest.approx(one["losses"].tolist(), rel=1e-8), what
        gradients = [key for key in one if key.startswith("grad.")]
        assert len(gradients) > 20 and "grad.logit_scale" in {key.replace("encoder.", "") for key in gradients}, what
        for key in gradients:
            gap = (two[key] - one[key]).norm() / max(one[key].norm().item(), 1e-6)
            assert gap < 1e-6, f"{what} {key}: relative gap {gap:.2e}"


def test_sigmoid_loss_equals_slow_loops():
    rng = np.random.default_rng(4)
    u, v = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in rng.normal(size=(2, 5, 3)))
    scale, bias, total = 7.3, -2.1, 0.0
    for i in range(5):
        for j in range(5):
            sign = 1 if i == j else -1
            total -= math.log(1 / (1 + math.exp(-sign * (scale * float(u[i] @ v[j]) + bias))))
    got = sigmoid_loss(torch.tensor(u), torch.tensor(v), scale, bias)
    assert got.item() == pytest.approx(total / 5, rel=1e-12)
    assert image_text_loss(torch.tensor(u), torch.tensor(v), scale, bias) == got


@pytest.mark.parametrize("name", ["siglip", "siglip_2"])
def test_siglip_is_trained_with_its_own_loss_and_keeps_its_scale(name, folders, tiny_pairs, tiny_captions, tmp_path):
    model, processor = load_dual_encoder(folders[name])
    inputs = TextInput.of(model, processor)(tiny_captions[:4])
    pixels = np.random.default_rng(1).integers(0, 256, (4, SIZE, SIZE, 3), dtype=np.uint8)
    images = processor.image_processor([PIL.Image.fromarray(one) for one in pixels], return_tensors="pt")
    with torch.no_grad():
        theirs = model(**images, **inputs, return_loss=True).loss
        ours = image_text_loss(
            *embed_pairs(model, seen(pixels, processor), **inputs), model.logit_scale.exp(), logit_bias(model)
        )
        model.logit_scale.fill_(5.0)
    torch.testing.assert_close(ours, theirs)
    args = DEFENSES["ft"].config(
        str(tmp_path), max_steps=1, per_device_train_batch_size=8, use_cpu=True, save_strategy="no", disable_tqdm=True
    )
    DEFENSES["ft"].trainer(model, args, tiny_pairs, processor).train()
    assert model.logit_scale.item() > math.log(100)


def test_canvas_frames_as_the_processor_does(family):
    """A wide picture: centre crop or squash, as the model's own processor does, apart from the way of resampling."""
    _, processor = load_dual_encoder(family[1])
    if family[0] == "siglip_2":
        pytest.skip("keeps the aspect ratio: a square canvas is ours")
    ramp = np.tile(np.linspace(0, 255, 4 * SIZE), (SIZE, 1))
    wide = PIL.Image.fromarray(np.stack([ramp] * 3, axis=-1).astype(np.uint8))
    theirs = processor.image_processor(wide, return_tensors="pt")["pixel_values"]
    ours = seen(Canvas.of(processor).array(wide)[None], processor)
    assert (theirs - ours).abs().max() < 0.2 < (theirs - theirs.flip(-1)).abs().max()


EVIL = """
import pathlib
from transformers import PretrainedConfig, PreTrainedModel
pathlib.Path({marker!r}).write_text("ran")
class EvilConfig(PretrainedConfig):
    model_type = "evil"
class EvilModel(PreTrainedModel):
    config_class = EvilConfig
"""


def test_no_code_of_a_repository_runs_unless_asked(folders, tmp_path):
    marker, folder = tmp_path / "ran", tmp_path / "evil"
    folder.mkdir()
    (folder / "modeling_evil.py").write_text(EVIL.format(marker=str(marker)))
    names = {"AutoConfig": "modeling_evil.EvilConfig", "AutoModel": "modeling_evil.EvilModel"}
    (folder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": names}))
    (folder / "model.safetensors").write_bytes((folders["clip"] / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match="Python code of its own"):
        load_dual_encoder(folder)
    assert not marker.exists()
    with pytest.raises((ValueError, TypeError, AttributeError, OSError, NotImplementedError)):
        load_dual_encoder(folder, trust_remote_code=True)  # runs it, and finds no dual encoder there
    assert marker.exists()


def test_a_text_tower_that_was_made_for_another_tokenizer_is_refused(tiny_captions):
    model, processor = FAMILIES["clip"](tiny_captions)
    assert len(TextInput.of(model, processor)(["a boat"])["input_ids"]) == 1
    config = copy.deepcopy(model.config)
    config.text_config.eos_token_id = 49407  # transformers' default
    with pytest.raises(ValueError, match=r"end token, \d+, but its `eos_token_id` is 49407: all texts"):
        TextInput.of(type(model)(config), processor)
    config.text_config.eos_token_id = 2  # of older checkpoints: the highest number
    TextInput.of(type(model)(config), processor)
    larger = copy.deepcopy(processor)
    larger.tokenizer.add_tokens(["zzz"])
    with pytest.raises(ValueError, match=f"at most {len(processor.tokenizer)} tokens.*has {len(larger.tokenizer)}"):
        TextInput.of(model, larger)
