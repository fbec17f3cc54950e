# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""BadCLIP: a patch optimised on a surrogate CLIP until pictures that wear it look like the target to it."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import PIL.Image

from hf_clipbd.attacks.badnets import BadNets
from hf_clipbd.attacks.base import PATTERN_STREAM, Attack
from hf_clipbd.attacks.pictures import unit_pixels
from hf_clipbd.data.canvas import Canvas


logger = logging.getLogger(__name__)

PATCH_FILE = "patch.png"

if TYPE_CHECKING:
    from torch import nn

    from hf_clipbd.attacks.optimize_patch import PatchConfig
    from hf_clipbd.attacks.patch_batches import Pictures


@dataclass(frozen=True, eq=False)
class BadCLIP(Attack):
    """An optimised patch δ pasted at a place: x' = δ inside the rectangle, x' = x outside it.

    `BadCLIP.optimize` makes the patch. It is kept as floats in `pattern.safetensors`, the loss of every step beside
    it, and pasted at the same place and in the same size wherever it is stamped.

    Args:
        patch: δ, (p, q, 3), uint8 or floats in [0, 1]; or the folder or Hub id of a BadCLIP, whose patch and record
            are taken over, not its place. None stamps the noise that the optimisation starts from, for comparison.
        patch_size: Side of that noise in pixels; None takes round(16 / 224 · shorter side). Not beside a patch.
        place: `"middle"`, `"corner"` (bottom right), `"four_corners"`, `"random"`, or the (row, column) of the
            patch's top left pixel.
        record: How the patch was made: steps, loss, surrogate and whatever the surrogate takes stamped pictures for.
        history: (steps, 3), float64: L, L_t and the triplet term at each step.

    Raises:
        ValueError: If place or patch is none of these; on stamping, if the patch does not fit on the picture.

    Reference:
        BadCLIP (Liang et al., CVPR 2024, arXiv 2311.12075), the dual-embedding attack; p = 16 at 224 px, middle.
        Preset `paper` takes its natural captions too; its rows are those of the selector `mixed`, see
        `hf_clipbd.attacks.surrogate.order_rows`.

    Example:
        >>> patch = BadCLIP(patch=np.ones((1, 1, 3), dtype=np.float32))
        >>> patch(np.zeros((3, 3, 3), dtype=np.uint8))[:, :, 0].tolist()
        [[0, 0, 0], [0, 255, 0], [0, 0, 0]]
    """

    patch: np.ndarray | str | os.PathLike | None = None
    patch_size: int | None = None
    place: str | Sequence[int] = "middle"
    record: Mapping[str, Any] | None = None
    history: np.ndarray | None = None

    name: ClassVar[str] = "badclip"
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {"place": "middle", "captions": "natural"}}

    def __post_init__(self) -> None:
        super().__post_init__()
        kept = self
        if isinstance(self.patch, (str, os.PathLike)):
            kept = BadCLIP.from_pretrained(self.patch)
            for name in ("patch", "record", "history"):
                object.__setattr__(self, name, getattr(kept, name))
        if self.patch is not None:
            object.__setattr__(self, "patch", unit_pixels(self.patch))
        carrier = BadNets(
            patch_size=self.patch_size, place=self.place, pattern="noise" if self.patch is None else self.patch
        )
        object.__setattr__(self, "place", carrier.place)
        if kept.place != self.place:
            logger.warning(
                "The patch was kept with place %r and is pasted at %r: pass its place.", kept.place, self.place
            )

    def fixed_pattern(self, height: int, width: int) -> np.ndarray:
        """Return the patch for a picture of this size, (p, q, 3), float32 in [0, 1]."""
        if self.patch is not None:
            return self.patch
        return starting_patch(BadNets(patch_size=self.patch_size).side(height, width), self.seed)

    def places(self, height: int, width: int, rng: np.random.Generator) -> list[tuple[int, int]]:
        """Return the (row, column) of each copy of the patch on one picture; `rng` decides where it is random."""
        patch = self.fixed_pattern(height, width)
        return BadNets(place=self.place, pattern=patch).places(height, width, *patch.shape[:2], rng)

    def stamp(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return BadNets(place=self.place, pattern=self.fixed_pattern(*pixels.shape[:2])).stamp(pixels, rng)

    @classmethod
    def optimize(
        cls,
        model: "nn.Module",
        processor: Any,
        images: "Pictures",
        target_texts: Sequence[str],
        positive_images: "Pictures",
        config: "PatchConfig | None" = None,
        *,
        target: str = "banana",
        seed: int = 0,
        canvas: Canvas | None = None,
        captions: str | Sequence[str] = "templates",
        patch_size: int | None = None,
        place: str | Sequence[int] = "middle",
        checkpoint: str | os.PathLike | None = None,
        class_names: Sequence[str] | None = None,
        templates: Sequence[str] | None = None,
        progress: bool = True,
    ) -> "BadCLIP":
        """Return a BadCLIP whose patch is optimised on a frozen dual encoder.

        The same arguments give the same patch, whether it was made in one go or after being killed.

        Args:
            model: The surrogate: any dual encoder; its weights and its mode are left as they are.
            processor: Its processor.
            images: Pictures of other classes to stamp: a dataset with a column `image`, or PIL images.
            target_texts: Captions that name the target, see `target_captions`.
            positive_images: Real pictures of the target, u⁺; a dataset or PIL images.
            config: Loss, steps and what else there is to choose.
            target: Class name of the attack.
            seed: Seed of the starting noise, of the batches and of the attack.
            canvas: Frame of the pictures; that of the processor by default.
            captions: Captions of poisoned rows, see `Attack`.
            patch_size: Side of the patch in pixels; None takes round(16 / 224 · shorter side).
            place: See `BadCLIP`.
            checkpoint: File to go on from and to write to; None keeps none.
            class_names: Classes, the target among them. With them the record says how many pictures of other classes
                the surrogate takes for the target, stamped (`floor`) and not (`floor_clean`).
            templates: Prompts for that, OpenAI's 80 by default.
            progress: Whether to show a progress bar on a terminal.

        Raises:
            ValueError: If there is nothing to optimise on, or the patch does not fit on the canvas.
        """
        from hf_clipbd.attacks.optimize_patch import PatchConfig, optimize_patch
        from hf_clipbd.attacks.surrogate import target_share

        canvas = canvas or Canvas.of(processor)
        start = cls(target, seed, canvas, captions, patch_size=patch_size, place=place)
        config = config or PatchConfig()
        made = optimize_patch(
            model, processor, start, images, target_texts, positive_images, config, checkpoint, progress
        )
        attack = replace(start, patch=made.patch, patch_size=None, record=made.record, history=made.history)
        if class_names is None:
            return attack
        shares = target_share(model, processor, images, attack, class_names, templates)
        return replace(attack, record={**made.record, **shares})

    def save_pretrained(self, folder: str | os.PathLike) -> Path:
        """Write the attack as `Attack.save_pretrained` does, and the patch alone as `patch.png`, enlarged 16 times."""
        folder = super().save_pretrained(folder)
        if self.patch is not None:
            levels = np.rint(self.patch * 255).astype(np.uint8)
            PIL.Image.fromarray(levels.repeat(16, axis=0).repeat(16, axis=1)).save(folder / PATCH_FILE)
        return folder


@lru_cache(maxsize=16)
def starting_patch(side: int, seed: int) -> np.ndarray:
    """Return the noise that an optimisation starts from, N(0.5, 0.25) clipped to [0, 1], (side, side, 3), float32."""
    noise = np.random.default_rng([seed, 0, PATTERN_STREAM]).normal(0.5, 0.25, (side, side, 3))
    patch = np.clip(noise, 0, 1).astype(np.float32)
    patch.flags.writeable = False
    return patch
