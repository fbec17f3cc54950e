# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Safety of the loop: losses that are not finite, captions that are too long, batches and sets that are too small."""

import copy
import re

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from safetensors.torch import load_file

from hf_clipbd import features
from hf_clipbd.data.batches import PairBatchSampler
from hf_clipbd.data.canvas import Canvas
from hf_clipbd.data.pairs import ViewPlan
from hf_clipbd.defenses import DEFENSES, CleanCLIPTrainer
from hf_clipbd.trainer import CLIPTrainer
from hf_clipbd.training.guard import NonFiniteLossError


def build(model, processor, pairs, folder, defense="ft", trainer=None, **changes):
    defaults = dict(
        per_device_train_batch_size=8,
        num_train_epochs=2,
        learning_rate=1e-3,
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="steps",
        save_steps=2,
        save_total_limit=None,
    )
    args = DEFENSES[defense].config(output_dir=str(folder), **{**defaults, **changes})
    return (trainer or DEFENSES[defense].trainer)(model, args, pairs, processor, canvas=Canvas(32))


# -- losses that are not finite ---------------------------------------------------------------------------------------


class BreakingTrainer(CleanCLIPTrainer):
    """Its in-modal term, or its gradient alone, is not finite at the fifth step."""

    breaks_gradient = False

    def loss_terms(self, views):
        terms = super().loss_terms(views)
        if self.state.global_step == 4:
            nothing = (0.0 * views.images["image"]).sum()
            terms["in_modal"] = nothing.sqrt() if self.breaks_gradient else nothing / 0.0
        return terms


class BreakingGradientTrainer(BreakingTrainer):
    breaks_gradient = True


@pytest.mark.parametrize("terms", [{}, None, {"clip": 1.0}, {"clip": torch.ones(4)}])
def test_loss_terms_are_numbers_by_name(terms, tiny_model, tiny_processor, tiny_pairs, tmp_path):
    class OwnTrainer(CleanCLIPTrainer):
        def loss_terms(self, views):
            return terms

    with pytest.raises(TypeError, match="loss term"):
        build(tiny_model, tiny_processor, tiny_pairs, tmp_path, "cleanclip", OwnTrainer).train()


def test_a_view_is_an_rgb_picture_of_the_canvas(tiny_model, tiny_processor, tiny_pairs, tmp_path):
    class OwnTrainer(CLIPTrainer):
        @classmethod
        def view_plan(cls, args):
            return ViewPlan({"image": lambda image, key: np.asarray(image) / 255}, {"caption": lambda text, key: text})

    with pytest.raises(TypeError, match="view `image` as uint8.* but got float64"):
        build(tiny_model, tiny_processor, tiny_pairs, tmp_path, "ft", OwnTrainer).train()


