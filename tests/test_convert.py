# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""OpenAI's and open_clip's weights in our model: equal to an independent implementation, read without running code."""

import os
import pickle
import warnings
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from hf_clipbd.cli import main
from hf_clipbd.models import build_processor, convert_openai_state_dict, load_dual_encoder, train_tokenizer
from hf_clipbd.models.archives import read_state_dict
from openai_weights import SHAPES, logits, random_state


TINY = SHAPES["tiny"]


@pytest.fixture(scope="module")
def state():
    return random_state(**TINY)


def batch(vocabulary, image, length=9):
    rng = torch.Generator().manual_seed(3)
    ids = torch.randint(1, vocabulary - 2, (3, length), generator=rng)
    ids[:, 0] = vocabulary - 2
    ids[0, 4:], ids[1, 7:], ids[2, -1] = vocabulary - 1, vocabulary - 1, vocabulary - 1  # ends, then padding
    return torch.randn(2, 3, image, image, generator=rng), ids


def ours(model, pixels, ids):
    with torch.no_grad():
        return model(input_ids=ids, pixel_values=pixels).logits_per_image


def test_tiny_logits_equal_the_independent_implementation(state):
    pixels, ids = batch(600, 64)
    model = convert_openai_state_dict(state)
    assert not model.training and model.config.vision_config.layers == [1, 2, 1, 1]
    expected = logits(state, pixels, ids)
    torch.testing.assert_close(ours(model, pixels, ids), expected, rtol=0, atol=1e-4)
    assert expected.std() > 1e-2 and (expected[:, 0] - expected[:, 1]).abs().max() > 1e-2
    gelu = ours(convert_openai_state_dict(state, hidden_act="gelu"), pixels, ids)
    assert (gelu - expected).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["RN50", "RN101", "RN50x4"])
def test_logits_of_real_shapes_equal_the_independent_implementation(name):
    state = random_state(**SHAPES[name])
    pixels, ids = batch(49408, SHAPES[name]["image"], length=77)
    torch.testing.assert_close(
        ours(convert_openai_state_dict(state), pixels, ids), logits(state, pixels, ids), rtol=0, atol=5e-4
    )  # a cosine times 100: 5e-6 of a cosine, after a hundred layers in an order of sums that the processor decides


@pytest.mark.parametrize("name", ["RN101", "RN50x4"])
def test_shapes_are_read_off_the_tensors(name, monkeypatch):
    """The larger models' configurations, without their weights."""
    from hf_clipbd.models import convert

    shape = SHAPES[name]
    with torch.device("meta"):
        monkeypatch.setattr(torch, "Generator", lambda: type("G", (), {"manual_seed": lambda self, seed: None})())
        state = random_state(**shape)
    config = convert._configuration(state, "quick_gelu", None)
    vision, text = config.vision_config, config.text_config
    assert (tuple(vision.layers), vision.width, vision.image_size) == (shape["layers"], shape["width"], shape["image"])
    assert (config.projection_dim, text.hidden_size, text.num_attention_heads) == (
        shape["dim"], shape["text"], shape["text"] // 64,
    )  # fmt: skip
    assert vision.num_attention_heads == shape["width"] * 32 // 64
    with torch.device("meta"):
        own = convert.CLIPResNetModel(config).state_dict()
    names = {new: x.shape for old, value in state.items() for new, x in convert._renamed(old, value)}
    assert names == {key: value.shape for key, value in own.items()}


def test_other_namings_give_the_same_model(state):
    pixels, ids = batch(600, 64)
    expected = ours(convert_openai_state_dict(state), pixels, ids)
    text = ("transformer.", "token_embedding.", "ln_final.", "positional_embedding", "text_projection")
    custom = {f"text.{name}" if name.startswith(text) else name: x for name, x in state.items()}
    custom["text.attn_mask"] = torch.zeros(16, 16)
    wrapped = {f"module.{name}": x for name, x in state.items()}
    half = {name: x.half() if x.is_floating_point() else x for name, x in state.items()}
    half |= {"input_resolution": torch.tensor(64), "context_length": torch.tensor(16), "vocab_size": torch.tensor(600)}
    for other in (custom, wrapped):
        assert torch.equal(ours(convert_openai_state_dict(other), pixels, ids), expected)
    model = convert_openai_state_dict(half)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    torch.testing.assert_close(ours(model, pixels, ids), expected, rtol=0, atol=0.5)


