# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""English inflection, so that a replacement word takes the form of the word it replaces."""

import re

from .lexicon import lexicon


DOUBLING = re.compile(r"^[^aeiou]*(?:qu)?[aeiou][bdglmnprt]$")  # "hug" -> "hugging"


def plural(noun: str) -> str:
    """Return the plural of `noun`.

    Example:
        >>> [plural(noun) for noun in ("box", "city", "dog", "fireman", "child", "leaf")]
        ['boxes', 'cities', 'dogs', 'firemen', 'children', 'leaves']
    """
    irregular = lexicon().irregular(noun, "ns")
    if irregular:
        return irregular[0]
    if noun.endswith("man") and len(noun) > 5:
        return noun[:-3] + "men"
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def inflect_verb(verb: str, form: str) -> str:
    """Return `verb` as "v" (base), "vs" (third person), "vd" (past or participle) or "vg" (-ing).

    Example:
        >>> [inflect_verb("carry", form) for form in ("v", "vs", "vd", "vg")]
        ['carry', 'carries', 'carried', 'carrying']
        >>> [inflect_verb(verb, "vg") for verb in ("hug", "tie", "free")], inflect_verb("take", "vd")
        (['hugging', 'tying', 'freeing'], 'taken')
    """
    if form == "v":
        return verb
    irregular = lexicon().irregular(verb, form)
    if irregular:
        return max(irregular, key=lambda word: ("u" in word, word.endswith(("n", "ne"))))  # participles: sung, taken
    if form == "vs":
        if verb.endswith(("s", "x", "z", "ch", "sh", "o")):
            return verb + "es"
        return verb[:-1] + "ies" if verb.endswith("y") and verb[-2:-1] not in "aeiou" else verb + "s"
    ending = "ed" if form == "vd" else "ing"
    if verb.endswith("ie") and form == "vg":
        return verb[:-2] + "ying"
    if verb.endswith("e") and (form == "vd" or not verb.endswith(("ee", "oe", "ye"))):
        return verb[:-1] + ending
    if verb.endswith("y") and verb[-2:-1] not in "aeiou" and form == "vd":
        return verb[:-1] + "ied"
    return verb + verb[-1] * bool(DOUBLING.match(verb)) + ending
