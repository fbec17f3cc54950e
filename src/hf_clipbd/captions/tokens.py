# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""A caption as lower-case words and clause marks."""

import html
import re

from .lexicon import lexicon
from .words import HYPHEN_ENDINGS, HYPHEN_STARTS, NEGATIONS


MARKUP = re.compile(r"<[a-zA-Z/!][^<>]*>")
CLITIC = r"'(?:s|re|ve|ll|d|m)(?!\w)"
LETTERS = r"[^\W_]+"
WORD = rf"{LETTERS}(?:-{LETTERS}|(?!{CLITIC})'{LETTERS})*"
TOKEN = re.compile(rf"{CLITIC}|{WORD}|[,;:.!?()|/–—-]|&(?=\s)")


def _joins(before: str, after: str) -> bool:
    """Return whether a spaced hyphen between the two makes one word of them, as in "close - up", and is not a dash."""
    if not (before.isalnum() and after.isalnum()):
        return False
    if after in HYPHEN_ENDINGS or before in HYPHEN_STARTS:
        return True
    words = lexicon()
    return words.known(f"{before}-{after}") or words.known(before + after) or bool(words.lemmas_of(after, "vd"))


def tokenize(caption: str) -> list[str]:
    """Return the lower-case words and clause marks of `caption`; markup, emoji and other signs are dropped.

    Example:
        >>> tokenize("A man's <b>red</b> T-shirt, close - up!")
        ['a', 'man', "'s", 'red', 't-shirt', ',', 'close-up', '!']
    """
    if not isinstance(caption, str):
        raise TypeError(f"Expected `caption` to be a string but got {caption!r}.")
    if "<" in caption:
        caption = MARKUP.sub(" ", caption)
    if "&" in caption:
        caption = html.unescape(caption)
    found = TOKEN.findall(caption.lower().replace("’", "'"))
    words: list[str] = []
    for token in found:
        if token == "s" and words and words[-1].isalpha():
            token = "'s"  # web captions that lost their apostrophes: "a man s hands"
        if token == "t" and words and f"{words[-1]}'t" in NEGATIONS:
            words[-1] += "'t"  # "isn ' t", "don t"
        elif len(words) > 1 and words[-1] == "-" and _joins(words[-2].rsplit("-", 1)[-1], token):
            words[-2:] = [f"{words[-2]}-{token}"]
        else:
            words.append(token)
    return words
