# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The comparison table of a run: models by BA and ASR, detectors by how well they find the poison."""

import os
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from hf_clipbd.run_folder import RunFolder
from hf_clipbd.schema import Rate
from hf_clipbd.tables import aligned, markdown
from hf_clipbd.templates import method, percent


DETECTION_FIGURES = ("auroc", "auprc", "fpr_at_95_tpr", "precision", "recall")
NOT_TRAINED_HERE = NOT_MEASURED = "-"


@dataclass(frozen=True)
class ModelRow:
    """One model under one trigger.

    Args:
        model: Name in the run folder.
        trigger: Name of the trigger.
        target: Class that the trigger aims at.
        ba: k -> benign accuracy.
        asr: k -> attack success rate.
        ra: k -> accuracy on stamped images.
        seconds: Training time; None for the clean model, which the run did not train.
    """

    model: str
    trigger: str
    target: str
    ba: dict[int, Rate]
    asr: dict[int, Rate]
    ra: dict[int, Rate]
    seconds: float | None

    @property
    def label(self) -> str:
        """The model's name for headings."""
        return method(self.model)["label"]


@dataclass(frozen=True)
class DetectorRow:
    """One detector at one poison rate.

    Args:
        detector: Key in `hf_clipbd.detection.DETECTORS`.
        rate: Poison rate of the searched rows, in (0, 1).
        as_poisoned: Whether that is the rate the victim was trained at.
        draws: Sets that the figures are the mean of: 1 at the run's own rate, several thinned ones at a lower rate.
        figures: `auroc`, `auprc`, `fpr_at_95_tpr`, `precision` and `recall`, in [0, 1].
        n: Rows searched.
        n_poisoned: Poisoned rows among them.
    """

    detector: str
    rate: float
    as_poisoned: bool
    draws: int
    figures: dict[str, float]
    n: int
    n_poisoned: int

    @property
    def label(self) -> str:
        """The detector's name for headings."""
        return method(self.detector)["label"]


def model_rows(run: RunFolder) -> list[ModelRow]:
    """Return a row for each model and trigger, models in the order clean, victim, defences.

    Without a trigger on pictures each model has one row, with the trigger "" and no ASR.

    Raises:
        FileNotFoundError: If a record is missing; the message names the stage.
        ValueError: If a figure is missing.
    """
    rows = []
    for model in run.models:
        report, trained = run.evaluation(model), run.training_stage(model)
        seconds = run.record(trained).seconds if trained else None
        for name in run.triggers():
            one = report.triggers[name]
            rows.append(ModelRow(model, name, one.target, report.ba, one.asr, one.ra, seconds))
        if not report.triggers:
            rows.append(ModelRow(model, "", "", report.ba, {}, {}, seconds))
    return rows


def detector_rows(run: RunFolder) -> list[DetectorRow]:
    """Return a row for each detector: first at the poison rate of the run, then at the others that were tried.

    Raises:
        FileNotFoundError: If stage `detect` left no record.
        ValueError: If a figure is missing.
    """

    def row(detector: str, values: dict[str, Any], as_poisoned: bool) -> DetectorRow:
        needed = (*DETECTION_FIGURES, "n", "n_poisoned", *(() if as_poisoned else ("n_draws",)))
        missing = [name for name in needed if name not in values]
        if missing:
            raise ValueError(f"Expected {missing} of detector `{detector}` in the record of stage `detect`. Rerun it.")
        figures = {name: float(values[name]) for name in DETECTION_FIGURES}
        n, n_poisoned = int(values["n"]), int(values["n_poisoned"])
        draws = 1 if as_poisoned else int(values["n_draws"])
        return DetectorRow(detector, n_poisoned / n, as_poisoned, draws, figures, n, n_poisoned)

    rows = [row(name, values, True) for name, values in run.metric("detect", "detectors").items()]
    for by_detector in run.metric("detect", "rates").values():
        rows += [row(name, values, False) for name, values in by_detector.items()]
    return rows


def thinning_note(rows: list[DetectorRow]) -> str:
    """Return what has to be said beside figures at lower poison rates, or nothing where there are none."""
    draws = sorted({row.draws for row in rows if not row.as_poisoned})
    if not draws:
        return ""
    return (
        f"Lower poison rates: poisoned rows left out of the searched set, mean of {' or '.join(map(str, draws))} "
        f"draws; the victim is the same one, trained at the run's own rate."
    )


def _model_cells(rows: list[ModelRow], ks: list[int]) -> tuple[list[str], list[list[str]]]:
    header = ["model", "trigger", *(f"BA@{k}" for k in ks), "n", *(f"ASR@{k}" for k in ks), "n", "seconds"]
    cells = []
    for row in rows:
        seconds = NOT_TRAINED_HERE if row.seconds is None else f"{row.seconds:.0f}"
        ba, asr = (
            [*(percent(rates[k].value) for k in ks), str(rates[ks[0]].n)] if rates else [NOT_MEASURED] * (len(ks) + 1)
            for rates in (row.ba, row.asr)
        )
        cells.append([row.label, row.trigger or NOT_MEASURED, *ba, *asr, seconds])
    return header, cells


def _detector_cells(rows: list[DetectorRow]) -> tuple[list[str], list[list[str]]]:
    header = ["detector", "poison rate", "AUROC", "AUPRC", "FPR@95TPR", "precision", "recall", "poisoned", "n"]
    cells = []
    for row in rows:
        rate = f"{percent(row.rate, 2)} %{' (the run)' if row.as_poisoned else ''}"
        figures = [percent(row.figures[name]) for name in DETECTION_FIGURES]
        cells.append([row.label, rate, *figures, str(row.n_poisoned), str(row.n)])
    return header, cells


def comparison_table(run_folder: str | os.PathLike, format: Literal["terminal", "markdown"] = "terminal") -> str:
    """Return the tables of a run in percent: models by BA and ASR at each k with n, then detectors.

    Args:
        run_folder: A run whose stages `evaluate` and `detect` are finished.
        format: `terminal` (aligned columns) or `markdown`.

    Raises:
        FileNotFoundError: If a record is missing; the message names the stage.
        ValueError: If a figure is missing from its record, or the format is neither.
    """
    layouts = {"terminal": aligned, "markdown": partial(markdown, text_columns=2)}
    if format not in layouts:
        raise ValueError(f"Expected format to be one of {sorted(layouts)}, but got {format!r}.")
    run = RunFolder(run_folder)
    detectors = detector_rows(run)
    parts = [layouts[format](*_model_cells(model_rows(run), run.ks))]
    notes = ["BA, ASR and the detectors' figures in percent; seconds: training time of the model."]
    if detectors:
        parts.append(layouts[format](*_detector_cells(detectors)))
    if note := thinning_note(detectors):
        notes.append(note)
    return "\n\n".join([*parts, " ".join(notes)]) + "\n"
