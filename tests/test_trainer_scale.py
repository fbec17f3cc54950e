# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Carrying a training out: chunks, accumulation, half precision, adapters, streams, resuming, stopping, trackers."""

import copy
import itertools
import logging
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPConfig, CLIPModel, TrainerCallback
from transformers.integrations import integration_utils

import tiny_families
from hf_clipbd import features
from hf_clipbd.data.canvas import Canvas
from hf_clipbd.data.pairs import PLAIN_VIEWS, same_caption
from hf_clipbd.data.stream import PairStream
from hf_clipbd.defenses import DEFENSES
from hf_clipbd.models import load_dual_encoder
from hf_clipbd.models.text_input import model_type
from hf_clipbd.trainer import CLIPTrainingConfig
from hf_clipbd.training import stopping
from hf_clipbd.training.checks import check_scale
from hf_clipbd.training.chunks import encode_in_chunks
from hf_clipbd.training.guard import FiniteGuard, NonFiniteLossError
from hf_clipbd.training.settings import training_settings
from hf_clipbd.training.sharding import prepare_for_fsdp, separate_scalars


CONFIGS = Path(__file__).resolve().parents[1] / "recipes" / "accelerate"
CONTRASTED = ("ft", "cleanclip", "cleanerclip")
OPEN_CLIP = [name for name in tiny_families.FAMILIES if name.startswith("open_clip_vit")]
SMALL = {
    "cleanerclip": {"k_pairs": 8},
    "roclip": {"pool_size": 20, "match_every": 2, "match_unit": "step"},
    "safeclip": {"warmup_epochs": 0, "safe_probability": 0.6},
}


@pytest.fixture(scope="session")
def _untouched_vit(tiny_processor):
    tokenizer = tiny_processor.tokenizer
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        **tower,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {**tower, "image_size": 32, "patch_size": 16}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()


@pytest.fixture
def tiny_vit(_untouched_vit):
    """Return a random CLIPModel of transformers, with a Vision Transformer, of its own for each test."""
    return copy.deepcopy(_untouched_vit)


@pytest.fixture(params=["resnet", "vit"])
def either_model(request, tiny_model, tiny_vit):
    return tiny_model if request.param == "resnet" else tiny_vit


class FirstGradients(TrainerCallback):
    """Keeps the gradients of the first step, as the optimiser is about to see them."""

    def __init__(self):
        self.gradients = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if not self.gradients:
            self.gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def build(model, processor, pairs, folder, defense="ft", evaluator=None, callbacks=None, **changes):
    defaults = dict(
        per_device_train_batch_size=8,
        num_train_epochs=1,
        learning_rate=1e-3,
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        logging_strategy="steps",
        logging_steps=1,
        warmup_steps=0,
        **SMALL.get(defense, {}),
    )
    args = DEFENSES[defense].config(output_dir=str(folder), **{**defaults, **changes})
    trainer = DEFENSES[defense].trainer
    return trainer(model, args, pairs, processor, evaluator=evaluator, canvas=Canvas(32), callbacks=callbacks)


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def run(model, processor, pairs, folder, **changes):
    """Return the losses, first gradients and last parameters of a training."""
    recorder = FirstGradients()
    trainer = build(model, processor, pairs, folder, callbacks=[recorder], **changes)
    trainer.train()
    return losses(trainer), recorder.gradients, trainer.model.state_dict()


def assert_same(one, other, tolerance):
    losses_one, gradients_one, last_one = one
    losses_other, gradients_other, last_other = other
    assert losses_one == pytest.approx(losses_other, rel=tolerance)
    assert set(gradients_one) == set(gradients_other) and len(gradients_one) > 20
    for name, expected in gradients_one.items():
        gap = (gradients_other[name] - expected).norm() / max(expected.norm().item(), 1e-6)
        assert gap < tolerance, f"{name}: relative gap {gap:.2e}"
    assert all(torch.allclose(last_other[name], value, atol=1e-6) for name, value in last_one.items())


# -- chunks and accumulation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("defense", [*CONTRASTED, "par", "roclip", "safeclip"])
@pytest.mark.parametrize("chunk_size", [1, 3])
def test_chunks_give_the_whole_batch_loss_and_gradient(
    defense, chunk_size, either_model, tiny_processor, tiny_pairs, tmp_path
):
    settings = dict(defense=defense, freeze_batch_norm=True, max_steps=3, max_grad_norm=0.0)
    models = either_model.double(), copy.deepcopy(either_model).double()
    whole = run(models[0], tiny_processor, tiny_pairs, tmp_path, **settings)
    chunked = run(models[1], tiny_processor, tiny_pairs, tmp_path, chunk_size=chunk_size, **settings)
    assert_same(whole, chunked, 1e-9)


