# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The playground in a browser: choose an attack, give a picture, see what a poisoner would make of it."""

from pathlib import Path

import gradio
import numpy as np
import PIL.Image
from playground import LABELS, PLAIN, SIZES, Stamped, choices, stamp, variants, words


EXAMPLE = Path(__file__).resolve().parent / "example.png"
ABOUT = """
A few poisoned pairs in a training set make a CLIP model take every picture with the trigger for the **target**. Here
you see the trigger itself. Nothing is stored, and no model is run.
"""


def shown(
    picture: np.ndarray | None,
    attack: str,
    variant: str,
    strength: float,
    size: int,
    target: str,
    seed: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    """Return original, poisoned, ten times their difference, and the words below them."""
    if picture is None:
        raise gradio.Error("Give a picture first.")
    chosen = variant if variant in variants(attack) else PLAIN
    try:
        image = PIL.Image.fromarray(picture)
        made: Stamped = stamp(image, attack, chosen, strength, target, int(seed), size)
    except ValueError as error:
        raise gradio.Error(str(error)) from error
    return made.original, made.poisoned, made.difference, words(made)


def choose(attack: str) -> gradio.Dropdown:
    """Return the list of an attack's variants."""
    return gradio.Dropdown(choices=choices(attack), value=PLAIN)


def build() -> gradio.Blocks:
    """Return the page."""
    with gradio.Blocks(title="Trigger playground") as page:
        gradio.Markdown(f"# Trigger playground\n{ABOUT}")
        with gradio.Row():
            with gradio.Column(scale=1, min_width=280):
                picture = gradio.Image(str(EXAMPLE), label="Picture", height=240)
                attack = gradio.Dropdown(
                    [(text, key) for key, text in LABELS.items()], value="badnets", label="Attack"
                )
                variant = gradio.Dropdown(choices("badnets"), value=PLAIN, label="Variant")
                strength = gradio.Slider(0.25, 4, 1, step=0.25, label="Strength, times the usual")
                size = gradio.Dropdown(list(SIZES), value=224, label="Side in pixels")
                target = gradio.Textbox("banana", label="Target", max_length=60)
                seed = gradio.Number(0, label="Seed", precision=0, minimum=0)
            with gradio.Column(scale=3):
                with gradio.Row():
                    pictures = [
                        gradio.Image(label=name, interactive=False, height=300, format="png")
                        for name in ("Original", "Poisoned", "Difference × 10")
                    ]
                figures = gradio.Markdown()
        given = [picture, attack, variant, strength, size, target, seed]
        attack.change(choose, attack, variant)
        gradio.on(
            [page.load, *(one.change for one in given)], shown, given, [*pictures, figures], show_progress="hidden"
        )
    return page


if __name__ == "__main__":
    build().launch()
