# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What is said of a dataset that is neither here nor on the Hugging Face Hub."""

import contextlib
from collections.abc import Iterator

from datasets.exceptions import DatasetNotFoundError


@contextlib.contextmanager
def saying_where(path: str, revision: str | None = None) -> Iterator[None]:
    """Make the errors of a block at a dataset that is not found `FileNotFoundError`s that say where it was looked for.

    Args:
        path: What was asked for, no file or folder.
        revision: Revision on the Hub, if one was asked for.

    Example:
        >>> with saying_where("no_such_set"):
        ...     raise ConnectionError("no route to host")
        Traceback (most recent call last):
        ...
        FileNotFoundError: There is no file or folder 'no_such_set' here, and the Hub cannot be reached. Pass a local
        path, or try again with a connection (and without HF_HUB_OFFLINE=1).
    """
    here = f"There is no file or folder {path!r} here"
    try:
        yield
    except DatasetNotFoundError as error:
        if revision is not None or "gated" in str(error):
            raise
        advice = "Check the name, or log in with `hf auth login`."
        raise FileNotFoundError(f"{here} and no dataset {path!r} on the Hub that you may read. {advice}") from error
    except ConnectionError as error:
        advice = "Pass a local path, or try again with a connection (and without HF_HUB_OFFLINE=1)."
        raise FileNotFoundError(f"{here}, and the Hub cannot be reached. {advice}") from error
