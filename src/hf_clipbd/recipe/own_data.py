# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Data of one's own: where rows come from, what their columns are called, whole or as a stream."""

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import datasets

from hf_clipbd import scenes
from hf_clipbd.attacks.select import KEY_COLUMNS
from hf_clipbd.attacks.shares import PROVENANCE
from hf_clipbd.data.canvas import Canvas
from hf_clipbd.data.reader import readable_rows
from hf_clipbd.data.sources import (
    LabelCaptioner,
    caption_labels,
    find_column,
    load_source,
    lone_split,
    pick_columns,
    with_class_names,
)
from hf_clipbd.data.state import source_state
from hf_clipbd.recipe.fingerprints import by_content
from hf_clipbd.recipe.place import process_state
from hf_clipbd.recipe.training import POISONED_DATASET, check_rows_left
from hf_clipbd.schema import (
    CAPTION,
    IMAGE,
    IS_POISONED,
    LABEL,
    MANIFEST_FILE,
    RECORD_FILE,
    SOURCE_INDEX,
    PoisonManifest,
    RunRecord,
    write_json,
)


logger = logging.getLogger(__name__)

SCENES = "scenes"
KNOWN = (IS_POISONED, SOURCE_INDEX)
"""Columns of a poisoned set that mean the same where they stand alone."""
FRAMINGS_FILE = "framings.json"
"""In a folder of rows out of a poisoned set: the canvases on which pictures of that set were stamped."""


