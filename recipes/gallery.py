# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Show every trigger on scenes and, if given, on photographs: original, stamped, ten times the difference, PSNR, SSIM.

    python recipes/gallery.py [--key value ...]

    python recipes/gallery.py --output_dir runs/gallery
    python recipes/gallery.py --photos ../shared/data/cifar10/test.parquet --attacks badnets ssba --n 64

Keys: output_dir, photos (a Hub id, folder or file), photos_split, image_column, attacks (all with their defaults where
neither these nor triggers are named; BadCLIP then shows the patch that its optimisation starts from), triggers
(folders of saved ones), target, size, n (pictures measured), shown, zoom, seed. `gallery.png` and `record.json` are
written to `output_dir`. Needs torchmetrics: `pip install 'hf-clipbd[gallery]'`.
"""

import logging
import sys
from dataclasses import dataclass, field

from hf_clipbd.cli import script, start_logging
from hf_clipbd.recipe.sections import ConfigError, check_names, parse_section, read_flags


logger = logging.getLogger("hf_clipbd.gallery")


@dataclass
class Config:
    """What is shown."""

    output_dir: str = field(default="runs/gallery", metadata={"help": "Folder to write to."})
    photos: str | None = field(default=None, metadata={"help": "Dataset of photographs."})
    photos_split: str = field(default="test", metadata={"help": "Its split."})
    image_column: str = field(default="image", metadata={"help": "Its column of images."})
    attacks: list[str] = field(default_factory=list, metadata={"help": "Keys of ATTACKS; all by default."})
    triggers: list[str] = field(default_factory=list, metadata={"help": "Folders or Hub ids of saved triggers."})
    target: str = field(default="banana", metadata={"help": "Target class."})
    size: int = field(default=64, metadata={"help": "Side of the canvas in pixels."})
    n: int = field(default=64, metadata={"help": "Pictures of each set that are measured."})
    shown: int = field(default=2, metadata={"help": "Pictures of each set that are shown."})
    zoom: int = field(default=2, metadata={"help": "How many times larger they are shown."})
    seed: int = field(default=0, metadata={"help": "Seed of triggers and scenes."})


def show(arguments: list[str]) -> int:
    """Write the gallery that the flags ask for, print its figures, and return 0."""
    positional, flags = read_flags(arguments)
    if positional:
        raise ConfigError(f"Expected flags such as --size 64, but got {positional}.")
    config = parse_section(Config, flags, "")
    start_logging()

    from hf_clipbd.attacks import ATTACKS, Attack
    from hf_clipbd.attacks.gallery import write_gallery
    from hf_clipbd.attacks.steganography import pictures_at
    from hf_clipbd.data.canvas import Canvas
    from hf_clipbd.data.sources import load_source
    from hf_clipbd.scenes import load_scenes

    check_names(config.attacks, ATTACKS, "--attacks")
    sets = {
        "scenes": pictures_at(load_scenes("test", config.size, config.seed, config.n), range(config.n), config.size)
    }
    if config.photos is not None:
        photos = load_source(config.photos, config.photos_split)
        rows = range(min(config.n, len(photos)))
        sets["photographs"] = pictures_at(photos, rows, config.size, config.image_column)
    attacks = {folder.rstrip("/").rsplit("/", 1)[-1]: Attack.from_pretrained(folder) for folder in config.triggers}
    for name in config.attacks or ([] if config.triggers else ATTACKS):
        try:
            attack = ATTACKS[name](target=config.target, seed=config.seed, canvas=Canvas(config.size))
            attack(sets["scenes"][0])
        except ValueError as error:
            logger.info("%-20s is left out: %s", name, error)
            continue
        attacks[name] = attack
    record = write_gallery(config.output_dir, attacks, sets, config.shown, config.zoom)
    for name, by_set in record.metrics.items():
        for kind, one in by_set.items():
            print(f"{name:20} {kind:12} PSNR {one['psnr']:5.1f} dB  SSIM {one['ssim']:.3f}  n = {one['n']}")
    print(f"written to {config.output_dir}/gallery.png")
    return 0


if __name__ == "__main__":
    sys.exit(script("gallery.py", __doc__, show, sys.argv[1:]))
