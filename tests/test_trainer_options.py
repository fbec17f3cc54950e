# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Options of transformers that a training follows, that it refuses, and the images that a choice among epochs uses."""

import copy
import inspect
import json
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from transformers import TrainingArguments, training_args
from transformers.integrations import integration_utils
from transformers.trainer_pt_utils import AcceleratorConfig

from hf_clipbd.data.canvas import Canvas
from hf_clipbd.defenses import DEFENSES, CleanerCLIPTrainer
from hf_clipbd.recipe import epochs
from hf_clipbd.recipe.config import config_from
from hf_clipbd.recipe.sections import ConfigError, parse_section
from hf_clipbd.recipe.world import World
from hf_clipbd.trainer import CLIPTrainer, CLIPTrainingConfig
from hf_clipbd.training import checks
from hf_clipbd.training.adapters import add_adapters
from hf_clipbd.training.settings import training_settings


@pytest.mark.parametrize(
    ("option", "says"),
    [
        (dict(save_only_model=True), "`save_only_model` to be false, but got true.*`save_total_limit`"),
        (dict(auto_find_batch_size=True), "`auto_find_batch_size` to be false, but got true.*set `chunk_size`"),
        (dict(label_smoothing_factor=0.1), "`label_smoothing_factor` to be 0.0, but got 0.1.*does not use it"),
        (dict(fp16=True), "bf16 or float32 on a CPU, but got fp16.*set `bf16`"),
        (dict(train_sampling_strategy="sequential"), "`train_sampling_strategy` to be 'random', but got 'sequential'"),
        (dict(accelerator_config={"split_batches": True}), "`split_batches` of `accelerator_config`.*cut once more"),
        (
            dict(accelerator_config="nowhere.json"),
            "a mapping, JSON or the path of a JSON file, but got 'nowhere.json'",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_the_loop_cannot_follow_is_refused(option, says):
    with pytest.raises(ValueError, match=says):
        CLIPTrainingConfig(use_cpu=True, **option)
    with pytest.raises(ConfigError, match=says):
        parse_section(CLIPTrainingConfig, {"use_cpu": "true", **option}, "victim")


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("bf16", "a GPU that computes in bf16 beside `bf16`, but .*set `use_cpu`"),
        ("bf16_full_eval", "a GPU that computes in bf16 beside `bf16_full_eval`, but .*set `use_cpu`"),
        ("fp16", "bf16 or float32 on a CPU, but got fp16"),
    ],
)
def test_half_precision_is_refused_where_no_gpu_has_it(option, says, monkeypatch):
    for module in (checks, training_args):
        monkeypatch.setattr(module, "is_torch_bf16_gpu_available", lambda: False)
    monkeypatch.setattr(TrainingArguments, "device", property(lambda args: torch.device("cpu")))
    with pytest.raises(ConfigError, match=f"`victim`: Expected {says}"):
        parse_section(CLIPTrainingConfig, {option: "true"}, "victim")


@pytest.mark.parametrize(
    ("tracker", "says"), [("trackio", "Run `pip install trackio`"), ("trackoi", "is not supported, only .*trackio")]
)
def test_a_tracker_that_cannot_be_told_is_refused(tracker, says, monkeypatch):
    monkeypatch.setattr(integration_utils, "is_trackio_available", lambda: False)
    monkeypatch.setattr(integration_utils, "is_tensorboard_available", lambda: True)
    for asked in (tracker, [tracker], ["tensorboard", tracker]):
        with pytest.raises(ConfigError, match=f"installed trackers in `report_to`, but got '{tracker}': .*{says}"):
            parse_section(CLIPTrainingConfig, {"use_cpu": True, "report_to": asked}, "victim")
    for asked, told in (("none", []), ("tensorboard", ["tensorboard"])):
        assert parse_section(CLIPTrainingConfig, {"use_cpu": True, "report_to": asked}, "").report_to == told
        assert CLIPTrainingConfig(use_cpu=True, report_to=asked).report_to == told


def test_fp16_of_the_launcher_is_refused_on_a_cpu(tiny_model, tiny_processor, tiny_pairs, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    args = CLIPTrainingConfig(str(tmp_path), per_device_train_batch_size=8, use_cpu=True)
    with pytest.raises(ValueError, match="on a CPU, but got fp16"):
        CLIPTrainer(tiny_model, args, tiny_pairs, tiny_processor, canvas=Canvas(32))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("compute_metrics", "Pass evaluator="),
        ("preprocess_logits_for_metrics", "Pass evaluator="),
        ("compute_loss_func", "`loss_terms`"),
        ("data_collator", "`view_plan`"),
        ("eval_dataset", "Pass evaluator="),
        ("model_init", "a trainer each time"),
    ],
)
def test_a_function_that_would_never_be_called_is_refused(
    name, says, tiny_model, tiny_processor, tiny_pairs, tmp_path
):
    args = CLIPTrainingConfig(str(tmp_path), per_device_train_batch_size=8, use_cpu=True)
    with pytest.raises(ValueError, match=f"no `{name}`.*{says}"):
        CLIPTrainer(tiny_model, args, tiny_pairs, tiny_processor, canvas=Canvas(32), **{name: max})
    CLIPTrainer(tiny_model, args, tiny_pairs, tiny_processor, canvas=Canvas(32), **{name: None})


