# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Poisoning a dataset that is larger than disk and memory: read, poisoned and written row by row."""

import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.features.features import require_storage_embed
from datasets.utils.file_utils import is_local_path

from hf_clipbd.attacks.pictures import read_picture
from hf_clipbd.attacks.select import digest, file_size
from hf_clipbd.attacks.transform import PoisonTransform
from hf_clipbd.data.path_rows import picture_problem
from hf_clipbd.data.unreadable import UNREADABLE, reason
from hf_clipbd.schema import IS_POISONED, SOURCE_INDEX, TRIGGER, PoisonManifest


logger = logging.getLogger(__name__)

ROWS_A_GROUP = 256
SCRATCH = ".partial"
_OURS = re.compile(r"train-\d{5,}\.parquet")


def poison_stream(
    rows: datasets.IterableDataset, poison: PoisonTransform, folder: str | Path, rows_per_file: int = 50_000
) -> PoisonManifest:
    """Poison a stream into Parquet files `train-00000.parquet`, ... in `folder` and return the manifest.

    Memory holds a few hundred rows at a time, however many there are. Clean rows keep their image bytes; pictures in
    files, in archives or at an address (`zip://`, `hf://`, ...) are taken into the Parquet files, those of other
    columns too. As a stream has no length, rows are drawn at a rate, each by a hash of its own content (see
    `PoisonTransform`), and the manifest reports the count that this reached.

    Files are written into `folder/.partial` and take the place of those of an earlier call once the stream has ended.
    An error or an interrupt leaves the earlier ones as they were and nothing of its own. A process that is killed
    leaves `.partial` behind, which no loader reads and the next call clears; killed in the moment of moving, it may
    leave some of the new files alone, so take a dataset for whole only if the call has returned.

    Args:
        rows: The stream; `datasets.load_dataset(..., streaming=True)`.
        poison: What is mapped over it.
        folder: Where to write; made where it is missing. Its `train-00000.parquet`, ... are replaced.
        rows_per_file: Rows of one Parquet file.

    Raises:
        ValueError: If a column is missing or its name is taken, captions are no texts, the target is none of the
            classes of a `ClassLabel` column `label`, other files of `folder` would be read as rows too, another column
            names a file that is no picture, or a row cannot be poisoned or its picture read and `poison.on_error` is
            `"raise"`; the message names the row. With `"skip"` the manifest lists the row.
    """
    image = poison.image_column
    if rows.features is None:
        rows = rows._resolve_features()
    features = poison.features(rows.features)
    undecoded = rows.decode(False).cast_column(image, datasets.Image(mode=features[image].mode, decode=False))
    log = _Log(poison, _Files(undecoded.features, rows._token_per_repo_id))
    writer = _Writer(Path(folder), features.arrow_schema, rows_per_file)
    with writer:
        for row in log.poisoned(undecoded):
            writer.write(row)
    logger.info("%d of %d rows were poisoned, %d skipped", len(log.indices), log.n, len(log.skipped))
    return poison.manifest_with(
        indices=log.indices,
        n_rows=log.n,
        source_fingerprint=log.hasher.hexdigest(),
        skipped=log.skipped,
        covers=log.covers,
    )


class _NoPicture(ValueError):
    """A row names a file that is no picture or cannot be read."""


class _Files:
    """Takes the files that rows name into the rows, for Parquet files that stand alone: pictures and nothing else.

    Args:
        features: Features of the stream, not decoded.
        tokens: Hub repository -> token.
    """

    def __init__(self, features: datasets.Features, tokens: dict[str, Any] | None):
        self.features = {name: feature for name, feature in features.items() if require_storage_embed(feature)}
        self.tokens = tokens

    def embedded(self, row: dict[str, Any], column: str, number: int) -> Any:
        """Return the value of a column with the bytes of its files in it; raise `_NoPicture` where one is none."""
        try:
            return self._value(row[column], self.features[column])
        except ValueError as error:
            raise _NoPicture(f"Row {number}: {error}") from error

    def others_embedded(self, row: dict[str, Any], but: str, number: int) -> dict[str, Any]:
        """Return the row with the files of all columns in it but those of the column `but`."""
        for name in self.features:
            if name != but:
                try:
                    row[name] = self._value(row[name], self.features[name])
                except ValueError as error:
                    raise ValueError(f"Row {number}, column {name!r}: {error}") from error
        return row

    def _value(self, value: Any, feature: Any) -> Any:
        if value is None or not require_storage_embed(feature):
            return value
        if isinstance(feature, dict):
            return {name: self._value(value[name], inner) for name, inner in feature.items()}
        if isinstance(feature, (datasets.List, datasets.LargeList)):
            return [self._value(one, feature.feature) for one in value]
        if value.get("bytes") is not None or value.get("path") is None:
            return value
        if not isinstance(feature, datasets.Image):
            raise ValueError(
                f"Expected files of pictures only, but got {value['path']} in a column of {type(feature).__name__}. "
                "Take that column out (`remove_columns`)."
            )
        return {"bytes": self._picture(value["path"]), "path": _file_name(value["path"])}

    def _picture(self, path: str) -> bytes:
        """Return the bytes of a picture's file, read as 🤗 Datasets does; raise `ValueError` if it is none."""
        if is_local_path(path):
            problem = picture_problem(path)
            if problem is not None:
                raise ValueError(problem)
            return Path(path).read_bytes()
        named = pa.array([{"bytes": None, "path": path}], datasets.Image().pa_type)
        try:
            data = datasets.Image().embed_storage(named, self.tokens).field("bytes")[0].as_py()
        except UNREADABLE as error:
            raise ValueError(f"Expected a picture at {path}, but it cannot be read: {reason(error)}") from error
        read_picture(data)
        return data


