# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What a reproduction is: a job for every attack and seed, read from YAML and flags, checked before anything runs."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_clipbd.recipe.config import (
    MAPPINGS,
    PLAIN_SECTIONS,
    TRAINING_SECTIONS,
    RunConfig,
    config_from,
    training_settings,
)
from hf_clipbd.recipe.options import option
from hf_clipbd.recipe.sections import ConfigError, check_keys, merge, one_yaml, parse_section, read_yaml


if TYPE_CHECKING:
    from hf_clipbd.recipe.reproduce_measures import Measure
    from hf_clipbd.trainer import CLIPTrainingConfig

OVERLAID = (*PLAIN_SECTIONS, *TRAINING_SECTIONS, *MAPPINGS)
"""Sections of a run that a reproduction, and each of its attacks, may lay over the base."""
SHARED_BY_ATTACKS = ("target", "captions")
"""What stays of the base's section `attack` where an entry takes another attack."""
LOADED = ("encoder", "patch")
"""Keys of `attack` that may name a folder or a Hub id, read when the attack is built."""
HANDLING = ("num_proc", "batch_size", "map_points")
"""Keys of the plain sections that change no figure: a finished cell stays finished where they differ."""
MEASURED = ("world", "poison", "evaluate", "detect")
"""Plain sections that figures depend on."""


@dataclass
class ReproduceOptions:
    """How the cells of a reproduction are run."""

    output_dir: str = option("runs/reproduce", "Folder of the cells, `ATTACK/seedN` below it, and of the tables.")
    seeds: list[int] = option([0, 1, 2], "Seeds: the first one of every attack is run before the second one of any.")
    title: str = option("Reproduction", "Heading of the tables.")
    table: str = option("table.md", "Name of the file with the tables, in `output_dir`.")
    select: list[str] = option([], "Entries of `attacks` that belong to the reproduction; all by default.")
    only: list[str] = option([], "Patterns of cells to run, for instance `wanet/*` or `*/seed0`; all by default.")
    keep_models: bool = option(False, "Whether weights and the poisoned dataset stay once a cell is finished.")
    keep_embeddings: bool = option(True, "Whether the victim's embeddings of the poisoned set stay.")
    dry_run: bool = option(False, "Check everything, print the plan; run, download and write nothing.")
    stale_after: float = option(
        300.0, "Seconds without a sign of life after which a cell's owner on another machine counts as dead."
    )
    images_per_second: float | None = option(None, "Pairs that this machine trains on in a second, for the plan.")
    device_memory: float | None = option(None, "Memory of a device in GB, which the plan sets the trainings' against.")

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
        return _settings_of(self.config)


@dataclass(frozen=True)
class Reproduction:
    """A whole reproduction: how it is run, and its cells in their order."""

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


def _settings_of(config: RunConfig) -> dict[str, Any]:
    """Return what the figures of a job depend on, as JSON; an option that has its default is left out.

    So a cell stays finished when the package gets a new option whose default is what was done before.
    """
    resolved = config.resolved()
    kept = {"attack": resolved["attack"], "objective": config.objective, "architecture": config.architecture}
    for name in MEASURED:
        plain = {one.name: one for one in dataclasses.fields(PLAIN_SECTIONS[name])}
        given = {key: value for key, value in resolved[name].items() if key not in HANDLING}
        kept[name] = {key: value for key, value in given.items() if value != _default(plain[key])}
    trained = {"clean": config.clean, "victim": config.victim, **config.defenses}
    kept["trained"] = {name: _changed(one) for name, one in trained.items() if one is not None}
    return kept


def _default(one: dataclasses.Field) -> Any:
    return one.default if one.default_factory is dataclasses.MISSING else one.default_factory()


def _changed(training: "CLIPTrainingConfig") -> dict[str, Any]:
    """Return the settings of a training that differ from its class's own."""
    plain = training_settings(type(training)(output_dir="unused", use_cpu=training.use_cpu))
    return {key: value for key, value in training_settings(training).items() if value != plain.get(key)}


def _matches(cell: ReproduceCell, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in (cell.name, cell.attack) for pattern in patterns)


def _section(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(values or {}, Mapping):
        raise ConfigError(f"Expected `{where}` to map sections to values, but got {values!r}.")
    check_keys(values or {}, OVERLAID, where, "section")
    return dict(values or {})


def _only(keys: Sequence[str], values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key in keys}


def _with_base(values: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return `values` over the reproduction that `base` names, where it is one, and the sections of the run below."""
    if values.get("base") is None:
        return dict(values), {}
    file = folder / str(values["base"])
    below = read_yaml(file)
    if "attacks" not in below and "base" not in below:  # the YAML of a job
        return dict(values), _only(OVERLAID, below)
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
        base = _only(SHARED_BY_ATTACKS, base)
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
    options = parse_section(ReproduceOptions, _only(OPTIONS, top), "reproduction")
    entries = top.get("attacks") or {}
    if not isinstance(entries, Mapping) or not entries:
        raise ConfigError(f"Expected `attacks` to map at least one name to its sections, but got {entries!r}.")
    check_keys(options.select, entries, "attacks", "section")
    entries = {name: entries[name] for name in options.select or entries}
    common, laid = merge(base, _only(OVERLAID, top)), _only(OVERLAID, flags)
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
