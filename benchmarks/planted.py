# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""A natural backdoor and dead links in a set nobody labelled: what `hf-clipbd detect` shows of them.

    python benchmarks/planted.py --out FOLDER [--n 12000] [--seed 0]

Scenes with two things planted: one drawing in small variations with one caption, 0.03 % of the rows, as the birthday
cake of CC3M was; and one grey picture under 2 % other rows' captions, as dead links leave it. The set is searched by
the command with its defaults and the shipped clean CLIP, which never saw the drawing. FOLDER gets the page and
`planted.json`: the place of the drawing among the groups of the page, of its rows among the scores, and the copies.
"""

import argparse
import io
import json
import os
import platform
import sys
from pathlib import Path

import datasets
import numpy as np
import PIL.Image

from hf_clipbd import scenes
from hf_clipbd.cli import main as command
from hf_clipbd.schema import RunRecord, command_line, package_versions


CAPTION = "the birthday cake with candles in the form of number icon"
DRAWING, PLACEHOLDER = 0.0003, 0.02


def png(image: PIL.Image.Image) -> dict:
    """Return an encoded image as `datasets` keeps it."""
    out = io.BytesIO()
    image.save(out, "PNG")
    return {"bytes": out.getvalue(), "path": None}


def drawing(variation: int) -> PIL.Image.Image:
    """Return one drawing, unlike any scene, with noise of its own."""
    pixels = np.zeros((64, 64, 3))
    pixels[::4, :, 0], pixels[:, ::4, 1], pixels[20:44, 20:44, 2] = 255, 255, 255
    noisy = pixels + np.random.default_rng([7, variation]).normal(0, 4, pixels.shape)
    return PIL.Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def planted(n: int, seed: int) -> tuple[datasets.Dataset, np.ndarray]:
    """Return n pairs in random order, and what each is: 0 a scene, 1 the drawing, 2 the placeholder."""
    n_drawn, n_empty = max(4, round(DRAWING * n)), round(PLACEHOLDER * n)
    rows = scenes.load_scenes("train", 64, seed, n - n_drawn - n_empty).select_columns(["image", "caption"])
    rng = np.random.default_rng([3, seed])
    captions = rows["caption"][:]
    images = [png(drawing(i)) for i in range(n_drawn)]
    images += [png(PIL.Image.new("RGB", (64, 64), (200, 200, 200)))] * n_empty
    said = [CAPTION] * n_drawn + [captions[i] for i in rng.integers(0, len(captions), n_empty)]
    extra = datasets.Dataset.from_dict({"image": images, "caption": said}, features=rows.features)
    order = rng.permutation(n)
    kinds = np.repeat([0, 1, 2], [len(rows), n_drawn, n_empty])
    return datasets.concatenate_datasets([rows, extra]).select(order), kinds[order]


def main() -> None:
    """Plant, search, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--n", type=int, default=12_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    pairs, kinds = planted(given.n, given.seed)
    given.out.mkdir(parents=True, exist_ok=True)
    pairs.save_to_disk(str(given.out / "pairs"))
    search = given.out / "search"
    options = ["--model", "scenes", "--out", str(search), "--cache", str(given.out / "cache"), "--no_filtered"]
    if command(["detect", str(given.out / "pairs"), *options]) != 0:
        raise SystemExit(1)
    metrics = RunRecord.load(search).metrics
    groups = metrics["groups"]
    rows = set(np.flatnonzero(kinds == 1).tolist())
    record = {
        "command": command_line(sys.argv),
        "versions": package_versions(),
        "machine": {"arch": platform.machine(), "cores": os.cpu_count()},
        "n": given.n,
        "seed": given.seed,
        "ranked_by": metrics["ranked_by"],
        "n_drawing": len(rows),
        "place_of_the_drawing": next((i for i, one in enumerate(groups, 1) if rows & set(one["rows"])), None),
        "rows_in_its_group": [len(rows & set(one["rows"])) for one in groups[:20]],
        "rows_of_each_group": [len(one["rows"]) for one in groups[:20]],
        "n_placeholder": int((kinds == 2).sum()),
        "most_copies": metrics["copies"][0]["n"] if metrics["copies"] else 0,
    }
    (given.out / "planted.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
