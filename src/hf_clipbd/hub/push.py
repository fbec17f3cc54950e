# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""From a run folder to the Hub: what belongs together goes up in one commit, and what is dangerous only on request."""

import json
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

from huggingface_hub import DatasetCard, ModelCard

from hf_clipbd.data.path_rows import check_files, names_files
from hf_clipbd.hub.adapters import ADAPTER, Base, adapter_files, base_on_hub, is_whole
from hf_clipbd.hub.cards import (
    CARD_FILE,
    PICTURES,
    check_evaluated,
    render_dataset_card,
    render_model_card,
    trigger_files,
)
from hf_clipbd.hub.golden import public_config
from hf_clipbd.hub.publish import Files, check_repo_id, publish
from hf_clipbd.run_folder import CONFIG_FILE, RunFolder
from hf_clipbd.schema import MANIFEST_FILE, RECORD_FILE
from hf_clipbd.templates import public


if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

MODEL_FILES = (".safetensors", ".json", ".txt", ".jinja")
SOURCE_NAMES = ("_name_or_path", "name_or_path", "base_model_name_or_path")
"""Where a model was loaded from: needed by nobody who loads it again, and often a folder of this machine."""
LOCAL_ENDINGS = ("_file", "_files", "_path", "_dir", "_name")
ROWS_A_FILE = 50_000


def refuse(run: RunFolder, what: str, repo_id: str, allow_backdoored: bool, base: str | None) -> None:
    """Raise `ValueError` for what must not go up or not there, before anything is read or sent; see `push_run`."""
    check_repo_id(repo_id)
    allowed = ["poison", "victim", *(f"defend/{name}" for name in run.defenses)]
    if what not in allowed:
        raise ValueError(f"Expected `what` to be one of {allowed}, but got {what!r}.")
    if what in ("poison", "victim") and not allow_backdoored:
        raise ValueError(
            f"`{what}` is backdoored on purpose and stays here. Pass allow_backdoored=True (`--allow_backdoored`) if "
            f"you mean to publish it; its card says so in the first line."
        )
    if what != "poison":
        check_evaluated(run, what.removeprefix("defend/"))
    elif base is not None:
        raise ValueError("Expected a model beside `base`, but got the poisoned dataset. Leave `base` out.")


def json_bytes(value: object) -> bytes:
    """Return `value` as the JSON file that goes up."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _records(run: RunFolder, what: str) -> Files:
    """Return the records behind `what`, without paths of this machine."""
    stages = ["poison"]
    if what != "poison":
        model = what.removeprefix("defend/")
        stages += dict.fromkeys(["victim", what, "evaluate/clean", "evaluate/victim", f"evaluate/{model}"])
    files: Files = {f"records/{stage}.json": json_bytes(public(vars(run.record(stage)))) for stage in stages}
    return {**files, f"records/{CONFIG_FILE}": public_config(run).encode()}


def model_files(folder: Path, others: Iterable[str] = ()) -> Files:
    """Return a model's and its processor's files; where they were loaded from is taken out of their configurations.

    Args:
        folder: Where they lie.
        others: Names of files there that are none of the model's.

    Raises:
        FileNotFoundError: If there are no weights in safetensors.
    """
    files: Files = {}
    for path in sorted(folder.iterdir()):
        if not path.is_file() or path.suffix not in MODEL_FILES or path.name in (RECORD_FILE, *others):
            continue
        files[path.name] = path
        if path.name.endswith("config.json"):
            values = json.loads(path.read_text(encoding="utf-8"))
            kept = _without_sources(values)
            if kept != values:
                files[path.name] = json_bytes(kept)
    if not any(name.endswith(".safetensors") for name in files):
        raise FileNotFoundError(f"Expected a model in safetensors in `{folder}`, but found {sorted(files)}.")
    return files


def _without_sources(values: Any) -> Any:
    """Return a configuration without `SOURCE_NAMES` and without files named by an absolute path, at any depth."""
    if isinstance(values, list):
        return [_without_sources(one) for one in values]
    if not isinstance(values, dict):
        return values
    return {
        name: _without_sources(one)
        for name, one in values.items()
        if name not in SOURCE_NAMES and not (name.endswith(LOCAL_ENDINGS) and _is_absolute(one))
    }


def _is_absolute(value: Any) -> bool:
    return isinstance(value, str) and (value.startswith(("/", "~")) or PureWindowsPath(value).is_absolute())


def poisoned_parts(run: RunFolder) -> "Iterator[tuple[str, datasets.Dataset]]":
    """Yield name of file and rows of the parts in which the poisoned dataset goes up.

    Raises:
        ValueError: If a row names a file that is no picture of this machine.
    """
    import datasets

    rows = datasets.load_from_disk(str(run.path / "poison" / "dataset"))
    check_files(rows, remote=True)
    n_files = -(-len(rows) // ROWS_A_FILE)
    for number in range(n_files):
        yield f"train-{number:05d}-of-{n_files:05d}.parquet", rows.shard(n_files, number, contiguous=True)


def _parquet(run: RunFolder, scratch: Path) -> Files:
    """Write the poisoned dataset as parquet files with the pictures' bytes in them, and return them.

    The run's folder stays as it is: of a part whose rows name files a copy lies in `scratch` while it is written.

    Raises:
        ValueError: As `poisoned_parts`.
    """
    from datasets.table import embed_table_storage

    files: Files = {}
    for name, part in poisoned_parts(run):
        copied = scratch / f"{name}.arrow"
        if names_files(part):
            options = {"batched": True, "batch_size": 1000, "cache_file_name": str(copied)}
            part = part.with_format("arrow").map(embed_table_storage, **options).with_format(None)
        part.to_parquet(str(scratch / name))
        copied.unlink(missing_ok=True)
        files[f"data/{name}"] = scratch / name
    return files


def model_content(run: RunFolder, what: str, base: Base | None) -> Files:
    """Return the files of the model itself; of adapters, with the processor's but without the whole weights."""
    files = model_files(run.path / what, trigger_files(run))
    if base is None:
        return files
    files = {name: one for name, one in files.items() if not is_whole(name)}
    return files | adapter_files(run.path / what / ADAPTER, base)


