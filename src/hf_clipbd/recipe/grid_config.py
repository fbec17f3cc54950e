# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What a grid is: finished runs, defences, and blocks of settings; checked whole before anything is loaded."""

import functools
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_clipbd.recipe.config import training_config, training_settings
from hf_clipbd.recipe.options import option
from hf_clipbd.recipe.sections import ConfigError, check_keys, merge, one_yaml, parse_section, read_yaml, scalar


if TYPE_CHECKING:
    from hf_clipbd.trainer import CLIPTrainingConfig

SECTIONS = ("grid", "defense_defaults", "defenses", "blocks")
BLOCK_KEYS = ("title", "defenses", "cells", "vary", "choose")


@dataclass
class GridOptions:
    """Which runs a grid is trained on and how its cells are measured."""

    name: str = option("grid", "Folder of the cells below each run.")
    runs: list[str] = option([], "Run folders whose stages `poison` and `victim` are finished.")
    output_dir: str = option("runs/grid", "Folder of the table and the figures.")
    validation_images: int = option(1000, "Labelled images outside the test set that choices look at.")
    max_ba_drop: float = option(
        0.03, "How much BA@1 on them may lie below the victim's, in [0, 1], for a setting to be chosen."
    )
    keep_models: bool = option(False, "Whether the cells' models stay beside their records.")
    only: list[str] = option([], "Titles of the blocks to train; all by default.")

    def __post_init__(self):
        if not self.runs:
            raise ValueError("Expected `runs` to name at least one finished run folder, but got none.")
        if self.validation_images < 1 or not 0 <= self.max_ba_drop <= 1:
            raise ValueError(
                "Expected `validation_images` of at least 1 and `max_ba_drop` in [0, 1], "
                f"but got {self.validation_images} and {self.max_ba_drop}."
            )


def _as_recorded(training: "CLIPTrainingConfig") -> dict[str, Any]:
    return json.loads(json.dumps(training_settings(training)))


@functools.lru_cache
def _usual(kind: "type[CLIPTrainingConfig]", use_cpu: bool) -> dict[str, Any]:
    return _as_recorded(kind(output_dir="unused", use_cpu=use_cpu))


@dataclass(frozen=True)
class Cell:
    """One training of a grid.

    Args:
        defense: Key of `hf_clipbd.defenses.DEFENSES`.
        settings: The defence's whole section.
        changes: What of it differs from the grid's own section of that defence; it names the cell.
    """

    defense: str
    settings: dict[str, Any]
    changes: dict[str, Any]

    @property
    def name(self) -> str:
        """Folder of the cell: `ft`, or `ft,learning_rate=0.001` where a setting differs from the grid's own."""
        return ",".join([self.defense, *(f"{key}={value}" for key, value in sorted(self.changes.items()))])

    def training(self, seed: int) -> "CLIPTrainingConfig":
        """Return the configuration of this training; `seed` is the run's, which the cell's own overrides.

        Raises:
            ConfigError: If it cannot be meant.
        """
        from hf_clipbd.defenses import DEFENSES

        return training_config(DEFENSES[self.defense].config, self.settings, f"defenses.{self.defense}", seed, True)

    @functools.cached_property
    def asked(self) -> dict[str, Any]:
        """What the training computes with, as records hold it, but for the run's seed; `ConfigError` as `training`."""
        return _as_recorded(self.training(0))

    @functools.cached_property
    def usual(self) -> dict[str, Any]:
        """The same of the defence with nothing set."""
        training = self.training(0)
        return _usual(type(training), training.use_cpu)

    def is_of(self, recorded: Mapping[str, Any]) -> bool:
        """Return whether a record's `training` is this cell's.

        Settings that the record does not have, since they are newer, are taken to have been at their defaults; how
        the training was launched and a seed that the cell does not set are not looked at.
        """
        from hf_clipbd.defenses import DEFENSES

        known = set(DEFENSES[self.defense].config.__dataclass_fields__)
        names = (known & {*self.asked, *recorded}) - (set() if "seed" in self.settings else {"seed"})
        then, now = ({**self.usual, **one} for one in (recorded, self.asked))
        return all(then.get(name) == now.get(name) for name in names)


@dataclass(frozen=True)
class Block:
    """Cells that are shown together.

    Args:
        varied: Keys that differ among them, in order.
        choose: Key whose largest value is chosen within the allowed loss of BA; None where nothing is chosen.
    """

    title: str
    cells: tuple[Cell, ...]
    varied: tuple[str, ...]
    choose: str | None = None


