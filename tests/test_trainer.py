# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The one training loop: two processes equal one, a resumed run equals an unbroken one, every term is logged."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from hf_clipbd.data.canvas import Canvas
from hf_clipbd.defenses import DEFENSES, CleanerCLIPConfig, CleanerCLIPTrainer
from hf_clipbd.models import load_dual_encoder
from hf_clipbd.trainer import CLIPTrainer, CLIPTrainingConfig


SCRIPT = Path(__file__).parent / "distributed" / "train_steps.py"


@pytest.fixture
def tiny_model_copy(tiny_model):
    """Return a function that gives the same untrained model anew at each call."""
    return lambda: copy.deepcopy(tiny_model)


@pytest.fixture
def model_folder(tiny_model, tiny_processor, tmp_path):
    folder = tmp_path / "model"
    tiny_model.save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    return folder


def arguments(folder, config=CLIPTrainingConfig, **changes):
    defaults = dict(
        per_device_train_batch_size=8, num_train_epochs=3, learning_rate=1e-3, use_cpu=True, disable_tqdm=True
    )
    return config(output_dir=str(folder), **{**defaults, **changes})


def test_two_processes_give_the_one_process_loss_and_gradient(model_folder, forked, tmp_path):
    def trained(processes: int) -> dict[str, dict[str, torch.Tensor]]:
        out = tmp_path / str(processes)
        out.mkdir()
        forked.run(SCRIPT, model_folder, out, processes=processes, log=tmp_path / f"{processes}.log")
        return {name: load_file(out / f"{name}.safetensors") for name in DEFENSES}

    one, two = trained(1), trained(2)
    for defense in DEFENSES:
        assert two[defense]["losses"].tolist() == pytest.approx(one[defense]["losses"].tolist(), rel=1e-9)
        gradients = {name for name in one[defense] if name.startswith("grad.")}
        assert "grad.logit_scale" in gradients and len(gradients) > 20
        for name in gradients:
            expected, got = one[defense][name], two[defense][name]
            gap = (got - expected).norm() / max(expected.norm().item(), 1e-6)
            assert gap < 1e-8, f"{defense} {name}: relative gap {gap:.2e}"


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("stop", [3, 7, 10])
def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(stop, tiny_model_copy, tiny_processor, tiny_pairs, tmp_path):
    settings = dict(save_strategy="steps", save_steps=stop, logging_strategy="steps", logging_steps=1, k_pairs=8)
    settings["save_total_limit"] = None

    def trainer():
        args = arguments(tmp_path, CleanerCLIPConfig, **settings)
        return CleanerCLIPTrainer(tiny_model_copy(), args, tiny_pairs, tiny_processor, canvas=Canvas(32))

    unbroken = trainer()
    unbroken.train()
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{stop}"))
    assert losses(resumed) == losses(unbroken)
    for name, value in unbroken.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_a_defence_takes_the_weights_of_a_victim_and_not_its_optimiser(
    tiny_model_copy, tiny_processor, tiny_pairs, tmp_path
):
    victim = tmp_path / "victim"
    attacker = CLIPTrainer(tiny_model_copy(), arguments(victim, max_steps=2), tiny_pairs, tiny_processor)
    attacker.train()
    attacker.save_model(victim)
    assert list(victim.glob("checkpoint-*/optimizer.pt")) and attacker.optimizer.state

    class Begin(TrainerCallback):
        def on_step_begin(self, args, state, control, optimizer=None, model=None, **kwargs):
            self.states = getattr(self, "states", [])
            self.states.append(len(optimizer.state))
            self.weights = getattr(self, "weights", {n: p.clone() for n, p in model.state_dict().items()})

    begin, (model, processor) = Begin(), load_dual_encoder(victim)
    args = arguments(tmp_path / "defended", CleanerCLIPConfig, max_steps=2, k_pairs=8)
    CleanerCLIPTrainer(model, args, tiny_pairs, processor, callbacks=[begin]).train()
    assert begin.states[0] == 0 and begin.states[1] > 0
    assert all(torch.equal(begin.weights[name], value) for name, value in attacker.model.state_dict().items())


