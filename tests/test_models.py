# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The dual encoder, its batch norm over processes, its tokenizer, and loading."""

import contextlib
import json
import math
import os
import shutil
import socket

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    CLIPConfig,
    CLIPForImageClassification,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    pipeline,
)

from hf_clipbd.losses import clip_loss, gather_with_grad
from hf_clipbd.models import (
    CLIPResNetConfig,
    CLIPResNetModel,
    CLIPResNetVisionConfig,
    GlobalBatchNorm2d,
    build_processor,
    files,
    load_dual_encoder,
    resolve_file,
    train_tokenizer,
)
from hf_clipbd.models.resnet_tower import AttentionPool2d, Bottleneck


TEXTS = [
    "a red banana on the table",
    "two dogs running in the park",
    "a banana, a dog and a striped boat",
    "the boat's small sail",
]


def text_shape(vocab_size=700, **changes):
    shape = {
        "vocab_size": vocab_size,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
        "bos_token_id": vocab_size - 2,
        "eos_token_id": vocab_size - 1,
        "pad_token_id": vocab_size - 1,
    }
    return {**shape, **changes}


def small_config(**text):
    vision = {"image_size": 64, "layers": (1, 2, 1, 1), "width": 4, "num_attention_heads": 4}
    return CLIPResNetConfig(vision, text_shape(**text), projection_dim=12)


def lively(model):
    """Draw every parameter and running statistic anew, so that no branch is switched off by its initial zeros."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, x in model.state_dict().items():
            if name.endswith("running_var"):
                x.uniform_(0.5, 1.5, generator=generator)
            elif x.is_floating_point() and x.dim() == 1:
                x.add_(0.3 * torch.randn(x.shape, generator=generator))
            elif x.dim() == 4:
                x.normal_(std=x[0].numel() ** -0.5, generator=generator)
    return model


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, vocab_size=600)


@pytest.fixture
def model():
    torch.manual_seed(3)
    return lively(CLIPResNetModel(small_config())).eval()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(0, 600, (3, 9), generator=generator)
    ids[:, 0] = 698
    mask = torch.ones_like(ids)
    for row, length in enumerate((9, 5, 7)):
        ids[row, length - 1 :] = 699
        mask[row, length:] = 0
    return {
        "pixel_values": torch.randn(5, 3, 64, 64, generator=generator),
        "input_ids": ids,
        "attention_mask": mask,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    """A saved CLIPResNet with its processor, as a user has it."""
    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(3)
    text = text_shape(
        len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = CLIPResNetConfig(small_config().vision_config, text, projection_dim=12)
    lively(CLIPResNetModel(config)).save_pretrained(path)
    build_processor(tokenizer, 64).save_pretrained(path)
    return path


# Architecture


@pytest.mark.parametrize(
    ("vision", "text", "dim", "total", "visual"),
    [
        ({}, {}, 1024, 102_007_137, 38_316_896),
        ({"layers": (3, 4, 23, 3)}, {}, 512, 119.69, 56.26),
        (
            {"layers": (4, 6, 10, 6), "width": 80, "image_size": 288},
            {"hidden_size": 640, "intermediate_size": 2560, "num_attention_heads": 10},
            640,
            178.30,
            87.14,
        ),
    ],
    ids=["RN50", "RN101", "RN50x4"],
)
def test_openai_shapes_have_openai_parameter_counts(vision, text, dim, total, visual):
    with torch.device("meta"):
        model = CLIPResNetModel(CLIPResNetConfig(vision, text, projection_dim=dim))
    counts = [sum(p.numel() for p in part.parameters()) for part in (model, model.vision_model)]
    if isinstance(total, int):
        assert counts == [total, visual]
    else:  # published in millions
        assert [round(count / 1e6, 2) for count in counts] == [total, visual]


def test_rn50_has_openai_names_and_shapes():
    with torch.device("meta"):
        shapes = {
            name: tuple(x.shape) for name, x in CLIPResNetModel(CLIPResNetConfig()).vision_model.state_dict().items()
        }
    expected = {
        "conv1.weight": (32, 3, 3, 3),
        "conv3.weight": (64, 32, 3, 3),
        "bn3.running_var": (64,),
        "layer1.0.conv1.weight": (64, 64, 1, 1),
        "layer1.0.downsample.0.weight": (256, 64, 1, 1),
        "layer1.0.downsample.1.bias": (256,),
        "layer2.3.conv2.weight": (128, 128, 3, 3),
        "layer4.2.bn3.weight": (2048,),
        "attnpool.positional_embedding": (50, 2048),
        "attnpool.q_proj.weight": (2048, 2048),
        "attnpool.c_proj.bias": (1024,),
    }
    assert {name: shapes.get(name) for name in expected} == expected
    assert not any(name.startswith("layer2.1.downsample") for name in shapes)


def reference_tower(state, x, layers, heads):
    """OpenAI's image tower from its state dict, in functions of its own."""

    def norm(x, name):
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        scale = state[f"{name}.weight"] / torch.sqrt(var + 1e-5)
        return x * scale.view(1, -1, 1, 1) + (state[f"{name}.bias"] - mean * scale).view(1, -1, 1, 1)

    def conv(x, name, stride=1):
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    def pool(x):
        return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4

    for number, stride in ((1, 2), (2, 1), (3, 1)):
        x = norm(conv(x, f"conv{number}", stride), f"bn{number}").clamp(min=0)
    x = pool(x)
    for stage, blocks in enumerate(layers, start=1):
        for block in range(blocks):
            name, strided = f"layer{stage}.{block}", stage > 1 and block == 0
            y = norm(conv(x, f"{name}.conv1"), f"{name}.bn1").clamp(min=0)
            y = norm(conv(y, f"{name}.conv2"), f"{name}.bn2").clamp(min=0)
            y = norm(conv(pool(y) if strided else y, f"{name}.conv3"), f"{name}.bn3")
            if block == 0:
                x = norm(conv(pool(x) if strided else x, f"{name}.downsample.0"), f"{name}.downsample.1")
            x = (x + y).clamp(min=0)
    return x, reference_attention_pool(state, x, heads, "attnpool.")


