# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Prints one Markdown table over runs of one configuration that differ in their seed: mean and range, from records.

python recipes/scenes/summarize.py runs/seed0 runs/seed1 runs/seed2 [--top 1 10]
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from hf_clipbd.detection.revisions import recorded_name
from hf_clipbd.report.results_cells import spread
from hf_clipbd.schema import EvalReport, RunRecord
from hf_clipbd.tables import markdown


def models(runs: list[Path]) -> list[str]:
    """Return the models that the first run evaluated: clean and victim first."""
    names = sorted(path.parent.name for path in runs[0].glob("evaluate/*/record.json"))
    if not names:
        raise FileNotFoundError(f"Expected evaluation records below `{runs[0]}/evaluate`. Finish the run first.")
    first = ["clean", "victim", "ft"]
    return [*(name for name in first if name in names), *(name for name in names if name not in first)]


def evaluation_rows(runs: list[Path], shown: list[int]) -> Iterable[list[str]]:
    """Yield one row a model: its name, then BA and ASR at the k `shown`."""
    for name in models(runs):
        records = [RunRecord.load(run / "evaluate" / name) for run in runs]
        reports = [EvalReport.from_dict(record.metrics["report"]) for record in records]
        benign = [[report.ba[k].value for report in reports] for k in shown]
        attacks = [[next(iter(report.triggers.values())).asr[k].value for report in reports] for k in shown]
        yield [name, *map(spread, benign + attacks)]


def detection_rows(runs: list[Path]) -> Iterable[list[str]]:
    """Yield one row a detector and poison rate: their names, then AUROC and recall."""
    records = [RunRecord.load(run / "detect") for run in runs]
    found = [record.metrics for record in records]
    for detector in found[0]["detectors"]:
        name = " and ".join(dict.fromkeys(recorded_name(detector, record.config) for record in records))
        trained = [one["detectors"][detector] for one in found]
        yield [name, "as trained", *(spread([one[figure] for one in trained]) for figure in ("auroc", "recall"))]
        for rate in found[0]["rates"]:
            thinned = [one["rates"][rate][detector] for one in found]
            shown = (spread([one[figure] for one in thinned]) for figure in ("auroc", "recall"))
            yield [name, f"{100 * float(rate):g} % (thinned)", *shown]


def main(arguments: list[str]) -> int:
    """Print both tables and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="Finished runs, or folders of their records.")
    parser.add_argument("--top", nargs="+", type=int, default=[1, 10], help="The k of BA@k and ASR@k.")
    given = parser.parse_args(arguments)
    header = ["model", *(f"BA@{k} %" for k in given.top), *(f"ASR@{k} %" for k in given.top)]
    print(markdown(header, evaluation_rows(given.runs, given.top)), end="\n\n")
    print(markdown(["detector", "poison rate", "AUROC %", "recall %"], detection_rows(given.runs), text_columns=2))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
