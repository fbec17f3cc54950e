# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Linear probes of every model of finished jobs, clean and stamped images, as records that RESULTS.md is made from.

    python recipes/linear_probe/runs.py RUN [RUN ...] [--data DATA] [--n_train N] [--n_test N] [--records FOLDER]

RUN is the output folder of `recipes/defend.py`; what was measured stays in `RUN/measured/probe_NAME/MODEL` and is not
measured again. DATA are labelled images, those of the run by default. Without numbers all of them are used.
"""

import argparse
import sys
from pathlib import Path

from hf_clipbd.cli import script, start_logging


RECORDS = Path(__file__).with_name("records")


def measured(run: Path, data: str | None, n_train: int | None, n_test: int | None) -> tuple[int, list[Path]]:
    """Probe every model of a run; return the run's seed and the records."""
    from hf_clipbd.recipe.config import load_config
    from hf_clipbd.recipe.reproduce_measures import Measure, measure_all

    config = load_config([str(run / "config.yaml"), "--output_dir", str(run)])
    measure = Measure("linear_probe", data or str(config.world.path), n_train=n_train, n_test=n_test)
    name = f"probe_{Path(measure.data).name}"
    measure_all(config, {name: measure})
    return config.seed, sorted((run / "measured" / name).glob("*/record.json"))


def act(arguments: list[str]) -> int:
    """Probe the runs, copy the records without paths of this machine, and say the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data")
    parser.add_argument("--n_train", type=int)
    parser.add_argument("--n_test", type=int)
    parser.add_argument("--records", type=Path, default=RECORDS)
    options = parser.parse_args(arguments)
    start_logging()
    from hf_clipbd.schema import RunRecord, write_json
    from hf_clipbd.templates import public

    for run in options.runs:
        seed, records = measured(run, options.data, options.n_train, options.n_test)
        for path in records:
            record = RunRecord.load(path)
            write_json(options.records / f"seed{seed}" / path.relative_to(run), public(vars(record)))
            report = record.metrics["report"]
            asr = [f"{name} ASR@1 {100 * one['asr']['1']['value']:.1f}" for name, one in report["triggers"].items()]
            print(f"seed {seed} {path.parent.name}: {100 * report['ba']['1']['value']:.1f} % of "
                  f"{report['ba']['1']['n']}", *asr)  # fmt: skip
    print(f"written to {options.records}; `make results` shows them")
    return 0


if __name__ == "__main__":
    sys.exit(script("runs.py", __doc__, act, sys.argv[1:]))
