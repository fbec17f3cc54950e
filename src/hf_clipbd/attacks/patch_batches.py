# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What a step of BadCLIP's optimisation sees: which pictures, in what view, and where the patch is pasted."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_clipbd.attacks.pictures import picture_digest, read_picture
from hf_clipbd.attacks.select import digest
from hf_clipbd.data.ahead import decoding_threads, made_ahead
from hf_clipbd.data.image_views import auto_augment
from hf_clipbd.data.undecoded import undecoded
from hf_clipbd.schema import CAPTION, IMAGE


if TYPE_CHECKING:
    from hf_clipbd.attacks.badclip import BadCLIP
    from hf_clipbd.attacks.optimize_patch import PatchConfig

Pictures = datasets.Dataset | Sequence[Any]
"""A dataset with a column `image`, or PIL images."""

KEPT_BYTES = 4 * 2**30
"""Memory for pictures on the canvas, which every epoch takes again: 28,000 of 224 pixels. Others are decoded anew."""

_EPOCH, _VIEW, _PAIR, _PLACE = 7, 8, 9, 10


def paste(images: Tensor, patch: Tensor, places: Sequence[tuple[tuple[int, int], ...]]) -> Tensor:
    """Return stamped copies: the patch inside its rectangles, the image outside them; nothing is written in place.

    Args:
        images: (N, C, H, W).
        patch: (C, p, q), in the units of the images.
        places: For each image the (row, column) of the top left pixel of each copy of the patch.

    Returns:
        (N, C, H, W), with gradient to the patch.

    Example:
        >>> paste(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 1), [((0, 1),)])[0, 0].tolist()
        [[0.0, 1.0], [0.0, 0.0]]
    """
    layers: dict[tuple[tuple[int, int], ...], tuple[Tensor, Tensor]] = {}
    for spots in places:
        if spots not in layers:
            layers[spots] = _layer(patch, spots, *images.shape[-2:])
    values = torch.stack([layers[spots][0] for spots in places])  # (N, C, H, W)
    inside = torch.stack([layers[spots][1] for spots in places])  # (N, 1, H, W)
    return torch.where(inside, values, images)


