# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""A contact sheet of the embedded world: `python -m hf_clipbd.scenes.gallery OUT.png`."""

import argparse
import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from .graph import Scene, SceneObject, scene_rng
from .render import STYLES, render_scene
from .tell import tell_scene
from .words import CLASS_NAMES, COLORS
from .world import describe_scene, scene_image


def _specimen(name: str, place: int, size: int) -> np.ndarray:
    """Return one class on a plain ground, large, each in another colour."""
    color = tuple(COLORS)[place % len(COLORS)]
    ground = "gray" if color != "gray" else "white"
    thing = SceneObject(name, color, "large", "plain", 0.5, 0.5, 0.9, 0.0, False)
    return render_scene(Scene((thing,), (), "plain", ground, False), size, np.random.default_rng(7))


def contact_sheet(
    size: int = 64, scenes: int = 24, seed: int = 0, style: str = "default", zoom: int = 2
) -> Image.Image:
    """Return one cell a class, then random training scenes with their captions.

    Args:
        size: Side of the pictures in pixels, as they are drawn.
        scenes: Number of random scenes.
        seed: Seed of the world.
        style: Rendering style of the scenes.
        zoom: How many times larger the sheet shows each picture, pixel by pixel.
    """
    wide = size * zoom
    cells = [(_specimen(name, i, size), name) for i, name in enumerate(CLASS_NAMES)]
    for index in range(scenes):
        scene = describe_scene("train", index, seed)
        caption = " / ".join(reversed(tell_scene(scene, scene_rng(seed, "train", index, 1))))
        cells.append((scene_image("train", index, scene, size, seed, style), caption))
    columns, tall = 10, wide + 58
    sheet = Image.new("RGB", (columns * (wide + 8) + 8, -(-len(cells) // columns) * tall + 8), "white")
    pen = ImageDraw.Draw(sheet)
    for place, (pixels, text) in enumerate(cells):
        x, y = 8 + place % columns * (wide + 8), 8 + place // columns * tall
        sheet.paste(Image.fromarray(pixels).resize((wide, wide), Image.Resampling.NEAREST), (x, y))
        pen.text((x, y + wide + 2), textwrap.fill(text, wide // 6), fill="black")
    return sheet


def main() -> None:
    """Write the contact sheet to the path given on the command line."""
    parser = argparse.ArgumentParser(description="Write a contact sheet of the embedded world.")
    parser.add_argument("path", type=Path)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--scenes", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--style", choices=STYLES, default="default")
    arguments = parser.parse_args()
    contact_sheet(arguments.size, arguments.scenes, arguments.seed, arguments.style).save(arguments.path)


if __name__ == "__main__":
    main()
