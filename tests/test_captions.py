# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Captions: the parser against hand labels and odd texts, sub-captions' properties, the lexicon, and EDA."""

import gzip
import hashlib
import json
import multiprocessing
import os
import pickle
import random
import subprocess
import sys
from collections import Counter
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from hf_clipbd.articles import article
from hf_clipbd.captions import (
    Parse,
    augment_caption,
    counterfactual_caption,
    counterfactual_whole,
    eda,
    factual_caption,
    parse,
    parser_named,
    sub_captions,
    whole_caption,
)
from hf_clipbd.captions.inflection import inflect_verb, plural
from hf_clipbd.captions.lexicon import FILE, lexicon, related
from hf_clipbd.captions.parser import MAX_TOKENS
from hf_clipbd.captions.prepositions import contrary
from hf_clipbd.captions.sub_captions import counterfactual_parts, factual_parts
from hf_clipbd.captions.tokens import tokenize


LABELS = [
    json.loads(line) for line in (Path(__file__).parent / "data/captions_labelled.jsonl").read_text().splitlines()
]
REAL = Path(__file__).resolve().parents[2] / "shared/data/captions"
WORDNET = Path("/usr/share/wordnet")
ODD = (
    *(
        "",
        " ",
        "\n\t",
        ".",
        "...",
        "!?",
        "a",
        "the",
        "and",
        "of the",
        "is",
        "dog",
        "DOG",
        "12345",
        "3 4 5",
        "7up",
        "-",
        "- - -",
    ),
    *(
        "'s",
        "s",
        "'",
        "\U0001f34c",
        "\U0001f34c\U0001f34c \U0001f415",
        "a \U0001f415 on the \U0001f6cb\ufe0f",
        "<b>",
        "&&",
        "\x00",
    ),
    *(
        "一只棕色的狗在草地上",
        "собака бежит по траве",
        "كلب يجري",
        "犬",
        "e\u0301te\u0301",
        "naïve café",
        "\ud800 dog",
        "½ dog",
    ),
    *(
        "<p>A <b>dog</b> &amp; a cat</p>",
        "<script>alert(1)</script>",
        "&lt;dog&gt;",
        "https://x.org/a_b?c=d#e",
        "#tbt @me",
    ),
    *(
        "a" * 5000,
        "dog " * 500,
        "very " * 400,
        "of " * 300,
        "a dog runs " * 170,
        "the , the ; the : the",
        "<" * 900,
        "'" * 900,
    ),
    *(
        "of of dog of of",
        "running",
        "running fast",
        "covered",
        "it's",
        "who who who",
        "to to to",
        "& & &",
        "—",
        "a—b",
        "x:y",
    ),
    *(
        "I can't, won't, don't!",
        "group of",
        "a picture of",
        "one of the",
        "in front of",
        "Dog dog DOG",
        "a 's 's dog",
        "d:d:d",
    ),
)


def all_captions() -> list[str]:
    """The labelled captions, odd texts, and a thousand real captions where those lie beside the checkout."""
    captions = [row["caption"] for row in LABELS] + list(ODD)
    for path in sorted(REAL.glob("*.txt")):
        captions += random.Random(1).sample(path.read_text().splitlines(), 500)
    return captions


# ---- the parser


def agrees(row: dict, parsed: Parse) -> bool:
    """Whether subject and object (by their head noun) and relation are those of a label."""
    return any(
        label["subject"].split()[-1:] == parsed.subject.split()[-1:]
        and label["relation"] == parsed.relation
        and label["object"].split()[-1:] == parsed.object.split()[-1:]
        for label in (row, *row.get("alternatives", ()))
    )


@pytest.mark.parametrize(("source", "bar"), [("flickr8k", 0.85), ("cc3m", 0.75)])
def test_full_agreement_with_hand_labels(source: str, bar: float) -> None:
    rows = [row for row in LABELS if row["source"] == source]
    assert len(rows) == 200 and sum("alternatives" in row for row in rows) <= 25
    assert sum(agrees(row, parse(row["caption"])) for row in rows) / len(rows) >= bar


