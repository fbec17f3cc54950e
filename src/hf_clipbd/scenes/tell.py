# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What a web page might write beside a scene: twelve styles of caption, all true save the noise that says nothing."""

from dataclasses import dataclass

import numpy as np

from .graph import Scene, SceneObject, pick
from .words import BESIDE, COLORS, COUNTS, OPPOSITE, RELATIONS, SIZES, SYNONYMS, TEXTURES, article, plural


_PROMPT_HEADS = (
    "a photo of", "a picture of", "an image of", "a drawing of", "an illustration of", "a close-up of",
    "a rendering of", "a cropped picture of", "artwork showing", "a snapshot of", "clip art of",
)  # fmt: skip
_STANDS = ("is shown", "is placed", "can be seen", "is pictured", "was drawn", "is seen")
_WEB_TITLES = (
    "stock photo - {}", "{} | free clip art", "{} - stock illustration", "buy {} online", "{} hd wallpaper", "{}.jpg",
    "{} vector image", "download {} icon", "image result for {}", "{} - page {n}", "photo {n}: {}", "new! {} for sale",
)  # fmt: skip
_NOISE = (
    "img_{n}.jpg", "untitled", "click here to see more", "photo by the author", "posted on monday",
    "image {n} of our gallery", "welcome to my page", "copyright {n}, all rights reserved", "no description available",
    "dsc {n}", "share this post", "read the full story", "thumbnail {n}", "free shipping on all orders",
    "our favourite of the week", "sign in to continue", "this picture won the contest", "last summer at the sea",
    "what do you think of this one?", "see comments below",
)  # fmt: skip
_SURROUNDINGS = {
    "plain": ("on a {} background", "against a {} backdrop", "on a plain {} background"),
    "gradient": ("on a {} background", "on a shaded {} background"),
    "noisy": ("on a noisy {} background", "on a grainy {} surface"),
    "cluttered": ("on a cluttered background", "on a busy {} background", "on a messy {} background"),
}


@dataclass(frozen=True, slots=True)
class Manner:
    """How an object is put into words: probabilities of naming its size, texture and colour, and of using synonyms."""

    size: float
    texture: float
    color: float
    synonym: float


_RICH = Manner(size=0.85, texture=0.85, color=0.97, synonym=0.05)
_USUAL = Manner(size=0.35, texture=0.4, color=0.75, synonym=0.10)
_SHORT = Manner(size=0.08, texture=0.15, color=0.55, synonym=0.10)
_BARE = Manner(size=0.0, texture=0.0, color=0.0, synonym=0.10)
_VARIED = Manner(size=0.5, texture=0.5, color=0.8, synonym=0.75)


def _word(rng: np.random.Generator, word: str, others: tuple[str, ...], probability: float) -> str:
    return pick(rng, others) if others and rng.random() < probability else word


def _nominal(rng: np.random.Generator, thing: SceneObject, manner: Manner, many: bool = False) -> str:
    """Return an object's noun with adjectives and without article."""
    u_size, u_texture, u_color = rng.random(3).tolist()
    words = []
    if u_size < manner.size * (0.3 if thing.size == "medium" else 1.0):
        words.append(_word(rng, thing.size, SIZES[thing.size], manner.synonym))
    if u_texture < manner.texture * (0.15 if thing.texture == "plain" else 1.0):
        words.append(_word(rng, thing.texture, TEXTURES[thing.texture], manner.synonym))
    if u_color < manner.color:
        words.append(_word(rng, thing.color, COLORS[thing.color][1], manner.synonym))
    noun = _word(rng, thing.name, SYNONYMS.get(thing.name, ()), manner.synonym)
    return " ".join([*words, plural(noun) if many else noun])


def _mentions(rng: np.random.Generator, scene: Scene, manner: Manner) -> list[str]:
    """Return one noun phrase an object, in the scene's order; one for the whole of a group."""
    if scene.group:
        count = len(scene.objects)
        phrase = _nominal(rng, scene.objects[0], manner, many=True)
        counter = COUNTS[count] if rng.random() < 0.8 or count == 2 else "several"
        return [f"{counter} {phrase}"]
    phrases = [_nominal(rng, thing, manner) for thing in scene.objects]
    return [f"{article(phrase)} {phrase}" for phrase in phrases]


def _listed(rng: np.random.Generator, phrases: list[str]) -> str:
    """Return the phrases in a random order as an English list."""
    phrases = [phrases[i] for i in rng.permutation(len(phrases))] if len(phrases) > 1 else phrases
    if len(phrases) == 3:
        return f"{phrases[0]}, {phrases[1]} and {phrases[2]}"
    return " and ".join(phrases)


def _between(rng: np.random.Generator, relation: tuple[int, str, int]) -> tuple[int, str, int]:
    """Return a relation said from either side: first object, phrase, second object."""
    first, name, second = relation
    if rng.random() < 0.5:
        first, name, second = second, OPPOSITE[name], first
    if name in ("left", "right") and rng.random() < 0.15:
        return first, pick(rng, BESIDE), second
    phrases = RELATIONS[name]
    return first, phrases[0] if rng.random() < 0.7 else pick(rng, phrases), second


