# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What a reproduction is: a job for every attack and seed, read from YAML and flags, checked before anything runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_clipbd.recipe.config import MAPPINGS, PLAIN_SECTIONS, TRAINING_SECTIONS, RunConfig, config_from
from hf_clipbd.recipe.reproduce_settings import settings_of
from hf_clipbd.recipe.sections import ConfigError, check_keys, merge, one_yaml, parse_section, read_yaml


if TYPE_CHECKING:
    from hf_clipbd.recipe.reproduce_measures import Measure

OVERLAID = (*PLAIN_SECTIONS, *TRAINING_SECTIONS, *MAPPINGS)
"""Sections of a run that a reproduction, and each of its attacks, may lay over the base."""
SHARED_BY_ATTACKS = ("target", "captions")
"""What stays of the base's section `attack` where an entry takes another attack."""
LOADED = ("encoder", "patch")
"""Keys of `attack` that may name a folder or a Hub id, read when the attack is built."""


@dataclass
class ReproduceOptions:
    """How the cells of a reproduction are run.

    Args:
        output_dir: Folder of the cells, `ATTACK/seedN` below it, and of the tables.
        seeds: Seeds, the outer loop: the first one of every attack is run before the second one of any.
        title: Heading of the tables.
        table: Name of the file with the tables, in `output_dir`.
        select: Entries of `attacks` that belong to the reproduction; all by default.
        only: Patterns of cells to run, for instance `wanet/*` or `*/seed0`; all by default.
        keep_models: Whether model weights and the poisoned dataset stay once a cell is finished.
        keep_embeddings: Whether the victim's embeddings of the poisoned set are kept, in half precision.
        dry_run: Whether the plan is printed and nothing is run, downloaded or written.
        stale_after: Seconds without a sign of life after which a cell's owner on another machine counts as dead.
        images_per_second: Pairs that this machine trains on in a second, for the plan's times alone.
        device_memory: Memory of a device in GB, which the plan sets the trainings' against; not looked at by default.
    """

    output_dir: str = field(default="runs/reproduce", metadata={"help": "Folder of the cells and the tables."})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds, the outer loop."})
    title: str = field(default="Reproduction", metadata={"help": "Heading of the tables."})
    table: str = field(default="table.md", metadata={"help": "File of the tables."})
    select: list[str] = field(default_factory=list, metadata={"help": "Entries of `attacks` that belong to it."})
    only: list[str] = field(default_factory=list, metadata={"help": "Patterns of cells to run, such as wanet/*."})
    keep_models: bool = field(default=False, metadata={"help": "Keep the weights and the poisoned set of a cell."})
    keep_embeddings: bool = field(default=True, metadata={"help": "Keep the victim's embeddings of the poisoned set."})
    dry_run: bool = field(default=False, metadata={"help": "Check everything, print the plan, run nothing."})
    stale_after: float = field(default=300.0, metadata={"help": "Seconds after which a silent owner counts as dead."})
    images_per_second: float | None = field(default=None, metadata={"help": "Pairs a second, for the plan's times."})
    device_memory: float | None = field(default=None, metadata={"help": "GB of a device, for the plan's checks."})

    def __post_init__(self):
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"Expected `seeds` to list different whole numbers of at least 0, but got {self.seeds}.")
        if self.stale_after <= 0:
            raise ValueError(f"Expected a positive `stale_after`, but got {self.stale_after}.")


OPTIONS = tuple(ReproduceOptions.__dataclass_fields__)


@dataclass(frozen=True)
class ReproduceCell:
    """One job of a reproduction.

    Args:
        attack: Name of the entry of `attacks`.
        seed: Its seed.
        values: The sections of the job.
        measures: Name -> what else is measured on its models.
        absent: Key of `attack` -> file that is not on this machine; left out of `values` for a plan.
    """

    attack: str
    seed: int
    values: dict[str, Any]
    measures: "dict[str, Measure]" = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Folder of the cell below the reproduction's, for instance `wanet/seed0`."""
        return f"{self.attack}/seed{self.seed}"

    @cached_property
    def config(self) -> RunConfig:
        """The checked configuration of the job."""
        return config_from(self.values)

    @property
    def settings(self) -> dict[str, Any]:
        """What the figures of the cell depend on, as JSON."""
        return settings_of(self.config)


@dataclass(frozen=True)
class Reproduction:
    """A whole reproduction: how it is run, and its cells in their order.

    Args:
        options: How it is run.
        cells: All cells, seeds in the outer loop.
    """

    options: ReproduceOptions
    cells: tuple[ReproduceCell, ...]

    @property
    def folder(self) -> Path:
        """Folder of the cells and the tables."""
        return Path(self.options.output_dir)

    @property
    def attacks(self) -> list[str]:
        """Names of the entries of `attacks`, in order."""
        return list(dict.fromkeys(cell.attack for cell in self.cells))

    @property
    def chosen(self) -> list[ReproduceCell]:
        """The cells that are to be run."""
        return [cell for cell in self.cells if not self.options.only or _matches(cell, self.options.only)]


def _matches(cell: ReproduceCell, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in (cell.name, cell.attack) for pattern in patterns)


