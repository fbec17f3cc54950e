# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Files to rows: Parquet, CSV and TSV of paths and captions, JSON lines, and WebDataset shards, streamed or not."""

import contextlib
import csv
import gzip
import itertools
import json
import re
import reprlib
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.exceptions import DatasetGenerationError

from hf_clipbd.data.columns import separator_hint
from hf_clipbd.schema import CAPTION, IMAGE


TABLE_FORMATS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".tar": "webdataset",
}
"""Ending -> builder of 🤗 Datasets; CSV, TSV and JSON may be packed with gzip (`.tsv.gz`)."""

Rows = datasets.Dataset | datasets.IterableDataset

_BROKEN = (
    DatasetGenerationError,
    tarfile.TarError,
    pa.ArrowInvalid,
    json.JSONDecodeError,
    UnicodeError,
    EOFError,
    zlib.error,
)
"""What the readers of the formats raise at a file that is cut short or is of another format."""
_LOOK = 200  # rows looked at to tell what a table holds
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def ending(file: str | Path) -> str:
    """Return a file's ending in small letters, `.tsv` for `pairs.tsv.gz`."""
    suffixes = [suffix.lower() for suffix in Path(file).suffixes]
    return (suffixes[-2] if suffixes[-1:] == [".gz"] and len(suffixes) > 1 else suffixes[-1]) if suffixes else ""


def is_pattern(path: str) -> bool:
    """Return whether `path` stands for several files: `shards/*.tar`, `shards/{00000..00009}.tar`."""
    return any(sign in path for sign in "*?[") or _RANGE.search(path) is not None


def matching(root: Path, pattern: str) -> list[Path]:
    """Return the files that `pattern` stands for, relative to `root`, sorted.

    Raises:
        FileNotFoundError: If there is none, or one of a numbered range is missing.
    """
    if numbers := _RANGE.search(pattern):
        first, last = numbers.groups()
        named = [
            f"{pattern[: numbers.start()]}{number:0{len(first)}d}{pattern[numbers.end() :]}"
            for number in range(int(first), int(last) + 1)
        ]
        return list(itertools.chain.from_iterable(matching(root, one) for one in named))
    given = Path(pattern).expanduser()
    if is_pattern(pattern):
        base = Path(given.anchor) if given.is_absolute() else root
        found = sorted(base.glob(str(given.relative_to(given.anchor) if given.is_absolute() else given)))
    else:
        found = [root / given] if (root / given).is_file() else []
    if not found:
        raise FileNotFoundError(f"Expected files matching `{pattern}` below `{root}`, but there are none.")
    return found


