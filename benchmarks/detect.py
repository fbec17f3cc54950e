# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Time, memory and AUROC of detection: ours against scikit-learn, PyOD, faiss and the published batch loop.

    python benchmarks/detect.py --out benchmarks/records/detect/100k.json                     # 100,000 x 512
    python benchmarks/detect.py --n 3000000 --d 1024 --dtype float16 --folder DATA --methods k_distance_8192 default \\
        --out benchmarks/records/detect/3m.json                                # CC3M's size, a file of 6 GB in DATA

The data are made once (by the model stated in `parts.detect_methods.make`, in blocks, read as a memory map), and
each method runs in a process of its own. Machines and their load differ, so read ratios within a run: `of rate` is the
processor time that the method's own products would take as a plain matrix product in the same precision, measured in
the same process, over that which it took. Peers that compare every row with every other may be given a part of the
queries (`--peer_share`), which is extrapolated and marked. A method that `--out` holds for these data is not run
again, so that a long run may be made in pieces (`--minutes`); data in `--folder` are kept for the next piece.
Methods that were asked for and have no result, for want of a library or of time, are named with the reason under
`missing` in the record, and the exit status is 1 then, unless `--allow_missing` is given.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from parts.detect_methods import OURS, PEERS, POISON, make


DISTRIBUTIONS = ("hf_clipbd", "torch", "numpy", "scikit-learn", "faiss-cpu", "pyod")


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


def run_one(name: str, folder: Path, share: float) -> dict[str, Any]:
    """Return what one method costs and finds."""
    import torch
    from sklearn.metrics import roc_auc_score

    from hf_clipbd.detection.nearest import best_precision

    features, labels = np.load(folder / "features.npy", mmap_mode="r"), np.load(folder / "labels.npy")
    texts = np.load(folder / "texts.npy", mmap_mode="r") if (folder / "texts.npy").is_file() else features
    ours = name in OURS
    count = len(features) if ours else round(len(features) * share)
    rows = slice(0, count)
    precision = best_precision("cpu") if ours else "float32"
    rates = [product_rates(features.shape[1], precision)]
    started, spent = time.perf_counter(), time.process_time()
    with Memory() as memory:
        scores, compared = (OURS | PEERS)[name](features, texts, rows)
    seconds, spent = time.perf_counter() - started, time.process_time() - spent
    rates.append(product_rates(features.shape[1], precision))
    whole = (count / len(features)) ** (2 if name == "pyod_knn" else 1)
    products = count * compared * features.shape[1]
    return {
        "method": name,
        "seconds": seconds / whole,
        "cpu_seconds": spent / whole,
        "measured_share": count / len(features),
        "extrapolated": count < len(features),
        "memory_mb": memory.most - memory.start,
        "precision": precision,
        "gflops": 2 * max(wall for wall, _ in rates) / 1e9,
        "share_of_product_rate": products / max(rate for _, rate in rates) / spent,
        "auroc": float(roc_auc_score(labels[rows], scores)) if count == len(features) else None,
        "threads": torch.get_num_threads(),
        "load_before": os.getloadavg()[0],
    }