def start_of(run: RunFolder, what: str) -> Path | None:
    """Return the folder of the model that the training of `what` started from, None where it is not in the run."""
    if "victim" in run.record(what).inputs:
        return run.path / "victim"
    clean = run.training_stage("clean")
    return None if clean is None else run.path / clean


def collect_files(
    run_folder: str | os.PathLike, what: str, repo_id: str, scratch: Path, base: Base | None = None
) -> Files:
    """Return all that goes up for `what`: content, trigger, manifest, records, pictures, figures and card.

    Args:
        run_folder: The run.
        what: `defend/<name>`, `victim` or `poison`.
        repo_id: Where it will lie, for the card.
        scratch: Empty folder for what has to be written first.
        base: The model on the Hub onto which adapters go, where they and not the whole model are to go up.

    Raises:
        FileNotFoundError: If a record or a file is missing; the message names it.
        ValueError: If a figure is missing from its record.
    """
    run = RunFolder(run_folder)
    card = card_of(run, what, repo_id, base)
    content = _parquet(run, scratch) if what == "poison" else model_content(run, what, base)
    return {**content, **files_beside(run, what, card)}


def card_of(run: RunFolder, what: str, repo_id: str, base: Base | None) -> ModelCard | DatasetCard:
    """Return the card of `what`."""
    if what == "poison":
        return render_dataset_card(run.path, repo_id)
    return render_model_card(run.path, what, repo_id, base)


def files_beside(run: RunFolder, what: str, card: ModelCard | DatasetCard) -> Files:
    """Return what goes up beside the model or the dataset: card, manifest, trigger, pictures, figures and records."""
    sample = run.samples()[0]
    manifest = json.loads((run.path / "poison" / MANIFEST_FILE).read_text(encoding="utf-8"))
    files: Files = {CARD_FILE: str(card).encode(), MANIFEST_FILE: json_bytes(public(manifest))}
    files |= trigger_files(run)
    files |= {f"{PICTURES}/clean.png": sample.clean, f"{PICTURES}/poisoned.png": sample.poisoned}
    files |= {f"figures/{path.name}": path for path in sorted((run.path / "report" / "figures").glob("*.png"))}
    return {**files, **_records(run, what)}


def push_run(
    run_folder: str | os.PathLike,
    repo_id: str,
    what: str = "defend/cleanerclip",
    private: bool = True,
    allow_backdoored: bool = False,
    token: str | None = None,
    base: str | None = None,
) -> str:
    """Put a model or the poisoned dataset of a run on the Hub, in one commit, and return the commit's address.

    Args:
        run_folder: The run.
        repo_id: Repository, `owner/name`; made if it is not there yet.
        what: `defend/<name>`, `victim` or `poison` (the dataset).
        private: Whether it is private; an existing public repository is refused then.
        allow_backdoored: Whether a victim or a poisoned dataset may go up.
        token: Hub token; the stored one by default.
        base: Repository of the model that the training of `what` started from (of a defended model the victim). Only
            the low-rank adapters go up then, and name it and its present commit.

    Raises:
        FileNotFoundError: If a record or a file is missing; a model without its evaluation is refused.
        ValueError: If `what` is backdoored and that is not allowed, is nothing of this run, or its evaluation is out
            of date; if a file holds a Hub token, the repository is public and should not be, or `base` holds other
            weights than the training started from.
        PermissionError: If the Hub does not let you write there.
        ConnectionError: If the Hub did not take it; the repository then holds nothing of this push.
    """
    run = RunFolder(run_folder)
    refuse(run, what, repo_id, allow_backdoored, base)
    repo_type = "dataset" if what == "poison" else "model"
    onto = None if base is None else base_on_hub(base, start_of(run, what), token)
    with tempfile.TemporaryDirectory() as scratch:
        files = collect_files(run_folder, what, repo_id, Path(scratch), onto)
        address = publish(files, repo_id, repo_type, private, token, f"Add {what} with its records")
    logger.info("%s is at %s", what, address)
    return address
