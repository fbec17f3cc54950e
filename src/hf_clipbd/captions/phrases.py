# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Noun phrases and prepositions of several words, found in tagged tokens."""

from typing import NamedTuple

from .words import COLLECTIVES, COMPLEX, PICTURES, PLACE_NOUNS, PLACE_PREPOSITIONS


NOMINAL = ("D", "J", "N", "NS", "P")


class Phrase(NamedTuple):
    """A noun phrase: tokens `start` to `stop`, the indices of its head's nouns, and of its adjectives."""

    start: int
    stop: int
    head: tuple[int, ...]
    adjectives: tuple[int, ...]


def noun_phrase(tokens: list[str], tags: list[str], start: int) -> Phrase | None:
    """Return the noun phrase that begins at `start`, or None; possessors and determiners are no part of its head."""
    i, n = start, len(tags)
    head: list[int] = []
    adjectives: list[int] = []
    while i < n:
        tag = tags[i]
        following = tags[i + 1] if i + 1 < n else "."
        if tag == "D":
            if tokens[i] == "'s":
                head, adjectives = [], []
            elif head or adjectives:
                break
            elif following == "I" and i + 2 < n and tokens[i + 1] == "of" and tags[i + 2] in NOMINAL:
                i += 1  # "one of the dogs", "all of them"
        elif tag == "J":
            if head and following not in ("N", "NS"):
                break
            adjectives += [*head, i]  # "a snow covered hill"
            head = []
        elif tag in ("N", "NS"):
            head.append(i)
        elif tag == "P" and not head and tokens[i + 1 : i + 2] == ["'s"]:
            pass  # "each other's eyes"
        elif tag == "P":
            if not head and not adjectives:
                head, i = [i], i + 1
            break
        elif tag == "R" and not head and following in ("J", "R"):
            pass
        elif tag in ("C", "X") and adjectives and not head and following in ("J", "R"):
            pass
        else:
            break
        i += 1
    return Phrase(start, i, tuple(head), tuple(adjectives)) if head else None


def meant(tokens: list[str], tags: list[str], phrase: Phrase, pictures: bool) -> Phrase:
    """Return the phrase that `phrase` stands for: "a group of small children" stands for "small children".

    Args:
        tokens: the caption's words.
        tags: their tags.
        phrase: a noun phrase in them.
        pictures: whether "a picture of" stands for what it shows, too.
    """
    while phrase.stop + 1 < len(tokens) and tokens[phrase.stop] == "of":
        head = tokens[phrase.head[-1]]
        if head not in COLLECTIVES and not (pictures and head in PICTURES):
            break
        inner = noun_phrase(tokens, tags, phrase.stop + 1)
        if inner is None:
            break
        phrase = inner
    return phrase


def preposition_length(tokens: list[str], start: int) -> int:
    """Return how many tokens the preposition at `start` spans: 1, or more for one like "in the middle of"."""
    first = tokens[start]
    if first in PLACE_PREPOSITIONS:
        stop = start + 1
        while stop < len(tokens) and stop < start + 3 and tokens[stop] in ("the", "other", "either", "both", "very"):
            stop += 1
        if stop > start + 1 and stop + 1 < len(tokens) and tokens[stop] in PLACE_NOUNS and tokens[stop + 1] == "of":
            return stop + 2 - start
    for preposition in COMPLEX:
        if first == preposition[0] and tuple(tokens[start : start + len(preposition)]) == preposition:
            return len(preposition)
    return 1
