# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Where a run's model and data come from, in words fit for the public: Hub ids by name, local folders never."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_clipbd.run_folder import RunFolder
from hf_clipbd.templates import public


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def hub_id(name: str | None) -> str | None:
    """Return `name` if it is the id of a Hub repository with its owner, None for folders of this machine.

    Example:
        >>> hub_id("openai/clip-vit-base-patch32"), hub_id("/models/clip"), hub_id("scenes")
        ('openai/clip-vit-base-patch32', None, None)
    """
    return name if name and _HUB_ID.fullmatch(name) and not Path(name).exists() else None


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
    """

    base_model: str | None
    model: str
    datasets: list[str]
    data: str
    test_type: str
    test_name: str
    test_split: str
    rendered: bool

    @classmethod
    def of(cls, run: RunFolder) -> "Origin":
        """Return the origin that the run's configuration tells."""
        world = run.config["world"]
        rendered = world["kind"] == "scenes"
        sources = [world["path"], world["test_path"]]
        datasets = [] if rendered else list(dict.fromkeys(one for one in map(hub_id, sources) if one))
        data, test = (_plain(name, "local files") for name in (sources[0], sources[1] or sources[0]))
        return cls(
            base_model=hub_id(world["clean_model"]),
            model=model_words(world["clean_model"]),
            datasets=datasets,
            data="the embedded scenes of hf_clipbd (rendered pictures)" if rendered else f"`{data}`",
            test_type="hf_clipbd.scenes" if rendered else test,
            test_name="hf_clipbd scenes" if rendered else test,
            test_split="test" if rendered else world["test_split"],
            rendered=rendered,
        )


def _plain(name: Any, default: str) -> str:
    """Return a Hub id as it is and a local path as its last name."""
    return hub_id(name) or (Path(public(name)).name if name else default)


def model_words(clean_model: str) -> str:
    """Return the name of a model in words: a Hub id as a link, a local path as its last name."""
    shipped = "the small clean CLIP that ships with hf_clipbd (`hf_clipbd.scenes.load_clean_clip()`)"
    words = {"scenes": shipped, "train": "a clean CLIP trained from scratch in the same run"}
    if hub_id(clean_model):
        return f"[`{clean_model}`](https://huggingface.co/{clean_model})"
    return words.get(clean_model, f"a local checkpoint, `{_plain(clean_model, 'unnamed')}`")
