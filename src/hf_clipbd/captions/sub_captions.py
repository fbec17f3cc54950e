# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Factual and counterfactual sub-captions of CleanerCLIP: a caption in short, and that with one part made false."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from operator import index
from typing import NamedTuple

from .denial import affirmed, denies
from .inflection import inflect_verb, plural
from .lexicon import lemmas, lexicon, senses
from .parser import Parse, parse
from .prepositions import contrary, longest, prepositions_in
from .vocabulary import look_up
from .words import DEPENDENT_PARTICIPLES


ADJECTIVES, RELATION, NOUNS = "adjectives", "relation", "nouns"
ALL = (0.0, 1.0)
MIN_SHARE = 0.01  # of a repository: 30 words, more than a caption's own words can rule out
TRIES = 1000
# The form a replacement verb takes, by the form of the verb it replaces ("b" and "h" forms are looked up by word).
FORMS = {"v": "v", "vz": "vs", "vd": "vd", "vg": "vg"}
AUXILIARY_FORMS = {"are": "v", "am": "v", "were": "vd", "was": "vd", "have": "v", "had": "vd", "having": "vg"}


Parser = Callable[[str], Parse]


class Parts(NamedTuple):
    """The parts of a sub-caption, "" where there is none; `str()` puts them together."""

    subject_adjective: str
    subject: str
    relation: str
    object_adjective: str
    object: str

    def __str__(self) -> str:
        return " ".join(filter(None, self))


def kept_adjectives(parsed: Parse, at: tuple[int, ...]) -> tuple[int, ...]:
    """Return which tokens of the adjectives a sub-caption keeps: the one before the noun, or two that "and" joins.

    A participle keeps the word it needs ("dark haired" counts as one).

    Example:
        >>> parsed = parse("A large black and white dog runs")
        >>> kept_adjectives(parsed, parsed.subject_adjectives_at)
        (2, 3, 4)
    """
    if not at:
        return ()
    needed = len(at) > 1 and parsed.tokens[at[-1]] in DEPENDENT_PARTICIPLES and at[-1] - at[-2] == 1
    joined = len(at) > 1 and at[-1] - at[-2] == 2 and parsed.tokens[at[-1] - 1] in ("and", "&")
    return tuple(range(at[-2] if needed or joined else at[-1], at[-1] + 1))


def _adjectives(parsed: Parse, at: tuple[int, ...]) -> str:
    kept = (parsed.tokens[i] for i in kept_adjectives(parsed, at))
    return " ".join("and" if word == "&" else word for word in kept)


def factual_parts(caption: str, parser: Parser = parse) -> Parts:
    """Return the parts of the factual sub-caption of `caption`, as `factual_caption` does.

    Example:
        >>> factual_parts("A black and white dog runs")
        Parts(subject_adjective='black and white', subject='dog', relation='runs', object_adjective='', object='')
    """
    parsed = affirmed(parser(caption))
    first = _adjectives(parsed, parsed.subject_adjectives_at)
    second = _adjectives(parsed, parsed.object_adjectives_at)
    return Parts(first, parsed.subject, parsed.relation, second, parsed.object)


def factual_caption(caption: str, parser: Parser = parse) -> str:
    """Return the factual sub-caption of `caption`: `(adjective) subject relation (adjective) object`.

    Parts that the caption lacks are left out: one that says no more than a noun gives that key noun, one without any
    word gives "". It does not assert what the caption denies: a "no" before the object or the subject is kept, and
    before a relation that "not", "never" or the like denies it ends; see `denial.affirmed`.

    Args:
        caption: text of any kind and length (read up to `parser.MAX_TOKENS` words).
        parser: what finds the parts, `parse` or another function to a `Parse`, e.g. one of `spacy_parser`.

    Returns:
        Lower-case words of the caption, in its order; no determiners but "no", no auxiliaries or adverbs.

    Reference:
        CleanerCLIP (arXiv 2409.17601), section 3.2; the rules are reconstructed, the paper publishes no code.

    Example:
        >>> factual_caption("A large striped red banana to the left of a small blue cup.")
        'red banana to the left of blue cup'
        >>> factual_caption("The dogs!"), factual_caption("")
        ('dogs', '')
        >>> factual_caption("A man with no shirt"), factual_caption("A man is not wearing a shirt")
        ('man with no shirt', 'man')
    """
    return str(factual_parts(caption, parser))


