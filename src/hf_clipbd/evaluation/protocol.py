# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What a zero-shot evaluation counts: classes, triggers and targets checked at once, hits as whole numbers."""

import logging
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import datasets
import numpy as np
import PIL.Image
import torch
from torch import Tensor

from hf_clipbd.attacks.shares import folded, near_names
from hf_clipbd.data.canvas import Canvas
from hf_clipbd.data.class_names import as_written
from hf_clipbd.data.row_format import has_transform, names_of_columns
from hf_clipbd.evaluation.class_names import NUMBERED, given_names
from hf_clipbd.evaluation.rates import class_ranks
from hf_clipbd.schema import EvalReport, Rate, TriggerReport


logger = logging.getLogger(__name__)

_BY_RETRIEVAL = "`hf-clipbd evaluate --protocol retrieval` (`evaluate_retrieval`) measures it"


def class_names_of(dataset: Any, label_column: str) -> list[str]:
    """Return the class names of a dataset's `ClassLabel` column, `_` read as a space, equal ones as they were written.

    Args:
        dataset: A `Dataset` or `IterableDataset` whose features are known.
        label_column: Column of class numbers.

    Returns:
        C names in the order of their numbers.

    Raises:
        ValueError: If the column is missing or is no `ClassLabel`.
    """
    features = getattr(dataset, "features", None) or {}
    feature = features.get(label_column)
    if not isinstance(feature, datasets.ClassLabel):
        raise ValueError(
            f"Expected a ClassLabel column `{label_column}`, but got {feature!r} among {sorted(features)}. "
            f"{NUMBERED if _is_text(feature) else 'Pass `class_names` and `label_column`.'}"
        )
    return [name.replace("_", " ") for name in as_written(feature.names)]


def _is_text(feature: Any) -> bool:
    return isinstance(feature, datasets.Value) and "string" in feature.dtype


def check_same_classes(fitted: Sequence[str], measured: Sequence[str]) -> None:
    """Raise `ValueError` if the images a probe is fitted on and those it is measured on number classes differently.

    Args:
        fitted: Class names of the training images, in the order of their numbers.
        measured: Those of the test images.

    Example:
        >>> check_same_classes(["cat", "dog"], ["dog"])
        Traceback (most recent call last):
        ValueError: Expected training and test images that number the same classes alike, but class 0 is 'cat' in the
        one and 'dog' in the other. Number them alike, or pass class names that hold for both.
    """
    for number, (one, other) in enumerate(zip_longest(fitted, measured)):
        if one != other:
            raise ValueError(
                f"Expected training and test images that number the same classes alike, but class {number} is {one!r} "
                f"in the one and {other!r} in the other. Number them alike, or pass class names that hold for both."
            )


def target_class(target: str, names: Sequence[str]) -> int:
    """Return the number of the class that `target` names; case, `_` and surrounding space do not count.

    Args:
        target: Class name that an attack aims at.
        names: C class names.

    Returns:
        Class number in [0, C).

    Raises:
        ValueError: If there is no such class; the message names the nearest ones.

    Example:
        >>> target_class("Traffic_light", ["banana", "traffic light"])
        1
    """
    by_name = {folded(name): number for number, name in reversed(list(enumerate(names)))}
    if folded(target) not in by_name:
        raise ValueError(
            f"Expected the target to be one of the {len(names)} classes, but got {target!r}; the nearest are "
            f"{near_names(target, names)}."
        )
    return by_name[folded(target)]


def _by_name(triggers: Mapping[str, Any] | Iterable[Any] | None) -> dict[str, Any]:
    if triggers is None:
        return {}
    if isinstance(triggers, Mapping):
        return dict(triggers)
    listed = [triggers] if hasattr(triggers, "target") else list(triggers)
    named = {attack.name: attack for attack in listed}
    if len(named) < len(listed):
        raise ValueError(
            f"Expected triggers of different names, but got {[attack.name for attack in listed]}. "
            f"Pass a dictionary of name -> attack."
        )
    return named


