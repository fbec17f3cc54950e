# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""A clean CLIP with a ViT, built by the same stage as the ResNet: trained, saved, loaded, and taken through a job."""

from pathlib import Path

import pytest
from transformers import CLIPModel

from hf_clipbd.cli import run_stage
from hf_clipbd.models import CLIPResNetModel, build_processor, load_dual_encoder, train_tokenizer
from hf_clipbd.recipe import ConfigError, load_config, run
from hf_clipbd.recipe.architecture import build_architecture, build_model
from hf_clipbd.recipe.config import config_from
from hf_clipbd.schema import EvalReport, RunRecord


RECIPES = Path(__file__).parent.parent / "recipes"
RECIPE = RECIPES / "scenes" / "pretrain_vit.yaml"
SMALL = (
    "--world.size 32 --world.n_clean 64 --world.n_test 66 --world.num_proc 1 --evaluate.epoch_images 66 "
    "--clean.per_device_train_batch_size 32 --clean.num_train_epochs 1 --clean.dataloader_num_workers 0 "
    "--clean.bf16 false --architecture.vocab_size 700 --architecture.vision_config.num_hidden_layers 2 "
    "--architecture.vision_config.hidden_size 32 --architecture.vision_config.num_attention_heads 2"
).split()
WORLD = {"size": 32, "n_train": 64, "n_defense": 64, "n_test": 66}
TRAINING = {"per_device_train_batch_size": 16, "learning_rate": "1e-3", "num_train_epochs": 1}


def test_a_vit_is_trained_saved_loaded_and_goes_through_a_job(tmp_path):
    assert run_stage("clean", [str(RECIPE), *SMALL, "--output_dir", str(tmp_path)]) == 0
    record = RunRecord.load(tmp_path / "clean")
    assert record.config["architecture"]["kind"] == "vit"
    model, processor = load_dual_encoder(tmp_path / "clean")
    assert isinstance(model, CLIPModel)
    vision = model.config.vision_config
    assert (vision.image_size, vision.patch_size, vision.num_hidden_layers, vision.hidden_size) == (32, 8, 2, 32)
    assert model.config.text_config.vocab_size == len(processor.tokenizer)
    config = config_from(
        {
            "output_dir": str(tmp_path / "run"),
            "world": {
                "clean_model": str(tmp_path / "clean"),
                "size": 32,
                "n_train": 64,
                "n_defense": 64,
                "n_test": 66,
            },
            "attack": {"name": "badnets", "target": "banana", "patch_size": 4},
            "poison": {"count": 8},
            "victim": TRAINING,
            "defense_defaults": TRAINING,
            "defenses": {"ft": {}},
            "evaluate": {"epoch_images": 0},
            "detect": {"rates": [0.05], "detectors": ["slof"], "map_points": 40},
            "report": {"html": False, "cards": False},
        }
    )
    run(config)
    for name in ("clean", "victim", "ft"):
        report = EvalReport.from_dict(RunRecord.load(tmp_path / "run" / "evaluate" / name).metrics["report"])
        assert report.ba[1].n == 66
    assert isinstance(load_dual_encoder(tmp_path / "run" / "defend" / "ft")[0], CLIPModel)


def architecture(**values):
    plain = {"world": {"clean_model": "train", "size": 64}, "attack": {"name": "badnets", "target": "banana"}}
    plain |= {"victim": TRAINING, "clean": TRAINING, "architecture": values}
    return build_architecture(config_from(plain))[0]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"kind": "cnn"}, "`architecture.kind`.*'cnn'"),
        ({"kind": "vit", "vision_config": {"width": 12}}, "`architecture.vision_config.width`"),
        ({"kind": "vit", "layers": 2}, "`architecture.layers`"),
        (
            {"kind": "vit", "vision_config": {"patch_size": 7}},
            "vision_config.patch_size` to divide .* 64",
        ),
        ({"kind": "vit", "vision_config": {"hidden_size": 100}}, "to divide `hidden_size` 100, but got 12"),
        (
            {"kind": "vit", "text_config": {"num_hidden_layers": 0}},
            "at least 1.*`architecture.text_config`",
        ),
        ({"vision_config": {"patch_size": 8}}, "`architecture.vision_config.patch_size`"),
    ],
)
def test_what_makes_no_network_is_named(values, says):
    with pytest.raises(ConfigError, match=says):
        architecture(**values)


def test_weights_come_from_the_seed_for_either_kind():
    tokenizer = train_tokenizer(["a red banana", "a cup"], vocab_size=600, model_max_length=16)
    assert build_processor(tokenizer, 64) is not None
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    for kind, vision, cls in (
        ("resnet", {"width": 4, "layers": [1, 1, 1, 1]}, CLIPResNetModel),
        ("vit", small, CLIPModel),
    ):
        given = {"kind": kind, "vision_config": {**vision}, "text_config": small, "projection_dim": 16}
        if kind == "vit":
            given["vision_config"]["patch_size"] = 16
        one, same, other = (build_model(architecture(**given), tokenizer, seed) for seed in (1, 1, 2))
        assert type(one) is cls and one.config.text_config.max_position_embeddings == 16
        weights = [next(model.vision_model.parameters()) for model in (one, same, other)]
        assert weights[0].equal(weights[1]) and not weights[0].equal(weights[2])


def test_the_reproduction_expects_what_the_recipe_makes():
    made = load_config([str(RECIPE)])
    text = (RECIPES / "reproduce" / "vit.yaml").read_text()
    assert f"clean_model: {made.output_dir}/clean" in text
    assert build_architecture(made)[0].vision_config.image_size == 64