def versions() -> dict[str, str]:
    """Return the versions of what takes part, as far as it is installed."""
    found = {"python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def in_own_process(name: str, folder: Path, given: argparse.Namespace) -> dict[str, Any] | str:
    """Return what `run_one` gives, from a new process, or the last line of its error where the method cannot run."""
    options = ["--folder", str(folder), "--peer_share", str(given.peer_share), "--child", name]
    threads = {} if given.threads is None else {"OMP_NUM_THREADS": str(given.threads)}
    done = subprocess.run(
        [sys.executable, __file__, *options], capture_output=True, text=True, env={**os.environ, **threads}
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        return lines[-1] if lines else f"exit status {done.returncode}"
    return json.loads(done.stdout.splitlines()[-1])


def line(one: dict[str, Any]) -> str:
    """Return a method's line of the table."""
    star = "*" if one["extrapolated"] else " "
    auroc = "" if one["auroc"] is None else f"{one['auroc']:.4f}"
    times = f"{one['seconds']:8.1f}{star} {one['cpu_seconds']:8.1f}{star} {one['share_of_product_rate']:8.1%}"
    return f"{one['method']:18} {times} {one['gflops']:8.0f} {one['memory_mb']:7.0f} {auroc:>7}"


def write(record: dict[str, Any], out: Path | None) -> None:
    """Write the record, where a file was asked for."""
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def run_all(given: argparse.Namespace, folder: Path, record: dict[str, Any]) -> None:
    """Run every method that the record lacks, write the record after each, and print the table."""
    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    make(folder, given.n, given.d, given.dtype, given.seed, "default_with_texts" in given.methods)
    print(f"{given.n:,} x {given.d}, {given.dtype}, {POISON:.1%} poison; * extrapolated from a part of the queries")
    print(f"{'method':18} {'seconds':>9} {'CPU s':>9} {'of rate':>8} {'GFLOP/s':>8} {'MB':>7} {'AUROC':>7}")
    known = {one["method"]: one for one in record["results"]}
    record["missing"] = [entry for entry in record["missing"] if entry["method"] not in given.methods]
    record["missing"] += [{"method": name, "reason": "not run yet"} for name in given.methods if name not in known]
    for name in given.methods:
        one = known.get(name)
        if one is None and given.minutes and time.monotonic() - started > 60 * given.minutes:
            one = "out of time; run the same command again"
        one = in_own_process(name, folder, given) if one is None else one
        if isinstance(one, dict):
            record["results"] += [] if name in known else [one]
        record["missing"] = [entry for entry in record["missing"] if entry["method"] != name]
        record["missing"] += [{"method": name, "reason": one}] if isinstance(one, str) else []
        write(record, given.out)
        print(line(one) if isinstance(one, dict) else f"{name:18} {one[:90]}", flush=True)


def main() -> None:
    """Make the data, run every method and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=100_000)
    parser.add_argument("--d", type=int, default=512)
    parser.add_argument("--dtype", default="float32", choices=["float16", "float32"])
    parser.add_argument("--methods", nargs="+", default=[*OURS, *PEERS], choices=[*OURS, *PEERS])
    parser.add_argument("--peer_share", type=float, default=1.0, help="part of the queries given to peers, in (0, 1]")
    parser.add_argument("--seed", type=int, default=0, help="seed of the data")
    parser.add_argument("--folder", type=Path, help="where the data are kept (default: a temporary folder)")
    parser.add_argument("--out", type=Path, help="JSON file for the results; what it holds is not run again")
    parser.add_argument("--minutes", type=float, help="start no method after so long")
    parser.add_argument("--threads", type=int, help="processor threads of each method")
    parser.add_argument("--allow_missing", action="store_true", help="exit status 0 though a method has no result")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(run_one(given.child, given.folder, given.peer_share)))
        return
    config = {"n": given.n, "d": given.d, "dtype": given.dtype, "seed": given.seed, "peer_share": given.peer_share}
    record = {
        "stage": "benchmark/detect",
        "command": " ".join(["benchmarks/detect.py", *sys.argv[1:]]),
        "config": config,
        "machine": {"arch": platform.machine(), "cores": os.cpu_count()},
        "versions": versions(),
        "results": [],
        "missing": [],
    }
    if given.out and given.out.is_file():
        kept = json.loads(given.out.read_text(encoding="utf-8"))
        if kept["config"] != config:
            raise SystemExit(f"Expected {given.out} to be of {config}, but it is of {kept['config']}. Give another.")
        record |= {"results": kept["results"], "missing": kept.get("missing", [])}
    with tempfile.TemporaryDirectory() as scratch:
        run_all(given, given.folder or Path(scratch), record)
    if any(entry["method"] in given.methods for entry in record["missing"]) and not given.allow_missing:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