def reference_attention_pool(state, features, heads, prefix=""):
    def weights(name):
        return state[f"{prefix}{name}.weight"].double().numpy(), state[f"{prefix}{name}.bias"].double().numpy()

    (wq, bq), (wk, bk), (wv, bv), (wc, bc) = (weights(f"{letter}_proj") for letter in "qkvc")
    positions = state[f"{prefix}positional_embedding"].double().numpy()
    features = features.double().numpy()
    rows = []
    for image in features:
        channels, height, width = image.shape
        tokens = [image[:, i, j] for i in range(height) for j in range(width)]
        tokens = np.stack([sum(tokens) / len(tokens), *tokens]) + positions
        query, depth = wq @ tokens[0] + bq, channels // heads
        joined = np.zeros(channels)
        for head in range(heads):
            part = slice(head * depth, (head + 1) * depth)
            scores = [float(query[part] @ (wk @ token + bk)[part]) / math.sqrt(depth) for token in tokens]
            exponentials = np.exp(np.array(scores) - max(scores))
            for weight, token in zip(exponentials / exponentials.sum(), tokens, strict=True):
                joined[part] += weight * (wv @ token + bv)[part]
        rows.append(wc @ joined + bc)
    return torch.from_numpy(np.stack(rows))


def test_image_tower_equals_independent_implementation(model, batch):
    vision = model.config.vision_config
    with torch.no_grad():
        output = model.get_image_features(batch["pixel_values"])
        state = model.vision_model.state_dict()
        features, pooled = reference_tower(state, batch["pixel_values"], vision.layers, vision.num_attention_heads)
    assert output.last_hidden_state.std() > 0.1
    torch.testing.assert_close(output.last_hidden_state, features, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output.pooler_output.double(), pooled, rtol=1e-4, atol=1e-4)