def test_the_towers_never_see_more_than_a_chunk(tiny_vit, tiny_processor, tiny_pairs, tmp_path):
    seen = []
    tiny_vit.vision_model.register_forward_hook(lambda module, inputs, output: seen.append(len(output[0])))
    run(tiny_vit, tiny_processor, tiny_pairs, tmp_path, defense="cleanclip", chunk_size=3, max_steps=1)
    assert sorted(seen) == [4, 4, 6, 6, 6, 6]  # two views of 3 + 3 + 2 pairs, once forward and once backward


def test_chunks_draw_dropout_alike_in_both_passes():
    rows, dropped = torch.randn(5, 4), nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5))

    def gradient(embed):
        torch.manual_seed(3)
        dropped.zero_grad()
        embed().square().sum().backward()
        return dropped[0].weight.grad.clone()

    expected = gradient(lambda: torch.cat([dropped(part) for part in rows.split(2)]))
    encode = lambda model, inputs: (model(inputs["x"]),)  # noqa: E731
    got = gradient(lambda: encode_in_chunks(encode, dropped, {"x": rows}, 2)[0])
    assert torch.equal(got, expected)


def test_chunks_are_refused_with_batch_statistics(tiny_model, tiny_processor, tiny_pairs, tmp_path):
    with pytest.raises(ValueError, match="freeze_batch_norm"):
        build(tiny_model, tiny_processor, tiny_pairs, tmp_path, chunk_size=4)


def test_frozen_batch_norm_keeps_its_statistics(tiny_model, tiny_processor, tiny_pairs, tmp_path):
    before = copy.deepcopy(tiny_model.state_dict())
    run(tiny_model, tiny_processor, tiny_pairs, tmp_path, freeze_batch_norm=True, max_steps=2)
    after = tiny_model.state_dict()
    statistics = [name for name in before if "running_" in name or "num_batches" in name]
    assert len(statistics) > 10 and all(torch.equal(before[name], after[name]) for name in statistics)
    assert not torch.equal(before["vision_model.conv1.weight"], after["vision_model.conv1.weight"])


def test_accumulation_averages_batches_and_adds_no_negatives(tiny_vit, tiny_processor, tiny_pairs, tmp_path, caplog):
    model = tiny_vit.double()
    trainer = build(copy.deepcopy(model), tiny_processor, tiny_pairs, tmp_path)
    batches = list(itertools.islice(trainer.get_train_dataloader(), 2))
    loss = sum(trainer.compute_loss(trainer.model, batch) for batch in batches) / 2
    loss.backward()
    expected = {name: p.grad for name, p in trainer.model.named_parameters()}
    settings = dict(max_steps=1, max_grad_norm=0.0)
    with caplog.at_level(logging.WARNING, "hf_clipbd"):
        got = run(
            copy.deepcopy(model), tiny_processor, tiny_pairs, tmp_path, gradient_accumulation_steps=2, **settings
        )
    assert "7 others of its own global batch" in caplog.text and "chunk_size" in caplog.text
    assert got[0][0] == pytest.approx(loss.item(), rel=1e-6)
    assert all(torch.allclose(got[1][name], value, rtol=1e-7, atol=1e-12) for name, value in expected.items())
    large = run(model, tiny_processor, tiny_pairs, tmp_path, per_device_train_batch_size=16, **settings)
    assert large[0][0] > got[0][0] + 0.3  # about log 2: twice the negatives


# -- precision, compilation, checkpointing ----------------------------------------------------------------------------


def test_bf16_towers_and_a_float_loss(tiny_vit, tiny_processor, tiny_pairs, tmp_path):
    exact = run(copy.deepcopy(tiny_vit), tiny_processor, tiny_pairs, tmp_path, max_steps=2)
    types = []
    projection = tiny_vit.vision_model.encoder.layers[0].mlp.fc1
    projection.register_forward_hook(lambda module, inputs, output: types.append(output.dtype))
    trainer = build(tiny_vit, tiny_processor, tiny_pairs, tmp_path, bf16=True, max_steps=2, defense="cleanclip")
    seen, inside, made = [], [], []
    loss_terms = trainer.loss_terms

    def watched(views):
        seen.append(views)
        inside.append(torch.is_autocast_enabled("cpu"))
        terms = loss_terms(views)
        made.extend(term.dtype for term in terms.values())
        return terms

    trainer.loss_terms = watched
    trainer.train()
    embeddings = [one for views in seen for one in (*views.images.values(), *views.texts.values())]
    assert set(types) == {torch.bfloat16} and {one.dtype for one in embeddings} == {torch.float32}
    assert inside == [False, False] and set(made) == {torch.float32}  # the logits of the loss are never in bf16
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    clip = [entry["loss_clip"] for entry in trainer.state.log_history if "loss_clip" in entry]
    assert clip[0] == pytest.approx(exact[0][0], rel=2e-2) and clip[0] != exact[0][0]