def test_the_images_of_an_evaluation_are_the_evaluators(tiny_model, tiny_processor, tiny_pairs, tmp_path):
    args = CLIPTrainingConfig(str(tmp_path), per_device_train_batch_size=8, use_cpu=True, report_to="none")
    measure = {"evaluator": lambda model: {"ba1": 0.5}, "canvas": Canvas(32)}
    trainer = CLIPTrainer(tiny_model, args, tiny_pairs, tiny_processor, **measure)
    assert trainer.evaluate()["eval_ba1"] == trainer.evaluate(trainer.eval_dataset)["eval_ba1"] == 0.5
    with pytest.raises(ValueError, match="no `eval_dataset`.*of type Dataset. Leave it out"):
        trainer.evaluate(tiny_pairs)
    with pytest.raises(NotImplementedError, match=r"dual encoder.*call `evaluate`.*embed_dataset\("):
        trainer.predict(tiny_pairs)


def test_a_history_has_a_dict_for_each_moment_that_is_logged(tiny_model, tiny_processor, tiny_pairs, tmp_path):
    steps = {"per_device_train_batch_size": 16, "logging_strategy": "steps", "logging_steps": 1, "max_steps": 4}
    quiet = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
    args = CLIPTrainingConfig(str(tmp_path), eval_strategy="epoch", **steps, **quiet)
    measure = {"evaluator": lambda model: {"ba1": 0.5}, "canvas": Canvas(32)}
    trainer = CLIPTrainer(tiny_model, args, tiny_pairs, tiny_processor, **measure)
    trainer.train()
    history = trainer.history()
    assert [entry["epoch"] for entry in history] == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3])
    assert ["loss" in entry for entry in history] == 4 * [True]
    assert ["eval_ba1" in entry for entry in history] == [False, False, True, True]
    said = inspect.getdoc(CLIPTrainer.history)
    assert "one every `logging_steps`" in " ".join(said.split()) and "one dict an epoch" not in said


def test_each_of_several_cpu_processes_loads_onto_the_cpu_itself(tmp_path, monkeypatch):
    torch.save({"step": torch.ones(2)}, tmp_path / "optimizer.pt")
    monkeypatch.setattr(TrainingArguments, "device", property(lambda args: torch.device("cpu", 1)))
    args = CLIPTrainingConfig(str(tmp_path), use_cpu=True)
    assert torch.load(tmp_path / "optimizer.pt", map_location=args.device)["step"].tolist() == [1, 1]
    monkeypatch.setattr(TrainingArguments, "device", property(lambda args: torch.device("cuda", 1)))
    assert args.device == torch.device("cuda", 1)


