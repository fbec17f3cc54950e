# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Every detector on real victims: AUROC, average precision and recall at 1 % removal by poison rate, as a table.

    python benchmarks/detectors_table.py RUN [RUN ...] --out benchmarks/records/detect/detectors.json

RUN is a run folder of `hf-clipbd run`, of `recipes/reproduce.py`, or of `recipes/poison.py` and
`recipes/train_victim.py`. Embeddings are taken from the run where it keeps them, else computed once and kept in
`--cache`. Rates below a victim's own are reached by leaving poisoned rows out of the searched set; the victim stays
the same; rates above it (`--rates`) by leaving clean rows out. Every detector has one setting for all victims and
rates, its default; the published arithmetic stands beside them. Cognitive distillation (`--only
cognitive_distillation`) takes some 300 forward passes a picture: with `--distilled N` it looks at every poisoned row
and N clean ones, drawn at random, whose scores stand in for those of the other clean rows, so that its figures are
estimates. `--second` names an encoder of the second space for `disagreement`: `clean` for the run's own clean model,
`mirrored` for the victim itself on mirrored pictures, a folder or a Hub id. `--caption_shares` adds sparsity given the
caption at other shares, and `combined`, to the table. What the record holds is not computed again, so that a long
table may be made in pieces (`--minutes`); a table in Markdown is written beside it.
"""

import argparse
import functools
import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from hf_clipbd.detection import ALIGNED, DETECTORS, detect, detect_all, detection_performance, thinned_rows
from hf_clipbd.detection.threshold import removed_rows
from hf_clipbd.schema import RECORD_FILE, RunRecord, content_key, package_versions


if TYPE_CHECKING:
    import datasets

FIGURES = ("auroc", "auprc", "recall")
RATES = (0.01, 0.003, 0.001, 0.0001)
SHARED = ("conditional_sparsity", "combined")
"""Detectors that take `caption_share`."""
DETECTED = ("conditional_sparsity", "multi_scale", "k_distance", "slof", "dao", "disagreement")
PUBLISHED = {f"{name} (published)": name for name in ("slof", "dao", "k_distance")}
SAME = 0.02
"""Rates that differ by less than this share are taken for one."""
SHARE = ", caption_share "
DISTILLATION = "cognitive_distillation"


# -- victims ----------------------------------------------------------------------------------------------------------


def described(run: Path) -> dict[str, Any]:
    """Return attack, seed, ASR@1 and BA@1 of a run's victim."""
    record = RunRecord.load(run / "evaluate" / "victim")
    report = record.metrics["report"]
    attack, figures = next(iter(report["triggers"].items()))
    return {
        "run": "/".join(run.parts[-3:] if run.name.startswith("seed") else run.parts[-1:]),
        "attack": attack,
        "seed": record.seed,
        "asr@1": figures["asr"]["1"]["value"],
        "ba@1": report["ba"]["1"]["value"],
    }


def pairs_of(run: Path) -> "datasets.Dataset":
    """Return a run's poisoned pairs."""
    import datasets

    return datasets.load_from_disk(str(run / "poison" / "dataset"))


def arrays_of(run: Path, second: str | None, cache: Path) -> dict[str, np.ndarray]:
    """Return `image` and `texts` of a run's pairs in its victim, `others` in a second encoder, and `is_poisoned`."""
    pairs = pairs_of(run)
    keys = [RunRecord.load(run / stage).key for stage in ("poison", "victim")]
    arrays = {"is_poisoned": np.asarray(pairs.with_format(None)["is_poisoned"][:], dtype=bool)}
    stored = run / "embeddings"
    if (stored / RECORD_FILE).is_file() and RunRecord.load(stored).inputs.get("victim") == keys[1]:
        arrays |= {"image": np.load(stored / "image.npy"), "texts": np.load(stored / "text.npy")}
    else:
        arrays |= kept(cache / content_key(*keys), lambda: embedded(str(run / "victim"), pairs, texts=True))
    if second == "mirrored":
        make = functools.partial(embedded, str(run / "victim"), pairs, texts=False, mirrored=True)
        arrays["others"] = kept(cache / content_key(*keys, second), make)["image"]
    elif second is not None:
        name = yaml.safe_load((run / "config.yaml").read_text("utf-8"))["world"]["clean_model"]
        name = second if second != "clean" else str(run / "clean") if name == "train" else name
        others = kept(cache / content_key(keys[0], name), lambda: embedded(name, pairs, texts=False))
        arrays["others"] = others["image"]
    return arrays


def loaded(model: str) -> tuple[Any, Any]:
    """Return a model, on a GPU where there is one, and its processor: `scenes`, a folder or a Hub id."""
    from hf_clipbd.models import load_dual_encoder
    from hf_clipbd.recipe.place import model_device
    from hf_clipbd.scenes import load_clean_clip

    found, processor = load_clean_clip() if model == "scenes" else load_dual_encoder(model)
    return found.to(model_device()), processor


