# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Makes the lexicon of `hf_clipbd.captions` from WordNet 3.0's database files (Debian's `wordnet-base`), read by nltk.

python recipes/lexicon/build.py --wordnet /usr/share/wordnet
"""

import argparse
import gzip
import json
import re
import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nltk.data
from nltk.corpus.reader import WordNetCorpusReader

from hf_clipbd.captions.vocabulary import CLOSED


HERE = Path(__file__).parent
TARGET = HERE.parents[1] / "src/hf_clipbd/captions/wordnet/lexicon.json.gz"
FILES = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
KINDS = {"1": "n", "2": "v", "3": "a", "4": "r", "5": "a"}  # types in sense keys; 5 is an adjective satellite
WORD = re.compile(r"[a-z]+(?:-[a-z]+)*$")
ROMAN = re.compile(r"[ivxlcdm]+$")
SIZE = 3000  # entries of each repository ...
COMMON = 2000  # ... of which the most common; the others are spread evenly over what is left
PERSON = "noun.person"
COMMON_WORD = 20  # uses in the tagged texts from which a word is not given up for a rare slur among its senses
# WordNet's lexicographer files in the order of their numbers, lexnames(5WN): Debian's package lacks the file.
LEXNAMES = (
    "adj.all adj.pert adv.all noun.Tops noun.act noun.animal noun.artifact noun.attribute noun.body noun.cognition "
    "noun.communication noun.event noun.feeling noun.food noun.group noun.location noun.motive noun.object "
    "noun.person noun.phenomenon noun.plant noun.possession noun.process noun.quantity noun.relation noun.shape "
    "noun.state noun.substance noun.time verb.body verb.change verb.cognition verb.communication verb.competition "
    "verb.consumption verb.contact verb.creation verb.emotion verb.motion verb.perception verb.possession "
    "verb.social verb.stative verb.weather adj.ppl"
).split()
# What a picture can show.
VISIBLE = {
    "n": {f"noun.{kind}" for kind in "animal artifact body food location object person plant substance".split()},
    "v": {
        f"verb.{kind}"
        for kind in "body change competition consumption contact creation motion perception possession social "
        "stative weather".split()
    },
    "a": {"adj.all", "adj.pert", "adj.ppl"},
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
    """What is used of one of WordNet's synsets."""

    tag: str
    offset: int
    file: str
    lemmas: tuple[str, ...]
    usage: frozenset[int]
    gloss: str

    def marked(self, domains: set[int]) -> bool:
        """Return whether the sense is offensive, sexual or cruel, by its usage marks (`domains`) or its gloss."""
        definition = self.gloss.split('"')[0]
        person = self.file == PERSON and UNSUITED_PERSON.search(definition)
        return bool(self.usage & domains or UNSUITED.search(definition) or person)


class WordNet(WordNetCorpusReader):
    """nltk's reader of the English database alone, which is not mapped to another version's."""

    def map_wn(self, version: str = "wordnet") -> None:
        """Return None: what nltk would map with lies in a file that Debian has in another package."""


@contextmanager
def opened(folder: Path) -> Iterator[WordNet]:
    """Read WordNet's database in `folder`, with the file that Debian lacks put beside copies of the others.

    nltk reads only below the folders of `nltk.data.path`, so the copies lie in one that is put there for the while.
    """
    with tempfile.TemporaryDirectory() as root:
        beside = Path(root) / "wordnet"
        beside.mkdir()
        for path in folder.iterdir():
            (beside / path.name).write_bytes(path.read_bytes())
        lines = [f"{number:02d}\t{name}\t{name[0]}" for number, name in enumerate(LEXNAMES)]
        (beside / "lexnames").write_text("\n".join(lines) + "\n")
        nltk.data.path.insert(0, root)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # that other languages are not there
                yield WordNet(str(beside), None)
        finally:
            nltk.data.path.remove(root)


def read_synsets(wordnet: WordNet) -> list[Synset]:
    """Return every synset of WordNet, with the offsets of the usage domains that it or one of its words points to."""
    synsets = []
    for tag in FILES:
        for one in wordnet.all_synsets(tag):
            domains = {*one.usage_domains(), *(to.synset() for word in one.lemmas() for to in word.usage_domains())}
            usage = frozenset(domain.offset() for domain in domains)
            names = tuple(one.lemma_names())
            gloss = "; ".join([one.definition(), *(f'"{example}"' for example in one.examples())])
            synsets.append(Synset(tag, one.offset(), one.lexname(), names, usage, gloss))
    return synsets


