# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The one training loop: embed the views, ask the defence for its loss terms, sum them, log each.

Victim training and plain fine-tuning are this class as it stands; a defence says which views and which terms it adds.
"""

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import datasets
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_clipbd import features
from hf_clipbd.data.canvas import Canvas, normalize, pixel_statistics
from hf_clipbd.data.pairs import PLAIN_VIEWS, PairBatchSampler, PairCollator, PairViews, ViewPlan
from hf_clipbd.losses import clip_loss, gather_with_grad


MAX_LOGIT_SCALE = math.log(100.0)


@dataclass
class CLIPTrainingConfig(TrainingArguments):
    """Arguments of victim training and of plain fine-tuning (FT), on top of transformers' `TrainingArguments`.

    Only defaults differ from transformers': the papers' optimiser (AdamW, weight decay 0.1, betas 0.9 and 0.999,
    linear warm-up then cosine to zero) and what contrastive training needs (whole batches, all columns).

    Args:
        image_column: Column of images.
        caption_column: Column of captions.
    """

    output_dir: str | None = field(default="trainer_output", metadata={"help": "Folder of the checkpoints."})
    image_column: str = field(default="image", metadata={"help": "Column of images."})
    caption_column: str = field(default="caption", metadata={"help": "Column of captions."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Pairs a process and step."})
    learning_rate: float = field(default=1e-5, metadata={"help": "Peak learning rate."})
    weight_decay: float = field(default=0.1, metadata={"help": "AdamW's decay of matrices and kernels."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule after the warm-up."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Steps of linear warm-up, or a share of all if < 1."})
    logging_strategy: str = field(default="epoch", metadata={"help": "When losses are logged."})
    save_strategy: str = field(default="epoch", metadata={"help": "When a checkpoint is written."})
    save_total_limit: int | None = field(default=1, metadata={"help": "Checkpoints that are kept."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Unused here: views are drawn by name."})
    dataloader_drop_last: bool = field(default=True, metadata={"help": "Whole batches only."})

    def __post_init__(self):
        self.accelerator_config = {**_as_dict(self.accelerator_config), "even_batches": False}
        super().__post_init__()


def _as_dict(config: Any) -> dict[str, Any]:
    if config is None:
        return {}
    return dict(config) if isinstance(config, dict) else config.to_dict()


@dataclass(frozen=True)
class Views:
    """Unit embeddings of the global batch, by view.

    Args:
        images: View name -> (N, D).
        texts: View name -> (N, D), row i the caption of image i.
        scale: exp(logit_scale), scalar with gradient.
    """

    images: dict[str, Tensor]
    texts: dict[str, Tensor]
    scale: Tensor


class _ClampLogitScale(TrainerCallback):
    """Keeps exp(logit_scale) at most 100 after each optimiser step (Radford et al., arXiv 2103.00020, section 2.5)."""

    def on_optimizer_step(self, args, state, control, model=None, **kwargs) -> None:
        with torch.no_grad():
            model.logit_scale.clamp_(max=MAX_LOGIT_SCALE)


class CLIPTrainer(Trainer):
    """Trains a dual encoder with the symmetric image-text loss; victim training and FT are this class.

    Args:
        model: Dual encoder (`CLIPModel`, `CLIPResNetModel`, ...).
        args: The configuration.
        train_dataset: Rows with an image and a caption column.
        processing_class: The model's processor; saved beside the model.
        evaluator: Called with the model at each evaluation; returns figures such as `{"ba1": 0.9}`, which are logged
            as `eval_ba1` and are available to `metric_for_best_model`. It is called on every process.
        canvas: Geometry of the images; the processor's size by default.
        **kwargs: Passed to `transformers.Trainer`.

    Raises:
        ValueError: If a column is missing or the dataset is smaller than one global batch.

    Example:
        >>> trainer = CLIPTrainer(model, CLIPTrainingConfig("out"), pairs, processor)  # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP
    """

    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: nn.Module,
        args: CLIPTrainingConfig,
        train_dataset: datasets.Dataset,
        processing_class: Any,
        evaluator: Callable[[nn.Module], dict[str, float]] | None = None,
        canvas: Canvas | None = None,
        **kwargs: Any,
    ):
        self.plan = self.view_plan(args)
        views = PairViews(
            train_dataset,
            self.plan,
            canvas or Canvas.of(processing_class),
            args.seed if args.data_seed is None else args.data_seed,
            args.image_column,
            args.caption_column,
        )
        tokenizer = getattr(processing_class, "tokenizer", processing_class)
        limit = min(int(tokenizer.model_max_length), _text_positions(model))
        super().__init__(
            model=model,
            args=args,
            train_dataset=views,
            eval_dataset=views if evaluator is not None else None,
            processing_class=processing_class,
            data_collator=PairCollator(tokenizer, limit),
            **kwargs,
        )
        self.evaluator = evaluator
        self.pixel_mean, self.pixel_std = pixel_statistics(processing_class)
        self.model_accepts_loss_kwargs = False
        self.can_return_loss = True
        self.add_callback(_ClampLogitScale())
        self._terms: dict[str, list[Tensor]] = defaultdict(list)

    @classmethod
    def view_plan(cls, args: CLIPTrainingConfig) -> ViewPlan:
        """Return the views this training draws from every pair: here the image and the caption as they are."""
        return PLAIN_VIEWS

    def loss_terms(self, views: Views) -> dict[str, Tensor]:
        """Return name -> weighted scalar term; the loss is their sum.

        Args:
            views: Embeddings of the global batch.
        """
        return {"clip": clip_loss(views.images["image"], views.texts["caption"], views.scale)}

    def embed_views(self, model: nn.Module, inputs: dict[str, Tensor]) -> Views:
        """Return the embeddings of all views of the global batch, from one call of the wrapped model."""
        n, n_images = inputs["pixel_values"].shape[:2]
        n_texts = inputs["input_ids"].shape[1]
        pixels = normalize(inputs["pixel_values"].transpose(0, 1).flatten(0, 1), self.pixel_mean, self.pixel_std)
        tokens = {name: inputs[name].transpose(0, 1).flatten(0, 1) for name in ("input_ids", "attention_mask")}
        u, v = features.embed_pairs(model, pixels.contiguous(memory_format=torch.channels_last), **tokens)
        u = gather_with_grad(u.unflatten(0, (n_images, n)).transpose(0, 1))  # (N, V, D)
        v = gather_with_grad(v.unflatten(0, (n_texts, n)).transpose(0, 1))  # (N, T, D)
        return Views(
            images=dict(zip(self.plan.images, u.unbind(1), strict=True)),
            texts=dict(zip(self.plan.text_names, v.unbind(1), strict=False)),
            scale=features.logit_scale(self.accelerator.unwrap_model(model)),
        )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Return the sum of the loss terms of the global batch (and the terms, if asked)."""
        terms = self.loss_terms(self.embed_views(model, inputs))
        for name, term in terms.items():
            self._terms[name].append(term.detach())
        loss = torch.stack(list(terms.values())).sum()
        return (loss, terms) if return_outputs else loss

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Return the parameters under weight decay: matrices and kernels, not norms, biases and logit_scale."""
        return [name for name, parameter in model.named_parameters() if parameter.ndim >= 2]

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        """Return the loader of this process: whole global batches whose rows do not depend on the process count."""
        sampler = PairBatchSampler(
            len(self.train_dataset),
            self._train_batch_size,
            self.accelerator.num_processes,
            self.train_dataset.seed,
            self.plan.subset_size,
        )
        workers = self.args.dataloader_num_workers
        loader = torch.utils.data.DataLoader(
            self.train_dataset,
            batch_sampler=sampler,
            collate_fn=self.data_collator,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
            persistent_workers=self.args.dataloader_persistent_workers and workers > 0,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )
        return self.accelerator.prepare(loader)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Return and log the evaluator's figures, each named with `metric_key_prefix`.

        Raises:
            ValueError: If the trainer has no evaluator.
        """
        if self.evaluator is None:
            raise ValueError(
                "Expected a trainer with an `evaluator`, but it has none. Pass evaluator= to the trainer."
            )
        figures = self.evaluator(self.accelerator.unwrap_model(self.model))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log `logs`, with the mean of every loss term since the last time beside a training loss."""
        if "loss" in logs:
            means = {f"loss_{name}": torch.stack(values).mean().item() for name, values in self._terms.items()}
            logs = {**logs, **means}
            self._terms.clear()
        super().log(logs, start_time)

    def history(self) -> list[dict[str, float]]:
        """Return one dict an epoch: the epoch's number, its losses, learning rate and evaluation figures."""
        by_epoch: dict[float, dict[str, float]] = {}
        for entry in self.state.log_history:
            if "loss" in entry or any(name.startswith("eval_") for name in entry):
                by_epoch.setdefault(entry["epoch"], {}).update(entry)
        return [by_epoch[epoch] for epoch in sorted(by_epoch)]


def _text_positions(model: nn.Module) -> int:
    """Return how many tokens the model's text tower has positions for."""
    config = getattr(model.config, "text_config", model.config)
    return int(getattr(config, "max_position_embeddings", None) or 77)
