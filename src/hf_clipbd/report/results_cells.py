# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The records of a reproduction, read as figures: a list with a value a seed for whatever is asked."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from hf_clipbd.detection.revisions import recorded_name
from hf_clipbd.schema import RECORD_FILE, EvalReport, RunRecord
from hf_clipbd.templates import percent


NOT_RUN = "not run"
CELL = "cell"
"""Stage of a finished cell, whose record has the settings of the whole job."""
ORDER = ("clean", "victim", "ft", "cleanclip", "cleanerclip", "par")
"""Order of the models in every table; others come after these."""


@dataclass(frozen=True)
class Cells:
    """The cells below a folder, `ATTACK/seedN`: those of a reproduction, or a copy of their records.

    Args:
        root: The folder; it may have some of the cells, or none.
        attacks: Names of the attacks, in order.
        seeds: Seeds, in order.
        layout: Where a cell lies below the folder.
        settings: (attack, seed) -> what a finished cell was to be run with: one of other settings is left out. None
            takes every record as it is.
    """

    root: Path
    attacks: tuple[str, ...]
    seeds: tuple[int, ...]
    layout: str = "{attack}/seed{seed}"
    settings: Mapping[tuple[str, int], Mapping[str, Any]] | None = None

    def _folder(self, attack: str, seed: int) -> Path:
        return self.root / self.layout.format(attack=attack, seed=seed)

    @cached_property
    def others(self) -> list[tuple[str, int]]:
        """The (attack, seed) whose cell is finished with other settings."""
        found = []
        for (attack, seed), asked in (self.settings or {}).items():
            record = self._folder(attack, seed) / CELL / RECORD_FILE
            if record.is_file() and RunRecord.load(record).config != asked:
                found.append((attack, seed))
        return found

    @cached_property
    def _records(self) -> dict[tuple[str, int, str], RunRecord]:
        found = {}
        for attack in self.attacks:
            for seed in self.seeds:
                folder = self._folder(attack, seed)
                for path in [] if (attack, seed) in self.others else sorted(folder.rglob(RECORD_FILE)):
                    found[attack, seed, path.parent.relative_to(folder).as_posix()] = RunRecord.load(path)
        return found

    def records(self, attack: str, stage: str, seeds: Sequence[int] | None = None) -> list[RunRecord]:
        """Return the records of a stage that are there, in the order of the seeds: of all, or of some."""
        asked = [(attack, seed, stage) for seed in self.seeds if seeds is None or seed in seeds]
        return [self._records[one] for one in asked if one in self._records]

    def measured(self, *asked: tuple[str, str]) -> list[int]:
        """Return the seeds on which every one of some (attack, model) was evaluated: what means may be compared on."""
        stages = [(attack, f"evaluate/{model}") for attack, model in asked]
        return [seed for seed in self.seeds if all((one, seed, stage) in self._records for one, stage in stages)]

    def models(self) -> list[str]:
        """Return the models that were measured in some cell: clean and victim first, then in the order of a job."""
        stages = dict.fromkeys(stage for _, _, stage in self._records)
        measured = [stage.removeprefix("evaluate/") for stage in stages if stage.startswith("evaluate/")]
        return sorted(measured, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))

    def measures(self) -> list[str]:
        """Return the names of the further measurements (stages `measured/NAME/MODEL`) that some cell has."""
        stages = [stage.split("/") for _, _, stage in self._records]
        return sorted({parts[1] for parts in stages if parts[0] == "measured" and len(parts) == 3})

    def reports(
        self, attack: str, model: str, measure: str = "", seeds: Sequence[int] | None = None
    ) -> list[EvalReport]:
        """Return the evaluations of a model: the job's own, or those of a further measurement."""
        stage = f"measured/{measure}/{model}" if measure else f"evaluate/{model}"
        found = (one.metrics.get("report") for one in self.records(attack, stage, seeds))
        return [EvalReport.from_dict(one) for one in found if one is not None]

    def scans(self, attack: str, model: str, measure: str) -> dict[str, list[dict[str, float]]]:
        """Return detector -> how well it told stamped images from clean ones, a dictionary a seed and trigger."""
        found: dict[str, list[dict[str, float]]] = {}
        for record in self.records(attack, f"measured/{measure}/{model}"):
            for by_detector in record.metrics.get("scan", {}).values():
                for detector, figures in by_detector.items():
                    found.setdefault(detector, []).append(figures)
        return found

    def ba(
        self, attack: str, model: str, k: int, measure: str = "", seeds: Sequence[int] | None = None
    ) -> list[float]:
        """Return BA@k, in [0, 1]."""
        return [report.ba[k].value for report in self.reports(attack, model, measure, seeds) if k in report.ba]

    def asr(
        self, attack: str, model: str, k: int, measure: str = "", seeds: Sequence[int] | None = None
    ) -> list[float]:
        """Return ASR@k, in [0, 1], the mean over triggers where there are several."""
        return mean_asr(self.reports(attack, model, measure, seeds), k)

    def asr_by_epoch(self, attack: str, model: str) -> list[list[float]]:
        """Return ASR@1 after each epoch of a model's training, a list a seed."""
        stage = "victim" if model == "victim" else f"defend/{model}"
        return [run for run in map(mean_asr_by_epoch, self.records(attack, stage)) if run]

    def visibility(self, attack: str) -> list[dict[str, float]]:
        """Return PSNR (dB), SSIM and n of the trigger, a dictionary a seed: on photographs where measured there.

        They come from a gallery (recipes/gallery.py) of the cell's own trigger, stage `gallery`.
        """
        found = []
        for record in self.records(attack, "gallery"):
            (by_set,) = record.metrics.values()
            found.append(by_set.get("photographs") or by_set["scenes"])
        return found

    def detectors(self, attack: str, figure: str = "auroc") -> dict[tuple[str, str], list[float]]:
        """Return (detector, rate) -> a figure of each record that has it, in [0, 1].

        The rate is "" for the one that the victim was trained at.
        """
        found: dict[tuple[str, str], list[float]] = {}
        for record in self.records(attack, "detect"):
            tables = {"": record.metrics.get("detectors", {}), **record.metrics.get("rates", {})}
            for rate, by_detector in tables.items():
                for detector, figures in by_detector.items():
                    if figure in figures:
                        name = recorded_name(detector, record.config)
                        found.setdefault((name, rate), []).append(figures[figure])
        return found


def mean_asr(reports: Iterable[EvalReport], k: int) -> list[float]:
    """Return ASR@k of each report that has it, in [0, 1], the mean over triggers where there are several."""
    rates = [[one.asr[k].value for one in report.triggers.values() if k in one.asr] for report in reports]
    return [fmean(values) for values in rates if values]


def mean_asr_by_epoch(record: RunRecord) -> list[float]:
    """Return ASR@1 after each epoch of a training that was measured, in [0, 1], the mean over triggers."""
    entries = [
        [value for name, value in entry.items() if name.startswith("eval_asr1_")]
        for entry in record.metrics["history"]
    ]
    return [fmean(values) for values in entries if values]


def spread(values: Sequence[float], none: str = NOT_RUN) -> str:
    """Return shares in [0, 1] as percent: the mean and, of several, "(lowest to highest)"; `none` where there is none.

    Example:
        >>> spread([0.5, 0.75]), spread([0.5]), spread([])
        ('62.5 (50.0 to 75.0)', '50.0', 'not run')
    """
    if not values:
        return none
    return percent(fmean(values)) + (f" ({percent(min(values))} to {percent(max(values))})" if len(values) > 1 else "")
