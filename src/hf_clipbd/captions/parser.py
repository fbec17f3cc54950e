# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Subject, adjectives, relation and object of a caption, by rules over parts of speech."""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from .phrases import Phrase, meant, noun_phrase, preposition_length
from .tagger import VERBS, tag
from .tokens import tokenize
from .words import LINKING


MAX_TOKENS = 120  # a caption is read this far
NOMINATIVES = ("i", "he", "she", "we", "they")
FINITE = ("V", "VZ", "B", "M", "H")


@dataclass(frozen=True)
class Parse:
    """What a caption says: `(adjectives) subject relation (adjectives) object`, a part it lacks being "" or ().

    Attributes:
        tokens: the caption's lower-case words and clause marks.
        subject: noun, with the nouns that modify it, of what the caption speaks of. A group or a picture "of"
            something is that thing; of several joined by "and" the first counts.
        subject_adjectives: adjectives of the subject, in order, those said of it ("the dog is wet") included.
        relation: the verb without auxiliaries, with the particles and the preposition that lead to the object; or that
            preposition alone.
        object: like `subject`.
        object_adjectives: like `subject_adjectives`.
        subject_at, subject_adjectives_at, relation_at, object_at, object_adjectives_at: indices of each part's words
            in `tokens`.
        relation_form: form of the relation's first verb: "v" base, "vz" third person, "vd" past or participle, "vg"
            -ing form, "b" be, "h" have, "" where it has none.
    """

    tokens: tuple[str, ...]
    subject: str = ""
    subject_adjectives: tuple[str, ...] = ()
    relation: str = ""
    object: str = ""
    object_adjectives: tuple[str, ...] = ()
    subject_at: tuple[int, ...] = ()
    subject_adjectives_at: tuple[int, ...] = ()
    relation_at: tuple[int, ...] = ()
    object_at: tuple[int, ...] = ()
    object_adjectives_at: tuple[int, ...] = ()
    relation_form: str = ""

    @property
    def completeness(self) -> str:
        """Return "full" (subject, relation, object), "partial" (subject and relation or adjectives) or "key_word"."""
        if self.subject and self.relation and self.object:
            return "full"
        return "partial" if self.relation or self.subject_adjectives else "key_word"


class _Relation(NamedTuple):
    """A relation's token indices, the phrase it leads to, and the adjectives it says of the subject."""

    at: list[int]
    thing: Phrase | None
    said: list[int]


def _find_subject(tokens: list[str], tags: list[str]) -> Phrase | None:
    """Return the first noun phrase that no leading preposition or participle governs, or else the first of all."""
    first, governed, i = None, False, 0
    while i < len(tags):
        if tokens[i] in ("it", "there", "here", "this", "these", "that") and tags[i + 1 : i + 2] == ["B"]:
            i += 2  # "there is a dog", "this is a dog"
        elif tokens[i : i + 3] == ["here", "you", "see"]:
            i += 3
        elif tags[i] in ("D", "J", "N", "NS", "P", "R") and (phrase := noun_phrase(tokens, tags, i)):
            phrase = meant(tokens, tags, phrase, pictures=True)
            first = first or phrase
            if not governed:
                return phrase
            i = phrase.stop
            governed = i < len(tags) and tags[i] in ("I", "T", "VG", "VD", "C")
        else:
            governed = tags[i] in ("I", "S", "VG", "VD") or governed and tags[i] not in ("X", ".")
            i += 1
    return first


def _relation_at(tokens: list[str], tags: list[str], start: int) -> _Relation:
    """Return the relation whose words begin at `start`, followed to its object."""
    at: list[int] = []
    said: list[int] = []
    copula, i, n = -1, start, len(tags)
    while i < n:
        tag_, following = tags[i], tags[i + 1] if i + 1 < n else "."
        phrase = noun_phrase(tokens, tags, i) if tag_ in ("D", "J", "N", "NS", "P", "R") else None
        length = preposition_length(tokens, i)
        if tag_ == "I" or length > 1:
            at += range(i, i + length)
            i += length - 1
        elif phrase:
            if tokens[i] in NOMINATIVES and at:
                break  # "says he saw"
            if phrase.stop < n and tags[phrase.stop] == "VG" and copula >= 0 and not at and tag_ == "N":
                i = phrase.stop - 1  # "is rock climbing"
            else:
                return _Relation(at or [copula] * (copula >= 0), meant(tokens, tags, phrase, pictures=False), said)
        elif tag_ in ("B", "H"):
            copula = i
        elif tag_ in VERBS:
            if tag_ == "VD" and at and tags[i - 1] == "VG" and tokens[i - 1] not in LINKING:
                break  # "with lights flashing | stopped by the road"
            at.append(i)
        elif tag_ == "J":
            linked = copula >= 0 and not at or any(tokens[k] in LINKING for k in at)
            if linked and following in ("I", "T"):
                at.append(i)
            elif linked:
                said.append(i)
        elif tag_ == "T":
            if at and following == "V":
                at.append(i)
        elif tag_ == "C" and at and following in VERBS:
            rest = _relation_at(tokens, tags, i + 1)
            return rest if rest.thing else _Relation(at, None, said)
        elif tag_ not in ("M", "R", "D") and not (tag_ == "W" and following == "T" and at):
            break
        i += 1
    return _Relation(at or [copula] * (copula >= 0 and not said), None, said)


