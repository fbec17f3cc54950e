# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""How a training is carried out, as opposed to what it minimises: memory, adapters, streams, stopping."""

import copy
import logging
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import TrainingArguments

from hf_clipbd.training.checks import check_bf16, check_options


logger = logging.getLogger(__name__)


@dataclass
class ScaleArguments(TrainingArguments):
    """Arguments of carrying out a contrastive training, on top of transformers' `TrainingArguments`.

    What a batch is decides what the loss is, since every other pair of the batch is a negative:

    - `per_device_train_batch_size` times the number of processes is the *global batch*. Embeddings of all processes
      are gathered with gradient, so two processes with half the batch each give the loss and gradient of one.
    - `gradient_accumulation_steps` **does not** enlarge it. It averages the losses of several global batches, each
      with its own negatives only, before the optimiser steps.
    - `chunk_size` leaves it as it is and bounds memory: the towers see `chunk_size` pairs at a time, the loss sees the
      embeddings of the whole global batch, and the backward pass goes through the chunks again one by one. Loss and
      gradient are those of the whole batch at once, at the price of a second forward pass.

    bf16 (`bf16=True`), compilation (`torch_compile=True`), activation checkpointing (`activation_checkpointing=True`,
    or by its older name `gradient_checkpointing`), trackers (`report_to`) and resuming are transformers' own. Under
    DDP, parameters without a gradient are looked for at every step (`ddp_find_unused_parameters`), with activation
    checkpointing too, since some batches have none for `logit_scale`.

    Args:
        chunk_size: Pairs of this process that go through the towers at a time; None takes all at once. Refused with
            batch normalisation in training mode, whose statistics are those of the whole batch and which a part of
            it cannot know: add `freeze_batch_norm`. Refused under FSDP and DeepSpeed.
        freeze_batch_norm: Keep the running statistics of batch normalisation and normalise with them (evaluation
            mode), so that each image is embedded independently of its batch.
        lora: Train low-rank adapters of every linear layer and convolution instead of the weights themselves
            (`logit_scale` and what lies inside `nn.MultiheadAttention` stay as they are; batch normalisation is
            frozen).
        lora_r: Rank of the adapters.
        lora_alpha: Their scale; an adapter's output is multiplied by lora_alpha / lora_r.
        lora_dropout: Dropout before the adapters, in [0, 1).
        lora_targets: Names of the layers that get adapters, by their last parts (`q_proj`, `visual_projection`);
            none means every linear layer and convolution.
        shuffle_buffer: Rows in the shuffle buffer of a streaming training set; 0 keeps the order of the stream.
        early_stopping_patience: Evaluations without a better `metric_for_best_model` (by default `ba1`, the
            evaluator's BA@1) after which the training stops; None never stops early. An ASR (`asr1_badnets`) is better
            where it is lower, unless `greater_is_better` says otherwise.

        ddp_timeout: Seconds that processes wait for one that works alone; a day here, since an optimised trigger or a
            large poisoned set takes hours.
        report_to: Trackers that transformers knows and that are installed, one or a list; none by default.
        hub_strategy: Only `end`: what `push_to_hub` sends is measured first, and a checkpoint is not.
        hub_private_repo: Whether the repository that `push_to_hub` makes is private; it is unless this is false.
        allow_backdoored: Let `push_to_hub` send a model that was trained on pairs marked as poisoned.

    Raises:
        ValueError: If a size is out of range, stopping early is asked for without evaluations, or an option of
            transformers is set that this loop cannot follow; see `hf_clipbd.training.checks`.

    Reference:
        Chunks: Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup (GradCache,
        arXiv 2101.06983). Adapters: Hu et al., LoRA (arXiv 2106.09685).
    """

    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Hide losses that are not finite; here they stop the training instead."}
    )
    chunk_size: int | None = field(
        default=None, metadata={"help": "Pairs a process that go through the towers at a time; all by default."}
    )
    freeze_batch_norm: bool = field(
        default=False, metadata={"help": "Normalise with the running statistics, and keep them."}
    )
    lora: bool = field(default=False, metadata={"help": "Train low-rank adapters instead of the weights."})
    lora_r: int = field(default=8, metadata={"help": "Rank of the adapters."})
    lora_alpha: float = field(default=16.0, metadata={"help": "Scale of the adapters, over their rank."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout before the adapters, in [0, 1)."})
    lora_targets: list[str] = field(
        default_factory=list, metadata={"help": "Layers with adapters; every linear layer and convolution by default."}
    )
    shuffle_buffer: int = field(
        default=1000, metadata={"help": "Rows in the shuffle buffer of a stream; 0 keeps its order."}
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Evaluations without a better BA@1 after which the training stops."}
    )

    report_to: list[str] = field(
        default_factory=list, metadata={"help": "Trackers that are told; `all` for every one that is installed."}
    )
    hub_strategy: str = field(default="end", metadata={"help": "When `push_to_hub` pushes; only at the end."})
    hub_private_repo: bool | None = field(
        default=True, metadata={"help": "Whether a repository made by `push_to_hub` is private."}
    )
    ddp_timeout: int = field(
        default=86400,
        metadata={"help": "Seconds that processes wait for one that works alone, as on an optimised trigger."},
    )
    allow_backdoored: bool = field(
        default=False, metadata={"help": "Let `push_to_hub` send a model trained on pairs marked as poisoned."}
    )

    def __post_init__(self):
        for name, least in (("chunk_size", 1), ("lora_r", 1), ("shuffle_buffer", 0), ("early_stopping_patience", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"Expected `{name}` of at least {least}, but got {value}.")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"Expected `lora_dropout` in [0, 1), but got {self.lora_dropout}.")
        if self.early_stopping_patience is not None:
            self._prepare_early_stopping()
        if self.load_best_model_at_end:
            self.metric_for_best_model = self.metric_for_best_model or "ba1"
        if self.greater_is_better is None and _is_success(self.metric_for_best_model):
            self.greater_is_better = False  # transformers has it true for all but losses
        config = self.accelerator_config
        if isinstance(config, str) and not config.startswith("{") and not Path(config).is_file():
            raise ValueError(
                f"Expected `accelerator_config` as a mapping, JSON or the path of a JSON file, but got {config!r}."
            )
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = True  # transformers has False beside activation checkpointing
        check_bf16(self)
        super().__post_init__()
        check_options(self)
        if self.n_gpu > 1:  # `nn.DataParallel`, which knows neither autocast nor the negatives of the global batch
            logger.warning("one of %d GPUs is used; for all of them start with `accelerate launch`", self.n_gpu)
            self._n_gpu = 1

    @property
    def device(self) -> torch.device:
        """The device of this process.

        Of several processes on CPU it is `cpu` to all: Accelerate numbers them (`cpu:0`), transformers 5.17 loads the
        optimiser's state to this device when it resumes, and `torch.load` knows no numbered CPU.
        """
        device = super().device
        return torch.device("cpu") if device.type == "cpu" else device

    def _prepare_early_stopping(self) -> None:
        if str(getattr(self.eval_strategy, "value", self.eval_strategy)) == "no":
            raise ValueError(
                "Expected evaluations, of which `early_stopping_patience` counts those without progress, but "
                "`eval_strategy` is no. Set it to epoch or steps, with something to measure on."
            )
        self.metric_for_best_model = self.metric_for_best_model or "ba1"
        self.restore_callback_states_from_checkpoint = True  # the count of evaluations without progress


def _is_success(metric: str | None) -> bool:
    """Return whether a figure's name is that of an attack's success rate."""
    return (metric or "").removeprefix("eval_").startswith("asr")


@dataclass
class CLIPTrainingConfig(ScaleArguments):
    """Arguments of victim training and of plain fine-tuning (FT), on top of transformers' `TrainingArguments`.

    What `ScaleArguments` adds says how it is carried out. Otherwise only defaults differ from transformers': the
    papers' optimiser (AdamW, weight decay 0.1, betas 0.9 and 0.999, linear warm-up then cosine to zero) and what
    contrastive training needs (whole batches, all columns). With `dataloader_drop_last` set to false the rows left
    over at the end of an epoch make a smaller batch, with fewer negatives.

    One default of transformers is kept that the papers do not have: `max_grad_norm=1.0`, the gradient's norm clipped
    at 1, which here acts at nearly every step. AdamW hides the size of a gradient, but not how much each step counts
    beside the others; 0 turns it off, and non-finite gradients are then seen by the losses alone.

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
        super().__post_init__()
        self.accelerator_config = copy.copy(self.accelerator_config)  # the caller's stays as it is
        self.accelerator_config.even_batches = False