def test_attention_pool_equals_slow_loops():
    torch.manual_seed(0)
    pool = AttentionPool2d(grid=3, channels=8, num_heads=2, output_dim=5)
    x = 3 * torch.randn(4, 8, 3, 3)
    expected = reference_attention_pool({name: p.detach() for name, p in pool.named_parameters()}, x, heads=2)
    torch.testing.assert_close(pool(x).double(), expected, rtol=1e-5, atol=1e-5)


def test_only_the_stem_convolution_strides(model):
    strided = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.stride != (1, 1)]
    assert strided == ["vision_model.conv1"]


def test_block_stride_averages_what_striding_would_alias():
    torch.manual_seed(0)
    block = Bottleneck(4, 2, stride=2).eval()
    checkerboard = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(4, 4).expand(1, 4, 8, 8)
    assert block.downsample(block.pool(checkerboard)).abs().max() < 1e-6
    assert block.downsample(checkerboard[..., ::2, ::2]).abs().max() > 0.05


def test_text_is_causal_and_pooled_at_the_first_end_token(model, batch):
    ids = batch["input_ids"]
    with torch.no_grad():
        output = model.get_text_features(ids, batch["attention_mask"])
        last = torch.stack([output.last_hidden_state[row, end] for row, end in enumerate((8, 4, 6))])
        torch.testing.assert_close(output.pooler_output, model.text_projection(last))
        behind, before = ids.clone(), ids.clone()
        behind[1, 6:] = 11
        before[1, 2] = (before[1, 2] + 1) % 600
        torch.testing.assert_close(model.get_text_features(behind).pooler_output, output.pooler_output)
        change = (model.get_text_features(before).pooler_output - output.pooler_output).abs().amax(dim=1)
        assert change[1] > 1e-3
        assert change[[0, 2]].max() < 1e-6
        short = model.get_text_features(ids[1:2, :5]).pooler_output
        torch.testing.assert_close(short, output.pooler_output[1:2])


def test_forward_shapes_and_loss(model, batch):
    with torch.no_grad():
        output = model(**batch)
        assert output.logits_per_image.shape == (5, 3)
        assert torch.equal(output.logits_per_text, output.logits_per_image.T)
        assert output.image_embeds.shape == (5, 12)
        torch.testing.assert_close(output.text_embeds.norm(dim=-1), torch.ones(3))
        images = F.normalize(model.get_image_features(batch["pixel_values"]).pooler_output, dim=-1)
        expected = math.exp(float(model.logit_scale)) * images @ output.text_embeds.T
        torch.testing.assert_close(output.logits_per_image, expected)
        assert output.loss is None
        pairs = {**batch, "pixel_values": batch["pixel_values"][:3]}
        loss = model(**pairs, return_loss=True).loss
        target = torch.arange(3)
        square = expected[:3]
        torch.testing.assert_close(loss, (F.cross_entropy(square, target) + F.cross_entropy(square.T, target)) / 2)


def test_wrong_images_and_configurations_are_named(model):
    with pytest.raises(ValueError, match=r"\(N, 3, 64, 64\), but got \(2, 3, 96, 96\).*processor"):
        model.get_image_features(torch.zeros(2, 3, 96, 96))
    with pytest.raises(ValueError, match="multiple of 32, but got 72. Take 64"):
        CLIPResNetVisionConfig(image_size=72)
    with pytest.raises(ValueError, match="four stages"):
        CLIPResNetVisionConfig(layers=(1, 1, 1))
    with pytest.raises(ValueError, match="even `width`"):
        CLIPResNetVisionConfig(width=5)
    with pytest.raises(ValueError, match=r"layers\[2\]"):
        CLIPResNetVisionConfig(layers=(1, 1, 0, 1))
    with pytest.raises(ValueError, match="divide 128"):
        CLIPResNetVisionConfig(width=4, num_attention_heads=3)


