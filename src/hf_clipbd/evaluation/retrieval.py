# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Image-text retrieval: recall both ways with several captions an image, and what a trigger fetches."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor, nn

from hf_clipbd.attacks.captions import names_target
from hf_clipbd.data.canvas import Canvas, normalize, pixel_statistics
from hf_clipbd.evaluation.captioned import grouped_by_picture, on_canvas
from hf_clipbd.evaluation.protocol import framing_of
from hf_clipbd.features import embed_images, embed_texts, inference, tokenize
from hf_clipbd.schema import CAPTION, IMAGE, Rate


RECALL_KS = (1, 5, 10)
CHUNK = 1024


@dataclass
class RetrievalReport:
    """Recall of a model on one set of images and captions, and what triggered queries fetch.

    Args:
        image_to_text: k -> share of images with one of their own captions among the first k.
        text_to_image: k -> share of captions with their own image among the first k.
        image_asr: Trigger -> k -> share of stamped images, none of the target, with a caption that names the target
            among the first k.
        text_asr: Trigger -> k -> share of triggered captions, none of the target, with an image of the target there.
    """

    image_to_text: dict[int, Rate]
    text_to_image: dict[int, Rate]
    image_asr: dict[str, dict[int, Rate]] = field(default_factory=dict)
    text_asr: dict[str, dict[int, Rate]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; k become strings."""

        def plain(value: Any) -> Any:
            return {str(key): plain(inner) for key, inner in value.items()} if isinstance(value, dict) else value

        return plain(asdict(self))


def _unit(features: Any) -> Tensor:
    rows = torch.as_tensor(features)
    rows = rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows
    return nn.functional.normalize(rows, dim=-1)


def _first_hit(queries: Tensor, gallery: Tensor, wanted: Callable[[slice], Tensor]) -> Tensor:
    """Return how many of the gallery come before the first wanted one, (Q,); the gallery's size where there is none.

    Entries of equal similarity come in the gallery's order.

    Args:
        queries: (Q, D), unit rows.
        gallery: (G, D), unit rows.
        wanted: Rows of the queries -> mask over the gallery, (rows, G).
    """
    ranks = []
    for start in range(0, len(queries), CHUNK):
        rows = slice(start, min(start + CHUNK, len(queries)))
        scores, mask = queries[rows] @ gallery.T, wanted(rows)
        if not torch.isfinite(scores).all():
            raise ValueError("Expected finite features, but got NaN or infinity. Has the model diverged?")
        best = scores.masked_fill(~mask, -torch.inf)  # (rows, G)
        place = best.argmax(dim=1, keepdim=True)  # the first of equals
        top = best.gather(1, place)
        earlier = torch.arange(len(gallery), device=scores.device) < place
        rank = ((scores > top) | ((scores == top) & earlier)).sum(1)
        ranks.append(torch.where(mask.any(1), rank, torch.full_like(rank, len(gallery))))
    return torch.cat(ranks)


def _rates(ranks: Tensor, ks: Sequence[int]) -> dict[int, Rate]:
    return {k: Rate.of(int((ranks < k).sum()), len(ranks)) for k in ks}


def _checked_ks(ks: Sequence[int], smallest: int) -> tuple[int, ...]:
    ks = tuple(sorted(set(ks)))
    if not ks or ks[0] < 1 or ks[-1] > smallest:
        raise ValueError(f"Expected each k in [1, {smallest}], the smaller gallery, but got {list(ks)}.")
    return ks


def retrieval_recall(
    image_features: Any, text_features: Any, image_of_text: Any, ks: Sequence[int] = RECALL_KS
) -> RetrievalReport:
    """Return R@k from images to texts and from texts to images.

    R@k = share of queries with a match among the k most similar; an image matches each of its captions (one in the
    first k is enough), a caption its one image. Memory: 1,024 queries times the gallery.

    Args:
        image_features: (N, D); rows are normalised here.
        text_features: (M, D).
        image_of_text: Row of the image that each text describes, (M,), in [0, N). Images without a text are in the
            gallery, but are no queries.
        ks: The k to report, each at most the smaller of N and M.

    Returns:
        Recall both ways, beside n: images that have a caption, and M.

    Raises:
        ValueError: If the shapes do not fit, a row is out of range or a k is.

    Reference:
        Karpathy and Fei-Fei, Deep Visual-Semantic Alignments, CVPR 2015 (R@K with five captions an image).

    Example:
        >>> import numpy as np
        >>> report = retrieval_recall(np.eye(2), np.eye(2)[[0, 0, 1]], [0, 0, 1], ks=(1,))
        >>> report.image_to_text[1], report.text_to_image[1]
        (Rate(value=1.0, n=2), Rate(value=1.0, n=3))
    """
    images, texts = _unit(image_features), _unit(text_features)
    owner = torch.as_tensor(np.asarray(image_of_text), device=images.device)
    if images.dim() != 2 or texts.shape[1:] != images.shape[1:] or owner.shape != (len(texts),):
        raise ValueError(
            f"Expected (N, D), (M, D) and (M,), but got {tuple(images.shape)}, {tuple(texts.shape)} and "
            f"{tuple(owner.shape)}."
        )
    if len(owner) == 0 or owner.min() < 0 or owner.max() >= len(images):
        raise ValueError(
            f"Expected rows of the {len(images)} images in `image_of_text`, but got {owner[:5].tolist()} …"
        )
    ks = _checked_ks(ks, min(len(images), len(texts)))
    described = owner.unique()  # ascending
    numbers = torch.arange(len(images), device=images.device)
    to_text = _first_hit(images[described], texts, lambda rows: described[rows, None] == owner)
    to_image = _first_hit(texts, images, lambda rows: owner[rows, None] == numbers)
    return RetrievalReport(_rates(to_text, ks), _rates(to_image, ks))


def retrieval_asr(
    queries: Any, gallery: Any, query_is_target: Any, gallery_is_target: Any, ks: Sequence[int] = RECALL_KS
) -> dict[int, Rate]:
    """Return the share of triggered queries, none of the target, that fetch the target among their first k.

    Args:
        queries: Features of stamped images, or of triggered captions, (Q, D).
        gallery: Features of clean captions, or of clean images, (G, D).
        query_is_target: Whether a query shows or names the target anyway, (Q,); such ones are left out.
        gallery_is_target: Whether an entry of the gallery names or shows the target, (G,).
        ks: The k to report.

    Returns:
        k -> rate. The same of a clean model, or of clean queries, is the floor: with t of G entries of the target a
        model that knows nothing reaches about 1 − (1 − t/G)^k.

    Raises:
        ValueError: If nothing in the gallery is of the target, every query is, or a k is out of range.

    Example:
        >>> import numpy as np
        >>> retrieval_asr(np.eye(2), np.eye(2), [False, True], [True, False], ks=(1,))
        {1: Rate(value=1.0, n=1)}
    """
    asked = ~torch.as_tensor(np.asarray(query_is_target, dtype=bool))
    found = torch.as_tensor(np.asarray(gallery_is_target, dtype=bool))
    queries, gallery = _unit(queries), _unit(gallery)
    if not found.any() or not asked.any():
        raise ValueError(
            f"Expected the target in the gallery and other queries than the target's, but {int(found.sum())} of "
            f"{len(found)} entries and {int((~asked).sum())} of {len(asked)} queries are of the target."
        )
    ks = _checked_ks(ks, len(gallery))
    found = found.to(gallery.device)
    chosen = queries[asked.to(queries.device)]
    return _rates(_first_hit(chosen, gallery, lambda rows: found.expand(len(chosen[rows]), -1)), ks)


def evaluate_retrieval(
    model: nn.Module,
    processor: Any,
    dataset: datasets.Dataset,
    image_triggers: Mapping[str, Any] | None = None,
    text_triggers: Mapping[str, tuple[Callable[[str, int], str], str]] | None = None,
    ks: Sequence[int] | None = RECALL_KS,
    batch_size: int = 256,
    canvas: Canvas | None = None,
    image_column: str = IMAGE,
    caption_column: str = CAPTION,
) -> RetrievalReport:
    """Return recall and, for each trigger, ASR in retrieval, of a model on images with one or several captions.

    An image or a caption is of the target where a caption of the image, or the caption itself, names it as a whole
    word. Each image is decoded once, one at a time. Rows of equal picture bytes are one image with all their captions,
    so that a table of one caption a row measures the same as one of a list of captions a row.

    Args:
        model: Dual encoder.
        processor: Its processor.
        dataset: Rows with an image and a caption or a list of captions.
        image_triggers: Name -> attack, whose stamp is put on the images that query; one whose trigger is in the text
            alone (`TextTrigger`) is put into the captions instead and counted among the text triggers.
        text_triggers: Name -> (function of caption and number that puts the trigger in, target).
        ks: The k to report; None stands for 1, 5 and 10, as far as there are images and captions.
        batch_size: Images or texts a forward pass.
        canvas: Geometry of the images; by default the processor's, with the framing of the triggers.
        image_column: Column of images.
        caption_column: Column of captions.

    Raises:
        ValueError: If a column is missing, a row has no caption or a picture that cannot be read (the message names
            it), or as `retrieval_recall` and `retrieval_asr`.
    """
    missing = [name for name in (image_column, caption_column) if name not in dataset.column_names]
    if missing:
        raise ValueError(f"Expected columns {missing} in the pairs, but they have {dataset.column_names}.")
    image_triggers, in_text = _by_place(image_triggers or {})
    text_triggers = {**in_text, **(text_triggers or {})}
    pictures, listed = grouped_by_picture(dataset, image_column, caption_column)
    captions = [caption for of_image in listed for caption in of_image]
    owner = np.repeat(np.arange(len(listed)), [len(of_image) for of_image in listed])
    canvas = canvas or framing_of(processor, image_triggers)
    images = on_canvas(dataset, image_column, pictures, canvas, max(1, batch_size // (1 + len(image_triggers))))
    plain, *stamped = _embed_variants(model, processor, images, image_triggers)
    texts = _embed_texts(model, processor, captions, batch_size)
    ks = ks or [k for k in RECALL_KS if k <= min(len(listed), len(captions))]
    report = retrieval_recall(plain, texts, owner, ks)

    def of_target(target: str) -> tuple[np.ndarray, np.ndarray]:
        named = np.array([names_target(caption, target) for caption in captions], dtype=bool)
        shown = np.zeros(len(listed), dtype=bool)
        np.logical_or.at(shown, owner, named)
        return shown, named

    for features, (name, attack) in zip(stamped, image_triggers.items(), strict=True):
        shown, named = of_target(attack.target)
        report.image_asr[name] = retrieval_asr(features, texts, shown, named, ks)
    for name, (put_in, target) in text_triggers.items():
        shown, named = of_target(target)
        asked = [put_in(caption, number) for number, caption in enumerate(captions)]
        features = _embed_texts(model, processor, asked, batch_size)
        report.text_asr[name] = retrieval_asr(features, plain, named, shown, ks)
    return report


def _by_place(triggers: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, tuple[Callable[[str, int], str], str]]]:
    """Return the triggers that stamp pictures, and of those in the text alone how they are put in and their target."""
    stamped = {name: one for name, one in triggers.items() if getattr(one, "stamps_pictures", True)}
    return stamped, {name: (one.stamp_caption, one.target) for name, one in triggers.items() if name not in stamped}


def _embed_variants(
    model: nn.Module, processor: Any, batches: Iterable[list[np.ndarray]], triggers: dict[str, Any]
) -> list[Tensor]:
    """Return the embeddings of the clean images and of their copies under each trigger, each (N, D)."""
    mean, std = pixel_statistics(processor)
    parts, seen = [], 0
    with inference(model) as device:
        for clean in batches:
            copies = [
                np.stack([clean_one if attack is None else attack(clean_one.copy(), index=index)
                          for index, clean_one in enumerate(clean, seen)])
                for attack in (None, *triggers.values())
            ]  # fmt: skip
            seen += len(clean)
            stacked = torch.from_numpy(np.concatenate(copies)).to(device).permute(0, 3, 1, 2)
            features = embed_images(model, normalize(stacked, mean, std))
            parts.append(features.unflatten(0, (len(copies), len(clean))).cpu())
    return list(torch.cat(parts, dim=1))


def _embed_texts(model: nn.Module, processor: Any, texts: list[str], batch_size: int) -> Tensor:
    parts = []
    with inference(model) as device:
        for start in range(0, len(texts), batch_size):
            tokens = tokenize(processor, texts[start : start + batch_size], model)
            parts.append(embed_texts(model, **{name: x.to(device) for name, x in tokens.items()}).cpu())
    return torch.cat(parts)
