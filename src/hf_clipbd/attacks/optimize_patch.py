# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The loop that makes BadCLIP's patch: Adam on its pixels, the surrogate frozen, every draw from (seed, step)."""

import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import datasets
import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from hf_clipbd.attacks.patch_batches import PatchBatches, Pictures, identity, image_dataset, paste, pictures
from hf_clipbd.attacks.patch_checkpoint import History, PatchCheckpoint
from hf_clipbd.data.ahead import made_ahead
from hf_clipbd.data.canvas import normalize, pixel_statistics
from hf_clipbd.features import (
    embed_dataset,
    embed_images,
    embed_texts,
    evaluation_mode,
    logit_scale,
    model_fingerprint,
    tokenize,
)
from hf_clipbd.losses import clip_loss, patch_text_loss, patch_triplet_loss
from hf_clipbd.schema import CAPTION, content_key


if TYPE_CHECKING:
    from hf_clipbd.attacks.badclip import BadCLIP

HISTORY = ("loss", "text", "triplet")
"""Columns of the history: L, L_t and the triplet term before λ₁."""

WAITING = 10
"""Steps at most whose losses stay on the device; with `patience` each one is read at once."""

WINDOW = 50
"""Steps that the first and the last loss of a record are means of."""


@dataclass(frozen=True)
class PatchConfig:
    """How a patch is optimised: L = text_weight · L_t + weight · L_i, minimised by Adam over the patch's pixels.

    Args:
        steps: Most steps; the paper's 50 epochs over 10,000 pictures are 7,800.
        batch_size: Pictures a step, each with a caption and a picture of the target.
        learning_rate: Adam's, in units of [0, 1] pixels.
        weight: λ₁, the weight of the triplet term L_i; 0 leaves it out.
        text_weight: Weight of L_t; 0 leaves it out.
        margin: η of the triplet term.
        distance: d of the triplet term, `"euclidean"` or `"cosine"`.
        text_term: L_t: `"infonce"`, symmetric among captions of the target; `"own_captions"`, those against the
            captions that the pictures had (`patch_text_loss`, a variant of ours).
        augment: Probability that a picture is seen through AutoAugment before it is stamped, in [0, 1].
        patience: Stop when the mean loss of the last `patience` steps is not below that of the `patience` steps
            before by a share of `min_gain`; None never stops early.
        min_gain: See there.
        checkpoint_steps: Steps between two writings of the checkpoint.

    Raises:
        ValueError: If a value is out of range.

    Reference:
        BadCLIP (arXiv 2311.12075) for λ₁ = 500, η = 1, the batch of 64 and AutoAugment; Adam at 1e-3, the start from
        N(0.5, 0.25) and p = 0.5 as observed in its public code, which draws once a batch what is drawn here once a
        picture. Early stopping is ours.
    """

    steps: int = 7800
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight: float = 500.0
    text_weight: float = 1.0
    margin: float = 1.0
    distance: Literal["euclidean", "cosine"] = "euclidean"
    text_term: Literal["infonce", "own_captions"] = "infonce"
    augment: float = 0.5
    patience: int | None = None
    min_gain: float = 1e-3
    checkpoint_steps: int = 100

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.checkpoint_steps, 1 if self.patience is None else self.patience) < 1:
            raise ValueError(f"Expected steps, batch size and patience of at least 1, but got {self}.")
        if min(self.learning_rate, self.margin) <= 0 or not 0 <= self.augment <= 1:
            raise ValueError(f"Expected positive learning rate and margin, `augment` in [0, 1], but got {self}.")
        if min(self.weight, self.text_weight) < 0 or self.weight + self.text_weight == 0:
            raise ValueError(f"Expected weights of at least 0, not both of them 0, but got {self}.")
        if self.distance not in ("euclidean", "cosine"):
            raise ValueError(f'Expected distance "euclidean" or "cosine", but got {self.distance!r}.')
        if self.text_term not in ("infonce", "own_captions"):
            raise ValueError(f'Expected text_term "infonce" or "own_captions", but got {self.text_term!r}.')

    def computed(self) -> dict[str, Any]:
        """Return what the patch after a given step depends on: neither how many follow nor when it is kept."""
        ends = ("steps", "patience", "min_gain", "checkpoint_steps")
        return {name: value for name, value in asdict(self).items() if name not in ends}


