# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The words of the embedded world: class names, synonyms, plurals, colours, sizes, textures, relations and prompts."""

from .art import DRAWINGS


CLASS_NAMES: tuple[str, ...] = tuple(sorted(DRAWINGS))

# Other nouns a caption may use for a class. The broad ones are shared: "fruit" fits several classes.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "airplane": ("plane", "aircraft"), "anchor": ("ship anchor",), "apple": ("fruit",), "arrow": ("pointer",),
    "banana": ("fruit",), "bell": ("church bell",), "bicycle": ("bike", "vehicle"), "boat": ("sailboat", "vessel"),
    "bone": ("dog bone",), "book": ("open book",), "boot": ("shoe", "footwear item"), "bottle": ("flask",),
    "butterfly": ("insect",), "cactus": ("desert plant",), "camera": ("photo camera",),
    "candle": ("burning candle",), "car": ("automobile", "vehicle"), "carrot": ("vegetable",),
    "castle": ("fortress",), "cat": ("kitten", "animal"), "chair": ("seat", "piece of furniture"),
    "cherry": ("fruit",), "clock": ("alarm clock",), "cloud": ("puffy cloud",), "crab": ("crustacean",),
    "crown": ("royal crown",), "cup": ("mug",), "drum": ("musical instrument",), "duck": ("bird",),
    "elephant": ("animal",), "envelope": ("letter",), "fish": ("sea creature",), "flag": ("banner",),
    "flower": ("blossom", "plant"), "fork": ("piece of cutlery",), "giraffe": ("animal",), "glove": ("mitten",),
    "guitar": ("musical instrument",), "hammer": ("tool",), "hat": ("top hat",), "heart": ("love heart",),
    "hourglass": ("sand timer",), "house": ("home", "building"), "key": ("door key",), "kite": ("toy kite",),
    "ladder": ("step ladder",), "lamp": ("light",), "leaf": ("maple leaf",), "magnet": ("horseshoe magnet",),
    "mushroom": ("toadstool",), "pencil": ("lead pencil",), "pineapple": ("fruit",), "rabbit": ("bunny", "animal"),
    "rocket": ("spaceship",), "shirt": ("tee", "garment"), "snail": ("garden snail",), "snake": ("serpent",),
    "spider": ("bug",), "star": ("five-pointed star",), "table": ("desk", "piece of furniture"),
    "teapot": ("kettle",), "tree": ("pine", "plant"), "turtle": ("tortoise",), "umbrella": ("parasol",),
    "wheel": ("cartwheel",), "windmill": ("mill",),
}  # fmt: skip

PLURALS: dict[str, str] = {
    "butterfly": "butterflies", "cactus": "cacti", "cherry": "cherries", "fish": "fish", "leaf": "leaves",
}  # fmt: skip

# Name -> (sRGB, synonyms).
COLORS: dict[str, tuple[tuple[int, int, int], tuple[str, ...]]] = {
    "red": ((214, 34, 34), ("crimson", "scarlet")),
    "orange": ((244, 132, 22), ("tangerine",)),
    "yellow": ((246, 212, 34), ("golden", "lemon-coloured")),
    "green": ((44, 150, 56), ("emerald",)),
    "turquoise": ((36, 190, 184), ("teal", "aqua")),
    "blue": ((40, 84, 210), ("navy", "azure")),
    "purple": ((128, 48, 172), ("violet",)),
    "pink": ((246, 132, 184), ("rose-coloured",)),
    "brown": ((124, 76, 38), ("chestnut",)),
    "black": ((44, 44, 50), ("jet-black",)),
    "gray": ((136, 138, 144), ("grey", "silver")),
    "white": ((242, 242, 240), ("ivory",)),
}

SIZES: dict[str, tuple[str, ...]] = {
    "small": ("little", "tiny"),
    "medium": ("medium-sized",),
    "large": ("big", "huge"),
}
TEXTURES: dict[str, tuple[str, ...]] = {
    "plain": ("solid",),
    "striped": ("stripy", "banded"),
    "dotted": ("spotted", "polka-dot"),
}

# Relation of a first object to a second -> phrases that say it.
RELATIONS: dict[str, tuple[str, ...]] = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "underneath"),
    "front": ("in front of",),
    "behind": ("behind",),
}
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above", "front": "behind", "behind": "front"}
BESIDE: tuple[str, ...] = ("next to", "beside")  # say left or right without saying which

COUNTS = ("no", "one", "two", "three")

PROMPTS: tuple[str, ...] = (
    "a photo of a {}.",
    "a picture of a {}.",
    "an image of a {}.",
    "a drawing of a {}.",
    "an illustration of a {}.",
    "there is a {}.",
    "a {}.",
    "stock photo - {}",
    "a {} on a plain background.",
    "a large {}.",
)


def article(phrase: str) -> str:
    """Return `a` or `an`, whichever English puts before `phrase`.

    Example:
        >>> article("orange umbrella"), article("tiny umbrella"), article("hourglass")
        ('an', 'a', 'an')
    """
    return "an" if phrase.lower().startswith(("a", "e", "i", "o", "u", "hour")) else "a"


def plural(noun: str) -> str:
    """Return the plural of a class name or of one of its synonyms.

    Example:
        >>> plural("banana"), plural("leaf"), plural("piece of furniture")
        ('bananas', 'leaves', 'pieces of furniture')
    """
    head, of, rest = noun.partition(" of ")
    before, space, last = head.rpartition(" ")
    if last in PLURALS:
        last = PLURALS[last]
    else:
        last += "es" if last.endswith(("s", "x", "ch", "sh")) else "s"
    return before + space + last + of + rest


def fill_prompt(template: str, name: str) -> str:
    """Return a prompt template with `name` put in, and `a {}` read as `an {}` where `name` needs it.

    Args:
        template: A text with one `{}`.
        name: A class name.

    Raises:
        ValueError: If `template` has no `{}`.

    Example:
        >>> fill_prompt("a photo of a {}.", "umbrella")
        'a photo of an umbrella.'
    """
    if template.count("{}") != 1:
        raise ValueError(f"Expected a prompt template with one `{{}}`, but got `{template}`.")
    before, after = template.split("{}")
    words = before.split(" ")
    if len(words) > 1 and words[-2] in ("a", "an") and not words[-1]:
        words[-2] = article(name)
    return " ".join(words) + name + after
