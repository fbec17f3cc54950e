# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""How many captions a second one core parses, shortens, falsifies and augments, against a stated limit of 5,000.

    python benchmarks/captions.py [--captions FILE ...] [--n 5000] [--rounds 5] [--out captions.json]

FILE holds a caption a line; without one the hand-labelled captions of the tests are taken. Every caption counts once,
and what the parser remembers of whole captions is forgotten before each round; what is known of single words stays, as
in use. Rates are captions a second of processor time, medians over rounds, after one round unmeasured.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from hf_clipbd.captions import augment_caption, counterfactual_caption, factual_caption, parse
from hf_clipbd.schema import command_line, package_versions, write_json


LABELLED = Path(__file__).parents[1] / "tests/data/captions_labelled.jsonl"
LIMIT = 5000


def captions(files: Iterable[Path], n: int) -> list[str]:
    """Return at most `n` captions that differ, evenly from the files or from the labelled ones."""
    files = list(files)
    if not files:
        lines = [json.loads(line)["caption"] for line in LABELLED.read_text(encoding="utf-8").splitlines()]
        return list(dict.fromkeys(lines))[:n]
    chosen = []
    for file in files:
        lines = list(dict.fromkeys(filter(str.strip, file.read_text(encoding="utf-8").splitlines())))
        chosen += lines[:: max(1, len(lines) * len(files) // n)][: n // len(files)]
    return chosen


def rate(action: Callable[[str, int], object], rows: list[str], rounds: int) -> float:
    """Return captions a second of processor time, the median over rounds."""
    taken = []
    for number in range(rounds + 1):
        parse.cache_clear()
        start = time.process_time()
        for row, caption in enumerate(rows):
            action(caption, row + number * len(rows))
        if number:
            taken.append(time.process_time() - start)
    return len(rows) / statistics.median(taken)


def main() -> None:
    """Measure, print the rates and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=Path, nargs="*", default=[], help="text files, a caption a line")
    parser.add_argument("--n", type=int, default=5000, help="captions")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds")
    parser.add_argument("--out", type=Path, default=Path("captions.json"), help="JSON record to write")
    options = parser.parse_args()

    rows = captions(options.captions, options.n)
    actions: dict[str, Callable[[str, int], object]] = {
        "parse": lambda caption, seed: parse(caption),
        "factual": lambda caption, seed: factual_caption(caption),
        "counterfactual": lambda caption, seed: counterfactual_caption(caption, seed=seed),
        "eda": lambda caption, seed: augment_caption(caption, np.random.default_rng(seed)),
    }
    rates = {name: rate(action, rows, options.rounds) for name, action in actions.items()}
    metrics = {
        "captions a second": rates,
        "ratio to the limit": {name: value / LIMIT for name, value in rates.items()},
    }
    for name, value in rates.items():
        print(f"{name:16} {value:10,.0f} a second, {value / LIMIT:5.2f} of the limit")
    settings = {"n": len(rows), "rounds": options.rounds, "captions": [file.name for file in options.captions]}
    record = {
        "stage": "benchmark/captions",
        "config": settings,
        "metrics": metrics,
        "machine": {"system": platform.platform(), "cores": os.cpu_count(), "load": os.getloadavg()},
        "versions": package_versions(),
        "command": command_line(sys.argv),
    }
    write_json(options.out, record)


if __name__ == "__main__":
    main()
