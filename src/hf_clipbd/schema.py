# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What the stages hand to each other: column names, manifests, evaluation reports and run records, as plain JSON."""

import hashlib
import json
import math
import os
import platform
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any


IMAGE = "image"
CAPTION = "caption"
LABEL = "label"
IS_POISONED = "is_poisoned"
SOURCE_INDEX = "source_index"
TRIGGER = "trigger"

TOP_K = (1, 3, 5, 10)
EPOCH_KS = (1, 10)
MANIFEST_FILE = "manifest.json"
RECORD_FILE = "record.json"
RECORDED_PACKAGES = (
    "hf_clipbd", "torch", "transformers", "datasets", "accelerate", "peft", "evaluate", "huggingface_hub",
    "numpy", "pillow", "scikit-learn",
)  # fmt: skip


TOKEN = re.compile(r"hf_[A-Za-z0-9]{20,}")
"""What a token of the Hub looks like."""


def reachable(ks: Iterable[int], n_classes: int) -> list[int]:
    """Return the k of top-k that there are classes for, ascending, each once.

    Example:
        >>> reachable(TOP_K, 4)
        [1, 3]
    """
    return sorted({k for k in ks if k <= n_classes})


def command_line(arguments: Sequence[str]) -> str:
    """Return a command line as records keep it: the script's name, the arguments, and no token of the Hub.

    Example:
        >>> command_line(["/home/eve/run.py", "--seed", "1", "--hub_token", "secret", "--x.hub_token=secret"])
        'run.py --seed 1 --hub_token … --x.hub_token=…'
    """
    line = TOKEN.sub("hf_…", "\0".join([Path(arguments[0]).name, *arguments[1:]]))
    return re.sub(r"(--[^\0=]*token)([\0=])[^\0]*", r"\1\2…", line).replace("\0", " ")


def package_versions() -> dict[str, str]:
    """Return the installed version of every package that can change a figure, Python's own included."""
    versions = {"python": platform.python_version()}
    for name in RECORDED_PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys and no NaN: equal values give equal bytes.

    Raises:
        ValueError: If `value` holds NaN or infinity, which JSON cannot carry.
    """
    return json.dumps(value, sort_keys=True, allow_nan=False, ensure_ascii=False, separators=(",", ":"))


def content_key(*parts: Any) -> str:
    """Return a 16-digit hexadecimal hash of JSON-able values; equal values give equal keys on every machine."""
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()[:16]


def write_json(path: str | os.PathLike, value: Any) -> Path:
    """Write `value` to `path` in one step (a reader sees the old file or the new one, never half of it)."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(path.name + ".partial")
    scratch.write_text(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(scratch, path)
    return path


def _read_json(folder: str | os.PathLike, name: str, what: str) -> dict[str, Any]:
    path = Path(folder)
    path = path / name if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"Expected {what} at `{path}`, but there is no such file. Run the stage that writes it."
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"it holds {found!r:.40}")
        return found
    except ValueError as error:  # of JSON or of UTF-8
        raise ValueError(
            f"Expected {what} in `{path}`, but it is cut short or broken: {error}. Remove it, and run the stage that "
            "writes it."
        ) from error


def _known_fields(cls: type, values: dict[str, Any], what: str) -> dict[str, Any]:
    unknown = sorted(set(values) - set(cls.__dataclass_fields__))
    if unknown:
        raise ValueError(f"Expected {what} with fields {sorted(cls.__dataclass_fields__)}, but got unknown {unknown}.")
    return values


@dataclass(frozen=True)
class Rate:
    """A share in [0, 1] beside its denominator.

    Args:
        value: The share, in [0, 1]; NaN is refused, since a rate over nothing is no rate.
        n: How many cases it was measured on, at least 1.

    Example:
        >>> Rate.of(3, 4)
        Rate(value=0.75, n=4)
    """

    value: float
    n: int

    def __post_init__(self):
        if self.n < 1 or not 0.0 <= self.value <= 1.0:
            raise ValueError(f"Expected a rate in [0, 1] over at least one case, but got {self.value} over {self.n}.")

    @classmethod
    def of(cls, hits: int, n: int) -> "Rate":
        """Return `hits / n`; raises `ValueError` when `n` is 0."""
        if n < 1:
            raise ValueError("Expected at least one case to measure a rate on, but got none.")
        return cls(float(hits) / n, int(n))

    def interval(self, z: float = 1.959964) -> tuple[float, float]:
        """Return the Wilson score interval (Wilson, 1927) at `z` standard deviations, 95 % by default."""
        centre = (self.value + z * z / (2 * self.n)) / (1 + z * z / self.n)
        spread = self.value * (1 - self.value) / self.n + z * z / (4 * self.n * self.n)
        half = z * math.sqrt(spread) / (1 + z * z / self.n)
        return max(0.0, centre - half), min(1.0, centre + half)


@dataclass
class TriggerReport:
    """Attack success and robust accuracy of one trigger on one model.

    Args:
        target: Class name that the trigger is meant to produce.
        asr: k -> share of stamped images of other classes with the target in the top k.
        ra: k -> share of the same stamped images with their true label in the top k.
        include_target: Whether images of the target class are counted too (the papers' convention).
    """

    target: str
    asr: dict[int, Rate]
    ra: dict[int, Rate]
    include_target: bool = False