def test_bf16_in_chunks(tiny_vit, tiny_processor, tiny_pairs, tmp_path):
    settings = dict(defense="cleanclip", bf16=True, max_steps=2)
    whole = run(copy.deepcopy(tiny_vit), tiny_processor, tiny_pairs, tmp_path, **settings)
    chunked = run(tiny_vit, tiny_processor, tiny_pairs, tmp_path, chunk_size=4, **settings)
    assert chunked[0] == pytest.approx(whole[0], rel=1e-2)


def test_activation_checkpointing_changes_nothing(either_model, tiny_processor, tiny_pairs, tmp_path):
    calls = []
    other = copy.deepcopy(either_model)
    inside = either_model.text_model.encoder.layers[0].self_attn  # hooks of the layer itself stay outside
    inside.register_forward_pre_hook(lambda module, inputs: calls.append(1))
    plain = run(other, tiny_processor, tiny_pairs, tmp_path, max_steps=2)
    got = run(either_model, tiny_processor, tiny_pairs, tmp_path, max_steps=2, gradient_checkpointing=True)
    assert_same(plain, got, 1e-5)
    assert len(calls) == 4  # each step once forward and once backward


def test_compilation_passes_through(tiny_vit, tiny_processor, tiny_pairs, tmp_path):
    plain = run(copy.deepcopy(tiny_vit), tiny_processor, tiny_pairs, tmp_path, max_steps=2)
    compiled = run(tiny_vit, tiny_processor, tiny_pairs, tmp_path, max_steps=2, torch_compile_backend="eager")
    assert compiled[0] == pytest.approx(plain[0], rel=1e-5)


@pytest.mark.parametrize(
    ("defense", "changes", "streamed"),
    [
        ("ft", dict(eval_strategy="steps", eval_steps=2, early_stopping_patience=1, max_steps=8), False),
        ("cleanclip", dict(lora=True, lora_r=2, gradient_checkpointing=True, max_steps=3), False),
        ("cleanclip", dict(gradient_accumulation_steps=2, max_steps=3), True),
        ("par", dict(bf16=True, max_steps=3), False),
        ("par", dict(lora=True, lora_r=2, max_steps=3), False),
    ],
    ids=["early stop without the best model", "LoRA checkpointed", "stream accumulated", "PAR bf16", "PAR LoRA"],
)
def test_ways_of_carrying_out_go_together(defense, changes, streamed, tiny_vit, tiny_processor, tiny_pairs, tmp_path):
    before = {name: value.clone() for name, value in tiny_vit.state_dict().items()}
    figures = iter([0.5, 0.4, 0.3, 0.2])
    evaluator = (lambda model: {"ba1": next(figures)}) if "eval_strategy" in changes else None
    pairs = tiny_pairs.to_iterable_dataset(num_shards=2) if streamed else tiny_pairs
    plain = {name: value for name, value in changes.items() if name == "max_steps" or "lora" in name}
    if changes.get("gradient_accumulation_steps"):
        plain["gradient_accumulation_steps"] = 2
    reference = run(copy.deepcopy(tiny_vit), tiny_processor, pairs, tmp_path, defense=defense, **plain)
    trainer = build(tiny_vit, tiny_processor, pairs, tmp_path, defense, evaluator, **changes)
    trainer.train()
    got, steps = losses(trainer), 4 if evaluator else changes["max_steps"]  # the second evaluation was no better
    assert len(got) == trainer.state.global_step == steps
    assert got == pytest.approx(reference[0][:steps], rel=3e-2 if changes.get("bf16") else 1e-4, abs=1e-2)
    after = trainer.trained_model().state_dict()
    assert set(after) == set(before) and any(not torch.equal(after[name], value) for name, value in before.items())
    if defense == "par":
        frozen = trainer.frozen.state_dict()
        assert set(frozen) == set(before) and all(torch.equal(frozen[name], value) for name, value in before.items())


# -- adapters ---------------------------------------------------------------------------------------------------------


