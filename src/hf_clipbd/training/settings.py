# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What a training computes with, as opposed to what is shown of it, where it is kept and where it is pushed."""

import os
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from hf_clipbd.training.arguments import CLIPTrainingConfig

PRESENTATION = frozenset(
    "output_dir logging_strategy logging_steps logging_first_step log_on_each_node log_level log_level_replica "
    "logging_nan_inf_filter disable_tqdm report_to run_name project trackio_space_id trackio_bucket_id "
    "trackio_static_space_id push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push "
    "hub_revision allow_backdoored save_strategy save_steps save_total_limit save_on_each_node dataloader_num_workers "
    "dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor resume_from_checkpoint local_rank "
    "ddp_timeout ddp_find_unused_parameters per_device_eval_batch_size do_train do_eval do_predict "
    "torch_empty_cache_steps skip_memory_metrics include_num_input_tokens_seen label_names eval_accumulation_steps "
    "prediction_loss_only average_tokens_across_devices".split()
)
"""What is shown and where it is kept, not what is computed: never part of a stage's key."""

LATER = frozenset(
    {"text_view", "fc_images", "learned_scale", "rarity_from", "rarity_to", "directions", "parser", "k_share"}
)
"""Fields of our own that came after the first records: part of a key only where they are not at their default."""


UNUSED = {"remove_unused_columns": False}
"""Fields of our own without any effect, which have been part of every key: always at their default there."""


def saves_fewer(config: "CLIPTrainingConfig") -> bool:
    """Return whether the best model is loaded at the end, but not every one that is measured is saved before.

    Then `save_steps` decides among which models the best one is sought.
    """
    by_steps = config.load_best_model_at_end and config.save_strategy == "steps"
    return by_steps and config.save_steps != config.eval_steps


def training_settings(config: "CLIPTrainingConfig") -> dict[str, Any]:
    """Return what a training computes with: the fields of our own and those that differ from their defaults.

    Paths and what is merely shown are left out, so equal trainings give equal settings wherever they lie. It builds a
    configuration to compare with, which resets accelerate's state: call it before the trainer is built.
    """
    from hf_clipbd.training.arguments import CLIPTrainingConfig  # here: reading a configuration does not import torch

    own = {name for cls in type(config).__mro__ if issubclass(cls, CLIPTrainingConfig) for name in cls.__annotations__}
    own -= LATER
    plain = type(config)(output_dir="unused", use_cpu=config.use_cpu).to_dict()
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")  # the launcher's choice is in no field
    launched = {} if precision == "no" or config.bf16 or config.fp16 else {"mixed_precision": precision}
    saved = {"save_steps": config.save_steps} if saves_fewer(config) else {}
    computed = {
        name: value
        for name, value in config.to_dict().items()
        if name not in PRESENTATION and (name in own or name in ("seed", "num_train_epochs") or value != plain[name])
    }
    return launched | saved | computed | UNUSED
