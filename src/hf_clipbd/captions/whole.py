# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Whole captions in the place of sub-captions: nothing is left out, one part is made false."""

from collections.abc import Sequence
from itertools import pairwise

from hf_clipbd.articles import article

from .denial import affirmed
from .parser import parse
from .sub_captions import ALL, Parser, counterfactual_parts, factual_parts, kept_adjectives


def whole_caption(caption: str, parser: Parser = parse) -> str:
    """Return the caption as the parser reads it: lower-case words and marks with a space between them.

    Args:
        caption: Text of any kind and length (read up to `parser.MAX_TOKENS` words).
        parser: What finds the words, see `factual_caption`.

    Example:
        >>> whole_caption("A large black dog runs quickly.")
        'a large black dog runs quickly .'
    """
    return " ".join(parser(caption).tokens)


def counterfactual_whole(
    caption: str, seed: int | Sequence[int] = 0, rarity: tuple[float, float] = ALL, parser: Parser = parse
) -> str:
    """Return `whole_caption` with the part replaced that `counterfactual_caption` replaces, by the same words.

    Adjectives, determiners and everything after the object, which sub-captions leave out, stay as they are, but for
    an "a" or "an" that another word now follows, which becomes the one that is said before that word.

    Args:
        caption: Text of any kind and length.
        seed: The seed, or several integers such as `(seed, epoch, row)`.
        rarity: Share of the repositories to draw from, see `counterfactual_caption`.
        parser: What finds the parts, see `factual_caption`.

    Returns:
        The counterfactual; the caption itself where no part is found.

    Raises:
        ValueError: If `rarity` is no range of shares.

    Reference:
        Ours, to tell what shortening a caption does from what falsifying it does; CleanerCLIP (arXiv 2409.17601,
        section 3.2) contrasts sub-captions.

    Example:
        >>> counterfactual_whole("A large black dog runs quickly.", seed=3)
        'a large black dog catches quickly .'
    """
    parsed = affirmed(parser(caption))
    true = factual_parts(caption, lambda _: parsed)
    false, _ = counterfactual_parts(caption, seed, rarity, lambda _: parsed)
    places = (
        kept_adjectives(parsed, parsed.subject_adjectives_at),
        parsed.subject_at,
        parsed.relation_at,
        kept_adjectives(parsed, parsed.object_adjectives_at),
        parsed.object_at,
    )
    words = list(parsed.tokens)
    for before, after, at in zip(true, false, places, strict=True):
        if before != after:
            words[at[0]] = after
            for i in at[1:]:
                words[i] = ""
    for i, following in pairwise(i for i, word in enumerate(words) if word):
        if words[i] in ("a", "an") and words[following] != parsed.tokens[i + 1]:
            words[i] = article(words[following])
    return " ".join(filter(None, words))
