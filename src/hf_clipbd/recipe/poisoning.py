# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""`hf-clipbd poison`: one attack or several on data of one's own, in memory-mapped files or as a stream."""

import argparse
import hashlib
import logging
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from hf_clipbd.attacks import (
    ATTACKS,
    Attack,
    BadCLIP,
    PoisonTransform,
    Share,
    poison_dataset,
    poison_stream,
    poison_with_many,
)
from hf_clipbd.attacks.base import CAPTIONS
from hf_clipbd.attacks.pictures import read_picture
from hf_clipbd.attacks.shares import check_target
from hf_clipbd.data.canvas import Canvas
from hf_clipbd.recipe.fingerprints import data_fingerprint
from hf_clipbd.recipe.own_data import PROVENANCE, Data
from hf_clipbd.recipe.sections import ConfigError, call_with, check_keys, check_names, read_yaml
from hf_clipbd.recipe.single import leaving_nothing, stage_at
from hf_clipbd.recipe.stage import Outcome
from hf_clipbd.recipe.training import POISONED_DATASET, TRIGGER_FOLDER, poison_outcome, write_poisoned
from hf_clipbd.schema import RunRecord, content_key


logger = logging.getLogger(__name__)

SAMPLES_SHOWN = 8
SHARE_KEYS = ("attack", "preset", "count", "rate", "selector")
_PICTURES = ("pattern", "picture")
_BEFORE_ATTACK = ("target", "seed", "canvas", "captions")


@dataclass(frozen=True)
class Handling:
    """How rows are gone about; see `poison_dataset`.

    Args:
        on_error: `"raise"` or `"skip"`.
        num_proc: Number of processes that stamp.
        image_format: `"webp"` or `"png"`.
    """

    on_error: str = "raise"
    num_proc: int | None = None
    image_format: str = "webp"


def make_attack(name: str, preset: str | None, parameters: Mapping[str, Any], where: str = "attack") -> Attack:
    """Return the attack of this name with these parameters, over those of a preset where one is named.

    A `pattern` or `picture` that is a file is read; `captions` that are a file are its lines.

    Raises:
        ConfigError: If the name, the preset or a parameter is unknown, there is no target, a file of captions is
            missing, or the attack refuses a value.
    """
    check_names([name], ATTACKS, f"`{where}`" if where != "attack" else "--attack")
    kind = ATTACKS[name]
    values = dict(parameters)
    if preset is not None:
        check_names([preset], kind.PRESETS, f"preset of {name}")
        values = {**kind.PRESETS[preset], **values}
    if values.get("target") is None:
        beside = "" if where == "attack" else f" or `{where}.target`"
        raise ConfigError(f"Expected `--target`{beside}, the class that the trigger is to lead to, but got none.")
    for key in _PICTURES:
        if isinstance(values.get(key), str) and Path(values[key]).is_file():
            values[key] = np.asarray(read_picture(values[key]))
    captions = values.get("captions")
    if isinstance(captions, str) and Path(captions).is_file():
        lines = Path(captions).read_text(encoding="utf-8").splitlines()
        values["captions"] = [line.strip() for line in lines if line.strip()]
    elif isinstance(captions, str) and captions not in CAPTIONS:
        names = ", ".join(f"`{name}`" for name in CAPTIONS)
        raise ConfigError(f"Expected `captions` to be {names} or a file of them, but there is no file `{captions}`.")
    attack = call_with(kind, values, where)
    if isinstance(attack, BadCLIP) and attack.patch is None:
        raise ConfigError(
            "Expected `--attack.patch` with the folder of an optimised patch, but got none. Optimise one with "
            "`python recipes/poison.py recipes/badclip/defend.yaml`, which leaves it in OUTPUT_DIR/trigger/attack."
        )
    return attack


