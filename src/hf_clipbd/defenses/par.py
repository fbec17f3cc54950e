# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""PAR, Perturb and Recover: fine-tune on clean pairs while moving away from what the poisoned model embeds."""

import copy
import functools
import math
from dataclasses import dataclass, field, replace
from typing import Any

import datasets
import numpy as np
import PIL.Image
import torch
from torch import Tensor, nn

from hf_clipbd.data.pairs import ViewPlan, same_caption
from hf_clipbd.losses import image_text_loss, perturbation_loss
from hf_clipbd.trainer import CLIPTrainer, CLIPTrainingConfig, Views


PERTURBED_STREAM = 3
ASPECT_RATIOS = (0.3, 1 / 0.3)
"""Width over height of the erased rectangle, drawn evenly on a logarithmic scale (arXiv 1708.04896)."""


@dataclass
class PARConfig(CLIPTrainingConfig):
    """Arguments of PAR.

    Args:
        perturb_weight: Weight of the perturbation term; the paper's loss has 1.
        perturb_threshold: Mean squared distance from the poisoned model's embeddings beyond which a modality is
            perturbed no further, in [0, 4].
        noise_std: Standard deviation of the Gaussian noise, pixels in [0, 1].
        noise_probability: Share of the images with noise.
        erase_probability: Share of the images with an erased rectangle.
        erase_area_min: Smallest area of the rectangle, share of the picture.
        erase_area_max: Largest area of the rectangle, share of the picture.
    """

    perturb_weight: float = field(default=1.0, metadata={"help": "Weight of the perturbation term."})
    perturb_threshold: float = field(
        default=2.15, metadata={"help": "Squared distance that is far enough, in [0, 4]."}
    )
    noise_std: float = field(default=0.2, metadata={"help": "Deviation of the noise, pixels in [0, 1]."})
    noise_probability: float = field(default=0.5, metadata={"help": "Share of the images with noise."})
    erase_probability: float = field(default=0.5, metadata={"help": "Share of the images with an erased rectangle."})
    erase_area_min: float = field(default=0.005, metadata={"help": "Smallest erased share of the picture."})
    erase_area_max: float = field(default=0.01, metadata={"help": "Largest erased share of the picture."})

    def __post_init__(self):
        super().__post_init__()
        for name in ("noise_probability", "erase_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"Expected `{name}` in [0, 1], but got {getattr(self, name)}.")
        if not 0 < self.erase_area_min <= self.erase_area_max < 1:
            raise ValueError(
                "Expected 0 < `erase_area_min` <= `erase_area_max` < 1, "
                f"but got {self.erase_area_min} and {self.erase_area_max}."
            )
        if self.noise_std < 0 or self.perturb_threshold < 0:
            raise ValueError(
                "Expected `noise_std` and `perturb_threshold` of at least 0, "
                f"but got {self.noise_std} and {self.perturb_threshold}."
            )


def perturbed(
    image: PIL.Image.Image,
    key: tuple[int, int, int],
    noise_std: float = 0.2,
    noise_probability: float = 0.5,
    erase_probability: float = 0.5,
    erase_area: tuple[float, float] = (0.005, 0.01),
) -> PIL.Image.Image:
    """Return the view A(x) of an image, drawn from (seed, epoch, row): Gaussian noise, then a small black rectangle.

    Args:
        image: RGB picture.
        key: (seed, epoch, row).
        noise_std: Standard deviation of the noise, pixels in [0, 1]; the sum is clipped to [0, 1] and rounded.
        noise_probability: Probability of the noise.
        erase_probability: Probability of the rectangle.
        erase_area: Smallest and largest area of the rectangle, shares of the picture.
    """
    rng = np.random.default_rng((*key, PERTURBED_STREAM))
    pixels = np.array(image)  # (H, W, 3)
    if rng.random() < noise_probability:
        noisy = pixels / 255 + rng.normal(0.0, noise_std, pixels.shape)
        pixels = np.round(255 * noisy.clip(0, 1)).astype(np.uint8)
    if rng.random() < erase_probability:
        rows, columns = pixels.shape[:2]
        area = rng.uniform(*erase_area) * rows * columns
        ratio = math.exp(rng.uniform(*np.log(ASPECT_RATIOS)))
        height = min(rows, max(1, round(math.sqrt(area / ratio))))
        width = min(columns, max(1, round(math.sqrt(area * ratio))))
        top, left = rng.integers(rows - height + 1), rng.integers(columns - width + 1)
        pixels[top : top + height, left : left + width] = 0
    return PIL.Image.fromarray(pixels)


class PARTrainer(CLIPTrainer):
    """Fine-tunes with L = L_CLIP(A(x), t) − ½[Θ(ℓ_img) + Θ(ℓ_txt)].

    ℓ is the mean squared distance from the embeddings of the model as it came, of which a frozen copy is kept on every
    process, in evaluation mode and without gradient; both models see the same A(x) and t. The copy is taken when the
    trainer is built, so that a resumed training compares with the poisoned model and not with its own checkpoint.

    Reference:
        PAR (Singh et al., arXiv 2412.00727): the loss, its threshold and the two augmentations. Its training (AdamW,
        peak learning rate 3e-6, batch 2,048, 2 epochs over 250,000 pairs) is no default here. **Reconstructed**: the
        black filling and the shape of the rectangle, that both models see A(x), and that the frozen model normalises
        with its running statistics.
    """

    config_class = PARConfig

    def __init__(
        self,
        model: nn.Module,
        args: PARConfig,
        train_dataset: datasets.Dataset | datasets.IterableDataset,
        processing_class: Any,
        **kwargs: Any,
    ):
        frozen = copy.deepcopy(model).eval().requires_grad_(False)
        super().__init__(model, args, train_dataset, processing_class, **kwargs)
        self.frozen = frozen.to(self.args.device)

    @classmethod
    def view_plan(cls, args: PARConfig) -> ViewPlan:
        """Return the perturbed image and the caption as it is."""
        view = functools.partial(
            perturbed,
            noise_std=args.noise_std,
            noise_probability=args.noise_probability,
            erase_probability=args.erase_probability,
            erase_area=(args.erase_area_min, args.erase_area_max),
        )
        return ViewPlan(images={"image": view}, texts={"caption": same_caption})

    def embed_views(self, model: nn.Module, inputs: dict[str, Tensor]) -> Views:
        """Return the embeddings of the global batch, those by the poisoned model as further views named `frozen`."""
        views = super().embed_views(model, inputs)
        with torch.no_grad(), self.accelerator.autocast():
            frozen = super().embed_views(self.frozen, inputs)
        return replace(
            views,
            images={**views.images, "frozen": frozen.images["image"]},
            texts={**views.texts, "frozen": frozen.texts["caption"]},
        )

    def loss_terms(self, views: Views) -> dict[str, Tensor]:
        """Return the terms `clip` and `perturb`; the latter is negative, and falls as the model moves away."""
        images, texts = views.images, views.texts
        away = perturbation_loss(
            images["image"], images["frozen"], texts["caption"], texts["frozen"], self.args.perturb_threshold
        )
        between = image_text_loss(images["image"], texts["caption"], views.scale, views.bias)
        return {"clip": between, "perturb": self.args.perturb_weight * away}