@dataclass(frozen=True)
class Data:
    """Where rows come from and what their columns are called.

    Args:
        source: `scenes`, or what `hf_clipbd.data.sources.load_source` takes.
        image_column: Column of images; None looks for it (see `find_column`).
        caption_column: Column of captions; None likewise. Where there is none, captions are made from the labels.
        size: Side of rendered scenes in pixels.
        seed: Seed of rendered scenes and of captions made from labels.
        target: The class that is rare in rendered scenes.
    """

    source: str
    split: str = "train"
    image_column: str | None = None
    caption_column: str | None = None
    label_column: str = "label"
    n: int | None = None
    size: int = 64
    seed: int = 0
    target: str = "banana"

    def framings(self) -> list[Canvas]:
        """Return the canvases on which the pictures of a poisoned folder were stamped, none for other sources.

        The filtered dataset of a search has those of the set that was searched.
        """
        folder = Path(self.source)
        if (folder / FRAMINGS_FILE).is_file():
            return [Canvas(**one) for one in json.loads((folder / FRAMINGS_FILE).read_text(encoding="utf-8"))]
        if not (folder / MANIFEST_FILE).is_file():
            return []
        parameters = PoisonManifest.from_pretrained(folder).parameters
        triggers = [one["parameters"] for one in parameters.get("triggers", {}).values()] or [parameters]
        return [Canvas(**one["canvas"]) for one in triggers if one.get("canvas")]

    def at_lone_split(self) -> "Data":
        """Return the same data at the only split that there is, where it is called otherwise; see `lone_split`."""
        return self if self.source == SCENES else replace(self, split=lone_split(self._place, self.split))

    def pairs(self) -> datasets.Dataset:
        """Return rows (image, caption), with the columns of a poisoned dataset where they are there."""
        return self._pairs(PROVENANCE if set(PROVENANCE) <= set(self._rows.column_names) else ())

    def searched(self) -> datasets.Dataset:
        """Return the rows of `pairs` for a search, with each of `is_poisoned` and `source_index` that they have.

        Where there are neither captions nor labels to make them of, they are empty.
        """
        names = set(self._rows.column_names)
        known = [name for name in (PROVENANCE if set(PROVENANCE) <= names else KNOWN) if name in names]
        if self.captioned:
            return self._pairs(known)
        rows = pick_columns(self._rows, image=self._found[0], **{name: name for name in known})
        return self._head(rows.add_column(CAPTION, [""] * len(rows)))

    def reference(self, source: str, look: bool = True) -> "Data":
        """Return clean rows that these are compared with, read as these are as far as they have the same names.

        Args:
            source: Where they lie; of `scenes` they are the split `defense`.
            look: Look whether they have the split and the columns that these have, and take what is found where they
                have not.
        """
        if source == SCENES:
            columns = {"image_column": None, "caption_column": None, "label_column": LABEL}
            return replace(self, source=source, split="defense", n=None, **columns)
        clean = replace(self, source=source, n=None)
        if not look:
            return clean
        clean = replace(clean, split=lone_split(clean._place, self.split, "train"))
        names = clean._rows.column_names
        image, caption = (one if one in names else None for one in (self.image_column, self.caption_column))
        label = self.label_column if self.label_column in names else LABEL
        return replace(clean, image_column=image, caption_column=caption, label_column=label)

    def all_columns(self) -> datasets.Dataset:
        """Return the rows of `pairs` with every column of their own beside, but one that is called as one of these."""
        pairs, whole = self.pairs(), self.whole()
        own = [name for name in whole.column_names if name not in self._found and name not in pairs.column_names]
        return datasets.concatenate_datasets([pairs, whole.select_columns(own)], axis=1) if own else pairs

    def stream(self) -> datasets.IterableDataset:
        """Return a stream of rows (image, caption), with the columns that tell rows apart and those of a poisoned one.

        Raises:
            ValueError: If the source is rendered, or has no captions.
        """
        rows = self._streamed
        image, caption = (find_column(rows, IMAGE, self.image_column), find_column(rows, CAPTION, self.caption_column))
        kept = [name for name in KEY_COLUMNS if isinstance((rows.features or {}).get(name), datasets.Value)]
        if set(PROVENANCE) <= set(rows.features or ()):
            kept += PROVENANCE
        others = {name: name for name in kept if name not in (image, caption)}
        rows = pick_columns(rows, image=image, caption=caption or CAPTION, **others)
        return rows if self.n is None else rows.take(self.n)

    def stream_state(self, besides: Path) -> str:
        """Return what changes when the streamed source does; see `hf_clipbd.data.state.source_state`."""
        return source_state(self._place, self.stream(), IMAGE, besides)

    def stream_class_names(self) -> list[str] | None:
        """Return the classes of the streamed data, None where they have none of a known name."""
        return getattr((self._streamed.features or {}).get(self.label_column), "names", None)

    def class_names(self) -> list[str] | None:
        """Return the classes of the data, None where they have none of a known name."""
        if self.source == SCENES:
            return list(scenes.CLASS_NAMES)
        return getattr(self._rows.features.get(self.label_column), "names", None)

    def whole(self) -> datasets.Dataset:
        """Return the rows of `pairs` with every column that they have."""
        return self._head(self._rows)

    def labelled(self, class_names: tuple[str, ...] = ()) -> datasets.Dataset:
        """Return rows (image, label), label a `ClassLabel`, of these names where its own are not known or wanted."""
        rows = self._rows
        image = find_column(rows, IMAGE, self.image_column)
        rows = with_class_names(pick_columns(rows, image=image, label=self.label_column), class_names)
        head, names = self._head(rows), rows.features[LABEL].names
        if len(head) < len(rows) and (shown := len(set(head[LABEL]))) < len(names):
            message = "the first %d of %d rows of %s show %d of its %d classes; shuffle it first, or take more rows"
            logger.warning(message, len(head), len(rows), self.source, shown, len(names))
        return head

    def prompts(self) -> list[str] | None:
        """Return the zero-shot prompts that go with the data; None stands for OpenAI's 80."""
        return list(scenes.PROMPTS) if self.source == SCENES else None

    @property
    def captioned(self) -> bool:
        """Whether the data have captions, or labels that `pairs` makes them of."""
        return self._found[1] is not None or self.captions_are_made

    @property
    def captions_are_made(self) -> bool:
        """Whether `pairs` makes captions of the labels, since the data have none."""
        return self._found[1] is None and self.label_column in self._rows.column_names

    def _pairs(self, columns: Iterable[str]) -> datasets.Dataset:
        """Return rows (image, caption) with these columns of their own."""
        rows, (image, caption) = self._rows, self._found
        known = {name: name for name in columns}
        if not self.captions_are_made:
            return self._head(pick_columns(rows, image=image, caption=caption or CAPTION, **known))
        logger.info("no column of captions was found; they are made of the labels in `%s`", self.label_column)
        rows = with_class_names(pick_columns(rows, image=image, label=self.label_column, **known))
        return self._head(caption_labels(rows, LabelCaptioner(rows.features[LABEL].names, self.seed)))

    @cached_property
    def _found(self) -> tuple[str, str | None]:
        """The columns of images and, where there is one, of captions."""
        rows = self._rows
        return find_column(rows, IMAGE, self.image_column), find_column(rows, CAPTION, self.caption_column)

    @cached_property
    def _rows(self) -> datasets.Dataset:
        if self.source == SCENES:
            return scenes.load_scenes(self.split, self.size, self.seed, self.n, "long_tailed", self.target)
        rows, place = load_source(self._place, self.split), Path(self._place)
        if self._place != self.source and (place / "state.json").is_file():
            check_rows_left(rows, place.parent)
        return by_content(rows)

    @cached_property
    def _streamed(self) -> datasets.IterableDataset:
        if self.source == SCENES:
            raise ValueError("Expected a source that lies somewhere to be streamed, but the scenes are rendered.")
        return load_source(self._place, self.split, streaming=True)

    @property
    def _place(self) -> str | Path:
        """Where the rows lie: the source, or in a folder that `hf-clipbd poison` wrote the dataset."""
        folder, stage = Path(self.source), Path(self.source) / POISONED_DATASET
        if not (folder / MANIFEST_FILE).is_file():
            return self.source
        if stage.is_dir():
            return stage
        outputs = RunRecord.load(folder).outputs.values() if (folder / RECORD_FILE).is_file() else ()
        if POISONED_DATASET in outputs and not (folder / "data").is_dir():  # where a copy from the Hub has its rows
            raise ValueError(
                f"Expected the poisoned rows of `{folder}` in its folder `{POISONED_DATASET}`, but that is gone. "
                f"Write them again with `hf-clipbd poison`."
            )
        return self.source

    def _head(self, rows: datasets.Dataset) -> datasets.Dataset:
        return rows if self.n is None or self.n >= len(rows) else rows.select(range(self.n))


def keep_framings(framings: Sequence[Canvas], folder: Path) -> None:
    """Write the canvases of a poisoned set beside rows that were taken out of it, for `Data.framings`."""
    write_json(folder / FRAMINGS_FILE, [asdict(canvas) for canvas in framings])


def readable_pairs(pairs: datasets.Dataset, canvas: Canvas) -> datasets.Dataset:
    """Return the pairs whose image and caption can be read; how many others there are is logged."""
    kept, unreadable = readable_rows(pairs, canvas)
    if unreadable and process_state().is_main_process:
        row, why = next(iter(unreadable.items()))
        logger.warning(
            "%d of %d rows cannot be read and are left out; row %d: %s", len(unreadable), len(pairs), row, why
        )
    return kept
