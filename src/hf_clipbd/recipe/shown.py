# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Records as a few lines of text for a terminal; rates in percent, each beside its n."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hf_clipbd.schema import RunRecord


def record_lines(record: RunRecord, folder: Path) -> Iterator[str]:
    """Yield a stage's main figures and where it lies."""
    metrics = record.metrics
    if "report" in metrics:
        yield from report_lines(metrics["report"], record.stage)
    for name, value in _figures(metrics).items():
        yield f"  {name:32} {value:.4g}" if isinstance(value, float) else f"  {name:32} {value}"
    yield f"written to {folder}"


def report_lines(report: dict[str, Any], title: str) -> Iterator[str]:
    """Yield BA, ASR and RA of one evaluation report.

    Args:
        report: `EvalReport.to_dict()`.

    Example:
        >>> ba = {"1": {"value": 0.5, "n": 10}}
        >>> list(report_lines({"ba": ba, "triggers": {}}, "clean"))
        ['clean', '  BA                               @1  50.0  (n = 10)']
    """
    yield title
    rows = [("BA", report["ba"])]
    for name, one in report["triggers"].items():
        rows += [(f"ASR {name} -> {one['target']}", one["asr"]), (f"RA  {name}", one["ra"])]
    yield from _rate_lines(rows)


def evaluation_lines(figures: dict[str, Any], title: str) -> Iterator[str]:
    """Yield the rates of one evaluation by any protocol, and how a linear probe was fitted.

    Args:
        figures: `report`, with `probe` for a linear probe, or `retrieval`.
    """
    if "retrieval" in figures:
        found = figures["retrieval"]
        yield title
        rows = [("image to text R", found["image_to_text"]), ("text to image R", found["text_to_image"])]
        rows += [(f"ASR of images, {name}", one) for name, one in found["image_asr"].items()]
        rows += [(f"ASR of captions, {name}", one) for name, one in found["text_asr"].items()]
        yield from _rate_lines(rows)
        return
    yield from report_lines(figures["report"], title)
    if "probe" in figures:
        probe = figures["probe"]
        yield f"  {'mean accuracy of the classes':32} {100 * probe['mean_per_class']:8.1f}"
        yield f"  linear probe on {probe['n_train']} images, l2 = {probe['l2']:g}, {probe['solver']}"


def _rate_lines(rows: Iterable[tuple[str, dict[str, Any]]]) -> Iterator[str]:
    for name, rates in rows:
        cells = "  ".join(f"@{k} {100 * rate['value']:5.1f}" for k, rate in rates.items())
        yield f"  {name:32} {cells}  (n = {next(iter(rates.values()))['n']})"


def _figures(metrics: dict[str, Any]) -> dict[str, Any]:
    figures = {name: value for name, value in metrics.items() if isinstance(value, (int, float, str))}
    if metrics.get("history"):
        figures |= {f"last epoch, {name}": one for name, one in metrics["history"][-1].items() if name != "epoch"}
    for name, found in metrics.get("detectors", {}).items():
        figures[name] = ", ".join(f"{key} {value:.4g}" for key, value in found.items())
    for rate, by_detector in metrics.get("rates", {}).items():
        for name, found in by_detector.items():
            worst = found["worst"]["auroc"]
            figures[f"{name} at rate {rate}"] = f"auroc {found['auroc']:.4g}, worst draw {worst:.4g}"
    return figures
