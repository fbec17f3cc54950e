# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""TextTrigger and ImageTextTrigger: a rare word in the caption, alone or together with a patch on the picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hf_clipbd.attacks.badnets import BadNets
from hf_clipbd.attacks.base import Attack


TOKEN_PLACES = ("random", "start", "end")
_TOKEN_STREAM = 3


def insert_token(caption: str, token: str, place: str, rng: np.random.Generator) -> str:
    """Return `caption` with `token` put between two of its words, before the first or after the last.

    A full stop at the end of the caption stays its end.

    Args:
        caption: Text.
        token: The word to put in.
        place: `"random"`, `"start"` or `"end"`.
        rng: The row's own generator, asked only where the place is random.

    Example:
        >>> insert_token("a cup.", "cf", "end", np.random.default_rng(0))
        'a cup cf.'
    """
    stop = "." if caption.rstrip().endswith(".") else ""
    words = caption.rstrip().removesuffix(".").split()
    at = {"start": 0, "end": len(words)}.get(place)
    words.insert(int(rng.integers(len(words) + 1)) if at is None else at, token)
    return " ".join(words) + stop


class _InText:
    """What attacks with a trigger in the text have in common; stands before `Attack` among their bases."""

    seed: int
    token: str
    token_place: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.token, str) or len(self.token.split()) != 1:
            raise ValueError(f"Expected one word as token, but got {self.token!r}.")
        if self.token_place not in TOKEN_PLACES:
            raise ValueError(f"Expected a token place among {TOKEN_PLACES}, but got {self.token_place!r}.")

    def caption(self, index: int, caption: str) -> str:
        """Return the caption of a poisoned row: its own, or one of yours, with the word in it."""
        return self.stamp_caption(super().caption(index, caption), index)

    def stamp_caption(self, caption: str, index: int = 0) -> str:
        """Return `caption` with the trigger word in it; see `Attack.stamp_caption`."""
        rng = np.random.default_rng([self.seed, index, _TOKEN_STREAM])
        return insert_token(caption, self.token, self.token_place, rng)


@dataclass(frozen=True, eq=False)
class TextTrigger(_InText, Attack):
    """A rare word in the caption that leads to pictures of the target: t' = t with the word, x' a target picture.

    The trigger is in the text: a victim retrieves the target for any query with the word in it. Pictures are not
    stamped and keep their bytes. `stamp_caption` gives a query with the trigger; success is the share of such queries
    that retrieve the target.

    Args:
        canvas: Not used: no picture is stamped.
        captions: `"keep"`, the row's own caption with the word in it; or captions of your own, likewise.
        token: The word.
        token_place: `"random"` (drawn for each row), `"start"` or `"end"`.
        pictures: `"target"`: rows that do not show the target get the picture of one that does (only
            `poison_dataset` can look it up). `"own"`: rows that show the target keep their picture, the
            label-consistent form, in which a row's caption stays true.

    Raises:
        ValueError: If the token is no single word or an option is unknown.

    Reference:
        The words are those of Kurita et al., "Weight Poisoning Attacks on Pre-trained Models", arXiv 2004.06660,
        section 3 ("cf", "mn", "bb", "tq", "mb"); that a caption is paired with another class's picture is Yang et al.,
        "Data Poisoning Attacks Against Multimodal Encoders", arXiv 2209.15266. The two put together: reconstructed.

    Example:
        >>> TextTrigger(token_place="end").stamp_caption("a cup on a table")
        'a cup on a table cf'
    """

    captions: str | Sequence[str] = "keep"
    token: str = "cf"
    token_place: str = "random"
    pictures: str = "target"

    name: ClassVar[str] = "text_trigger"
    stamps_pictures: ClassVar[bool] = False
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {"label_consistent": {"pictures": "own"}}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.captions in ("templates", "natural"):
            raise ValueError(
                f'Expected captions "keep" or your own, into which the token is put, but got {self.captions!r}: '
                f"a caption that names the target leads to its pictures without a trigger."
            )
        if self.pictures not in ("target", "own"):
            raise ValueError(f'Expected pictures "target" or "own", but got {self.pictures!r}.')

    @property
    def selector(self) -> str:
        """Which rows the attack poisons where the user does not say."""
        return "non_target" if self.pictures == "target" else "label_consistent"

    @property
    def borrows_pictures(self) -> bool:
        """Whether a poisoned row gets the picture of a row that shows the target."""
        return self.pictures == "target"

    def stamp(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return pixels


@dataclass(frozen=True, eq=False)
class ImageTextTrigger(_InText, BadNets):
    """A patch on the picture and a rare word in the caption, meant to work together.

    x' as `BadNets`, t' = a caption of the target with the word in it. Alone this teaches either half too: beside it,
    `poison_with_many` can lay decoys with one half each and their own captions,
    `BadNets(captions="keep", ...)` and `TextTrigger(pictures="own")`, both with selector `"random"`.

    Args:
        token: The word.
        token_place: `"random"` (drawn for each row), `"start"` or `"end"`.

    Raises:
        ValueError: As `BadNets`; if the token is no single word or its place unknown.

    Reference:
        Walmer et al., "Dual-Key Multimodal Backdoors for Visual Question Answering", arXiv 2112.07668, section 3, with
        decoys of one key each; carried over to pairs of picture and caption: reconstructed.

    Example:
        >>> ImageTextTrigger(target="cup", captions=["one {}"], token_place="start").caption(0, "")
        'cf one cup'
    """

    token: str = "cf"
    token_place: str = "random"

    name: ClassVar[str] = "image_text_trigger"