def test_agreement_can_fail() -> None:
    rows = [row for row in LABELS if row["source"] == "flickr8k"]
    assert sum(agrees(row, parse(other["caption"])) for row, other in zip(rows, rows[1:], strict=False)) < 5


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A brown dog is running on the green grass .", ("brown", "dog", "running on", "green", "grass")),
        ("a black and white cat sits", ("black white", "cat", "sits", "", "")),
        ("A group of five small children are playing", ("small", "children", "playing", "", "")),
        ("Close-up portrait of an old man with a beard", ("old", "man", "with", "", "beard")),
        ("A woman in a red vest jogs down the street", ("", "woman", "jogs down", "", "street")),
        ("snow covered mountains", ("snow covered", "mountains", "", "", "")),
        ("In the park , two dogs chase a ball", ("", "dogs", "chase", "", "ball")),
        ("The man who is wearing a hat is standing next to a car", ("", "man", "standing next to", "", "car")),
        ("there is a tall tree in front of the brick house", ("tall", "tree", "in front of", "", "brick house")),
        ("the dog is wet", ("wet", "dog", "", "", "")),
        ("A boy tries to catch a yellow frisbee", ("", "boy", "tries to catch", "yellow", "frisbee")),
        ("the man 's left hand on a table", ("left", "hand", "on", "", "table")),
        ("stone bridge over a river", ("", "stone bridge", "over", "", "river")),
        ("two men play football", ("", "men", "play", "", "football")),
        ("a large striped red banana to the left of a small blue cup",
         ("large striped red", "banana", "to the left of", "small blue", "cup")),
        ("look at three crabs", ("", "crabs", "", "", "")),
        ("banana", ("", "banana", "", "", "")),
        ("A dog stands in a body of water", ("", "dog", "stands in", "", "water")),
        ("two bodies of water near a road", ("", "water", "near", "", "road")),
    ],
)  # fmt: skip
def test_parses(caption: str, expected: tuple[str, ...]) -> None:
    found = parse(caption)
    first, second = " ".join(found.subject_adjectives), " ".join(found.object_adjectives)
    assert (first, found.subject, found.relation, second, found.object) == expected


def test_completeness() -> None:
    kinds = [parse(caption).completeness for caption in ("dog on grass", "a dog runs", "a red dog", "dogs", "")]
    assert kinds == ["full", "partial", "partial", "key_word", "key_word"]


def test_parts_are_the_tokens_at_their_places() -> None:
    for caption in all_captions():
        found = parse(caption)
        for name in ("subject", "relation", "object"):
            at = getattr(found, f"{name}_at")
            assert getattr(found, name) == " ".join(found.tokens[i] for i in at)
            assert list(at) == sorted(set(at))
        for name in ("subject_adjectives", "object_adjectives"):
            assert getattr(found, name) == tuple(found.tokens[i] for i in getattr(found, f"{name}_at"))
        places = [i for name in vars(found) if name.endswith("_at") for i in getattr(found, name)]
        assert len(places) == len(set(places)), caption  # no word is in two parts
        assert bool(found.subject) == any(token[-1].isalnum() for token in found.tokens)
        assert bool(found.object) <= bool(found.relation)


def test_shares_of_real_captions() -> None:
    bars = {"flickr8k_half.txt": 0.92, "cc3m_validation_half.txt": 0.84}
    for name, bar in bars.items():
        if not (REAL / name).exists():
            pytest.skip("the real captions are not here")
        captions = random.Random(2).sample((REAL / name).read_text().splitlines(), 2000)
        kinds = Counter(parse(caption).completeness for caption in captions)
        assert kinds["full"] / 2000 > bar and kinds["key_word"] / 2000 < 0.08


def test_parse_is_frozen_and_picklable() -> None:
    found = parse("a dog on grass")
    assert pickle.loads(pickle.dumps(found)) == found and hash(found) == hash(parse("a dog on grass"))
    with pytest.raises(AttributeError):
        found.subject = "cat"


def test_tokens() -> None:
    assert tokenize("A man's red T-shirt , close - up &amp; <i>big</i> !") == [
        "a", "man", "'s", "red", "t-shirt", ",", "close-up", "&", "big", "!",
    ]  # fmt: skip
    assert tokenize("a man s hands") == ["a", "man", "'s", "hands"]
    assert len(parse("dog " * 500).tokens) == MAX_TOKENS


def test_a_caption_that_is_no_text_is_refused() -> None:
    with pytest.raises(TypeError, match="Expected `caption` to be a string but got None"):
        parse(None)


