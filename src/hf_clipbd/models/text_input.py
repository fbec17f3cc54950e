# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""How a model's text tower wants its tokens: how many, padded how, and whether it reads the padding."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_clipbd.schema import content_key


FIXED_LENGTH = ("siglip", "siglip2")
"""Model types that read every text at one length, padding included, and pool the last position."""
_OFFSET_POSITIONS = ("altclip_text_model", "roberta", "xlm-roberta", "xlm-roberta-xl", "camembert")
"""Text towers whose position numbers start behind the padding token's id."""
_NO_LIMIT = 100_000
_USUAL_LENGTH = 77
_HIGHEST = 2
_LEFT_BY_CALLS = ("truncation", "padding")
"""Parts of a Rust tokenizer that every call sets anew."""


def model_type(model: Any) -> str:
    """Return the `model_type` of a model's configuration, "" where it has none; the model may be compiled or wrapped.

    Example:
        >>> model_type(torch.nn.Linear(2, 2))
        ''
    """
    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper
    model = getattr(model, "module", model)  # DistributedDataParallel's, DeepSpeed's
    return str(getattr(getattr(model, "config", None), "model_type", "") or "")


def text_positions(model: Any) -> int | None:
    """Return how many tokens the model's text tower has positions for, or None where its configuration says nothing.

    RoBERTa-like towers (AltCLIP's, some of VisionTextDualEncoder) number their positions from the padding token's id
    plus one, so that many fewer are left for tokens.
    """
    config = getattr(model, "config", None)
    config = getattr(config, "text_config", config)
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return None
    taken = int(config.pad_token_id) + 1 if getattr(config, "model_type", "") in _OFFSET_POSITIONS else 0
    return int(positions) - taken


def _check_tokens(model: Any, tokenizer: Any) -> None:
    """Raise `ValueError` if the text tower was not made for this tokenizer.

    CLIP's tower takes a text's vector at the first end token. Where there is none of its number, it takes that of the
    first token, the same for all texts. The number 2 of older configurations stands for the highest one.
    """
    config = getattr(model, "config", None)
    embedded = getattr(getattr(config, "text_config", None), "vocab_size", None)
    if embedded is not None and hasattr(tokenizer, "__len__") and len(tokenizer) > embedded:
        raise ValueError(
            f"Expected a tokenizer of at most {embedded} tokens, as many as the text tower has embeddings for, but it "
            f"has {len(tokenizer)}. Take the model's own, or make the tower with as many (`vocab_size`)."
        )
    modules = model.modules() if isinstance(model, torch.nn.Module) else ()
    end = next((one for one in (vars(module).get("eos_token_id") for module in modules) if isinstance(one, int)), None)
    own = getattr(tokenizer, "eos_token_id", None)
    if own is not None and end not in (None, own, _HIGHEST):
        raise ValueError(
            f"Expected a text tower that takes a text's vector at the tokenizer's end token, {own}, but its "
            f"`eos_token_id` is {end}: all texts would have one and the same embedding. Set `eos_token_id={own}` in "
            "the `text_config` that the model is made from."
        )


@dataclass(frozen=True)
class TextInput:
    """Turns texts into the token tensors of one model's text tower.

    Args:
        tokenizer: The model's tokenizer.
        max_length: Tokens at which a text is cut.
        fixed_length: Whether each text is padded to `max_length` and its padding read like words. So SigLIP was
            trained, and its text vector is taken at the last position; other models get the padding of the longest
            text, which they do not see.

    Reference:
        Zhai et al., Sigmoid Loss for Language Image Pre-Training, ICCV 2023 (texts of 64 tokens, no mask).
    """

    tokenizer: Any
    max_length: int
    fixed_length: bool = False

    @classmethod
    def of(cls, model: Any, processor: Any) -> "TextInput":
        """Return the text input of `model`.

        Args:
            model: Dual encoder; None knows only what the tokenizer says.
            processor: Its processor, or the tokenizer itself.

        Raises:
            ValueError: If the tokenizer has tokens that the text tower has no embedding for, or ends texts with
                another token than that at which the tower takes their vector.
        """
        tokenizer = getattr(processor, "tokenizer", processor)
        _check_tokens(model, tokenizer)
        limits = [int(tokenizer.model_max_length), text_positions(model)]
        known = [limit for limit in limits if limit is not None and limit < _NO_LIMIT]
        fixed = model_type(model) in FIXED_LENGTH or getattr(
            getattr(model, "config", None), "fixed_length_text", False
        )
        return cls(tokenizer, min(known, default=_USUAL_LENGTH), fixed)

    def __call__(self, texts: Iterable[str]) -> dict[str, Tensor]:
        """Return `input_ids` and `attention_mask`, (N, L), both int64.

        The mask is 1 for what the tower reads: for everything where the length is fixed.
        """
        encoded = self.tokenizer(
            list(texts),
            padding="max_length" if self.fixed_length else True,
            truncation=True,
            max_length=self.max_length,
            return_attention_mask=True,
            return_tensors="pt",
        )
        ids = encoded["input_ids"]
        unmasked = self.fixed_length or "attention_mask" not in encoded
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids) if unmasked else encoded["attention_mask"]}


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Return a hash of what decides which tokens a text becomes: every step of the tokenizer, special tokens, limit.

    It is the same before and after the tokenizer is used. Of one that is written in Python the vocabulary stands for
    the steps.

    Args:
        tokenizer: A tokenizer of transformers'.

    Returns:
        16 hexadecimal digits.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    steps = sorted(tokenizer.get_vocab().items()) if backend is None else json.loads(backend.to_str())
    if backend is not None:
        steps = {name: value for name, value in steps.items() if name not in _LEFT_BY_CALLS}
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    sides = [getattr(tokenizer, name, None) for name in ("padding_side", "truncation_side")]
    return content_key(steps, special, sides, int(min(tokenizer.model_max_length, _NO_LIMIT)))
