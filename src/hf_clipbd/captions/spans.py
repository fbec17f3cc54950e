# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Span sampling: a part of a caption as its augmented view, after DeCLUTR."""

import numpy as np


SHORTEST = 3
_BETA = (2.0, 4.0)  # DeCLUTR's positives: mostly short


def sample_span(caption: str, rng: np.random.Generator, shortest: int = SHORTEST) -> str:
    """Return a run of neighbouring words of `caption`, of random length and place.

    Of n words, l = ⌊p (n + 1 − l_min)⌋ + l_min are kept with p ~ Beta(2, 4) and l_min = min(shortest, n), from a place
    drawn evenly among the n − l + 1 possible ones. So short spans are likelier than long ones.

    Args:
        caption: text of any kind; words are what blanks separate.
        rng: the only source of randomness, e.g. `np.random.default_rng((seed, epoch, row))`.
        shortest: words that a span has at least, at least 1; a shorter caption is returned whole.

    Returns:
        The span, its words joined by single blanks; "" for a caption without words.

    Raises:
        ValueError: if `shortest` is less than 1.

    Reference:
        Giorgi et al., DeCLUTR (arXiv 2006.03659), section 3.1: lengths of positive spans by Beta(2, 4) between a least
        and a greatest length. **Reconstructed** for captions: DeCLUTR draws anchor and positive of 32 to 512 tokens
        from a long document, here the whole caption is the anchor, in which every span lies; CleanerCLIP's supplement
        names the method without its settings.

    Example:
        >>> sample_span("a brown dog runs across the wet green grass", np.random.default_rng(0))
        'brown dog runs across'
    """
    if shortest < 1:
        raise ValueError(f"Expected `shortest` to be at least 1 word but got {shortest}.")
    words = caption.split()
    least = min(shortest, len(words))
    length = int(rng.beta(*_BETA) * (len(words) + 1 - least)) + least
    start = int(rng.integers(len(words) - length + 1))
    return " ".join(words[start : start + length])