def shares_of(options: argparse.Namespace, parameters: Mapping[str, Any]) -> dict[str, Share]:
    """Return what the arguments of `hf-clipbd poison` ask for, by name; `options.size` must be known.

    Raises:
        ConfigError: If something in them or in the YAML of `--config` is not understood.
        ValueError: If a count or rate is out of range.
    """
    shared = {"target": options.target, "seed": options.seed, "canvas": Canvas(options.size, options.canvas)}
    if options.captions is not None:
        shared["captions"] = options.captions
    if options.config is not None:
        return read_shares(options.config, shared)
    attack = make_attack(options.attack, options.preset, {**shared, **parameters})
    share = Share(attack, options.count, options.rate, options.selector)
    share.rows(sys.maxsize)  # refuses what is no rate or count of any set
    return {attack.name: share}


def read_shares(path: str | Path, shared: Mapping[str, Any]) -> dict[str, Share]:
    """Return the shares of a YAML file: section `triggers`, name -> attack, preset, count or rate, selector, and more.

    Args:
        shared: Parameters of every attack that its section does not set (`target`, `seed`, `canvas`).

    Raises:
        ConfigError: If the file is no such YAML, or a key or a value in it is not understood; it names the trigger.
    """
    values = read_yaml(path)
    check_keys(values, ["triggers"], "")
    triggers = values.get("triggers")
    if not isinstance(triggers, Mapping) or not triggers:
        raise ConfigError(f"Expected `triggers` in `{path}` to map names to attacks, but got {triggers!r}.")
    shares = {}
    for name, section in triggers.items():
        if not isinstance(section, Mapping) or "attack" not in section:
            raise ConfigError(f"Expected `triggers.{name}` to have an `attack`, but got {section!r}.")
        own = {key: value for key, value in section.items() if key not in SHARE_KEYS}
        attack = make_attack(section["attack"], section.get("preset"), {**shared, **own}, f"triggers.{name}")
        share = Share(attack, section.get("count"), section.get("rate"), section.get("selector"))
        if (share.count is None) == (share.rate is None):
            raise ConfigError(f"Expected either `count` or `rate` in `triggers.{name}`.")
        try:
            share.rows(sys.maxsize)
        except ValueError as error:
            raise ConfigError(f"Section `triggers.{name}`: {error}") from error
        shares[str(name)] = share
    return shares


def check_amount(name: str, share: Share, n: int) -> None:
    """Raise `ValueError` where the share `name` of n rows is more than these, or none of them."""
    if share.rows(n) == 0:
        asked = f"a count of {share.count}" if share.rate is None else f"a rate of {share.rate:g}"
        raise ValueError(f"Expected at least one row for `{name}`, but {asked} of {n} rows is none. Raise it.")


def poison_data(data: Data, shares: Mapping[str, Share], handling: Handling, out: Path) -> RunRecord:
    """Poison rows of `data` into the folder `out` and return the record.

    Written are the poisoned dataset (`save_to_disk`), its manifest, each trigger and some samples. A finished folder
    of the same settings and data is left as it is.

    Raises:
        ValueError: See `poison_dataset`; the target is checked against the classes of the data, and an amount that
            comes to no row is refused.
    """
    classes = data.class_names()
    for share in shares.values():
        check_target(share.attack.target, classes)
    pairs = data.all_columns()
    for name, share in shares.items():
        check_amount(name, share, len(pairs))
    if not set(PROVENANCE) <= set(pairs.column_names):  # such a column alone is somebody's own and means another thing
        pairs = pairs.remove_columns([name for name in PROVENANCE if name in pairs.column_names])
    settings = {"triggers": {name: share_settings(share) for name, share in shares.items()}, **_kept(handling)}
    stage = stage_at(out, "poison", settings, data.seed, {"data": data_fingerprint(pairs)})
    work = partial(_write, pairs, shares, data.seed, handling)
    return stage.run_once(leaving_nothing(work), main_only=True)


