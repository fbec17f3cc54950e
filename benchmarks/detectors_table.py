# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Every detector on real victims: AUROC, average precision and recall at 1 % removal by poison rate, as a table.

    python benchmarks/detectors_table.py RUN [RUN ...] --out FOLDER [--second MODEL] [--rates 0.01 0.001] [--draws 3]

RUN is a run folder of `hf-clipbd run` (or of `recipes/poison.py` and `recipes/train_victim.py`). Each set is embedded
once and kept in FOLDER; lower rates are reached by leaving poisoned rows out of the searched set. `--second` names the
encoder of the second space: `scenes`, a folder or a Hub id. FOLDER gets `detectors.json` and `detectors.md`, after
every detector; one that is there is not run again, so that a long table may be made in pieces (`--minutes`).
"""

import argparse
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_clipbd.detection import ALIGNED, DETECTORS, detect, detection_performance, thinned_rows


FIGURES = ("auroc", "auprc", "recall")
PUBLISHED = ("slof", "dao")


def embed_run(run: Path, second: str | None) -> dict[str, np.ndarray]:
    """Return image and text embeddings of a run's poisoned pairs in its victim, those of a second encoder, truth."""
    import datasets

    from hf_clipbd.data.canvas import Canvas
    from hf_clipbd.features import embed_dataset
    from hf_clipbd.models import load_dual_encoder
    from hf_clipbd.scenes import load_clean_clip

    pairs = datasets.load_from_disk(str(run / "poison" / "dataset"))
    model, processor = load_dual_encoder(run / "victim")
    found = embed_dataset(model, processor, pairs, canvas=Canvas.of(processor))
    arrays = {"image": found["image"], "texts": found["text"]}
    if second is not None:
        other, its_processor = load_clean_clip() if second == "scenes" else load_dual_encoder(second)
        arrays["others"] = embed_dataset(other, its_processor, pairs, caption_column=None)["image"]
    return {**arrays, "is_poisoned": np.asarray(pairs["is_poisoned"][:], dtype=bool)}


def scorers(arrays: dict[str, np.ndarray]) -> dict[str, tuple[Callable[..., np.ndarray], tuple[str, ...]]]:
    """Return name -> (`score(features, seed=..., **aligned)`, names of the aligned arrays it takes)."""
    found = {}
    for name in DETECTORS:
        needs = ("others",) if name == "disagreement" else ALIGNED.get(name, ())
        if all(need in arrays for need in needs):
            found[name] = (functools.partial(detect, detector=name), needs)
    for name in PUBLISHED:
        score = functools.partial(detect, detector=name, compat="huang2025")
        found[f"{name}, published"] = (score, ())
        found[f"{name}, published, with texts"] = (score, ("texts",))
    if "others" in arrays:
        found["disagreement with texts"] = (detect, ("others", "texts"))
    return found


def measure(
    arrays: dict[str, np.ndarray], rate: float | None, draws: int, score: Callable[..., np.ndarray], needs: tuple
) -> dict[str, float]:
    """Return mean and worst figures over draws; `recall` is that of the 1 % of rows that score highest."""
    truth, figures = arrays["is_poisoned"], []
    for draw in range(draws):
        rows = np.arange(len(truth)) if rate is None else thinned_rows(truth, rate, 0, draw)
        scores = score(arrays["image"][rows], seed=draw, **{need: arrays[need][rows] for need in needs})
        figures.append(detection_performance(scores, truth[rows], max(1, round(len(rows) / 100))))
    found = {one: float(np.mean([each[one] for each in figures])) for one in FIGURES}
    found |= {f"worst_{one}": float(min(each[one] for each in figures)) for one in FIGURES}
    return found | {"n": figures[0]["n"], "n_poisoned": figures[0]["n_poisoned"], "draws": draws}


def markdown(record: dict[str, Any]) -> str:
    """Return one table a victim: a row a detector, AUROC / average precision / recall at 1 % removal for each rate."""
    parts = []
    for run, by_rate in record["victims"].items():
        rates = list(by_rate)
        parts.append(f"### {run}\n\nAUROC / average precision / recall at 1 % removal, mean over draws.\n")
        parts.append("| detector | " + " | ".join(f"{float(rate):.3g} poisoned" for rate in rates) + " |")
        parts.append("|---|" + "---|" * len(rates))
        for name in by_rate[rates[0]]:
            found = [by_rate[rate].get(name) for rate in rates]
            cells = ["" if one is None else " / ".join(f"{one[figure]:.3f}" for figure in FIGURES) for one in found]
            parts.append(f"| {name} | " + " | ".join(cells) + " |")
        parts.append("")
    return "\n".join(parts)


def stored(run: Path, folder: Path, second: str | None) -> dict[str, np.ndarray]:
    """Return the arrays of `embed_run`, from `folder` where they are kept."""
    kept = folder / f"{run.name}.npz"
    if not kept.is_file():
        np.savez(kept, **embed_run(run, second))
    with np.load(kept) as arrays:
        return {name: arrays[name] for name in arrays.files}


def main() -> None:
    """Embed what is not yet embedded, score, and write record and table; a victim at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--second", help="encoder of the second space: `scenes`, a folder or a Hub id")
    parser.add_argument("--rates", type=float, nargs="*", default=[0.003, 0.001], help="besides each set's own rate")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="names of detectors; all by default")
    parser.add_argument("--minutes", type=float, help="start no detector after so long")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    kept = options.out / "detectors.json"
    record: dict[str, Any] = {
        "second": options.second,
        "thinned_search_set": "rates below a victim's own leave poisoned rows out; the victim stays the same",
        "victims": {},
    }
    record = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else record
    started = time.monotonic()
    for run in options.runs:
        arrays = stored(run, options.out, options.second)
        own = float(arrays["is_poisoned"].mean())
        by_rate = record["victims"].setdefault(run.name, {})
        for rate in (None, *sorted((rate for rate in options.rates if rate < own), reverse=True)):
            table = by_rate.setdefault(f"{own if rate is None else rate:.6g}", {})
            for name, (score, needs) in scorers(arrays).items():
                if name in table or (options.only and name not in options.only):
                    continue
                if options.minutes and time.monotonic() - started > 60 * options.minutes:
                    return
                table[name] = measure(arrays, rate, options.draws, score, needs)
                kept.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
                (options.out / "detectors.md").write_text(markdown(record), encoding="utf-8")


if __name__ == "__main__":
    main()
