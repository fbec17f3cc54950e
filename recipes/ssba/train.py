# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Train the steganographic encoder and decoder behind SSBA on any image dataset.

    python recipes/ssba/train.py [CONFIG.yaml] [--key value ...]

    python recipes/ssba/train.py                                           # the embedded world: the shipped pair
    python recipes/ssba/train.py --path uoft-cs/cifar10 --image_column img --output_dir runs/ssba_cifar10
    python recipes/ssba/train.py --path folder/of/pictures --n_bits 64 --steps 4000

`--key value` sets a key of the configuration (scenes.yaml by default). A stopped training goes on where it was. Pair
and record are written to the output folder; `SSBA(encoder="that/folder")` stamps with it.
"""

import sys
from dataclasses import dataclass, field, fields
from pathlib import Path

from hf_clipbd.cli import script, start_logging
from hf_clipbd.recipe.sections import ConfigError, merge, parse_section, read_flags, read_yaml


DEFAULT = Path(__file__).with_name("scenes.yaml")


@dataclass
class Config:
    """What is trained on, the networks, and how they are trained."""

    path: str = field(default="scenes", metadata={"help": "`scenes`, a Hub id, a folder or a file."})
    split: str = field(default="train", metadata={"help": "Split to train on."})
    image_column: str = field(default="image", metadata={"help": "Column of images."})
    output_dir: str = field(default="runs/ssba", metadata={"help": "Folder for the pair."})
    test_path: str | None = field(default=None, metadata={"help": "Further dataset to measure on."})
    test_split: str = field(default="test", metadata={"help": "Its split."})
    test_image_column: str = field(default="image", metadata={"help": "Its column of images."})
    n_bits: int = field(default=32, metadata={"help": "Bits that a picture carries."})
    size: int = field(default=64, metadata={"help": "Side of the pictures in pixels, a multiple of 16."})
    width: int = field(default=16, metadata={"help": "Size of the networks."})
    amplitude: float = field(default=0.25, metadata={"help": "Largest change of a pixel, in [0, 1]."})
    psnr: float = field(default=29.0, metadata={"help": "PSNR in dB that the residual settles at."})
    steps: int = field(default=1000, metadata={"help": "Optimiser steps."})
    batch_size: int = field(default=16, metadata={"help": "Pictures a step."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate."})
    ramp_steps: int = field(default=170, metadata={"help": "Steps over which it is quietened, from 20 dB."})
    sameness: float = field(default=0.5, metadata={"help": "Largest share of the residual common to pictures."})
    n_images: int = field(default=4000, metadata={"help": "Pictures to train on, at most."})
    n_test: int = field(default=500, metadata={"help": "Pictures held out and measured on."})
    save_steps: int = field(default=100, metadata={"help": "Steps between two checkpoints."})
    seed: int = field(default=0, metadata={"help": "Seed."})


def train(arguments: list[str]) -> int:
    """Train by a YAML and flags, print what was reached, and return 0 if both bars are met, else 1."""
    positional, flags = read_flags(arguments)
    if len(positional) > 1:
        raise ConfigError(f"Expected one configuration, but got {positional}.")
    config = parse_section(Config, merge(read_yaml(positional[0] if positional else DEFAULT), flags), "")
    start_logging()

    from hf_clipbd.attacks.steganography import (
        SteganographyScore,
        measure_steganography,
        pictures_at,
        train_steganography,
    )
    from hf_clipbd.attacks.steganography_steps import SteganographyTraining

    training = SteganographyTraining(**{f.name: getattr(config, f.name) for f in fields(SteganographyTraining)})
    rows = images_of(config.path, config.split, config.n_images + config.n_test)
    pair, record = train_steganography(
        rows, config.n_bits, config.size, config.output_dir, training, config.image_column, config.width,
        config.amplitude,
    )  # fmt: skip
    names = [one.name for one in fields(SteganographyScore)]
    measured = {"held out": SteganographyScore(**{name: record.metrics[name] for name in names})}
    if config.test_path is not None:
        others = images_of(config.test_path, config.test_split, config.n_test)
        some = range(min(config.n_test, len(others)))
        pixels = pictures_at(others, some, config.size, config.test_image_column)
        measured[config.test_path] = measure_steganography(pair, pixels, config.seed)
    print(f"{'pictures':32} {'bits read':>9} {'PSNR':>8} {'common':>7} {'n':>6}")
    for name, one in measured.items():
        accuracy, common = 100 * one.bit_accuracy, 100 * one.sameness
        print(f"{name[-32:]:32} {accuracy:8.2f}% {one.psnr:5.1f} dB {common:6.1f}% {one.n:6d}")
    print(f"pair in {config.output_dir}; {record.seconds:.0f} s of training")
    return 0 if all(one.accepted for one in measured.values()) else 1


def images_of(path: str, split: str, n: int):
    """Return a dataset with images: the embedded world's first `n` scenes, or whatever `load_source` reads."""
    from hf_clipbd import scenes
    from hf_clipbd.data.sources import load_source

    return scenes.load_scenes(split, n=n) if path == "scenes" else load_source(path, split)


if __name__ == "__main__":
    sys.exit(script("train.py", __doc__, train, sys.argv[1:]))