def _layer(patch: Tensor, spots: tuple[tuple[int, int], ...], height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return a picture that is nothing but copies of the patch, (C, H, W), and where they are, (1, H, W)."""
    tall, wide = patch.shape[-2:]
    values = patch.new_zeros(patch.shape[0], height, width)
    inside = torch.zeros(1, height, width, dtype=torch.bool, device=patch.device)
    for row, column in spots:
        margins = (column, width - wide - column, row, height - tall - row)
        here = F.pad(torch.ones_like(patch[:1]), margins).bool()
        values, inside = torch.where(here, F.pad(patch, margins), values), inside | here
    return values, inside


def pictures(images: Pictures, rows: Sequence[int] | np.ndarray) -> list[PIL.Image.Image]:
    """Return the pictures of these rows of a dataset with a column `image`, or of a sequence of PIL images."""
    rows = [int(row) for row in rows]
    if isinstance(images, datasets.Dataset):
        return images.with_format(None).select_columns([IMAGE])[rows][IMAGE]
    return [read_picture(images[row]) for row in rows]


def image_dataset(images: Pictures) -> datasets.Dataset:
    """Return a dataset with the column `image` of these pictures, in their order."""
    if isinstance(images, datasets.Dataset):
        return images
    return datasets.Dataset.from_dict({IMAGE: list(images)}, features=datasets.Features({IMAGE: datasets.Image()}))


def identity(images: Pictures, with_captions: bool = False) -> str:
    """Return a hash of how many pictures there are and of 16 of them, and of all their captions if they count."""
    rows = np.unique(np.linspace(0, len(images) - 1, min(16, len(images))).astype(int))
    digests = [picture_digest(read_picture(image)) for image in pictures(images, rows)]
    captions = images.with_format(None)[CAPTION] if with_captions else []
    return digest(len(images), *digests, *captions).hex()


class PatchBatches:
    """The pictures of a step and what is drawn with them, each a function of (seed, step) alone.

    Pictures are decoded once and stay in memory on the canvas, as far as `KEPT_BYTES` go.

    Args:
        start: Attack with the canvas, the place and the seed.
        images: The pictures.
        config: Batch size and probability of AutoAugment.
        n_texts: Number of captions of the target.
        n_positives: Number of pictures of the target.
    """

    def __init__(self, start: "BadCLIP", images: Pictures, config: "PatchConfig", n_texts: int, n_positives: int):
        self.start, self.images, self.config = start, images, config
        self.n_texts, self.n_positives = n_texts, n_positives
        self.size = min(config.batch_size, len(images))
        self._encoded, self._decode = images, read_picture
        if isinstance(images, datasets.Dataset):
            self._encoded, self._decode = undecoded(images.with_format(None).select_columns([IMAGE]), IMAGE)
        self._kept: dict[int, np.ndarray] = {}
        self._free = KEPT_BYTES

    def rows(self, step: int) -> np.ndarray:
        """Return the rows of a step: those of an epoch in an order of its own, a last part batch left out."""
        epoch, part = divmod(step, len(self.images) // self.size)
        order = np.random.default_rng([self.start.seed, epoch, _EPOCH]).permutation(len(self.images))
        return order[part * self.size : (part + 1) * self.size]

    def pixels(self, step: int) -> Tensor:
        """Return the pictures of a step on the canvas, some of them augmented, (B, 3, H, W), uint8.

        Raises:
            ValueError: If they differ in size, as a native canvas may leave them.
        """
        arrays = []
        for i, array in enumerate(self._on_canvas(self.rows(step).tolist())):
            rng = np.random.default_rng([self.start.seed, step, i, _VIEW])
            augmented = rng.random() < self.config.augment
            arrays.append(np.asarray(auto_augment(PIL.Image.fromarray(array), rng)) if augmented else array)
        if len({array.shape for array in arrays}) > 1:
            raise ValueError("Expected pictures of one size, but this canvas leaves them in their own. Pass another.")
        return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)

    def _on_canvas(self, rows: list[int]) -> list[np.ndarray]:
        """Return the pixels of rows on the canvas, (H, W, 3) each; threads decode those that are not kept."""
        found = {row: self._kept[row] for row in rows if row in self._kept}
        fresh = [row for row in rows if row not in found]
        arrays = made_ahead(
            lambda one: self.start.canvas.array(self._decode(one)), self._stored(fresh), len(fresh), decoding_threads()
        )
        for row, array in zip(fresh, arrays, strict=True):
            found[row] = array
            if array.nbytes <= self._free:
                self._kept[row] = array
                self._free -= array.nbytes
        return [found[row] for row in rows]

    def _stored(self, rows: list[int]) -> Iterable[Any]:
        """Return the pictures of rows as they are stored."""
        if isinstance(self._encoded, datasets.Dataset):
            return self._encoded[rows][IMAGE] if rows else []
        return (self._encoded[row] for row in rows)

    def captions(self, step: int) -> list[str]:
        """Return the captions that the pictures of a step had, where the pictures are a dataset that has them."""
        rows = self.rows(step).tolist()
        return self.images.with_format(None).select_columns([CAPTION])[rows][CAPTION]

    def pairs(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Return which caption and which picture of the target go with each picture of a step, (B,) and (B,)."""
        rng = np.random.default_rng([self.start.seed, step, _PAIR])
        return rng.integers(self.n_texts, size=self.size), rng.integers(self.n_positives, size=self.size)

    def places(self, step: int, height: int, width: int) -> list[tuple[tuple[int, int], ...]]:
        """Return where the patch goes on each picture of a step."""
        rng = np.random.default_rng([self.start.seed, step, _PLACE])
        return [tuple(self.start.places(height, width, rng)) for _ in range(self.size)]
