# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What a push would send and where: told without the network, with nothing written."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from huggingface_hub import get_token

from hf_clipbd.hub.adapters import Base
from hf_clipbd.hub.publish import Files, check_no_token, check_repo_id
from hf_clipbd.hub.push import card_of, files_beside, model_content, poisoned_parts, refuse, start_of
from hf_clipbd.run_folder import RunFolder


UNKNOWN_COMMIT = 40 * "0"
"""Stands for the commit of a base, which only the Hub knows."""


@dataclass(frozen=True)
class PlannedPush:
    """What a push would do.

    Args:
        what: `defend/<name>`, `victim` or `poison`.
        repo_id: Repository, `owner/name`.
        repo_type: "model" or "dataset".
        private: Whether a new repository would be private.
        license: The licence that the card names.
        title: The card's title.
        says: The card's paragraphs above its first section.
        tags: The card's tags.
        files: Path in the repository -> bytes.
        estimated: Those of the files whose size is known only when they are written, and is about this.
        base: Repository of the model that adapters go onto, None for a whole model.
        has_token: Whether there is a token for the Hub on this machine.
    """

    what: str
    repo_id: str
    repo_type: str
    private: bool
    license: str
    title: str
    says: tuple[str, ...]
    tags: tuple[str, ...]
    files: Mapping[str, int]
    estimated: tuple[str, ...]
    base: str | None
    has_token: bool


def plan_push(
    run_folder: str | os.PathLike,
    repo_id: str,
    what: str = "defend/cleanerclip",
    private: bool = True,
    allow_backdoored: bool = False,
    token: str | None = None,
    base: str | None = None,
) -> PlannedPush:
    """Return what `push_run` would do with the same arguments; the Hub is not asked, and nothing is written.

    What only the Hub knows is not looked at: whether it lets you write there, whether a repository that is there is
    public, what of an earlier push would go, and whether `base` holds the weights that adapters were trained on.

    Raises:
        FileNotFoundError: As `push_run`.
        ValueError: As `push_run`, but for what only the Hub knows.
    """
    run = RunFolder(run_folder)
    refuse(run, what, repo_id, allow_backdoored, base)
    onto = None
    if base is not None:
        check_repo_id(base)
        start_of(run, what)
        onto = Base(base, UNKNOWN_COMMIT)
    card = card_of(run, what, repo_id, onto)
    content: Files = {} if what == "poison" else model_content(run, what, onto)
    files = {**content, **files_beside(run, what, card)}
    known = token or get_token()
    check_no_token(files, known)
    parts = {f"data/{name}": part.data.nbytes for name, part in poisoned_parts(run)} if what == "poison" else {}
    return PlannedPush(
        what=what,
        repo_id=repo_id,
        repo_type="dataset" if what == "poison" else "model",
        private=private,
        license=card.data.license,
        title=card.data.pretty_name if what == "poison" else card.data.model_name,
        says=_opening(card.text),
        tags=tuple(card.data.tags),
        files=parts
        | {name: len(one) if isinstance(one, bytes) else one.stat().st_size for name, one in files.items()},
        estimated=tuple(parts),
        base=base,
        has_token=known is not None,
    )


def _opening(text: str) -> tuple[str, ...]:
    """Return a card's paragraphs above its first section, each on one line, without its title and tables.

    Example:
        >>> _opening("# Title\\n\\nIt is\\nbackdoored.\\n\\n| a |\\n\\n## Use\\n\\nSo.")
        ('It is backdoored.',)
    """
    paragraphs = (" ".join(one.split()) for one in text.split("\n## ")[0].split("\n\n"))
    return tuple(one for one in paragraphs if one and not one.startswith(("#", "|")))