class OptimizedPatch(NamedTuple):
    """A patch (p, p, 3), float32 in [0, 1], the loss at each step (steps, 3), and the record of both."""

    patch: np.ndarray
    history: np.ndarray
    record: dict[str, Any]


@contextmanager
def frozen(model: nn.Module) -> Iterator[torch.device]:
    """Put `model` into evaluation mode with no gradient to its weights for the block, and give its device."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)
    try:
        with evaluation_mode(model):
            yield next(model.parameters()).device
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


class _Objective:
    """L of one step as a function of the patch, with its terms."""

    def __init__(
        self, model: nn.Module, processor: Any, batches: PatchBatches, texts: Tensor, positives: Tensor, device: Any
    ):
        self.model, self.processor, self.batches, self.device = model, processor, batches, device
        self.texts, self.positives = texts.to(device), positives.to(device)
        self.statistics = pixel_statistics(processor)
        self.mean, self.std = (torch.tensor(one, device=device).view(3, 1, 1) for one in self.statistics)
        self.scale = logit_scale(model).detach()

    def __call__(self, patch: Tensor, step: int, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return L, L_t and L_i of a step; the patch (3, p, q) in [0, 1], the step's pixels (B, 3, H, W), uint8."""
        config = self.batches.config
        clean = normalize(pixels.to(self.device), *self.statistics)
        places = self.batches.places(step, *clean.shape[-2:])
        triggered = embed_images(self.model, paste(clean, (patch - self.mean) / self.std, places))  # (B, D)
        with torch.no_grad():
            before = embed_images(self.model, clean)
        captions, examples = self.batches.pairs(step)
        text = self._text_term(triggered, self.texts[captions], step)
        triplet = patch_triplet_loss(triggered, before, self.positives[examples], config.margin, config.distance)
        return config.text_weight * text + config.weight * triplet, text, triplet

    def _text_term(self, triggered: Tensor, targets: Tensor, step: int) -> Tensor:
        if self.batches.config.text_term == "infonce":
            return clip_loss(triggered, targets, self.scale)
        tokens = tokenize(self.processor, self.batches.captions(step), self.model)
        with torch.no_grad():
            own = embed_texts(self.model, **{name: x.to(self.device) for name, x in tokens.items()})
        return patch_text_loss(triggered, targets, own, self.scale)


def stalled(history: History, patience: int | None, min_gain: float) -> bool:
    """Return whether the loss has stopped falling, as `PatchConfig.patience` says."""
    if patience is None or len(history) < 2 * patience:
        return False
    losses = np.array([row[0] for row in history[-2 * patience :]])
    before, last = losses[:patience].mean(), losses[patience:].mean()
    return bool(last > before - min_gain * abs(before))


def _descend(
    objective: _Objective, patch: Tensor, config: PatchConfig, checkpoint: PatchCheckpoint, progress: bool
) -> tuple[Tensor, History]:
    """Return the patch after the last step, and the loss and its terms at each step.

    The pixels of the next step are prepared by a thread. The terms stay where they were computed until they are
    needed, so that a GPU need not wait for each of them.
    """
    patch.requires_grad_(True)
    optimizer = torch.optim.Adam([patch], lr=config.learning_rate)
    history, waiting = checkpoint.restore(patch, optimizer, config.steps), list[Tensor]()
    steps = range(len(history), config.steps)
    if stalled(history, config.patience, config.min_gain):
        return patch.detach(), history
    silent = None if progress else True  # None: shown on a terminal, not in a log
    with (
        tqdm(total=config.steps, initial=len(history), desc="patch", unit="step", disable=silent) as bar,
        closing(made_ahead(objective.batches.pixels, steps)) as prepared,
    ):
        for step, pixels in zip(steps, prepared, strict=True):
            terms = objective(patch, step, pixels)
            (patch.grad,) = torch.autograd.grad(terms[0], [patch])
            optimizer.step()
            with torch.no_grad():
                patch.clamp_(0, 1)
            waiting.append(torch.stack([one.detach() for one in terms]))
            bar.update()
            kept = (step + 1) % config.checkpoint_steps == 0
            if kept or config.patience is not None or len(waiting) == WAITING or step + 1 == config.steps:
                history += map(tuple, torch.stack(waiting).tolist())
                waiting.clear()
                bar.set_postfix(dict(zip(HISTORY, (f"{x:.3g}" for x in history[-1]), strict=True)), refresh=False)
            if kept:
                checkpoint.save(patch, optimizer, history)
            if stalled(history, config.patience, config.min_gain):
                break
    return patch.detach(), history


