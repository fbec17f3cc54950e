# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Parts of speech for the words of a caption, from the lexicon's counts and the neighbours, left to right.

Tags: D determiner or number, J adjective, N noun, NS plural noun, P pronoun, V base verb, VZ third person, VD past or
participle, VG -ing form, B be, H have or do, M modal, T to, I preposition, C and/or, W relative, S subordinator,
R adverb, X comma or dash, . end.
"""

from . import words
from .vocabulary import END, Word, look_up


NOUNS = ("N", "NS", "P")
VERBS = ("V", "VZ", "VD", "VG")
LEADING = ("out", "off", "up", "down", "on", "over")  # particles that a third person may follow: "tongue out runs"


class _Tagger:
    """One left-to-right pass: remembers the clause's verb, its subject's number, and how the open phrase began."""

    def __init__(self, tokens: list[str]):
        self.known = [look_up(token) for token in tokens]
        self.known += [END, END]
        self.tags: list[str] = []
        self.has_verb = False
        self.plural: bool | None = None  # the subject's number, None before the subject
        self.collective = False  # the subject is "a group of", which takes either number
        self.single = False  # the open noun phrase began with "a"
        self.several = False  # ... with "two", "these" or the like
        self.determined = False  # ... with any determiner
        self.governed = False  # ... and follows a preposition or a verb

    def run(self) -> list[str]:
        """Return the tags."""
        for i in range(len(self.known) - 2):
            word, following, after = self.known[i : i + 3]
            previous = self.tags[-1] if i else "X"
            before = self.known[i - 1].text if i else ""
            if word.closed:
                tag = self._closed(word, following, after, previous, before)
            elif previous in NOUNS and (verb := self._verb_after_noun(word, following, after, previous, before)):
                tag = verb
            elif previous in NOUNS:
                tag = self._noun_after_noun(word, following)
            else:
                tag = self._verb_elsewhere(word, following, previous, before) or self._in_phrase(
                    word, following, after, previous
                )
            self._push(tag, word)
        for i in range(1, len(self.tags) - 1):  # "side by side", "hand in hand"
            if self.tags[i] in ("I", "T") and self.known[i - 1] == self.known[i + 1] and self.tags[i + 1] == "N":
                self.tags[i - 1 : i + 2] = ["R", "R", "R"]
        return self.tags

    def _push(self, tag: str, word: Word) -> None:
        """Append `tag` and note what it means for the words to come."""
        standing = word.text == "of" and self.tags and self.known[len(self.tags) - 1].text in words.STANDING_FOR
        if tag in ("W", "S"):
            self.has_verb = False
        elif tag in ("V", "VZ", "B", "H", "M"):
            self.has_verb = True
        elif standing:  # "a group of dogs": what follows is the subject
            self.plural, self.collective = None, True
        elif tag == "C" and not self.has_verb and not self.governed and self.plural is not None:
            self.plural = True
        if tag == "D":
            self.determined = True
            self.single, self.several = word.text in ("a", "an"), word.text in words.PLURAL_DETERMINERS
        elif tag in ("X", "C"):
            self.single = self.several = self.determined = False
            self.governed = self.governed and self.plural is not None
        elif tag not in ("J", "N", "NS", "R"):
            self.single = self.several = self.determined = False
            self.governed = not standing and (tag in ("I", "T") or tag in VERBS)
        if tag in NOUNS and not self.governed:
            many = tag == "NS" and not self.single or self.several or word.text in words.PLURALS
            self.collective = self.collective or self.single and word.text in words.PLURALS
            if self.plural is None or self.tags and self.tags[-1] in NOUNS:
                self.plural = many
        self.tags.append(tag)

    def _closed(self, word: Word, following: Word, after: Word, previous: str, before: str) -> str:
        """Return the tag of a function word, where its neighbours decide between two."""
        text = word.text
        if text == "that":
            return "W" if previous in NOUNS else "D"
        if text == "other" and before == "each" or text == "another" and before == "one":
            return "P"
        if text == "'s":
            return "B" if before in words.SUBJECT_PRONOUNS or previous == "W" else "D"
        if text == "all" and following.text in ("over", "around"):
            return "R"
        if text in words.STANDALONE and previous in ("I", *VERBS) and following.closed in (".", "X", "C", "I"):
            return "P" if following.text != "of" else "D"
        if text == "down" and before == "upside":
            return "R"
        if text == "to":
            verb = following.verb and (following.verb >= following.noun - 1 or after.closed == "D")
            return "T" if (verb or following.closed in ("B", "H")) and before not in ("next", "close", "due") else "I"
        if text == "as" and previous == "VD" and following.closed != "P":
            return "I"
        if text in ("back", "home") and following.text == "of":
            return "N"
        if text == "home" and previous == "N" and self.determined:
            return "N"
        if text in words.AMBIGUOUS and previous in ("D", "J", "I"):
            if previous != "I" and following.nominal and not following.closed:
                return "J"
            if previous == "D" or text == "home":
                return "N"
        if (
            text in words.PLACES
            and following.text != "of"
            and (following.closed in ("I", "X", "C", "S", ".") or following.text in ("next", "close"))
        ):
            return "R"
        return word.closed

    def _verb_after_noun(self, word: Word, following: Word, after: Word, previous: str, before: str) -> str:
        """Return the verb tag of an open-class word that follows a noun, or "" where it continues the noun phrase."""
        thing = word.thing
        if word.text in words.STANDING_FOR and following.text == "of":
            return ""  # "night shot of"
        if word.ing and word.text not in words.THINGS:
            event = word.text in words.EVENTS and previous == "N" and following.closed != "D"
            return "" if event else "VG"
        if word.past and (not thing or word.past >= thing):
            if following.nominal and not following.closed:
                if word.text in words.COMPOUND_PARTICIPLES:
                    return ""
                if previous == "N" and (self.has_verb or self.governed):
                    return ""
            if word.text not in words.UNCHANGED or following.closed == "I":
                return "VD"
        if self.has_verb:
            return ""
        if previous == "P":
            return "VZ" if word.third else "V" if word.verb and word.verb >= thing - 2 else ""
        slack = 4 if following.closed == "D" else 0
        if self.determined:
            slack = {"D": 6, "I": 4}.get(following.closed, 2)
        strong = word.third >= thing - slack
        strong = (
            strong
            and not (following.closed == "C" and after.nominal and not after.third)
            and (not self.plural or self.collective or word.third > thing)
        )
        if self.governed and following.closed in (".", "X") and word.third < thing + (previous == "N"):
            strong = False
        if word.third and strong and (following.opens or following.nominal or following.ing):
            if previous == "N" and (self.determined or not self.governed or word.third >= thing):
                return "VZ"
            slack = 4 if following.closed == "D" else 0 if following.opens else -1
            if previous == "NS" and (self.governed or self.collective) and word.third >= thing - slack:
                return "VZ"
        if word.verb and self.plural:
            many = previous == "NS" or before in words.PLURALS or self.several
            if many and not self.governed and word.verb >= thing - (4 if following.closed == "D" else 1):
                return "V"
            sure = following.closed in ("D", "I", "R", "P") and word.verb >= thing - 1 and (many or not self.governed)
            if sure or following is not END and word.verb > thing + (-1 if many else 1):
                return "V"
        return ""

    def _noun_after_noun(self, word: Word, following: Word) -> str:
        """Return the tag of an open-class word that follows a noun and is no verb."""
        thing = word.thing
        if word.adverb > max(thing, word.adjective):
            return "R"
        if word.adjective >= 3 and word.adjective > thing and (following.closed or following.nominal):
            return "J"
        if word.past and following.nominal:
            return "J"
        if thing:
            if word.adjective >= thing and following.nominal:
                return "J"
            return "NS" if word.plural > word.noun else "N"
        if word.adjective:
            return "J"
        return "VZ" if word.third else "VD" if word.past else "V" if word.verb else "R"

    def _verb_elsewhere(self, word: Word, following: Word, previous: str, before: str) -> str:
        """Return the verb tag of an open-class word that does not follow a noun, or ""."""
        thing = word.thing
        if word.text in words.STANDING_FOR and following.text == "of":
            return ""
        anchor = next((tag for tag in reversed(self.tags) if tag != "R"), "X")  # the last tag that is no adverb
        if anchor in ("M", "T") and word.verb:
            return "V"
        if len(self.tags) == self.tags.count("R"):  # the caption begins: "walks the dog", "add sugar"
            determined = following.closed == "D" and following.text != "'s"
            if word.text in words.POINTERS and following.closed or word.text in words.UNCHANGED and determined:
                return "V"
            if word.third and determined:
                return "VZ"
            sure = word.verb > max(thing + 2, word.adjective) and (following.closed or word.verb > thing + 4)
            if sure or word.verb >= max(thing - 2, 1) and determined:
                return "V"
        if word.ing and word.text not in words.THINGS:
            return self._ing(word, following, previous, before)
        if word.past and (word.past >= thing or previous in ("B", "H") and word.past >= thing - 2):
            if anchor in ("B", "H", "W") and not (anchor == "B" and following.nominal and previous != "B"):
                return "VD"
            if previous == "R" and not following.nominal:
                return "VD"
            if previous in ("C", "X") and self.has_verb and following.closed in ("D", "P"):
                return "VD"
            if not following.nominal and not following.ing and not following.past and previous not in ("D", "J", "I"):
                return "VD"
        if before in LEADING and not self.has_verb and not self.plural and word.third > thing and following.opens:
            return "VZ"
        if anchor == "W" and (word.third or word.verb) and max(word.third, word.verb) >= thing - 2:
            return "VZ" if word.third else "V"
        if previous in ("C", "X", "R") and following is not END:
            slack = 2 if following.closed in ("D", "I", "P") or previous == "R" and following.opens else 0
            due = self.has_verb or previous == "R" or self.plural is False and following.closed == "D"
            if word.third and word.third >= thing - slack and due:
                return "VZ"
            if word.verb and self.plural and self.has_verb and word.verb > thing and following.opens:
                return "V"
            if word.verb and self.plural and previous == "R" and word.verb >= thing:
                return "V"
        return ""

    def _ing(self, word: Word, following: Word, previous: str, before: str) -> str:
        """Return the tag of an -ing form that does not follow a noun: verb, modifier ("running water") or noun."""
        if previous in ("D", "J"):
            if following.nominal or following.ing or following.past:
                return "J"
            return "N" if word.noun or previous == "D" else "VG"
        if previous in (*VERBS, "H") and following.nominal and word.noun and before not in words.CATENATIVES:
            return "J"
        if previous == "I" and following.nominal:
            return "J" if before in words.SPOTS or word.noun and before not in ("by", "for", "after") else "VG"
        if not self.tags and following.nominal and (word.noun or word.adjective) and not following.opens:
            return "J"
        return "VG"

    def _in_phrase(self, word: Word, following: Word, after: Word, previous: str) -> str:
        """Return the tag of an open-class word where a noun phrase is due or open."""
        thing = word.thing
        if word.past and word.past >= thing:
            return "J" if following.nominal or following.ing or following.past or word.adjective else "VD"
        more = following.nominal or following.past and after.nominal and not after.closed
        if following.ing and following.text not in words.THINGS:
            inside = previous in ("D", "J") and following.noun and after.nominal and not after.closed
            more = word.adjective > thing + 2 or not thing or inside
        if word.adverb > max(thing, word.adjective) and not (word.adjective and more):
            return "R"
        if word.adjective and word.adjective >= thing - 3:
            listed = following.closed in ("C", "X") and after.adjective and after.adjective >= after.thing - 3
            verb_next = following.third > following.thing + 1 and after.closed in ("D", "I") and previous == "D"
            if previous == "C" and self.tags[-2:-1] and self.tags[-2] in NOUNS and word.adjective <= thing:
                more = more and following.thing > following.third
            if more and not (verb_next and thing >= word.adjective - 1) or listed:
                return "J"
            if not thing or previous in ("B", "R") and word.adjective >= thing - 2:
                return "J"
            if thing < word.adjective - 2 and previous not in ("D", "J"):
                return "J"
        if thing:
            return "NS" if word.plural > word.noun else "N"
        return "VZ" if word.third else "V" if word.verb else "R" if word.adverb else "J" if word.adjective else "N"


def tag(tokens: list[str]) -> list[str]:
    """Return one part-of-speech tag for each token of a caption.

    Example:
        >>> tag("a brown dog runs on grass".split())
        ['D', 'J', 'N', 'VZ', 'I', 'N']
    """
    return _Tagger(tokens).run()
