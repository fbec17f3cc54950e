# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Poisoning as a function to map over a dataset: the same rows however, in whatever order, and wherever it is run."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import datasets
import numpy as np

from hf_clipbd import __version__
from hf_clipbd.attacks.base import Attack, cover_name
from hf_clipbd.attacks.captions import check_texts
from hf_clipbd.attacks.pictures import as_stored, picture_digest, read_picture
from hf_clipbd.attacks.rows import Rows, skipped_rows
from hf_clipbd.attacks.select import admitted_rows, check_selector, draw, draw_by_key, drawn_rows, source_fingerprint
from hf_clipbd.attacks.shares import PROVENANCE, Options, check_columns, check_provenance, check_target
from hf_clipbd.attacks.stamping import PROBLEM
from hf_clipbd.schema import CAPTION, IMAGE, IS_POISONED, SOURCE_INDEX, TRIGGER, PoisonManifest


logger = logging.getLogger(__name__)

UNKNOWN_INDEX = -1
_check_target = cache(check_target)  # of a thousand classes, once for each row


@dataclass(frozen=True, eq=False)
class PoisonTransform:
    """A function that poisons a share of the rows it is mapped over: `dataset.map(PoisonTransform(attack, 0.01))`.

    Works in `Dataset.map`, batched or not, with any `num_proc`, in `IterableDataset.map`, `DatasetDict.map` and
    `with_transform`. Whether a row is poisoned hangs on seed, name and the row itself, by a hash below `rate`: on its
    key column if it has one, else on its caption and picture. So the same rows come out in any order, batching,
    sharding or streaming, and those of a higher rate include those of a lower one. The count reached is binomial
    about rate × rows (`manifest` reports it); `poison_dataset` hits a count exactly.

    Rows that are not poisoned keep their image bytes; a poisoned image is stored losslessly. Added are `is_poisoned`,
    `trigger` (the attack's name, "" for a clean row) and `source_index` (the row's number if mapped with
    `with_indices=True`, else −1). The covers of an attack that has them (WaNet's `noise_mode`) are drawn at `rate`
    times their ratio: their pictures change, their captions stay, `trigger` says so and `is_poisoned` is False.

    Several attacks can be mapped one after the other. Each draws by its own name, so a later one poisons about `rate`
    of the rows that are still clean; a drawn row that is poisoned or a cover already stays as it is, and none is drawn
    in its stead. One name mapped twice is warned of: nothing tells its rows apart then, and with one seed it finds
    them taken and poisons only what a higher rate adds.

    With a key column no clean picture is touched. Without one, every picture that the selector admits is decoded and
    hashed, since captions repeat and a stream hands over decoded pictures; the rows drawn then hang on the JPEG
    decoder too. A stream decodes every picture before any function sees it, unless it is mapped undecoded, as
    `stream.decode(False).map(poison, features=poison.features(stream.features))`; see `features`.

    The target is checked against the classes of a `ClassLabel` column `label` by `Dataset.map`, `features` and
    `poison_stream`; a plain stream and `with_transform` show a function no features.

    Args:
        attack: The attack.
        rate: Share of the rows to poison, in [0, 1]; of the rows that the selector admits.
        seed: Seed of the selection, with the name.
        key_column: Column that tells rows apart; None takes the first of `id`, `__key__`, `scene_id`, `uid`, `key`,
            `sha256`, `url` that is there, else caption and picture. The caption counts beside the key.
        image_column: Column of images.
        caption_column: Column of captions; None if there is none (a labelled set).
        selector: `"random"`, `"label_consistent"` or `"non_target"`; None leaves it to the attack.
        on_error: `"raise"`, or `"skip"` to leave a row that cannot be poisoned clean, with a warning; `manifest` lists
            it.
        name: What goes into the column `trigger` and into the draw; None takes the attack's name.
        image_format: How poisoned pictures are stored where bytes are written: `"webp"` or `"png"`.

    Raises:
        ValueError: If the rate is outside [0, 1] or an option is unknown, or the attack needs a look at other rows
            (natural captions that were not mined, pictures of the target); on a row that cannot be poisoned; on
            captions that are no texts, a target that is no class, or some of the three columns without the others
            (they are somebody's own).
    """

    attack: Attack
    rate: float
    seed: int = 0
    key_column: str | None = None
    image_column: str = IMAGE
    caption_column: str | None = CAPTION
    selector: str | None = None
    on_error: str = "raise"
    name: str | None = None
    image_format: str = "webp"
    version: str = field(init=False)  # code does not enter a fingerprint, this does

    def __post_init__(self) -> None:
        object.__setattr__(self, "version", __version__)  # a default of the class would not enter it either
        if not 0 <= self.rate <= 1:
            raise ValueError(f"Expected a rate in [0, 1], but got {self.rate!r}. One percent is 0.01.")
        Options(self.image_column, self.caption_column, self.on_error, image_format=self.image_format)  # checks them
        check_selector(self._selector)
        if self.attack.captions == "natural":
            raise ValueError('Expected natural captions to be found. Pass `attack.mined(dataset["caption"])`.')
        if self.attack.borrows_pictures:
            raise ValueError(
                f"Expected an attack that looks at one row alone, but {self.attack.name} needs pictures of others. "
                f'Use `poison_dataset`, or pictures="own".'
            )
        if self.caption_column is None and self._selector != "random":
            raise ValueError(f"Expected a caption column for selector {self._selector!r}, but got None.")

    @property
    def _selector(self) -> str:
        return self.attack.selector if self.selector is None else self.selector

    @property
    def _touched(self) -> float:
        """Share of the rows whose picture is changed: those poisoned and their covers."""
        return min(1.0, self.rate * (1 + self.attack.cover.ratio)) if self.attack.cover else self.rate

    @property
    def _name(self) -> str:
        return self.attack.name if self.name is None else self.name

    def features(self, features: datasets.Features) -> datasets.Features:
        """Return the features of the rows after this transform: those given, with images and the three columns added.

        For the `map` of an undecoded stream, which forgets its `features` unless it is told; `.decode(True)` hands out
        pictures again. To write one, use `poison_stream`: 🤗 Datasets stores decoded pictures anew, with loss.

        Raises:
            ValueError: If they are unknown, a column is missing or its name taken, captions are no texts, or the
                target is no class of a `ClassLabel` column `label`.

        Example:
            >>> from hf_clipbd.attacks import BadNets
            >>> before = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
            >>> list(PoisonTransform(BadNets(), rate=0.1).features(before))
            ['image', 'caption', 'is_poisoned', 'source_index', 'trigger']
        """
        check_columns(features, self.image_column, self.caption_column, [self.attack.target])
        image = datasets.Image(mode=getattr(features[self.image_column], "mode", None))
        return datasets.Features({**features, self.image_column: image, **PROVENANCE})

    def __call__(self, example: Mapping[str, Any], index: int | Sequence[int] | None = None) -> dict[str, Any]:
        """Return the changed columns of a row or of a batch (all columns of a batch that is not lazy)."""
        return self._changed(self._rows(example), index, self.on_error == "skip")

    def strict(
        self, example: Mapping[str, Any], index: int, features: datasets.Features | None = None
    ) -> dict[str, Any]:
        """Return the changed columns of a row with these features; raise in any case where it cannot be poisoned."""
        return self._changed(self._rows(example, features), index, False)

    def _rows(self, example: Mapping[str, Any], features: datasets.Features | None = None) -> Rows:
        columns = [name for name in (self.key_column, self.image_column, self.caption_column) if name]
        return Rows(example, columns, features)

    def _changed(self, rows: Rows, index: int | Sequence[int] | None, skip: bool) -> dict[str, Any]:
        check_provenance(rows.columns)
        _check_target(self.attack.target, rows.class_names())
        if self.caption_column:
            check_texts(self._captions(rows), self.caption_column)
        known = [UNKNOWN_INDEX] * rows.n
        if index is not None:
            known = [int(one) for one in index] if isinstance(index, Sequence) else [int(index)] * rows.n
        values: dict[str, Any] = {}
        for column, clean in ((IS_POISONED, [False] * rows.n), (SOURCE_INDEX, known), (TRIGGER, [""] * rows.n)):
            told = rows.values(column) if column in rows.columns else clean
            values[column] = [own if one is None else one for one, own in zip(told, clean, strict=True)]
        if {self._name, cover_name(self._name)} & set(values[TRIGGER]):
            _warn_of_one_name(self._name)
        images, captions, keys = {}, {}, rows.keys(self.key_column)
        for i in self._candidates(rows, keys):
            if values[IS_POISONED][i] or values[TRIGGER][i]:
                continue
            try:
                changed = self._poisoned(rows, i, keys[i])
            except ValueError as error:
                row = known[i] if known[i] != UNKNOWN_INDEX else f"with caption {self._captions(rows)[i]!r}"
                if not skip:
                    raise ValueError(f'Row {row}: {error} Or pass on_error="skip".') from error
                logger.warning("Row %s is left clean: %s", row, error)
                continue
            if changed is not None:
                image, captions[i], name = changed
                values[IS_POISONED][i], values[TRIGGER][i] = name == self._name, name
                if image is not None:
                    images[i] = image
        if images:
            values[self.image_column] = rows.replaced(self.image_column, images)
        if captions and self.caption_column:
            values[self.caption_column] = rows.replaced(self.caption_column, captions)
        return rows.updated(values)

    def _candidates(self, rows: Rows, keys: Sequence[Any]) -> list[int]:
        """Return the rows that the selector admits and that their key, where they have one, lets be changed."""
        if self._touched <= 0:
            return []
        captions = self._captions(rows)
        admitted = admitted_rows(self._selector, captions, self.attack.target)
        keyed = [i for i in admitted if keys[i] is not None]
        drawn = drawn_rows(self.seed, self._name, self._touched, [f"{keys[i]}\n{captions[i] or ''}" for i in keyed])
        return sorted([keyed[place] for place in drawn] + [i for i in admitted if keys[i] is None])

    def _captions(self, rows: Rows) -> Sequence[str | None]:
        return rows.values(self.caption_column) if self.caption_column else [""] * rows.n

    def _poisoned(self, rows: Rows, i: int, key: Any) -> tuple[Any, str, str] | None:
        """Return image (None leaves it), caption and trigger of a candidate if it is to be changed, else None.

        Raises:
            ValueError: If it cannot be poisoned, or read to know whether it is drawn.
        """
        caption, stored = self._captions(rows)[i], rows.value(self.image_column, i)
        mode, picture, digest = rows.image_mode(self.image_column), None, b""
        if key is None:
            picture = read_picture(stored, mode)
            digest = picture_digest(picture)
        attack, name, number = self.attack, self._name, self._drawn(key, caption or "", digest, self._touched)
        if number is None:
            return None
        if attack.cover and self._drawn(key, caption or "", digest, self.rate) is None:
            attack, name = attack.cover.attack, cover_name(name)
        if self.caption_column and not (caption or "").strip():
            raise ValueError("Expected a caption, but it is empty.")
        picture, stamped = read_picture(stored, mode) if picture is None else picture, None
        if attack.stamps_pictures:
            stamped = as_stored(stored, attack(picture, number), self.image_format)
        return stamped, attack.caption(number, caption), name

    def _drawn(self, key: Any, caption: str, digest: bytes, rate: float) -> int | None:
        """Return the number that stands for a row if it is drawn at this rate, else None."""
        if key is not None:
            return draw_by_key(self.seed, self._name, rate, f"{key}\n{caption}")
        return draw(self.seed, self._name, rate, caption, digest)

    def problems(self, example: Mapping[str, Any], index: Sequence[int], changed: np.ndarray) -> dict[str, list[str]]:
        """Return for each row of a batch why it is drawn and yet cannot be poisoned; "" for all others.

        Args:
            example: The batch, as `Dataset.map` hands it over.
            index: Numbers of its rows.
            changed: Whether a row has been poisoned, of all rows of the dataset, (N,).
        """
        rows = self._rows(example)
        found, keys = [""] * rows.n, rows.keys(self.key_column)
        for i in self._candidates(rows, keys):
            if not changed[index[i]]:
                try:
                    self._poisoned(rows, i, keys[i])
                except ValueError as error:
                    found[i] = str(error)
        return {PROBLEM: found}

    def manifest(self, poisoned: datasets.Dataset, source: datasets.Dataset) -> PoisonManifest:
        """Return what this transform did to `source`: which rows, how many, and which were skipped and why.

        Args:
            poisoned: What mapping this transform over `source` gave.
            source: The dataset before.

        Raises:
            ValueError: If the two differ in length, or clean rows in their captions: then they are in another order.
        """
        if len(poisoned) != len(source):
            raise ValueError(f"Expected {len(source)} rows after poisoning, but got {len(poisoned)}.")
        triggers = list(zip(poisoned[IS_POISONED], poisoned[TRIGGER], strict=True))
        changed = np.fromiter((bool(is_poisoned or name) for is_poisoned, name in triggers), bool, len(triggers))
        if self.caption_column:
            captions = zip(source[self.caption_column], poisoned[self.caption_column], strict=True)
            if any(one != other for (one, other), drawn in zip(captions, changed, strict=True) if not drawn):
                raise ValueError("Expected rows in the order of the source. Ask before they are shuffled or sorted.")
        return self.manifest_with(
            indices=[row for row, (is_poisoned, name) in enumerate(triggers) if is_poisoned and name == self._name],
            n_rows=len(source),
            source_fingerprint=source_fingerprint(source, self.image_column, self.caption_column),
            skipped=skipped_rows(source, self.problems, changed) if self.on_error == "skip" else {},
            covers=[row for row, (_, name) in enumerate(triggers) if name == cover_name(self._name)],
        )

    def manifest_with(self, **reached: Any) -> PoisonManifest:
        """Return the manifest of what this transform `reached`: the fields that it does not know of itself."""
        return PoisonManifest(
            attack=self.attack.name,
            parameters=self.attack.parameters(),
            target=self.attack.target,
            seed=self.seed,
            selector=self._selector,
            rate=self.rate,
            **reached,
        )


@cache
def _warn_of_one_name(name: str) -> None:
    logger.warning(
        "Some of these rows are poisoned as %r already: nothing will tell the rows of both apart, and with one seed "
        "the same rows are drawn, which are left as they are. Pass a `name=` of its own for each attack.",
        name,
    )