def masks_of(
    model: Any, processor: Any, pairs: Any, is_poisoned: np.ndarray, clean: int | None, cache: Path
) -> tuple[np.ndarray, int]:
    """Return a mask size for each pair, (N,), and how many of them were found.

    Args:
        model: The victim.
        processor: Its processor.
        pairs: The poisoned set.
        is_poisoned: (N,).
        clean: Clean rows, drawn at random, that are looked at beside the poisoned ones; all by default. The others get
            the size of one of these, drawn likewise.
        cache: Where sizes are kept.
    """
    from hf_clipbd.recipe.distilling import cached_mask_sizes

    rng = np.random.default_rng([0, len(pairs)])
    order = rng.permutation(np.flatnonzero(~is_poisoned))
    chosen = order[:clean]
    rows = np.sort(np.concatenate([np.flatnonzero(is_poisoned), chosen]))
    masks = np.empty(len(pairs))
    masks[rows] = cached_mask_sizes(model, processor, pairs, cache, rows)
    masks[order[len(chosen) :]] = rng.choice(masks[chosen], len(order) - len(chosen))
    return masks, len(rows)


def embedded(model: str, pairs: Any, texts: bool, mirrored: bool = False) -> dict[str, np.ndarray]:
    """Return `image`, and with `texts` that too, of pairs in a model: `scenes`, a folder or a Hub id."""
    from hf_clipbd.features import embed_dataset

    found = embed_dataset(*loaded(model), pairs, caption_column="caption" if texts else None, mirrored=mirrored)
    return {"image": found["image"], **({"texts": found["text"]} if texts else {})}


def kept(stem: Path, make: Any) -> dict[str, np.ndarray]:
    """Return the arrays of a file, made and written first where it is not there."""
    path = stem.with_suffix(".npz")
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path.with_suffix(".partial.npz"), **make())
        path.with_suffix(".partial.npz").replace(path)
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files}


# -- figures ----------------------------------------------------------------------------------------------------------


def rates_of(own: float, wanted: Sequence[float] | None = None) -> Iterator[tuple[str, float | None]]:
    """Yield label and rate of each searched set; None for the whole one, which is there unless rates are asked for."""
    rates = RATES if wanted is None else wanted
    if wanted is None and all(abs(own - rate) > SAME * rate for rate in rates):
        yield f"{own:.6g}", None
    for rate in rates:
        if abs(own - rate) <= SAME * rate:
            yield f"{rate:g}", None
        elif rate < own or wanted is not None:
            yield f"{rate:g}", rate


def rows_at(truth: np.ndarray, rate: float | None, draw: int) -> np.ndarray:
    """Return the rows of a set in which poisoned rows are the share `rate`; all where it is None."""
    if rate is None:
        return np.arange(len(truth))
    if rate < truth.mean():
        return thinned_rows(truth, rate, 0, draw)
    poisoned, clean = np.flatnonzero(truth), np.flatnonzero(~truth)
    few = np.random.default_rng([0, draw]).choice(clean, round(len(poisoned) * (1 / rate - 1)), replace=False)
    return np.sort(np.concatenate([poisoned, few]))


def scored(arrays: dict[str, np.ndarray], rows: np.ndarray, names: list[str], seed: int) -> dict[str, np.ndarray]:
    """Return the scores of the named detectors for some rows, searched as a set of their own."""
    image = arrays["image"][rows]
    aligned = {name: arrays[name][rows] for name in ("texts", "others", "masks") if name in arrays}
    found = detect_all(image, [name for name in names if name in DETECTORS], seed=seed, **aligned)
    for name in names:
        if name in PUBLISHED:
            found[name] = detect(image, PUBLISHED[name], seed=seed, compat="huang2025")
        elif SHARE in name:
            detector, share = name.split(SHARE)
            taken = {one: aligned[one] for one in ALIGNED[detector]}
            found[name] = detect(image, detector, seed=seed, caption_share=float(share), **taken)
    return found


