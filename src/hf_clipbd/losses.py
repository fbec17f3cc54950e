# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Every training equation, each a pure function of unit embeddings, and the one gather with gradient.

The functions see the *global* batch: the trainer gathers the embeddings of all processes first, so each process
computes the whole loss and the mean that DistributedDataParallel takes of the gradients is the one-process gradient.
"""

from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def several_processes() -> bool:
    """Return whether this process is one of several that train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class _GatherWithGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x)
        return torch.cat(parts, dim=0)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad.chunk(dist.get_world_size(), dim=0)[dist.get_rank()]


class _AllReduceWithGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        x = x.contiguous().clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad


def gather_with_grad(x: Tensor) -> Tensor:
    """Return the rows of all processes, rank by rank, with gradient to every one of them.

    When each of W processes computes the same loss of the gathered rows, the gradient that arrives here is W times
    the true one, and the mean over processes that DistributedDataParallel takes restores it.

    Args:
        x: Rows of this process, (N, D); N must be equal on all processes.

    Returns:
        (W * N, D); `x` itself on a single process.

    Example:
        >>> gather_with_grad(torch.eye(2)).shape
        torch.Size([2, 2])
    """
    return _GatherWithGrad.apply(x) if several_processes() else x


def all_reduce_with_grad(x: Tensor) -> Tensor:
    """Return the sum of `x` over all processes, its gradient summed over them too; `x` itself on a single process."""
    return _AllReduceWithGrad.apply(x) if several_processes() else x


def _check_pairs(**embeddings: Tensor) -> None:
    shapes = {name: tuple(x.shape) for name, x in embeddings.items()}
    if any(len(shape) != 2 for shape in shapes.values()) or len(set(shapes.values())) != 1:
        raise ValueError(f"Expected embeddings of one shape (N, D), row i of each the same pair, but got {shapes}.")


def one_way_loss(queries: Tensor, keys: Tensor, scale: Tensor | float) -> Tensor:
    """Return the cross-entropy of each query for the key of its own row: −1/N Σᵢ log softmax_j(s·qᵢ·kⱼ)[i].

    Args:
        queries: Unit rows, (N, D).
        keys: Unit rows, (N, D).
        scale: s, the exponential of the model's `logit_scale`.

    Returns:
        Scalar, in nats.

    Raises:
        ValueError: If the shapes differ or are not (N, D).

    Reference:
        InfoNCE (van den Oord et al., arXiv 1807.03748, eq. 4).
    """
    _check_pairs(queries=queries, keys=keys)
    labels = torch.arange(len(queries), device=queries.device)
    return F.cross_entropy(scale * queries @ keys.T, labels)


def clip_loss(images: Tensor, texts: Tensor, scale: Tensor | float) -> Tensor:
    """Return the symmetric image-text loss L_CLIP = ½[CE(s·U Vᵀ, diag) + CE(s·V Uᵀ, diag)].

    Args:
        images: U, unit image embeddings, (N, D).
        texts: V, unit text embeddings, (N, D), row i the caption of image i.
        scale: s, the exponential of the model's `logit_scale`.

    Returns:
        Scalar, in nats; ln N when nothing is told apart.

    Raises:
        ValueError: If the shapes differ or are not (N, D).

    Reference:
        CLIP (Radford et al., arXiv 2103.00020, figure 3); "MMCL" of CleanCLIP (arXiv 2303.03323, eq. 1).

    Example:
        >>> clip_loss(torch.eye(2), torch.eye(2), 100.0).item() < 1e-6
        True
    """
    return (one_way_loss(images, texts, scale) + one_way_loss(texts, images, scale)) / 2