@dataclass
class EvalReport:
    """Benign accuracy and, by trigger, attack success of one model on one labelled set.

    Args:
        ba: k -> share of clean images whose label is in the top k.
        triggers: Name -> its report.
        n_classes: Number of classes that compete.
    """

    ba: dict[int, Rate]
    triggers: dict[str, TriggerReport]
    n_classes: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; top-k keys become strings."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "EvalReport":
        """Return the report that `to_dict` wrote.

        Raises:
            ValueError: If a field is unknown.
        """

        def rates(by_k: dict[str, Any]) -> dict[int, Rate]:
            return {int(k): Rate(**rate) for k, rate in by_k.items()}

        values = dict(_known_fields(cls, values, "an evaluation report"))
        triggers = {
            name: TriggerReport(one["target"], rates(one["asr"]), rates(one["ra"]), one["include_target"])
            for name, one in values["triggers"].items()
        }
        return cls(ba=rates(values["ba"]), triggers=triggers, n_classes=values["n_classes"])


@dataclass
class PoisonManifest:
    """Which rows of a dataset were poisoned, how, and from what.

    Args:
        attack: Key of the attack in `hf_clipbd.attacks.ATTACKS`.
        parameters: What the attack was built with; enough to build it again.
        target: Class name that the captions of the poisoned rows carry.
        indices: Row numbers of the poisoned rows in the source, ascending.
        n_rows: Number of rows of the dataset.
        seed: Seed of the selection.
        source_fingerprint: Fingerprint of the rows before poisoning. That of a dataset (`poison_dataset`, also
            `PoisonTransform.manifest`) hangs on captions, file names, the pictures' lengths in bytes and the whole
            bytes of 256 of them; that of a stream (`poison_stream`) on captions, file names and lengths alone. The
            two are different values for the same rows.
        selector: Rule that chose the rows.
        rate: The rate that was asked for, or None where a count was.
        skipped: Row number -> why the row was passed over (`on_error="skip"`).
        covers: Row numbers, ascending, of further rows whose picture was changed and whose caption was kept (WaNet's
            `noise_mode`); they do not count as poisoned.
        versions: Package versions.
    """

    attack: str
    parameters: dict[str, Any]
    target: str
    indices: list[int]
    n_rows: int
    seed: int
    source_fingerprint: str
    selector: str = "random"
    rate: float | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    covers: list[int] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=package_versions)

    @property
    def count(self) -> int:
        """Number of poisoned rows."""
        return len(self.indices)

    def save_pretrained(self, folder: str | os.PathLike) -> Path:
        """Write `manifest.json` into `folder` and return its path."""
        return write_json(Path(folder) / MANIFEST_FILE, {**asdict(self), "count": self.count})

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike) -> "PoisonManifest":
        """Return the manifest that lies in a local `folder` (or is the JSON file itself).

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If a field is unknown or the count disagrees with the indices.
        """
        values = _read_json(folder, MANIFEST_FILE, "a poison manifest")
        count = values.pop("count", None)
        manifest = cls(**_known_fields(cls, values, "a poison manifest"))
        if count is not None and count != manifest.count:
            raise ValueError(f"Expected {count} poisoned rows in the manifest, but it lists {manifest.count}.")
        return manifest


@dataclass
class RunRecord:
    """What one stage did: its configuration, its figures and where they come from.

    Args:
        stage: Name of the stage, for instance `victim` or `defend/cleanclip`.
        key: `content_key` of stage, configuration and inputs: a finished stage with the same key is not run again.
        config: The stage's configuration as JSON, without output paths.
        metrics: Figures; rates in [0, 1], a rate beside its n where it has one.
        seed: Seed of the stage.
        inputs: Name -> key or content fingerprint of what the stage read (records before it, data, models).
        outputs: Name -> path below the stage's folder.
        seconds: Wall-clock time of the stage.
        processes: Number of processes it ran on.
        command: Command line, without tokens.
        versions: Package versions.
        machine: Processor architecture and number of cores.
        written: Names of everything that it left in its folder, of which a later run of it removes no more.
    """

    stage: str
    key: str
    config: dict[str, Any]
    metrics: dict[str, Any]
    seed: int
    inputs: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    processes: int = 1
    command: str = field(default_factory=lambda: command_line(sys.argv))
    versions: dict[str, str] = field(default_factory=package_versions)
    machine: dict[str, Any] = field(default_factory=lambda: {"arch": platform.machine(), "cores": os.cpu_count()})
    written: list[str] = field(default_factory=list)

    def save(self, folder: str | os.PathLike) -> Path:
        """Write `record.json` into `folder`; NaN anywhere is a `ValueError`, so that no figure is silently missing."""
        return write_json(Path(folder) / RECORD_FILE, asdict(self))

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "RunRecord":
        """Return the record that lies in `folder`.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If a field is unknown.
        """
        return cls(**_known_fields(cls, _read_json(folder, RECORD_FILE, "a record"), "a record"))

    @classmethod
    def load_if_current(cls, folder: str | os.PathLike, key: str) -> "RunRecord | None":
        """Return the record in `folder` if it has this `key`, else None: whether a stage has to run."""
        if not (Path(folder) / RECORD_FILE).is_file():
            return None
        record = cls.load(folder)
        return record if record.key == key else None
