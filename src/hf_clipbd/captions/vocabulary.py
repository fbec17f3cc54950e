# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What is known of one word out of context: its closed class, or how common it is in each open class."""

from functools import lru_cache
from typing import NamedTuple

from . import words
from .lexicon import lexicon


class Word(NamedTuple):
    """A word's closed class or "", and its levels (0 none, 9 most common) as each form of an open class."""

    text: str
    closed: str
    noun: int = 0
    plural: int = 0
    verb: int = 0
    third: int = 0
    past: int = 0
    ing: int = 0
    adjective: int = 0
    adverb: int = 0

    @property
    def thing(self) -> int:
        """Return the level of the word as a noun, singular or plural."""
        return max(self.noun, self.plural)

    @property
    def nominal(self) -> bool:
        """Return whether the word can stand in a noun phrase after its determiner."""
        return bool(self.noun or self.plural or self.adjective)

    @property
    def opens(self) -> bool:
        """Return whether the word cannot continue a noun phrase, so that what stands before it may be a verb."""
        return self.closed != "" or bool(self.adverb) and not self.noun


CLOSED = {
    **dict.fromkeys(words.PREPOSITIONS, "I"),
    **dict.fromkeys(words.DETERMINERS, "D"),
    **dict.fromkeys(words.PRONOUNS, "P"),
    **dict.fromkeys(words.BE, "B"),
    **dict.fromkeys(words.HAVE, "H"),
    **dict.fromkeys(words.MODALS, "M"),
    **dict.fromkeys(words.SUBORDINATORS, "S"),
    **dict.fromkeys(words.RELATIVES, "W"),
    **dict.fromkeys(words.CONJUNCTIONS, "C"),
    **dict.fromkeys(words.ADVERBS, "R"),
    **dict.fromkeys(",;:()|/–—-", "X"),
    **dict.fromkeys(".!?", "."),
    "to": "T",
}
END = Word("", ".")  # what follows the last word


@lru_cache(maxsize=65536)
def look_up(text: str) -> Word:
    """Return what is known of a lower-case word; an unknown one is a noun, or what its ending says.

    Example:
        >>> look_up("dogs").plural > 0, look_up("the").closed, look_up("zorgly").adverb > 0
        (True, 'D', True)
    """
    closed = CLOSED.get(text, "")
    if closed or text[0].isdigit() and not text[-1].isalpha():
        return Word(text, closed or "D")
    lex = lexicon()
    noun, verb, adjective, adverb = (lex.level(text, tag) for tag in "nvar")
    many, third, past, ing, compared = (lex.form_level(text, form) for form in ("ns", "vs", "vd", "vg", "ac"))
    if text in words.UNCHANGED:
        past = verb
    if text in words.RATHER_THINGS:
        third = 0
    adjective = 9 if text in words.ADJECTIVES else max(adjective, compared)
    if text in words.COLOURS:
        adjective = max(adjective, noun)
    found = Word(text, "", noun, many, verb, third, past, ing, adjective, adverb)
    return found if any(found[2:]) else _guess(text)


def _guess(text: str) -> Word:
    """Return what the look of an unknown word says."""
    if "-" in text:
        first, last = text.split("-", 1)[0], look_up(text.rsplit("-", 1)[1])
        if last.past or last.adjective or last.closed or last.ing or first.isdigit() or first in words.HYPHEN_STARTS:
            return Word(text, "", adjective=3, noun=3 * bool(last.thing and not last.past))
        return Word(text, "", noun=0 if last.plural > last.noun else 2, plural=last.plural)
    if text.endswith("ly") and len(text) > 4:
        return Word(text, "", adverb=2)
    if text.endswith("s") and not text.endswith(("ss", "us", "is")):
        return Word(text, "", plural=2)
    return Word(text, "", noun=2, past=2 * text.endswith("ed"), ing=2 * (text.endswith("ing") and len(text) > 5))
