# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The one-page report of a run: pictures embedded, nothing loaded from elsewhere, every figure out of a record."""

import base64
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_clipbd.report import figures
from hf_clipbd.report.table import DetectorRow, ModelRow, detector_rows, model_rows, thinning_note
from hf_clipbd.run_folder import RunFolder
from hf_clipbd.schema import IS_POISONED
from hf_clipbd.templates import environment, flat, method, papers, percent, public


@dataclass(frozen=True)
class Plate:
    """One picture of the report.

    Args:
        path: PNG file.
        title: Heading.
        caption: What is shown, with n and seed, and how to read it.
        alt: What somebody who cannot see the picture should know.
    """

    path: Path
    title: str
    caption: str
    alt: str

    @property
    def data_uri(self) -> str:
        """The PNG as a `data:` address."""
        return "data:image/png;base64," + base64.b64encode(self.path.read_bytes()).decode("ascii")


def _rate_text(rate: Any) -> str:
    return f"{percent(rate.value)} %"


def _samples_plate(run: RunFolder, folder: Path) -> Plate:
    samples, manifest = run.samples(), run.manifest
    path = figures.save(figures.draw_samples(samples), folder / "samples.png")
    caption = (
        f"{len(samples)} of the {manifest.count:,} poisoned rows (of {manifest.n_rows:,}; seed {manifest.seed}): the "
        f"clean picture, the poisoned one, and their absolute difference, stretched to full range in each. Captions: "
        f"the original in grey, what the poisoned row says instead in orange."
    )
    alt = f"Pictures before and after the {method(manifest.attack)['label']} trigger, which differ only where it is."
    return Plate(path, "What was poisoned", caption, alt)


def _bars_plate(run: RunFolder, folder: Path, rows: list[ModelRow]) -> Plate:
    trigger, first = rows[0].trigger, rows[0]
    path = figures.save(figures.draw_bars(rows), folder / f"bars_{trigger}.png")
    caption = (
        f"Zero-shot BA over n = {first.ba[1].n:,} clean images, ASR over n = {first.asr[1].n:,} images stamped with "
        f"{method(trigger)['label']} towards “{first.target}” (seed {run.record('evaluate/victim').seed}); thin lines "
        f"are 95 % Wilson intervals of these n. The clean model's ASR is the floor: it names the target by mistake."
    )
    values = "; ".join(f"{row.label} {_rate_text(row.ba[1])} and {_rate_text(row.asr[1])}" for row in rows)
    return Plate(path, "BA and ASR by defence and top k", caption, f"Bars of BA and ASR; at top 1: {values}.")


def _history_plate(run: RunFolder, folder: Path, rows: list[ModelRow]) -> Plate | None:
    """Return the plate of the trainings, None where one of them was not measured on the way."""
    trigger, by_model = rows[0].trigger, {row.model: row for row in rows}
    histories = {model: figures.measured(run.history(model), trigger) for model in ("victim", *run.defenses)}
    if not all(histories.values()):
        return None
    levels = {name: (by_model[name].ba[1].value, by_model[name].asr[1].value) for name in ("clean", "victim")}
    drawn = figures.draw_history(histories, trigger, levels)
    path = figures.save(drawn, folder / f"history_{trigger}.png")
    n = min(run.config["evaluate"]["epoch_images"], rows[0].ba[1].n)
    counted = _of_target(run, list(histories))
    caption = (
        f"BA@1 and ASR@1 during training, on n = {n:,} labelled images (those of the target class {counted}); "
        f"seed {run.record('victim').seed}. Dashed: clean model and victim in the full evaluation, n = "
        f"{rows[0].ba[1].n:,} and {rows[0].asr[1].n:,}. A good defence drops to the grey "
        f"line in the lower panel and stays near it in the upper one."
    )
    last = {model: log[-1] for model, log in histories.items()}
    values = "; ".join(
        f"{method(model)['label']} {percent(one['eval_ba1'])} % and {percent(one[f'eval_asr1_{trigger}'])} %"
        for model, one in last.items()
    )
    return Plate(path, "BA and ASR by epoch", caption, f"Curves of BA@1 and ASR@1; at the last measurement: {values}.")


def _of_target(run: RunFolder, models: list[str]) -> str:
    """Return what these trainings' ASR by epoch made of the target's images: each record tells, else the run does."""
    now = run.config["evaluate"]["include_target"]
    records = [run.record(run.training_stage(model)) for model in models]
    told = {(record.config.get("measured") or {}).get("include_target", now) for record in records}
    return {(False,): "left out of ASR", (True,): "counted in ASR too"}.get(tuple(told), "in ASR of some trainings")


def _scores_plate(run: RunFolder, folder: Path, rows: list[DetectorRow]) -> Plate:
    table, chosen = run.scores(), [row for row in rows if row.as_poisoned]
    is_poisoned = np.asarray(table[IS_POISONED], dtype=bool)
    if (len(is_poisoned), int(is_poisoned.sum())) != (chosen[0].n, chosen[0].n_poisoned):
        raise ValueError(
            f"Expected {chosen[0].n_poisoned} poisoned of {chosen[0].n} rows, as stage `detect` recorded, but its "
            f"`scores.parquet` has {is_poisoned.sum()} of {len(is_poisoned)}. Run stage `detect` again."
        )
    scores = {row.detector: np.asarray(table[f"score_{row.detector}"], dtype=np.float64) for row in chosen}
    auroc = {row.detector: row.figures["auroc"] for row in chosen}
    path = figures.save(figures.draw_scores(scores, is_poisoned, auroc), folder / "scores.png")
    caption = (
        f"Scores of all n = {len(is_poisoned):,} rows of the victim's training set, {is_poisoned.sum():,} of them "
        f"poisoned; seed {run.record('detect').seed}. Left: each kind of row adds up to 100 %, the outermost bins "
        f"hold what lies beyond. Middle and right: share of the poison found against share of clean rows dropped with "
        f"it; the logarithmic axis shows the start, which decides for a large dataset. Dashed: guessing."
    )
    values = "; ".join(f"{method(name)['label']} {percent(value)} %" for name, value in auroc.items())
    return Plate(path, "How the poison was found", caption, f"Histograms of scores and ROC curves; AUROC: {values}.")


