# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Makes the lexicon of `hf_clipbd.captions` from WordNet 3.0's database files (Debian's `wordnet-base`).

python recipes/lexicon/build.py --wordnet /usr/share/wordnet
"""

import argparse
import gzip
import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from hf_clipbd.captions.vocabulary import CLOSED


HERE = Path(__file__).parent
TARGET = HERE.parents[1] / "src/hf_clipbd/captions/wordnet/lexicon.json.gz"
FILES = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
KINDS = {"1": "n", "2": "v", "3": "a", "4": "r", "5": "a"}  # types in sense keys; 5 is an adjective satellite
WORD = re.compile(r"[a-z]+(?:-[a-z]+)*$")
ROMAN = re.compile(r"[ivxlcdm]+$")
SIZE = 3000  # entries of each repository ...
COMMON = 2000  # ... of which the most common; the others are spread evenly over what is left
PERSON = 18
COMMON_WORD = 20  # uses in the tagged texts from which a word is not given up for a rare slur among its senses
# Lexicographer files of what a picture can show: animals, artifacts, the body, food, places, objects, people, plants,
# substances; verbs of body, change, competition, consumption, contact, creation, motion, perception and weather.
VISIBLE = {
    "n": {5, 6, 8, 13, 15, 17, 18, 20, 27},
    "v": {29, 30, 33, 34, 35, 36, 38, 39, 40, 41, 42, 43},
    "a": {0, 1, 44},
}
UNSUITED = re.compile(
    r"offensive|derog|disparag|ethnic slur|vulgar|obscen|taboo|\bslur\b|\binsult|sexual|copulat|genital|penis|vagina"
    r"|homosexual|prostitut|excrement|feces|\burin|defecat|masturbat|erotic|\bslave|\brape|\bnazi|\bracial|racist|vulva"
    r"|negro|rectum"
    r"|incest|pederast|castrat|\bmurder|suicid|intercourse|\banus|buttocks|\bsemen\b|testic|scrotum|\bdung\b|vasectom|circumci"
    r"|nipple|bowel|steriliz|abortion|menstrua|concubine|brothel|lewd|pornograph|\btortur|\bkill|genocide|lynch|terroris"
)
UNSUITED_PERSON = re.compile(
    r"stupid|foolish|contempt|despi[cs]|worthless|disreput|unpleasant|retard|mental|incompeten|drunk|addict|deform|disabled"
    r"|crimin|coward|ugly|dishonest|immoral|vagrant|idle|obnoxious|annoying|dull|fool|servan|ignorant|uncouth|boor|lazy"
    r"|descent|heretic|effeminate|mistress|slang|lunatic|insane|traitor|fat |gullible|untrustworthy"
)
NUMBER = re.compile(
    r"^\(?(?:being|coming next|denoting|the ordinal|cardinal|ordinal).*(?:than|after|quantity|number|item)"
)


@dataclass(frozen=True)
class Synset:
    """One line of WordNet's data files."""

    tag: str
    identifier: str
    file: int
    lemmas: tuple[str, ...]
    usage: frozenset[str]
    gloss: str

    def marked(self, domains: set[str]) -> bool:
        """Return whether the sense is offensive, sexual or cruel, by its usage marks (`domains`) or its gloss."""
        definition = self.gloss.split('"')[0]
        person = self.file == PERSON and self.tag == "n" and UNSUITED_PERSON.search(definition)
        return bool(self.usage & domains or UNSUITED.search(definition) or person)


def read_synsets(folder: Path) -> list[Synset]:
    """Return every synset of WordNet, with the identifiers of the usage domains it points to."""
    synsets = []
    for tag, name in FILES.items():
        for line in (folder / f"data.{name}").read_text().splitlines():
            if line.startswith(" "):
                continue  # the licence
            head, _, gloss = line.partition(" | ")
            fields = head.split()
            n_words = int(fields[3], 16)
            lemmas = tuple(re.sub(r"\(.*", "", fields[4 + 2 * i]) for i in range(n_words))
            pointers = fields[5 + 2 * n_words :]
            n_pointers = int(fields[4 + 2 * n_words])
            usage = frozenset(pointers[4 * i + 1] for i in range(n_pointers) if pointers[4 * i] == ";u")
            synsets.append(Synset(tag, fields[0], int(fields[1]), lemmas, usage, gloss))
    return synsets


def read_counts(folder: Path) -> Counter:
    """Return how often each (lemma, part of speech) was met in WordNet's sense-tagged texts."""
    counts: Counter = Counter()
    for line in (folder / "cntlist.rev").read_text().splitlines():
        key, _, count = line.split()
        lemma, _, sense = key.partition("%")
        counts[lemma, KINDS[sense[0]]] += int(count)
    return counts


def read_irregular(folder: Path, tags: dict[str, set[str]]) -> list[str]:
    """Return the irregular forms of the words in `tags`, as lines "tag form lemma"."""
    lines = set()
    for tag in "nva":
        for line in (folder / f"{FILES[tag]}.exc").read_text().splitlines():
            form, lemma, *_ = line.split()
            if WORD.match(form) and form != lemma and tag in tags.get(lemma, ""):
                lines.add(f"{tag} {form} {lemma}")
    return sorted(lines)


