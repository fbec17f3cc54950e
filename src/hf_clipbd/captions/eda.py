# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Easy data augmentation (EDA): the augmented text view of CleanCLIP, with WordNet synonyms."""

import re
from functools import lru_cache

import numpy as np

from .inflection import inflect_verb, plural
from .lexicon import lemmas, lexicon
from .vocabulary import CLOSED


EDGES = re.compile(r"^(\W*)(.*?)(\W*)$", re.DOTALL)  # punctuation around a word stays where it is


@lru_cache(maxsize=32768)
def synonyms(word: str) -> tuple[str, ...]:
    """Return the WordNet synonyms of `word` in its own form, sorted; () for function words and unknown words.

    Example:
        >>> "automobiles" in synonyms("cars"), "canine" in synonyms("dogs"), synonyms("the")
        (True, False, ())
    """
    if word in CLOSED:
        return ()
    lex = lexicon()
    found = set(lex.synonyms(word))
    found.update(plural(other) for lemma in lex.lemmas_of(word, "ns") for other in lex.synonyms(lemma, "n"))
    for form in ("vs", "vd", "vg"):
        found.update(
            inflect_verb(other, form) for lemma in lex.lemmas_of(word, form) for other in lex.synonyms(lemma, "v")
        )
    return tuple(sorted(found - lemmas(word)))


def _synonym(text: str, rng: np.random.Generator) -> str:
    """Return `text` with the word in it replaced by one of its synonyms, or "" where it has none."""
    before, word, after = EDGES.match(text).groups()
    choices = synonyms(word.lower())
    return f"{before}{choices[int(rng.integers(len(choices)))]}{after}" if choices else ""


def replace_synonyms(words: list[str], n: int, rng: np.random.Generator) -> list[str]:
    """Return `words` with `n` of those that have one replaced by a synonym, each wherever it occurs."""
    words = list(words)
    done: set[str] = set()
    for i in rng.permutation(len(words)):
        if len(done) == n:
            break
        word = words[i]
        if word not in done and (other := _synonym(word, rng)):
            words = [other if each == word else each for each in words]
            done.add(other)
    return words


def insert_synonyms(words: list[str], n: int, rng: np.random.Generator) -> list[str]:
    """Return `words` with `n` synonyms of random words among them put at random places."""
    words = list(words)
    for _ in range(n):
        for i in rng.permutation(len(words)):
            if other := _synonym(EDGES.match(words[i])[2], rng):
                words.insert(int(rng.integers(len(words) + 1)), other)
                break
    return words


def swap_words(words: list[str], n: int, rng: np.random.Generator) -> list[str]:
    """Return `words` with the words at two random places exchanged, `n` times."""
    words = list(words)
    for _ in range(n if len(words) > 1 else 0):
        i, j = rng.choice(len(words), size=2, replace=False)
        words[i], words[j] = words[j], words[i]
    return words


def delete_words(words: list[str], probability: float, rng: np.random.Generator) -> list[str]:
    """Return `words` without those that fall to `probability` each; where all fall, a random one of them stays."""
    kept = [word for word, draw in zip(words, rng.random(len(words)), strict=True) if draw >= probability]
    return kept or [words[int(rng.integers(len(words)))]]


def augment_caption(caption: str, rng: np.random.Generator, alpha: float = 0.1) -> str:
    """Return `caption` after one of EDA's four operations, drawn with equal chances.

    The operations: replacement by synonyms, insertion of synonyms, swaps, each `max(1, int(alpha * n_words))` times,
    and deletion of each word with probability `alpha`.

    Args:
        caption: text of any kind; words are what blanks separate.
        rng: the only source of randomness, e.g. `np.random.default_rng((seed, epoch, row))`.
        alpha: share of the words to change, in [0, 1].

    Returns:
        The changed caption, its words joined by single blanks; "" for a caption without words.

    Raises:
        ValueError: if `alpha` is no share.

    Reference:
        Wei and Zou, EDA (EMNLP 2019), section 2; CleanCLIP (arXiv 2303.03323), section 4, for alpha and its use.

    Example:
        >>> augment_caption("a dog runs on green grass", np.random.default_rng(2))
        'a dog on green grass'
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"Expected `alpha` to be a share in [0, 1] but got {alpha}.")
    words = caption.split()
    if not words:
        return ""
    n = max(1, int(alpha * len(words)))
    operation = int(rng.integers(4))
    if operation == 3:
        return " ".join(delete_words(words, alpha, rng))
    return " ".join((replace_synonyms, insert_synonyms, swap_words)[operation](words, n, rng))
