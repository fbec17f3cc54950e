# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Defences over a grid of settings on finished runs: one record a cell, choices by held-out BA alone, one table."""

import functools
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import PartialState

from hf_clipbd.defenses import DEFENSES
from hf_clipbd.evaluation import ZeroShotEvaluator
from hf_clipbd.models import load_dual_encoder
from hf_clipbd.recipe.config import RunConfig, config_from
from hf_clipbd.recipe.defending import start_of
from hf_clipbd.recipe.fingerprints import data_fingerprint
from hf_clipbd.recipe.grid_config import Cell, GridConfig
from hf_clipbd.recipe.grid_figures import render_figures
from hf_clipbd.recipe.grid_table import BASELINE, grid_table
from hf_clipbd.recipe.place import model_device
from hf_clipbd.recipe.sections import read_yaml
from hf_clipbd.recipe.stage import Outcome, Stage
from hf_clipbd.recipe.steps import training_stage_settings
from hf_clipbd.recipe.training import train_into
from hf_clipbd.recipe.world import World
from hf_clipbd.recipe.zero_shot import evaluator, load_trigger, measure
from hf_clipbd.run_folder import CONFIG_FILE
from hf_clipbd.schema import TOP_K, RunRecord, reachable


logger = logging.getLogger(__name__)

TABLE_FILE = "table.md"


def finished_run(folder: Path) -> RunConfig:
    """Return the configuration of a run folder, without its own defences, after a look at its records.

    Raises:
        FileNotFoundError: If the configuration, or the record of `poison` or `victim`, is missing.
    """
    for stage in ("poison", "victim"):
        RunRecord.load(folder / stage)
    config = config_from({**read_yaml(folder / CONFIG_FILE), "output_dir": str(folder), "defenses": {}})
    return replace(config, output_dir=folder)


def other_measures(config: RunConfig, n_classes: int) -> dict[str, Any]:
    """Return what the report of a grid's records depends on where it is not as usual: the top k, and whose ASR."""
    ks = reachable(config.evaluate.ks, n_classes)
    settings: dict[str, Any] = {} if ks == reachable(TOP_K, n_classes) else {"ks": ks}
    return settings | ({"include_target": True} if config.evaluate.include_target else {})


def cell_settings(
    cell: Cell, config: RunConfig, world: World, validation_images: int, n_classes: int
) -> dict[str, Any]:
    """Return what a cell depends on beside its inputs and its seed; no data are read for it."""
    settings = training_stage_settings(config, cell.training(config.seed), world)
    measured = {"validation_images": validation_images, "prompts": world.prompts}
    return {"defense": cell.defense, **settings, "measured": measured | other_measures(config, n_classes)}


class _GridRun:
    """One run of a grid: its data, read once for all cells, and its stages."""

    def __init__(self, grid: GridConfig, config: RunConfig):
        self.options, self.config, self.world = grid.options, config, World(config)
        self.validation = self.world.validation(self.options.validation_images)
        self.measured = {
            "test": data_fingerprint(self.world.test),
            "validation": data_fingerprint(self.validation),
        }

    @functools.cached_property
    def _trigger(self) -> dict[str, Any]:
        return load_trigger(self.config)

    def _evaluator(self, processor: Any, triggered: bool) -> ZeroShotEvaluator:
        return evaluator(self.config, self.world, processor, self.validation, self._trigger if triggered else {})

    def figures(self, model: Any, processor: Any) -> dict[str, Any]:
        """Return the clean accuracy on the validation images and the whole report on the test images."""
        model = model.to(model_device())
        validation = self._evaluator(processor, triggered=False).report(model).to_dict()
        report = measure(self.config, self.world, model, processor, self._trigger).to_dict()
        return {"validation": validation["ba"], "report": report}

    def baseline(self) -> RunRecord:
        """Measure the victim (stage `<grid>/victim`), whose BA the choices are held against."""
        victim = self.config.output_dir / "victim"
        inputs = {"model": RunRecord.load(victim).key, **self.measured}
        settings = other_measures(self.config, len(self.world.class_names))
        stage = Stage(self.config.output_dir, f"{self.options.name}/{BASELINE}", settings, self.config.seed, inputs)
        return stage.run_once(lambda _: Outcome(self.figures(*load_dual_encoder(victim)), {}))

    def train(self, cell: Cell) -> RunRecord:
        """Train and measure one cell (stage `<grid>/<cell>`)."""
        training = cell.training(self.config.seed)
        start = start_of(self.config, cell.defense, training, self.world)
        settings = cell_settings(cell, self.config, self.world, len(self.validation), len(self.world.class_names))
        name = f"{self.options.name}/{cell.name}"
        return train_into(
            Stage(self.config.output_dir, name, settings, training.seed, {**start.inputs, **self.measured}),
            DEFENSES[cell.defense].trainer,
            training,
            start.load,
            start.pairs,
            functools.partial(self._evaluator, triggered=True),
            self.world.canvas,
            after=lambda model, processor: {**start.figures, **self.figures(model, processor)},
            keep_model=self.options.keep_models,
        )


def run_grid(grid: GridConfig) -> str:
    """Train every cell of a grid on every run where it has no current record, and return the table of all records.

    A cell is a stage of its run, `<run>/<name>/<cell>`: skipped when its record is current, continued from its last
    epoch when it was stopped. Its record holds the history (loss terms, BA and ASR on the validation images by epoch),
    BA on the validation images, which alone the choices look at, and the whole report on the test images. The table
    (`table.md`) and the figures are rendered anew from the records after each cell, into the grid's output folder.

    Raises:
        FileNotFoundError: If a run has no record of `poison` or `victim`.
    """
    runs = [finished_run(folder) for folder in grid.runs]
    for number, config in enumerate(runs, start=1):
        run = _GridRun(grid, config)
        run.baseline()
        for position, cell in enumerate(grid.cells, start=1):
            logger.info("run %d of %d, cell %d of %d: %s", number, len(runs), position, len(grid.cells), cell.name)
            run.train(cell)
            _write(grid)
    return grid_table(grid)


def _write(grid: GridConfig) -> None:
    if PartialState().is_main_process:
        folder = Path(grid.options.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / TABLE_FILE).write_text(grid_table(grid), encoding="utf-8")
        render_figures(grid)
    PartialState().wait_for_everyone()