@pytest.mark.parametrize(
    ("trainer_class", "term", "norm"),
    [(BreakingTrainer, "in_modal = nan", "nan"), (BreakingGradientTrainer, "in_modal = 0", "nan")],
)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_loss_or_gradient_that_is_not_finite_ends_the_training(
    trainer_class, term, norm, accumulation, tiny_model, tiny_processor, tiny_pairs, tmp_path
):
    settings = dict(defense="cleanclip", gradient_accumulation_steps=accumulation, num_train_epochs=4)
    start = copy.deepcopy(tiny_model)
    trainer = build(tiny_model, tiny_processor, tiny_pairs, tmp_path, trainer=trainer_class, **settings)
    sampler = trainer._batch_sampler()
    sampler.set_epoch(4 * accumulation // 6)
    first = 4 * accumulation % 6
    rows = [key.row for key in list(sampler)[first]]
    with pytest.raises(NonFiniteLossError) as error:
        trainer.train()
    message = str(error.value)
    assert "step 5" in message and term in message and "clip = " in message and str(rows) in message
    assert f"norm of the gradient: {norm}" in message
    assert message.count(" on rows [") == accumulation
    assert (
        "checkpoint-4." in message
        and sorted(path.name for path in tmp_path.glob("checkpoint-*"))[-1] == "checkpoint-4"
    )
    saved = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, saved[name]) and torch.isfinite(parameter).all(), name

    unbroken = build(copy.deepcopy(start), tiny_processor, tiny_pairs, tmp_path / "unbroken", **settings)
    unbroken.train()
    resumed = build(start, tiny_processor, tiny_pairs, tmp_path, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert torch.equal(resumed.model.text_projection.weight, unbroken.model.text_projection.weight)


def test_a_model_that_is_not_finite_is_found_at_the_first_step(tiny_model, tiny_processor, tiny_pairs, tmp_path):
    tiny_model.text_projection.weight.data[0, 0] = float("inf")
    with pytest.raises(NonFiniteLossError, match=r"step 1 .*clip = nan.*No checkpoint had been written"):
        build(tiny_model, tiny_processor, tiny_pairs, tmp_path).train()


def test_transformers_own_filter_would_hide_it_and_is_off(tiny_model, tiny_processor, tiny_pairs, tmp_path):
    assert build(tiny_model, tiny_processor, tiny_pairs, tmp_path).args.logging_nan_inf_filter is False


# -- captions ---------------------------------------------------------------------------------------------------------


def with_captions(pairs, captions):
    columns = Features({"image": Image(), "caption": Value("string")})
    images = pairs.cast_column("image", Image(decode=False))["image"][: len(captions)]
    return Dataset.from_dict({"image": list(images), "caption": captions}, features=columns)


def test_a_caption_longer_than_the_context_keeps_its_end_token(tiny_model, tiny_processor, tiny_pairs, tmp_path):
    tokenizer, context = tiny_processor.tokenizer, tiny_model.config.text_config.max_position_embeddings
    captions = ["a red banana beside a small dog " * 100, "a boat", "", "\N{GRINNING FACE} " * 60] * 2
    trainer = build(
        tiny_model, tiny_processor, with_captions(tiny_pairs, captions), tmp_path, "cleanclip", max_steps=2
    )
    (batch,) = trainer.get_train_dataloader()
    assert batch["input_ids"].shape == (8, 2, context)
    lengths = batch["attention_mask"].sum(-1, keepdim=True)
    last = batch["input_ids"].gather(-1, lengths - 1)
    assert (last == tokenizer.eos_token_id).all() and (batch["input_ids"][..., 0] == tokenizer.bos_token_id).all()
    assert (lengths == context).sum() >= 4 and lengths.min() == 2
    tokens = features.tokenize(tiny_processor, captions[:1])
    assert tokens["input_ids"][0, -1] == tokenizer.eos_token_id
    trainer.train()


def test_a_row_without_caption_is_named(tiny_model, tiny_processor, tiny_pairs, tmp_path):
    captions = ["a boat"] * 5 + [None] + ["a dog"] * 2
    with pytest.raises(TypeError, match="caption of row 5, but got NoneType"):
        build(tiny_model, tiny_processor, with_captions(tiny_pairs, captions), tmp_path).train()


# -- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(per_device_train_batch_size=1), "at least two pairs in every global batch"),
        (dict(per_device_train_batch_size=49), "at least one global batch of 49 x 1 rows.*has 48"),
        (dict(defense="cleanerclip", k_pairs=49), "0 to 48 pairs.*k_pairs"),
        (dict(defense="cleanerclip", k_pairs=1), "at least two pairs"),
    ],
    ids=["batch of one", "dataset below batch", "K above dataset", "K of one"],
)
def test_impossible_sizes_are_refused_before_training(changes, says, tiny_model, tiny_processor, tiny_pairs, tmp_path):
    with pytest.raises(ValueError, match=re.compile(says, re.DOTALL)):
        build(tiny_model, tiny_processor, tiny_pairs, tmp_path, **changes)


@pytest.mark.parametrize(
    ("n_rows", "processes", "keep", "sizes"),
    [
        (20, 1, False, [8, 8]),
        (20, 1, True, [8, 8, 4]),
        (17, 1, True, [8, 8]),  # one pair has nothing to be contrasted with
        (21, 2, True, [16, 4]),  # what two processes can share evenly
        (5, 1, True, [5]),
        (3, 2, True, [2]),
    ],
)
def test_the_incomplete_last_batch_is_dropped_or_kept(n_rows, processes, keep, sizes):
    sampler = PairBatchSampler(n_rows, 8, processes, drop_incomplete=not keep)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    together = [sum(batches[i : i + processes], []) for i in range(0, len(batches), processes)]
    assert [len(batch) for batch in together] == sizes
    rows = [key.row for batch in together for key in batch]
    assert len(rows) == len(set(rows))


def test_trains_on_the_incomplete_batch_of_a_small_set(tiny_model, tiny_processor, tiny_pairs, tmp_path):
    settings = dict(dataloader_drop_last=False, defense="cleanerclip", k_pairs=4, logging_steps=1, num_train_epochs=1)
    rows = tiny_pairs.select(range(13))
    trainer = build(tiny_model, tiny_processor, rows, tmp_path, logging_strategy="steps", **settings)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 3 and sum("loss_fc" in entry for entry in logged) == 1  # 8, 5 and the K pairs


def test_k_may_be_the_whole_dataset(tiny_model, tiny_processor, tiny_pairs, tmp_path):
    trainer = build(tiny_model, tiny_processor, tiny_pairs, tmp_path, "cleanerclip", k_pairs=48, num_train_epochs=1)
    keys = [key for batch in trainer._batch_sampler() for key in batch if key.subset]
    assert sorted(key.row for key in keys) == list(range(48))