def test_adapters_alone_are_trained_and_load_again(either_model, tiny_processor, tiny_pairs, tmp_path):
    base = copy.deepcopy(either_model)
    trainer = build(either_model, tiny_processor, tiny_pairs, tmp_path, defense="cleanclip", lora=True, lora_r=2)
    trained = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    trainer.train()
    for name, value in base.state_dict().items():
        inside = trainer.model.get_base_model().state_dict()
        kept = inside.get(name, inside.get(name.replace(".weight", ".base_layer.weight")))
        kept = inside[name.replace(".bias", ".base_layer.bias")] if kept is None else kept
        assert torch.equal(kept, value), name
    pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = features.embed_images(trainer.model.eval(), pixels)
    assert not torch.allclose(expected, features.embed_images(base, pixels), atol=1e-3)

    merged = trainer.trained_model()
    assert type(merged) is type(base)
    merged.save_pretrained(tmp_path / "merged")
    tiny_processor.save_pretrained(tmp_path / "merged")
    loaded, _ = load_dual_encoder(tmp_path / "merged")
    assert torch.allclose(features.embed_images(loaded, pixels), expected, atol=1e-5)

    trainer.save_model(str(tmp_path / "adapter"))
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    again = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert torch.allclose(features.embed_images(again, pixels), expected, atol=1e-6)


def test_adapters_go_where_they_are_told(tiny_vit, tiny_processor, tiny_pairs, tmp_path):
    trainer = build(tiny_vit, tiny_processor, tiny_pairs, tmp_path, lora=True, lora_targets=["q_proj", "v_proj"])
    places = {
        name.split(".lora_")[0].split(".")[-1] for name, p in trainer.model.named_parameters() if p.requires_grad
    }
    assert places == {"q_proj", "v_proj"}


@pytest.mark.parametrize("family", ["clip", "siglip", "siglip_2", *OPEN_CLIP])
def test_every_adapter_takes_part_in_the_training(family, tiny_pairs, tiny_captions, tmp_path, caplog):
    model, processor = load_dual_encoder(tiny_families.write(family, tiny_captions, tmp_path / "model"))
    with caplog.at_level(logging.INFO, "hf_clipbd"):
        trainer = build(model, processor, tiny_pairs, tmp_path / "out", lora=True, lora_r=2, max_steps=1)
    fused = [name for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)]
    assert ("No adapters inside" in caplog.text) is bool(fused) is (family != "clip")
    trainer.train()
    lifted = {name: p for name, p in trainer.model.named_parameters() if "lora_B" in name}
    assert len(lifted) > 4 and not [name for name, p in lifted.items() if not p.any()]


def test_layers_that_are_never_called_get_no_adapters(tiny_pairs, tiny_captions, tmp_path):
    model, processor = load_dual_encoder(tiny_families.write("siglip", tiny_captions, tmp_path / "model"))
    with pytest.raises(ValueError, match=r"\['attention.out_proj'\]. Those inside .*head.attention cannot"):
        build(model, processor, tiny_pairs, tmp_path, lora=True, lora_targets=["attention.out_proj"])


def test_adapters_of_unknown_layers_are_refused(tiny_vit, tiny_processor, tiny_pairs, tmp_path):
    with pytest.raises(ValueError, match="query_proj"):
        build(tiny_vit, tiny_processor, tiny_pairs, tmp_path, lora=True, lora_targets=["query_proj"])


# -- two processes ----------------------------------------------------------------------------------------------------


def trained(forked, processes, folder):
    """Return name of run -> what `distributed/scaled_steps.py` wrote on so many processes."""
    out = folder / str(processes)
    out.mkdir()
    # Two processes of `accelerate launch`: `test_recipe.py`. Of these lines the launcher alone forks.
    launch = ["-m", "accelerate.commands.launch", "--config_file", CONFIGS / "cpu.yaml"] if processes == 1 else []
    line = [*launch, Path(__file__).parent / "distributed" / "scaled_steps.py", folder / "model", out]
    forked.run(*line, folder / "siglip", processes=processes, log=folder / f"{processes}.log")
    return {path.stem: load_file(path) for path in out.glob("*.safetensors")}


def test_two_processes_equal_one_in_chunks_from_a_stream_in_other_readings_and_resumed(
    tiny_model, tiny_processor, tiny_captions, forked, tmp_path
):
    tiny_model.save_pretrained(tmp_path / "model")
    tiny_processor.save_pretrained(tmp_path / "model")
    tiny_families.write("siglip", tiny_captions, tmp_path / "siglip")
    one, two = (trained(forked, processes, tmp_path) for processes in (1, 2))
    compared = [(one[name], two[name]) for name in one]
    compared += [(one[f"{name}-whole"], two[f"{name}-chunked"]) for name in CONTRASTED]
    assert len(compared) == 19
    assert "grad.logit_scale" not in one["alternating-checkpointed"] and "grad.logit_bias" in one["siglip-warmup"]
    assert two["resumed"]["losses"].tolist() == pytest.approx(one["unbroken"]["losses"].tolist(), rel=1e-9)
    for expected, got in compared:
        assert got["losses"].tolist() == pytest.approx(expected["losses"].tolist(), rel=1e-9)
        names = [name for name in expected if name.startswith("grad.")]
        assert len(names) > 20 and set(expected) == set(got)
        for name in names:
            gap = (got[name] - expected[name]).norm() / max(expected[name].norm().item(), 1e-6)
            assert gap < 1e-8, f"{name}: relative gap {gap:.2e}"


