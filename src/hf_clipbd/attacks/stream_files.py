# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Files that a stream's rows name, here, in archives or at an address: pictures are taken into the rows."""

from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets.features.features import require_storage_embed
from datasets.utils.file_utils import is_local_path

from hf_clipbd.attacks.pictures import read_picture
from hf_clipbd.data.path_rows import picture_problem
from hf_clipbd.data.unreadable import UNREADABLE, reason


class NoPicture(ValueError):
    """A row names a file that is no picture or cannot be read."""


class StreamFiles:
    """Takes the files that rows name into the rows, for Parquet files that stand alone: pictures and nothing else.

    Args:
        features: Features of the stream, not decoded.
        tokens: Hub repository -> token.
    """

    def __init__(self, features: datasets.Features, tokens: dict[str, Any] | None):
        self.features = {name: feature for name, feature in features.items() if require_storage_embed(feature)}
        self.tokens = tokens

    def embedded(self, row: dict[str, Any], column: str, number: int) -> Any:
        """Return the value of a column with the bytes of its files in it; raise `NoPicture` where one is none."""
        try:
            return self._value(row[column], self.features[column])
        except ValueError as error:
            raise NoPicture(f"Row {number}: {error}") from error

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
        return {"bytes": self._picture(value["path"]), "path": file_name(value["path"])}

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


def file_name(path: str) -> str:
    """Return the name of a file, of one in an archive (`zip://a/b.png::c.zip`) the name that it has there."""
    return path.split("::", 1)[0].replace("\\", "/").rsplit("/", 1)[-1]