def _map_plate(run: RunFolder, folder: Path) -> Plate:
    plane = run.embedding_map()
    path = figures.save(figures.draw_map(np.asarray(plane["points"]), plane["kind"]), folder / "map.png")
    counts = {kind: plane["kind"].count(kind) for kind in ("clean", "target", "poisoned")}
    caption = (
        f"The victim's image embeddings of n = {len(plane['kind']):,} rows of its training set (seed "
        f"{run.record('detect').seed}), the plane of their first two principal components; poisoned rows and those "
        f"that show the target are drawn with preference. Poisoned rows gather apart where the trigger, "
        f"not the content, decides; two dimensions of many, so closeness here is a hint and no proof."
    )
    alt = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    return Plate(path, "Where poisoned rows lie", caption, f"Scatter plot of rows by kind: {alt}.")


def draw_plates(run: RunFolder, folder: Path) -> list[Plate]:
    """Draw every picture of a run into `folder` and return them in reading order.

    Where the run measured nothing during one of its trainings (`evaluate.epoch_images: 0`, `eval_strategy: no`) or
    ran no detector, those pictures are left out.

    Raises:
        FileNotFoundError: If a record is missing; the message names the stage.
        ValueError: If a figure is missing from its record.
    """
    rows, detectors = model_rows(run), detector_rows(run)
    by_trigger = {name: [row for row in rows if row.trigger == name] for name in run.triggers()}
    plates = [_samples_plate(run, folder)]
    plates += [_bars_plate(run, folder, chosen) for chosen in by_trigger.values()]
    if run.config["evaluate"]["epoch_images"] > 0:
        plates += filter(None, (_history_plate(run, folder, chosen) for chosen in by_trigger.values()))
    if detectors:
        plates += [_scores_plate(run, folder, detectors)]
    return [*plates, _map_plate(run, folder)]


def _headline(rows: list[ModelRow], detectors: list[DetectorRow]) -> list[dict[str, str]]:
    """Return the few figures that head the page."""
    by_model = {row.model: row for row in rows}
    defended = [row for row in rows if row.model not in ("clean", "victim") and row.asr]
    tiles = [
        {"value": _rate_text(by_model[name].ba[1]), "name": f"BA@1, {by_model[name].label.lower()}", "note": ""}
        if not by_model[name].asr
        else {
            "value": _rate_text(by_model[name].asr[1]),
            "name": f"ASR@1, {by_model[name].label.lower()}",
            "note": f"BA@1 {_rate_text(by_model[name].ba[1])}",
        }
        for name in ("clean", "victim")
    ]
    if defended:
        best = min(defended, key=lambda row: row.asr[1].value)
        note = f"BA@1 {_rate_text(best.ba[1])}"
        tiles.append({"value": _rate_text(best.asr[1]), "name": f"lowest ASR@1: {best.label}", "note": note})
    if detectors:
        best = max((row for row in detectors if row.as_poisoned), key=lambda row: row.figures["auroc"])
        value = f"{percent(best.figures['auroc'])} %"
        note = f"{best.n_poisoned:,} of {best.n:,} rows poisoned"
        tiles.append({"value": value, "name": f"best AUROC: {best.label}", "note": note})
    return tiles


def _context(run: RunFolder, plates: list[Plate]) -> dict[str, Any]:
    rows, detectors = model_rows(run), detector_rows(run)
    stages = ["poison", "victim", *(f"defend/{name}" for name in run.defenses)]
    stages += [*(f"evaluate/{name}" for name in run.models), "detect"]
    records = [run.record(stage) for stage in stages]
    names = [run.manifest.attack, *run.models, *dict.fromkeys(row.detector for row in detectors)]
    return {
        "attack": method(run.manifest.attack),
        "manifest": run.manifest,
        "rows": rows,
        "ks": run.ks,
        "colours": {row.model: figures.colour(row.model, run.models) for row in rows},
        "detectors": detectors,
        "thinning_note": thinning_note(detectors),
        "headline": _headline([row for row in rows if row.trigger == rows[0].trigger], detectors),
        "plates": plates,
        "methods": [method(name) for name in names],
        "papers": papers(*names),
        "settings": {name: value for name, value in flat(public(run.config)).items() if name != "output_dir"},
        "records": [public(vars(record)) for record in records],
        "versions": run.record("victim").versions,
        "machine": run.record("victim").machine,
        "seed": run.config["seed"],
        "n_classes": run.evaluation("victim").n_classes,
        "include_target": any(one.include_target for one in run.evaluation("victim").triggers.values()),
    }


def write_report(run_folder: str | os.PathLike) -> Path:
    """Write `report/report.html` and `report/figures/*.png` of a run, from its records alone, and return the page.

    Args:
        run_folder: A run whose other stages are finished.

    Returns:
        Path of the page; it stands alone, the pictures are in it.

    Raises:
        FileNotFoundError: If a record is missing; the message names the stage.
        ValueError: If a figure is missing from its record, or the records are not those of one run.
    """
    run = RunFolder(run_folder)
    run.check_one_run()
    folder = run.path / "report"
    if (folder / "figures").is_dir():
        shutil.rmtree(folder / "figures")  # none of an earlier rendering stays
    plates = draw_plates(run, folder / "figures")
    page = environment().get_template("report.html").render(_context(run, plates))
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path
