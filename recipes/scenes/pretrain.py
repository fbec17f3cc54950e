# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Pretrains the small clean CLIP of the embedded world, which `hf_clipbd.scenes.load_clean_clip` ships.

    accelerate launch recipes/scenes/pretrain.py --output_dir runs/pretrain

Balanced scenes, the symmetric image-text loss and nothing else. A stopped run goes on from its last epoch; the
finished model, its processor and its record are written to OUTPUT_DIR/model.
"""

import logging
import sys
import time
from dataclasses import asdict, dataclass, field, fields
from itertools import chain
from pathlib import Path

import torch
from transformers import HfArgumentParser
from transformers.trainer_utils import get_last_checkpoint, set_seed

from hf_clipbd.captions.lexicon import lexicon
from hf_clipbd.data.canvas import Canvas
from hf_clipbd.evaluation import ZeroShotEvaluator, evaluate_zero_shot
from hf_clipbd.models import CLIPResNetConfig, CLIPResNetModel
from hf_clipbd.models.tokenizer import build_processor, train_tokenizer
from hf_clipbd.scenes import PROMPTS, load_scenes, scene_captions
from hf_clipbd.schema import RunRecord, content_key
from hf_clipbd.trainer import CLIPTrainer, CLIPTrainingConfig


@dataclass
class PretrainConfig(CLIPTrainingConfig):
    """What is pretrained on what.

    Args:
        n_scenes: Balanced scenes of the train split.
        image_size: Side of the scenes in pixels.
        width: Channels of the image tower's stem.
        text_width: Width of the text tower.
        text_layers: Layers of the text tower.
        embedding_dim: Dimension of the common space.
        vocabulary: Size of the BPE vocabulary.
        context: Tokens of the longest caption.
        world_seed: Seed of the scenes; other seeds are left for what is poisoned, cleaned and tested.
    """

    output_dir: str | None = field(default="runs/pretrain", metadata={"help": "Folder of the run."})
    n_scenes: int = field(default=100_000, metadata={"help": "Balanced scenes to train on."})
    image_size: int = field(default=64, metadata={"help": "Side of the scenes in pixels."})
    width: int = field(default=12, metadata={"help": "Channels of the image tower's stem."})
    text_width: int = field(default=64, metadata={"help": "Width of the text tower."})
    text_layers: int = field(default=2, metadata={"help": "Layers of the text tower."})
    embedding_dim: int = field(default=128, metadata={"help": "Dimension of the common space."})
    vocabulary: int = field(default=4096, metadata={"help": "Size of the BPE vocabulary."})
    context: int = field(default=32, metadata={"help": "Tokens of the longest caption."})
    world_seed: int = field(default=1000, metadata={"help": "Seed of the scenes."})
    learning_rate: float = field(default=2e-3, metadata={"help": "Peak learning rate."})
    num_train_epochs: float = field(default=9, metadata={"help": "Epochs."})
    per_device_train_batch_size: int = field(default=256, metadata={"help": "Pairs a process and step."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Warm-up, as a share of all steps."})


def build(config: PretrainConfig):
    """Return the untrained model and its processor; the tokenizer learns from captions and WordNet's words."""
    captions = scene_captions("train", 30_000, config.world_seed)
    words = chain.from_iterable(lexicon().repositories.values())
    tokenizer = train_tokenizer(chain(captions, words), config.vocabulary, config.context)
    set_seed(config.seed)
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": config.text_width,
        "intermediate_size": 4 * config.text_width,
        "num_hidden_layers": config.text_layers,
        "num_attention_heads": max(1, config.text_width // 32),
        "max_position_embeddings": config.context,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {"image_size": config.image_size, "layers": (1, 1, 1, 1), "width": config.width}
    model = CLIPResNetModel(CLIPResNetConfig(vision, text, projection_dim=config.embedding_dim))
    return model.to(memory_format=torch.channels_last), build_processor(tokenizer, config.image_size)


def main(arguments: list[str] | None = None) -> None:
    """Pretrain, evaluate on held-out scenes and write the model with its record."""
    (config,) = HfArgumentParser(PretrainConfig).parse_args_into_dataclasses(arguments)
    logging.basicConfig(level=logging.INFO)
    own = {f.name for f in fields(PretrainConfig)} - {f.name for f in fields(CLIPTrainingConfig)}
    own |= {"learning_rate", "num_train_epochs", "per_device_train_batch_size", "weight_decay", "bf16"}
    chosen = {name: value for name, value in asdict(config).items() if name in own}
    scenes = load_scenes("train", config.image_size, config.world_seed, config.n_scenes, num_proc=2)
    held_out = load_scenes("test", config.image_size, config.world_seed)
    model, processor = build(config)
    canvas = Canvas(config.image_size)
    evaluator = ZeroShotEvaluator(processor, held_out, triggers=None, templates=PROMPTS, canvas=canvas)
    config.eval_strategy, config.save_strategy = "epoch", "epoch"
    trainer = CLIPTrainer(model, config, scenes, processor, evaluator=evaluator, canvas=canvas)
    started = time.monotonic()
    last = get_last_checkpoint(config.output_dir) if Path(config.output_dir).is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    report = evaluate_zero_shot(trainer.model, processor, held_out, templates=PROMPTS, canvas=canvas)
    folder = Path(config.output_dir) / "model"
    trainer.save_model(str(folder))
    if not trainer.is_world_process_zero():
        return
    (folder / "training_args.bin").unlink(missing_ok=True)
    RunRecord(
        stage="pretrain",
        key=content_key("pretrain", chosen, scenes._fingerprint),
        config=chosen,
        metrics={"report": report.to_dict(), "history": trainer.history()},
        seed=config.seed,
        inputs={"scenes": scenes._fingerprint, "held_out": held_out._fingerprint},
        outputs={"model": "model.safetensors"},
        seconds=time.monotonic() - started,
        processes=trainer.accelerator.num_processes,
    ).save(folder)
    logging.info("held-out scenes: %s", {f"BA@{k}": round(rate.value, 4) for k, rate in report.ba.items()})


if __name__ == "__main__":
    main(sys.argv[1:])
