# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Trains, pushes and pushes again on several processes, each of which writes what it was told; then fails on purpose.

Usage: push_together.py MODEL IMAGES RUN OUT. The Hub is told by the environment, and lets the first commit and the
first push of the run break.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import datasets
import yaml
from train_steps import pairs

from hf_clipbd.attacks import BadNets
from hf_clipbd.data.canvas import Canvas
from hf_clipbd.defenses import CleanCLIPConfig, CleanCLIPTrainer
from hf_clipbd.evaluation import ZeroShotEvaluator
from hf_clipbd.hub import TrainedPublisher
from hf_clipbd.models import load_dual_encoder
from hf_clipbd.recipe.config import config_from
from hf_clipbd.recipe.publishing import check_may_push, push


def said(work: Any) -> str | dict | None:
    """Return what `work` gives, or its error in words."""
    try:
        return work()
    except (OSError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"


def main(model_folder: str, images: str, run: str, out: str) -> None:
    """Do it, and write `<rank>.json` into the folder `out`."""
    values = yaml.safe_load((Path(run) / "config.yaml").read_text())
    values |= {"defenses": {"ft": {"num_train_epochs": 3}}, "victim": {}, "output_dir": run}
    # Before there is an accelerator, whose state it resets.
    config = config_from({**values, "push_to_hub": True, "hub_model_id": "tester/run"})
    model, processor = load_dual_encoder(model_folder)
    labelled = datasets.load_from_disk(images)
    evaluator = ZeroShotEvaluator(processor, labelled, [BadNets("banana", canvas=Canvas(32))], ["a {}"], (1, 3, 5, 10))
    args = CleanCLIPConfig(
        f"{out}/trained",
        push_to_hub=True,
        hub_model_id="tester/trained",
        per_device_train_batch_size=8,
        max_steps=2,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    options = {"evaluator": evaluator, "canvas": Canvas(32), "publisher": TrainedPublisher()}
    trainer = CleanCLIPTrainer(model, args, pairs(), processor, **options)
    trainer.train()
    told = {"processes": trainer.accelerator.num_processes, "broken": said(trainer.push_to_hub)}
    told["pushed"] = said(trainer.push_to_hub)
    told["run_broken"], told["run_pushed"] = said(lambda: push(config)), said(lambda: push(config))
    Path(out, f"{trainer.accelerator.process_index}.json").write_text(json.dumps(told))
    os.environ["HF_TOKEN"] = "hf_" + 30 * "z"
    check_may_push(config)  # nobody catches this one: all processes have to end


if __name__ == "__main__":
    main(*sys.argv[1:])