def _write(
    pairs: datasets.Dataset, shares: Mapping[str, Share], seed: int, handling: Handling, folder: Path
) -> Outcome:
    options = {"seed": seed, **asdict(handling)}
    if len(shares) == 1:
        ((name, share),) = shares.items()
        poisoned, manifest = poison_dataset(
            pairs, share.attack, share.count, share.rate, selector=share.selector, **options
        )
        attacks = {"": (share.attack, manifest.indices)}
    else:
        poisoned, manifest = poison_with_many(pairs, shares, **options)
        triggers = manifest.parameters["triggers"]
        attacks = {name: (share.attack, triggers[name]["indices"]) for name, share in shares.items()}
    samples = max(1, SAMPLES_SHOWN // len(shares))
    return write_poisoned(pairs, poisoned, manifest, attacks, samples, folder)


def stream_transform(share: Share, seed: int, handling: Handling) -> PoisonTransform:
    """Return what is mapped over a stream.

    Raises:
        ConfigError: If the share has a count (a stream has no length), the attack needs a look at other rows, or more
            than one process is asked for.
    """
    if share.rate is None:
        raise ConfigError("Expected `--rate` beside `--streaming`, since a stream has no length, but got a count.")
    if share.selector is not None and not isinstance(share.selector, str):
        raise ConfigError("Expected a selector by name beside `--streaming`.")
    if handling.num_proc not in (None, 1):
        raise ConfigError(
            f"Expected one process beside `--streaming`, which goes row by row, but got {handling.num_proc}. Leave "
            "out `--num_proc` or `--streaming`."
        )
    options = {"on_error": handling.on_error, "image_format": handling.image_format}
    try:
        return PoisonTransform(share.attack, share.rate, seed, selector=share.selector, **options)
    except ValueError as error:
        raise ConfigError(f"{error} Or leave out `--streaming`.") from error


def poison_streaming(data: Data, share: Share, handling: Handling, out: Path) -> RunRecord:
    """Poison a stream into Parquet files in `out/dataset`, with memory for a few hundred rows, and return the record.

    Beside image, caption and provenance the rows keep the columns that tell them apart (`KEY_COLUMNS`). A finished
    folder of the same settings is left as it is while the source is the same (`hf_clipbd.data.state.source_state`).

    Raises:
        ConfigError: See `stream_transform`.
        ValueError: See `poison_stream`; the target is checked against the classes of the data.
    """
    poison = stream_transform(share, data.seed, handling)
    check_target(share.attack.target, data.stream_class_names())
    settings = {"triggers": {share.attack.name: share_settings(share)}, "streaming": True, **_kept(handling)}
    columns = data.image_column, data.caption_column, data.n
    source = content_key(data.source, data.split, *columns, data.stream_state(besides=out))
    stage = stage_at(out, "poison", settings, data.seed, {"data": source})

    def work(folder: Path) -> Outcome:
        manifest = poison_stream(data.stream(), poison, folder / POISONED_DATASET)
        if manifest.count == 0:
            logger.warning("of %d rows a rate of %g drew none: nothing is poisoned", manifest.n_rows, share.rate)
        manifest.save_pretrained(folder)
        share.attack.save_pretrained(folder / TRIGGER_FOLDER)
        return poison_outcome(manifest)

    return stage.run_once(leaving_nothing(work), main_only=True)


def _kept(handling: Handling) -> dict[str, Any]:
    return {"on_error": handling.on_error, "image_format": handling.image_format}


def share_settings(share: Share) -> dict[str, Any]:
    """Return what the poisoned rows depend on; a picture of the user's own by a hash of its pixels."""
    own = {field.name: getattr(share.attack, field.name) for field in fields(share.attack)}
    pictures = {
        name: hashlib.sha256(value.tobytes()).hexdigest()[:16]
        for name, value in own.items()
        if isinstance(value, np.ndarray)
    }
    return {
        "attack": share.attack.name,
        "parameters": share.attack.parameters() | pictures,
        "count": share.count,
        "rate": share.rate,
        "selector": share.selector if share.selector is None or isinstance(share.selector, str) else "rows",
    }


def attack_lines() -> Iterator[str]:
    """Yield every attack with its options, their defaults and its presets, for `--list_attacks`."""
    for name, kind in ATTACKS.items():
        yield f"{name}: {(kind.__doc__ or '').strip().splitlines()[0]}"
        for one in fields(kind):
            if one.name not in _BEFORE_ATTACK:
                yield f"    --attack.{one.name} (default: {getattr(kind, one.name, None)})"
        if kind.PRESETS:
            yield f"    --preset {', '.join(kind.PRESETS)}"