def test_spacy_backend_gives_the_same_parts() -> None:
    spacy = pytest.importorskip("spacy")
    from hf_clipbd.captions.spacy_backend import parse_doc

    words = "a group of brown dogs is running on the green grass".split()
    doc = spacy.tokens.Doc(
        spacy.blank("en").vocab, words=words, heads=[1, 6, 1, 4, 2, 6, 6, 6, 10, 10, 7],
        deps="det nsubj prep amod pobj aux ROOT prep det amod pobj".split(),
        tags="DT NN IN JJ NNS VBZ VBG IN DT JJ NN".split(),
    )  # fmt: skip
    assert parse_doc(doc) == parse(" ".join(words))
    assert factual_caption("any", parser=lambda _: parse_doc(doc)) == "brown dogs running on green grass"


@pytest.fixture(scope="module")
def spacy_model(tmp_path_factory) -> Path:
    """Return the folder of a small spaCy pipeline that learnt one sentence by heart."""
    spacy = pytest.importorskip("spacy")
    words = "a brown dog is running on the green grass".split()
    deps = ["det", "amod", "nsubj", "aux", "ROOT", "prep", "det", "amod", "pobj"]
    nlp = spacy.blank("en")
    nlp.add_pipe("parser", config={"min_action_freq": 1})
    annotated = {"words": words, "heads": [2, 2, 4, 4, 4, 4, 8, 8, 5], "deps": deps, "tags": ["NN"] * 9}
    examples = [spacy.training.Example.from_dict(spacy.tokens.Doc(nlp.vocab, words=words), annotated)]
    optimizer = nlp.initialize(lambda: examples)
    for _ in range(30):
        nlp.update(examples, sgd=optimizer)
    folder = tmp_path_factory.mktemp("spacy") / "model"
    nlp.to_disk(folder)
    return folder


def test_a_spacy_model_is_loaded_by_name_once_in_each_process(spacy_model: Path) -> None:
    caption, name = "a brown dog is running on the green grass", f"spacy:{spacy_model}"
    parser = parser_named(name)
    assert parser_named(name) is parser and parser(caption).subject == "dog"
    assert factual_caption(caption, parser) == "brown dog running on green grass"
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # where nothing is inherited
        false = pool.map(partial(counterfactual, parser=name), [caption], chunksize=1)
    assert false == [counterfactual_caption(caption, (0, 1, 2), parser=parser)] and false[0] != caption


def counterfactual(caption: str, parser: str) -> str:
    return counterfactual_caption(caption, (0, 1, 2), parser=parser_named(parser))


def test_parsers_are_known_by_name(monkeypatch) -> None:
    assert parser_named("rules") is parser_named("whole") is parse
    for name in ("", "spacy", "spacy:", "nltk"):
        with pytest.raises(ValueError, match='Expected parser "rules", "whole" or "spacy:MODEL"'):
            parser_named(name)
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(ImportError, match=r"hf-clipbd\[spacy\]"):
        parser_named("spacy:nowhere")


# ---- sub-captions


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A brown dog is running on the green grass .", "brown dog running on green grass"),
        ("A large striped red banana to the left of a small blue cup", "red banana to the left of blue cup"),
        ("A black and white dog jumps", "black and white dog jumps"),
        ("Dark haired child on a swing", "dark haired child on swing"),
        ("The banana!", "banana"),
        ("12345", "12345"),
        ("一只狗", "一只狗"),
        ("🍌", ""),
        ("", ""),
    ],
)
def test_factual(caption: str, expected: str) -> None:
    assert factual_caption(caption) == expected