def read_counts(wordnet: WordNet) -> Counter:
    """Return how often each (lemma, part of speech) was met in WordNet's sense-tagged texts.

    The file is read from end to end: `Lemma.count` of nltk searches it by halves and misses some keys.
    """
    counts: Counter = Counter()
    for line in wordnet.open("cntlist.rev"):
        key, _, count = line.split()
        lemma, _, sense = key.partition("%")
        counts[lemma, KINDS[sense[0]]] += int(count)
    return counts


def read_irregular(wordnet: WordNet, tags: dict[str, set[str]]) -> list[str]:
    """Return the irregular forms of the words in `tags`, as lines "tag form lemma"."""
    lines = set()
    for tag in "nva":
        for line in wordnet.open(f"{FILES[tag]}.exc"):
            form, lemma, *_ = line.split()
            if WORD.match(form) and form != lemma and tag in tags.get(lemma, ""):
                lines.add(f"{tag} {form} {lemma}")
    return sorted(lines)


def slur_domains(synsets: list[Synset]) -> set[int]:
    """Return the offsets of WordNet's usage domains for slurs and obscenities."""
    names = {"disparagement", "derogation", "ethnic_slur", "obscenity", "vulgarism", "dirty_word"}
    return {synset.offset for synset in synsets if synset.tag == "n" and names & set(synset.lemmas)}


def unsuited_words(wordnet: WordNet, synsets: list[Synset], counts: Counter) -> set[str]:
    """Return the words whose first sense is marked, uncommon words with any slur, and those of `blocklist.txt`."""
    domains = slur_domains(synsets)
    by_offset = {(synset.tag, synset.offset): synset for synset in synsets}
    words = set()
    for tag in FILES:
        for word in wordnet.all_lemma_names(tag):
            found = [one for one in wordnet.synsets(word, tag) if word in map(str.lower, one.lemma_names())]
            senses = [by_offset[tag, one.offset()] for one in found]
            slur = any(sense.usage & domains for sense in senses) and counts[word, tag] < COMMON_WORD
            if senses[0].marked(domains) or slur:
                words.add(word)
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


def read_prepositions() -> list[str]:
    """Return the groups of prepositions that say much the same, one a line."""
    return (HERE / "prepositions.txt").read_text().split("\n")[:-1]


def lexicon_of(wordnet: WordNet) -> dict[str, str]:
    """Return the parts of the lexicon by name."""
    synsets, counts = read_synsets(wordnet), read_counts(wordnet)
    domains = slur_domains(synsets)
    tags: dict[str, set[str]] = defaultdict(set)
    groups = set()
    for synset in synsets:
        members = sorted({word for word in synset.lemmas if WORD.match(word)})
        for word in members:
            tags[word].add(synset.tag)
        if len(members) > 1:  # capitals: a synset to know, never to draw from
            groups.add(f"{synset.tag.upper() if synset.marked(domains) else synset.tag} {' '.join(members)}")
    bad = unsuited_words(wordnet, synsets, counts)
    prepositions = read_prepositions()
    n_prepositions = sum(len(line.split()) for line in prepositions)

    def level(word: str, tag: str) -> str:
        return str(min(9, 1 + counts[word, tag].bit_length())) if tag in tags[word] else "0"

    return {
        "source": "WordNet 3.0, Copyright 2006 by Princeton University. All rights reserved. See WORDNET-LICENSE.",
        "words": "\n".join(f"{word} {''.join(level(word, tag) for tag in 'nvar')}" for word in sorted(tags)),
        "irregular": "\n".join(read_irregular(wordnet, tags)),
        "synsets": "\n".join(sorted(groups)),
        "unsuited": " ".join(sorted(bad & set(tags))),
        "adjectives": " ".join(repository(ranked("a", synsets, counts, bad), SIZE)),
        "verbs": " ".join(repository(ranked("v", synsets, counts, bad), SIZE - n_prepositions)),
        "prepositions": "\n".join(prepositions),
        "nouns": " ".join(repository(ranked("n", synsets, counts, bad), SIZE)),
    }


def main() -> None:
    """Write the package's lexicon and print what is in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"))
    parser.add_argument("--out", type=Path, default=TARGET)
    arguments = parser.parse_args()

    with opened(arguments.wordnet) as wordnet:
        lexicon = lexicon_of(wordnet)
    blob = gzip.compress(json.dumps(lexicon, ensure_ascii=True).encode(), 9, mtime=0)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_bytes(blob)
    sizes = {name: len(lexicon[name].split("\n")) for name in ("words", "synsets", "prepositions")}
    print(f"{len(blob):,} bytes: " + ", ".join(f"{size:,} lines of {name}" for name, size in sizes.items()))
    for name in ("adjectives", "verbs", "nouns"):
        words = lexicon[name].split()
        print(f"{len(words)} {name}: {', '.join([*words[:8], '...', *words[1500:1508], '...', *words[-8:]])}")


if __name__ == "__main__":
    main()
