# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The word knowledge behind captions: parts of speech, inflections, synonyms, and repositories of replacement words.

All of it comes from WordNet 3.0 (licence: `wordnet/WORDNET-LICENSE`) by `recipes/lexicon/build.py` and is read once,
when first needed.
"""

import gzip
import json
from functools import cache, lru_cache
from itertools import chain
from pathlib import Path


FILE = Path(__file__).parent / "wordnet" / "lexicon.json.gz"
FORMS = ("ns", "vs", "vd", "vg", "ac")  # plural; third person, past or participle, -ing; comparative or superlative
# (ending of the form, ending of the lemma) by form; the first that gives a known lemma wins.
ENDINGS = {
    "ns": (("ies", "y"), ("men", "man"), ("ves", "f"), ("ves", "fe"), ("es", ""), ("s", "")),
    "vs": (("ies", "y"), ("es", ""), ("s", "")),
    "vd": (("ied", "y"), ("ed", "e"), ("ed", "")),
    "vg": (("ying", "ie"), ("ing", "e"), ("ing", "")),
    "ac": (("ier", "y"), ("iest", "y"), ("er", "e"), ("est", "e"), ("er", ""), ("est", "")),
}


def _form_of_irregular(tag: str, form: str, lemma: str) -> str:
    """Return which of `FORMS` an irregular form is, by its ending."""
    if tag in "na":
        return {"n": "ns", "a": "ac"}[tag]
    if form.endswith("ing"):
        return "vg"
    return "vs" if form.endswith("s") and form[:-1].startswith(lemma[:2]) and lemma[-1] != "s" else "vd"


class Lexicon:
    """WordNet's single words: how common they are, their forms and synonyms, and repositories of replacements.

    Attributes:
        adjectives: 3,000 adjectives, from common to rare.
        nouns: 3,000 nouns, likewise.
        verbs: verbs, likewise; with the prepositions they make 3,000.
        prepositions: groups of prepositions that say much the same ("under", "below", "beneath", "underneath").
        unsuited: words with an offensive first sense, never drawn as a replacement or synonym.
    """

    def __init__(self, blob: dict[str, str]):
        self._levels = dict(line.split(" ") for line in blob["words"].split("\n"))
        self._lemmas: dict[tuple[str, str], list[str]] = {}  # (form, word) -> lemmas of irregular forms
        self._irregular: dict[tuple[str, str], list[str]] = {}  # (form, lemma) -> irregular forms
        for line in blob["irregular"].split("\n"):
            tag, word, lemma = line.split(" ")
            form = _form_of_irregular(tag, word, lemma)
            self._lemmas.setdefault((form, word), []).append(lemma)
            self._irregular.setdefault((form, lemma), []).append(word)
        self._synsets: dict[str, list[str]] = {}
        for line in blob["synsets"].split("\n"):
            for member in line.split(" ")[1:]:
                self._synsets.setdefault(member, []).append(line)
        self.unsuited = frozenset(blob["unsuited"].split(" "))
        self.adjectives = tuple(blob["adjectives"].split(" "))
        self.verbs = tuple(blob["verbs"].split(" "))
        self.nouns = tuple(blob["nouns"].split(" "))
        lines = blob["prepositions"].split("\n")
        self.prepositions = tuple(tuple(p.replace("_", " ") for p in line.split(" ")) for line in lines)

    def words(self) -> tuple[str, ...]:
        """Return the words of all repositories of replacements, from common to rare by kind."""
        return (*self.adjectives, *self.nouns, *self.verbs, *chain.from_iterable(self.prepositions))

    def known(self, word: str) -> bool:
        """Return whether WordNet lists `word` as a lemma."""
        return word in self._levels

    def level(self, word: str, tag: str) -> int:
        """Return how common lemma `word` is as `tag` in "nvar": 0 unknown, 1 never counted, to 9 (a logarithm)."""
        levels = self._levels.get(word)
        return int(levels["nvar".index(tag)]) if levels else 0

    def lemmas_of(self, word: str, form: str) -> list[str]:
        """Return the lemmas of which `word` may be `form` (one of `FORMS`), the likeliest first."""
        found = list(self._lemmas.get((form, word), ()))
        for ending, replacement in ENDINGS[form]:
            stem = word[: len(word) - len(ending)]
            if not word.endswith(ending) or len(stem) < 2 or ending == "s" and stem.endswith("s"):
                continue
            if self.level(stem + replacement, form[0]):
                found.append(stem + replacement)
            elif not replacement and form != "ns" and stem[-1] == stem[-2] and self.level(stem[:-1], form[0]):
                found.append(stem[:-1])
        return found

    def form_level(self, word: str, form: str) -> int:
        """Return the level of the likeliest lemma of which `word` is `form`, or 0."""
        lemmas = self.lemmas_of(word, form)
        return self.level(lemmas[0], form[0]) if lemmas else 0

    def irregular(self, lemma: str, form: str) -> tuple[str, ...]:
        """Return the irregular words for `form` of `lemma`, or ()."""
        return tuple(self._irregular.get((form, lemma), ()))

    def synonyms(self, word: str, tags: str = "nvar") -> tuple[str, ...]:
        """Return the words that share an inoffensive WordNet synset with lemma `word` as one of `tags`, sorted."""
        lines = (line.split(" ") for line in self._synsets.get(word, ()) if line[0] in tags)
        return tuple(sorted({other for line in lines for other in line[1:]} - {word} - self.unsuited))

    def synset_mates(self, word: str) -> set[str]:
        """Return the words that share any WordNet synset with lemma `word`, itself among them."""
        return {word, *(other for line in self._synsets.get(word, ()) for other in line.split(" ")[1:])}


@cache
def lexicon() -> Lexicon:
    """Return the lexicon, read from the package's data on the first call (about a fifth of a second)."""
    return Lexicon(json.loads(gzip.decompress(FILE.read_bytes())))


@lru_cache(maxsize=32768)
def lemmas(word: str) -> frozenset[str]:
    """Return `word` and the lemmas it may be a form of.

    Example:
        >>> sorted(lemmas("leaves"))
        ['leaf', 'leave', 'leaves']
    """
    return frozenset({word, *(lemma for form in FORMS for lemma in lexicon().lemmas_of(word, form))})


@lru_cache(maxsize=32768)
def senses(word: str) -> frozenset[str]:
    """Return `word`, the lemmas it may be a form of, and all their WordNet synonyms."""
    return frozenset().union(*map(lexicon().synset_mates, lemmas(word)))


def related(word: str, other: str) -> bool:
    """Return whether the two are one word, forms of one lemma, or WordNet synonyms in any sense.

    Example:
        >>> related("dogs", "dog"), related("ran", "running"), related("cars", "auto"), related("dog", "cat")
        (True, True, True, False)
    """
    return not senses(word).isdisjoint(lemmas(other))