def slur_domains(synsets: list[Synset]) -> set[str]:
    """Return the identifiers of WordNet's usage domains for slurs and obscenities."""
    names = {"disparagement", "derogation", "ethnic_slur", "obscenity", "vulgarism", "dirty_word"}
    return {synset.identifier for synset in synsets if synset.tag == "n" and names & set(synset.lemmas)}


def unsuited_words(folder: Path, synsets: list[Synset], counts: Counter) -> set[str]:
    """Return the words whose first sense is marked, uncommon words with any slur, and those of `blocklist.txt`."""
    domains = slur_domains(synsets)
    by_identifier = {(synset.tag, synset.identifier): synset for synset in synsets}
    words = set()
    for tag, name in FILES.items():
        for line in (folder / f"index.{name}").read_text().splitlines():
            if line.startswith(" "):
                continue
            fields = line.split()
            senses = [by_identifier[tag, identifier] for identifier in fields[-int(fields[2]) :]]
            slur = any(sense.usage & domains for sense in senses) and counts[fields[0], tag] < COMMON_WORD
            if senses[0].marked(domains) or slur:
                words.add(fields[0])
    listed = (HERE / "blocklist.txt").read_text().splitlines()
    return words | {line.strip() for line in listed if not line.startswith("#")}


def ranked(tag: str, synsets: list[Synset], counts: Counter, bad: set[str]) -> list[str]:
    """Return the words fit to replace others of part of speech `tag`, the most common first."""
    senses: Counter = Counter()
    visible: Counter = Counter()
    numbers = set()
    for synset in synsets:
        if synset.tag == tag:
            senses.update(synset.lemmas)
            if synset.file in VISIBLE[tag]:
                visible.update(synset.lemmas)
            if NUMBER.match(synset.gloss):
                numbers.update(synset.lemmas)
    words = []
    for word in senses:
        plain = word.isascii() and word.islower() and word.isalpha() and 2 < len(word) < 13
        plural = tag == "n" and word.endswith("s") and not word.endswith(("ss", "us"))
        if not plain or plural or word in bad or word in numbers or word in CLOSED or ROMAN.match(word):
            continue
        shown = visible[word] if tag == "v" else 2 * visible[word] > senses[word]
        if shown and 2 * counts[word, tag] >= sum(counts[word, t] for t in "nvar"):
            words.append(word)
    return sorted(words, key=lambda word: (-counts[word, tag], -senses[word], word))


def repository(words: list[str], size: int) -> list[str]:
    """Return `size` of `words`, common to rare: the first `COMMON`, then an even spread over the rest."""
    common, rest = words[:COMMON], words[COMMON:]
    rare = size - COMMON
    return common + [rest[i * len(rest) // rare] for i in range(rare)]


def main() -> None:
    """Write the package's lexicon and print what is in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"))
    parser.add_argument("--out", type=Path, default=TARGET)
    arguments = parser.parse_args()

    synsets, counts = read_synsets(arguments.wordnet), read_counts(arguments.wordnet)
    domains = slur_domains(synsets)
    tags: dict[str, set[str]] = defaultdict(set)
    groups = set()
    for synset in synsets:
        members = sorted({word for word in synset.lemmas if WORD.match(word)})
        for word in members:
            tags[word].add(synset.tag)
        if len(members) > 1:  # capitals: a synset to know, never to draw from
            groups.add(f"{synset.tag.upper() if synset.marked(domains) else synset.tag} {' '.join(members)}")
    bad = unsuited_words(arguments.wordnet, synsets, counts)
    prepositions = (HERE / "prepositions.txt").read_text().split("\n")[:-1]
    n_prepositions = sum(len(line.split()) for line in prepositions)

    def level(word: str, tag: str) -> str:
        return str(min(9, 1 + counts[word, tag].bit_length())) if tag in tags[word] else "0"

    lexicon = {
        "source": "WordNet 3.0, Copyright 2006 by Princeton University. All rights reserved. See WORDNET-LICENSE.",
        "words": "\n".join(f"{word} {''.join(level(word, tag) for tag in 'nvar')}" for word in sorted(tags)),
        "irregular": "\n".join(read_irregular(arguments.wordnet, tags)),
        "synsets": "\n".join(sorted(groups)),
        "unsuited": " ".join(sorted(bad & set(tags))),
        "adjectives": " ".join(repository(ranked("a", synsets, counts, bad), SIZE)),
        "verbs": " ".join(repository(ranked("v", synsets, counts, bad), SIZE - n_prepositions)),
        "prepositions": "\n".join(prepositions),
        "nouns": " ".join(repository(ranked("n", synsets, counts, bad), SIZE)),
    }
    blob = gzip.compress(json.dumps(lexicon, ensure_ascii=True).encode(), 9, mtime=0)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_bytes(blob)
    print(f"{len(blob):,} bytes: {len(tags):,} words, {len(groups):,} synsets, {n_prepositions} prepositions")
    for name in ("adjectives", "verbs", "nouns"):
        words = lexicon[name].split()
        print(f"{len(words)} {name}: {', '.join([*words[:8], '...', *words[1500:1508], '...', *words[-8:]])}")


if __name__ == "__main__":
    main()
