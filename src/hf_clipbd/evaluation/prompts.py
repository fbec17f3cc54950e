# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The text side of zero-shot classification: one weight vector for each class out of its prompts."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hf_clipbd.attacks.captions import OPENAI_TEMPLATES, fill_template
from hf_clipbd.evaluation.processes import add_over_processes, shared_out
from hf_clipbd.features import configuration_json, embed_texts, inference, tokenize
from hf_clipbd.models.text_input import TextInput, tokenizer_fingerprint
from hf_clipbd.schema import content_key


def text_classifier(
    model: nn.Module,
    processor: Any,
    class_names: Sequence[str],
    templates: Sequence[str] | None = None,
    batch_size: int = 256,
    cache: str | Path | None = None,
    together: bool = False,
) -> Tensor:
    """Return one unit weight vector for each class: w_c = unit(mean over templates t of unit(text(t(c)))).

    Args:
        model: Dual encoder.
        processor: Its processor or tokenizer.
        class_names: C names, as people write them; classes of one name have one vector, to the last bit.
        templates: Sentences with one `{}`; OpenAI's 80 by default. "a" or "an" before the name is made to fit it, in
            OpenAI's too, whose own code leaves "a photo of a airplane.".
        batch_size: Prompts a forward pass; memory does not grow with the number of classes times templates.
        cache: Folder in which the result is kept, named by a hash of the prompts, the tokenizer, the configuration and
            all weights but the image tower's; None keeps nothing.
        together: Whether all processes of a group call it; then each embeds a part of the prompts, and what comes out
            is the same as of one process.

    Returns:
        (C, D), float32, on the model's device.

    Raises:
        ValueError: If there are no classes or no templates, or a template has no `{}`.

    Reference:
        Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021, section 3.1.4
        (prompt ensembling in embedding space).
    """
    templates = list(OPENAI_TEMPLATES if templates is None else templates)
    if isinstance(class_names, str) or not class_names or not templates:
        raise ValueError(f"Expected lists of class names and of templates, but got {class_names!r} and {templates!r}.")
    holeless = [template for template in templates if not isinstance(template, str) or "{}" not in template]
    if holeless:
        raise ValueError(f"Expected templates, texts with a `{{}}` for the class name, but got {holeless[:3]}.")
    path = None if cache is None else _classifier_file(Path(cache), model, processor, class_names, templates)
    if _is_there(path, together):
        return load_file(path)["classifier"].to(next(model.parameters()).device)
    distinct = {name: number for number, name in enumerate(dict.fromkeys(class_names))}
    prompts = [(c, fill_template(template, name)) for name, c in distinct.items() for template in templates]
    chunks = [prompts[start : start + batch_size] for start in range(0, len(prompts), batch_size)]
    sums: Tensor | None = None
    with inference(model) as device:

        def embedded(number: int) -> np.ndarray:
            tokens = tokenize(processor, [text for _, text in chunks[number]], model)
            return embed_texts(model, **{name: x.to(device) for name, x in tokens.items()}).cpu().numpy()  # (B, D)

        parts = shared_out(len(chunks), embedded) if together else map(embedded, range(len(chunks)))
        for chunk, part in zip(chunks, parts, strict=True):  # added up in one order, whoever embedded them
            features = torch.from_numpy(part).to(device)
            if sums is None:
                sums = torch.zeros(len(distinct), features.shape[1], device=device)
            sums.index_add_(0, torch.tensor([c for c, _ in chunk], device=device), features)
        classifier = nn.functional.normalize(sums, dim=-1)[[distinct[name] for name in class_names]]
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        save_file({"classifier": classifier.cpu().contiguous()}, partial)
        partial.replace(path)
    return classifier


def _is_there(path: Path | None, together: bool) -> bool:
    """Return whether a classifier is kept already, of several processes where each of them sees it."""
    there = path is not None and path.is_file()
    return int(add_over_processes(torch.tensor(not there, dtype=torch.int64))) == 0 if together else there


def _classifier_file(
    cache: Path, model: nn.Module, processor: Any, class_names: Sequence[str], templates: Sequence[str]
) -> Path:
    """Return where the classifier of these prompts and this text tower is kept."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith("vision_model."):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    text = TextInput.of(model, processor)
    owner = [digest.hexdigest(), configuration_json(model, besides="vision_config")]
    words = [text.max_length, text.fixed_length, tokenizer_fingerprint(text.tokenizer)]
    key = content_key("text classifier", *owner, *words, list(class_names), list(templates))
    return cache.expanduser() / f"{key}.safetensors"