def test_terms_are_logged_and_sum_to_the_loss(tiny_model_copy, tiny_processor, tiny_pairs, tmp_path):
    args = arguments(tmp_path, CleanerCLIPConfig, k_pairs=8, num_train_epochs=1, save_strategy="no", lambda_fc=2.0)
    trainer = CleanerCLIPTrainer(tiny_model_copy(), args, tiny_pairs, tiny_processor, canvas=Canvas(32))
    trainer.train()
    (epoch,) = trainer.history()
    batches = len(tiny_pairs) // 8 + 1
    assert {"loss_clip", "loss_in_modal", "loss_fc"} <= set(epoch)
    total = epoch["loss_clip"] + epoch["loss_in_modal"] + epoch["loss_fc"] / batches
    assert epoch["loss"] == pytest.approx(total, rel=1e-4)


def test_evaluator_is_called_each_epoch_and_logged(tiny_model_copy, tiny_processor, tiny_pairs, tmp_path):
    seen = []

    def evaluator(model):
        seen.append(model)
        return {"ba1": 0.25 * len(seen)}

    args = arguments(tmp_path, eval_strategy="epoch", num_train_epochs=2, save_strategy="no")
    trainer = CLIPTrainer(tiny_model_copy(), args, tiny_pairs, tiny_processor, evaluator=evaluator, canvas=Canvas(32))
    trainer.train()
    assert [epoch["eval_ba1"] for epoch in trainer.history()] == [0.25, 0.5]


def test_an_evaluator_gets_the_model_in_evaluation_mode(tiny_model_copy, tiny_processor, tiny_pairs, tmp_path):
    modes = []

    def buffers(evaluator):
        args = arguments(tmp_path, eval_strategy="epoch", num_train_epochs=1, save_strategy="no")
        model = tiny_model_copy()
        CLIPTrainer(model, args, tiny_pairs, tiny_processor, evaluator=evaluator, canvas=Canvas(32)).train()
        return dict(model.named_buffers()), model

    def forward(model):
        modes.append({module.training for module in model.modules()})
        with torch.no_grad():
            model.get_image_features(pixel_values=torch.zeros(4, 3, 32, 32))
        return {"ba1": 0.5}

    expected, _ = buffers(lambda model: {"ba1": 0.5})
    found, model = buffers(forward)
    assert modes == [{False}] and all(module.training for module in model.modules())
    assert any("running" in name for name in found)
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_modes_are_those_of_before_where_an_evaluator_fails(tiny_model_copy, tiny_processor, tiny_pairs, tmp_path):
    def fails(model):
        raise KeyError("no pictures")

    args = arguments(tmp_path, eval_strategy="epoch")
    trainer = CLIPTrainer(tiny_model_copy(), args, tiny_pairs, tiny_processor, evaluator=fails, canvas=Canvas(32))
    trainer.model.train()
    frozen = trainer.model.get_submodule("text_model").eval()
    with pytest.raises(KeyError, match="no pictures"):
        trainer.evaluate()
    assert trainer.model.training and not frozen.training


def test_logit_scale_never_passes_one_hundred(tiny_model_copy, tiny_processor, tiny_pairs, tmp_path):
    model = tiny_model_copy()
    model.logit_scale.data.fill_(4.7)
    args = arguments(tmp_path, num_train_epochs=1, save_strategy="no")
    CLIPTrainer(model, args, tiny_pairs, tiny_processor, canvas=Canvas(32)).train()
    assert model.logit_scale.exp().item() <= 100.0 + 1e-3


def test_decay_spares_norms_biases_and_logit_scale(tiny_model_copy, tiny_processor, tiny_pairs, tmp_path):
    model = tiny_model_copy()
    trainer = CLIPTrainer(model, arguments(tmp_path), tiny_pairs, tiny_processor, canvas=Canvas(32))
    decayed = set(trainer.get_decay_parameter_names(model))
    assert decayed == {name for name, p in model.named_parameters() if p.ndim >= 2}
    groups = trainer.create_optimizer().param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert any(parameter is model.logit_scale for parameter in groups[1]["params"])


def test_the_schedule_warms_up_from_zero_and_ends_at_zero(tiny_model_copy, tiny_processor, tiny_pairs, tmp_path):
    args = arguments(tmp_path, logging_strategy="steps", logging_steps=1, save_strategy="no", warmup_steps=4)
    trainer = CLIPTrainer(tiny_model_copy(), args, tiny_pairs, tiny_processor, canvas=Canvas(32))
    trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert rates[0] == 0.0 and np.argmax(rates) == 4 and rates[4] == pytest.approx(1e-3)
    assert all(np.diff(rates[4:]) < 0) and rates[-1] < 2e-5
