# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""CleanCLIP: fine-tune on clean pairs with the image-text loss and an in-modal loss on augmented views."""

from dataclasses import dataclass, field
from functools import partial

import numpy as np
import PIL.Image
from torch import Tensor

from hf_clipbd.captions.eda import augment_caption
from hf_clipbd.captions.spans import sample_span
from hf_clipbd.data.image_views import auto_augment
from hf_clipbd.data.pairs import TextView, ViewPlan, same_caption, same_image
from hf_clipbd.losses import image_text_loss, in_modal_loss
from hf_clipbd.trainer import CLIPTrainer, CLIPTrainingConfig, Views


IMAGE_STREAM, TEXT_STREAM = 1, 2


def auto_augmented(image: PIL.Image.Image, key: tuple[int, int, int]) -> PIL.Image.Image:
    """Return the AutoAugment view (ImageNet policy) of an image, drawn from (seed, epoch, row)."""
    return auto_augment(image, np.random.default_rng((*key, IMAGE_STREAM)))


def eda_augmented(caption: str, key: tuple[int, int, int]) -> str:
    """Return the EDA view of a caption, drawn from (seed, epoch, row)."""
    return augment_caption(caption, np.random.default_rng((*key, TEXT_STREAM)))


def span_augmented(caption: str, key: tuple[int, int, int]) -> str:
    """Return a span of a caption, DeCLUTR's kind of view, drawn from (seed, epoch, row)."""
    return sample_span(caption, np.random.default_rng((*key, TEXT_STREAM)))


TEXT_VIEWS: dict[str, TextView] = {"eda": eda_augmented, "span": span_augmented}
"""Name -> what makes the augmented view of a caption."""


def drawn_once(view: TextView, caption: str, key: tuple[int, int, int]) -> str:
    """Return a view of a caption drawn once for all epochs, from (seed, row)."""
    return view(caption, (key[0], 0, key[2]))


@dataclass
class CleanCLIPConfig(CLIPTrainingConfig):
    """Arguments of CleanCLIP.

    Args:
        clip_weight: w_clip, weight of the image-text loss.
        in_modal_weight: w_in, weight of the in-modal loss.
        frozen_text_views: Draw the text view of a caption once for all epochs, as CleanCLIP's public code does.
        text_view: `eda`, the paper's; or `span`, a run of the caption's words after DeCLUTR, to compare with
            (reconstructed, see `hf_clipbd.captions.sample_span`).

    Raises:
        ValueError: If the text view is unknown.
    """

    clip_weight: float = field(default=1.0, metadata={"help": "Weight of the image-text loss."})
    in_modal_weight: float = field(default=1.0, metadata={"help": "Weight of the in-modal loss."})
    frozen_text_views: bool = field(default=False, metadata={"help": "Draw the text views once for all epochs."})
    text_view: str = field(default="eda", metadata={"help": "Augmented view of a caption: eda or span."})

    def __post_init__(self):
        super().__post_init__()
        if self.text_view not in TEXT_VIEWS:
            raise ValueError(f"Expected text_view among {sorted(TEXT_VIEWS)}, but got {self.text_view!r}.")


class CleanCLIPTrainer(CLIPTrainer):
    """Fine-tunes with w_clip·L_CLIP + w_in·½[CE(s·U Ũᵀ) + CE(s·V Ṽᵀ)].

    Ũ embeds AutoAugment views and Ṽ EDA views (or spans), both redrawn each epoch.

    Reference:
        CleanCLIP (arXiv 2303.03323, section 4); weights 1 and 1, one direction a modality and the shared scale as
        observed in its public code.
    """

    config_class = CleanCLIPConfig

    @classmethod
    def view_plan(cls, args: CleanCLIPConfig) -> ViewPlan:
        """Return image and caption, each with its augmented view."""
        text_view = TEXT_VIEWS[args.text_view]
        text_view = partial(drawn_once, text_view) if args.frozen_text_views else text_view
        return ViewPlan(
            images={"image": same_image, "augmented": auto_augmented},
            texts={"caption": same_caption, "augmented": text_view},
        )

    def loss_terms(self, views: Views) -> dict[str, Tensor]:
        """Return the weighted terms `clip` and `in_modal`."""
        images, texts = views.images, views.texts
        between = image_text_loss(images["image"], texts["caption"], views.scale, views.bias)
        within = in_modal_loss(images["image"], images["augmented"], texts["caption"], texts["augmented"], views.scale)
        return {"clip": self.args.clip_weight * between, "in_modal": self.args.in_modal_weight * within}
