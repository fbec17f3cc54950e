# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""How a stage is run: skipped when its record is current, written in place at once, its record last of all.

A process killed at any moment leaves either the old outputs with their record, or no record and the checkpoints to
go on from; never a record of outputs that are not there.

Only what a stage wrote itself is ever removed: a folder with anything else in it and no stage's record is refused
before the work starts, and what somebody put beside the outputs of a stage stays there.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import PartialState

from hf_clipbd import __version__
from hf_clipbd.attacks.badclip import PATCH_FILE
from hf_clipbd.attacks.folder import ATTACK_FILE, PATTERN_FILE, PICTURE_FILE
from hf_clipbd.hub.cards import CARD_FILE, PICTURES
from hf_clipbd.models.steganography import CONFIG_FILE as STEGANOGRAPHY_FILE
from hf_clipbd.models.steganography import ENCODER_FILE
from hf_clipbd.recipe.checkpoints import ASIDE, CHECKPOINTS, KEY_FILE, claim, note_seconds, read_key, remove, whole
from hf_clipbd.recipe.locks import STAGE_LOCK, STALE_AFTER, FolderLock, owned
from hf_clipbd.schema import RECORD_FILE, RunRecord, content_key, write_json


logger = logging.getLogger(__name__)

SCRATCH = ".partial"
PLACING_FILE = "placing.json"
"""In the scratch folder while outputs are replaced: the names of old and new ones, which go if that is cut short."""
_TRIGGER = (ATTACK_FILE, PATTERN_FILE, PICTURE_FILE, PATCH_FILE, STEGANOGRAPHY_FILE, ENCODER_FILE)
CARDS = (CARD_FILE, PICTURES, *_TRIGGER)
"""What `hf_clipbd.hub.write_cards` puts beside the outputs of a run's stages: a card, and files of any attack."""


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
        name: Name of the stage and its folder below `run`, for instance `defend/ft`.
        config: Its configuration as JSON, without output paths.
        inputs: Name -> key or fingerprint of everything it reads.
        beside: Names in its folder that are made from its outputs outside of it, such as `CARDS`: they go with them.
        also: Other configurations whose finished outputs are taken for this one's, since they differ in what is shown.
    """

    run: Path
    name: str
    config: dict[str, Any]
    seed: int
    inputs: dict[str, str] = field(default_factory=dict)
    beside: tuple[str, ...] = ()
    also: tuple[dict[str, Any], ...] = ()

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
        keys = (self.key, *(replace(self, config=config).key for config in self.also))
        record = next(filter(None, (RunRecord.load_if_current(self.folder, key) for key in keys)), None)
        if record is None or not all((self.folder / path).exists() for path in record.outputs.values()):
            return None
        return record

    def run_once(self, work: Callable[[Path], Outcome], main_only: bool = False) -> RunRecord:
        """Return the stage's record, doing `work` first unless the record is current.

        Args:
            work: Called with an empty scratch folder on every process; what it leaves there is moved into the stage's
                folder once it has returned. Only the main process may write.
            main_only: Call `work` on the main process alone, while the others wait.

        Raises:
            ValueError: If the work is to be done, but its folder holds something else, see `check_folder`, or another
                job that lives is doing it.
            RuntimeError: If another job took the stage over meanwhile; nothing is moved then.
        """
        state = PartialState()
        record = self.current()
        if record is None:
            check_folder(self.folder, self.config.get("kind"), self.beside)
        state.wait_for_everyone()  # nobody may write before everybody has looked
        if record is not None:
            self._tidy(state)
            return record
        with owned(self.folder, self.name) as lock:
            record = self.current()  # another job may have finished it just now
            state.wait_for_everyone()
            return self._run(work, main_only, lock, state) if record is None else record

    def _run(
        self, work: Callable[[Path], Outcome], main_only: bool, lock: FolderLock | None, state: PartialState
    ) -> RunRecord:
        if state.is_main_process:
            logger.info("%-20s ...", self.name)
            self._clear_half_placed()
            remove(self.folder / SCRATCH)
            (self.folder / SCRATCH).mkdir(parents=True)
        state.wait_for_everyone()
        started = time.perf_counter()
        outcome = work(self.folder / SCRATCH) if state.is_main_process or not main_only else None
        state.wait_for_everyone()
        if state.is_main_process:
            lock.check()
            self._place(outcome, time.perf_counter() - started + outcome.seconds_before, state.num_processes)
        state.wait_for_everyone()
        return RunRecord.load(self.folder)

    def _tidy(self, state: PartialState) -> None:
        """Clear what a killed job left beside finished outputs, unless a job of other settings is at work there."""
        left = [path for name in (SCRATCH, CHECKPOINTS, ASIDE) if (path := self.folder / name).exists()]
        if state.is_main_process:
            lock = FolderLock(self.folder, STALE_AFTER, STAGE_LOCK, "stage")
            if left and lock.take():
                with lock:
                    remove(*left)
            logger.info("%-20s is up to date", self.name)

    def _place(self, outcome: Outcome, seconds: float, processes: int) -> None:
        scratch = self.folder / SCRATCH
        written = sorted(path.name for path in scratch.iterdir())
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
            written=written,
        )
        record.save(scratch)  # an error in the figures shows before anything old is removed
        replaced = sorted({*written, *self.beside, *_written_before(self.folder)})
        write_json(scratch / PLACING_FILE, replaced)
        (self.folder / RECORD_FILE).unlink(missing_ok=True)
        remove(*(self.folder / name for name in replaced))
        for name in (*written, RECORD_FILE):
            os.replace(scratch / name, self.folder / name)
        remove(*(self.folder / name for name in (SCRATCH, CHECKPOINTS, ASIDE)))
        foreign = [name for name in _visible(self.folder) if name not in (*written, RECORD_FILE)]
        if foreign:
            logger.warning("%s has %s beside the outputs of this stage; they stay as they are", self.folder, foreign)
        logger.info("%-20s done in %s", self.name, elapsed(seconds))

    def _clear_half_placed(self) -> None:
        """Clear old and new outputs where a process was killed while it replaced them: they have no record."""
        listed = self.folder / SCRATCH / PLACING_FILE
        if listed.is_file() and not (self.folder / RECORD_FILE).is_file():
            remove(*(self.folder / name for name in _own_names(json.loads(listed.read_text(encoding="utf-8")))))

    def checkpoint(self) -> tuple[Path | None, float]:
        """Return the last whole checkpoint of this very stage (or None) and the seconds that were spent on it.

        Those of another configuration are set aside, see `claim`. Called on every process.
        """
        state = PartialState()
        folder = self.folder / CHECKPOINTS
        if state.is_main_process:
            claim(self.folder, self.key, self.name)
            if not folder.is_dir():
                self.note_seconds(0.0)
        state.wait_for_everyone()
        found = whole(folder)
        state.wait_for_everyone()
        if not found:
            return None, 0.0
        if state.is_main_process:
            logger.info("%-20s goes on from step %d", self.name, max(found))
        return found[max(found)], float(read_key(folder)["seconds"])

    def note_seconds(self, seconds: float) -> None:
        """Write beside the checkpoints whose they are and how many seconds they took so far."""
        note_seconds(self.folder, self.key, seconds)


def check_folder(folder: Path, kind: str | None = None, beside: tuple[str, ...] = ()) -> None:
    """Check that a stage may put its outputs into a folder: a new one, or one of an earlier stage of the same kind.

    Names that start with a dot do not count: no output has such a name.

    Args:
        kind: What is run into it on its own, for instance `detect`; None for a stage of a whole run.
        beside: Names that may be there without a record.

    Raises:
        ValueError: If there is something in it, and neither a record nor what a stopped stage leaves; or the record
            is of another kind.
    """
    if (folder / RECORD_FILE).is_file():
        other = RunRecord.load(folder).config.get("kind")
        if other != kind:
            of = ["a stage of a run" if one is None else f"`{one}`" for one in (kind, other)]
            raise ValueError(
                f"Expected a new or empty folder, or one of an earlier {of[0].removeprefix('a ')}, but `{folder}` has "
                f"the outputs of {of[1]}, which would be removed. Name another folder."
            )
        return
    stopped = (folder / SCRATCH).is_dir() or (folder / CHECKPOINTS / KEY_FILE).is_file()
    if stopped or not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"Expected a folder or none yet, but `{folder}` is a file. Name another folder (`--out`).")
    others = [name for name in _visible(folder) if name not in beside]
    if others:
        raise ValueError(
            f"Expected a new or empty folder, or one of an earlier run, but `{folder}` has {others[:3]} and no "
            f"`{RECORD_FILE}`. Name another folder (`--out`), or remove what is there."
        )


def _visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def _own_names(paths: Iterable[str]) -> set[str]:
    """Return the first part of relative paths, the name in the folder itself; what leads out of it is left out."""
    firsts = {Path(path).parts[0] for path in paths if Path(path).parts}
    return {
        name for name in firsts if name not in ("..", SCRATCH, CHECKPOINTS, ASIDE) and not Path(name).is_absolute()
    }


def _written_before(folder: Path) -> set[str]:
    """Return the names of what the record in a folder says was written there, nothing where there is no record.

    Records from before they listed this name their outputs only.
    """
    if not (folder / RECORD_FILE).is_file():
        return set()
    record = RunRecord.load(folder)
    return _own_names([*record.written, *record.outputs.values()])


def elapsed(seconds: float) -> str:
    """Return a duration as people read it.

    Example:
        >>> elapsed(5.25), elapsed(125)
        ('5.2 s', '2 min 05 s')
    """
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