def _candidates(tokens: list[str], tags: list[str], start: int) -> tuple[list[int], list[int]]:
    """Return where relations of the subject may begin: its verbs, finite ones first; its prepositions, "of" last."""
    finite, participles, relative, prepositions, of = [], [], [], [], []
    in_relative = False
    for i in range(start, len(tags)):
        tag_, previous = tags[i], tags[i - 1]
        if tag_ in (".", "S"):
            break
        if tag_ == "W":
            in_relative = True
        elif tag_ in FINITE or tag_ == "VD":
            auxiliary = previous in ("B", "M", "H", "T") or previous == "R" and tags[i - 2] in ("B", "M", "H")
            if auxiliary or previous == "P" and i > start and tags[i - 2] != "C":
                continue
            if in_relative:
                relative.append(i)
                in_relative = False
            elif tag_ == "VD" and tags[i + 1 : i + 2] not in (["D"], ["P"]):
                participles.append(i)
            elif not finite or previous in ("C", "X"):
                finite.append(i)
        elif tag_ == "VG":
            if previous not in ("B", "I", "VG") and not in_relative:
                participles.append(i)
        elif tag_ in ("I", "T") or tag_ in ("J", "R") and preposition_length(tokens, i) > 1:
            (of if tokens[i] == "of" else prepositions).append(i)
    return finite[:2] + participles[:2] + relative[:1], prepositions[:1] + of[:1]


def _best_relation(tokens: list[str], tags: list[str], subject: Phrase) -> _Relation:
    """Return the first verb's relation that has an object, else the first verb's, else the first preposition's."""
    verbs, prepositions = _candidates(tokens, tags, subject.stop)
    if tags[0] == "V":  # a command has no subject: its object stands in, and is not what the next verb speaks of
        verbs = [i for i in verbs if tags[i] not in FINITE]
    bare = _Relation([], None, [])
    for start in verbs:
        found = _relation_at(tokens, tags, start)
        if found.at and found.thing:
            return found
        if found.at and not bare.at or found.said and not bare.at and not bare.said:
            bare = found
    if bare.at:
        return bare
    for start in prepositions:
        found = _relation_at(tokens, tags, start)
        if found.at and found.thing:
            return _Relation(found.at, found.thing, bare.said)
    return bare


def _headline(tokens: list[str], tags: list[str]) -> int:
    """Return where the sentence begins after a short headline such as "in the sun :", or 0."""
    if ":" in tokens[1:7]:
        start = tokens.index(":", 1) + 1
        subject = noun_phrase(tokens, tags, start)
        if subject and any(tag_ in VERBS or tag_ == "B" for tag_ in tags[subject.stop :]):
            return start
    return 0


@lru_cache(maxsize=8192)
def parse(caption: str) -> Parse:
    """Return subject, adjectives, relation and object of `caption`, found by rules; no text makes it fail.

    A caption without a noun gives its last word that means something as the subject; one without any word gives the
    empty `Parse`.

    Example:
        >>> p = parse("A brown dog is running on the green grass .")
        >>> p.subject_adjectives, p.subject, p.relation, p.object_adjectives, p.object
        (('brown',), 'dog', 'running on', ('green',), 'grass')
        >>> p.completeness
        'full'
    """
    tokens = tokenize(caption)[:MAX_TOKENS]
    tags = tag(tokens)
    start = _headline(tokens, tags)
    if start:
        tokens = tokens[start:]
        tags = tag(tokens)
    subject = _find_subject(tokens, tags)
    if subject is None:
        return _key_word(tokens, tags)
    relation = _best_relation(tokens, tags, subject)

    def text(at: tuple[int, ...] | list[int]) -> str:
        return " ".join(tokens[i] for i in at)

    forms = [tags[i].lower() for i in relation.at if tags[i] in VERBS or tags[i] in ("B", "H")]
    adjectives = subject.adjectives or tuple(relation.said)
    thing = relation.thing or Phrase(0, 0, (), ())
    return Parse(
        tuple(tokens),
        subject=text(subject.head),
        subject_adjectives=tuple(tokens[i] for i in adjectives),
        relation=text(relation.at),
        object=text(thing.head),
        object_adjectives=tuple(tokens[i] for i in thing.adjectives),
        subject_at=subject.head,
        subject_adjectives_at=adjectives,
        relation_at=tuple(relation.at),
        object_at=thing.head,
        object_adjectives_at=thing.adjectives,
        relation_form=forms[0] if forms else "",
    )


def _key_word(tokens: list[str], tags: list[str]) -> Parse:
    """Return the parse of a caption without a noun phrase: its last open-class word, or its last word at all."""
    words = [i for i, token in enumerate(tokens) if token[-1].isalnum()]
    open_class = [i for i in words if tags[i] in ("J", "R", "N", "NS", *VERBS)]
    if not words:
        return Parse(tuple(tokens))
    key = (open_class or words)[-1]
    return Parse(tuple(tokens), subject=tokens[key], subject_at=(key,))
