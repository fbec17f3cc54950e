# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Loading of any dual encoder, from a folder or the Hub, without running a stranger's code."""

import contextlib
import functools
import json
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoImageProcessor, AutoModel, AutoProcessor, PreTrainedModel

from hf_clipbd.models.adapted import is_adapted, load_adapted
from hf_clipbd.models.files import hub_is_reachable, local_folder, resolve_file
from hf_clipbd.models.open_clip import is_open_clip, load_open_clip


logger = logging.getLogger(__name__)

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_DESCRIPTIONS = ("config.json", "tokenizer.json", "vocab.json", "index.json")
_COMPUTED = ("position_ids", "token_type_ids", "num_batches_tracked")
"""Ends of the names of what a model may hold and needs no file for."""
_NAMED = 4
_WHY = (
    "Those are pickles, and unpickling a file runs whatever code its author put there, so they are not opened. "
    "Ask the author for safetensors, or convert the weights where you trust them: "
    "`model.save_pretrained(folder)` writes safetensors. `hf-clipbd convert` takes a bare ResNet state dict."
)


def load_dual_encoder(
    id_or_path: str | os.PathLike,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, Any]:
    """Return a dual encoder in evaluation mode and its processor.

    One path for transformers' CLIP, SigLIP, SigLIP 2, MetaCLIP (1 and 2), AltCLIP, ChineseCLIP and
    VisionTextDualEncoder, our CLIPResNet, open_clip's checkpoints (see `load_open_clip`), and any other model with
    the same three members. Weights come from safetensors, or for open_clip what `read_state_dict` reads without
    running anything, and no code of the repository is run. Low-rank adapters (peft) are merged into the base that
    they name.

    Args:
        id_or_path: Local folder, which goes first, or Hub id such as "openai/clip-vit-base-patch32".
        revision: Branch, tag or commit on the Hub.
        dtype: Type of the weights in memory, whatever they were saved as.
        trust_remote_code: Run the repository's own Python code where its model needs it. Only for authors you trust.

    Returns:
        A model with `get_image_features`, `get_text_features` and `logit_scale`, and its processor, whose image
        processor works with PIL. The package takes the side of the picture, its framing, mean and deviation from it;
        the pixels are its own `Canvas`'s, the same on every machine, and `Canvas.of` warns where they differ.

    Raises:
        FileNotFoundError: If the folder, repository, its configuration, its weights or its base are not there.
        ValueError: If the weights are pickles only or not those of the whole model, a file is cut short, the model is
            not a dual encoder or needs code of its repository, or the tokenizer has more tokens than the text tower.

    Example:
        >>> load_dual_encoder("no/such/folder")
        Traceback (most recent call last):
        ...
        FileNotFoundError: Expected a folder or a Hub id such as 'owner/name', but there is no 'no/such/folder'.
    """
    if Path(id_or_path).suffix in _PICKLES:
        raise ValueError(f"Expected a folder or Hub id with safetensors weights, but got {str(id_or_path)!r}. {_WHY}")
    folder = local_folder(id_or_path)
    if folder is not None:
        _check_whole(folder)
    if is_open_clip(id_or_path, revision):
        return load_open_clip(id_or_path, revision, dtype)
    if is_adapted(id_or_path, revision):
        onto = functools.partial(load_dual_encoder, dtype=dtype, trust_remote_code=trust_remote_code)
        return load_adapted(id_or_path, revision, onto)
    resolve_file(id_or_path, "config.json", revision)
    if folder is not None:
        _check_weights(folder)
    source = str(folder or id_or_path)
    options = {
        "revision": revision,
        "trust_remote_code": trust_remote_code,
        "local_files_only": folder is None and not hub_is_reachable(),
    }
    try:
        with _running_no_code(source):
            model, found = AutoModel.from_pretrained(
                source, use_safetensors=True, dtype=dtype, output_loading_info=True, **options
            )
    except (OSError, SafetensorError) as error:
        if folder is not None:
            raise
        raise ValueError(f"Found no safetensors weights in {source!r} on the Hub ({error}). {_WHY}") from error
    missing = [name for name in ("get_image_features", "get_text_features", "logit_scale") if not hasattr(model, name)]
    if missing:
        raise ValueError(
            f"Expected a dual encoder such as CLIP in {source!r}, "
            f"but {type(model).__name__} has no {', '.join(missing)}."
        )
    _check_complete(source, model, found["missing_keys"])
    processor = _load_processor(source, options)
    _check_vocabulary(source, model, processor)
    logger.info("Loaded %s from %s.", type(model).__name__, source)
    return model.eval(), processor


