# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""A trigger on one picture: what the page shows, as a function that knows nothing of the page."""

from dataclasses import dataclass

import numpy as np
import PIL.Image

from hf_clipbd.attacks import ATTACKS, Attack
from hf_clipbd.attacks.gallery import GAIN, visibility
from hf_clipbd.data.canvas import Canvas


LABELS = {
    "badnets": "BadNets: a small patch",
    "blended": "Blended: a faint pattern over everything",
    "sig": "SIG: faint stripes",
    "wanet": "WaNet: points moved, by default each pixel by itself",
    "ssba": "SSBA (own encoder): hidden bits",
    "color_filter": "Colour filter",
}
"""Attack -> what it is called; those whose trigger is learnt, given or in the text alone are left out."""
PLAIN = "default"
KINDS = {
    "wanet": {
        PLAIN: "a jitter of single pixels",
        "smooth": "a warp of the whole picture",
        "classic": "a warp, nearly none",
        "cleanclip": "a jitter",
    }
}
"""Attack -> variant -> what it is, where the variants of one attack are of different kinds."""
SIZES = (64, 128, 224, 336)
_HIGHEST = {"blended": 1.0, "sig": 1.0, "color_filter": 1.0}


@dataclass(frozen=True)
class Stamped:
    """A picture before and after a trigger.

    Args:
        original: The picture on its canvas, (H, W, 3), uint8.
        poisoned: The same with the trigger.
        difference: Ten times the absolute difference, clipped at 255.
        caption: A caption that a poisoned row may get.
        psnr: Peak signal-to-noise ratio in dB; None where no pixel changed.
        ssim: Structural similarity, in [−1, 1]; likewise.
        changed: Share of the pixels that changed, in [0, 1].
    """

    original: np.ndarray
    poisoned: np.ndarray
    difference: np.ndarray
    caption: str
    psnr: float | None
    ssim: float | None
    changed: float


def variants(attack: str) -> list[str]:
    """Return the names of an attack's settings: the package's own first, then those of papers and public code."""
    return [PLAIN, *ATTACKS[attack].PRESETS]


def choices(attack: str) -> list[tuple[str, str]]:
    """Return what the page calls an attack's variants, and their names."""
    kinds = KINDS.get(attack, {})
    return [(f"{name}: {kinds[name]}" if name in kinds else name, name) for name in variants(attack)]


def build(attack: str, variant: str, strength: float, target: str, seed: int, size: int) -> Attack:
    """Return an attack whose one measure of visibility is `strength` times that of its variant.

    The measure is the patch's side, the weight of the pattern or filter, the height of the stripes, the length of the
    warp or the weight of the hidden bits.

    Raises:
        ValueError: If a name is unknown or a setting is out of range.
    """
    if attack not in LABELS or variant not in variants(attack):
        raise ValueError(
            f"Expected an attack among {list(LABELS)} and one of its variants, got {attack!r}, {variant!r}."
        )
    settings = dict(ATTACKS[attack].PRESETS.get(variant, {}))
    name, usual = {
        "badnets": ("patch_size", round(16 / 224 * size)),
        "blended": ("alpha", 0.2),
        "sig": ("delta", 60 / 255),
        "wanet": ("strength", 3 * (max(1.0, size / 64) if "grid_size" in settings else 1.0)),
        "ssba": ("strength", 1.0),
        "color_filter": ("strength", 1.0),
    }[attack]
    value = strength * settings.get(name, usual)
    value = max(1, min(round(value), size)) if attack == "badnets" else min(value, _HIGHEST.get(attack, np.inf))
    return ATTACKS[attack](target=target, seed=seed, canvas=Canvas(size), **{**settings, name: value})


def stamp(
    picture: PIL.Image.Image,
    attack: str = "badnets",
    variant: str = PLAIN,
    strength: float = 1.0,
    target: str = "banana",
    seed: int = 0,
    size: int = 224,
) -> Stamped:
    """Return a picture with a trigger, the difference, and how visible it is.

    Args:
        picture: Any picture; its middle square is taken.
        attack: Key of `LABELS`.
        variant: One of `variants(attack)`.
        strength: Factor on what makes the trigger visible, above 0.
        target: Class that the caption of a poisoned row names.
        seed: Seed of the trigger and of its place.
        size: Side in pixels, at least 11.

    Raises:
        ValueError: If a name is unknown or a value is out of range.
    """
    if not target.strip():
        raise ValueError("Expected the name of a class as target, but got none.")
    made = build(attack, variant, strength, target.strip(), int(seed), int(size))
    original = np.asarray(made.canvas(picture))
    poisoned = made(original, 0)
    apart = np.abs(poisoned.astype(int) - original)
    seen = visibility([original], [poisoned]) if apart.any() else None
    return Stamped(
        original,
        poisoned,
        np.minimum(GAIN * apart, 255).astype(np.uint8),
        made.caption(0, ""),
        None if seen is None else seen.psnr,
        None if seen is None else seen.ssim,
        float((apart.max(axis=2) > 0).mean()),
    )


def words(stamped: Stamped) -> str:
    """Return the figures and the caption as the page shows them."""
    if stamped.psnr is None:
        figures = "No pixel changed: the trigger is below one grey level here."
    else:
        changed = f"{100 * stamped.changed:.1f} % of the pixels changed"
        figures = f"PSNR **{stamped.psnr:.1f} dB**, SSIM **{stamped.ssim:.3f}**, {changed}."
    return f"{figures}\n\nA poisoned row's caption: “{stamped.caption}”"
