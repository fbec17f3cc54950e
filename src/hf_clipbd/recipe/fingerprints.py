# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What tells one dataset from another on this machine, pictures in files of their own among it."""

import hashlib
import itertools

import datasets
import pyarrow.compute as pc

from hf_clipbd.data.state import file_state


def data_fingerprint(dataset: datasets.Dataset) -> str:
    """Return the fingerprint of a dataset: equal for the same source, columns and rows on this machine.

    🤗 Datasets tells a table of paths by the table alone; so name, size and time of change of each picture that lies
    in a file of its own are part of it, and a picture overwritten under its name makes another dataset. Pictures whose
    bytes are in the rows are not looked at.
    """
    known = f"{dataset._fingerprint}-{len(dataset)}"
    columns = [name for name, feature in dataset.features.items() if isinstance(feature, datasets.Image)]
    columns = [name for name in columns if _in_files(dataset, name)]
    if not columns:
        return known
    plain = dataset.with_format(None).select_columns(columns)
    for name in columns:
        plain = plain.cast_column(name, datasets.Image(decode=False))
    files = hashlib.blake2b(digest_size=8)
    for table in plain.with_format("arrow").iter(1000):
        for name in columns:
            inside = pc.is_valid(pc.struct_field(table[name], "bytes")).to_pylist()
            paths = pc.struct_field(table[name], "path").to_pylist()
            for path in itertools.compress(paths, (not there for there in inside)):
                files.update(file_state(path).encode("utf-8", "surrogatepass"))
    return f"{known}-{files.hexdigest()}"


def by_content(dataset: datasets.Dataset) -> datasets.Dataset:
    """Return the same rows; what 🤗 Datasets keeps of them on disk is not taken for that of overwritten pictures."""
    fingerprint = data_fingerprint(dataset)
    if fingerprint == f"{dataset._fingerprint}-{len(dataset)}":  # no pictures in files of their own
        return dataset
    return dataset.select(range(len(dataset)), new_fingerprint=fingerprint)


def _in_files(dataset: datasets.Dataset, column: str) -> bool:
    """Return whether pictures of a column lie in files of their own; only offsets of the bytes are read."""
    return any(
        pc.and_(pc.is_valid(pc.struct_field(chunk, "path")), pc.is_null(pc.struct_field(chunk, "bytes"))).true_count
        for chunk in dataset.data.column(column).chunks
    )
