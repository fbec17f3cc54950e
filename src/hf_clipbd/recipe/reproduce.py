# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""A reproduction's cells, one job for every attack and seed: shared among processes, resumed, rendered after each."""

import gc
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from hf_clipbd.features import embed_dataset
from hf_clipbd.models import load_dual_encoder
from hf_clipbd.recipe.checkpoints import CHECKPOINTS, remove
from hf_clipbd.recipe.config import RunConfig
from hf_clipbd.recipe.job import recorded_stages, run, training_stages
from hf_clipbd.recipe.locks import BEATS, FolderLock
from hf_clipbd.recipe.place import model_device
from hf_clipbd.recipe.reproduce_config import ReproduceCell, Reproduction
from hf_clipbd.recipe.reproduce_measures import measure_all, missing
from hf_clipbd.recipe.stage import Outcome, Stage
from hf_clipbd.recipe.training import poisoned_pairs
from hf_clipbd.recipe.world import World
from hf_clipbd.report.results import render_cells
from hf_clipbd.report.results_cells import CELL
from hf_clipbd.schema import RECORD_FILE, RunRecord


logger = logging.getLogger(__name__)

EMBEDDINGS = "embeddings"
POLL_SECONDS = 20.0


def cell_stage(cell: ReproduceCell) -> Stage:
    """Return the stage `cell` of a job, whose record says that the whole job is done; it outlives what is deleted."""
    return Stage(cell.config.output_dir, CELL, cell.settings, cell.seed)


def finished(cell: ReproduceCell) -> bool:
    """Return whether a cell is done: its job with these settings, its measurements, and what was to be deleted is."""
    record = cell_stage(cell).current()
    if record is None or missing(cell.config, cell.measures):
        return False
    return record.metrics["keep_models"] or not any(map(Path.exists, _large(cell.config)))


def run_cell(cell: ReproduceCell, keep_models: bool = False, keep_embeddings: bool = True) -> RunRecord:
    """Run one job and its measurements, delete what is large unless it is kept, and return the record of stage `cell`.

    A measurement that is added to a finished cell whose models were deleted trains them again.

    Args:
        keep_models: Whether weights and poisoned dataset stay.
        keep_embeddings: Whether the victim's embeddings of the poisoned set are written (stage `embeddings`).
    """
    config = cell.config

    def work(folder: Path) -> Outcome:
        run(config)
        if keep_embeddings:
            embeddings(config)
        records = {name: RunRecord.load(config.output_dir / name) for name in recorded_stages(config)}
        outputs = {name: f"../{name}/{RECORD_FILE}" for name in records}
        seconds = {name: record.seconds for name, record in records.items()}
        keys = {name: record.key for name, record in records.items()}
        return Outcome({"keys": keys, "seconds": seconds, "keep_models": keep_models}, outputs)

    record = cell_stage(cell).run_once(work)
    if missing(config, cell.measures):
        run(config)  # nothing where the models are still there
        measure_all(config, cell.measures)
    if not record.metrics["keep_models"] and PartialState().is_main_process:
        prune(config)
    PartialState().wait_for_everyone()
    return record


def embeddings(config: RunConfig) -> RunRecord:
    """Keep the victim's embeddings of the poisoned set (stage `embeddings`), so that it can be searched once more.

    `image.npy` and `text.npy`, (N, D), unit vectors in half precision, in the order of the poisoned dataset and of the
    stage `detect`'s scores.
    """
    victim = config.output_dir / "victim"
    inputs = {name: RunRecord.load(config.output_dir / name).key for name in ("victim", "poison")}
    stage = Stage(config.output_dir, EMBEDDINGS, {"dtype": "float16"}, config.seed, inputs)

    def work(folder: Path) -> Outcome:
        model, processor = load_dual_encoder(victim)
        pairs = poisoned_pairs(config)
        model = model.to(model_device())
        features = embed_dataset(
            model, processor, pairs, batch_size=config.detect.batch_size, canvas=World(config).canvas
        )
        for name in ("image", "text"):
            np.save(folder / f"{name}.npy", features[name].astype(np.float16))
        return Outcome({"n": len(pairs)}, {name: f"{name}.npy" for name in ("image", "text")})

    return stage.run_once(work, main_only=True)