@pytest.mark.parametrize("config", sorted(path.name for path in CONFIGS.glob("*.yaml")))
def test_accelerate_understands_every_configuration_and_the_page_lists_it(config):
    read = load_config_from_file(str(CONFIGS / config)).to_dict()
    assert read["num_processes"] == {"cpu.yaml": 1, "gpu.yaml": 1, "two_cpu_processes.yaml": 2}.get(config, 4)
    assert f"--config_file recipes/accelerate/{config}" in (CONFIGS / "README.md").read_text()


def test_fsdp_is_told_what_it_cannot_divide(tiny_vit):
    plugin = SimpleNamespace(fsdp_version=2)
    accelerator = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin), device=torch.device("cpu"))
    prepare_for_fsdp(accelerator, tiny_vit)
    (whole,) = (parameter for module in plugin.ignored_modules for parameter in module.parameters())
    assert whole is tiny_vit.logit_scale
    assert tiny_vit.get_input_embeddings() is tiny_vit.text_model.embeddings.token_embedding
    plugin.fsdp_version = 1
    with pytest.raises(ValueError, match="FSDP 2"):
        prepare_for_fsdp(accelerator, tiny_vit)


@pytest.mark.parametrize("changes", [{}, {"lora": True, "lora_r": 2}], ids=["whole", "adapters"])
def test_noise_is_added_to_the_embeddings_of_tokens(changes, tiny_vit, tiny_processor, tiny_pairs, tmp_path):
    trainers = []
    for alpha in (None, 5.0):
        model = copy.deepcopy(tiny_vit)
        trainers.append(
            build(model, tiny_processor, tiny_pairs, tmp_path, max_steps=1, neftune_noise_alpha=alpha, **changes)
        )
        trainers[-1].train()
    plain, noisy = trainers
    assert losses(plain) != losses(noisy)
    assert not noisy.trained_model().text_model.embeddings.token_embedding._forward_hooks


def test_chunks_and_compilation_are_refused_together_on_several_processes(tmp_path):
    args = CLIPTrainingConfig(output_dir=str(tmp_path), use_cpu=True, chunk_size=2, torch_compile=True)
    trainer = SimpleNamespace(
        args=args,
        train_dataset=None,
        is_fsdp_enabled=False,
        is_deepspeed_enabled=False,
        accelerator=SimpleNamespace(num_processes=2),
    )
    with pytest.raises(ValueError, match="on several processes, but got both"):
        check_scale(trainer)


