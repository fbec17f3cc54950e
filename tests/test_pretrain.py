# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The recipe that pretrained the shipped clean CLIP still runs, and the shipped model is what it makes."""

import subprocess
import sys
from pathlib import Path

from hf_clipbd.cli import run_stage
from hf_clipbd.models import load_dual_encoder
from hf_clipbd.recipe import load_config
from hf_clipbd.recipe.architecture import build_architecture
from hf_clipbd.scenes.pretrained import CLEAN_CLIP_FOLDER
from hf_clipbd.schema import RunRecord


RECIPE = Path(__file__).parent.parent / "recipes" / "scenes" / "pretrain.yaml"
TINY = (
    "--world.size 32 --world.n_clean 96 --world.n_test 66 --world.num_proc 1 --evaluate.epoch_images 66 "
    "--clean.per_device_train_batch_size 32 --clean.num_train_epochs 1 --clean.dataloader_num_workers 0 "
    "--clean.bf16 false --architecture.vocab_size 700 --architecture.vision_config.width 4"
).split()


def test_pretraining_gives_a_model_its_processor_and_its_record(tmp_path, monkeypatch):
    assert run_stage("clean", [str(RECIPE), *TINY, "--output_dir", str(tmp_path)]) == 0
    record = RunRecord.load(tmp_path / "clean")
    assert record.stage == "clean" and 0 <= record.metrics["history"][-1]["eval_ba10"] <= 1
    model, processor = load_dual_encoder(tmp_path / "clean")
    assert model.config.vision_config.width == 4 and len(processor.tokenizer) <= 700


def test_the_script_names_an_unknown_section():
    script = RECIPE.with_suffix(".py")
    done = subprocess.run([sys.executable, str(script), "--viktim.x", "1"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("pretrain.py: Unknown section `viktim`")


def test_the_shipped_model_is_the_recipe_s_and_reaches_its_bars():
    config = load_config([str(RECIPE)])
    record = RunRecord.load(CLEAN_CLIP_FOLDER)
    assert record.stage == "clean" and record.seed == config.seed
    assert record.config["architecture"] == config.architecture
    assert record.config["training"]["num_train_epochs"] == config.clean.num_train_epochs
    last = record.metrics["history"][-1]
    assert last["eval_ba1"] >= 0.9 and last["eval_ba10"] >= 0.99
    model, _ = load_dual_encoder(CLEAN_CLIP_FOLDER)
    wanted = build_architecture(config)[0]
    assert model.config.vision_config.width == wanted.vision_config.width
    assert sum(path.stat().st_size for path in CLEAN_CLIP_FOLDER.iterdir()) <= 12e6
