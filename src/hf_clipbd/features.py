# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The one file that knows what a dual encoder returns: unit embeddings of images, texts, pairs and whole datasets."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from hf_clipbd.data.canvas import Canvas, pixel_statistics
from hf_clipbd.data.canvas import normalize as normalized
from hf_clipbd.data.unreadable import UNREADABLE, reason
from hf_clipbd.models.text_input import TextInput, model_type


def _features(output: Any) -> Tensor:
    """Return the projected features out of what `get_*_features` gives: a tensor, a ModelOutput or a tuple."""
    if torch.is_tensor(output):
        return output
    return output.pooler_output if hasattr(output, "pooler_output") else output[1]


def _unit(features: Tensor) -> Tensor:
    """Return rows of length one, in float32 at least (a double-precision model keeps its precision)."""
    return _scaled(features, True)


def _scaled(features: Tensor, normalize: bool) -> Tensor:
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    return F.normalize(features, dim=-1) if normalize else features


def _image_input(model: nn.Module, pixel_values: Tensor) -> dict[str, Tensor]:
    """Return what the image tower is called with: pixels of the parameters' type, for SigLIP 2 cut into patches."""
    pixels = pixel_values.to(next(model.parameters()).dtype)
    if model_type(model) != "siglip2":
        return {"pixel_values": pixels}
    patch = (model.module if hasattr(model, "module") else model).config.vision_config.patch_size
    rows, columns = pixels.shape[-2] // patch, pixels.shape[-1] // patch
    patches = pixels.unflatten(-1, (columns, patch)).unflatten(-3, (rows, patch))  # (N, 3, rows, P, columns, P)
    patches = patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # (N, rows * columns, P * P * 3)
    return {
        "pixel_values": patches,
        "pixel_attention_mask": patches.new_ones(patches.shape[:2], dtype=torch.int32),
        "spatial_shapes": torch.tensor([[rows, columns]], device=pixels.device).expand(len(pixels), 2),
    }


def embed_images(model: nn.Module, pixel_values: Tensor, normalize: bool = True) -> Tensor:
    """Return unit image embeddings.

    Args:
        model: Any dual encoder with `get_image_features`.
        pixel_values: Normalised pixels, (N, 3, H, W).
        normalize: Scale rows to length one; else they are as the model gives them.

    Returns:
        (N, D), float32 or the model's own precision where that is higher.
    """
    return _scaled(_features(model.get_image_features(**_image_input(model, pixel_values))), normalize)


def embed_texts(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None, normalize: bool = True
) -> Tensor:
    """Return unit text embeddings.

    Args:
        model: Any dual encoder with `get_text_features`.
        input_ids: Token ids, (N, L).
        attention_mask: 1 for tokens, 0 for padding, (N, L).
        normalize: Scale rows to length one; else they are as the model gives them.

    Returns:
        (N, D), float32 or the model's own precision where that is higher.
    """
    return _scaled(_features(model.get_text_features(input_ids=input_ids, attention_mask=attention_mask)), normalize)


