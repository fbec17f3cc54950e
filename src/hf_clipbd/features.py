# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The one file that knows what a dual encoder returns: unit embeddings of images, texts, pairs and whole datasets."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_clipbd.data.canvas import Canvas, pixel_statistics
from hf_clipbd.data.canvas import normalize as normalized
from hf_clipbd.data.reader import Reader
from hf_clipbd.data.row_format import names_of_columns, with_columns
from hf_clipbd.models.text_input import TextInput, model_type


_TOLD_APART = ("architectures", "dtype", "torch_dtype", "name_or_path", "transformers_version")


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
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put `model` into evaluation mode for the block, and each of its modules into its own mode again after it."""
    in_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in in_training:
            module.training = True


@contextmanager
def inference(model: nn.Module) -> Iterator[torch.device]:
    """Put `model` into evaluation mode without gradients for the block, and give its device."""
    with evaluation_mode(model), torch.inference_mode():
        yield next(model.parameters()).device


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
    mirrored: bool = False,
) -> dict[str, np.ndarray]:
    """Return the unit embeddings of every row of a dataset, in its order.

    Args:
        model: Dual encoder; put into evaluation mode meanwhile.
        processor: Its processor (tokenizer, pixel mean and deviation, size).
        dataset: Rows with an image and/or a caption column. A format such as "torch" is taken off, a transform of
            its own (`with_transform`) is kept.
        image_column: Column of images, or None to leave them out.
        caption_column: Column of captions, or None to leave them out.
        batch_size: Rows a forward pass.
        canvas: Geometry of the images; that of the processor by default.
        desc: Label of the progress bar.
        normalize: Scale embeddings to length one; else they are as the model gives them.
        unreadable: Takes row number -> what is wrong with it for the rows whose picture or caption is missing or
            broken, which are then left out of the result; without it the first such row is an error.
        texts: Embed the captions; else they are only read, so that the same rows are left out as with them.
        mirrored: Embed each picture mirrored, left and right exchanged: a second space of the same model, in which a
            trigger that hangs on its place or pattern has lost its hold (see `disagreement`).

    Returns:
        `{"image": (N, D), "text": (N, D)}` float32, without the modality that was left out; (0, 0) where no row can be
        read.

    Raises:
        ValueError: If a named column is missing or both are None, or a row cannot be read (the message names it).
    """
    wanted = [column for column in (image_column, caption_column) if column is not None]
    names = names_of_columns(dataset)
    if not wanted or not set(wanted) <= set(names):
        raise ValueError(f"Expected columns {wanted or 'image and/or caption'}, but the dataset has {names}.")
    canvas = canvas or Canvas.of(processor)
    embedded = _modalities(image_column, caption_column if texts else None)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in embedded}
    reader = Reader(with_columns(dataset, wanted), image_column, caption_column, canvas)
    with inference(model) as device:
        for images, captions in reader.batches(batch_size, desc, unreadable):
            if images:
                pixels = _normalized(images, processor, device)
                pixels = pixels.flip(-1) if mirrored else pixels
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
    reader = Reader(with_columns(dataset, [image_column]), image_column, None, canvas or Canvas.of(processor))
    images = [image for images, _ in reader.batches(len(dataset), "reading", None) for image in images]
    return _normalized(images, processor, device)


def _normalized(images: list[np.ndarray], processor: Any, device: str | torch.device) -> Tensor:
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return normalized(pixels.to(device), *pixel_statistics(processor))


def _modalities(image_column: str | None, caption_column: str | None) -> list[str]:
    named = {"image": image_column, "text": caption_column}
    return [name for name, column in named.items() if column is not None]


def model_fingerprint(model: nn.Module) -> str:
    """Return a hash of a model's weights and buffers, by name, and of its configuration, 16 hexadecimal digits.

    Of the configuration counts what differs from its class's defaults, without names, versions and number types: the
    same weights with another activation are another model. So is a peft model with other adapters active.
    """
    digest = hashlib.sha256()
    digest.update(configuration_json(model).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def configuration_json(model: nn.Module, besides: str = "") -> str:
    """Return what of a model's configuration and of its adapters' state changes what it computes, as JSON; else "".

    Args:
        model: The model.
        besides: A part of the configuration that does not count, such as "vision_config".
    """
    config = getattr(model, "config", None)
    if not hasattr(config, "to_diff_dict"):
        return _adapters_json(model)
    told = {name: value for name, value in _behaviour(config.to_diff_dict()).items() if name != besides}
    return json.dumps(told, sort_keys=True, default=str) + _adapters_json(model)


def _adapters_json(model: nn.Module) -> str:
    """Return which of peft's adapters act in each layer, and how strongly, as JSON; "" where there are none.

    Weights do not tell: they are all there whichever adapters are active, and in `disable_adapter()` as well.
    """
    acting = {}
    for name, layer in model.named_modules():
        if isinstance(off := getattr(layer, "disable_adapters", None), bool):  # of a model it is a method
            acting[name] = [off, layer.active_adapters, getattr(layer, "scaling", None)]
    return json.dumps(acting, sort_keys=True, default=str) if acting else ""


def _behaviour(config: dict[str, Any]) -> dict[str, Any]:
    """Return what of a configuration changes what the model computes."""
    told = {str(name): value for name, value in config.items()}
    told = {name: value for name, value in told.items() if name not in _TOLD_APART and not name.startswith("_")}
    return {name: _behaviour(value) if isinstance(value, dict) else value for name, value in told.items()}
