# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Write the embedded world with fine-tuning captions of other styles, as Parquet, for `captions.yaml`.

    python recipes/reproduce/other_captions.py [OUT] [--KEY VALUE ...]

Keys: out (runs/other_captions), styles (names of `hf_clipbd.scenes.CAPTION_STYLES`), n_train, n_defense, n_test, size,
seed, target. `train` and `test` are the scenes of `recipes/scenes/defend.yaml`; `defense` has the same pictures as its
clean pairs, and captions of these styles alone, each drawn from (seed, row).
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from hf_clipbd.cli import script


@dataclass
class Config:
    """What is written."""

    out: str = field(default="runs/other_captions", metadata={"help": "Folder to write to."})
    styles: list[str] = field(
        default_factory=lambda: ["title", "web", "surrounded"], metadata={"help": "Styles of the clean captions."}
    )
    n_train: int = field(default=36000, metadata={"help": "Pairs to poison."})
    n_defense: int = field(default=12800, metadata={"help": "Clean pairs."})
    n_test: int = field(default=2000, metadata={"help": "Labelled scenes."})
    size: int = field(default=64, metadata={"help": "Side of the pictures in pixels."})
    seed: int = field(default=0, metadata={"help": "Seed of the world."})
    target: str = field(default="banana", metadata={"help": "Class that is rare."})


def retold(config: Config) -> list[str]:
    """Return a caption of the chosen styles for every clean pair."""
    from hf_clipbd.scenes import CAPTION_STYLES, describe_scene
    from hf_clipbd.scenes.graph import scene_rng

    captions = []
    for row in range(config.n_defense):
        rng = scene_rng(config.seed, "defense", row, 1)
        tell = CAPTION_STYLES[config.styles[int(rng.integers(len(config.styles)))]][1]
        captions.append(tell(rng, describe_scene("defense", row, config.seed, "long_tailed", config.target)))
    return captions


def write(arguments: list[str]) -> int:
    """Write the three splits, say where they lie, and return 0."""
    from hf_clipbd.recipe.sections import check_names, parse_section, read_flags
    from hf_clipbd.scenes import CAPTION_STYLES, load_scenes
    from hf_clipbd.schema import CAPTION

    positional, flags = read_flags(arguments)
    config = parse_section(Config, {**({"out": positional[0]} if positional else {}), **flags}, "")
    check_names(config.styles, CAPTION_STYLES, "--styles")
    folder = Path(config.out)
    folder.mkdir(parents=True, exist_ok=True)
    for split, n in (("train", config.n_train), ("defense", config.n_defense), ("test", config.n_test)):
        rows = load_scenes(split, config.size, config.seed, n, "long_tailed", config.target)
        if split == "defense":
            rows = rows.remove_columns(CAPTION).add_column(CAPTION, retold(config))
        rows.to_parquet(folder / f"{split}.parquet")
        print(f"{n} rows written to {folder / f'{split}.parquet'}")
    return 0


if __name__ == "__main__":
    sys.exit(script("other_captions.py", __doc__, write, sys.argv[1:]))