def _draws(seed: int | Sequence[int], caption: str) -> Iterator[int]:
    """Yield 32-bit numbers that depend on `seed` and `caption` alone, the same on every machine."""
    numbers = tuple(map(index, seed)) if isinstance(seed, Sequence) else (index(seed),)
    block = 0
    while True:
        text = f"{numbers} {block} {caption}"
        digest = hashlib.blake2b(text.encode(errors="replace")).digest()
        for i in range(0, len(digest), 4):
            yield int.from_bytes(digest[i : i + 4], "little")
        block += 1


class _Replacer:
    """Draws replacement words for one caption."""

    def __init__(self, draws: Iterator[int], rarity: tuple[float, float]):
        self.draws, self.rarity = draws, rarity

    def word(self, repository: Sequence[str], avoid: Sequence[str], inflect: Callable[[str], str] = str) -> str:
        """Return a word from the chosen share of `repository`, inflected.

        Neither the word nor what it becomes is a form or synonym of any in `avoid`: "perform" is none of "playing",
        but "performing" is.
        """
        start, stop = (int(share * len(repository)) for share in self.rarity)
        forbidden = [senses(word) for word in avoid]
        for _ in range(TRIES):
            word = repository[start + next(self.draws) % max(1, stop - start)]
            inflected = inflect(word)
            if all(known.isdisjoint(lemmas(word) | lemmas(inflected)) for known in forbidden):
                return inflected
        raise ValueError(
            f"Expected a replacement among the words {start} to {stop} of a repository that is no form or synonym of "
            f"{list(avoid)}, but {TRIES} draws gave none. Widen `rarity`, which is {self.rarity}."
        )

    def adjective(self, adjective: str) -> str:
        """Return another adjective, or two where "and" joins two."""
        avoid = adjective.replace(" and ", " ").split()
        replacements: list[str] = []
        for _ in adjective.split(" and "):
            replacements.append(self.word(lexicon().adjectives, (*avoid, *replacements)))
        return " and ".join(replacements)

    def noun(self, noun: str, avoid: Sequence[str]) -> str:
        """Return another noun of the same number."""
        last = look_up(noun.split()[-1])
        return self.word(lexicon().nouns, (*noun.split(), *avoid), plural if last.plural > last.noun else str)

    def relation(self, parsed: Parse) -> str:
        """Return another verb in the same form, another preposition, or both, as the relation has them."""
        words = parsed.relation.split()
        verb, kind = "", parsed.relation_form
        if kind:
            form = FORMS.get(kind) or next((AUXILIARY_FORMS[word] for word in words if word in AUXILIARY_FORMS), "vs")
            verb = self.word(lexicon().verbs, words, partial(inflect_verb, form=form))
        if kind and not prepositions_in(parsed.relation):
            return verb
        return f"{verb} {self.preposition(parsed.relation)}".strip()

    def preposition(self, relation: str) -> str:
        """Return a preposition that cannot well be true together with those of `relation`, nor share a meaning.

        It holds none of them either: "in front of" does not replace "in".
        """
        groups, present = contrary(relation), prepositions_in(relation)
        forbidden = present.union(*map(senses, present))  # WordNet has some as adverbs: "on" and "along"
        said = longest(present) or {"of"} & set(relation.split())
        for _ in range(TRIES if groups else 0):
            group = groups[next(self.draws) % len(groups)]
            preposition = group[next(self.draws) % len(group)]
            if preposition not in forbidden and not any(f" {one} " in f" {preposition} " for one in said):
                return preposition
        raise ValueError(f"Expected a preposition of another meaning than {sorted(present)}, but there is none.")