def sigmoid_loss(images: Tensor, texts: Tensor, scale: Tensor | float, bias: Tensor | float) -> Tensor:
    """Return SigLIP's pairwise image-text loss −1/N Σᵢ Σⱼ log σ(zᵢⱼ (s·uᵢ·vⱼ + b)), zᵢⱼ = 1 where i = j, else −1.

    Args:
        images: U, unit image embeddings, (N, D).
        texts: V, unit text embeddings, (N, D), row i the caption of image i.
        scale: s, the exponential of the model's `logit_scale`.
        bias: b, the model's `logit_bias`.

    Returns:
        Scalar, in nats an image.

    Raises:
        ValueError: If the shapes differ or are not (N, D).

    Reference:
        Zhai et al., Sigmoid Loss for Language Image Pre-Training, ICCV 2023 (arXiv 2303.15343, eq. 1 of section 3.2).

    Example:
        >>> round(sigmoid_loss(torch.eye(2), torch.eye(2), 0.0, 0.0).item(), 4)  # two pairs an image, ln 2 each
        1.3863
    """
    _check_pairs(images=images, texts=texts)
    logits = scale * images @ texts.T + bias  # (N, N)
    signs = 2 * torch.eye(len(images), device=images.device, dtype=logits.dtype) - 1
    return -F.logsigmoid(signs * logits).sum() / len(images)


def image_text_loss(
    images: Tensor, texts: Tensor, scale: Tensor | float, bias: Tensor | float | None = None
) -> Tensor:
    """Return the image-text loss that the model was built for: `sigmoid_loss` where it has a bias, else `clip_loss`.

    Args:
        images: U, unit image embeddings, (N, D).
        texts: V, unit text embeddings, (N, D).
        scale: s, the exponential of the model's `logit_scale`.
        bias: b, a SigLIP's `logit_bias`; None for all other models.

    Returns:
        Scalar, in nats.

    Raises:
        ValueError: If the shapes differ or are not (N, D).

    Reference:
        As `clip_loss` and `sigmoid_loss`. Defending a SigLIP with its own loss in the place of L_CLIP is ours.
    """
    return clip_loss(images, texts, scale) if bias is None else sigmoid_loss(images, texts, scale, bias)


def in_modal_loss(
    images: Tensor, augmented_images: Tensor, texts: Tensor, augmented_texts: Tensor, scale: Tensor | float
) -> Tensor:
    """Return CleanCLIP's self-supervised term ½[CE(s·U Ũᵀ, diag) + CE(s·V Ṽᵀ, diag)], each way one-directional.

    Args:
        images: U, (N, D), unit rows.
        augmented_images: Ũ, (N, D), embeddings of AutoAugment views of the same images.
        texts: V, (N, D).
        augmented_texts: Ṽ, (N, D), embeddings of EDA views of the same captions.
        scale: s, the exponential of the model's `logit_scale`, shared with the image-text loss.

    Returns:
        Scalar, in nats.

    Raises:
        ValueError: If the shapes of a modality's views differ.

    Reference:
        CleanCLIP (arXiv 2303.03323, eq. 2); direction and shared scale as observed in its public code.
    """
    return (one_way_loss(images, augmented_images, scale) + one_way_loss(texts, augmented_texts, scale)) / 2