def test_factual_keeps_words_of_the_caption_in_the_templates_order() -> None:
    for caption in all_captions():
        parts, words = factual_parts(caption), set(parse(caption).tokens)
        assert set(factual_caption(caption).split()) <= words
        assert str(parts) == " ".join(part for part in parts if part)
        for adjective in (parts.subject_adjective, parts.object_adjective):
            assert len(adjective.split(" and ")) <= 2


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a man with no shirt", "man with no shirt"),
        ("a tree with no leaves", "tree with no leaves"),
        ("a boy wearing no red shirt", "boy wearing no red shirt"),
        ("a man without a shirt", "man without shirt"),
        ("a man not wearing a shirt", "man"),
        ("meal time is never a crisis", "meal time"),
        ("they don't run on the grass", "they"),
        ("a dog wasn't running on grass", "dog"),
        ("the small dog isn't wet", "small dog"),
        ("a big but not scary dog runs", "big dog"),
        ("no one can stop the tank", "tank"),
        ("no big dog is allowed on the sofa", "no big dog"),
        ("there are no cars on the street", "no cars"),
        ("this is not your place", "not your place"),
        ("two ladies wearing nothing", "ladies"),
        ("a man with no shirt is playing tennis", "man playing tennis"),  # another clause than the relation's
        ("a dog runs on grass , not on snow", "dog runs on grass"),
        ("gone but not forgotten , this house was a school", "house was school"),
        ("None of the dogs are running on the grass", "none of the dogs"),
        ("the cat isnt on the mat", "cat"),
        ("the cat isn ' t on the mat", "cat"),
        ("they cant see the road", "they"),
        ("a dog is nowhere near the water", "dog"),
        ("the cat is nowhere to be seen", "cat"),
        ("people in the middle of nowhere jump over a rock", "people jump over rock"),
    ],
)
def test_a_sub_caption_never_asserts_what_the_caption_denies(caption: str, expected: str) -> None:
    assert factual_caption(caption) == expected
    drawn = [counterfactual_parts(caption, seed) for seed in range(40)]
    for seed, (parts, operation) in enumerate(drawn):
        assert {"no", "not"}.isdisjoint(parts.subject.split())  # "no cats" would be true as well
        assert operation != "relation" or "no" not in parts.relation.split()
        false = counterfactual_whole(caption, seed)
        assert all(f" {part} " in f" {false} " for new in parts for part in new.split())
    assert ("relation" in {operation for _, operation in drawn}) == bool(factual_parts(caption).relation)


def test_a_denied_adjective_alone_makes_no_counterfactual() -> None:
    """A man without a red hat may well be one without a blue hat."""
    for caption in ("a man without a red hat", "a man wearing no red hat"):
        assert {counterfactual_parts(caption, seed)[1] for seed in range(60)} == {"relation", "nouns"}
    drawn = [counterfactual_parts("a man with no hat", seed) for seed in range(60)]
    assert all("no" not in parts.relation.split() for parts, operation in drawn if operation == "relation")


def own_synonyms() -> dict[str, set[str]]:
    """WordNet's synonyms, read from the package data by other code than the package's."""
    data = json.loads(gzip.open(FILE).read())
    found: dict[str, set[str]] = {}
    for line in data["synsets"].splitlines():
        members = line.split()[1:]
        for member in members:
            found.setdefault(member, set()).update(members)
    return found


def stems(word: str) -> set[str]:
    """The word and what may be left of it without an English ending, found crudely."""
    found = {word}
    for ending in ("s", "es", "ed", "d", "ing"):
        if word.endswith(ending) and len(word) - len(ending) > 2:
            stem = word[: -len(ending)]
            found |= {stem, stem + "e", stem[:-1] if stem[-1] == stem[-2] else stem}
    if word.endswith(("ies", "ied")):
        found.add(word[:-3] + "y")
    return found


def test_counterfactual_differs_in_exactly_the_replaced_part() -> None:
    synonyms, counts = own_synonyms(), Counter()
    for i, caption in enumerate(all_captions()):
        factual = factual_parts(caption)
        for seed in range(3):
            parts, operation = counterfactual_parts(caption, seed=(seed, i))
            assert str(parts) == counterfactual_caption(caption, seed=(seed, i))
            counts[operation] += 1
            changed = {name for name in parts._fields if getattr(parts, name) != getattr(factual, name)}
            there = {name for name in parts._fields if getattr(factual, name)}
            may_change = {
                "adjectives": {"subject_adjective", "object_adjective"},
                "relation": {"relation"},
                "nouns": {"subject", "object"},
            }.get(operation, set())
            assert changed == may_change & there, caption
            for name in changed:
                old = {stem for word in getattr(factual, name).split() for stem in stems(word)}
                old |= {other for word in old for other in synonyms.get(word, ())}
                new = getattr(parts, name).split()
                if operation == "relation":  # the small words of "to the left of", which others share
                    new = [word for word in new if word not in "to the of in on from out front away".split()]
                assert not old & {stem for word in new if word != "and" for stem in stems(word)}, (caption, parts)
    assert set(counts) == {"adjectives", "relation", "nouns", ""}
    assert counts[""] == 3 * sum(not factual_caption(caption) for caption in all_captions())