def check_rarity(rarity_from: float, rarity_to: float) -> None:
    """Raise `ValueError` unless the two are shares of the repositories that lie at least `MIN_SHARE` apart.

    Example:
        >>> check_rarity(0.0, 0.2)
    """
    if not (0 <= rarity_from and rarity_to <= 1 and rarity_to - rarity_from >= MIN_SHARE - 1e-9):
        raise ValueError(
            f"Expected a rarity of two shares 0 <= rarity_from < rarity_to <= 1, at least {MIN_SHARE:g} apart (30 of "
            f"3,000 words), but got {rarity_from} and {rarity_to}."
        )


def counterfactual_parts(
    caption: str, seed: int | Sequence[int] = 0, rarity: tuple[float, float] = ALL, parser: Parser = parse
) -> tuple[Parts, str]:
    """Return the parts of a counterfactual sub-caption, as in `counterfactual_caption`, and the operation used.

    Returns:
        The parts, equal to those of `factual_parts(caption)` but for the replaced ones, and "adjectives", "relation",
        "nouns", or "" for a caption without words.
    """
    check_rarity(*rarity)
    parsed = affirmed(parser(caption))
    parts = factual_parts(caption, lambda _: parsed)
    if not parts.subject:
        return parts, ""
    draws = _draws(seed, caption)
    replace = _Replacer(draws, rarity)
    operations = [NOUNS]
    if parts.subject_adjective or parts.object_adjective and not denies(parts.relation):  # no red hat: no blue one?
        operations.append(ADJECTIVES)
    if parts.relation:
        operations.append(RELATION)
    operation = operations[next(draws) % len(operations)]
    if operation == ADJECTIVES:
        return parts._replace(
            subject_adjective=parts.subject_adjective and replace.adjective(parts.subject_adjective),
            object_adjective=parts.object_adjective and replace.adjective(parts.object_adjective),
        ), operation
    if operation == RELATION:
        return parts._replace(relation=replace.relation(parsed)), operation
    nouns = (*parts.subject.split(), *parts.object.split())
    subject = replace.noun(parts.subject, nouns)
    thing = parts.object and replace.noun(parts.object, (*nouns, subject))
    return parts._replace(subject=subject, object=thing), operation


def counterfactual_caption(
    caption: str, seed: int | Sequence[int] = 0, rarity: tuple[float, float] = ALL, parser: Parser = parse
) -> str:
    """Return the factual sub-caption of `caption` with one part made false.

    One of three operations is drawn among those the caption allows: ① other adjectives of subject and object,
    ② another relation (verb and preposition), ③ other nouns for subject and object. A replacement comes from the
    lexicon's repositories (3,000 adjectives, 3,000 verbs and prepositions, 3,000 nouns), takes the form of what it
    replaces, and is never that word, a form of it or a WordNet synonym. A preposition is replaced by one that excludes
    it ("near" by "far from", not by "beside" or "with"); see `prepositions.contrary`. A "no" of the relation goes with
    it, that of the subject with the nouns: no counterfactual says once more that something is not there.

    Args:
        caption: text of any kind and length.
        seed: the seed, or several integers such as `(seed, epoch, row)`; with the caption it decides everything.
        rarity: share of the repositories to draw from, which go from common (0) to rare (1).
        parser: what finds the parts, see `factual_caption`.

    Returns:
        The counterfactual; "" for a caption without any word.

    Raises:
        ValueError: if `rarity` is no range of shares, or one under 0.01.

    Reference:
        CleanerCLIP (arXiv 2409.17601), section 3.2; how an operation and its words are drawn is reconstructed.

    Example:
        >>> caption = "A brown dog runs on the grass"
        >>> counterfactual_caption(caption, seed=(0, 1, 2)) != factual_caption(caption)
        True
    """
    return str(counterfactual_parts(caption, seed, rarity, parser)[0])
