# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What tells one dataset, trigger or processor from another: of data on this machine, pictures in files among it."""

import hashlib
import itertools
from dataclasses import fields
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc

from hf_clipbd.attacks import Attack
from hf_clipbd.data.canvas import pixel_statistics
from hf_clipbd.data.state import file_state
from hf_clipbd.models.text_input import tokenizer_fingerprint
from hf_clipbd.schema import content_key


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


def trigger_fingerprint(attack: Attack) -> str:
    """Return what tells a trigger from others: its parameters, its arrays, and what it stamps on a test chart."""
    own = {field.name: getattr(attack, field.name) for field in fields(attack)}
    arrays = {"preview": attack.preview(), **{k: value for k, value in own.items() if isinstance(value, np.ndarray)}}
    hashes = {name: hashlib.sha256(np.ascontiguousarray(one)).hexdigest() for name, one in arrays.items()}
    return content_key(attack.name, attack.parameters(), hashes)


def processor_fingerprint(processor: Any) -> str:
    """Return a hash of what a processor makes of words and pixels: its tokenizer, mean and deviation.

    Raises:
        ValueError: If the processor does not scale pixels by 1/255.
    """
    return content_key(tokenizer_fingerprint(processor.tokenizer), pixel_statistics(processor))