def test_operations_come_equally_often_where_all_apply() -> None:
    caption, n = "a brown dog runs on green grass", 3000
    counts = Counter(counterfactual_parts(caption, seed=(7, row))[1] for row in range(n))
    for operation in ("adjectives", "relation", "nouns"):
        assert counts[operation] / n == pytest.approx(1 / 3, abs=0.04)
    without_adjectives = Counter(counterfactual_parts("a dog runs", seed=row)[1] for row in range(500))
    assert set(without_adjectives) == {"relation", "nouns"}
    assert {counterfactual_parts("dog", seed=row)[1] for row in range(50)} == {"nouns"}


def test_replacements_take_the_form_of_what_they_replace() -> None:
    lex = lexicon()
    for row in range(200):
        parts, operation = counterfactual_parts("two dogs are running on the grass", seed=row)
        if operation == "nouns":
            assert parts.subject in {plural(noun) for noun in lex.nouns} and parts.object in lex.nouns
        else:
            verb, preposition = parts.relation.split(" ", 1)
            assert verb.endswith("ing") and any(preposition in group for group in lex.prepositions)
            assert preposition not in next(group for group in lex.prepositions if "on" in group)
    forms = {counterfactual_parts("a dog chases a cat", seed=row)[0].relation for row in range(200)}
    assert all(form.endswith("s") and " " not in form for form in forms)


@pytest.mark.parametrize(
    ("relation", "true", "false"),
    [
        ("near", "beside by alongside with at around opposite behind", "in on away_from far_from"),
        ("to the left of", "with around at beside near opposite", "to_the_right_of behind above in through"),
        ("on the left of", "with around at beside near opposite to_the_left_of", "to_the_right_of behind"),
        ("in", "on at across through among during", "outside near without behind far_from"),
        ("in front of", "outside before at near with opposite", "behind on under far_from"),
        ("with", "near beside at on in around for", "without far_from"),
        ("without", "far_from outside away_from", "with near on"),
        ("with no", "without with far_from outside", "near on"),
        ("of", "with in from on at", "without behind"),
        ("throughout", "through in across outside", "far_from with"),
        ("sitting under", "below beneath near with", "over on behind"),
    ],
)
def test_a_preposition_is_replaced_by_one_that_excludes_it(relation: str, true: str, false: str) -> None:
    drawn = {word for group in contrary(relation) for word in group}
    true, false = ({word.replace("_", " ") for word in text.split()} for text in (true, false))
    assert not drawn & true and drawn >= false and len(contrary(relation)) > 6


def test_every_preposition_has_contraries_in_both_directions() -> None:
    groups = lexicon().prepositions
    for group in groups:
        found = contrary(group[0])
        assert len(found) > 5 and group not in found
        assert all(found == contrary(word) for word in group if " " not in word)
        assert all(group in contrary(other[0]) for other in found if not {*group} & {*other[0].split()})


def test_drawn_prepositions_are_false_of_the_picture() -> None:
    captions = {
        "a banana to the left of a cup": {"with", "around", "at", "beside", "near", "opposite"},
        "a dog in a field": {"at", "across", "through", "among"},
        "a man in front of a house": {"outside", "before", "at", "near"},
    }
    for caption, true in captions.items():
        drawn = [counterfactual_parts(caption, seed) for seed in range(400)]
        found = {parts.relation for parts, operation in drawn if operation == "relation"}
        assert len(found) > 15 and not found & true


@pytest.mark.parametrize(
    ("caption", "seed", "old"),
    [
        ("A man is playing a guitar on stage .", 2859, "playing"),
        ("The woman in glasses is wearing a black headdress .", 10109, "wearing"),
    ],
)
def test_no_inflected_replacement_is_a_synonym(caption: str, seed: int, old: str) -> None:
    """Of "wearing" the verb "erode" is none, but "eroding" is."""
    parts, operation = counterfactual_parts(caption, seed)
    assert operation == "relation" and not related(parts.relation.split()[0], old)
    replace = sub_captions._Replacer(sub_captions._draws(0, caption), (0.0, 1.0))
    with pytest.raises(ValueError, match="no form or synonym"):
        replace.word(["erode"], ["wearing"], partial(inflect_verb, form="vg"))


