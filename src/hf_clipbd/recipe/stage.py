# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""How a stage is run: skipped when its record is current, written in place at once, its record last of all.

A process killed at any moment leaves either the old outputs with their record, or no record and the checkpoints to
go on from; never a record of outputs that are not there.
"""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import PartialState

from hf_clipbd import __version__
from hf_clipbd.schema import RECORD_FILE, RunRecord, content_key, write_json


logger = logging.getLogger(__name__)

SCRATCH = ".partial"
CHECKPOINTS = "checkpoints"
KEY_FILE = "key.json"


class Outcome(NamedTuple):
    """What the work of a stage gives: figures for its record, name -> path below its folder, and earlier seconds.

    `seconds_before` is what attempts that were stopped had spent on the checkpoint that this one went on from.
    """

    metrics: dict[str, Any]
    outputs: dict[str, str]
    seconds_before: float = 0.0


@dataclass(frozen=True)
class Stage:
    """One stage of a run: where it lies and everything its result depends on.

    Args:
        run: The run folder.
        name: Name of the stage and its folder below `run`, for instance `defend/ft`.
        config: Its configuration as JSON, without output paths.
        seed: Its seed.
        inputs: Name -> key or fingerprint of everything it reads.
    """

    run: Path
    name: str
    config: dict[str, Any]
    seed: int
    inputs: dict[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Folder of the stage's outputs."""
        return self.run / self.name

    @property
    def key(self) -> str:
        """Hash of everything the result depends on."""
        return content_key(self.name, self.config, self.seed, self.inputs, __version__)

    def current(self) -> RunRecord | None:
        """Return the stage's record if it is current and its outputs are there, else None."""
        record = RunRecord.load_if_current(self.folder, self.key)
        if record is None or not all((self.folder / path).exists() for path in record.outputs.values()):
            return None
        return record

    def run_once(self, work: Callable[[Path], Outcome], main_only: bool = False) -> RunRecord:
        """Return the stage's record, doing `work` first unless the record is current.

        Args:
            work: Called with an empty scratch folder on every process; what it leaves there is moved into the stage's
                folder once it has returned. Only the main process may write.
            main_only: Call `work` on the main process alone, while the others wait.
        """
        state = PartialState()
        record = self.current()
        state.wait_for_everyone()  # nobody may write before everybody has looked
        if record is not None:
            if state.is_main_process:
                self._clear(self.folder / SCRATCH, self.folder / CHECKPOINTS)
                logger.info("%-20s is up to date", self.name)
            return record
        if state.is_main_process:
            logger.info("%-20s ...", self.name)
            self._clear(self.folder / SCRATCH)
            (self.folder / SCRATCH).mkdir(parents=True)
        state.wait_for_everyone()
        started = time.perf_counter()
        outcome = work(self.folder / SCRATCH) if state.is_main_process or not main_only else None
        state.wait_for_everyone()
        if state.is_main_process:
            self._place(outcome, time.perf_counter() - started + outcome.seconds_before, state.num_processes)
        state.wait_for_everyone()
        return RunRecord.load(self.folder)

    def _place(self, outcome: Outcome, seconds: float, processes: int) -> None:
        record = RunRecord(
            stage=self.name,
            key=self.key,
            config=self.config,
            metrics=outcome.metrics,
            seed=self.seed,
            inputs=self.inputs,
            outputs=outcome.outputs,
            seconds=round(seconds, 3),
            processes=processes,
        )
        scratch = self.folder / SCRATCH
        record.save(scratch)  # an error in the figures shows before anything old is removed
        (self.folder / RECORD_FILE).unlink(missing_ok=True)
        kept = (SCRATCH, CHECKPOINTS)
        self._clear(*(path for path in self.folder.iterdir() if path.name not in kept))
        for path in sorted(scratch.iterdir()):
            if path.name != RECORD_FILE:
                os.replace(path, self.folder / path.name)
        os.replace(scratch / RECORD_FILE, self.folder / RECORD_FILE)
        self._clear(scratch, self.folder / CHECKPOINTS)
        logger.info("%-20s done in %s", self.name, elapsed(seconds))

    @staticmethod
    def _clear(*paths: Path) -> None:
        for path in paths:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def checkpoint(self) -> tuple[Path | None, float]:
        """Return the last whole checkpoint of this very stage (or None) and the seconds that were spent on it.

        A checkpoint is whole once its `trainer_state.json`, which is written last, can be read; others, and those of
        another configuration, are cleared, the latter with a message. Called on every process.
        """
        state = PartialState()
        folder = self.folder / CHECKPOINTS
        if state.is_main_process:
            if folder.is_dir() and _read_key(folder).get("key") != self.key:
                logger.info("%-20s checkpoints of another configuration are cleared", self.name)
                self._clear(folder)
            if not folder.is_dir():
                self.note_seconds(0.0)
            self._clear(*(path for path in folder.glob("checkpoint-*") if _steps(path) is None))
        state.wait_for_everyone()
        whole = {steps: path for path in folder.glob("checkpoint-*") if (steps := _steps(path)) is not None}
        state.wait_for_everyone()
        if not whole:
            return None, 0.0
        if state.is_main_process:
            logger.info("%-20s goes on from step %d", self.name, max(whole))
        return whole[max(whole)], float(_read_key(folder)["seconds"])

    def note_seconds(self, seconds: float) -> None:
        """Write beside the checkpoints whose they are and how many seconds they took so far."""
        write_json(self.folder / CHECKPOINTS / KEY_FILE, {"key": self.key, "seconds": round(seconds, 3)})


def _read_key(folder: Path) -> dict[str, Any]:
    path = folder / KEY_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _steps(checkpoint: Path) -> int | None:
    """Return the step of a whole checkpoint, None for one whose writing was cut short."""
    try:
        return int(json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["global_step"])
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def elapsed(seconds: float) -> str:
    """Return a duration as people read it.

    Example:
        >>> elapsed(5.25), elapsed(125)
        ('5.2 s', '2 min 05 s')
    """
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