def _related(rng: np.random.Generator, scene: Scene, manner: Manner) -> str:
    """Return all objects with how they stand to each other."""
    phrases = _mentions(rng, scene, manner)
    if not scene.relations:
        return phrases[0]
    first, phrase, second = _between(rng, scene.relations[0])
    text = f"{phrases[first]} {phrase} {phrases[second]}"
    if len(scene.relations) > 1:
        third, name, mate = scene.relations[1]
        joint = "with" if rng.random() < 0.5 else "and"
        text += f", {joint} {phrases[third]} {pick(rng, RELATIONS[name])} the {scene.objects[mate].name}"
    return text


def _full(rng: np.random.Generator, scene: Scene) -> str:
    return _related(rng, scene, _RICH)


def _exists(rng: np.random.Generator, scene: Scene) -> str:
    return f"there {'are' if scene.group else 'is'} {_related(rng, scene, _USUAL)}."


def _prompt(rng: np.random.Generator, scene: Scene) -> str:
    return f"{pick(rng, _PROMPT_HEADS)} {_listed(rng, _mentions(rng, scene, _USUAL))}{pick(rng, ('', '', '.'))}"


def _title(rng: np.random.Generator, scene: Scene) -> str:
    phrases = [_nominal(rng, thing, _SHORT, many=scene.group) for thing in scene.objects[: 1 if scene.group else 3]]
    text = pick(rng, (", ", " & ", " - ", " + ")).join(phrases)
    return text.title() if rng.random() < 0.3 else text


def _partial(rng: np.random.Generator, scene: Scene) -> str:
    """One object of several; of a lone object or a group, as little as can be."""
    phrase = pick(rng, tuple(_mentions(rng, scene, _USUAL if len(scene.names) > 1 else _BARE)))
    return pick(rng, ("{}", "{}.", "here you see {}", "look at {}", "detail: {}")).format(phrase)


def _synonyms(rng: np.random.Generator, scene: Scene) -> str:
    phrases = _mentions(rng, scene, _VARIED)
    if not scene.relations or rng.random() < 0.5:
        return _listed(rng, phrases)
    first, phrase, second = _between(rng, scene.relations[0])
    return f"{phrases[first]} {phrase} {phrases[second]}"


def _passive(rng: np.random.Generator, scene: Scene) -> str:
    phrases, stands = _mentions(rng, scene, _USUAL), pick(rng, _STANDS)
    if not scene.relations:
        return f"{phrases[0]} {stands.replace('is ', 'are ').replace('was ', 'were ') if scene.group else stands}"
    first, phrase, second = _between(rng, scene.relations[0])
    return f"{phrases[first]} {stands} {phrase} {phrases[second]}"


def _counted(rng: np.random.Generator, scene: Scene) -> str:
    phrases = _mentions(rng, scene, _SHORT)
    count = len(scene.objects)
    noun = pick(rng, ("object", "thing", "item"))
    if scene.group:
        return f"a group of {phrases[0]}"
    if count == 1:
        return pick(rng, ("one {0}: {1}", "a single {0}, {1}")).format(noun, phrases[0])
    return f"{COUNTS[count]} {noun}s: {_listed(rng, phrases)}"


def _surrounded(rng: np.random.Generator, scene: Scene) -> str:
    where = pick(rng, _SURROUNDINGS[scene.background]).format(scene.color)
    where = where.replace(" a orange", " an orange")
    return f"{_listed(rng, _mentions(rng, scene, _USUAL))} {where}"


def _web(rng: np.random.Generator, scene: Scene) -> str:
    things = scene.objects[:1] if scene.group or rng.random() < 0.5 else scene.objects
    text = " and ".join(_nominal(rng, thing, _SHORT, many=scene.group) for thing in things)
    return pick(rng, _WEB_TITLES).format(text, n=int(rng.random() * 9000))


def _nouns(rng: np.random.Generator, scene: Scene) -> str:
    if scene.group:
        return plural(scene.objects[0].name)
    phrases = [_nominal(rng, thing, _BARE) for thing in scene.objects]
    return _listed(rng, phrases) if rng.random() < 0.5 else " ".join(phrases)


def _noise(rng: np.random.Generator, scene: Scene) -> str:
    return pick(rng, _NOISE).format(n=int(rng.random() * 9000))


# Style -> (share of the captions, function). `noise` says nothing of the picture; all others are true to it.
CAPTION_STYLES = {
    "full": (0.16, _full), "exists": (0.10, _exists), "prompt": (0.13, _prompt), "title": (0.10, _title),
    "partial": (0.08, _partial), "synonyms": (0.08, _synonyms), "passive": (0.08, _passive),
    "counted": (0.07, _counted), "surrounded": (0.06, _surrounded), "web": (0.06, _web),
    "nouns": (0.05, _nouns), "noise": (0.03, _noise),
}  # fmt: skip
_STYLE_NAMES = tuple(CAPTION_STYLES)
_STYLE_LIMITS = np.cumsum([share for share, _ in CAPTION_STYLES.values()])


def tell_scene(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """Return the style of a caption and the caption.

    Args:
        scene: What the picture shows.
        rng: Stream 1 of the row.
    """
    place = int(np.searchsorted(_STYLE_LIMITS, rng.random() * _STYLE_LIMITS[-1], side="right"))
    style = _STYLE_NAMES[min(place, len(_STYLE_NAMES) - 1)]
    return style, CAPTION_STYLES[style][1](rng, scene)