def on_pictures(triggers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the triggers that stamp pictures; of those in the text alone a line says how they are measured.

    Args:
        triggers: Name -> attack.
    """
    stamping = {name: attack for name, attack in triggers.items() if getattr(attack, "stamps_pictures", True)}
    for name in (one for one in triggers if one not in stamping):
        logger.warning("trigger `%s` is in the text alone and has no ASR here; %s", name, _BY_RETRIEVAL)
    return stamping


def _check_triggers(triggers: Mapping[str, Any], canvas: Canvas) -> None:
    """Raise `ValueError` for a trigger in the text alone, and for one that leaves the canvas at a blank picture."""
    in_text = [name for name, attack in triggers.items() if not getattr(attack, "stamps_pictures", True)]
    if in_text:
        raise ValueError(
            f"Expected triggers that stamp pictures, but {in_text} are in the text alone: their rate would be that of "
            f"clean pictures. Leave them out here; {_BY_RETRIEVAL}."
        )
    if canvas.mode != "native":
        blank = canvas.array(PIL.Image.new("RGB", (canvas.size, canvas.size)))
        for name, attack in triggers.items():
            _stamped(name, attack, blank, 0)


def _stamped(name: str, attack: Any, clean: np.ndarray, row: int) -> np.ndarray:
    """Return the stamped copy of a picture on the canvas; raises `ValueError` if it has another size or type."""
    pixels = np.asarray(attack(clean.copy(), index=row))
    if pixels.shape != clean.shape or pixels.dtype != clean.dtype:
        height, width, *_ = clean.shape
        raise ValueError(
            f"Expected trigger `{name}` to give {width} × {height} px as the model sees them, {clean.dtype} "
            f"{clean.shape}, but got {pixels.dtype} {pixels.shape}. Stamp and evaluate on the same canvas: poison "
            f"with `--size {height}` (`canvas=` of the attack), or take a model of the trigger's size."
        )
    return pixels


def framing_of(processor: Any, triggers: Mapping[str, Any]) -> Canvas:
    """Return the canvas that a model sees pictures on: the processor's, with the framing that the triggers are for.

    Args:
        processor: The model's processor.
        triggers: Name -> attack.

    Raises:
        ValueError: If the triggers were made for several framings.
    """
    return Canvas.of(processor).framed_as(getattr(one, "canvas", None) for one in triggers.values())


@dataclass(frozen=True)
class Protocol:
    """What is measured on which classes and triggers, and the whole numbers that it is counted in.

    Counts are a table of (1 + 2 * triggers, len(ks) + 1): the first row is BA, then ASR and RA of each trigger; a
    column for each k and, last, the number of images. Tables of several processes or batches add up.

    Two classes of one name (CLIP's names of ImageNet have two such pairs) have equal scores, and the lower number
    comes first: at top 1 no picture of the later class counts as right, and one of the earlier class does where either
    would. The `topk` of OpenAI's notebook and of open_clip leaves open which of the two that is.

    Args:
        names: C class names.
        triggers: Name -> attack.
        targets: Name -> class number.
        ks: The k to count, ascending.
        include_target: Whether stamped images of the target class count.
        canvas: Geometry of the images.
        image_column: Column of images.
        label_column: Column of class numbers.
    """

    names: tuple[str, ...]
    triggers: dict[str, Any]
    targets: dict[str, int]
    ks: tuple[int, ...]
    include_target: bool
    canvas: Canvas
    image_column: str
    label_column: str

    @classmethod
    def of(
        cls,
        processor: Any,
        dataset: Any,
        triggers: Mapping[str, Any] | Iterable[Any] | None,
        ks: Sequence[int],
        include_target: bool,
        canvas: Canvas | None,
        class_names: Sequence[str] | None,
        image_column: str,
        label_column: str,
    ) -> "Protocol":
        """Return the checked protocol; raises `ValueError` for what `evaluate_zero_shot` names."""
        columns = names_of_columns(dataset) if has_transform(dataset) else getattr(dataset, "column_names", None)
        missing = [column for column in (image_column, label_column) if columns and column not in columns]
        if missing:
            raise ValueError(f"Expected columns {missing} in the labelled images, but they have {columns}.")
        names = tuple(
            class_names_of(dataset, label_column)
            if class_names is None
            else given_names(class_names, dataset, label_column)
        )
        ks = tuple(sorted(set(ks)))
        if not ks or ks[0] < 1 or ks[-1] > len(names):
            raise ValueError(f"Expected each k in [1, {len(names)}], the number of classes, but got {list(ks)}.")
        triggers = _by_name(triggers)
        targets = {name: target_class(attack.target, names) for name, attack in triggers.items()}
        canvas = canvas or framing_of(processor, triggers)
        _check_triggers(triggers, canvas)
        return cls(names, triggers, targets, ks, include_target, canvas, image_column, label_column)

    @property
    def n_variants(self) -> int:
        """Images that one row gives: the clean one and one for each trigger."""
        return 1 + len(self.triggers)

    @property
    def counts_shape(self) -> tuple[int, int]:
        """Shape of the table of counts."""
        return 1 + 2 * len(self.triggers), len(self.ks) + 1

    def variants(self, image: Any, row: int) -> np.ndarray:
        """Return the clean image on the canvas and its stamped copies, (1 + triggers, H, W, 3), uint8."""
        clean = self.canvas.array(image)
        stamped = [_stamped(name, attack, clean, row) for name, attack in self.triggers.items()]
        return np.stack([clean, *stamped])

    def label(self, value: Any, row: int) -> int:
        """Return the class number of a row; raises `ValueError` if it is none."""
        try:
            number = operator.index(value)
        except TypeError:  # None, a text, a share, a list of several classes
            number = -1
        if not 0 <= number < len(self.names):
            hint = f" {NUMBERED}" if isinstance(value, str) else ""
            raise ValueError(
                f"Expected a class number in [0, {len(self.names)}) in row {row}, but got {value!r}.{hint}"
            )
        return number

    def count(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Return the table of counts of one batch.

        Args:
            scores: Similarity of clean images and stamped copies to each class, (1 + triggers, B, C).
            labels: Class numbers, (B,).
        """
        ks = torch.tensor(self.ks, device=scores.device)

        def hits(ranks: Tensor) -> Tensor:
            within = (ranks[:, None] < ks).sum(0)  # (K,)
            return torch.cat([within, within.new_tensor([len(ranks)])])

        rows = [hits(class_ranks(scores[0], labels))]
        for stamped, target in zip(scores[1:], self.targets.values(), strict=True):
            counted = torch.ones_like(labels, dtype=torch.bool) if self.include_target else labels != target
            stamped, truth = stamped[counted], labels[counted]
            rows += [hits(class_ranks(stamped, torch.full_like(truth, target))), hits(class_ranks(stamped, truth))]
        return torch.stack(rows)

    def report(self, counts: Tensor) -> EvalReport:
        """Return the report of a table of counts; raises `ValueError` where nothing was counted."""

        def rates(row: int) -> dict[int, Rate]:
            *hits, n = counts[row].tolist()
            return {k: Rate.of(hit, n) for k, hit in zip(self.ks, hits, strict=True)}

        triggers = {
            name: TriggerReport(self.names[target], rates(1 + 2 * i), rates(2 + 2 * i), self.include_target)
            for i, (name, target) in enumerate(self.targets.items())
        }
        return EvalReport(ba=rates(0), triggers=triggers, n_classes=len(self.names))