def embed_pairs(
    model: nn.Module, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Return unit embeddings of images and texts from one call of the (possibly wrapped) model.

    The call goes through the wrapper's own `forward`, so that DistributedDataParallel sees it.

    Args:
        model: Dual encoder, wrapped or not.
        pixel_values: (N, 3, H, W).
        input_ids: (M, L); M may differ from N.
        attention_mask: (M, L).

    Returns:
        Image embeddings (N, D) and text embeddings (M, D), float32, unit rows.
    """
    output = model(input_ids=input_ids, attention_mask=attention_mask, **_image_input(model, pixel_values))
    return _unit(output.image_embeds), _unit(output.text_embeds)


def logit_scale(model: nn.Module) -> Tensor:
    """Return s = exp(logit_scale), the factor on cosine similarities, as a scalar tensor with gradient."""
    return model.logit_scale.exp().reshape(())


def logit_bias(model: nn.Module) -> Tensor | None:
    """Return b, what a SigLIP adds to scaled cosine similarities, as a scalar tensor with gradient; None elsewhere."""
    bias = getattr(model, "logit_bias", None)
    return None if bias is None else bias.reshape(())


@contextmanager
def inference(model: nn.Module) -> Iterator[torch.device]:
    """Put `model` into evaluation mode without gradients for the block, and give its device."""
    in_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.inference_mode():
            yield next(model.parameters()).device
    finally:
        for module in in_training:
            module.training = True


def tokenize(processor: Any, texts: Iterable[str], model: nn.Module | None = None) -> dict[str, Tensor]:
    """Return `input_ids` and `attention_mask`, (N, L), as the text tower of `model` wants them; see `TextInput`."""
    return TextInput.of(model, processor)(texts)


def embed_dataset(
    model: nn.Module,
    processor: Any,
    dataset: datasets.Dataset,
    image_column: str | None = "image",
    caption_column: str | None = "caption",
    batch_size: int = 256,
    canvas: Canvas | None = None,
    desc: str = "embedding",
    normalize: bool = True,
    unreadable: dict[int, str] | None = None,
    texts: bool = True,
) -> dict[str, np.ndarray]:
    """Return the unit embeddings of every row of a dataset, in its order.

    Args:
        model: Dual encoder; put into evaluation mode meanwhile.
        processor: Its processor (tokenizer, pixel mean and deviation, size).
        dataset: Rows with an image and/or a caption column.
        image_column: Column of images, or None to leave them out.
        caption_column: Column of captions, or None to leave them out.
        batch_size: Rows a forward pass.
        canvas: Geometry of the images; that of the processor by default.
        desc: Label of the progress bar.
        normalize: Scale embeddings to length one; else they are as the model gives them.
        unreadable: Takes row number -> what is wrong with it for the rows whose picture or caption is missing or
            broken, which are then left out of the result; without it the first such row is an error.
        texts: Embed the captions; else they are only read, so that the same rows are left out as with them.

    Returns:
        `{"image": (N, D), "text": (N, D)}` float32, without the modality that was left out; (0, 0) where no row can be
        read.

    Raises:
        ValueError: If a named column is missing or both are None, or a row cannot be read (the message names it).
    """
    wanted = [column for column in (image_column, caption_column) if column is not None]
    missing = [column for column in wanted if column not in dataset.column_names]
    if missing or not wanted:
        raise ValueError(
            f"Expected columns {wanted or 'image and/or caption'}, but the dataset has {dataset.column_names}."
        )
    canvas = canvas or Canvas.of(processor)
    embedded = _modalities(image_column, caption_column if texts else None)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in embedded}
    reader = _Reader(dataset.select_columns(wanted), image_column, caption_column, canvas)
    with inference(model) as device:
        for images, captions in reader.batches(batch_size, desc, unreadable):
            if images:
                pixels = _normalized(images, processor, device)
                parts["image"].append(embed_images(model, pixels, normalize).cpu().numpy())
            if captions and texts:
                tokens = {name: x.to(device) for name, x in tokenize(processor, captions, model).items()}
                parts["text"].append(embed_texts(model, **tokens, normalize=normalize).cpu().numpy())
    empty = np.empty((0, 0), dtype=np.float32)
    return {name: np.concatenate(chunks) if chunks else empty for name, chunks in parts.items()}


def pixel_values(
    processor: Any,
    dataset: datasets.Dataset,
    image_column: str = "image",
    canvas: Canvas | None = None,
    device: str | torch.device = "cpu",
) -> Tensor:
    """Return the normalised pictures of every row of a dataset, as `embed_dataset` gives them to the model.

    Args:
        processor: The model's processor (pixel mean and deviation, size).
        dataset: Rows with an image column; all of them are held at once.
        image_column: Column of images.
        canvas: Geometry of the images; that of the processor by default.
        device: Where the pixels go.

    Returns:
        (N, 3, H, W), float32.

    Raises:
        ValueError: If a row cannot be read (the message names it).
    """
    reader = _Reader(dataset.select_columns([image_column]), image_column, None, canvas or Canvas.of(processor))
    images = [image for images, _ in reader.batches(len(dataset), "reading", None) for image in images]
    return _normalized(images, processor, device)


def _normalized(images: list[np.ndarray], processor: Any, device: str | torch.device) -> Tensor:
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return normalized(pixels.to(device), *pixel_statistics(processor))


def _modalities(image_column: str | None, caption_column: str | None) -> list[str]:
    named = {"image": image_column, "text": caption_column}
    return [name for name, column in named.items() if column is not None]


class _Reader:
    """Rows of a dataset as pixels on a canvas and captions; what cannot be read is named.

    Args:
        rows: The dataset, with no other columns than these.
        image_column: Column of images, or None.
        caption_column: Column of captions, or None.
        canvas: Geometry of the images.
    """

    def __init__(
        self, rows: datasets.Dataset, image_column: str | None, caption_column: str | None, canvas: Canvas
    ) -> None:
        self.rows, self.canvas = rows, canvas
        self.image_column, self.caption_column = image_column, caption_column

    def batches(
        self, size: int, desc: str, unreadable: dict[int, str] | None
    ) -> Iterator[tuple[list[np.ndarray], list[str]]]:
        """Yield pixels, (H, W, 3) each, and captions of up to `size` rows; of an unreadable row neither."""
        starts = range(0, len(self.rows), size)
        silent = True if len(self.rows) < 2048 else None  # None: shown on a terminal, not in a log
        for start in tqdm(starts, desc=desc, unit="batch", disable=silent, leave=False):
            images, captions = [], []
            for number, row in self._decoded(start, min(start + size, len(self.rows))):
                try:
                    pixels, caption = self._checked(self.rows[number] if row is None else row)
                except (TypeError, *UNREADABLE) as error:
                    if unreadable is None:
                        raise ValueError(f"Row {number}: {reason(error)}") from error
                    unreadable[number] = reason(error)
                    continue
                images += [] if pixels is None else [pixels]
                captions += [] if caption is None else [caption]
            yield images, captions

    def _decoded(self, start: int, stop: int) -> Iterable[tuple[int, dict[str, Any] | None]]:
        """Return number and values of each row; None for the values where the rows have to be read one by one."""
        try:
            columns = self.rows[start:stop]
        except UNREADABLE:
            return [(number, None) for number in range(start, stop)]
        values = zip(*columns.values(), strict=True)
        return enumerate((dict(zip(columns, row, strict=True)) for row in values), start)

    def _checked(self, row: dict[str, Any]) -> tuple[np.ndarray | None, str | None]:
        pixels, caption = None, None
        if self.image_column is not None:
            if row[self.image_column] is None:
                raise ValueError("Expected an image, but the row has none.")
            pixels = self.canvas.array(row[self.image_column])
        if self.caption_column is not None:
            caption = row[self.caption_column]
            if not isinstance(caption, str):
                raise ValueError(f"Expected a text as the caption, but got {type(caption).__name__}.")
        return pixels, caption


def model_fingerprint(model: nn.Module) -> str:
    """Return a hash of a model's weights and buffers, by name, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