def figures_of(scores: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Return AUROC, average precision, and recall among the 1 % of rows that score highest, or as many as poisoned.

    Where fewer than 1 % are poisoned, the recall is `recall_at_1_percent` of `detection_performance`.
    """
    found = detection_performance(scores, truth, max(removed_rows(len(truth), 0.01), int(truth.sum())))
    return {name: found[name] for name in FIGURES}


def fill(
    victim: dict[str, Any],
    arrays: dict[str, np.ndarray],
    names: list[str],
    draws: int,
    rates: Sequence[float] | None = None,
) -> Iterator[None]:
    """Compute what a victim's table lacks; gives way after each draw."""
    truth = arrays["is_poisoned"]
    names = [name for name in names if _takes(name, arrays)]
    for label, rate in rates_of(float(truth.mean()), rates):
        cells = victim["rates"].setdefault(label, {"detectors": {}})
        for draw in range(draws):
            missing = [name for name in names if len(cells["detectors"].get(name, {}).get("draws", [])) <= draw]
            if not missing:
                continue
            rows = rows_at(truth, rate, draw)
            cells |= {"n": len(rows), "n_poisoned": int(truth[rows].sum())}
            for name, scores in scored(arrays, rows, missing, draw).items():
                found = cells["detectors"].setdefault(name, {"draws": []})
                found["draws"].append(figures_of(scores, truth[rows]))
                found |= {one: float(np.mean([draw[one] for draw in found["draws"]])) for one in FIGURES}
            yield


def _takes(name: str, arrays: dict[str, np.ndarray]) -> bool:
    needs = ("others",) if name == "disagreement" else ALIGNED.get(name.split(SHARE)[0], ())
    return all(need in arrays for need in needs)


def markdown(record: dict[str, Any]) -> str:
    """Return a table a victim: a row a detector, AUROC / average precision / recall at 1 % removal for each rate."""
    parts = []
    for victim in record["victims"].values():
        told = f"{victim['attack']}, seed {victim['seed']}: BA@1 {victim['ba@1']:.1%}, ASR@1 {victim['asr@1']:.1%}"
        told += f"; cognitive distillation looked at {looked} rows" if (looked := victim.get("n_distilled")) else ""
        rates = dict(sorted(victim["rates"].items(), key=lambda one: -float(one[0])))
        above = ", above it the poison's own share," if any(float(rate) > 0.01 for rate in rates) else ""
        parts.append(f"### {victim['run']}\n\n{told}. AUROC / average precision / recall at 1 %{above} removal.\n")
        heads = [f"{float(rate):.3g} ({one.get('n_poisoned', 0)} rows)" for rate, one in rates.items()]
        parts.append("| detector | " + " | ".join(heads) + " |\n|---|" + "---|" * len(heads))
        names = dict.fromkeys(name for one in rates.values() for name in one["detectors"])
        for name in names:
            found = [one["detectors"].get(name) for one in rates.values()]
            cells = ["" if one is None else " / ".join(f"{one[figure]:.3f}" for figure in FIGURES) for one in found]
            parts.append(f"| {name} | " + " | ".join(cells) + " |")
        parts.append("")
    return "\n".join(parts)


def main() -> None:
    """Embed what is not yet embedded, score what is not yet scored, and write record and table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True, help="JSON file of the record")
    parser.add_argument("--cache", type=Path, default=Path("runs/embeddings"), help="where embeddings are kept")
    parser.add_argument("--second", help="second space: `clean`, `mirrored`, a folder or a Hub id")
    parser.add_argument(
        "--rates", type=float, nargs="+", help="poison rates of the searched sets (default: up to a victim's own)"
    )
    parser.add_argument(
        "--caption_shares", type=float, nargs="+", default=[], help="further shares, beside the default"
    )
    parser.add_argument(
        "--distilled", type=int, metavar="N", help="clean rows that cognitive distillation looks at (default: all)"
    )
    parser.add_argument("--draws", type=int, default=3, help="choices of the poisoned rows that stay, and references")
    parser.add_argument("--only", nargs="*", default=[*DETECTED, *PUBLISHED], choices=[*DETECTORS, *PUBLISHED])
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="stop at the next whole draw after so long"
    )
    given = parser.parse_args()
    if given.distilled is not None and (given.distilled < 1 or DISTILLATION not in given.only):
        parser.error("--distilled N, at least 1, goes with --only cognitive_distillation")
    names = [*given.only, *(f"{one}{SHARE}{share:g}" for share in given.caption_shares for one in SHARED)]
    record: dict[str, Any] = {
        "stage": "benchmark/detectors_table",
        "command": " ".join(["benchmarks/detectors_table.py", *sys.argv[1:]]),
        "config": {"draws": given.draws, "second": given.second, "distilled": given.distilled},
        "machine": {"arch": platform.machine(), "cores": os.cpu_count()},
        "versions": package_versions(),
        "note": "Rates below a victim's own leave poisoned rows out of the searched set, rates above it clean ones; "
        "the victim stays the same.",
        "victims": {},
    }
    if given.out.is_file():
        record["victims"] = json.loads(given.out.read_text(encoding="utf-8"))["victims"]

    started = time.monotonic()
    for run in given.runs:
        about = described(run)
        victim = record["victims"].setdefault(about["run"], {**about, "rates": {}})
        arrays = arrays_of(run, given.second, given.cache)
        if DISTILLATION in given.only:
            asked = (pairs_of(run), arrays["is_poisoned"], given.distilled, given.cache)
            arrays["masks"], victim["n_distilled"] = masks_of(*loaded(str(run / "victim")), *asked)
        for _ in fill(victim, arrays, names, given.draws, given.rates):
            given.out.parent.mkdir(parents=True, exist_ok=True)
            given.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            given.out.with_suffix(".md").write_text(markdown(record), encoding="utf-8")
            if time.monotonic() - started > 60 * given.minutes:
                return


if __name__ == "__main__":
    main()
