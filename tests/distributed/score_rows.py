# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Scores rows on however many processes it is launched with; every process saves all the scores that it got.

Beside them it saves how many rows it searched the neighbours of, for each search.
"""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_clipbd.detection import Reference, detect, detect_all
from hf_clipbd.detection.nearest import Points


def searches(arrays: Mapping[str, np.ndarray], distributed: bool) -> dict[str, Callable[[], Any]]:
    """Return name -> search of `features`, which gives scores or scores by name."""
    features, texts, others = (arrays[name] for name in ("features", "texts", "others"))
    options = {"m": 400, "seed": 2, "distributed": distributed}
    whole = Reference.of(features, distributed=distributed)
    clean = Reference.of(arrays["clean"], distributed=distributed)
    of_clean = {"reference": clean, "reference_texts": texts[:300], "reference_others": others[-300:]}
    both = {"texts": texts, "others": others}
    return {
        "k_distance": lambda: detect(features, "k_distance", k=8, average="mean", **options),
        "slof": lambda: detect(features, "slof", k=8, **options),
        "dao": lambda: detect(features, "dao", k=8, **options),
        "multi_scale": lambda: detect(features, **options),
        "conditional_sparsity": lambda: detect(features, texts=texts, **options),
        "disagreement": lambda: detect(features, "disagreement", **both, **options),
        "isolation_forest": lambda: detect(features, "isolation_forest", trees=5, **options),
        "whole": lambda: detect(features, "lof", k=8, reference=whole),
        "clean": lambda: detect_all(features, ["conditional_sparsity", "disagreement", "island"], **both, **of_clean),
        "together": lambda: detect_all(
            features, ["slof", "k_distance", "disagreement"], references=2, **both, **options
        ),
    }


def scores_of(arrays: Mapping[str, np.ndarray], distributed: bool) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Return the scores of every search, and how many rows each searched the neighbours of."""
    scores, counts, nearest = {}, {}, Points._nearest
    for name, search in searches(arrays, distributed).items():
        counts[name] = 0

        def counted(self: Points, queries: torch.Tensor, *rest: Any, of: str = name) -> Any:
            counts[of] += len(queries)
            return nearest(self, queries, *rest)

        Points._nearest = counted
        try:
            found = search()
        finally:
            Points._nearest = nearest
        scores |= {f"{name}/{one}": part for one, part in found.items()} if isinstance(found, dict) else {name: found}
    return scores, counts


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    folder, rank = Path(sys.argv[1]), torch.distributed.get_rank()
    given = {path.stem: np.load(path, mmap_mode="r") for path in folder.glob("*.npy")}
    found, searched = scores_of(given, True)
    np.savez(folder / f"scores-{rank}.npz", **{name.replace("/", ":"): one for name, one in found.items()})
    (folder / f"searched-{rank}.json").write_text(json.dumps(searched), encoding="utf-8")
    torch.distributed.destroy_process_group()
