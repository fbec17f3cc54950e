# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Time, memory and AUROC of detection: ours against scikit-learn, PyOD, faiss and the published batch loop.

    python benchmarks/detect.py                                                 # 100,000 x 512, every peer
    python benchmarks/detect.py --n 3000000 --d 1024 --dtype float16 --methods slof_8192   # CC3M's size, 6 GB on disk

One run makes the data once (by the model stated in `make`; written in blocks and read as a memory map) and then starts
each method in a process of its own. Machines and
their load differ, so read ratios within a run: `of rate` is the processor time that the method's own products would
take as a plain matrix product in the same precision, measured in the same process, over that which it took. Peers that
compare every row with every other may be given a part of the queries (`--peer_share`), which is extrapolated and
marked. Nothing is printed of a method that is not installed but its name.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np


K = 16
POISON = 0.001
BLOCK = 8192
CONCEPTS, INNER, OUTER = 300, 64, 8


def make(folder: Path, n: int, d: int, dtype: str, seed: int = 0) -> None:
    """Write `features.npy`, (n, d), and `labels.npy`, (n,), block by block.

    The model, fixed before any detector was run on it: 300 concepts whose frequencies fall as 1 / rank lie in a clean
    subspace of 64 dimensions within a cone; their centres are standard normal, their deviations per dimension uniform
    in [0.15, 0.6]; 1 % of the rows are junk, moved by one standard normal more. Every row has noise of 0.35 in 8
    dimensions off the subspace and of 0.02 in all. The target is a concept drawn from those beyond the 30 most
    frequent. Poisoned rows lie off the clean subspace, at the radius of the median concept from the target's centre,
    and keep a tenth of what their picture would have been.
    """
    rng = np.random.default_rng([seed, n, d])
    axes = np.linalg.qr(rng.normal(size=(d, INNER + OUTER)))[0].T.astype(np.float32)
    inner, outer = axes[:INNER], axes[INNER:]
    centres = rng.normal(size=(CONCEPTS, INNER)).astype(np.float32)
    spread = rng.uniform(0.15, 0.6, CONCEPTS).astype(np.float32)
    weight = 1 / np.arange(1, CONCEPTS + 1)
    cone = 4 * inner[0]
    target = centres[rng.integers(CONCEPTS // 10, CONCEPTS)] @ inner
    poison = target + cone + float(np.median(spread)) * INNER**0.5 * outer[0]
    labels = np.zeros(n, dtype=bool)
    labels[rng.choice(n, max(8, round(POISON * n)), replace=False)] = True
    features = np.lib.format.open_memmap(folder / "features.npy", mode="w+", dtype=dtype, shape=(n, d))
    for start in range(0, n, BLOCK):
        poisoned = labels[start : start + BLOCK]
        count = len(poisoned)
        concept = rng.choice(CONCEPTS, count, p=weight / weight.sum())
        low = centres[concept] + spread[concept, None] * rng.standard_normal((count, INNER), dtype=np.float32)
        junk = rng.random(count) < 0.01
        low[junk] += rng.standard_normal((int(junk.sum()), INNER), dtype=np.float32)
        block = low @ inner + cone
        block[poisoned] = poison + 0.1 * (low[poisoned] @ inner)
        block += 0.35 * rng.standard_normal((count, OUTER), dtype=np.float32) @ outer
        block += 0.02 * rng.standard_normal((count, d), dtype=np.float32)
        features[start : start + count] = block
    features.flush()
    np.save(folder / "labels.npy", labels)


# -- the methods: features and the rows to score -> scores, and the multiply-adds of their products -------------------


def unit(rows: np.ndarray) -> np.ndarray:
    """Return float32 rows of length one."""
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def default(features: np.ndarray, rows: slice) -> tuple[np.ndarray, float]:
    """Score by the package's default."""
    from hf_clipbd.detection import detect
    from hf_clipbd.detection.multi_scale import DEFAULT_M

    return detect(features[rows]), float(min(DEFAULT_M, len(features)))


def slof_of(m: int, k: int) -> Callable:
    """Return the method that scores by SLOF against m random rows."""

    def method(features: np.ndarray, rows: slice) -> tuple[np.ndarray, float]:
        from hf_clipbd.detection import Reference, slof

        return slof(features[rows], Reference.sample(features, m), k), float(m)

    return method


def slof_from(distances: np.ndarray, positions: np.ndarray, d_k: np.ndarray) -> np.ndarray:
    """Return SLOF from sorted distances and positions of neighbours without the row itself."""
    return distances[:, -1] * (1 / np.maximum(d_k[positions], 1e-3)).mean(1)


def faiss_flat(features: np.ndarray, rows: slice) -> tuple[np.ndarray, float]:
    """Score by SLOF from faiss's exact index of the whole set."""
    import faiss

    points = unit(features)
    index = faiss.IndexFlatL2(points.shape[1])
    index.add(points)
    squared, positions = index.search(points[rows], K + 1)
    distances = np.sqrt(np.maximum(squared[:, 1:], 0))
    d_k = np.full(len(points), np.median(distances[:, -1]), dtype=np.float32)
    d_k[rows] = distances[:, -1]
    return slof_from(distances, positions[:, 1:], d_k), float(len(points))


def faiss_ivf(features: np.ndarray, rows: slice) -> tuple[np.ndarray, float]:
    """Score by SLOF from faiss's inverted lists, 16 of sqrt(N) probed."""
    import faiss

    points = unit(features)
    lists = int(len(points) ** 0.5)
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(points.shape[1]), points.shape[1], lists)
    index.train(points[:: max(1, len(points) // (40 * lists))])
    index.add(points)
    index.nprobe = 16
    squared, positions = index.search(points[rows], K + 1)
    distances = np.sqrt(np.maximum(squared[:, 1:], 0))
    d_k = np.full(len(points), np.median(distances[:, -1]), dtype=np.float32)
    d_k[rows] = distances[:, -1]
    return slof_from(distances, positions[:, 1:], d_k), float(len(points)) * 16 / lists


def sklearn_lof(features: np.ndarray, rows: slice) -> tuple[np.ndarray, float]:
    """Score by scikit-learn's local outlier factor of the whole set; of a part, by its neighbour search alone."""
    from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors

    points = unit(features)
    if rows == slice(0, len(points)):
        return -LocalOutlierFactor(n_neighbors=K, n_jobs=-1).fit(points).negative_outlier_factor_, float(len(points))
    search = NearestNeighbors(n_neighbors=K + 1, algorithm="brute", n_jobs=-1).fit(points)
    distances, positions = search.kneighbors(points[rows])
    return distances[:, -1].astype(float), float(len(points))


def pyod_knn(features: np.ndarray, rows: slice) -> tuple[np.ndarray, float]:
    """Score by PyOD's mean distance to k neighbours in the first rows, as many as were asked for."""
    from pyod.models.knn import KNN

    points = unit(features[rows])
    return KNN(n_neighbors=K, method="mean", n_jobs=-1).fit(points).decision_scores_, float(len(points))


def published_loop(features: np.ndarray, rows: slice) -> tuple[np.ndarray, float]:
    """Score as the published code does: SLOF among the 2,048 rows of a batch, its neighbour index shifted by one."""
    import torch

    scores = []
    for start in range(rows.start, rows.stop, 2048):
        batch = torch.from_numpy(np.ascontiguousarray(features[start : start + 2048], dtype=np.float32))
        if len(batch) < K + 2:
            scores.append(np.zeros(len(batch)))
            continue
        distances = torch.cdist(batch, batch, compute_mode="donot_use_mm_for_euclid_dist")
        others = distances[~torch.eye(len(batch), dtype=torch.bool)].view(len(batch), -1)
        near = others.topk(K, dim=1, largest=False)
        scores.append((near.values[:, -1:] / near.values[near.indices, -1]).mean(1).numpy())
    return np.concatenate(scores), 2048.0


METHODS: dict[str, tuple[Callable, bool]] = {
    "default": (default, False),
    "slof_8192": (slof_of(8192, 32), False),
    "slof_16384": (slof_of(16384, 64), False),
    "faiss_flat": (faiss_flat, True),
    "faiss_ivf": (faiss_ivf, True),
    "sklearn_lof": (sklearn_lof, True),
    "pyod_knn": (pyod_knn, True),
    "published_loop": (published_loop, True),
}
"""Name -> the method, and whether it may be given a part of the queries."""


# -- one method in a process of its own -------------------------------------------------------------------------------


def product_rates(d: int, precision: str) -> tuple[float, float]:
    """Return multiply-adds a second, and a second of processor time, of a plain matrix product of this inner size."""
    import torch

    kind = torch.bfloat16 if precision == "bfloat16" else torch.float32
    left, right = torch.randn(1024, d).to(kind), torch.randn(8192, d).to(kind)
    out = torch.empty(1024, 8192, dtype=kind)
    wall, processor = [], []
    for _ in range(6):
        started, spent = time.perf_counter(), time.process_time()
        torch.mm(left, right.T, out=out)
        wall.append(time.perf_counter() - started)
        processor.append(time.process_time() - spent)
    return 1024 * 8192 * d / min(wall), 1024 * 8192 * d / min(processor)


class Memory:
    """The largest anonymous memory of this process within a block, in MB, over that at its start; mapped files apart.

    A thread looks every 20 ms.
    """

    def __enter__(self) -> "Memory":
        self.start = self.most = self._now()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.done.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.done.wait(0.02):
            self.most = max(self.most, self._now())

    @staticmethod
    def _now() -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def run_one(name: str, folder: Path, share: float) -> dict:
    """Return what one method costs and finds."""
    import torch
    from sklearn.metrics import roc_auc_score

    from hf_clipbd.detection.nearest import best_precision

    features, labels = np.load(folder / "features.npy", mmap_mode="r"), np.load(folder / "labels.npy")
    method, partial = METHODS[name]
    count = round(len(features) * share) if partial else len(features)
    rows = slice(0, count)
    ours = not partial
    precision = best_precision("cpu") if ours else "float32"
    rates = [product_rates(features.shape[1], precision)]
    started, spent = time.perf_counter(), time.process_time()
    with Memory() as memory:
        scores, compared = method(features, rows)
    seconds, spent = time.perf_counter() - started, time.process_time() - spent
    rates.append(product_rates(features.shape[1], precision))
    found = labels[rows]
    quadratic = name == "pyod_knn"
    products = count * compared * features.shape[1]
    return {
        "method": name,
        "seconds": seconds / (count / len(features)) ** (2 if quadratic else 1),
        "cpu_seconds": spent / (count / len(features)) ** (2 if quadratic else 1),
        "measured_share": count / len(features),
        "extrapolated": count < len(features),
        "memory_mb": memory.most - memory.start,
        "precision": precision,
        "gflops": 2 * max(wall for wall, _ in rates) / 1e9,
        "share_of_product_rate": products / max(rate for _, rate in rates) / spent,
        "auroc": float(roc_auc_score(found, scores)) if 0 < found.sum() and count == len(features) else None,
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    """Make the data, run every method and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=100_000)
    parser.add_argument("--d", type=int, default=512)
    parser.add_argument("--dtype", default="float32", choices=["float16", "float32"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--peer_share", type=float, default=1.0, help="part of the queries given to peers, in (0, 1]")
    parser.add_argument("--seed", type=int, default=0, help="seed of the data")
    parser.add_argument("--folder", type=Path, help="where the data are written (default: a temporary folder)")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(run_one(given.child, given.folder, given.peer_share)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        make(folder, given.n, given.d, given.dtype, given.seed)
        results = []
        print(
            f"{given.n:,} x {given.d}, {given.dtype}, {POISON:.1%} poison; * extrapolated from a part of the queries"
        )
        print(f"{'method':16} {'seconds':>9} {'CPU s':>9} {'of rate':>8} {'GFLOP/s':>8} {'MB':>7} {'AUROC':>7}")
        for name in given.methods:
            options = ["--folder", str(folder), "--peer_share", str(given.peer_share), "--child", name]
            done = subprocess.run([sys.executable, __file__, *options], capture_output=True, text=True)
            if done.returncode != 0:
                print(f"{name:16} {done.stderr.strip().splitlines()[-1][:90]}")
                continue
            one = json.loads(done.stdout.splitlines()[-1])
            results.append(one)
            star = "*" if one["extrapolated"] else " "
            auroc = "" if one["auroc"] is None else f"{one['auroc']:.4f}"
            spent, share, rate = one["cpu_seconds"], one["share_of_product_rate"], one["gflops"]
            figures = (
                f"{one['seconds']:8.1f}{star} {spent:8.1f}{star} {share:8.1%} {rate:8.0f} {one['memory_mb']:7.0f}"
            )
            print(f"{name:16} {figures} {auroc:>7}", flush=True)
        if given.out:
            given.out.write_text(
                json.dumps({"n": given.n, "d": given.d, "seed": given.seed, "results": results}, indent=2) + "\n"
            )


if __name__ == "__main__":
    main()
