# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Whether captions are English, which the parser and the words that replace others are made for."""

import re
from collections.abc import Iterable

from .lexicon import lemmas, lexicon
from .vocabulary import CLOSED


FEWEST_KNOWN = 0.6
"""Share of known words below which captions are taken for another language's."""
_WORD = re.compile(r"[^\W\d_]+")


def known_share(captions: Iterable[str]) -> float:
    """Return the share of the words that WordNet or the closed classes of English know, in [0, 1]; 1 without words.

    Example:
        >>> known_share(["two dogs running on the grass"]), known_share(["zwei Hunde laufen über den Rasen"]) < 0.3
        (1.0, True)
    """
    words = [word for caption in captions for word in _WORD.findall(caption.lower())]
    known = sum(word in CLOSED or any(map(lexicon().known, lemmas(word))) for word in words)
    return known / len(words) if words else 1.0