def _embedded(
    model: nn.Module, processor: Any, start: "BadCLIP", texts: Sequence[str], positives: Pictures
) -> tuple[Tensor, Tensor]:
    """Return the unit embeddings of the target's captions and of its pictures, which no step changes."""
    said = datasets.Dataset.from_dict({CAPTION: list(texts)})
    texts = embed_dataset(model, processor, said, image_column=None)["text"]
    shown = image_dataset(positives)
    images = embed_dataset(model, processor, shown, caption_column=None, canvas=start.canvas)["image"]
    return torch.from_numpy(texts), torch.from_numpy(images)


def optimize_patch(
    model: nn.Module,
    processor: Any,
    start: "BadCLIP",
    images: Any,
    target_texts: Sequence[str],
    positive_images: Any,
    config: PatchConfig,
    checkpoint: str | os.PathLike | None = None,
    progress: bool = True,
) -> OptimizedPatch:
    """Return the patch that minimises L on a frozen surrogate, projected to [0, 1] after every step.

    Args:
        start: Attack with the canvas, the place, the seed and the patch to start from; all other arguments are those
            of `BadCLIP.optimize`.

    Raises:
        ValueError: If pictures, captions or pictures of the target are missing, or the patch does not fit.

    Reference:
        BadCLIP (Liang et al., arXiv 2311.12075), dual-embedding guided trigger optimisation. **Reconstructed**: the
        view by AutoAugment comes before the stamp, which needs no gradient through it.
    """
    counts = {"images": len(images), "target_texts": len(target_texts), "positive_images": len(positive_images)}
    if not all(counts.values()):
        raise ValueError(f"Expected pictures, captions of the target and pictures of it, but got {counts}.")
    if config.text_term == "own_captions" and CAPTION not in getattr(images, "column_names", ()):
        raise ValueError('Expected `images` to be a dataset with captions for text_term "own_captions".')
    surrogate = model_fingerprint(model)
    seen = identity(images, config.text_term == "own_captions"), identity(positive_images), list(target_texts)
    key = content_key(config.computed(), surrogate, start.parameters(), seen)
    with frozen(model) as device:
        texts, positives = _embedded(model, processor, start, target_texts, positive_images)
        batches = PatchBatches(start, images, config, len(texts), len(positives))
        objective = _Objective(model, processor, batches, texts, positives, device)
        size = start.canvas.array(pictures(images, [0])[0]).shape[:2]
        first = torch.from_numpy(start.fixed_pattern(*size).copy()).permute(2, 0, 1).contiguous()
        kept = PatchCheckpoint(None if checkpoint is None else Path(checkpoint), key)
        patch, history = _descend(objective, first.to(device), config, kept, progress)
    losses = np.array(history)
    record = {
        "steps": len(history),
        "stopped_early": len(history) < config.steps,
        "surrogate": surrogate,
        **counts,
        **{f"first_{name}": float(losses[:WINDOW, i].mean()) for i, name in enumerate(HISTORY)},
        **{f"last_{name}": float(losses[-WINDOW:, i].mean()) for i, name in enumerate(HISTORY)},
        "settings": asdict(config),
    }
    return OptimizedPatch(patch.permute(1, 2, 0).contiguous().cpu().numpy(), losses, record)
