# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Linear probe of several models on several datasets, as CleanerCLIP's Table 2: records and a table.

    python recipes/linear_probe/probe.py [CONFIG.yaml] [--KEY VALUE ...]

Keys: models (name -> folder or Hub id), datasets (name -> data, trigger), trigger, size, n_train, n_test, output_dir.
A dataset is a Hub id such as clip-benchmark/wds_vtab-pets, or what `hf-clipbd evaluate --data` takes.
"""

import sys
from pathlib import Path
from typing import Any

import yaml

from hf_clipbd.cli import script, start_logging
from hf_clipbd.tables import markdown


DEFAULT = Path(__file__).with_name("probe.yaml")


def read(arguments: list[str]) -> dict[str, Any]:
    """Return the configuration: a YAML, then flags of its own keys."""
    file = Path(arguments.pop(0)) if arguments and not arguments[0].startswith("--") else DEFAULT
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    for flag, value in zip(arguments[::2], arguments[1::2], strict=True):
        if flag.removeprefix("--") not in config:
            raise ValueError(f"Expected keys {sorted(config)}, but got {flag}.")
        config[flag.removeprefix("--")] = yaml.safe_load(value)
    return config


def table(figures: dict[tuple[str, str], dict[str, Any]]) -> str:
    """Return the accuracies, and ASR@1 where it was measured, as Markdown: a row a model, a column a dataset."""
    models, names = (list(dict.fromkeys(key[place] for key in figures)) for place in (0, 1))
    triggered = [name for name in names if any(figures[model, name]["report"]["triggers"] for model in models)]
    n = {name: figures[models[0], name]["report"]["ba"]["1"]["n"] for name in names}
    header = ["model", *(f"{name} (n = {n[name]})" for name in names), *(f"{name} ASR@1" for name in triggered)]
    rows = []
    for model in models:
        cells = [f"{100 * figures[model, name]['probe']['accuracy']:.2f}" for name in names]
        for name in triggered:
            (found,) = figures[model, name]["report"]["triggers"].values()
            cells.append(f"{100 * found['asr']['1']['value']:.2f} (n = {found['asr']['1']['n']})")
        rows.append([model, *cells])
    return markdown(header, rows) + "\n"


def act(arguments: list[str]) -> int:
    """Measure each model on each dataset, print and write the table."""
    config = read(list(arguments))
    start_logging()
    from hf_clipbd.recipe.assess import Question, record_of
    from hf_clipbd.recipe.single import Data

    out, figures = Path(config["output_dir"]), {}
    for name, of in config["datasets"].items():
        test = Data(of["data"], "test", n=config["n_test"], size=config["size"])
        train = Data(of["data"], "train", n=config["n_train"], size=config["size"])
        triggers = (config["trigger"],) if of.get("trigger") else ()
        for model, folder in config["models"].items():
            question = Question("linear_probe", triggers, ks=(1,))
            figures[model, name] = record_of(folder, test, question, train, out / "cache", out / name / model)
            print(f"{name} {model}: {100 * figures[model, name]['probe']['accuracy']:.2f}", flush=True)
    text = table(figures)
    (out / "table.md").write_text(text, encoding="utf-8")
    print(f"\n{text}\nwritten to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(script("probe.py", __doc__, act, sys.argv[1:]))
