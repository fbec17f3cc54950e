# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Which prepositions can be true of one picture together, and so which ones make a relation false."""

import re
from functools import cache, lru_cache

from .lexicon import lexicon


INFINITIVE = re.compile(r"\bto (?!the\b)(?=\w)")  # "waits to hear": no preposition

# Preposition: those that may be true together with it and so make nothing false, in both directions; each name stands
# for its group in the lexicon ("under" for "below"). What is left excludes it: "near" and "far from", "with" and
# "without". The six directions exclude each other: a caption names the one in which things lie.
_TOGETHER = """
in: at on with over under among across through along around up down to about during for of as
on: at over with across along around against among through up down to about during of as
at: near with around against along opposite behind in_front_of between among to_the_left_of to_the_right_of outside
at: over across up down to from through for during about of beyond past
near: with around against along opposite behind in_front_of between among to_the_left_of to_the_right_of outside over
near: under across past beyond to before after about of up down through
under: with around between among against along across through past outside from of
over: with around between among against along across through past beyond up down outside to from about of
behind: with around between among along across through past beyond opposite after outside from to against
in_front_of: with around between among along across past opposite before outside from to against
between: with among around along across through past opposite against to_the_left_of to_the_right_of outside of
among: with around along across through past from of to_the_left_of to_the_right_of
with: around against along opposite to_the_left_of to_the_right_of to for about of during from across like as behind
without: from far_from outside beyond past opposite
from: through across past beyond far_from outside down up along opposite around against to_the_left_of
from: to_the_right_of about of after
to: across through along around past up down after for before against opposite outside about of
to: to_the_left_of to_the_right_of
through: across along around past up down beyond outside during of
across: along around past up down beyond opposite of
around: along past against about to_the_left_of to_the_right_of opposite outside of up down
against: along opposite to_the_left_of to_the_right_of of
along: past up down outside opposite to_the_left_of to_the_right_of of
past: beyond outside after to_the_left_of to_the_right_of opposite up down
beyond: far_from outside opposite after to_the_left_of to_the_right_of
opposite: far_from outside before to_the_left_of to_the_right_of
to_the_left_of: far_from outside before after about
to_the_right_of: far_from outside before after about
outside: far_from before of
for: after during about of as
of: about during as
like: as of
"""
# Other words of a relation that say what a preposition says: "on the left of" is "to the left of".
_ALSO = {
    **dict.fromkeys(("side", "sides", "edge", "corner", "end", "base", "foot"), "near"),
    **dict.fromkeys(("back", "rear", "background"), "behind"),
    **dict.fromkeys(("front", "foreground"), "in front of"),
    **dict.fromkeys(("aboard", "astride"), "on"),
    **dict.fromkeys(("amongst", "amidst", "midst"), "among"),
    **dict.fromkeys(("middle", "center", "centre", "heart"), "in"),
    **dict.fromkeys(("throughout", "thru", "via"), "through"),
    "left": "to the left of", "right": "to the right of", "top": "over", "bottom": "under", "besides": "near",
    "round": "around", "accross": "across", "till": "before", "until": "before", "infront": "in front of",
}  # fmt: skip


@cache
def _together() -> dict[str, set[str]]:
    """Return preposition -> those that may be true together with it, each by the first of its group."""
    found: dict[str, set[str]] = {}
    for line in _TOGETHER.strip().split("\n"):
        one, *others = (name.replace("_", " ") for name in line.replace(":", "").split(" "))
        for other in others:
            found.setdefault(one, set()).add(other)
            found.setdefault(other, set()).add(one)
    return found


@cache
def _first() -> dict[str, str]:
    """Return preposition -> the first of its group, for all of the repository."""
    return {preposition: group[0] for group in lexicon().prepositions for preposition in group}


def prepositions_in(relation: str) -> set[str]:
    """Return the prepositions of the repository that stand in `relation`.

    Example:
        >>> sorted(prepositions_in("waits to jump in front of"))
        ['in', 'in front of']
    """
    padded = f" {re.sub(INFINITIVE, '', relation)} "
    return {preposition for preposition in _first() if f" {preposition} " in padded}


def longest(prepositions: set[str]) -> set[str]:
    """Return those of `prepositions` that are no part of another of them.

    Example:
        >>> longest({"in", "in front of"})
        {'in front of'}
    """
    nested = {one for one in prepositions for other in prepositions - {one} if f" {one} " in f" {other} "}
    return prepositions - nested


@lru_cache(maxsize=8192)
def contrary(relation: str) -> tuple[tuple[str, ...], ...]:
    """Return the groups of prepositions that make `relation` false in the place of its own.

    None may be true of the same picture together with those of the relation. Where a relation of several leaves none,
    any of another meaning will do.

    Example:
        >>> found = {preposition for group in contrary("to the left of") for preposition in group}
        >>> "to the right of" in found, "behind" in found, "near" in found
        (True, True, False)
    """
    meaning = relation.replace("with no", "without")
    found, first = prepositions_in(meaning), _first()
    words = set(meaning.split()).difference(*(preposition.split() for preposition in found))
    said = {first[preposition] for preposition in longest(found)} | {_ALSO[word] for word in words if word in _ALSO}
    said = said or words & {"of", "as"}
    true = said.union(*(_together().get(preposition, ()) for preposition in said))
    others = [group for group in lexicon().prepositions if (found | prepositions_in(relation)).isdisjoint(group)]
    return tuple(group for group in others if group[0] not in true) or tuple(others)
