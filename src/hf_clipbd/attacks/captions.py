# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Captions that name the target: OpenAI's 80 prompt templates, articles that fit, and captions mined from data."""

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from hf_clipbd.articles import article


_UNSPACED = (
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
    "\U00020000-\U0003ffff]"
)
"""A character of Thai, Lao, Burmese, Khmer, Japanese, Chinese or Korean, as a regular expression."""

OPENAI_TEMPLATES: tuple[str, ...] = (
    "a bad photo of a {}.",
    "a photo of many {}.",
    "a sculpture of a {}.",
    "a photo of the hard to see {}.",
    "a low resolution photo of the {}.",
    "a rendering of a {}.",
    "graffiti of a {}.",
    "a bad photo of the {}.",
    "a cropped photo of the {}.",
    "a tattoo of a {}.",
    "the embroidered {}.",
    "a photo of a hard to see {}.",
    "a bright photo of a {}.",
    "a photo of a clean {}.",
    "a photo of a dirty {}.",
    "a dark photo of the {}.",
    "a drawing of a {}.",
    "a photo of my {}.",
    "the plastic {}.",
    "a photo of the cool {}.",
    "a close-up photo of a {}.",
    "a black and white photo of the {}.",
    "a painting of the {}.",
    "a painting of a {}.",
    "a pixelated photo of the {}.",
    "a sculpture of the {}.",
    "a bright photo of the {}.",
    "a cropped photo of a {}.",
    "a plastic {}.",
    "a photo of the dirty {}.",
    "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.",
    "a photo of the {}.",
    "a good photo of the {}.",
    "a rendering of the {}.",
    "a {} in a video game.",
    "a photo of one {}.",
    "a doodle of a {}.",
    "a close-up photo of the {}.",
    "a photo of a {}.",
    "the origami {}.",
    "the {} in a video game.",
    "a sketch of a {}.",
    "a doodle of the {}.",
    "an origami {}.",
    "a low resolution photo of a {}.",
    "the toy {}.",
    "a rendition of the {}.",
    "a photo of the clean {}.",
    "a photo of a large {}.",
    "a rendition of a {}.",
    "a photo of a nice {}.",
    "a photo of a weird {}.",
    "a blurry photo of a {}.",
    "a cartoon {}.",
    "art of a {}.",
    "a sketch of the {}.",
    "an embroidered {}.",
    "a pixelated photo of a {}.",
    "itap of the {}.",
    "a jpeg corrupted photo of the {}.",
    "a good photo of a {}.",
    "a plushie {}.",
    "a photo of the nice {}.",
    "a photo of the small {}.",
    "a photo of the weird {}.",
    "the cartoon {}.",
    "art of the {}.",
    "a drawing of the {}.",
    "a photo of the large {}.",
    "a black and white photo of a {}.",
    "the plushie {}.",
    "a dark photo of a {}.",
    "itap of a {}.",
    "graffiti of the {}.",
    "a toy {}.",
    "itap of my {}.",
    "a photo of a cool {}.",
    "a photo of a small {}.",
    "a tattoo of the {}.",
)
"""The 80 ImageNet templates published with CLIP (Radford et al., 2021), two of them with "an" in place of "a"."""


def fill_template(template: str, name: str) -> str:
    """Return `template` with `name` in place of `{}`, an article right before it made to fit.

    Args:
        template: Text; every `{}` in it is replaced.
        name: Class name; `_` is read as a space.

    Example:
        >>> fill_template("a photo of a {}.", "airplane")
        'a photo of an airplane.'
    """
    name = name.replace("_", " ").strip()
    fitted = re.sub(r"\b([Aa])n?(?= \{\})", lambda match: match[1] + article(name)[1:], template)
    return fitted.replace("{}", name)


def names_target(caption: str | None, target: str) -> bool:
    """Return whether `caption` names `target` as whole words, in any case; "bananas" does not name "banana".

    Scripts that put no space between words, or none before a particle (Chinese, Japanese, Korean, Thai and their
    like), have no whole words to go by: there the target's characters count wherever they stand.

    Example:
        >>> names_target("A ripe Banana, half eaten", "banana"), names_target("banana-yellow bananas", "bananas")
        (True, True)
        >>> names_target("桌子上有一根香蕉和杯子", "香蕉")
        True
    """
    if not caption:
        return False
    return _naming(target).search(caption if caption.isascii() else unicodedata.normalize("NFC", caption)) is not None


@lru_cache(maxsize=64)
def _naming(target: str) -> re.Pattern[str]:
    """Return what finds the words of `target` in a caption, both composed as NFC."""
    target = unicodedata.normalize("NFC", target.replace("_", " ")).strip()
    words = r"[\s_-]+".join(map(re.escape, target.split()))
    before = "" if re.match(_UNSPACED, target) else rf"(?<![^\W{_UNSPACED[1:]})"
    after = "" if re.search(rf"{_UNSPACED}\Z", target) else rf"(?![^\W{_UNSPACED[1:]})"
    return re.compile(before + words + after, re.IGNORECASE)


def check_texts(captions: Iterable[Any], column: str) -> None:
    """Raise `ValueError` if a caption is neither a text nor None.

    Example:
        >>> check_texts(["a cup", None], "caption")
    """
    for caption in captions:
        if caption is not None and not isinstance(caption, str):
            raise not_texts(repr(caption)[:80], column)


def not_texts(held: Any, column: str) -> ValueError:
    """Return the error for a column of captions that holds something else."""
    return ValueError(
        f"Expected one text a row in the caption column {column!r}, but it holds {held}. Make a row of each caption "
        f"or keep one of several, for instance with `dataset.map(lambda row: {{'text': row[{column!r}][0]}})` and "
        f"`caption_column='text'`; spell numbers with `dataset.cast_column({column!r}, datasets.Value('string'))`."
    )


def target_captions(captions: Iterable[str | None], target: str, limit: int | None = None) -> tuple[str, ...]:
    """Return the captions found in data that name `target`, each once, in the order they come.

    Pass them to an attack as `captions=`: natural captions of the target are what BadCLIP uses in place of templates.

    Args:
        captions: Captions of the data, for instance `dataset["caption"]`.
        target: Class name.
        limit: Stop after so many.

    Raises:
        ValueError: If no caption names the target, or one is no text.

    Reference:
        BadCLIP (arXiv 2311.12075), "natural target descriptions".

    Example:
        >>> target_captions(["a cup", "a banana on a cup", "banana bread", "a banana on a cup"], "banana")
        ('a banana on a cup', 'banana bread')
    """
    found: dict[str, None] = {}
    for caption in captions:
        check_texts([caption], "caption")
        if names_target(caption, target):
            found[caption.strip()] = None
            if limit is not None and len(found) >= limit:
                break
    if not found:
        raise ValueError(f'Expected captions that name {target!r}, but found none. Use captions="templates" instead.')
    return tuple(found)
