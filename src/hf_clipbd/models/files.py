# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Where a named file of a model lies: in a local folder, or downloaded from the Hugging Face Hub."""

import os
import socket
import time
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id


ANSWERS_WITHIN, ASKED_AGAIN_AFTER = 3.0, 10.0
"""Seconds that the Hub has to answer, and for which it is taken to be out of reach once it did not."""

_silent: dict[str, float] = {}
"""Address of a Hub -> when it was last found out of reach."""


def local_folder(id_or_path: str | os.PathLike) -> Path | None:
    """Return the folder that `id_or_path` names, or None where it has the form of a Hub id and no folder is there.

    Raises:
        FileNotFoundError: If it can only be meant as a path, and nothing is there.
        NotADirectoryError: If it is a file.
    """
    path = Path(id_or_path).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise NotADirectoryError(
            f"Expected a folder or a Hub id, but {path} is a file. Pass the folder that holds it."
        )
    name = str(id_or_path)
    is_path = isinstance(id_or_path, os.PathLike) or path.is_absolute() or name.startswith((".", "~")) or "\\" in name
    if is_path or not _is_hub_id(name):
        raise FileNotFoundError(f"Expected a folder or a Hub id such as 'owner/name', but there is no {name!r}.")
    return None


def resolve_file(
    id_or_path: str | os.PathLike, filename: str, revision: str | None = None, repo_type: str = "model"
) -> Path:
    """Return the local path of one file of a folder or of a Hub repository, downloading it where needed.

    Args:
        id_or_path: Local folder, which goes first, or Hub id such as "owner/name".
        filename: Relative path of the file, with forward slashes.
        revision: Branch, tag or commit on the Hub.
        repo_type: "model" or "dataset".

    Returns:
        Path of an existing file.

    Raises:
        FileNotFoundError: If the folder, repository, revision or file is not there or cannot be reached.
        ValueError: If `filename` leaves the folder.

    Example:
        >>> import pathlib, tempfile
        >>> folder = tempfile.mkdtemp()
        >>> _ = pathlib.Path(folder, "attack.json").write_text("{}")
        >>> resolve_file(folder, "attack.json").name
        'attack.json'
    """
    if PurePosixPath(filename).is_absolute() or ".." in PurePosixPath(filename).parts:
        raise ValueError(f"Expected a relative file name inside {id_or_path}, but got {filename!r}.")
    folder = local_folder(id_or_path)
    if folder is not None:
        path = folder / filename
        if not path.is_file():
            present = ", ".join(sorted(entry.name for entry in folder.iterdir())[:12]) or "nothing"
            raise FileNotFoundError(f"Expected {filename!r} in {folder}, but found {present}.")
        return path
    name = str(id_or_path)
    try:
        return Path(
            hf_hub_download(
                name, filename, revision=revision, repo_type=repo_type, local_files_only=not hub_is_reachable()
            )
        )
    except RepositoryNotFoundError as error:
        message = f"There is no folder {name!r} here and no {repo_type} {name!r} on the Hub that you may read."
        raise FileNotFoundError(f"{message} Check the name, or log in with `hf auth login`.") from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(f"The {repo_type} {name!r} on the Hub has no revision {revision!r}.") from error
    except LocalEntryNotFoundError as error:
        message = f"There is no folder {name!r} here, the cache does not hold {filename!r} of it"
        raise FileNotFoundError(
            f"{message}, and the Hub cannot be reached. Pass a local folder, or try again with a connection "
            "(and without HF_HUB_OFFLINE=1)."
        ) from error
    except EntryNotFoundError as error:
        raise FileNotFoundError(f"The {repo_type} {name!r} on the Hub has no file {filename!r}.") from error


def has_file(id_or_path: str | os.PathLike, filename: str, revision: str | None = None) -> bool:
    """Return whether a folder or Hub repository of a model holds a file, which is downloaded where needed.

    Example:
        >>> has_file(".", "no_such_file.json")
        False
    """
    try:
        resolve_file(id_or_path, filename, revision)
    except FileNotFoundError:
        return False
    return True


def hub_is_reachable() -> bool:
    """Return whether the Hub answers; where not, the cache is used without long retries.

    A Hub that did not answer is not asked again for some seconds: a model is several files, and each of them asks.
    """
    if constants.HF_HUB_OFFLINE:
        return False
    if getproxies():
        return True
    endpoint = constants.ENDPOINT
    if endpoint in _silent and time.monotonic() - _silent[endpoint] < ASKED_AGAIN_AFTER:
        return False
    address = urlsplit(endpoint)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        with socket.create_connection((address.hostname, port), timeout=ANSWERS_WITHIN):
            return True
    except OSError:
        _silent[endpoint] = time.monotonic()
        return False


def _is_hub_id(name: str) -> bool:
    if name.count("/") != 1:
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True