def test_the_library_takes_places_of_its_own(tmp_path):
    args = CLIPTrainingConfig(output_dir=str(tmp_path), resume_from_checkpoint="there", use_cpu=True)
    assert (args.output_dir, args.resume_from_checkpoint) == (str(tmp_path), "there")


def test_an_accelerator_config_is_the_same_in_every_form(tmp_path):
    values, path = {"dispatch_batches": False, "use_seedable_sampler": True}, tmp_path / "accelerator.json"
    path.write_text(json.dumps(values))
    instance = AcceleratorConfig(**values)
    given = [values, json.dumps(values), str(path), instance]
    configs = [CLIPTrainingConfig(use_cpu=True, accelerator_config=one) for one in given]
    configs += [
        parse_section(CLIPTrainingConfig, {"use_cpu": True, "accelerator_config": one}, "") for one in given[:3]
    ]
    (only,) = {json.dumps(config.to_dict()["accelerator_config"], sort_keys=True) for config in configs}
    assert json.loads(only)["dispatch_batches"] is False and json.loads(only)["even_batches"] is False
    assert all(training_settings(config) == training_settings(configs[0]) for config in configs)
    assert instance.even_batches is True


def test_the_best_model_goes_by_benign_accuracy_unless_it_is_told():
    args = CLIPTrainingConfig(use_cpu=True, eval_strategy="epoch", load_best_model_at_end=True)
    assert args.metric_for_best_model == "ba1" and args.greater_is_better is True


@pytest.mark.parametrize("options", [dict(load_best_model_at_end=True), dict(early_stopping_patience=2)])
def test_of_success_rates_the_lowest_is_the_best(options):
    def greater(metric, **others):
        settings = dict(use_cpu=True, eval_strategy="epoch", metric_for_best_model=metric, **options, **others)
        return CLIPTrainingConfig(**settings).greater_is_better

    assert greater("asr1_badnets") is greater("eval_asr10_sig") is False
    assert greater("ba1") is greater("eval_ra1_badnets") is greater("asr1_sig", greater_is_better=True) is True


# -- a choice among epochs --------------------------------------------------------------------------------------------


CHOOSING = [dict(load_best_model_at_end=True), dict(early_stopping_patience=2)]


@pytest.mark.parametrize("options", [{}, *CHOOSING], ids=["no choice", "best model", "early stopping"])
def test_a_choice_among_epochs_looks_at_no_image_that_is_reported_on(options, monkeypatch):
    victim = {"use_cpu": True, **options}
    config = config_from({"world": {"n_test": 30}, "evaluate": {"epoch_images": 10}, "victim": victim})
    world, shown = World(config), []
    build = epochs.epoch_evaluator(config, world, {}, config.victim)
    monkeypatch.setattr(
        "hf_clipbd.recipe.zero_shot.ZeroShotEvaluator", lambda processor, rows, *others, **named: shown.append(rows)
    )
    build(None)
    measured = epochs.measured_settings(config, config.victim, world)
    plain = {"epoch_images": 10, "include_target": False, "prompts": world.prompts}
    assert measured == (plain | {"images": "validation"} if options else plain)
    (rows,) = shown
    tested, seen = ({image.tobytes() for image in some["image"]} for some in (world.test, rows))
    assert len(rows) == 10 and (seen.isdisjoint(tested) if options else seen <= tested)


@pytest.mark.parametrize("metric", ["asr1_badnets", "eval_asr1_badnets", "ra1_badnets", "eval_ra10_badnets"])
@pytest.mark.parametrize("options", CHOOSING)
def test_a_choice_by_what_takes_the_trigger_is_refused(metric, options):
    training = CLIPTrainingConfig(use_cpu=True, eval_strategy="epoch", metric_for_best_model=metric, **options)
    with pytest.raises(ConfigError, match=f"known without the trigger.*{metric}.*`ba1`"):
        epochs.chooses(training)


