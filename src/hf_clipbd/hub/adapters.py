# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Low-rank adapters on the Hub: small files that name the model they belong to, by its repository and commit."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi

from hf_clipbd.hub.publish import Files, check_repo_id, explained
from hf_clipbd.models.adapted import CONFIG, WEIGHTS


ADAPTER = "adapter"


@dataclass(frozen=True)
class Base:
    """The model on the Hub that adapters belong to.

    Args:
        repo_id: Its repository.
        revision: The commit whose weights the adapters were trained on.
    """

    repo_id: str
    revision: str


def base_on_hub(repo_id: str, folder: Path | None, token: str | None = None) -> Base:
    """Return the repository of a base model at its present commit.

    Args:
        repo_id: `owner/name`.
        folder: Where the very weights lie that the adapters were trained on, which the repository has to hold; None
            where they came from the repository.
        token: Hub token; the stored one by default.

    Raises:
        ValueError: If the repository holds other weights, or none.
        PermissionError: If the Hub does not let you read it.
        ConnectionError: If the Hub cannot be reached.
    """
    check_repo_id(repo_id)
    api = HfApi(token=token)
    with explained(repo_id, token):
        revision = api.model_info(repo_id).sha
        listed = api.list_repo_tree(repo_id, revision=revision)
        there = {one.path: one.lfs.sha256 for one in listed if one.path.endswith(".safetensors") and one.lfs}
    weights = [] if folder is None else [path for path in sorted(folder.glob("*.safetensors")) if is_whole(path.name)]
    here = {path.name: _sha256(path) for path in weights}
    missing = [name for name, digest in here.items() if there.get(name) != digest]
    if missing or not any(map(is_whole, there)):
        raise ValueError(
            f"Expected `{repo_id}` to hold the weights that the adapters were trained on, but its "
            f"{missing or 'safetensors'} differ or are not there. Push that model first, and name its repository."
        )
    return Base(repo_id, revision)


def is_whole(name: str) -> bool:
    """Return whether a file at the top of a model's folder is part of the whole model, not of adapters onto it.

    Example:
        >>> [is_whole(name) for name in ("model.safetensors", "open_clip_model.safetensors", "pattern.safetensors")]
        [True, True, False]
    """
    return name.startswith(("model", "open_clip_")) or name in ("config.json", "generation_config.json")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def adapter_files(folder: Path, base: Base) -> Files:
    """Return the adapters in `folder` as files that name their base on the Hub instead of a folder of this machine.

    Raises:
        FileNotFoundError: If there are none.
    """
    if not ((folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()):
        raise FileNotFoundError(
            f"Expected adapters (`{CONFIG}` and `{WEIGHTS}`) in `{folder}`, but they are not there. Train with `lora`."
        )
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    config |= {"base_model_name_or_path": base.repo_id, "revision": base.revision}
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    return {WEIGHTS: folder / WEIGHTS, CONFIG: text.encode()}