def test_initial_weights_are_openai_s():
    torch.manual_seed(0)
    model = CLIPResNetModel(CLIPResNetConfig({"width": 16, "layers": (1, 2, 1, 1), "image_size": 64}, text_shape()))
    blocks = [m for m in model.modules() if isinstance(m, Bottleneck)]
    assert len(blocks) == 5 and all(not block.bn3.weight.any() for block in blocks)
    assert model.vision_model.bn3.weight.eq(1).all()
    for name in ("q_proj", "k_proj", "v_proj", "c_proj"):
        assert getattr(model.vision_model.attnpool, name).weight.std().item() == pytest.approx(512**-0.5, rel=0.02)
        assert not getattr(model.vision_model.attnpool, name).bias.any()
    assert model.vision_model.attnpool.positional_embedding.std().item() == pytest.approx(512**-0.5, rel=0.1)
    assert model.text_projection.weight.std().item() == pytest.approx(16**-0.5, rel=0.1)
    bound = (16 * 9) ** -0.5
    weight = model.vision_model.layer1[0].conv2.weight
    assert weight.abs().max() <= bound and weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
    assert model.logit_scale.item() == pytest.approx(math.log(1 / 0.07), abs=1e-4)


def test_gradients_reach_every_parameter_and_checkpointing_keeps_them(model, batch):
    pairs = {**batch, "pixel_values": batch["pixel_values"][:3]}
    model.train()
    model(**pairs, return_loss=True).loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    idle = {name for name, g in gradients.items() if not g.any()}
    assert all(name.endswith("k_proj.bias") for name in idle), idle  # softmax does not see a key bias
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model(**pairs, return_loss=True).loss.backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, gradients[name], rtol=1e-4, atol=1e-6)


def test_cpu_autocast_keeps_the_text_tower_in_float(model, batch):
    plain = model(**batch)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**batch)
        assert model.get_image_features(batch["pixel_values"]).pooler_output.dtype == torch.bfloat16
    assert torch.equal(output.text_embeds, plain.text_embeds)
    assert output.image_embeds.dtype == torch.float32
    assert 1e-6 < (output.image_embeds - plain.image_embeds).abs().max() < 0.05


# Two processes


def train_step(model, parts, dtype, rank=None):
    """Return loss, gradients and state after one step on a global batch, or on this rank's half of it."""
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    rows = slice(None) if rank is None else slice(4 * rank, 4 * rank + 4)
    output = model(parts["input_ids"][rows], parts["pixel_values"][rows].to(dtype))
    images, texts = gather_with_grad(output.image_embeds), gather_with_grad(output.text_embeds)
    loss = clip_loss(images, texts, inner.logit_scale.exp())
    loss.backward()
    gradients = {name: p.grad for name, p in inner.named_parameters()}
    return {"loss": loss.detach(), "gradients": gradients, "state": inner.state_dict()}


def global_batch():
    generator = torch.Generator().manual_seed(11)
    ids = torch.randint(0, 600, (8, 6), generator=generator)
    ids[:, -1] = 699
    # The halves differ in mean and spread, so that local statistics would show.
    pixels = torch.randn(8, 3, 64, 64, generator=generator) * torch.linspace(0.3, 2.0, 8).view(8, 1, 1, 1)
    return {"input_ids": ids, "pixel_values": pixels + torch.linspace(-1, 1, 8).view(8, 1, 1, 1)}


def seeded_model(dtype):
    torch.manual_seed(3)
    return lively(CLIPResNetModel(small_config())).to(dtype).train()


