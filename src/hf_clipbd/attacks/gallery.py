# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What triggers look like: original, stamped picture, ten times their difference, PSNR and SSIM."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import torch

from hf_clipbd.attacks.base import Attack
from hf_clipbd.schema import RunRecord, content_key


logger = logging.getLogger(__name__)

GAIN = 10
_GAP, _LINE = 6, 14


@dataclass(frozen=True)
class Visibility:
    """How far stamped pictures are from their originals.

    Args:
        psnr: Mean over the pictures of their peak signal-to-noise ratio, in dB; higher is less visible.
        ssim: Mean structural similarity, in [−1, 1]; 1 is the same picture.
        n: Number of pictures that count, those that the trigger changed.
    """

    psnr: float
    ssim: float
    n: int


def visibility(originals: Sequence[np.ndarray], stamped: Sequence[np.ndarray]) -> Visibility:
    """Return PSNR and SSIM of stamped pictures, both by torchmetrics.

    A picture that its trigger left as it is has an infinite PSNR: it is left out, with a warning.

    Args:
        originals: Pictures (H, W, 3), uint8, H and W at least 11.
        stamped: The same pictures stamped, of the same sizes.

    Raises:
        ImportError: If torchmetrics is not installed.
        ValueError: If the two differ in number or size, or all pictures were left as they are.

    Reference:
        SSIM: Wang et al., "Image quality assessment: from error visibility to structural similarity", IEEE TIP 2004,
        with its Gaussian window of 11 px, σ = 1.5.
    """
    try:
        from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
    except ImportError as error:
        raise ImportError("PSNR and SSIM need torchmetrics: `pip install 'hf-clipbd[gallery]'`.") from error
    if not len(originals) or len(originals) != len(stamped):
        raise ValueError(f"Expected as many stamped pictures as originals, but got {len(stamped)}, {len(originals)}.")
    decibels, similar = [], []
    for place, (before, after) in enumerate(zip(originals, stamped, strict=True)):
        if before.shape != after.shape:
            raise ValueError(f"Expected picture {place} stamped in its size {before.shape}, but got {after.shape}.")
        if np.array_equal(before, after):
            logger.warning("Picture %d is as before under its trigger and does not count.", place)
            continue
        pair = [torch.tensor(np.asarray(x)).permute(2, 0, 1)[None].double() / 255 for x in (after, before)]
        decibels.append(float(peak_signal_noise_ratio(*pair, data_range=1.0)))
        similar.append(float(structural_similarity_index_measure(*pair, data_range=1.0)))
    if not decibels:
        raise ValueError(
            f"Expected pictures that are changed by the trigger, but each of {len(originals)} is as before."
        )
    return Visibility(float(np.mean(decibels)), float(np.mean(similar)), len(decibels))


def trigger_visibility(attack: Attack, pictures: Sequence[np.ndarray]) -> Visibility:
    """Return how visible a trigger is on pictures, each stamped as the row of its place.

    Args:
        attack: The attack; its canvas is applied first, so that only the trigger counts.
        pictures: (H, W, 3), uint8.
    """
    return visibility(*_before_and_after(attack, pictures))


def _before_and_after(attack: Attack, pictures: Sequence[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    images = [PIL.Image.fromarray(np.asarray(picture)) for picture in pictures]
    before = [np.asarray(attack.canvas(image) if attack.canvas else image) for image in images]
    return before, [attack(picture, row) for row, picture in enumerate(before)]


def write_gallery(
    folder: str | os.PathLike,
    attacks: Mapping[str, Attack],
    pictures: Mapping[str, Sequence[np.ndarray]],
    shown: int = 2,
    zoom: int = 2,
) -> RunRecord:
    """Write `gallery.png` and the record of its figures into `folder`, and return the record.

    The picture has a row for each trigger and, for each of the first `shown` pictures of every set, three columns:
    original, stamped, and 10 · |difference|. PSNR and SSIM are means over all pictures of a set.

    Args:
        folder: Where to write.
        attacks: Name to show -> attack; triggers that are in the text alone are left out.
        pictures: Name of a set, for instance "scenes" -> its pictures, (H, W, 3), uint8.
        shown: Pictures shown of each set.
        zoom: How many times larger they are shown, pixel by pixel.

    Raises:
        ImportError: If torchmetrics is not installed.
        ValueError: If there is no attack or no picture to show.
    """
    attacks = {name: attack for name, attack in attacks.items() if attack.stamps_pictures}
    if not attacks or not pictures or not all(len(one) for one in pictures.values()):
        raise ValueError(f"Expected attacks and pictures to show, but got {list(attacks)} and {list(pictures)}.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    figures, rows = {}, []
    for name, attack in attacks.items():
        figures[name], cells = {}, []
        for kind, own in pictures.items():
            before, after = _before_and_after(attack, own)
            seen = figures[name][kind] = asdict(visibility(before, after))
            text = f"{name} on {kind}: PSNR {seen['psnr']:.1f} dB, SSIM {seen['ssim']:.3f} (n = {seen['n']})"
            cells.append((text, [_triple(*pair) for pair in zip(before[:shown], after[:shown], strict=True)]))
        rows.append(cells)
    _sheet(rows, zoom).save(folder / "gallery.png")
    settings = {name: {"attack": attack.name, **attack.parameters()} for name, attack in attacks.items()}
    key = content_key("gallery", settings, figures)
    record = RunRecord("gallery", key, settings, figures, seed=0, outputs={"picture": "gallery.png"})
    record.save(folder)
    return record


def _triple(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return original, stamped and 10 · |difference| side by side, (H, 3 W, 3)."""
    apart = np.minimum(GAIN * np.abs(after.astype(int) - before), 255).astype(np.uint8)
    return np.concatenate([before, after, apart], axis=1)


def _sheet(rows: list[list[tuple[str, list[np.ndarray]]]], zoom: int) -> PIL.Image.Image:
    """Return the triples of every row and set on one white sheet, each row under its text."""
    widths = [[sum(zoom * one.shape[1] + _GAP for one in triples) for _, triples in cells] for cells in rows]
    heights = [max(zoom * one.shape[0] for _, triples in cells for one in triples) for cells in rows]
    wide = max(max(sum(row) for row in widths), 200) + _GAP
    sheet = PIL.Image.new("RGB", (wide, sum(heights) + len(rows) * (_LINE + _GAP) + _GAP), "white")
    pen = PIL.ImageDraw.Draw(sheet)
    y = _GAP
    for cells, tall in zip(rows, heights, strict=True):
        x = _GAP
        for text, triples in cells:
            pen.text((x, y), text, fill="black")
            for one in triples:
                size = (zoom * one.shape[1], zoom * one.shape[0])
                sheet.paste(PIL.Image.fromarray(one).resize(size, PIL.Image.Resampling.NEAREST), (x, y + _LINE))
                x += size[0] + _GAP
        y += tall + _LINE + _GAP
    return sheet
