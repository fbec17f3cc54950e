# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What is refused before a training begins: options that this loop would follow otherwise or not at all."""

import logging
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import datasets
import torch
from torch import nn
from transformers.integrations import get_available_reporting_integrations, get_reporting_integration_callbacks
from transformers.utils import is_torch_bf16_gpu_available, is_torch_xla_available

from hf_clipbd.training.chunks import batch_norms


if TYPE_CHECKING:
    from hf_clipbd.training.arguments import ScaleArguments

logger = logging.getLogger(__name__)

REFUSED = {
    "save_only_model": "a checkpoint then lacks the optimiser, the schedule and what a defence keeps, and a training "
    "that goes on from it is another one. Leave it out; `save_total_limit` bounds what checkpoints take.",
    "auto_find_batch_size": "it would lower the number of negatives unseen. Leave it out, and set `chunk_size`, which "
    "bounds memory with the whole batch.",
    "label_smoothing_factor": "the image-text loss does not use it. Leave it out.",
    "train_sampling_strategy": "every epoch is a permutation drawn from the seed. Leave it out.",
}
"""Options that have to stay at their default, and why."""
PLACES = {
    "output_dir": "checkpoints lie beside the outputs. Leave it out; `--out` of a command, or `output_dir` of a whole "
    "run, says where those go.",
    "resume_from_checkpoint": "a stopped training goes on from its own last checkpoint by itself. Leave it out.",
}
"""Options that a stage sets itself, and why."""
UNCALLED = {
    "compute_metrics": "figures are those of the evaluator, which is given the model. Pass evaluator=.",
    "preprocess_logits_for_metrics": "figures are those of the evaluator, which is given the model. Pass evaluator=.",
    "compute_loss_func": "the loss is the sum of the terms. Subclass the trainer and say them in `loss_terms`.",
    "data_collator": "batches are stacked from the views of a pair. Subclass the trainer and say them in `view_plan`.",
    "eval_dataset": "the evaluator has images of its own. Pass evaluator=, such as `ZeroShotEvaluator`.",
    "model_init": "views, adapters and frozen layers are those of one model. Build a model and a trainer each time.",
}
"""What transformers' `Trainer` takes and this loop would make no use of, and what to do instead."""
_NO_FP16 = (
    "Expected bf16 or float32 on a CPU, but got fp16, which accelerate leaves out there without a word. Leave it out, "
    "set `bf16`, or train on a GPU."
)


def check_bf16(args: "ScaleArguments") -> None:
    """Raise `ValueError` where bf16 is asked for that transformers would refuse: there is no GPU that has it."""
    asked = next((name for name in ("bf16", "bf16_full_eval") if getattr(args, name)), None)
    if asked and not (args.use_cpu or is_torch_bf16_gpu_available() or is_torch_xla_available()):
        raise ValueError(
            f"Expected a GPU that computes in bf16 beside `{asked}`, but this machine has none. Leave it out, or set "
            "`use_cpu`, which trains in bf16 on the CPU."
        )


def check_options(args: "ScaleArguments") -> None:
    """Raise `ValueError` for an option of transformers that this loop cannot follow, or a training of no steps."""
    _check_default(args, REFUSED)
    if args.max_steps <= 0 and not args.num_train_epochs > 0:
        raise ValueError(
            f"Expected `num_train_epochs` above 0, or `max_steps` of at least 1, but got {args.num_train_epochs:g}."
        )
    if args.fp16 and args.device.type == "cpu":
        raise ValueError(_NO_FP16)
    if args.accelerator_config.split_batches:
        raise ValueError(
            "Expected `split_batches` of `accelerator_config` to be false, but got true: batches are those of one "
            "process already, and would be cut once more. Lower `per_device_train_batch_size` instead."
        )
    _check_trackers(args.report_to)


def _check_trackers(names: list[str]) -> None:
    """Raise `ValueError`, in transformers' words, for a tracker that it does not know or that cannot be used here."""
    for name in sorted({*names} - {*get_available_reporting_integrations()}):
        try:
            for tracker in get_reporting_integration_callbacks([name]):
                tracker()
        except (ImportError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"Expected installed trackers in `report_to`, but got {name!r}: {error} Or leave `report_to` out."
            ) from None


def check_places(args: "ScaleArguments") -> None:
    """Raise `ValueError` where the options of a stage's training say where it lies or what it goes on from."""
    _check_default(args, PLACES)