def test_no_preposition_holds_the_one_that_it_replaces() -> None:
    captions = {"a dog in a field": "in", "a cover of a book": "of", "a path to the house": "to"}
    for caption, said in captions.items():
        drawn = [counterfactual_parts(caption, seed) for seed in range(400)]
        found = {parts.relation for parts, operation in drawn if operation == "relation"}
        assert len(found) > 8 and not any(said in relation.split() for relation in found)
    drawn = {counterfactual_parts("a cup to the left of a box", seed)[0].relation for seed in range(400)}
    assert "to the right of" in drawn  # small words may be shared


def test_rarity_chooses_a_share_of_the_repositories() -> None:
    nouns = lexicon().nouns
    for rarity, allowed in (((0.0, 0.1), set(nouns[:300])), ((0.9, 1.0), set(nouns[2700:]))):
        assert {counterfactual_caption("dog", row, rarity) for row in range(200)} <= allowed
    for rarity in ((0.5, 0.5), (0.0, 0.0003), (0.0, 0.009), (-0.1, 0.5), (0.5, 1.1), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match="two shares"):
            counterfactual_caption("dog", 0, rarity)
    assert counterfactual_caption("dog", 0, (0.99, 1.0)) in nouns[2970:]


def test_a_repository_that_has_no_replacement_is_an_error_and_no_endless_loop() -> None:
    replace = sub_captions._Replacer(sub_captions._draws(0, "dog"), (0.0, 1.0))
    with pytest.raises(ValueError, match=r"no form or synonym of \['dog'\].*Widen `rarity`"):
        replace.word(["dog", "dogs"], ["dog"])
    every = {preposition for group in lexicon().prepositions for preposition in group}
    with pytest.raises(ValueError, match="another meaning"):
        replace.preposition(" ".join(every))


def test_a_whole_caption_differs_in_the_replaced_words_alone() -> None:
    caption = "Three very old brown dogs are running quickly along a sandy beach, and a child laughs!"
    true, seen = whole_caption(caption).split(), Counter()
    assert " ".join(true) == "three very old brown dogs are running quickly along a sandy beach , and a child laughs !"
    for row in range(200):
        before, (after, operation) = factual_parts(caption), counterfactual_parts(caption, seed=(4, row))
        false = counterfactual_whole(caption, seed=(4, row)).split()
        false = ["a" if word == "an" else word for word in false]  # as the replacement asks for
        seen[operation] += 1
        places = {"adjectives": [3, 10], "nouns": [4, 11], "relation": [6, 8]}[operation]
        kept = [word for i, word in enumerate(true) if i not in places]
        left = list(false)
        for word in kept:
            left.remove(word)  # all other words are there, and ...
        made = " ".join(new for old, new in zip(before, after, strict=True) if new != old).split()
        assert sorted(left) == sorted(made)  # ... beside them those that the sub-caption has
    assert set(seen) == {"adjectives", "nouns", "relation"}
    for text in ("", "!!", "🍌"):
        assert counterfactual_whole(text) == whole_caption(text)


def test_articles_go_with_the_words_that_replace() -> None:
    for caption in ("a dog in an orange hat chases an owl", "a group of people waiting outside a fenced in area"):
        seen = set()
        for row in range(300):
            words = counterfactual_whole(caption, row).split()
            seen |= {pair for pair in pairwise(words) if pair[0] in ("a", "an")}
        assert all(said == article(word) for said, word in seen) and len({said for said, _ in seen}) == 2
    assert "a owl" in counterfactual_whole("a owl on a tree", seed=(0, 1))  # the caption's own word keeps its own


def test_seeds() -> None:
    caption = "a brown dog runs on green grass"
    assert counterfactual_caption(caption, 5) == counterfactual_caption(caption, seed=np.int64(5))
    assert counterfactual_caption(caption, (1, 2, 3)) == counterfactual_caption(caption, [np.int64(1), 2, 3])
    assert len({counterfactual_caption(caption, (0, epoch, 4)) for epoch in range(40)}) > 35
    assert len({counterfactual_caption(caption, (row, 0, 0)) for row in range(-20, 20)}) > 35
    assert counterfactual_caption(caption, (1, 23)) != counterfactual_caption(caption, (12, 3))
    for seed in (1.5, "1", None):
        with pytest.raises(TypeError):
            counterfactual_caption(caption, seed)


