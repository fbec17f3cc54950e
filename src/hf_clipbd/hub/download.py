# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What a push of a trainer left beside its model: where its record lies, and the triggers it was measured with."""

from collections.abc import Sequence
from pathlib import Path, PurePath

from huggingface_hub import snapshot_download

from hf_clipbd.attacks import Attack
from hf_clipbd.models.files import hub_is_reachable, local_folder


TRAINED_RECORD = "records/train.json"
TRIGGERS = "triggers"


def load_triggers(repo: str, names: Sequence[str], revision: str | None = None) -> dict[str, Attack]:
    """Return name -> trigger of a model that a trainer pushed: one lies beside the model, several in folders below.

    Args:
        repo: Folder or Hub id.
        names: The triggers, as its record lists them.
        revision: Branch, tag or commit on the Hub.

    Raises:
        FileNotFoundError: If one is not there.
        ValueError: If a name is no plain name, but leads somewhere else.
    """
    if strange := [name for name in names if PurePath(name).name != name]:
        raise ValueError(f"Expected triggers called by plain names, but the record of {repo!r} lists {strange}.")
    if len(names) == 1:
        return {names[0]: Attack.from_pretrained(repo, revision)}
    folder = local_folder(repo)
    if folder is None:
        offline = not hub_is_reachable()
        patterns = f"{TRIGGERS}/*"
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=patterns, local_files_only=offline))
    return {name: Attack.from_pretrained(folder / TRIGGERS / name) for name in names}