@dataclass(frozen=True)
class GridConfig:
    """A whole grid: where it runs and its blocks."""

    options: GridOptions
    blocks: tuple[Block, ...]

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Every training once, in the order of the blocks that are to be trained."""
        chosen = [block for block in self.blocks if not self.options.only or block.title in self.options.only]
        return tuple({cell.name: cell for block in chosen for cell in block.cells}.values())

    @property
    def runs(self) -> list[Path]:
        """Run folders."""
        return [Path(run) for run in self.options.runs]


def _settings_of(block: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """Return the product of a block's `cells` with the lists of its `vary`."""
    cells = block.get("cells") or [{}]
    vary = block.get("vary") or {}
    if not isinstance(cells, Sequence) or not all(isinstance(one, Mapping) for one in cells):
        raise ConfigError(f"Expected `{where}.cells` to be a list of settings, but got {cells!r}.")
    if not isinstance(vary, Mapping) or not all(isinstance(values, list) and values for values in vary.values()):
        raise ConfigError(f"Expected `{where}.vary` to map keys to lists of values, but got {vary!r}.")
    products = itertools.product(*vary.values())
    return [{**cell, **dict(zip(vary, values, strict=True))} for values in products for cell in cells]


def _block(block: Any, number: int, sections: Mapping[str, Mapping[str, Any]]) -> Block:
    where = f"blocks[{number}]"
    if not isinstance(block, Mapping):
        raise ConfigError(f"Expected `{where}` to map keys to values, but got {block!r}.")
    check_keys(block, BLOCK_KEYS, where)
    defenses = block.get("defenses") or list(sections)
    check_keys(defenses, sections, f"{where}.defenses")
    varied = _settings_of(block, where)
    cells = []
    for defense in defenses:
        base = {key: scalar(value) for key, value in sections[defense].items()}
        for settings in varied:
            given = {key: scalar(value) for key, value in settings.items()}
            changes = {key: value for key, value in given.items() if key not in base or base[key] != value}
            cells.append(Cell(defense, {**base, **given}, changes))
            _ = cells[-1].asked  # refused now if it cannot be meant
    keys = tuple(dict.fromkeys(key for settings in varied for key in settings))
    choose = block.get("choose")
    if choose is not None and choose not in keys:
        raise ConfigError(f"Expected `{where}.choose` to be one of the keys that vary, {list(keys)}, got {choose!r}.")
    return Block(str(block.get("title") or f"block {number + 1}"), tuple(cells), keys, choose)


def grid_from(values: Mapping[str, Any]) -> GridConfig:
    """Return the checked grid of a mapping of sections.

    Args:
        values: `grid` (`GridOptions`), `defense_defaults` and `defenses` as in a run's configuration, and `blocks`, a
            list of `title`, `defenses` (all by default), `cells` (a list of settings laid over the defence's own),
            `vary` (key -> list of values, every combination) and `choose`.

    Raises:
        ConfigError: For the first section, key or value that is not understood, by its dotted path.
    """
    from hf_clipbd.defenses import DEFENSES

    check_keys(values, SECTIONS, "")
    options = parse_section(GridOptions, values.get("grid") or {}, "grid")
    shared, own = values.get("defense_defaults") or {}, values.get("defenses") or {}
    check_keys(own, DEFENSES, "defenses")
    sections = {name: merge(shared, section or {}) for name, section in own.items()}
    blocks = tuple(_block(block, number, sections) for number, block in enumerate(values.get("blocks") or []))
    if not blocks:
        raise ConfigError("Expected `blocks` to list at least one block of cells, but got none.")
    titles = [block.title for block in blocks]
    check_keys(options.only, titles, "blocks")
    return GridConfig(options, blocks)


def load_grid(arguments: Sequence[str], default: str | Path | None = None) -> GridConfig:
    """Return the grid of a command line: a YAML file (positional or `--config`), then flags laid over it.

    Args:
        arguments: For instance `["recipes/grid/learning_rate.yaml", "--grid.runs", "runs/seed0", "runs/seed1"]`.
        default: The YAML where the command line names none.

    Raises:
        ConfigError: If something is not understood, by its dotted path.
    """
    file, flags = one_yaml(arguments, default, "a grid")
    return grid_from(merge(read_yaml(file), flags))
