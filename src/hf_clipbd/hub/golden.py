# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Cards for people to review: rendered from a small copy of a run's records that is kept under version control."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import yaml

from hf_clipbd.hub.cards import PICTURES, copy_pictures, render_dataset_card, render_model_card
from hf_clipbd.hub.metric_card import render_metric_card
from hf_clipbd.hub.origin import SOURCES, run_hub_id
from hf_clipbd.hub.usage import Usage
from hf_clipbd.models.open_clip import OPEN_CLIP_CONFIG
from hf_clipbd.run_folder import CONFIG_FILE, SOURCES_FILE, RunFolder
from hf_clipbd.schema import MANIFEST_FILE, RECORD_FILE, write_json
from hf_clipbd.templates import public


def render_golden(run_folder: str | os.PathLike, folder: str | os.PathLike) -> list[Path]:
    """Render every card of a run into one folder and return the paths: equal records give equal bytes.

    Args:
        run_folder: A run, or a copy of its records by `copy_records`.
        folder: Gets `victim.md`, one `<defence>.md` each, `poisoned_dataset.md`, and the pictures that they show; of a
            run that was searched `metric.md` too.
    """
    run, folder = RunFolder(run_folder), Path(folder)
    cards: dict[str, Any] = {"victim": render_model_card(run_folder, "victim")}
    cards |= {name: render_model_card(run_folder, f"defend/{name}") for name in run.defenses}
    cards["poisoned_dataset"] = render_dataset_card(run_folder)
    if (run.path / "detect" / RECORD_FILE).is_file():
        cards["metric"] = render_metric_card(run_folder)
    paths = []
    for name, card in cards.items():
        card.save(folder / f"{name}.md")
        paths.append(folder / f"{name}.md")
    copy_pictures(run, folder / PICTURES)
    return paths


def public_config(run: RunFolder) -> str:
    """Return a run's configuration as YAML, without folders of this machine."""
    config = public({name: value for name, value in run.config.items() if name != "output_dir"})
    world = config["world"]
    for key in SOURCES:
        name = run.config["world"].get(key)
        if name and "/" in name and not run_hub_id(run, name):
            world[key] = f"…/{Path(name).name}"
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True)


def copy_records(run_folder: str | os.PathLike, folder: str | os.PathLike) -> Path:
    """Copy the records and what else cards need into `folder`, without paths of this machine, and return it.

    Args:
        run_folder: A finished run.
        folder: Is written afresh.
    """
    run, folder = RunFolder(run_folder), Path(folder)
    if folder.exists():
        shutil.rmtree(folder)
    trained = ["victim", *(f"defend/{name}" for name in run.defenses)]
    searched = ["detect"] if (run.path / "detect" / RECORD_FILE).is_file() else []
    for stage in ["poison", *trained, *(f"evaluate/{name}" for name in run.models), *searched]:
        write_json(folder / stage / RECORD_FILE, public(vars(run.record(stage))))
    for stage in trained:
        if Usage.of_folder(run.path / stage).library == "open_clip":
            description = json.loads((run.path / stage / OPEN_CLIP_CONFIG).read_text(encoding="utf-8"))
            write_json(folder / stage / OPEN_CLIP_CONFIG, public(description))
            continue
        model_type = json.loads((run.path / stage / "config.json").read_text(encoding="utf-8"))["model_type"]
        write_json(folder / stage / "config.json", {"model_type": model_type})
    manifest = json.loads((run.path / "poison" / MANIFEST_FILE).read_text(encoding="utf-8"))
    write_json(folder / "poison" / MANIFEST_FILE, public(manifest))
    (folder / CONFIG_FILE).write_text(public_config(run), encoding="utf-8")
    if run.hub_sources is not None:
        write_json(folder / SOURCES_FILE, sorted(run.hub_sources))
    first = run.samples()[0]
    captions = {"caption_clean": first.caption_clean, "caption_poisoned": first.caption_poisoned}
    samples = write_json(folder / "poison" / "samples" / "samples.json", [{"index": first.index, **captions}]).parent
    shutil.copyfile(first.clean, samples / "00_clean.png")
    shutil.copyfile(first.poisoned, samples / "00_poisoned.png")
    return folder
