# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""CleanerCLIP: CleanCLIP plus a contrast between factual and counterfactual sub-captions of K pairs an epoch."""

import logging
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import datasets
from torch import Tensor

from hf_clipbd.captions import (
    counterfactual_caption,
    counterfactual_whole,
    factual_caption,
    parser_named,
    whole_caption,
)
from hf_clipbd.captions.language import FEWEST_KNOWN, known_share
from hf_clipbd.captions.parsers import RULES, WHOLE, check_parser
from hf_clipbd.captions.sub_captions import check_rarity
from hf_clipbd.data.pairs import ViewPlan
from hf_clipbd.data.row_format import has_transform
from hf_clipbd.defenses.cleanclip import CleanCLIPConfig, CleanCLIPTrainer
from hf_clipbd.losses import counterfactual_loss
from hf_clipbd.trainer import Views


logger = logging.getLogger(__name__)

LOOKED_AT = 256
"""Captions that are looked at for their language."""

OPTIONS = {
    "negatives": ("all", "own"),
    "fc_reduction": ("mean", "sum"),
    "directions": ("both", "i2t", "t2i"),
    "subset_terms": ("all", "fc"),
    "fc_images": ("image", "augmented"),
}
"""Name of an option -> what it may be."""


def factual(caption: str, key: tuple[int, int, int], parser: str = RULES) -> str:
    """Return the factual sub-caption t⁺ of a caption, the caption itself for the parser `whole`; it needs no draw."""
    return whole_caption(caption) if parser == WHOLE else factual_caption(caption, parser_named(parser))


def counterfactual(
    caption: str, key: tuple[int, int, int], rarity: tuple[float, float] = (0.0, 1.0), parser: str = RULES
) -> str:
    """Return the counterfactual sub-caption t⁻ of a caption, drawn from (seed, epoch, row)."""
    made = counterfactual_whole if parser == WHOLE else counterfactual_caption
    return made(caption, seed=key, rarity=rarity, parser=parser_named(parser))


def has_factual(caption: str, parser: str = RULES) -> bool:
    """Return whether a caption has a factual sub-caption at all: one without any word has none to contrast."""
    return bool(factual_caption(caption, parser_named(parser)).strip())