def prune(config: RunConfig) -> None:
    """Delete the weights, the checkpoints and the poisoned dataset of a finished job; records and small files stay."""
    remove(*_large(config))


def _large(config: RunConfig) -> list[Path]:
    outputs = {name: RunRecord.load(config.output_dir / name).outputs for name in ("poison", *training_stages(config))}
    named = [(stage, path) for stage, by_name in outputs.items() for path in by_name.items()]
    kept = [config.output_dir / stage / path for stage, (name, path) in named if name in ("dataset", "model")]
    return [*kept, *(config.output_dir / stage / CHECKPOINTS for stage in outputs)]


def _agreed(answer: bool) -> bool:
    """Return the main process's answer on every process of this run."""
    return bool(broadcast_object_list([answer])[0])


@contextmanager
def _held(cell: ReproduceCell, stale_after: float) -> Iterator[bool]:
    """Hold a cell for the block, the main process for all of this run, and yield whether it could be had."""
    lock, is_main = FolderLock(cell.config.output_dir, stale_after), PartialState().is_main_process
    ours = _agreed(is_main and lock.take())
    with lock if ours and is_main else nullcontext():
        yield ours


def run_reproduction(reproduction: Reproduction) -> str:
    """Run every chosen cell that is not finished and return the tables of all records.

    Several processes, on several machines with a shared folder, share the cells: one that another process works on is
    left to it and looked at again at the end. A cell whose owner was killed is taken over and goes on where it was.
    Tables and figures are rendered anew into the reproduction's folder after each cell. A cell that fails does not
    stop the others, unless several processes of one launch share it.

    Raises:
        ValueError: If a cell failed; the message names all that did.
    """
    options = reproduction.options
    waiting, failed = list(reproduction.chosen), {}
    while waiting:
        progress = False
        for cell in list(waiting):
            if _agreed(finished(cell)):
                waiting.remove(cell)
                continue
            with _held(cell, options.stale_after) as ours:
                if not ours:
                    continue
                progress = True
                waiting.remove(cell)
                try:
                    _run_one(reproduction, cell)
                except (ValueError, TypeError, OSError, RuntimeError) as error:
                    logger.exception("cell %s failed", cell.name)
                    if PartialState().num_processes > 1:  # the others may be waiting for this process within the cell
                        raise
                    failed[cell.name] = error
            gc.collect()
        if waiting and not progress:
            logger.info("others work on %s; waiting", ", ".join(cell.name for cell in waiting))
            time.sleep(min(POLL_SECONDS, options.stale_after / BEATS))
    text = render(reproduction)
    if failed:
        said = "; ".join(f"{name}: {error}" for name, error in failed.items())
        raise ValueError(f"Expected every cell to finish, but {len(failed)} did not. Start it again. {said}")
    return text


def _run_one(reproduction: Reproduction, cell: ReproduceCell) -> None:
    chosen = reproduction.chosen
    done = sum(finished(one) for one in chosen)
    logger.info("cell %s, %d of %d done", cell.name, done, len(chosen))
    run_cell(cell, reproduction.options.keep_models, reproduction.options.keep_embeddings)
    render(reproduction)


def render(reproduction: Reproduction) -> str:
    """Write tables and figures from the records that are there, and return the tables as Markdown."""
    text = ""
    if PartialState().is_main_process:
        options = reproduction.options
        settings = {(cell.attack, cell.seed): cell.settings for cell in reproduction.cells}
        table = reproduction.folder / options.table
        text = render_cells(table, options.title, reproduction.attacks, options.seeds, settings)
    PartialState().wait_for_everyone()
    return text