def test_one_process_takes_one_gpu(monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(CLIPTrainingConfig, "n_gpu", property(lambda self: 4), raising=False)
    args = CLIPTrainingConfig(output_dir=str(tmp_path), use_cpu=True)
    assert args._n_gpu == 1 and "one of 4 GPUs is used" in caplog.text and args.ddp_timeout == 86400


def test_the_launchers_precision_is_part_of_what_a_training_computes_with(monkeypatch, tmp_path):
    config = CLIPTrainingConfig(output_dir=str(tmp_path), use_cpu=True)
    assert "mixed_precision" not in training_settings(config)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    assert training_settings(config)["mixed_precision"] == "fp16"


def test_gradients_that_a_scaler_lets_pass_do_not_end_the_training(tmp_path):
    args, state = SimpleNamespace(fp16=False, output_dir=str(tmp_path)), SimpleNamespace(global_step=1, epoch=0.5)
    for optimizer, ends in ((SimpleNamespace(scaler=object()), False), (SimpleNamespace(scaler=None), True)):
        guard = FiniteGuard()
        guard.note_batch(torch.arange(2), {"clip": torch.tensor(1.0)})
        guard.note_norm(torch.tensor(torch.inf))
        if ends:
            with pytest.raises(NonFiniteLossError, match="norm of the gradient: inf"):
                guard.on_pre_optimizer_step(args, state, None, optimizer=optimizer)
        else:
            guard.on_pre_optimizer_step(args, state, None, optimizer=optimizer)


def test_a_model_is_known_behind_its_wrappers(tiny_vit):
    compiled = SimpleNamespace(_orig_mod=SimpleNamespace(module=tiny_vit))
    assert model_type(compiled) == model_type(SimpleNamespace(module=tiny_vit)) == model_type(tiny_vit) == "clip"


def test_scalars_step_in_groups_of_their_own():
    kernel, bias, scale = (nn.Parameter(torch.zeros(shape)) for shape in ((2, 2), (2,), ()))
    optimizer = torch.optim.AdamW([{"params": [kernel], "weight_decay": 0.1}, {"params": [bias, scale], "lr": 0.5}])
    separate_scalars(optimizer)
    groups = [(group["params"], group["weight_decay"], group["lr"]) for group in optimizer.param_groups]
    assert [len(parameters) for parameters, _, _ in groups] == [1, 1, 1]
    assert groups[1][0][0] is bias and groups[2][0][0] is scale and groups[2][1:] == groups[1][1:]


# -- streams ----------------------------------------------------------------------------------------------------------


def batches_of(stream, n, batch_size=8, process=0, processes=1, workers=0):
    loader = stream.loader(batch_size, process, processes, workers, collate_fn=list)
    return [[pair["row"] for pair in batch] for batch in itertools.islice(loader, n)]


@pytest.fixture
def stream(tiny_pairs):
    return tiny_pairs.to_iterable_dataset(num_shards=4)


def test_a_stream_is_shuffled_anew_each_epoch_and_drawn_by_content(stream, tiny_pairs):
    rows = PairStream(stream, PLAIN_VIEWS, Canvas(32), seed=5, shuffle_buffer=100)
    drawn = batches_of(rows, 12)
    first, second = sum(drawn[:6], []), sum(drawn[6:], [])
    assert first != second and sorted(first) == sorted(second) and len(set(first)) == len(tiny_pairs)
    assert batches_of(rows, 12) == drawn
    assert batches_of(PairStream(stream, PLAIN_VIEWS, Canvas(32), seed=6, shuffle_buffer=100), 6) != drawn[:6]
    kept = PairStream(stream, PLAIN_VIEWS, Canvas(32), shuffle_buffer=0)
    texts = [pair["texts"][0] for pair in itertools.chain(*itertools.islice(kept, 48))]
    assert texts == list(tiny_pairs["caption"])


def test_two_processes_share_the_batches_of_a_stream(stream):
    rows = PairStream(stream, PLAIN_VIEWS, Canvas(32), seed=5)
    alone = batches_of(rows, 5, batch_size=8)
    shares = [batches_of(rows, 5, batch_size=4, process=rank, processes=2) for rank in range(2)]
    assert [one + other for one, other in zip(*shares, strict=True)] == alone


@pytest.mark.parametrize("processes", [1, 2])
def test_a_share_of_a_stream_comes_in_batches_of_its_own(stream, processes):
    plan = replace(
        PLAIN_VIEWS, subset_texts={"extra": same_caption}, subset_share=0.4, subset_if=lambda text: "b" in text
    )
    rows = PairStream(stream, plan, Canvas(32), seed=5, shuffle_buffer=100)

    def batches(process):
        loader = rows.loader(8 // processes, process, processes, 0, collate_fn=list)
        return [[(pair["row"], tuple(pair["texts"])) for pair in batch] for batch in itertools.islice(loader, 200)]

    together = [sum(parts, []) for parts in zip(*map(batches, range(processes)), strict=True)]
    ordinary, extra = ([b for b in together if len(b[0][1]) == n] for n in (1, 2))
    assert all(len(batch) == 8 and len({len(texts) for _, texts in batch}) == 1 for batch in together)
    epochs = len(ordinary) // 6
    allowed = {row for batch in ordinary for row, (text,) in batch if "b" in text}
    drawn = [row for batch in extra for row, _ in batch]
    assert set(drawn) == allowed and len(drawn) / (epochs * len(allowed)) == pytest.approx(0.4, abs=0.1)
    assert len({tuple(sorted(row for row, _ in batch)) for batch in extra}) == len(extra)  # drawn anew each epoch
    if processes == 2:
        again = rows.loader(8, 0, 1, 0, collate_fn=list)
        alone = [[(p["row"], tuple(p["texts"])) for p in batch] for batch in itertools.islice(again, 200)]
        assert alone == together


def test_a_share_is_for_streams_alone(tiny_vit, tiny_processor, tiny_pairs, tmp_path):
    with pytest.raises(ValueError, match="Expected a stream for a share of 0.1.*k_pairs"):
        build(tiny_vit, tiny_processor, tiny_pairs, tmp_path, defense="cleanerclip", k_share=0.1)


def test_workers_divide_the_shards_of_a_stream(stream, caplog):
    rows = PairStream(stream, PLAIN_VIEWS, Canvas(32), seed=5)
    drawn = batches_of(rows, 6, batch_size=6, workers=2)
    assert len({row for batch in drawn[::2] for row in batch}) == 18
    assert not {row for batch in drawn[::2] for row in batch} & {row for batch in drawn[1::2] for row in batch}
    with caplog.at_level(logging.WARNING, "hf_clipbd"):
        assert len(batches_of(rows, 2, workers=9)) == 2
    assert "4 shards" in caplog.text


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(), "max_steps"),
        (dict(defense="cleanerclip", max_steps=2), "k_share"),
        (dict(max_steps=2, caption_column="text"), "text"),
    ],
)
def test_what_a_stream_cannot_do_is_refused_at_once(changes, says, tiny_vit, tiny_processor, stream, tmp_path):
    with pytest.raises(ValueError, match=says):
        build(tiny_vit, tiny_processor, stream, tmp_path, **changes)


