# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The same `Parse` from a spaCy dependency parse, for those who have spaCy and one of its English models.

spaCy is no dependency and is not imported here: the functions take its objects.
"""

from collections.abc import Callable
from typing import Any

from .parser import Parse
from .words import COLLECTIVES, PICTURES


Language = Doc = Token = Any  # spacy.language.Language, spacy.tokens.Doc, spacy.tokens.Token
OBJECTS = ("dobj", "obj", "attr", "dative")
FORMS = {"VB": "v", "VBP": "v", "VBZ": "vz", "VBD": "vd", "VBN": "vd", "VBG": "vg"}


def spacy_parser(nlp: Language) -> Callable[[str], Parse]:
    """Return a parser for `factual_caption` and `counterfactual_caption` that uses a spaCy pipeline with a parser.

    Example (needs a model):
        >>> import spacy  # doctest: +SKIP
        >>> factual_caption("A dog runs on grass", parser=spacy_parser(spacy.load("en_core_web_sm")))  # doctest: +SKIP
        'dog runs on grass'
    """
    return lambda caption: parse_doc(nlp(caption))


def parse_doc(doc: Doc) -> Parse:
    """Return subject, adjectives, relation and object of a spaCy `doc`, from its first sentence.

    Raises:
        ValueError: if the pipeline that made `doc` has no dependency parser.
    """
    tokens = tuple(token.lower_ for token in doc)
    if tokens and not doc.has_annotation("DEP"):
        raise ValueError("Expected a spaCy pipeline with a dependency parser, e.g. `spacy.load('en_core_web_sm')`.")
    root = next((token for token in doc if token.dep_.lower() == "root"), None)
    if root is None:
        return Parse(tokens)
    subject = _first(root, ("nsubj", "nsubjpass", "nsubj:pass")) or root
    verb = root if subject is not root else _first(root, ("acl", "relcl"))
    subject = _meant(subject, pictures=True)
    if verb is None:
        verb = _first(subject, ("acl", "relcl"))
    relation, thing = _relation(verb) if verb is not None else _preposition(subject)
    thing = thing and _meant(thing, pictures=False)
    subject_at, thing_at = _compound(subject), _compound(thing) if thing is not None else ()
    adjectives, thing_adjectives = _adjectives(subject), _adjectives(thing) if thing is not None else ()

    def words(at: tuple[int, ...]) -> tuple[str, ...]:
        return tuple(tokens[i] for i in at)

    return Parse(
        tokens,
        subject=" ".join(words(subject_at)),
        subject_adjectives=words(adjectives),
        relation=" ".join(words(relation)),
        object=" ".join(words(thing_at)),
        object_adjectives=words(thing_adjectives),
        subject_at=subject_at,
        subject_adjectives_at=adjectives,
        relation_at=relation,
        object_at=thing_at,
        object_adjectives_at=thing_adjectives,
        relation_form=FORMS.get(verb.tag_, "") if verb is not None else "",
    )


def _first(token: Token, dependencies: tuple[str, ...]) -> Token | None:
    return next((child for child in token.children if child.dep_ in dependencies), None)


def _preposition(token: Token) -> tuple[tuple[int, ...], Token | None]:
    """Return the first preposition of `token` that has an object, and that object."""
    for child in token.children:
        thing = _first(child, ("pobj",)) if child.dep_ == "prep" else None
        if thing is not None:
            return (child.i,), thing
    return (), None


def _relation(verb: Token) -> tuple[tuple[int, ...], Token | None]:
    """Return a verb with its particles and the preposition that leads to its object, and that object."""
    particles = tuple(child.i for child in verb.children if child.dep_ == "prt")
    thing = _first(verb, OBJECTS)
    preposition: tuple[int, ...] = ()
    if thing is None:
        preposition, thing = _preposition(verb)
    return tuple(sorted((verb.i, *particles, *preposition))), thing


def _meant(token: Token, pictures: bool) -> Token:
    """Return what "a group of" or "a picture of" stands for."""
    while token.lower_ in COLLECTIVES or pictures and token.lower_ in PICTURES:
        of = next((child for child in token.children if child.dep_ == "prep" and child.lower_ == "of"), None)
        inner = _first(of, ("pobj",)) if of is not None else None
        if inner is None:
            break
        token = inner
    return token


def _compound(token: Token) -> tuple[int, ...]:
    return (*(child.i for child in token.lefts if child.dep_ in ("compound", "nn")), token.i)


def _adjectives(token: Token) -> tuple[int, ...]:
    return tuple(child.i for child in token.lefts if child.dep_ == "amod")
