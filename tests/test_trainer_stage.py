# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""A training as a stage and as a command: its speed, what it cannot save, what it refuses before it reads anything."""

import copy
import json
import re
from types import SimpleNamespace

import pytest
import torch

from hf_clipbd import trainer as trainer_module
from hf_clipbd.cli import main, script
from hf_clipbd.data.canvas import Canvas
from hf_clipbd.recipe.config import config_from
from hf_clipbd.recipe.defending import check_sizes
from hf_clipbd.recipe.sections import ConfigError
from hf_clipbd.recipe.stage import Stage
from hf_clipbd.recipe.training import check_one_process_has_it_all, train_into
from hf_clipbd.schema import RunRecord
from hf_clipbd.trainer import CLIPTrainer, CLIPTrainingConfig


@pytest.fixture
def train(tiny_model, tiny_processor, tiny_pairs, tmp_path):
    """Return a function that trains the untrained model as a stage and gives its record."""

    def stage(trainer_class=CLIPTrainer, evaluator=None, **changes):
        settings = {"per_device_train_batch_size": 8, "use_cpu": True, "disable_tqdm": True, **changes}
        config = CLIPTrainingConfig(str(tmp_path / "unused"), **settings)
        place = Stage(tmp_path / "run", "victim", {}, 0)
        load = lambda: (copy.deepcopy(tiny_model), tiny_processor)  # noqa: E731
        return train_into(
            place, trainer_class, config, load, lambda: tiny_pairs, lambda _: evaluator, Canvas(32), keep_model=False
        )

    return stage


class TenSeconds(CLIPTrainer):
    """Its training takes ten seconds by the clock of transformers."""

    def train(self, *arguments, **options):
        output = super().train(*arguments, **options)
        return output._replace(metrics={**output.metrics, "train_runtime": 10.0})


def test_the_speed_counts_the_steps_taken_and_no_evaluation(train, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(trainer_module, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def evaluator(model):
        clock[0] += 3.0
        return {"ba1": 0.5}

    settings = {"num_train_epochs": 30, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "no"}
    record = train(TenSeconds, evaluator, max_steps=4, **settings)
    assert record.metrics["images_per_second"] == 4 * 8 / (10 - 2 * 3)


def test_the_speed_of_a_training_that_stops_early_or_goes_on_is_that_of_its_own_steps(train):
    class Stopped(TenSeconds):
        def train(self, *arguments, **options):
            self.add_callback(StopAtSix())
            return super().train(*arguments, **options)

    from transformers import TrainerCallback

    class StopAtSix(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 6

    assert train(Stopped, num_train_epochs=5).metrics["images_per_second"] == 6 * 8 / 10


class Divided(CLIPTrainer):
    """Under FSDP, as far as it says."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.is_fsdp_enabled = True

    def train(self, *arguments, **options):
        raise AssertionError("is refused before it trains")


def test_a_stage_is_refused_where_no_process_has_the_whole_model(train, tmp_path):
    with pytest.raises(ValueError, match="on every process.*FSDP.*recipes/accelerate"):
        train(Divided)
    assert not (tmp_path / "run" / "victim" / "record.json").exists()
    for stage, refused in ((2, False), (3, True)):
        plugin = SimpleNamespace(zero_stage=stage)
        accelerator = SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin))
        trainer = SimpleNamespace(accelerator=accelerator, is_deepspeed_enabled=True, is_fsdp_enabled=False)
        if refused:
            with pytest.raises(ValueError, match="ZeRO-3"):
                check_one_process_has_it_all(trainer)
        else:
            check_one_process_has_it_all(trainer)


def test_more_k_pairs_than_rows_are_found_before_a_run_begins():
    values = {"world": {"n_defense": 500}, "defenses": {"cleanerclip": {"k_pairs": 501, "use_cpu": True}}}
    with pytest.raises(ConfigError, match=r"`defenses.cleanerclip`: .*0 to 500 pairs"):
        check_sizes(config_from(values))
    check_sizes(config_from({**values, "world": {"n_defense": 501}}))


# -- commands ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--early_stopping_patience 1", "--early_stopping_patience` needs. Pass --test IMAGES"),
        ("--eval_strategy epoch --early_stopping_patience 1", "Pass --test IMAGES"),
        ("--eval_strategy steps", "--eval_strategy` needs. Pass --test IMAGES"),
        ("--tau_pos 0", "`tau_pos` above 0"),
        ("--k_pairs 49 --per_device_train_batch_size 8", "0 to 48 pairs"),
        ("--k_pairs 49 --per_device_train_batch_size 8 --max_steps 2", "0 to 48 pairs"),
        ("--streaming", "`--max_steps N` beside `--streaming`"),
    ],
)
def test_a_command_says_what_is_missing_before_it_loads_a_model(flags, says, tiny_pairs, tmp_path, capsys):
    tiny_pairs.save_to_disk(tmp_path / "pairs")
    given = f"defend {tmp_path / 'nowhere'} --defense cleanerclip --data {tmp_path / 'pairs'} --out {tmp_path / 'out'}"
    assert main([*given.split(), "--use_cpu", "true", *flags.split()]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("defense", "flags", "says"),
    [
        ("ft", "", None),
        ("cleanclip", "", None),
        ("par", "", None),
        ("cleanerclip", "--k_share 0.5", None),
        ("cleanerclip", "", "but got a stream.*set `k_share`"),
        ("roclip", "", "known length.*without `streaming`"),
    ],
)
def test_a_command_trains_on_a_stream(defense, flags, says, tiny_model, tiny_processor, tiny_pairs, tmp_path, capsys):
    tiny_pairs.save_to_disk(tmp_path / "pairs")
    tiny_model.save_pretrained(tmp_path / "model")
    tiny_processor.save_pretrained(tmp_path / "model")
    line = (
        f"defend {tmp_path / 'model'} --defense {defense} --data {tmp_path / 'pairs'} --out {tmp_path / 'out'} {flags}"
    )
    line += " --streaming --max_steps 9 --per_device_train_batch_size 8 --use_cpu true --quiet"
    status, said = main(line.split()), capsys.readouterr().err
    if says is not None:
        assert status == 2 and re.search(says, said)
        return
    assert status == 0
    record = RunRecord.load(tmp_path / "out")
    assert record.config["streaming"] is True and (tmp_path / "out" / "model.safetensors").is_file()
    assert ("loss_fc" in record.metrics["history"][-1]) is (defense == "cleanerclip")
    assert main([*line.split()[:-1], "--json"]) == 0  # up to date: the stream is known by its source
    assert json.loads(capsys.readouterr().out)["seconds"] == record.seconds


def test_a_gpu_out_of_memory_is_told_what_helps(capsys):
    def act(arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nMore of it.")

    assert script("train", "", act, []) == 2
    said = capsys.readouterr().err
    assert "Lower the batch size" in said and "--chunk_size" in said and said.count("\n") == 1
    with pytest.raises(torch.OutOfMemoryError):
        script("train", "", act, ["--traceback"])
    with pytest.raises(RuntimeError, match="another"):
        script("train", "", lambda _: (_ for _ in ()).throw(RuntimeError("another")), [])