def digest(captions: list[str]) -> str:
    """A fingerprint of everything made of `captions`."""
    rows = [
        [
            factual_caption(c),
            counterfactual_caption(c, (1, 2, i)),
            augment_caption(c, np.random.default_rng((1, 2, i))),
        ]
        for i, c in enumerate(captions)
    ]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def test_other_processes_and_hash_seeds_give_the_same() -> None:
    captions = [row["caption"] for row in LABELS[::8]]
    program = (
        "import json, sys; sys.path[:0] = json.loads(sys.argv[1]); from test_captions import digest;"
        "print(digest(json.loads(sys.stdin.read())))"
    )
    paths = json.dumps([str(Path(__file__).parent), *sys.path])
    found = set()
    for hash_seed in ("0", "4321"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        command, given = [sys.executable, "-c", program, paths], json.dumps(captions)
        ran = subprocess.run(command, input=given, capture_output=True, text=True, check=True, env=environment)
        found.add(ran.stdout.strip())
    assert found == {digest(captions)}


def test_no_global_generator_is_touched() -> None:
    before = random.getstate(), np.random.get_state()[1].copy()
    digest([row["caption"] for row in LABELS[:20]])
    assert before[0] == random.getstate() and (before[1] == np.random.get_state()[1]).all()
    functions = (factual_caption, counterfactual_caption, parse, augment_caption)
    assert pickle.loads(pickle.dumps(functions)) == functions


# ---- the lexicon


def test_repositories() -> None:
    lex = lexicon()
    prepositions = [word for group in lex.prepositions for word in group]
    for words, tag in ((lex.adjectives, "a"), (lex.verbs + tuple(prepositions), "v"), (lex.nouns, "n")):
        assert len(words) == len(set(words)) == 3000
        assert not set(words) - set(prepositions) & lex.unsuited
        levels = [lex.level(word, tag) for word in words[:2000]]
        assert levels == sorted(levels, reverse=True) and levels[0] == 9 and levels[-1] < 5
        assert all(lex.known(word) for word in words if word not in prepositions)
    for word in ("slut", "nigger", "faggot", "whore", "rape", "spastic", "cunt"):
        assert word not in lex.adjectives + lex.verbs + lex.nouns
        assert all(word not in eda.synonyms(other) for other in lex.nouns[:1000])


def test_package_data() -> None:
    folder = FILE.parent
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1_000_000
    licence = (folder / "WORDNET-LICENSE").read_text()
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in licence and "GPL" not in licence
    assert sorted(path.name for path in folder.iterdir()) == ["WORDNET-LICENSE", "lexicon.json.gz"]


@pytest.mark.skipif(not WORDNET.exists(), reason="Debian's wordnet-base is not installed")
def test_recipe_makes_the_package_data(tmp_path: Path) -> None:
    script = Path(__file__).resolve().parents[1] / "recipes/lexicon/build.py"
    subprocess.run(
        [sys.executable, str(script), "--out", str(tmp_path / "lexicon.json.gz")], check=True, capture_output=True
    )
    made, shipped = (gzip.decompress(path.read_bytes()) for path in (tmp_path / "lexicon.json.gz", FILE))
    assert made == shipped


def test_relatives() -> None:
    pairs = "dog dogs, run ran, running runs, children child, big biggest, car automobile, cars auto, leaves leaf"
    for one, other in (pair.split() for pair in f"{pairs}, leaves leave, large big, xyzzy xyzzy".split(", ")):
        assert related(one, other) and related(other, one)
    for one, other in [("dog", "cat"), ("red", "blue"), ("run", "rune"), ("xyzzy", "dog")]:
        assert not related(one, other)


def test_inflection_round_trip() -> None:
    lex = lexicon()
    for word in lex.nouns[::7]:
        assert word in lex.lemmas_of(plural(word), "ns") or plural(word) == word, word
    for word in lex.verbs[::5]:
        for form in ("vs", "vd", "vg"):
            assert word in lex.lemmas_of(inflect_verb(word, form), form) or inflect_verb(word, form) == word, (
                word,
                form,
            )


# ---- EDA


WORDS = "a big dog quickly chases the small ball near an old house today".split()


def generators() -> list[np.random.Generator]:
    return [np.random.default_rng((5, i)) for i in range(60)]


def test_synonym_replacement() -> None:
    for rng in generators():
        words = eda.replace_synonyms(WORDS, 2, rng)
        assert len(words) == len(WORDS)
        changed = [(old, new) for old, new in zip(WORDS, words, strict=True) if old != new]
        assert len(changed) == 2
        for old, new in changed:
            assert new in eda.synonyms(old) and related(old, new) and old not in ("a", "the", "an", "near")
    assert eda.replace_synonyms(["dog,", "Dog,"], 1, np.random.default_rng(0)).count("dog,") <= 1
    assert eda.replace_synonyms(["dog", "x", "dog"], 1, np.random.default_rng(0))[0] != "dog"
    assert len(set(eda.replace_synonyms(["dog", "x", "dog"], 1, np.random.default_rng(0)))) == 2  # every occurrence
    assert eda.replace_synonyms(["the", "of"], 5, np.random.default_rng(0)) == ["the", "of"]


def test_synonyms_keep_the_form() -> None:
    assert {"autos", "automobiles"} <= set(eda.synonyms("cars"))
    assert "leaping" in eda.synonyms("jumping") and "skips" in eda.synonyms("jumps")
    assert "dog" not in eda.synonyms("dogs") and eda.synonyms("xyzzy") == () == eda.synonyms("with")


def test_insertion() -> None:
    for rng in generators():
        words = eda.insert_synonyms(WORDS, 2, rng)
        assert len(words) == len(WORDS) + 2
        added = Counter(words) - Counter(WORDS)
        assert sum(added.values()) == 2
        assert all(any(related(word, new) for word in words if word != new) for new in added)
        assert [word for word in words if word in WORDS][:3] == [word for word in WORDS if word in words][:3]
    assert eda.insert_synonyms(["of"], 3, np.random.default_rng(0)) == ["of"]


def test_swap() -> None:
    for rng in generators():
        words = eda.swap_words(WORDS, 1, rng)
        assert sorted(words) == sorted(WORDS) and sum(a != b for a, b in zip(words, WORDS, strict=True)) == 2
    assert eda.swap_words(["dog"], 3, np.random.default_rng(0)) == ["dog"]


def test_deletion() -> None:
    lengths = []
    for rng in generators():
        words = eda.delete_words(WORDS, 0.3, rng)
        kept = iter(WORDS)
        assert all(word in kept for word in words)  # a subsequence
        lengths.append(len(words))
    assert np.mean(lengths) == pytest.approx(0.7 * len(WORDS), rel=0.1)
    assert eda.delete_words(WORDS, 0.0, np.random.default_rng(0)) == WORDS
    assert {eda.delete_words(WORDS, 1.0, rng)[0] for rng in generators()} <= set(WORDS)


def test_augmentation_draws_all_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple] = []
    for name in ("replace_synonyms", "insert_synonyms", "swap_words", "delete_words"):
        monkeypatch.setattr(eda, name, lambda words, n, rng, name=name: calls.append((name, n)) or words)
    for row in range(2000):
        augment_caption("one two three four five six seven eight nine ten " * 3, np.random.default_rng(row), alpha=0.1)
    counts = Counter(calls)
    assert set(counts) == {("replace_synonyms", 3), ("insert_synonyms", 3), ("swap_words", 3), ("delete_words", 0.1)}
    assert all(count / 2000 == pytest.approx(0.25, abs=0.05) for count in counts.values())


def test_augmentation_of_anything() -> None:
    for i, caption in enumerate(all_captions()):
        view = augment_caption(caption, np.random.default_rng((0, i)))
        assert view == augment_caption(caption, np.random.default_rng((0, i)))
        assert bool(view) == bool(caption.split())
    caption = "a brown dog runs on the green grass"
    assert len({augment_caption(caption, np.random.default_rng((0, epoch, 3))) for epoch in range(40)}) > 25
    with pytest.raises(ValueError, match="share"):
        augment_caption(caption, np.random.default_rng(0), alpha=1.5)