def _file_name(path: str) -> str:
    """Return the name of a file, of one in an archive (`zip://a/b.png::c.zip`) the name that it has there."""
    return path.split("::", 1)[0].replace("\\", "/").rsplit("/", 1)[-1]


@dataclass
class _Log:
    """Poisons one row after another and notes what the manifest is to say."""

    poison: PoisonTransform
    files: _Files
    n: int = 0
    indices: list[int] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    covers: list[int] = field(default_factory=list)
    hasher: Any = field(default_factory=lambda: hashlib.blake2b(digest_size=16))

    def poisoned(self, rows: datasets.IterableDataset) -> Iterator[dict[str, Any]]:
        column = self.poison.image_column
        for number, row in enumerate(rows):
            row[column] = _undecoded(row[column])
            was = bool(row.get(IS_POISONED))
            before = {IS_POISONED: was, SOURCE_INDEX: row.get(SOURCE_INDEX, number), TRIGGER: row.get(TRIGGER, "")}
            try:
                row[column] = self.files.embedded(row, column, number)
                self._hash(row)
                row = {**row, **self.poison.strict(row, number, rows.features)}
            except _NoPicture as error:
                if self.poison.on_error == "raise":
                    raise ValueError(f'{error} Or pass on_error="skip".') from error
                self._hash(row)
                self.skipped[str(number)] = str(error.__cause__)
                row = {**row, column: None, **before}  # a bare name would be looked for wherever the rows are read
            except ValueError as error:
                if self.poison.on_error == "raise":
                    raise
                self.skipped[str(number)] = str(error.__cause__ or error)
                row = {**row, **before}
            if row[IS_POISONED] and not was:
                self.indices.append(number)
            elif row[TRIGGER] and not before[TRIGGER]:
                self.covers.append(number)
            self.n += 1
            yield self.files.others_embedded(row, column, number)

    def _hash(self, row: dict[str, Any]) -> None:
        image = row[self.poison.image_column] or {}
        caption = row[self.poison.caption_column] if self.poison.caption_column else ""
        data, path = image.get("bytes"), image.get("path")
        size = len(data) if data is not None else max(file_size(path), 0)
        self.hasher.update(digest(_file_name(path or ""), size, str(caption)))


def _undecoded(image: Any) -> Any:
    """Return an image as `{"bytes": ..., "path": ...}`: some streams hand over bare paths and bytes."""
    if isinstance(image, str):
        return {"bytes": None, "path": image}
    return {"bytes": bytes(image), "path": None} if isinstance(image, (bytes, bytearray)) else image


class _Writer:
    """Writes rows into Parquet files of so many rows each, a few hundred at a time; all of them or none."""

    def __init__(self, folder: Path, schema: pa.Schema, rows_per_file: int):
        if rows_per_file < 1:
            raise ValueError(f"Expected at least one row a file, but got rows_per_file={rows_per_file}.")
        others = [path.name for path in sorted(folder.glob("train*.parquet")) if not _OURS.fullmatch(path.name)]
        if others:
            raise ValueError(
                f"Expected a folder of its own, but `{folder}` has {others[:3]}, which would be read together "
                "with the poisoned rows. Name another folder."
            )
        self.folder, self.schema, self.rows_per_file = folder, schema, rows_per_file
        self.waiting: list[dict[str, Any]] = []
        self.file: pq.ParquetWriter | None = None
        self.in_file = self.files = 0

    def __enter__(self) -> "_Writer":
        if (self.folder / SCRATCH).exists():
            shutil.rmtree(self.folder / SCRATCH)
        (self.folder / SCRATCH).mkdir(parents=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            try:
                if kind is None:
                    self._flush()
                    if self.files == 0:
                        self._open()  # an empty stream is one file without rows
            finally:
                if self.file is not None:
                    self.file.close()
            if kind is None:
                self._place()
        finally:
            shutil.rmtree(self.folder / SCRATCH)

    def _place(self) -> None:
        for path in [path for path in self.folder.iterdir() if _OURS.fullmatch(path.name)]:
            path.unlink()
        for path in sorted((self.folder / SCRATCH).iterdir()):
            os.replace(path, self.folder / path.name)

    def write(self, row: dict[str, Any]) -> None:
        self.waiting.append(row)
        if len(self.waiting) >= min(ROWS_A_GROUP, self.rows_per_file - self.in_file):
            self._flush()

    def _open(self) -> None:
        self.file = pq.ParquetWriter(self.folder / SCRATCH / f"train-{self.files:05d}.parquet", self.schema)
        self.files, self.in_file = self.files + 1, 0

    def _flush(self) -> None:
        if not self.waiting:
            return
        if self.file is None:
            self._open()
        self.file.write_table(pa.Table.from_pylist(self.waiting, schema=self.schema))
        self.in_file += len(self.waiting)
        self.waiting = []
        if self.in_file >= self.rows_per_file:
            self.file.close()
            self.file, self.in_file = None, 0
