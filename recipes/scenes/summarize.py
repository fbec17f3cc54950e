# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Prints one Markdown table over runs of one configuration that differ in their seed: mean and range, from records.

python recipes/scenes/summarize.py runs/seed0 runs/seed1 runs/seed2
"""

import sys
from collections.abc import Iterable
from pathlib import Path

from hf_clipbd.schema import EvalReport, RunRecord


SHOWN = (1, 10)


def spread(values: Iterable[float]) -> str:
    """Return "mean (lowest to highest)" in percent."""
    values = [100 * value for value in values]
    return f"{sum(values) / len(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def models(runs: list[Path]) -> list[str]:
    """Return the models that the first run evaluated: clean and victim first."""
    names = sorted(path.parent.name for path in runs[0].glob("evaluate/*/record.json"))
    if not names:
        raise FileNotFoundError(f"Expected evaluation records below `{runs[0]}/evaluate`. Finish the run first.")
    first = ["clean", "victim", "ft"]
    return [*(name for name in first if name in names), *(name for name in names if name not in first)]


def evaluation_rows(runs: list[Path]) -> Iterable[list[str]]:
    """Yield one row a model: its name, then BA and ASR at the shown k."""
    for name in models(runs):
        records = [RunRecord.load(run / "evaluate" / name) for run in runs]
        reports = [EvalReport.from_dict(record.metrics["report"]) for record in records]
        benign = [spread(report.ba[k].value for report in reports) for k in SHOWN]
        attacks = [[next(iter(report.triggers.values())).asr[k].value for report in reports] for k in SHOWN]
        yield [name, *benign, *map(spread, attacks)]


def detection_rows(runs: list[Path]) -> Iterable[list[str]]:
    """Yield one row a detector and poison rate: their names, then AUROC."""
    found = [RunRecord.load(run / "detect").metrics for run in runs]
    for detector in found[0]["detectors"]:
        yield [detector, "as trained", spread(one["detectors"][detector]["auroc"] for one in found)]
        for rate in found[0]["rates"]:
            thinned = [one["rates"][rate][detector]["auroc"] for one in found]
            yield [detector, f"{100 * float(rate):g} % (thinned)", spread(thinned)]


def table(header: list[str], rows: Iterable[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def main(folders: list[str]) -> int:
    """Print both tables and return the exit status."""
    if not folders or {"-h", "--help"} & set(folders):
        print(__doc__)
        return 0 if folders else 2
    runs = [Path(folder) for folder in folders]
    header = ["model", *(f"BA@{k} %" for k in SHOWN), *(f"ASR@{k} %" for k in SHOWN)]
    print(table(header, evaluation_rows(runs)), end="\n\n")
    print(table(["detector", "poison rate", "AUROC %"], detection_rows(runs)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
