# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The one training loop: embed the views, ask the defence for its loss terms, sum them, log each.

Victim training and plain fine-tuning are this class as it stands; a defence says which views and which terms it adds.
"""

import time
from collections.abc import Callable
from typing import Any

import datasets
import torch
from torch import Tensor, nn
from transformers import Trainer

from hf_clipbd import features
from hf_clipbd.data.batches import PairBatchSampler
from hf_clipbd.data.canvas import Canvas, normalize, pixel_statistics
from hf_clipbd.data.pairs import PLAIN_VIEWS, PairCollator, PairViews, ViewPlan
from hf_clipbd.data.stream import PairStream
from hf_clipbd.losses import gather_with_grad, image_text_loss
from hf_clipbd.models.text_input import TextInput
from hf_clipbd.training.adapters import add_adapters, merge_adapters
from hf_clipbd.training.arguments import CLIPTrainingConfig
from hf_clipbd.training.checks import check_functions, check_given, check_optimizer, check_scale, warn_of_half_weights
from hf_clipbd.training.chunks import batch_norms, encode_in_chunks
from hf_clipbd.training.guard import ClampLogitScale, FiniteGuard
from hf_clipbd.training.pushing import Publisher, PushOnce, check_pushing
from hf_clipbd.training.settings import training_settings
from hf_clipbd.training.sharding import name_input_embedding, prepare_for_fsdp, separate_scalars
from hf_clipbd.training.stopping import GoesOnWhereItStopped, StopEarly, paced_for_stream
from hf_clipbd.training.terms import TermMeans, checked_terms, plain_figures
from hf_clipbd.training.views import Views


class CLIPTrainer(PushOnce, GoesOnWhereItStopped, Trainer):
    """Trains a dual encoder with the symmetric image-text loss; victim training and FT are this class.

    Args:
        model: Dual encoder (`CLIPModel`, `CLIPResNetModel`, ...).
        args: The configuration.
        train_dataset: Rows with an image and a caption column; a `datasets.IterableDataset` is streamed, see
            `PairStream` for what differs.
        processing_class: The model's processor; saved beside the model.
        evaluator: Called with the model at each evaluation; returns figures such as `{"ba1": 0.9}`, which are logged
            as `eval_ba1` and are available to `metric_for_best_model`. It is called on every process, with the model
            in evaluation mode, which ends with the call; gradients are not turned off.
        canvas: Geometry of the images; the processor's size by default.
        publisher: What `push_to_hub` pushes with, `hf_clipbd.hub.TrainedPublisher()`.
        **kwargs: Passed to `transformers.Trainer`; what this loop makes no use of is refused, such as
            `compute_metrics`, `compute_loss_func`, `data_collator`, `eval_dataset` and `model_init`.

    Raises:
        TypeError: If the configuration is not the trainer's `config_class`, or the rows are no dataset.
        ValueError: If a column is missing, the dataset is smaller than one global batch or than K, a stream has no
            `max_steps`, `chunk_size` meets batch normalisation in training mode, FSDP or DeepSpeed, evaluations
            are asked for without an evaluator, a keyword would have no use, `optimizers` holds nothing that is
            trained, or `push_to_hub` would send what must not go up.
        NonFiniteLossError: In training, see `FiniteGuard`.

    Example:
        >>> trainer = CLIPTrainer(model, CLIPTrainingConfig("out"), pairs, processor)  # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP
    """

    config_class: type[CLIPTrainingConfig] = CLIPTrainingConfig
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: nn.Module,
        args: CLIPTrainingConfig,
        train_dataset: datasets.Dataset | datasets.IterableDataset,
        processing_class: Any,
        evaluator: Callable[[nn.Module], dict[str, float]] | None = None,
        canvas: Canvas | None = None,
        publisher: Publisher | None = None,
        **kwargs: Any,
    ):
        kwargs = check_functions(kwargs)
        check_given(self, args, train_dataset)
        self.publisher = publisher
        if args.push_to_hub:
            self.marks = check_pushing(args, publisher, train_dataset)
            self.settings = training_settings(args)  # before there is an accelerator, whose state it would reset
        if evaluator is None and args.eval_strategy != "no":
            raise ValueError(
                f"Expected an `evaluator` for evaluations by {args.eval_strategy.value}, but got none. "
                "Pass evaluator= (in a recipe set `evaluate.epoch_images`), or set `eval_strategy` to no."
            )
        self.plan = self.view_plan(args)
        views = self._views(train_dataset, canvas or Canvas.of(processing_class), args)
        args = paced_for_stream(args) if isinstance(views, PairStream) else args
        model = add_adapters(model, args) if args.lora else model
        check_optimizer(model, (kwargs.get("optimizers") or (None, None))[0])
        if args.neftune_noise_alpha is not None:
            name_input_embedding(model)
        super().__init__(
            model=model,
            args=args,
            train_dataset=views,
            eval_dataset=views if evaluator is not None else None,
            processing_class=processing_class,
            data_collator=PairCollator(TextInput.of(model, processing_class)),
            **kwargs,
        )
        self.evaluator, self.evaluation_seconds = evaluator, 0.0
        self.pixel_mean, self.pixel_std = pixel_statistics(processing_class)
        self.model_accepts_loss_kwargs = False
        self.can_return_loss = True
        self.frozen_norms = batch_norms(model) if args.freeze_batch_norm or args.lora else []
        self.guard, self.terms = FiniteGuard(), TermMeans()
        for callback in (ClampLogitScale(), self.guard, self.terms):
            self.add_callback(callback)
        if args.early_stopping_patience is not None:
            self.add_callback(StopEarly(args.early_stopping_patience))
        if self.is_fsdp_enabled:
            prepare_for_fsdp(self.accelerator, self.model)
            if evaluator is not None:
                raise ValueError("Expected no `evaluator` under FSDP, where no process has it all. Evaluate later.")
        if isinstance(self.train_dataset, PairViews):
            self._batch_sampler()  # refuses at once what would be refused in training
        check_scale(self)
        warn_of_half_weights(model, args.learning_rate)
        if args.push_to_hub:
            publisher.prepare(self)

    @classmethod
    def view_plan(cls, args: CLIPTrainingConfig) -> ViewPlan:
        """Return the views this training draws from every pair: here the image and the caption as they are."""
        return PLAIN_VIEWS

    def _views(
        self, rows: datasets.Dataset | datasets.IterableDataset, canvas: Canvas, args: CLIPTrainingConfig
    ) -> PairViews | PairStream:
        seed = args.seed if args.data_seed is None else args.data_seed
        columns = (args.image_column, args.caption_column)
        if not isinstance(rows, datasets.IterableDataset):
            return PairViews(rows, self.plan, canvas, seed, *columns)
        if args.max_steps <= 0:
            raise ValueError("Expected `max_steps`, since the length of a streaming training set is not known.")
        return PairStream(rows, self.plan, canvas, seed, *columns, args.shuffle_buffer)

    def loss_terms(self, views: Views) -> dict[str, Tensor]:
        """Return name -> weighted scalar term; the loss is their sum.

        Args:
            views: Embeddings of the global batch.
        """
        return {"clip": image_text_loss(views.images["image"], views.texts["caption"], views.scale, views.bias)}

    def embed_views(self, model: nn.Module, inputs: dict[str, Tensor]) -> Views:
        """Return the embeddings of all views of the global batch; the model is called once, or once a chunk."""
        towers = {name: inputs[name] for name in ("pixel_values", "input_ids", "attention_mask")}
        chunk_size = self.args.chunk_size
        if chunk_size is None or chunk_size >= len(inputs["pixel_values"]):
            u, v = self.embed_rows(model, towers)
        else:
            u, v = encode_in_chunks(self.embed_rows, model, towers, chunk_size)
        u, v = gather_with_grad(u), gather_with_grad(v)  # (N, V, D), (N, T, D)
        bare = self.accelerator.unwrap_model(model)
        return Views(
            images=dict(zip(self.plan.images, u.unbind(1), strict=True)),
            texts=dict(zip(self.plan.text_names, v.unbind(1), strict=False)),
            scale=features.logit_scale(bare),
            bias=features.logit_bias(bare),
        )

    def embed_rows(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the unit embeddings of the image views (n, V, D) and text views (n, T, D) of n rows, from one call.

        Args:
            model: The model as it is wrapped, so that the wrapper sees the call.
            inputs: `pixel_values`, uint8 (n, V, 3, H, W), `input_ids` and `attention_mask`, (n, T, L).
        """
        n, n_images = inputs["pixel_values"].shape[:2]
        n_texts = inputs["input_ids"].shape[1]
        pixels = normalize(inputs["pixel_values"].transpose(0, 1).flatten(0, 1), self.pixel_mean, self.pixel_std)
        tokens = {name: inputs[name].transpose(0, 1).flatten(0, 1) for name in ("input_ids", "attention_mask")}
        u, v = features.embed_pairs(model, pixels.contiguous(memory_format=torch.channels_last), **tokens)
        return u.unflatten(0, (n_images, n)).transpose(0, 1), v.unflatten(0, (n_texts, n)).transpose(0, 1)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Return the sum of the loss terms of the global batch (and the terms, if asked)."""
        for norm in self.frozen_norms:
            norm.eval()
        terms = checked_terms(self.loss_terms(self.embed_views(model, inputs)))
        if model.training:
            self.guard.note_batch(inputs["rows"], terms)
        self.terms.note(terms)
        loss = torch.stack(list(terms.values())).sum()
        return (loss, terms) if return_outputs else loss

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Return the parameters under weight decay: matrices and kernels, not norms, biases and logit_scale."""
        return [name for name, parameter in model.named_parameters() if parameter.ndim >= 2]

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | float | None = None) -> Tensor | float | None:
        norm = super()._get_grad_norm(model, grad_norm)
        if norm is not None:
            self.guard.note_norm(norm)
        return norm

    def _batch_sampler(self) -> PairBatchSampler:
        return PairBatchSampler(
            len(self.train_dataset),
            self._train_batch_size,
            self.accelerator.num_processes,
            self.train_dataset.seed,
            self.plan.subset_size,
            self.args.dataloader_drop_last,
            None if self.plan.subset_if is None else self.train_dataset.in_subset,
        )

    def create_optimizer(self, *arguments: Any) -> torch.optim.Optimizer:
        """Return the optimiser, made at the first call; under FSDP with groups of their own for scalars."""
        made = self.optimizer is None
        optimizer = super().create_optimizer(*arguments)
        if made and self.is_fsdp_enabled:
            separate_scalars(optimizer)
        return optimizer

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        """Return the loader of this process: whole global batches whose rows do not depend on the process count."""
        workers, accelerator = self.args.dataloader_num_workers, self.accelerator
        options = {
            "collate_fn": self.data_collator,
            "pin_memory": self.args.dataloader_pin_memory and torch.cuda.is_available(),
            "persistent_workers": self.args.dataloader_persistent_workers and workers > 0,
            "prefetch_factor": self.args.dataloader_prefetch_factor,
        }
        if isinstance(self.train_dataset, PairStream):
            place = (self._train_batch_size, accelerator.process_index, accelerator.num_processes)
            return self.train_dataset.loader(*place, workers, **options)
        self._sampler = self._batch_sampler()
        loader = torch.utils.data.DataLoader(
            self.train_dataset, batch_sampler=self._sampler, num_workers=workers, **options
        )
        return accelerator.prepare(loader)

    def trained_model(self) -> nn.Module:
        """Return the model outside all wrappers, with adapters merged into a copy: what is saved whole.

        `save_model` and `push_to_hub` write adapters as adapters, which `load_dual_encoder` puts onto their base.
        """
        return merge_adapters(self.accelerator.unwrap_model(self.model))

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Return and log the evaluator's figures, each named with `metric_key_prefix`.

        Raises:
            ValueError: If the trainer has no evaluator, or `eval_dataset` is not the trainer's own.
        """
        if self.evaluator is None:
            raise ValueError("Expected a trainer with an `evaluator`, but it has none. Pass evaluator= to it.")
        if eval_dataset is not None and eval_dataset is not self.eval_dataset:
            raise ValueError(
                "Expected no `eval_dataset`, since the evaluator has images of its own, but got one of type "
                f"{type(eval_dataset).__name__}. Leave it out, or build a trainer with an evaluator of those rows."
            )
        started = time.perf_counter()
        model = self.accelerator.unwrap_model(self.model)
        with features.evaluation_mode(model):
            figures = self.evaluator(model)
        self.evaluation_seconds += time.perf_counter() - started
        metrics = plain_figures(figures, metric_key_prefix)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def predict(self, *arguments: Any, **options: Any) -> Any:
        """Raise, since a dual encoder has no labels to predict."""
        raise NotImplementedError(
            "Expected a model that predicts labels, but this is a dual encoder. For figures call `evaluate`, for "
            "embeddings `hf_clipbd.features.embed_dataset(trainer.trained_model(), trainer.processing_class, rows)`."
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log `logs`, with the mean of every loss term since the last time beside a training loss."""
        super().log({**logs, **self.terms.told()} if "loss" in logs else logs, start_time)

    def history(self) -> list[dict[str, float]]:
        """Return the log, one dict a moment at which something was logged or measured: by default an epoch's end.

        With `logging_strategy="steps"` there are more, one every `logging_steps`. Each has the epoch, a fraction
        within one, and what belongs to the moment: losses and learning rate, evaluation figures, or both.
        """
        by_epoch: dict[float, dict[str, float]] = {}
        for entry in self.state.log_history:
            if "loss" in entry or any(name.startswith("eval_") for name in entry):
                by_epoch.setdefault(entry["epoch"], {}).update(entry)
        return [by_epoch[epoch] for epoch in sorted(by_epoch)]