def test_the_order_of_the_rows_has_the_seed_that_is_asked_for(tiny_model, tiny_processor, tiny_pairs, tmp_path):
    def batches(**seeds):
        args = CLIPTrainingConfig(str(tmp_path), per_device_train_batch_size=8, use_cpu=True, **seeds)
        return list(CLIPTrainer(tiny_model, args, tiny_pairs, tiny_processor, canvas=Canvas(32))._batch_sampler())

    assert batches(seed=1, data_seed=5) == batches(seed=2, data_seed=5) == batches(seed=5)
    assert batches(seed=1) != batches(seed=5)


def test_options_of_adapters_reach_them(tiny_model):
    def adapters(seed):
        args = CLIPTrainingConfig(
            "unused", use_cpu=True, lora=True, lora_r=4, lora_alpha=12.0, lora_dropout=0.25, seed=seed
        )
        return add_adapters(copy.deepcopy(tiny_model), args)

    one, same, other = adapters(0), adapters(0), adapters(1)
    config = one.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (4, 12.0, 0.25)
    drawn = [{n: p for n, p in model.named_parameters() if "lora_A" in n} for model in (one, same, other)]
    assert drawn[0] and all(
        torch.equal(p, drawn[1][n]) and not torch.equal(p, drawn[2][n]) for n, p in drawn[0].items()
    )


@pytest.mark.parametrize(
    "option",
    [
        {"seed": 1},
        {"data_seed": 1},
        {"max_grad_norm": 0.0},
        {"dataloader_drop_last": False},
        {"gradient_accumulation_steps": 2},
        {"lr_scheduler_type": "linear"},
        {"adam_beta2": 0.98},
        {"freeze_batch_norm": True},
        {"early_stopping_patience": 1, "eval_strategy": "epoch"},
        {"load_best_model_at_end": True, "eval_strategy": "epoch"},
    ],
    ids=lambda option: next(iter(option)),
)
def test_what_changes_a_training_changes_its_settings(option):
    usual, found = (training_settings(CLIPTrainingConfig("unused", use_cpu=True, **one)) for one in ({}, option))
    assert usual != found and set(usual) <= set(found)


@pytest.mark.parametrize(
    "option",
    [
        {"torch_empty_cache_steps": 100},
        {"skip_memory_metrics": False},
        {"include_num_input_tokens_seen": "all"},
        {"label_names": ["label"]},
        {"remove_unused_columns": True},
        {"eval_accumulation_steps": 2},
        {"prediction_loss_only": True},
        {"average_tokens_across_devices": False},
        {"save_strategy": "steps", "save_steps": 7},
    ],
    ids=lambda option: next(iter(option)),
)
def test_what_changes_no_result_changes_no_settings(option):
    usual, found = (training_settings(CLIPTrainingConfig("unused", use_cpu=True, **one)) for one in ({}, option))
    assert usual == found


def test_the_steps_of_checkpoints_are_settings_where_the_best_model_may_not_be_saved():
    def best(**steps):
        by_steps = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 2, **steps}
        return CLIPTrainingConfig("unused", use_cpu=True, load_best_model_at_end=True, **by_steps)

    every, some, fewer, new = best(save_steps=2), best(save_steps=4), best(save_steps=6), best(save_strategy="best")
    assert "save_steps" not in training_settings(every) and training_settings(every) == training_settings(new)
    assert training_settings(some)["save_steps"] == 4 and training_settings(fewer)["save_steps"] == 6
    assert epochs.chooses(every) and epochs.chooses(new)
    with pytest.raises(ConfigError, match="`save_steps` 4 and `eval_steps` 2.*Set `save_steps` to `eval_steps`"):
        epochs.chooses(some)


QUIET = {"per_device_train_batch_size": 16, "use_cpu": True, "report_to": "none", "disable_tqdm": True}