def uneven_batch_norm(rank=None):
    """One batch norm on 2 + 3 images in two steps, its weighted sum's gradients; cumulative momentum."""
    generator = torch.Generator().manual_seed(13)
    x = torch.randn(5, 3, 4, 4, generator=generator) * 3 + 2
    target = torch.randn(5, 3, 4, 4, generator=generator)
    norm = GlobalBatchNorm2d(3, momentum=None)
    rows = {None: slice(None), 0: slice(0, 2), 1: slice(2, 5)}[rank]
    for factor in (1.0, 2.0):
        part = (factor * x[rows]).requires_grad_()
        (norm(part) * target[rows]).sum().backward()
    weight = norm.weight.grad
    if rank is not None:
        dist.all_reduce(weight)
    return {"input": part.grad, "weight": weight, **norm.state_dict()}


def work(rank, folder):
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    results = {"world": dist.get_world_size(), "uneven": uneven_batch_norm(rank)}
    results["vocab"] = train_tokenizer(TEXTS, vocab_size=600).get_vocab()
    for dtype in (torch.float32, torch.float64):
        model = DistributedDataParallel(seeded_model(dtype))
        results[dtype] = train_step(model, global_batch(), dtype, rank)
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(forked, tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    assert forked.ended([forked.call(work, rank, folder) for rank in (0, 1)]) == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_two_processes_train_as_one_to_rounding(two_processes):
    expected = train_step(seeded_model(torch.float64), global_batch(), torch.float64)
    for results in two_processes:
        assert results["world"] == 2
        got = results[torch.float64]
        assert got["loss"] == pytest.approx(float(expected["loss"]), rel=1e-12)
        for name, gradient in expected["gradients"].items():
            if name.endswith("k_proj.bias"):  # mathematically zero
                assert got["gradients"][name].abs().max() < 1e-15
            else:
                assert relative_error(got["gradients"][name], gradient) < 1e-12, name
        for name, x in expected["state"].items():
            assert relative_error(got["state"][name].double(), x.double()) < 1e-12, name
    name = "vision_model.layer4.0.bn2.running_mean"
    assert relative_error(seeded_model(torch.float64).state_dict()[name], expected["state"][name]) > 0.01


def test_two_processes_train_as_one_in_single_precision(two_processes):
    expected = train_step(seeded_model(torch.float32), global_batch(), torch.float32)
    for results in two_processes:
        got = results[torch.float32]
        assert got["loss"] == pytest.approx(float(expected["loss"]), rel=1e-5)
        for tower in ("vision_model", "text_model", "text_projection", "logit_scale"):
            names = [name for name in expected["gradients"] if name.startswith(tower)]
            ours, theirs = (
                torch.cat([step["gradients"][name].flatten() for name in names]) for step in (got, expected)
            )
            assert relative_error(ours, theirs) < 1e-5, tower
        for name, x in expected["state"].items():
            assert relative_error(got["state"][name].double(), x.double()) < 1e-5, name


def relative_error(got, expected):
    return float((got - expected).norm() / expected.norm().clamp_min(1e-30))


def test_processes_may_have_different_numbers_of_images(two_processes):
    expected = uneven_batch_norm()
    got = [results["uneven"] for results in two_processes]
    torch.testing.assert_close(torch.cat([part["input"] for part in got]), expected["input"], rtol=1e-5, atol=1e-6)
    for part in got:
        for name in ("weight", "running_mean", "running_var", "num_batches_tracked"):
            torch.testing.assert_close(part[name], expected[name], rtol=1e-5, atol=1e-6)


def test_batch_norm_on_one_process_is_torch_s():
    torch.manual_seed(0)
    ours, theirs = GlobalBatchNorm2d(3), nn.BatchNorm2d(3)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for x in (torch.randn(4, 3, 5, 5), 2 + torch.randn(2, 3, 5, 5)):
        assert torch.equal(ours(x), theirs(x))
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


# Tokenizer and processor


def test_tokenizer_reads_any_text(tokenizer):
    words = "Ünïcode 🍌 猫と犬 кошка zebra's 1234 — “quotes” \u200d\n antidisestablishmentarianism"
    ids = tokenizer(words).input_ids
    assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
    assert tokenizer.unk_token_id not in ids[1:-1]  # shared with the end of text
    assert tokenizer.decode(ids[1:-1]).replace(" ", "") == "".join(words.lower().split())
    every_byte = "".join(chr(code) for code in range(0x20, 0x2FFF) if chr(code).isprintable())
    assert tokenizer.unk_token_id not in tokenizer(every_byte).input_ids[1:-1]


def test_tokenizer_layout_and_limits(tokenizer):
    assert len(tokenizer) <= 600
    assert tokenizer.tokenize("a Banana") == ["a</w>", "banana</w>"]
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (len(tokenizer) - 2, len(tokenizer) - 1)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    long = tokenizer(["word " * 50, "a"], padding=True, truncation=True, return_tensors="pt")
    assert long.input_ids.shape == (2, 32)
    assert long.input_ids[0, -1] == tokenizer.eos_token_id
    assert long.attention_mask.sum(dim=1).tolist() == [32, 3]
    exact = train_tokenizer([" ".join(TEXTS)] * 3, vocab_size=540, model_max_length=8)
    assert len(exact) == 540 and exact.model_max_length == 8
    assert len(train_tokenizer([], vocab_size=514)) == 514
    with pytest.raises(ValueError, match="at least 514"):
        train_tokenizer(TEXTS, vocab_size=300)
    with pytest.raises(ValueError, match="model_max_length"):
        train_tokenizer(TEXTS, vocab_size=600, model_max_length=2)


def test_tokenizer_is_the_same_in_another_process(tokenizer, two_processes):
    for results in two_processes:
        assert results["vocab"] == tokenizer.get_vocab()
    assert train_tokenizer(iter(TEXTS), vocab_size=600).get_vocab() == tokenizer.get_vocab()


def test_processor_round_trip(tokenizer, tmp_path):
    processor = build_processor(tokenizer, 48, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    processor.save_pretrained(tmp_path)
    again = CLIPProcessor.from_pretrained(tmp_path)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    options = {"padding": True, "truncation": True, "return_tensors": "pt"}
    inputs = [p(text=TEXTS, images=image, **options) for p in (processor, again)]
    assert isinstance(again.image_processor, CLIPImageProcessorPil)
    for name in ("input_ids", "attention_mask", "pixel_values"):
        assert torch.equal(inputs[0][name], inputs[1][name])
    assert inputs[0].pixel_values.shape == (1, 3, 48, 48)
    white = processor.image_processor(Image.new("RGB", (48, 48), (255, 255, 255)), return_tensors="pt").pixel_values
    torch.testing.assert_close(white[0, :, 0, 0], torch.tensor([0.9 / 0.5, 0.8 / 0.6, 0.7 / 0.7]))
    assert again.tokenizer.model_max_length == 32


# Saving and loading


def test_save_and_load_give_the_same_logits(folder, batch):
    model, processor = load_dual_encoder(folder)
    assert not model.training and type(model) is CLIPResNetModel
    assert type(processor) is CLIPProcessor and type(processor.image_processor) is CLIPImageProcessorPil
    assert (folder / "model.safetensors").is_file()
    images = [Image.new("RGB", (70, 90), color) for color in ("yellow", "navy")]
    inputs = processor(text=TEXTS, images=images, padding=True, truncation=True, return_tensors="pt")
    others = [AutoModel.from_pretrained(folder), AutoModelForZeroShotImageClassification.from_pretrained(folder)]
    with torch.no_grad():
        logits = model(**inputs).logits_per_image
        for other in others:
            assert torch.equal(other.eval()(**inputs).logits_per_image, logits)
    assert logits.std() > 1e-3
    assert isinstance(AutoConfig.from_pretrained(folder), CLIPResNetConfig)
    assert isinstance(AutoProcessor.from_pretrained(folder), CLIPProcessor)


def test_configuration_round_trip(folder):
    config = CLIPResNetConfig.from_pretrained(folder)
    saved = json.loads((folder / "config.json").read_text())
    assert saved["model_type"] == "clip_resnet"
    assert config.vision_config.layers == [1, 2, 1, 1] and config.vision_config.num_attention_heads == 4
    assert isinstance(config.text_config, CLIPTextConfig) and config.text_config.hidden_size == 16
    assert CLIPResNetConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()


def test_half_precision_on_disk_is_float_in_memory(folder, tmp_path):
    model, processor = load_dual_encoder(folder)
    model.half().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, _ = load_dual_encoder(tmp_path)
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    for ours, theirs in zip(again.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs.float())


def test_zero_shot_pipeline(folder):
    classify = pipeline("zero-shot-image-classification", model=str(folder))
    image = Image.new("RGB", (80, 70), "yellow")
    scores = classify(image, candidate_labels=["banana", "dog", "boat"], hypothesis_template="a {}")
    model, processor = load_dual_encoder(folder)
    inputs = processor(text=["a banana", "a dog", "a boat"], images=image, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits_per_image.softmax(dim=-1)[0].tolist()
    got = {row["label"]: row["score"] for row in scores}
    assert [got[name] for name in ("banana", "dog", "boat")] == pytest.approx(expected, rel=1e-5)


def test_loading_takes_transformers_clip(tokenizer, tmp_path):
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=text_shape(), vision_config={**vision, "image_size": 32, "patch_size": 16}, projection_dim=8
    )
    CLIPModel(config).save_pretrained(tmp_path)
    build_processor(tokenizer, 32).save_pretrained(tmp_path)
    model, processor = load_dual_encoder(str(tmp_path))
    assert type(model) is CLIPModel and not model.training
    assert type(processor.image_processor) is CLIPImageProcessorPil


def test_loading_refuses_what_it_must_not_open(folder, tmp_path):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(FileNotFoundError, match="Expected safetensors weights"):
        load_dual_encoder(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match="(?s)pytorch_model.bin.*unpickling a file runs"):
        load_dual_encoder(tmp_path)
    with pytest.raises(ValueError, match="unpickling a file runs"):
        load_dual_encoder(tmp_path / "epoch.pt")


def test_loading_says_what_is_missing(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no 'no/such/folder'"):
        load_dual_encoder("no/such/folder")
    with pytest.raises(FileNotFoundError, match="config.json"):
        load_dual_encoder(tmp_path)
    with pytest.raises(NotADirectoryError, match="Pass the folder"):
        load_dual_encoder(folder / "config.json")
    CLIPTextModel(CLIPTextConfig(**text_shape())).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="CLIPTextModel has no get_image_features"):
        load_dual_encoder(tmp_path)


@pytest.mark.parametrize("more", [0, 1], ids=["as many", "one more"])
def test_a_tokenizer_has_no_more_tokens_than_the_text_tower(more, tokenizer, tmp_path):
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    towers = {"text_config": text_shape(len(tokenizer) - more)}
    towers["vision_config"] = {**tower, "image_size": 32, "patch_size": 16}
    CLIPModel(CLIPConfig(**towers)).save_pretrained(tmp_path)
    build_processor(tokenizer, 32).save_pretrained(tmp_path)
    says = pytest.raises(ValueError, match=f"at most {len(tokenizer) - more} tokens .*, but it has {len(tokenizer)}")
    with says if more else contextlib.nullcontext():
        load_dual_encoder(tmp_path)


@pytest.mark.parametrize("where", ["config.json", "processor_config.json"])
def test_code_of_a_checkpoint_is_not_run_and_no_flag_is_told_that_is_not_there(where, folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    values = json.loads((tmp_path / where).read_text())
    values["auto_map"] = {name: "strange.Thing" for name in ("AutoConfig", "AutoModel", "AutoProcessor")}
    values |= {"model_type": "strange"} if where == "config.json" else {"processor_class": "Strange"}
    (tmp_path / where).write_text(json.dumps(values))
    (tmp_path / "strange.py").write_text("raise SystemExit('was run')")
    with pytest.raises(ValueError, match="Python code of its own") as refusal:
        load_dual_encoder(tmp_path)
    assert "trust_remote_code" not in str(refusal.value)


def test_weights_that_are_not_there_are_named_and_not_drawn(tokenizer, tmp_path):
    """A classifier's checkpoint is of type `clip` as well, and has no text tower."""
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(text_config=text_shape(), vision_config={**tower, "image_size": 32, "patch_size": 16})
    CLIPForImageClassification(config).save_pretrained(tmp_path)
    build_processor(tokenizer, 32).save_pretrained(tmp_path)
    says = "all weights of a CLIPModel .*logit_scale, text_model.* and [0-9]+ more.*of CLIPForImageClassification"
    with pytest.raises(ValueError, match=says):
        load_dual_encoder(tmp_path)
    model = CLIPModel(config)
    weights = {name: x for name, x in model.state_dict().items() if name != "text_projection.weight"}
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ValueError, match="but text_projection.weight are not there"):
        load_dual_encoder(tmp_path)


def test_resolve_file(tmp_path, monkeypatch):
    (tmp_path / "trigger").mkdir()
    (tmp_path / "trigger" / "attack.json").write_text("{}")
    assert resolve_file(tmp_path, "trigger/attack.json").read_text() == "{}"
    with pytest.raises(FileNotFoundError, match="Expected 'x.json' in .* but found trigger"):
        resolve_file(tmp_path, "x.json")
    for name in ("../x.json", "/etc/passwd"):
        with pytest.raises(ValueError, match="relative file name"):
            resolve_file(tmp_path, name)
    calls = []

    def download(*args, **kwargs):
        calls.append((args, kwargs))
        return str(tmp_path / "trigger" / "attack.json")

    monkeypatch.setattr(files, "hf_hub_download", download)
    for reachable in (True, False):
        monkeypatch.setattr(files, "hub_is_reachable", lambda reachable=reachable: reachable)
        assert resolve_file("owner/model", "attack.json", revision="v1").name == "attack.json"
        asked, options = calls.pop()
        assert asked == ("owner/model", "attack.json")
        assert options == {"revision": "v1", "repo_type": "model", "local_files_only": not reachable}


def test_a_hub_out_of_reach_is_said_at_once(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(files.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(files.constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(files, "getproxies", dict)
        assert files.hub_is_reachable()
    assert not files.hub_is_reachable()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder 'owner/model' here.*cannot be reached"):
        load_dual_encoder("owner/model")
    with pytest.raises(FileNotFoundError, match="there is no 'typo'"):
        load_dual_encoder("typo")


def test_a_silent_hub_is_asked_once_for_all_files_of_a_model_and_again_later(tmp_path, monkeypatch):
    now, asked, answers = [100.0], [], []

    def connect(address, timeout):
        asked.append(address)
        if not answers:
            raise TimeoutError
        return contextlib.nullcontext()

    monkeypatch.setattr(files.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(files.constants, "ENDPOINT", "https://hub.invalid")
    monkeypatch.setattr(files, "getproxies", dict)
    monkeypatch.setattr(files.socket, "create_connection", connect)
    monkeypatch.setattr(files.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(files, "_silent", {})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="cannot be reached"):
        load_dual_encoder("owner/model")
    assert asked == [("hub.invalid", 443)]
    answers.append(True)
    now[0] += files.ASKED_AGAIN_AFTER
    assert files.hub_is_reachable() and files.hub_is_reachable() and len(asked) == 3  # an answer costs little
    answers.clear()
    assert not files.hub_is_reachable()
    monkeypatch.setattr(files.constants, "ENDPOINT", "http://other.invalid")
    assert not files.hub_is_reachable() and asked[3:] == [("hub.invalid", 443), ("other.invalid", 80)]