def read_files(files: Sequence[Path], split: str, streaming: bool = False) -> Rows:
    """Return the rows of files of one format; paths of pictures in a table are images, relative to that very table.

    A CSV or TSV without a header is known by its first row, in which one cell is a picture's path: that column is
    `image`, the first other one `caption`. A cell of the first row whose picture is missing counts as a path if one of
    the next rows has a picture in this column, and the cell has a folder in it or the same ending. Cells that say
    "null" or "NA" are text.

    Args:
        files: The files.
        split: What the split is called.
        streaming: Return an `IterableDataset` that reads while it is iterated.

    Raises:
        ValueError: If the formats differ or are none of `TABLE_FORMATS`, a file is broken, one of the first rows of a
            CSV or TSV has more cells than its first line, a table holds web addresses alone, or tables of several
            folders have different columns.
    """
    formats = {ending(file) for file in files}
    if len(formats) != 1 or not formats <= set(TABLE_FORMATS):
        raise ValueError(f"Expected files of one format out of {sorted(TABLE_FORMATS)}, but got {sorted(formats)}.")
    (kind,) = formats
    others = f" and {len(files) - 1} more" if len(files) > 1 else ""
    with reading(f"`{files[0]}`{others}"):
        return _rows_of(files, kind, split, streaming)


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Make an error of the block that is about broken files a `ValueError` that names them.

    Args:
        what: The files.
    """
    try:
        yield
    except (*_BROKEN, OSError) as error:
        if not isinstance(error, _BROKEN) and (type(error) is not OSError or error.errno is not None):
            raise  # Arrow says of a file that breaks off no more than `OSError`
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ else error
        raise ValueError(
            f"Expected data that can be read in {what}, but got {type(cause).__name__}: {cause}; mend or replace them."
        ) from error


def _rows_of(files: Sequence[Path], kind: str, split: str, streaming: bool) -> Rows:
    """Return the rows of files that end in `kind`; see `read_files`."""
    builder = TABLE_FORMATS[kind]
    if builder == "webdataset" or builder == "parquet" and not any(map(_has_paths, files)):
        return _loaded(files, builder, split, streaming)
    parts = {}
    for folder, own in itertools.groupby(files, lambda file: file.parent):  # a path is relative to its own table
        own = list(own)
        options = _csv_options(own[0], kind) if builder == "csv" else {}
        parts[folder, own[0]] = _loaded(own, builder, split, streaming, **options)
    stored = {part: _cells(part[1]) if builder == "parquet" else rows for part, rows in parts.items()}
    heads = {part: list(itertools.islice(rows, _LOOK)) for part, rows in stored.items()}
    heads = {part: head for part, head in heads.items() if head}
    if not heads:
        return next(iter(parts.values()))
    names = list(next(iter(heads.values()))[0])
    for (_, file), head in heads.items():
        if set(head[0]) != set(names):
            raise ValueError(f"Expected the columns {names} in every table, but `{file}` has {list(head[0])}.")
    columns = [
        name
        for name in names
        if any(is_picture(row.get(name), folder) for (folder, _), head in heads.items() for row in head)
    ]
    read = [_with_pictures(parts[part], part[0], columns, head) for part, head in heads.items()]
    return read[0] if len(read) == 1 else datasets.concatenate_datasets(_alike(read, list(heads.values())))


def _cells(file: Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet file as they are stored: no picture is decoded."""
    with pq.ParquetFile(file) as table:
        for batch in table.iter_batches(batch_size=_LOOK, columns=columns):
            yield from batch.to_pylist()


def _has_paths(file: Path) -> bool:
    """Return whether one of the first rows of a Parquet file holds the path of a picture as text."""
    texts = [field.name for field in pq.read_schema(file) if field.type in (pa.string(), pa.large_string())]
    rows = itertools.islice(_cells(file, texts), _LOOK) if texts else ()
    return any(is_picture(cell, file.parent) for row in rows for cell in row.values())


def _loaded(files: Sequence[Path], builder: str, split: str, streaming: bool, **options: Any) -> Rows:
    named = {split: [str(file) for file in files]}
    return datasets.load_dataset(builder, data_files=named, split=split, streaming=streaming, **options)