def test_a_configuration_or_rows_of_another_kind_are_refused(tiny_model, tiny_processor, tiny_pairs, tmp_path):
    args, other = CLIPTrainingConfig(str(tmp_path), **QUIET), TrainingArguments(str(tmp_path), use_cpu=True)
    for trainer, given, says in (
        (CLIPTrainer, other, "a CLIPTrainingConfig for a CLIPTrainer, but got a TrainingArguments"),
        (CleanerCLIPTrainer, args, "a CleanerCLIPConfig for a CleanerCLIPTrainer, but got a CLIPTrainingConfig"),
    ):
        with pytest.raises(TypeError, match=says):
            trainer(tiny_model, given, tiny_pairs, tiny_processor)
    assert all(one.trainer.config_class in one.config.__mro__ for one in DEFENSES.values())
    splits = datasets.DatasetDict(train=tiny_pairs)
    for rows, says in ((splits, "DatasetDict. Pass one split"), (list(tiny_pairs), r"list. Make one.*from_list")):
        with pytest.raises(TypeError, match=says):
            CLIPTrainer(tiny_model, args, rows, tiny_processor)
    with pytest.raises(TypeError, match="the model's processor.*got the tokenizer"):
        CLIPTrainer(tiny_model, args, tiny_pairs, tiny_processor.tokenizer)


def test_an_optimiser_of_what_is_not_trained_is_refused(tiny_model, tiny_processor, tiny_pairs, tmp_path):
    args, frozen = CLIPTrainingConfig(str(tmp_path), **QUIET), copy.deepcopy(tiny_model)
    part = torch.optim.SGD(list(tiny_model.parameters())[:2], lr=0.1)
    CLIPTrainer(tiny_model, args, tiny_pairs, tiny_processor, optimizers=(part, None))
    for model, given in ((tiny_model, replace(args, lora=True)), (frozen, args)):
        with pytest.raises(ValueError, match="none of those in `optimizers` is a trained one.*With `lora`"):
            CLIPTrainer(model, given, tiny_pairs, tiny_processor, optimizers=(part, None))


def test_figures_of_an_evaluator_are_plain_numbers_in_a_checkpoint(tiny_model, tiny_processor, tiny_pairs, tmp_path):
    args = CLIPTrainingConfig(str(tmp_path), eval_strategy="epoch", num_train_epochs=1, **QUIET)
    figures = {"ba1": np.float32(0.5), "own": torch.tensor(2)}
    trainer = CLIPTrainer(tiny_model, args, tiny_pairs, tiny_processor, evaluator=lambda model: figures)
    trainer.train()
    written = json.loads((tmp_path / "checkpoint-3" / "trainer_state.json").read_text())["log_history"]
    assert [(one["eval_ba1"], one["eval_own"]) for one in written if "eval_ba1" in one] == [(0.5, 2)]
    for wrong, says in ((None, "but got NoneType"), ({"ba1": "half"}, "`eval_ba1`, but got str")):
        trainer.evaluator = lambda model, wrong=wrong: wrong
        with pytest.raises(TypeError, match=says):
            trainer.evaluate()


def test_a_second_training_logs_its_own_terms_alone(tiny_model, tiny_processor, tiny_pairs, tmp_path):
    steps = {"logging_strategy": "steps", "logging_steps": 2, "num_train_epochs": 1, "save_strategy": "no"}
    args = CLIPTrainingConfig(str(tmp_path), learning_rate=0.01, **steps, **QUIET)
    trainer = CLIPTrainer(tiny_model, args, tiny_pairs, tiny_processor)
    for _ in range(2):  # the third step of the first one is not logged
        trainer.train()
        (logged,) = trainer.history()
        assert logged["loss_clip"] == pytest.approx(logged["loss"], rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_of_half_precision_are_said_to_lose_steps(
    dtype, tiny_model, tiny_processor, tiny_pairs, tmp_path, caplog
):
    CLIPTrainer(tiny_model.to(dtype), CLIPTrainingConfig(str(tmp_path), **QUIET), tiny_pairs, tiny_processor)
    assert ("bfloat16, which rounds away" in caplog.text) == (dtype == torch.bfloat16)