def check_functions(given: dict[str, Any]) -> dict[str, Any]:
    """Return the keywords `given` for `Trainer`; raise `ValueError` for one that this loop would make no use of."""
    for name, reason in UNCALLED.items():
        if given.get(name) is not None:
            raise ValueError(f"Expected no `{name}`, but got one of type {type(given[name]).__name__}: {reason}")
    return {name: value for name, value in given.items() if name not in UNCALLED}


def _check_default(args: "ScaleArguments", reasons: dict[str, str]) -> None:
    defaults = {field.name: field.default for field in fields(args)}
    for name, reason in reasons.items():
        value = getattr(args, name, None)
        if name in defaults and value != defaults[name]:
            raise ValueError(f"Expected `{name}` to be {_text(defaults[name])}, but got {_text(value)}: {reason}")


def _text(value: Any) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else repr(value)


def check_given(trainer: Any, args: Any, rows: Any) -> None:
    """Raise `TypeError` for a configuration that is not the trainer's own, or rows that are no single dataset."""
    if not isinstance(args, trainer.config_class):
        raise TypeError(
            f"Expected a {trainer.config_class.__name__} for a {type(trainer).__name__}, but got a "
            f"{type(args).__name__}. Give that the same arguments."
        )
    if not isinstance(rows, datasets.Dataset | datasets.IterableDataset):
        hint = "Pass one split of it" if isinstance(rows, dict) else "Make one, with `datasets.Dataset.from_list` say"
        raise TypeError(f"Expected a dataset of the library `datasets`, but got {type(rows).__name__}. {hint}.")


def check_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
    """Raise `ValueError` if an optimiser that was given holds nothing that is trained: the model would stay as it is.

    So it is with one that was made before `lora` put adapters into the model, or of another model.
    """
    if optimizer is None:
        return
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if not any(id(parameter) in held for parameter in model.parameters() if parameter.requires_grad):
        raise ValueError(
            "Expected an optimiser of parameters that are trained, but none of those in `optimizers` is a trained one "
            "of this model. With `lora`, whose adapters come after it, leave `optimizers` out (`optim` and "
            "`optimizer_cls_and_kwargs` choose one), or add them yourself by `add_adapters` and leave `lora` out."
        )


def warn_of_half_weights(model: nn.Module, learning_rate: float) -> None:
    """Say so where weights themselves are of half precision: most of a small step is lost in their rounding."""
    half = {p.dtype for p in model.parameters() if p.requires_grad and p.dtype in (torch.float16, torch.bfloat16)}
    if half:
        logger.warning(
            "The weights that are trained are %s, which rounds away steps far smaller than they are: at a learning "
            "rate of %g many stay as they were. Load the model in float32, and set `bf16` for towers in bf16.",
            " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in half)),
            learning_rate,
        )


def check_scale(trainer: Any) -> None:
    """Refuse what cannot be carried out with the trainer's model on its processes, and say what accumulation does.

    Args:
        trainer: A `CLIPTrainer`.

    Raises:
        ValueError: If `chunk_size` meets FSDP, DeepSpeed, batch normalisation in training mode, or `torch_compile` on
            several processes; if fp16 meets a CPU.
    """
    args, processes = trainer.args, trainer.accelerator.num_processes
    if args.chunk_size is not None and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        raise ValueError("Expected `chunk_size` with one process or DDP, but this is FSDP or DeepSpeed. Leave it out.")
    if args.chunk_size is not None and args.torch_compile and processes > 1:
        raise ValueError(
            "Expected `chunk_size` or `torch_compile` on several processes, but got both. Leave one of them out."
        )
    if args.chunk_size is not None and not trainer.frozen_norms and (norms := batch_norms(trainer.model)):
        raise ValueError(
            f"Expected `chunk_size` with a model that embeds each pair independently of its batch, but it has "
            f"{len(norms)} layers of batch normalisation, whose statistics are those of the whole batch. Leave "
            "`chunk_size` out, or set `freeze_batch_norm`."
        )
    if trainer.accelerator.mixed_precision == "fp16" and trainer.accelerator.device.type == "cpu":
        raise ValueError(_NO_FP16)
    if args.gradient_accumulation_steps > 1:
        logger.warning(
            "gradient_accumulation_steps=%d averages the losses of that many batches; each pair still has the %d "
            "others of its own global batch as negatives. For more negatives in the same memory raise "
            "per_device_train_batch_size and set chunk_size.",
            args.gradient_accumulation_steps,
            trainer._train_batch_size * processes - 1,
        )