def counterfactual_loss(
    images: Tensor,
    factual: Tensor,
    counterfactual: Tensor,
    tau_pos: float,
    tau_neg: float,
    negatives: Literal["all", "own"] = "all",
    text_negatives: bool = True,
    reduction: Literal["mean", "sum"] = "mean",
    directions: Literal["both", "i2t", "t2i"] = "both",
) -> Tensor:
    """Return CleanerCLIP's L_FC = L_i2t + L_t2i on factual and counterfactual sub-captions.

    L_i2t = −1/B Σᵢ log [ e^{uᵢ·v⁺ᵢ/τ⁺} / (Σⱼ e^{uᵢ·v⁺ⱼ/τ⁺} + Σⱼ e^{uᵢ·v⁻ⱼ/τ⁻}) ],
    L_t2i = −1/B Σᵢ log [ e^{v⁺ᵢ·uᵢ/τ⁺} / (Σⱼ e^{v⁺ᵢ·uⱼ/τ⁺} + Σⱼ e^{v⁻ᵢ·uⱼ/τ⁻}) ].

    Args:
        images: u, unit image embeddings, (B, D).
        factual: v⁺, unit embeddings of the factual sub-captions, (B, D).
        counterfactual: v⁻, unit embeddings of the counterfactual sub-captions, (B, D).
        tau_pos: τ⁺ > 0.
        tau_neg: τ⁻ > 0; the paper finds τ⁻ > τ⁺ harmful.
        negatives: `"all"` sums over the counterfactuals of the whole batch (the formula above); `"own"` keeps the
            row's own one only (j = i in the sums over v⁻).
        text_negatives: Whether L_t2i has its sum over v⁻; without it L_t2i is plain InfoNCE from text to image.
        reduction: `"mean"` over the batch (1/B) or `"sum"`.
        directions: `"both"` for the sum above, `"i2t"` for L_i2t alone, `"t2i"` for L_t2i alone.

    Returns:
        Scalar, in nats.

    Raises:
        ValueError: If the shapes differ, a temperature is not positive or an option is unknown.

    Reference:
        CleanerCLIP (arXiv 2409.17601, section 3.2). The idea, the two temperatures and the two directions are the
        paper's; this exact form, and the options, are **reconstructed**: no code was published.
    """
    _check_pairs(images=images, factual=factual, counterfactual=counterfactual)
    if tau_pos <= 0 or tau_neg <= 0:
        raise ValueError(f"Expected positive temperatures, but got tau_pos={tau_pos} and tau_neg={tau_neg}.")
    if negatives not in ("all", "own") or reduction not in ("mean", "sum") or directions not in ("both", "i2t", "t2i"):
        raise ValueError(
            'Expected negatives "all" or "own", reduction "mean" or "sum" and directions "both", "i2t" or "t2i", '
            f"but got negatives={negatives!r}, reduction={reduction!r}, directions={directions!r}."
        )
    positive = images @ factual.T / tau_pos  # (B, B), row i column j: uᵢ·v⁺ⱼ/τ⁺
    negative = images @ counterfactual.T / tau_neg  # (B, B), row i column j: uᵢ·v⁻ⱼ/τ⁻
    own = negative.diagonal().unsqueeze(1)  # (B, 1)
    image_side = negative if negatives == "all" else own
    text_side = negative.T if negatives == "all" else own
    labels = torch.arange(len(images), device=images.device)
    text_logits = torch.cat([positive.T, text_side], dim=1) if text_negatives else positive.T
    logits = {"i2t": torch.cat([positive, image_side], dim=1), "t2i": text_logits}
    wanted = ("i2t", "t2i") if directions == "both" else (directions,)
    return sum(F.cross_entropy(logits[name], labels, reduction=reduction) for name in wanted)


def perturbation_loss(
    images: Tensor, frozen_images: Tensor, texts: Tensor, frozen_texts: Tensor, threshold: float = 2.15
) -> Tensor:
    """Return PAR's perturbation term −½[Θ(ℓ_img) + Θ(ℓ_txt)], which drives a model away from the poisoned one.

    ℓ_img = 1/N Σᵢ |uᵢ − u°ᵢ|², ℓ_txt = 1/N Σᵢ |vᵢ − v°ᵢ|², Θ(z) = z if z ≤ threshold, else 0.

    Args:
        images: u, unit image embeddings of the model that is trained, (N, D).
        frozen_images: u°, those of the same images by the poisoned model as it was, (N, D), without gradient.
        texts: v, unit text embeddings of the model that is trained, (N, D).
        frozen_texts: v°, those of the same texts by the poisoned model, (N, D), without gradient.
        threshold: Distance beyond which a modality is perturbed no further; squared distances of unit vectors lie in
            [0, 4], and 2 is that of unrelated ones.

    Returns:
        Scalar in [−threshold, 0]; a modality beyond the threshold adds neither value nor gradient.

    Raises:
        ValueError: If the shapes differ.

    Reference:
        PAR (Singh et al., arXiv 2412.00727), "perturb" of Perturb and Recover, threshold 2.15. That ℓ is the mean over
        the batch and Θ is applied to that mean is **reconstructed**.

    Example:
        >>> u, v = torch.eye(2), torch.eye(2).flip(0)
        >>> perturbation_loss(u, v, u, u).item(), perturbation_loss(u, -u, u, v).item()
        (-1.0, -1.0)
    """
    _check_pairs(images=images, frozen_images=frozen_images, texts=texts, frozen_texts=frozen_texts)
    distances = [
        (own - frozen).square().sum(dim=1).mean() for own, frozen in ((images, frozen_images), (texts, frozen_texts))
    ]
    return -sum(torch.where(one <= threshold, one, torch.zeros_like(one)) for one in distances) / 2