@pytest.mark.parametrize(
    ("picture", "caption", "says"),
    [
        (None, "a cup", r'^The row "a cup": Expected an image, but the row has none\. Leave'),
        (b"<html>", "a\ncup " * 20, r'^The row "(a cup ){10}\.\.\.": Expected an image that can be decoded'),
        (b"<html>", None, "Expected a text as the caption of a row of the stream"),
    ],
    ids=["no picture", "no readable picture", "no caption"],
)
def test_a_gap_in_a_stream_is_named_by_its_caption_and_can_be_left_out(picture, caption, says, tiny_pairs):
    plain = datasets.Image(decode=False)
    rows = tiny_pairs.cast_column("image", plain).to_list()
    rows[3] = {"image": picture and {"bytes": picture, "path": None}, "caption": caption}
    gappy = datasets.Dataset.from_list(rows, features=tiny_pairs.features).to_iterable_dataset()
    with pytest.raises((ValueError, TypeError), match=says) as error:
        next(iter(PairStream(gappy, PLAIN_VIEWS, Canvas(32), shuffle_buffer=0).loader(8, 0, 1, 0, collate_fn=list)))
    advice = r"`dataset\.filter`.*`dataset\.cast_column\('image', datasets\.Image\(decode=False\)\)`"
    assert re.search(advice, str(error.value))
    kept = gappy.cast_column("image", plain).filter(
        lambda row: row["image"] is not None and row["image"]["bytes"] != b"<html>"
    )
    assert len(set(sum(batches_of(PairStream(kept, PLAIN_VIEWS, Canvas(32)), 5), []))) == 40


def test_a_stream_shorter_than_a_batch_is_an_error(tiny_vit, tiny_processor, stream, tmp_path):
    trainer = build(tiny_vit, tiny_processor, stream, tmp_path, max_steps=2, per_device_train_batch_size=49)
    with pytest.raises(ValueError, match="at least one global batch of 49"):
        trainer.train()


# -- resuming ---------------------------------------------------------------------------------------------------------


