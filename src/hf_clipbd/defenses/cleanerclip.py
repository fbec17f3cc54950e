# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""CleanerCLIP: CleanCLIP plus a contrast between factual and counterfactual sub-captions of K pairs an epoch."""

from dataclasses import dataclass, field, replace
from functools import partial

from torch import Tensor

from hf_clipbd.captions import counterfactual_caption, factual_caption
from hf_clipbd.data.pairs import ViewPlan
from hf_clipbd.defenses.cleanclip import CleanCLIPConfig, CleanCLIPTrainer
from hf_clipbd.losses import counterfactual_loss
from hf_clipbd.trainer import Views


def factual(caption: str, key: tuple[int, int, int]) -> str:
    """Return the factual sub-caption t⁺ of a caption; it needs no draw."""
    return factual_caption(caption)


def counterfactual(caption: str, key: tuple[int, int, int], rarity: tuple[float, float] = (0.0, 1.0)) -> str:
    """Return the counterfactual sub-caption t⁻ of a caption, drawn from (seed, epoch, row)."""
    return counterfactual_caption(caption, seed=key, rarity=rarity)


def has_factual(caption: str) -> bool:
    """Return whether a caption has a factual sub-caption at all: one without any word has none to contrast."""
    return bool(factual_caption(caption).strip())


@dataclass
class CleanerCLIPConfig(CleanCLIPConfig):
    """Arguments of CleanerCLIP.

    Args:
        k_pairs: K, pairs drawn each epoch for sub-captions; the paper's 1,000 (3,000 against BadCLIP) of 500,000.
        lambda_cleanclip: λ₁.
        lambda_fc: λ₂; the paper: a larger λ₂/λ₁ defends better.
        tau_pos: τ⁺.
        tau_neg: τ⁻; the paper: τ⁻ > τ⁺ hurts.
        negatives: `all` or `own` (reconstructed, see `counterfactual_loss`).
        text_negatives: Whether the text-to-image direction has counterfactual negatives (reconstructed).
        fc_reduction: `mean` or `sum` over the batch (reconstructed).
        subset_terms: Terms on the batches of the K pairs: `all` for L as written, `fc` for λ₂·L_FC alone, which then
            alternates with L_CleanCLIP from batch to batch (reconstructed).
        fc_images: What L_FC contrasts with the sub-captions: `image`, or `augmented` for CleanCLIP's view of it
            (reconstructed).
        learned_scale: Whether τ⁺ and τ⁻ divide the similarities times the learned scale instead of the similarities
            alone, as the formula has it (reconstructed).
        rarity_from: Share of the replacement words, from common (0) to rare (1), at which those drawn begin; the paper
            says "common to rare" of the repositories and nothing of the draw (reconstructed).
        rarity_to: Share at which they end.

    Raises:
        ValueError: If `subset_terms` or `fc_images` is unknown, or the rarities are no range of shares.
    """

    k_pairs: int = field(default=1000, metadata={"help": "Pairs an epoch that get sub-captions."})
    lambda_cleanclip: float = field(default=1.0, metadata={"help": "Weight of CleanCLIP's loss."})
    lambda_fc: float = field(default=1.0, metadata={"help": "Weight of the sub-caption loss."})
    tau_pos: float = field(default=0.3, metadata={"help": "Temperature of factual sub-captions."})
    tau_neg: float = field(default=0.3, metadata={"help": "Temperature of counterfactual sub-captions."})
    negatives: str = field(default="all", metadata={"help": "Counterfactuals of the whole batch or the row's own."})
    text_negatives: bool = field(default=True, metadata={"help": "Counterfactual negatives from text to image too."})
    fc_reduction: str = field(default="mean", metadata={"help": "Mean or sum over the batch."})
    subset_terms: str = field(default="all", metadata={"help": "Terms on the batches of the K pairs: all or fc."})
    fc_images: str = field(default="image", metadata={"help": "Images of the sub-caption loss: image or augmented."})
    learned_scale: bool = field(default=False, metadata={"help": "Temperatures on top of the learned scale."})
    rarity_from: float = field(default=0.0, metadata={"help": "Replacements from here, common (0) to rare (1)."})
    rarity_to: float = field(default=1.0, metadata={"help": "Replacements up to here, common (0) to rare (1)."})

    def __post_init__(self):
        super().__post_init__()
        if self.subset_terms not in ("all", "fc"):
            raise ValueError(f'Expected subset_terms "all" or "fc", but got {self.subset_terms!r}.')
        if self.fc_images not in ("image", "augmented"):
            raise ValueError(f'Expected fc_images "image" or "augmented", but got {self.fc_images!r}.')
        if not 0 <= self.rarity_from < self.rarity_to <= 1:
            message = "Expected 0 <= rarity_from < rarity_to <= 1"
            raise ValueError(f"{message}, but got {self.rarity_from} and {self.rarity_to}.")


class CleanerCLIPTrainer(CleanCLIPTrainer):
    """Fine-tunes with L = λ₁·L_CleanCLIP + λ₂·L_FC.

    K pairs, drawn anew each epoch and the same on every rank, form extra batches spread evenly through the epoch. On
    these the full L is minimised; ordinary batches have no sub-captions and carry λ₁·L_CleanCLIP. A pair whose caption
    has no factual sub-caption (one without any word) is passed over for the next one of the same draw, so K is
    met exactly; in a set with fewer than K other pairs, these are drawn again until there are K.

    Reference:
        CleanerCLIP (arXiv 2409.17601, section 3.2). The loss, K and the redrawing are the paper's; how the K pairs
        enter the epoch and the form of L_FC are **reconstructed**, since no code was published.
    """

    @classmethod
    def view_plan(cls, args: CleanerCLIPConfig) -> ViewPlan:
        """Return CleanCLIP's views, with the two sub-captions for K pairs an epoch."""
        rarity = (args.rarity_from, args.rarity_to)
        return replace(
            super().view_plan(args),
            subset_texts={"factual": factual, "counterfactual": partial(counterfactual, rarity=rarity)},
            subset_size=args.k_pairs,
            subset_if=has_factual,
        )

    def loss_terms(self, views: Views) -> dict[str, Tensor]:
        """Return CleanCLIP's terms times λ₁ and, on a batch of the K pairs, λ₂·L_FC as `fc`."""
        args = self.args
        terms = {name: args.lambda_cleanclip * term for name, term in super().loss_terms(views).items()}
        if "factual" not in views.texts:
            return terms
        images = views.images[args.fc_images]
        contrast = counterfactual_loss(
            images * views.scale if args.learned_scale else images,
            views.texts["factual"],
            views.texts["counterfactual"],
            args.tau_pos,
            args.tau_neg,
            args.negatives,
            args.text_negatives,
            args.fc_reduction,
        )
        return {**(terms if args.subset_terms == "all" else {}), "fc": args.lambda_fc * contrast}