def _csv_options(file: Path, kind: str) -> dict[str, Any]:
    """Return how a CSV or TSV is to be read, from a look at its first lines."""
    with (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf-8", newline="") as lines:
        head = list(itertools.islice(lines, _LOOK))
    options: dict[str, Any] = {"sep": "\t" if kind == ".tsv" else ",", "keep_default_na": False, "na_values": [""]}
    quoting = csv.QUOTE_MINIMAL
    if kind == ".tsv" and not any(cell[:1] == cell[-1:] == '"' for line in head for cell in line.strip().split("\t")):
        quoting = csv.QUOTE_NONE  # as CC3M is released: a quotation mark in a caption is just that
    rows: list[list[str]] = []
    with contextlib.suppress(csv.Error):  # a cell longer than the module reads; the rows before it will do
        rows.extend(csv.reader(head, delimiter=options["sep"], quoting=quoting))
    names = _names_without_header(rows, file.parent)
    _check_widths(rows, file, options["sep"])
    return {**options, "quoting": quoting, **({"column_names": names} if names else {})}


def _check_widths(rows: list[list[str]], file: Path, sign: str) -> None:
    """Raise `ValueError` if a row has more cells than the first: pandas would take its first cells for an index."""
    filled = [(number, row) for number, row in enumerate(rows, 1) if len(row) > 1 or any(map(str.strip, row))]
    header = filled[0][1] if filled else []
    number, row = next(((number, row) for number, row in filled if len(row) > len(header)), (0, []))
    if row:
        hint = separator_hint(header) or (
            f"Put cells that hold {sign!r} in quotation marks, give every column a name, and end no row with {sign!r}."
        )
        raise ValueError(
            f"Expected no row of `{file}` to have more cells than its first, {header}, but row {number} has "
            f"{len(row)}: {reprlib.repr(row)}. {hint.strip()}"
        )


def _names_without_header(rows: list[list[str]], folder: Path) -> list[str] | None:
    """Return column names for a table whose first row is data, None if it is a header."""
    first = rows[0] if rows else []
    at = next((i for i, cell in enumerate(first) if _names_picture(i, rows, folder)), None)
    if at is None:
        if any(re.match(r"https?://", cell) for cell in first):
            raise ValueError(
                f"Expected a table with paths of pictures, but it holds web addresses: {first}. Download them first, "
                f"for instance with img2dataset, and pass its folder of shards."
            )
        return None
    names = [f"column_{i}" for i in range(len(first))]
    names[at] = IMAGE
    other = next((i for i in range(len(first)) if i != at), None)
    if other is not None:
        names[other] = CAPTION
    return names


def _names_picture(column: int, rows: list[list[str]], folder: Path) -> bool:
    """Return whether the first row's cell is the path of a picture, be it of one that was never downloaded."""
    cell = rows[0][column]
    if is_picture(cell, folder):
        return True
    if re.match(r"https?://", cell):
        return False
    later = (row[column] for row in rows[1:] if len(row) > column)
    found = next((other for other in later if is_picture(other, folder)), None)
    if found is None:
        return False
    return "/" in cell or "\\" in cell or bool(ending(found)) and ending(cell) == ending(found)


def is_picture(cell: Any, folder: Path) -> bool:
    """Return whether a cell is the path of a file below `folder` (or an absolute one)."""
    if not isinstance(cell, str) or not 0 < len(cell) < 1024 or "\0" in cell or "\n" in cell:
        return False
    try:
        return (folder / cell).is_file()
    except OSError:  # longer than a file name may be
        return False


def _with_pictures(rows: Rows, folder: Path, columns: Sequence[str], head: list[dict[str, Any]]) -> Rows:
    """Return the rows with columns of paths, relative to the table's folder, as images; `head` are the first rows."""
    for column in columns:
        where = {"column": column, "folder": str(folder.resolve())}
        if isinstance(rows, datasets.Dataset):
            rows = rows.map(_below, batched=True, fn_kwargs=where, desc="Finding pictures")
            rows = rows.cast_column(column, datasets.Image())
        else:  # with `features=` the map of a stream would leave paths where it is iterated
            known = _features(rows, head)
            rows = rows.map(_below, batched=True, fn_kwargs=where)
            rows = rows.cast(datasets.Features({**known, column: datasets.Image()}))
    return rows


def _features(rows: Rows, head: list[dict[str, Any]]) -> datasets.Features:
    """Return the features of rows; of a stream that does not know its own those of its first rows."""
    return rows.features or datasets.Features.from_arrow_schema(pa.Table.from_pylist(head).schema)


def _alike(parts: Sequence[Rows], heads: Sequence[list[dict[str, Any]]]) -> list[Rows]:
    """Return tables with the same columns in the same types: where types differ, as texts."""
    known = [_features(part, head) for part, head in zip(parts, heads, strict=True)]
    wanted = {}
    for name in known[0]:
        kinds = [one[name] for one in known if one[name] != datasets.Value("null")]
        wanted[name] = kinds[0] if kinds and all(kind == kinds[0] for kind in kinds) else datasets.Value("string")
    return [part.select_columns(list(wanted)).cast(datasets.Features(wanted)) for part in parts]


def _below(rows: dict[str, list[Any]], column: str, folder: str) -> dict[str, list[Any]]:
    return {column: [None if path is None else str(Path(folder) / path) for path in rows[column]]}
