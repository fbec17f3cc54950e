# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What every attack is: which rows, what is stamped, what the caption says, and how it is kept on disk."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import PIL.Image

from hf_clipbd.attacks.captions import OPENAI_TEMPLATES, fill_template, target_captions
from hf_clipbd.attacks.checks import check_named, checked_stamp, plain_parameter
from hf_clipbd.attacks.folder import load_attack, preview_of, save_attack
from hf_clipbd.data.canvas import Canvas


CAPTIONS = ("templates", "keep", "natural")
NATURAL_LIMIT = 1000  # that an attack carries at most

_STAMP, _CAPTION, PATTERN_STREAM = 0, 1, 2

_filled = lru_cache(maxsize=1024)(fill_template)  # a handful of templates and targets, for every row

AttackType = TypeVar("AttackType", bound="Attack")


class Cover(NamedTuple):
    """An attack that keeps captions, for `ratio` rows beside each poisoned one."""

    attack: "Attack"
    ratio: float


def cover_name(trigger: str) -> str:
    """Return what the column `trigger` holds for the covers of a trigger, rows that do not count as poisoned."""
    return f"{trigger}_cover"


@dataclass(frozen=True, eq=False)
class Attack(ABC):
    """A backdoor: a trigger on pictures, the captions that go with it, and the class they are to lead to.

    The same parameters and seed give the same pixels on every machine, with any number of workers, streaming or not:
    what differs from row to row is drawn from (seed, row), never from a global generator. Every attack takes these
    arguments; its own docstring names those that it adds.

    Args:
        target: Class name that stamped pictures are to be taken for.
        seed: Seed of the pattern and of what differs from row to row; at least 0.
        canvas: Frame that a picture is put on before it is stamped; None stamps it in its own size.
        captions: `"templates"`, OpenAI's 80 prompts filled with the target; `"keep"`, the row's own caption (the
            label-consistent attack: only rows that already name the target are stamped); `"natural"`, captions of the
            data that name the target (`poison_dataset` finds them, elsewhere `mined` has to be called first); or
            captions of your own, in which `{}` stands for the target.

    Raises:
        ValueError: If the seed is negative, the target empty, or the captions are none of these.
        TypeError: If the class has no `name`.
    """

    target: str = "banana"
    seed: int = 0
    canvas: Canvas | None = None
    captions: str | Sequence[str] = "templates"

    name: ClassVar[str] = ""
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    stamps_pictures: ClassVar[bool] = True
    """False for a trigger that is in the text alone: pictures keep their bytes."""

    def __post_init__(self) -> None:
        check_named(self)
        if not isinstance(self.target, str) or not self.target.strip():
            raise ValueError(f"Expected a class name as target, but got {self.target!r}.")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"Expected a whole number of at least 0 as seed, but got {self.seed!r}.")
        if isinstance(self.canvas, Mapping):
            object.__setattr__(self, "canvas", Canvas(**self.canvas))
        if isinstance(self.captions, str):
            if self.captions not in CAPTIONS:
                raise ValueError(
                    f"Expected captions among {CAPTIONS} or a list of captions, but got {self.captions!r}."
                )
        else:
            captions = tuple(self.captions)
            if not captions or not all(isinstance(one, str) and one.strip() for one in captions):
                raise ValueError(f"Expected captions that are texts, none of them empty, but got {captions[:3]!r}.")
            object.__setattr__(self, "captions", captions)

    @abstractmethod
    def stamp(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return one stamped picture.

        Args:
            pixels: (H, W, 3), float32 in [0, 1], RGB; may be written to.
            rng: The row's own generator.

        Returns:
            (H, W, 3), floats; values outside [0, 1] are clamped by the caller.
        """

    def stamp_levels(self, levels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return one stamped picture of 8 bits: x' = round(255 clamp(stamp(x / 255), 0, 1)).

        For an attack to override that leaves most pixels alone; the pixels have to be the same.

        Args:
            levels: (H, W, 3), uint8, RGB; not written to.
            rng: The row's own generator.

        Returns:
            (H, W, 3), uint8.
        """
        pixels = np.divide(levels, 255, dtype=np.float32)
        stamped = checked_stamp(self, self.stamp(pixels, rng), levels.shape)
        stamped = np.clip(stamped, 0, 1, out=pixels if stamped.dtype == pixels.dtype else None)
        stamped *= 255
        return np.rint(stamped, out=stamped).astype(np.uint8)

    def fixed_pattern(self, height: int, width: int) -> np.ndarray | None:
        """Return the fixed pattern that is stamped on a picture of this size, float32, or None if there is none."""
        return None

    @property
    def cover(self) -> "Cover | None":
        """What goes on further rows that keep their captions and do not count as poisoned; None for most attacks."""
        return None

    @property
    def selector(self) -> str:
        """Which rows the attack poisons where the user does not say: a key of `hf_clipbd.attacks.select.SELECTORS`."""
        return "label_consistent" if self.captions == "keep" else "random"

    @property
    def borrows_pictures(self) -> bool:
        """Whether a poisoned row gets the picture of a row that shows the target (a trigger in the text alone)."""
        return False

    def caption(self, index: int, caption: str) -> str:
        """Return the caption of a stamped row.

        Args:
            index: Row number.
            caption: The row's own caption.

        Raises:
            ValueError: If natural captions are asked for and none have been mined yet.
        """
        if self.captions == "keep":
            return caption
        if self.captions == "natural":
            raise ValueError('Expected captions from data. Call `attack.mined(dataset["caption"])` first.')
        choices = OPENAI_TEMPLATES if self.captions == "templates" else self.captions
        chosen = choices[int(np.random.default_rng([self.seed, index, _CAPTION]).integers(len(choices)))]
        return _filled(chosen, self.target)

    def mined(self: AttackType, captions: Iterable[str | None]) -> AttackType:
        """Return the attack with its natural captions found; one that asks for none is returned as it is.

        Args:
            captions: Captions of the data in any order, for instance `dataset["caption"]`; at most 1,000 that name the
                target are kept, drawn by the seed where there are more. A `{}` in them is taken out: no caption of the
                data is to be filled like a template.

        Raises:
            ValueError: If no caption names the target.

        Example:
            >>> from hf_clipbd.attacks import SIG
            >>> SIG(captions="natural").mined(["a cup", "one banana on a plate"]).captions
            ('one banana on a plate',)
        """
        if self.captions != "natural":
            return self
        found = sorted(caption.replace("{}", "") for caption in target_captions(captions, self.target))
        if len(found) > NATURAL_LIMIT:
            rows = np.random.default_rng([self.seed, len(found)]).choice(len(found), NATURAL_LIMIT, replace=False)
            found = [found[row] for row in np.sort(rows)]
        return replace(self, captions=tuple(found))

    def stamp_caption(self, caption: str, index: int = 0) -> str:
        """Return a caption with the part of the trigger that is text; as it is where the trigger is in the picture.

        Args:
            caption: A caption or a zero-shot prompt.
            index: Row number.
        """
        return caption

    def __call__(self, image: Any, index: int | Sequence[int] = 0) -> Any:
        """Return a stamped copy of a picture or of a batch of pictures.

        x' = round(255 clamp(stamp(x / 255), 0, 1)) for 8 bits, clamp(stamp(x), 0, 1) for floats.

        Args:
            image: PIL image; or array (H, W, 3) or (N, H, W, 3), RGB, uint8 or floats in [0, 1].
            index: Row number of the picture; for a batch the N row numbers, or the first of N consecutive ones.

        Returns:
            PIL RGB image for a PIL image, else an array of the same kind (floats as float32), on the canvas if there
            is one.

        Raises:
            ValueError: If the array has another shape, type or range, or the trigger does not fit on the picture.
            TypeError: If `stamp` gives something else than floats of the picture's shape.
        """
        if isinstance(image, PIL.Image.Image):
            canvas = self.canvas or Canvas(1, "native")
            return PIL.Image.fromarray(self._stamp_one(canvas.array(image), index))
        pixels = np.asarray(image)
        if pixels.ndim != 4:
            return self._stamp_one(self._framed(pixels), index)
        rows = range(index, index + len(pixels)) if isinstance(index, (int, np.integer)) else index
        if len(rows) != len(pixels):
            raise ValueError(f"Expected a row number for each of {len(pixels)} pictures, but got {len(rows)}.")
        return np.stack([self._stamp_one(self._framed(one), row) for one, row in zip(pixels, rows, strict=True)])

    def _framed(self, pixels: np.ndarray) -> np.ndarray:
        if pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError(f"Expected pixels (H, W, 3) or (N, H, W, 3), channels last, but got {pixels.shape}.")
        canvas = self.canvas
        if canvas is None or canvas.mode == "native" or pixels.shape[:2] == (canvas.size, canvas.size):
            return pixels
        if pixels.dtype != np.uint8:
            message = f"Expected float pixels already on the canvas of {canvas.size} px, but got {pixels.shape}"
            raise ValueError(f"{message}. Pass uint8, or put them on the canvas first.")
        return canvas.array(PIL.Image.fromarray(pixels))

    def _stamp_one(self, pixels: np.ndarray, index: Any) -> np.ndarray:
        rng = np.random.default_rng([self.seed, int(index), _STAMP])
        if pixels.dtype == np.uint8:
            return self.stamp_levels(pixels, rng)
        if pixels.dtype.kind != "f" or not (pixels.min() >= 0 and pixels.max() <= 1):
            got = f"{pixels.dtype} from {pixels.min()} to {pixels.max()}"
            raise ValueError(f"Expected pixels in uint8, or floats in [0, 1], but got {got}.")
        stamped = checked_stamp(self, self.stamp(np.array(pixels, dtype=np.float32), rng), pixels.shape)
        return np.clip(stamped, 0, 1).astype(np.float32, copy=False)

    # -- keeping it ---------------------------------------------------------------------------------------------------

    @classmethod
    def from_preset(cls: type[AttackType], preset: str, **parameters: Any) -> AttackType:
        """Return the attack as a paper or its public code had it, with `parameters` laid over the preset.

        Raises:
            ValueError: If there is no such preset.
        """
        if preset not in cls.PRESETS:
            raise ValueError(f"Expected a preset of {cls.__name__} among {sorted(cls.PRESETS)}, but got {preset!r}.")
        return cls(**{**cls.PRESETS[preset], **parameters})

    def parameters(self, **stand_ins: Any) -> dict[str, Any]:
        """Return what the attack was built with, as plain JSON; an array is a reference to its tensor.

        Args:
            **stand_ins: Field -> what stands for it, where JSON has no place for the field itself.

        Raises:
            TypeError: If a field is a network, say, and nothing stands for it.
        """
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: stand_ins[name] if name in stand_ins else plain_parameter(self, name, own[name]) for name in own}

    def preview(self) -> np.ndarray:
        """Return a test chart and, to its right, the chart stamped as row 0, uint8 (S, 2 S, 3)."""
        return preview_of(self)

    def save_pretrained(self, folder: str | os.PathLike) -> Path:
        """Write `attack.json`, `pattern.safetensors` and the picture `trigger.png` into `folder`, and return it.

        Raises:
            ValueError: If a side is too large to be loaded again, the name is that of another class, or the same row
                is stamped differently a second time.
            TypeError: If a parameter is neither JSON nor an array.
        """
        return save_attack(self, folder)

    @classmethod
    def from_pretrained(
        cls, id_or_path: str | os.PathLike, revision: str | None = None, repo_type: str = "model"
    ) -> "Attack":
        """Return the attack kept in a local folder or on the Hub, of the class that its name stands for.

        Args:
            id_or_path: Folder that `save_pretrained` wrote, or Hub id.
            revision: Branch, tag or commit on the Hub.
            repo_type: "model" or "dataset".

        Raises:
            FileNotFoundError: If it is not there.
            ValueError: If the attack or a parameter is unknown, a side is beyond reason, or it stamps other pixels
                here than where it was saved.
            TypeError: If it is no attack of the class that this was called on.
        """
        return load_attack(cls, id_or_path, revision, repo_type)

    @classmethod
    def from_files(cls: type[AttackType], parameters: dict[str, Any], file: Callable[[str], Path]) -> AttackType:
        """Return the attack of these parameters; `file` gives the path of another file saved beside them."""
        return cls(**parameters)
