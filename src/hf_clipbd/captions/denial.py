# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What a caption denies ("no shirt", "not wearing a shirt"), taken out of its parse."""

from collections.abc import Sequence
from dataclasses import replace

from .parser import Parse
from .words import ADVERBS, CLAUSE_MARKS, DETERMINERS, NEGATIONS


NO = "no"
DENIALS = NEGATIONS | {NO}
NOWHERE = ("nowhere near", "nowhere to")  # a house in the middle of nowhere is there


def denies(relation: str) -> bool:
    """Return whether a relation denies its object: "with no", "wearing no", "without".

    Example:
        >>> denies("wearing no"), denies("climbing without"), denies("with")
        (True, True, False)
    """
    return not {NO, "without"}.isdisjoint(relation.split())


def _negation_before(tokens: Sequence[str], start: int) -> int | None:
    """Return where a negation stands before token `start`, with only determiners and adverbs between, or None.

    The "of" of "none of the dogs" may stand between, too.
    """
    for i in range(start - 1, -1, -1):
        if tokens[i] in DENIALS:
            return i
        if tokens[i] == "of" and tokens[i - 1 : i] == ("none",):
            return i - 1
        if tokens[i] not in DETERMINERS and tokens[i] not in ADVERBS:
            return None
    return None


def affirmed(parsed: Parse) -> Parse:
    """Return `parsed` without what its caption denies.

    A "no" before the object joins the relation: "with no". A subject that is denied itself ("no ring in a room") keeps
    its negation and is all that is left. Any other negation ("not", "never", "nothing") between the beginning of the
    subject's clause and the end of the object takes relation and object away, and adjectives that follow one go.
    A parse that was seen to is returned as it is.

    Example:
        >>> from .parser import parse
        >>> found = affirmed(parse("a tree with no leaves"))
        >>> found.subject, found.relation, found.object
        ('tree', 'with no', 'leaves')
        >>> affirmed(parse("a man not wearing a shirt")).relation, affirmed(parse("no big dog barks")).subject
        ('', 'no big dog')
        >>> affirmed(parse("none of the dogs are wet")).subject, affirmed(parse("a dog nowhere near water")).relation
        ('none of the dogs', '')
    """
    tokens = parsed.tokens
    if not parsed.subject_at or (DENIALS | {"nowhere"}).isdisjoint(tokens):
        return parsed
    head, last = parsed.subject_at[0], parsed.subject_at[-1]
    before = tuple(i for i in parsed.subject_adjectives_at if i < head)
    start = min((*before, head))
    denied = _negation_before(tokens, start)
    if denied is not None:
        at = tuple(i for i in range(denied, last + 1) if tokens[i] not in CLAUSE_MARKS)
        return Parse(tokens, subject=" ".join(tokens[i] for i in at), subject_at=at)

    said = tuple(i for i in parsed.subject_adjectives_at if i > last)
    followers = {*parsed.relation_at, *said, *(i for i, token in enumerate(tokens) if token == "one")}  # "no one"
    negations = [i for i, token in enumerate(tokens) if token in NEGATIONS or token == NO and i + 1 in followers]
    negations += [i for i in range(len(tokens)) if " ".join(tokens[i : i + 2]) in NOWHERE]
    kept = tuple(i for i in before if _negation_before(tokens, i) is None)
    kept += tuple(i for i in said if not any(last < negation < i for negation in negations))
    parsed = replace(parsed, subject_adjectives_at=kept, subject_adjectives=tuple(tokens[i] for i in kept))
    clause = 1 + max((i for i in range(start) if tokens[i] in CLAUSE_MARKS), default=-1)
    end = max((*parsed.relation_at, *parsed.object_at, last))
    if any(clause <= negation <= end for negation in negations):
        nothing = dict.fromkeys(("object_adjectives", "relation_at", "object_at", "object_adjectives_at"), ())
        return replace(parsed, relation="", object="", relation_form="", **nothing)
    if parsed.object_at:
        thing = min((*parsed.object_at, *parsed.object_adjectives_at))
        no = {i for i in range(parsed.relation_at[0], thing) if tokens[i] == NO}
        at = tuple(sorted({*parsed.relation_at, *no}))
        parsed = replace(parsed, relation_at=at, relation=" ".join(tokens[i] for i in at))
    return parsed