@dataclass
class CleanerCLIPConfig(CleanCLIPConfig):
    """Arguments of CleanerCLIP.

    Args:
        k_pairs: K, pairs drawn each epoch for sub-captions; the paper's 1,000 (3,000 against BadCLIP) of 500,000.
        k_share: In the place of K for a training set that is streamed, whose length nobody knows: the share of its
            pairs that get sub-captions in an epoch, in (0, 1]; the paper's K is 0.002 of its set.
        lambda_cleanclip: λ₁.
        lambda_fc: λ₂; the paper: a larger λ₂/λ₁ defends better.
        tau_pos: τ⁺.
        tau_neg: τ⁻; the paper: τ⁻ > τ⁺ hurts.
        negatives: `all` or `own` (reconstructed, see `counterfactual_loss`).
        text_negatives: Whether the text-to-image direction has counterfactual negatives (reconstructed).
        fc_reduction: `mean` or `sum` over the batch (reconstructed).
        directions: `both` for L_i2t + L_t2i, `i2t` or `t2i` for one of them alone.
        subset_terms: Terms on the batches of the K pairs: `all` for L as written, `fc` for λ₂·L_FC alone, which then
            alternates with L_CleanCLIP from batch to batch (reconstructed).
        fc_images: What L_FC contrasts with the sub-captions: `image`, or `augmented` for CleanCLIP's view of it
            (reconstructed).
        learned_scale: Whether τ⁺ and τ⁻ divide the similarities times the learned scale instead of the similarities
            alone, as the formula has it (reconstructed).
        rarity_from: Share of the replacement words, from common (0) to rare (1), at which those drawn begin; the paper
            says "common to rare" of the repositories and nothing of the draw (reconstructed).
        rarity_to: Share at which they end, at least 0.01 (30 words) further.
        parser: What finds the parts of a caption: `rules`, which needs nothing; `spacy:MODEL`, a spaCy model by its
            name or folder (extra `spacy`), loaded once in each process; or `whole`, which contrasts the whole caption
            with itself after one part that the rules find was replaced, instead of sub-captions (ours).

    Raises:
        ValueError: If an option is unknown, K is negative or 1, `k_share` no share, a temperature is not positive, or
            the rarities are no range of shares.
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
    directions: str = field(default="both", metadata={"help": "Directions of the sub-caption loss: both, i2t or t2i."})
    k_share: float | None = field(default=None, metadata={"help": "Share of a stream's pairs that get sub-captions."})
    parser: str = field(default=RULES, metadata={"help": "What finds parts of captions: rules, spacy:MODEL or whole."})

    def __post_init__(self):
        super().__post_init__()
        for name, allowed in OPTIONS.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"Expected {name} among {list(allowed)}, but got {getattr(self, name)!r}.")
        if self.k_pairs < 0 or self.k_pairs == 1:
            raise ValueError(
                f"Expected `k_pairs` of 0 or at least two pairs, since one has nothing to be contrasted with, but got "
                f"{self.k_pairs}."
            )
        if self.k_share is not None and not 0 < self.k_share <= 1:
            raise ValueError(f"Expected `k_share` in (0, 1], but got {self.k_share}.")
        for name in ("tau_pos", "tau_neg"):
            if not getattr(self, name) > 0:
                raise ValueError(f"Expected a temperature `{name}` above 0, but got {getattr(self, name)}.")
        check_rarity(self.rarity_from, self.rarity_to)
        check_parser(self.parser)


class CleanerCLIPTrainer(CleanCLIPTrainer):
    """Fine-tunes with L = λ₁·L_CleanCLIP + λ₂·L_FC.

    K pairs, drawn anew each epoch and the same on every rank, form extra batches spread evenly through the epoch. On
    these the full L is minimised; ordinary batches have no sub-captions and carry λ₁·L_CleanCLIP. A pair whose caption
    has no factual sub-caption (one without any word) is passed over for the next one of the same draw, so that there
    are K; in a set with fewer than K other pairs, these are drawn again until there are K. Where the processes cannot
    share K evenly it is lowered until they can, which is logged (`PairBatchSampler`).

    Parser and replacement words are English; of captions in another language a counterfactual is hardly more than an
    English word in their place. A warning says so where most words of the first captions are not English.

    Reference:
        CleanerCLIP (arXiv 2409.17601, section 3.2). The loss, K and the redrawing are the paper's; how the K pairs
        enter the epoch and the form of L_FC are **reconstructed**, since no code was published.
    """

    config_class = CleanerCLIPConfig

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        rows = getattr(self.train_dataset, "rows", None)
        if self.is_world_process_zero() and isinstance(rows, datasets.Dataset) and not has_transform(rows):
            _warn_of_language(rows.select(range(min(LOOKED_AT, len(rows))))[self.train_dataset.caption_column][:])

    @classmethod
    def view_plan(cls, args: CleanerCLIPConfig) -> ViewPlan:
        """Return CleanCLIP's views, with the two sub-captions for K pairs an epoch."""
        parser_named(args.parser)  # what is not installed shows here and not in a worker
        rarity = (args.rarity_from, args.rarity_to)
        return replace(
            super().view_plan(args),
            subset_texts={
                "factual": partial(factual, parser=args.parser),
                "counterfactual": partial(counterfactual, rarity=rarity, parser=args.parser),
            },
            subset_size=args.k_pairs if args.k_share is None else 0,
            subset_share=args.k_share or 0.0,
            subset_if=partial(has_factual, parser=args.parser),
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
            args.directions,
        )
        return {**(terms if args.subset_terms == "all" else {}), "fc": args.lambda_fc * contrast}


def _warn_of_language(captions: list[str | None]) -> None:
    share = known_share(caption for caption in captions if caption)
    if share < FEWEST_KNOWN:
        logger.warning(
            "Sub-captions are made for English, but of the words of the first %d captions it knows %.0f %%: "
            "counterfactuals of other languages say nothing. Translate the captions, or take `cleanclip`.",
            len(captions), 100 * share,
        )  # fmt: skip
