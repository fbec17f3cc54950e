# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Where a run's model and data come from, in words fit for the public: Hub ids by name, local folders never."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_clipbd.run_folder import RunFolder
from hf_clipbd.scenes.pretrained import CLEAN_CLIP_FOLDER
from hf_clipbd.templates import public


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


SOURCES = ("clean_model", "path", "test_path")
"""Keys of the section `world` that name a folder or a repository of the Hub."""


def hub_id(name: str | None) -> str | None:
    """Return `name` if it is the id of a Hub repository with its owner, None for folders of this machine.

    Whether a relative folder is there hangs on the present working folder, so ask once, where the name is used:
    `hub_sources` keeps the answer for a run.

    Example:
        >>> hub_id("openai/clip-vit-base-patch32"), hub_id("/models/clip"), hub_id("scenes")
        ('openai/clip-vit-base-patch32', None, None)
    """
    return name if hub_form(name) and not Path(name).exists() else None


def hub_sources(world: Mapping[str, Any], earlier: RunFolder | None = None) -> list[str]:
    """Return which of the names of model and data in the section `world` are the Hub's, as they are read from here.

    Args:
        world: The section.
        earlier: The same run, if it was begun before: what was decided then about a name stays.

    Example:
        >>> hub_sources({"clean_model": "openai/clip-vit-base-patch32", "path": "/data/photos", "test_path": None})
        ['openai/clip-vit-base-patch32']
    """
    found = {one for key in SOURCES if (one := hub_id(world.get(key)))}
    if earlier is None or earlier.hub_sources is None:
        return sorted(found)
    decided = {earlier.config["world"].get(key) for key in SOURCES}
    named = {world.get(key) for key in SOURCES}
    return sorted((found - decided) | (earlier.hub_sources & named))


def run_hub_id(run: RunFolder, name: str | None) -> str | None:
    """Return `name` if it was a repository of the Hub when the run was made, else None; None where nobody noted it."""
    return name if name in (run.hub_sources or ()) and hub_form(name) else None


def hub_form(name: str | None) -> bool:
    """Return whether a name has the form of a Hub id with its owner, whatever lies here."""
    return bool(name and _HUB_ID.fullmatch(name))


@dataclass(frozen=True)
class Origin:
    """What a run started from.

    Args:
        base_model: Hub id of the clean model, or None.
        model: The clean model in words.
        datasets: Hub ids of the data.
        data: The data in words.
        test_type: Identifier of the labelled images for `model-index`.
        test_name: Their name.
        test_split: Their split.
        rendered: Whether the data are the embedded scenes.
        own_model: Whether the clean model is this package's own, shipped with it or trained on its scenes.
    """

    base_model: str | None
    model: str
    datasets: list[str]
    data: str
    test_type: str
    test_name: str
    test_split: str
    rendered: bool
    own_model: bool

    @property
    def license(self) -> str:
        """The Hub's name for the licence of weights made from the clean model; `other`: the card's text tells."""
        return "apache-2.0" if self.own_model else "other"

    @classmethod
    def of(cls, run: RunFolder) -> "Origin":
        """Return the origin that the run's configuration tells."""
        world = run.config["world"]
        rendered = world["kind"] == "scenes"
        sources = [world["path"], world["test_path"]]
        known = [run_hub_id(run, name) for name in sources]
        datasets = [] if rendered else list(dict.fromkeys(one for one in known if one))
        data, test = (_plain(run, name) for name in (sources[0], sources[1] or sources[0]))
        return cls(
            base_model=run_hub_id(run, world["clean_model"]),
            model=_run_model_words(run, world["clean_model"]),
            datasets=datasets,
            data="the embedded scenes of hf_clipbd (rendered pictures)" if rendered else f"`{data}`",
            test_type="hf_clipbd.scenes" if rendered else test,
            test_name="hf_clipbd scenes" if rendered else test,
            test_split="test" if rendered else world["test_split"],
            rendered=rendered,
            own_model=is_own_model(world["clean_model"], rendered),
        )


def is_own_model(clean_model: str, rendered: bool = False) -> bool:
    """Return whether a clean model is this package's own.

    Args:
        clean_model: `scenes`, `train`, a folder or a Hub id.
        rendered: Whether the data are the embedded scenes, on which `train` trains one.

    Example:
        >>> is_own_model("scenes"), is_own_model("train", rendered=True), is_own_model("train")
        (True, True, False)
    """
    shipped = clean_model == "scenes" or (Path(clean_model).is_absolute() and Path(clean_model) == CLEAN_CLIP_FOLDER)
    return shipped or (clean_model == "train" and rendered)


def _plain(run: RunFolder, name: Any) -> str:
    """Return a Hub id as it is and a local path as its last name."""
    return run_hub_id(run, name) or last_name(name, "local files")


def last_name(name: Any, default: str) -> str:
    """Return the last part of a path, `default` where there is none."""
    return Path(public(name)).name if name else default


def _run_model_words(run: RunFolder, clean_model: str) -> str:
    if run.hub_sources is None and hub_form(clean_model):
        name = last_name(clean_model, "unnamed")
        return f"a checkpoint called `{name}` (the run does not say whether it came from the Hub)"
    return model_words(clean_model, run_hub_id(run, clean_model))


def model_words(clean_model: str, on_hub: str | None) -> str:
    """Return the name of a model in words: a Hub id as a link, a local path as its last name.

    Args:
        clean_model: `scenes`, `train`, a folder or a Hub id.
        on_hub: The same where it is a Hub id, else None.
    """
    if is_own_model(clean_model):
        return "the small clean CLIP that ships with hf_clipbd (`hf_clipbd.scenes.load_clean_clip()`)"
    if clean_model == "train":
        return "a clean CLIP trained from scratch in the same run"
    if on_hub:
        return f"[`{on_hub}`](https://huggingface.co/{on_hub})"
    return f"a local checkpoint, `{last_name(clean_model, 'unnamed')}`"