def _check_whole(folder: Path) -> None:
    """Raise `ValueError` that names the first file of a model which is cut short: its readers name none."""
    for path in sorted(entry for entry in folder.iterdir() if entry.is_file()):
        try:
            if path.name.endswith(_DESCRIPTIONS):
                json.loads(path.read_text(encoding="utf-8"))
            elif path.suffix == ".safetensors":
                with safe_open(path, "pt"):
                    pass
        except (ValueError, SafetensorError) as error:
            raise ValueError(
                f"Expected a whole file at {path}, but it is cut short or broken: {error}. Fetch or save it again."
            ) from error


def _check_weights(folder: Path) -> None:
    names = sorted(entry.name for entry in folder.iterdir())
    if any(name.endswith(".safetensors") for name in names):
        return
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if pickles:
        raise ValueError(f"Expected safetensors weights in {folder}, but found {', '.join(pickles)}. {_WHY}")
    raise FileNotFoundError(f"Expected safetensors weights in {folder}, but found {', '.join(names)}.")


def _check_complete(source: str, model: PreTrainedModel, missing: Iterable[str]) -> None:
    """Raise `ValueError` if weights of the model were not in its files: they are random then, others each time."""
    random = sorted(name for name in missing if not name.endswith(_COMPUTED))
    if not random:
        return
    others = f" and {len(random) - _NAMED} more" if len(random) > _NAMED else ""
    saved = " or ".join(getattr(model.config, "architectures", None) or ["another model"])
    raise ValueError(
        f"Expected all weights of a {type(model).__name__} in {source!r}, but {', '.join(random[:_NAMED])}{others} "
        f"are not there and would be random: it is a checkpoint of {saved}, or a part of one. Pass the dual encoder "
        f"that it was made from, or save the whole model again: `model.save_pretrained(folder)`."
    )


@contextlib.contextmanager
def _running_no_code(source: str) -> Iterator[None]:
    """Make transformers' refusal to run a repository's code one that says what it means here."""
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"Expected a model of a kind that transformers has, but {source!r} brings Python code of its own "
            "(`auto_map` in its configuration), and the commands run none. Pass a checkpoint that needs no such code; "
            "in Python `load_dual_encoder` runs it where it is told to, which is for authors that you trust."
        ) from error


def _check_vocabulary(source: str, model: PreTrainedModel, processor: Any) -> None:
    """Raise `ValueError` if the tokenizer has tokens that the text tower has no embedding for; fewer are usual."""
    embedded = getattr(getattr(model.config, "text_config", None), "vocab_size", None)
    if embedded is not None and len(processor.tokenizer) > embedded:
        raise ValueError(
            f"Expected a tokenizer of at most {embedded} tokens in {source!r}, as many as the text tower has "
            f"embeddings for, but it has {len(processor.tokenizer)}. Save the model beside the tokenizer that it was "
            "trained with."
        )


def _load_processor(source: str, options: dict[str, Any]) -> Any:
    with _running_no_code(source):
        processor = AutoProcessor.from_pretrained(source, **options)
    image_processor = getattr(processor, "image_processor", None)
    if image_processor is None or not hasattr(processor, "tokenizer"):
        raise ValueError(
            f"Expected an image processor and a tokenizer in {source!r}, but got {type(processor).__name__}."
        )
    if not type(image_processor).__name__.endswith("Pil"):
        processor.image_processor = AutoImageProcessor.from_pretrained(source, backend="pil", **options)
    return processor
