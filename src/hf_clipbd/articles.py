# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Which of "a" and "an" is said before a word: one rule for captions made of class names and for those of attacks."""

import re


_SAID_WITH_YOU = re.compile(r"(?:uni(?![nm])|us[aeiu]|ut[aeio]|uku|ur[aeiou]|eu|ew|u$|u-|one\b|once\b)")
_SILENT_H = re.compile(r"(?:hour|honest|honou?r|heir)")
_LETTER_WITH_VOWEL = "aefhilmnorsx"


def article(noun: str) -> str:
    """Return "a" or "an", whichever is said before `noun`.

    By sound, not by letter, as far as spelling tells: "a unicycle", "an hour", "an SUV", "an x-ray", "a one".

    Args:
        noun: Word or phrase.

    Example:
        >>> [article(noun) for noun in ("banana", "airplane", "unicycle", "umbrella", "hourglass", "LED lamp")]
        ['a', 'an', 'a', 'an', 'an', 'an']
    """
    word = noun.strip().split(" ")[0]
    spelled_out = len(word) > 1 and re.fullmatch(r"[A-Z]{2,}s?", word) or re.match(r"[a-zA-Z](?:[-\d]|$)", word)
    lower = word.lower()
    if spelled_out:
        return "an" if lower[0] in _LETTER_WITH_VOWEL else "a"
    if _SAID_WITH_YOU.match(lower):
        return "a"
    return "an" if lower[:1] in tuple("aeiou") or _SILENT_H.match(lower) else "a"


def with_articles(caption: str) -> str:
    """Return the caption with each "a" and "an" as the next word asks for, and single spaces.

    Example:
        >>> with_articles("a  old photo of a Abyssinian on an unicycle")
        'an old photo of an Abyssinian on a unicycle'
    """
    words = caption.split()
    for i, following in enumerate(words[1:]):
        if words[i] in ("a", "an"):
            words[i] = article(following)
    return " ".join(words)