def _section(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(values or {}, Mapping):
        raise ConfigError(f"Expected `{where}` to map sections to values, but got {values!r}.")
    check_keys(values or {}, OVERLAID, where, "section")
    return dict(values or {})


def _with_base(values: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return `values` over the reproduction that `base` names, where it is one, and the sections of the run below."""
    if values.get("base") is None:
        return dict(values), {}
    file = folder / str(values["base"])
    below = read_yaml(file)
    if "attacks" not in below and "base" not in below:  # the YAML of a job
        return dict(values), {key: value for key, value in below.items() if key in OVERLAID}
    top, base = _with_base(below, file.parent)
    return merge(top, {key: value for key, value in values.items() if key != "base"}), base


def _absent(sections: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return sections without what an attack would load or download from elsewhere, and what that was."""
    attack = sections["attack"]
    absent = {
        key: attack[key]
        for key in LOADED
        if isinstance(attack.get(key), str) and attack[key] != "scenes" and not Path(attack[key]).expanduser().exists()
    }
    return {**sections, "attack": {key: value for key, value in attack.items() if key not in absent}}, absent


def _measures(values: Any) -> "dict[str, Measure]":
    if not values:
        return {}
    from hf_clipbd.recipe.reproduce_measures import measures_from

    return measures_from(values)


def _of_attack(common: Mapping[str, Any], name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections of one entry of `attacks` laid over those of all."""
    own = {"name": name, **(entry.get("attack") or {})}
    base = dict(common.get("attack") or {})
    if base.get("name") != own["name"]:
        base = {key: value for key, value in base.items() if key in SHARED_BY_ATTACKS}
    return merge({**common, "attack": base}, {**entry, "attack": own})


def reproduction_from(
    values: Mapping[str, Any], folder: str | Path = ".", flags: Mapping[str, Any] | None = None
) -> Reproduction:
    """Return the checked reproduction of a mapping of sections.

    A cell's job is, one laid over the other: the YAML that `base` names, the sections of `values`, those of its entry
    of `attacks`, and `flags`. Where an entry takes another attack than the base, only `target` and `captions` of the
    base's section `attack` stay.

    Args:
        values: `base` (a recipe's YAML, or that of another reproduction, whose cells are then shared), `attacks` (name
            -> sections; `attack.name` is the entry's own name unless it gives another), `measures` (see `Measure`),
            the options of `ReproduceOptions`, and sections of a run for all attacks.
        folder: Where the path of `base` starts.
        flags: Sections and options of a command line, which win over all others.

    Raises:
        ConfigError: For the first section, key or value that is not understood, by its dotted path.
    """
    flags = dict(flags or {})
    known = ("base", "attacks", "measures", *OPTIONS, *OVERLAID)
    check_keys([*flags, *values], known, "", "section")
    values, base = _with_base(values, Path(folder))
    top = merge(values, {key: value for key, value in flags.items() if key not in OVERLAID})
    options = parse_section(
        ReproduceOptions, {key: value for key, value in top.items() if key in OPTIONS}, "reproduction"
    )
    entries = top.get("attacks") or {}
    if not isinstance(entries, Mapping) or not entries:
        raise ConfigError(f"Expected `attacks` to map at least one name to its sections, but got {entries!r}.")
    check_keys(options.select, entries, "attacks", "section")
    entries = {name: entries[name] for name in options.select or entries}
    own = {key: value for key, value in top.items() if key in OVERLAID}
    common = merge(base, own)
    laid = {key: value for key, value in flags.items() if key in OVERLAID}
    measures = _measures(top.get("measures"))
    sections = {
        name: merge(_of_attack(common, name, _section(entry, f"attacks.{name}")), laid)
        for name, entry in entries.items()
    }
    found = {name: _absent(one) if options.dry_run else (one, {}) for name, one in sections.items()}
    cells = tuple(
        ReproduceCell(
            name,
            seed,
            {**one, "seed": seed, "output_dir": f"{options.output_dir}/{name}/seed{seed}"},
            measures,
            absent,
        )
        for seed in options.seeds
        for name, (one, absent) in found.items()
    )
    reproduction = Reproduction(options, cells)
    if not reproduction.chosen:
        names = [cell.name for cell in cells]
        raise ConfigError(f"Expected `--only` to match at least one cell of {names}, but got {options.only}.")
    for cell in cells[: len(sections)]:  # seeds change nothing that could be wrong
        try:
            _ = cell.config
        except ConfigError as error:
            raise ConfigError(f"{error} (in `attacks.{cell.attack}`)") from error
    return reproduction


def load_reproduction(arguments: Sequence[str], default: str | Path | None = None) -> Reproduction:
    """Return the reproduction of a command line: a YAML (positional or `--config`), then flags that win over it.

    Args:
        arguments: For instance `["--config", "recipes/reproduce/table1.yaml", "--only", "wanet/*", "--seeds", "0"]`.
        default: The YAML where the command line names none.

    Raises:
        ConfigError: If something is not understood, by its dotted path.
    """
    file, flags = one_yaml(arguments, default, "a reproduction")
    return reproduction_from(read_yaml(file), file.parent, flags)