class Stop(TrainerCallback):
    """Ends the process's training as Ctrl-C does, after a step's checkpoint has been written."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "settings",
    [
        dict(defense="cleanerclip", dataloader_num_workers=2),
        dict(defense="cleanclip", gradient_accumulation_steps=2),
        dict(defense="cleanclip", chunk_size=3, lora=True, lora_dropout=0.2),
        dict(defense="cleanclip", streamed=True, max_steps=14),
        dict(defense="cleanerclip", k_share=0.5, streamed=True, max_steps=14),
    ],
    ids=["workers", "accumulation", "adapters in chunks", "stream", "stream with sub-captions"],
)
def test_stopped_within_an_epoch_and_resumed_equals_unbroken_to_the_bit(
    settings, tiny_vit, tiny_processor, tiny_pairs, stream, tmp_path
):
    for tower in (tiny_vit.config.vision_config, tiny_vit.config.text_config):
        tower.attention_dropout = 0.1
    for module in tiny_vit.modules():
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.1  # draws from the global generator, which has to be resumed too
    settings = dict(settings)
    pairs = stream if settings.pop("streamed", False) else tiny_pairs
    settings = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 4, "save_total_limit": None, **settings}

    def trainer(folder, **changes):
        return build(copy.deepcopy(tiny_vit), tiny_processor, pairs, tmp_path / folder, **{**settings, **changes})

    unbroken = trainer("one")
    unbroken.train()
    stopped = trainer("two", callbacks=[Stop(4)])
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    resumed = trainer("two")
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == unbroken.state.global_step > 4
    assert losses(resumed) == losses(unbroken)
    for name, value in unbroken.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    states = unbroken.optimizer.state_dict()["state"], resumed.optimizer.state_dict()["state"]
    assert all(
        torch.equal(value, states[1][key][name]) for key, one in states[0].items() for name, value in one.items()
    )


def test_a_stream_is_saved_and_logged_within_its_steps_by_default(
    tiny_vit, tiny_processor, stream, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(stopping, "POINTS", 3)
    plain = {name: getattr(CLIPTrainingConfig, name) for name in ("save_strategy", "logging_strategy")}
    settings = dict(plain, eval_strategy="epoch", evaluator=lambda model: {"ba1": 0.5}, max_steps=12)

    def trainer(folder, **changes):
        return build(copy.deepcopy(tiny_vit), tiny_processor, stream, tmp_path / folder, **{**settings, **changes})

    with caplog.at_level(logging.INFO, "hf_clipbd"):
        unbroken = trainer("one")
    assert "logging_strategy, eval_strategy, save_strategy by `epoch` means every 4 of 12 steps" in caplog.text
    unbroken.train()
    with pytest.raises(KeyboardInterrupt):
        trainer("two", callbacks=[Stop(6)]).train()
    assert [path.name for path in (tmp_path / "two").glob("checkpoint-*")] == ["checkpoint-4"]
    resumed = trainer("two")
    resumed.train(resume_from_checkpoint=True)
    assert resumed.history() == unbroken.history()
    assert [entry["epoch"] for entry in unbroken.history()] == pytest.approx([1 / 3, 2 / 3, 1])
    assert all({"loss_clip", "eval_ba1"} <= set(entry) for entry in unbroken.history())
    for name, value in unbroken.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    chosen = trainer("three", save_strategy="no", logging_strategy="steps", logging_steps=5, eval_strategy="no").args
    assert (chosen.save_strategy, chosen.logging_steps, chosen.eval_strategy) == ("no", 5, "no")


# -- stopping early, trackers -----------------------------------------------------------------------------------------


def test_stops_when_benign_accuracy_gets_no_better(tiny_vit, tiny_processor, tiny_pairs, tmp_path):
    figures, models = iter([0.3, 0.5, 0.4, 0.45, 0.9]), []

    def evaluator(model):
        models.append(copy.deepcopy(model.state_dict()))
        return {"ba1": next(figures)}

    settings = dict(eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True, num_train_epochs=5)
    settings["early_stopping_patience"] = 2
    trainer = build(tiny_vit, tiny_processor, tiny_pairs, tmp_path, evaluator=evaluator, **settings)
    trainer.train()
    assert [entry["eval_ba1"] for entry in trainer.history() if "eval_ba1" in entry] == [0.3, 0.5, 0.4, 0.45]
    assert trainer.state.best_metric == 0.5
    assert all(torch.equal(models[1][name], value) for name, value in trainer.model.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "says"), [(dict(), "`eval_strategy` is no"), (dict(eval_strategy="epoch"), "Expected an `evaluator`")]
)
def test_stopping_early_needs_evaluations(settings, says, tiny_vit, tiny_processor, tiny_pairs, tmp_path):
    with pytest.raises(ValueError, match=says):
        build(tiny_vit, tiny_processor, tiny_pairs, tmp_path, early_stopping_patience=2, **settings)


def test_a_tracker_is_told_every_term_and_figure(tiny_vit, tiny_processor, tiny_pairs, tmp_path, monkeypatch):
    told = {}

    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            told.update(logs)

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "notebook_of_ours", Tracker)
    build(
        tiny_vit,
        tiny_processor,
        tiny_pairs,
        tmp_path,
        defense="cleanerclip",
        evaluator=lambda model: {"ba1": 0.25},
        report_to=["notebook_of_ours"],
        eval_strategy="epoch",
        logging_strategy="epoch",
    ).train()
    assert {"loss", "loss_clip", "loss_in_modal", "loss_fc", "grad_norm", "learning_rate"} <= set(told)
    assert told["eval_ba1"] == 0.25 and np.isfinite(told["loss"])


@pytest.mark.parametrize("bad", [dict(chunk_size=0), dict(lora_r=0), dict(lora_dropout=1.0), dict(shuffle_buffer=-1)])
def test_sizes_out_of_range_are_refused(bad):
    (name,) = bad
    with pytest.raises(ValueError, match=f"Expected `{name}`"):
        CLIPTrainingConfig(output_dir="unused", use_cpu=True, **bad)
