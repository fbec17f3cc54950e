# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Parsers by the name that a configuration gives them, so that what goes to a worker is a name."""

from functools import cache

from .parser import parse
from .spacy_backend import spacy_parser
from .sub_captions import Parser


RULES, WHOLE, SPACY = "rules", "whole", "spacy:"


def check_parser(name: str) -> None:
    """Raise `ValueError` unless `name` is `rules`, `whole` or `spacy:` and a model.

    Example:
        >>> check_parser("spacy:en_core_web_sm")
    """
    if name not in (RULES, WHOLE) and not (name.startswith(SPACY) and len(name) > len(SPACY)):
        raise ValueError(
            f'Expected parser "rules", "whole" or "spacy:MODEL", such as "spacy:en_core_web_sm", but got {name!r}.'
        )


@cache
def parser_named(name: str) -> Parser:
    """Return the parser of a name, made once in each process: the rules, also for `whole`, or a spaCy pipeline.

    Args:
        name: `rules`, `whole`, or `spacy:` and the name or folder of a spaCy model with a dependency parser.

    Raises:
        ValueError: If the name is none of these.
        ImportError: If spaCy is asked for and is not installed.
        OSError: If spaCy does not find the model.

    Example:
        >>> parser_named("rules")("A dog runs").subject
        'dog'
    """
    check_parser(name)
    if not name.startswith(SPACY):
        return parse
    try:
        import spacy
    except ImportError as error:
        raise ImportError(f"Expected spaCy for the parser {name!r}. Run `pip install 'hf-clipbd[spacy]'`.") from error
    return spacy_parser(spacy.load(name.removeprefix(SPACY)))
