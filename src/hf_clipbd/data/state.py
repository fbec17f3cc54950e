# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Whether what lies at a source has changed, told by sizes and times of files or a commit of the Hub."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import datasets

from hf_clipbd.data.files import ending, is_pattern, matching


_NAMES_PICTURES = (".csv", ".tsv", ".json", ".jsonl")


def source_state(
    path: str | Path, rows: datasets.IterableDataset, image_column: str, besides: Path | None = None
) -> str:
    """Return 32 hexadecimal digits that change when a source of `load_source` does.

    Of files they hang on name, size and time of change: of a file, those of a pattern, those in and below a folder. Of
    a table they hang on the pictures that it names as well, so the rows are gone through once, without decoding any.
    Of a Hub id they hang on the commit that its main branch points to, for which the Hub is asked.

    Args:
        path: As in `load_source`.
        rows: What `load_source(path, streaming=True)` gave, under any names.
        image_column: Its column of images.
        besides: A folder that is left out, for instance one that is written to.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.parquet").write_bytes(b"1")
        ...     before = source_state(folder, datasets.IterableDataset.from_generator(list), "image")
        ...     _ = Path(folder, "a.parquet").write_bytes(b"12")
        ...     before == source_state(folder, datasets.IterableDataset.from_generator(list), "image")
        False
    """
    files = _files(path)
    if files is None:
        return hashlib.sha256(str(datasets.load_dataset_builder(str(path)).hash).encode()).hexdigest()[:32]
    left_out = None if besides is None else besides.resolve()
    named: Iterable[str] = ()
    if files and all(ending(file) in _NAMES_PICTURES for file in files):
        named = _pictures(rows, image_column)
    hasher = hashlib.blake2b(digest_size=16)
    for file in files:
        if left_out is None or left_out not in file.resolve().parents:
            hasher.update(file_state(str(file)).encode("utf-8", "surrogatepass"))
    for picture in named:
        hasher.update(file_state(picture).encode("utf-8", "surrogatepass"))
    return hasher.hexdigest()


def file_state(path: str | None) -> str:
    """Return name, size and time of change of a file in one line, or that it is missing or there is none.

    Example:
        >>> file_state("no/such/file.png")
        'no/such/file.png missing\\n'
    """
    if path is None:
        return "none\n"
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # missing, or an address that is no file here
        return f"{path} missing\n"
    return f"{path} {found.st_size} {found.st_mtime_ns}\n"


def _files(path: str | Path) -> list[Path] | None:
    """Return the files of a local source in order, None for a Hub id."""
    local = Path(path).expanduser()
    if local.is_file():
        return [local]
    if local.is_dir():
        return sorted(file for file in local.rglob("*") if file.is_file())
    return matching(Path(), str(path)) if is_pattern(str(path)) else None


def _pictures(rows: datasets.IterableDataset, column: str) -> Iterator[str]:
    if isinstance((rows.features or {}).get(column), datasets.Image):
        rows = rows.cast_column(column, datasets.Image(decode=False))
        for row in rows.select_columns([column]):
            image = row[column] or {}
            if image.get("bytes") is None and image.get("path") is not None:
                yield image["path"]