def nearest_rows(queries: Tensor, pool: Tensor) -> Tensor:
    """Return for each query the row of `pool` of highest cosine, z_nn(i) = p_j with j = argmax_j qᵢ·pⱼ.

    Args:
        queries: Unit rows, (N, D).
        pool: Unit rows, (P, D), P of at least 1.

    Returns:
        (N, D), rows of `pool`; the first of several equally near. No gradient reaches `queries` through the choice.

    Raises:
        ValueError: If the shapes do not fit or the pool is empty.

    Reference:
        RoCLIP (Yang et al., arXiv 2303.06854), the caption in the pool that an image is matched with.

    Example:
        >>> nearest_rows(torch.tensor([[0.6, 0.8]]), torch.eye(2))
        tensor([[0., 1.]])
    """
    if queries.ndim != 2 or pool.ndim != 2 or queries.shape[1] != pool.shape[1] or len(pool) == 0:
        raise ValueError(
            f"Expected queries (N, D) and a pool (P, D) of at least one row, but got {tuple(queries.shape)} and "
            f"{tuple(pool.shape)}."
        )
    return pool[(queries.detach() @ pool.T).argmax(dim=1)]


def patch_text_loss(triggered: Tensor, targets: Tensor, own: Tensor, scale: Tensor | float) -> Tensor:
    """Return −1/N Σᵢ log [ Σⱼ e^{s·u'ᵢ·v*ⱼ} / (Σⱼ e^{s·u'ᵢ·v*ⱼ} + Σⱼ e^{s·u'ᵢ·vⱼ}) ]: the target against own captions.

    Args:
        triggered: u', unit embeddings of the stamped images, (N, D).
        targets: v*, unit embeddings of captions of the target, (N, D); all of them are right for every image.
        own: v, unit embeddings of the captions that the images had, (N, D); all of them are wrong.
        scale: s, the exponential of the model's `logit_scale`.

    Returns:
        Scalar, in nats.

    Raises:
        ValueError: If the shapes differ.

    Reference:
        A variant of BadCLIP's L_t (arXiv 2311.12075) that is ours: InfoNCE among captions that all name the target,
        which is `clip_loss`, says nothing about what the image is not to be taken for.
    """
    _check_pairs(triggered=triggered, targets=targets, own=own)
    right, wrong = scale * triggered @ targets.T, scale * triggered @ own.T  # (N, N)
    return (torch.cat([right, wrong], dim=1).logsumexp(dim=1) - right.logsumexp(dim=1)).mean()


def patch_triplet_loss(
    triggered: Tensor,
    clean: Tensor,
    positives: Tensor,
    margin: float = 1.0,
    distance: Literal["euclidean", "cosine"] = "euclidean",
) -> Tensor:
    """Return BadCLIP's visual term 1/N Σᵢ max(0, d(u'ᵢ, u⁺ᵢ) − d(u'ᵢ, uᵢ) + η).

    It draws stamped pictures to real pictures of the target and away from what they were.

    Args:
        triggered: u', unit embeddings of the stamped images, (N, D).
        clean: u, unit embeddings of the same images without the stamp, (N, D).
        positives: u⁺, unit embeddings of real images of the target, (N, D), any of them beside any row.
        margin: η > 0.
        distance: d, `"euclidean"` |a − b| or `"cosine"` 1 − a·b.

    Returns:
        Scalar, at least 0.

    Raises:
        ValueError: If the shapes differ, the distance is unknown or the margin is not positive.

    Reference:
        BadCLIP (Liang et al., arXiv 2311.12075), visual embedding resistance optimisation; the Euclidean d as
        observed in its public code.
    """
    _check_pairs(triggered=triggered, clean=clean, positives=positives)
    if margin <= 0:
        raise ValueError(f"Expected a positive margin, but got {margin}.")
    if distance == "euclidean":
        return F.triplet_margin_loss(triggered, positives, clean, margin=margin)
    if distance == "cosine":
        return F.relu((triggered * clean).sum(dim=1) - (triggered * positives).sum(dim=1) + margin).mean()
    raise ValueError(f'Expected distance "euclidean" or "cosine", but got {distance!r}.')