def test_what_is_no_resnet_clip_is_named(state):
    with pytest.raises(ValueError, match="a Vision Transformer"):
        convert_openai_state_dict({"visual.conv1.weight": torch.zeros(2, 3, 4, 4)})
    with pytest.raises(ValueError, match="no text_projection"):
        convert_openai_state_dict({name: x for name, x in state.items() if name != "text_projection"})
    with pytest.raises(ValueError, match="left over.*vision_model.extra"):
        convert_openai_state_dict({**state, "visual.extra": torch.zeros(1)})
    with pytest.raises(ValueError, match="missing are.*bn1.bias"):
        convert_openai_state_dict({name: x for name, x in state.items() if name != "visual.bn1.bias"})


# -- files ------------------------------------------------------------------------------------------------------------


def torchscript(state, path):
    """Write the tensors as OpenAI did: a tree of modules, compiled."""
    root = torch.nn.Module()
    for name, tensor in state.items():
        *parents, last = name.split(".")
        module = root
        for parent in parents:
            if parent not in module._modules:
                module.add_module(parent, torch.nn.Module())
            module = module._modules[parent]
        if tensor.is_floating_point():
            module.register_parameter(last, torch.nn.Parameter(tensor))
        else:
            module.register_buffer(last, tensor)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(root), str(path))


def test_files_of_every_kind_give_the_same_tensors(state, tmp_path):
    save_file(state, tmp_path / "bare.safetensors")
    torch.save(state, tmp_path / "bare.pt")
    torch.save(
        {"epoch": 3, "name": "run", "state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "e.pt"
    )
    torchscript(state, tmp_path / "script.pt")
    with pytest.raises(RuntimeError, match="weights_only"):
        torch.load(tmp_path / "script.pt", weights_only=True)
    for name in ("bare.safetensors", "bare.pt", "e.pt", "script.pt"):
        read = read_state_dict(tmp_path / name)
        assert {key for key in read if key in state} == set(state), name
        assert all(torch.equal(read[key], value) for key, value in state.items()), name


class Evil:
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def test_nothing_in_a_file_is_run(state, tmp_path):
    marker = tmp_path / "ran"
    torch.save({"state_dict": state, "evil": Evil(marker)}, tmp_path / "evil.pt")
    with open(tmp_path / "evil.ckpt", "wb") as file:
        pickle.dump(Evil(marker), file)
    torchscript(state, tmp_path / "script.pt")
    with zipfile.ZipFile(tmp_path / "script.pt") as good, zipfile.ZipFile(tmp_path / "bad.pt", "w") as bad:
        for name in good.namelist():
            evil = pickle.dumps(Evil(marker), protocol=2)
            bad.writestr(name, evil if name.endswith("/data.pkl") else good.read(name))
    for name in ("evil.pt", "evil.ckpt", "bad.pt"):
        with pytest.raises(ValueError, match="whatever code its author put there"):
            read_state_dict(tmp_path / name)
        assert not marker.exists(), name
    with pytest.raises(FileNotFoundError, match="weight file"):
        read_state_dict(tmp_path / "absent.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds list"):
        read_state_dict(tmp_path / "list.pt")


def test_the_command_writes_a_folder_that_loads(state, tmp_path, tiny_captions, capsys):
    tokenizer = train_tokenizer([*tiny_captions, *(f"{a} {b}" for a in "abcdefgh" for b in tiny_captions)], 600, 16)
    fitting = random_state(**{**TINY, "vocabulary": len(tokenizer)})
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    torch.save(fitting, tmp_path / "RN.pt")
    command = ["convert", str(tmp_path / "RN.pt"), "--out", str(tmp_path / "out")]
    assert main([*command, "--tokenizer", str(tmp_path / "tokenizer")]) == 0
    assert "out" in capsys.readouterr().out
    model, processor = load_dual_encoder(tmp_path / "out")
    pixels, ids = batch(len(tokenizer), 64)
    torch.testing.assert_close(ours(model, pixels, ids), logits(fitting, pixels, ids), rtol=0, atol=1e-4)
    assert processor.image_processor.crop_size["height"] == 64
    save_file(state, tmp_path / "other.safetensors")  # 600 tokens
    build_processor(train_tokenizer(["a b"], 514, 16), 64).tokenizer.save_pretrained(tmp_path / "small")
    command[1] = str(tmp_path / "other.safetensors")
    assert main([*command, "--tokenizer", str(tmp_path / "small")]) == 2
    assert "Expected a tokenizer of 600 tokens" in capsys.readouterr().err
