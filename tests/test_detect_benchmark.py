# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""`benchmarks/detect.py`: its record names peers that cannot run; its published loop is the published one.

`benchmarks/detectors_table.py`: its recall is the metric's.
"""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from hf_clipbd.detection import detection_performance, huang2025


ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("detect_benchmark", ROOT / "benchmarks" / "detect.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def result(name):
    figures = ("seconds", "cpu_seconds", "share_of_product_rate", "gflops", "memory_mb")
    return {"method": name, "extrapolated": False, "auroc": None, **dict.fromkeys(figures, 1.0)}


def run(benchmark, monkeypatch, out, *more, without=()):
    """Return exit status and record of a run in which some methods lack their library."""

    def child(command, **options):
        name = command[-1]
        wrong = f"Traceback\nModuleNotFoundError: No module named 'lib of {name}'\n"
        found = ("", wrong, 1) if name in without else (json.dumps(result(name)) + "\n", "", 0)
        return type("Done", (), dict(zip(("stdout", "stderr", "returncode"), found, strict=True)))

    monkeypatch.setattr(benchmark.subprocess, "run", child)
    monkeypatch.setattr(benchmark, "make", lambda *settings: None)
    monkeypatch.setattr(sys, "argv", ["detect.py", "--out", str(out), *more])
    try:
        benchmark.main()
        status = 0
    except SystemExit as stopped:
        status = stopped.code
    return status, json.loads(out.read_text("utf-8"))


def test_methods_without_a_result_are_in_the_record_and_in_the_exit_status(benchmark, monkeypatch, tmp_path):
    out = tmp_path / "record.json"
    asked = ("--methods", "default", "faiss_flat", "pyod_knn")
    status, record = run(benchmark, monkeypatch, out, *asked, without=("faiss_flat", "pyod_knn"))
    assert status == 1 and [one["method"] for one in record["results"]] == ["default"]
    assert [entry["method"] for entry in record["missing"]] == ["faiss_flat", "pyod_knn"]
    assert record["missing"][0]["reason"] == "ModuleNotFoundError: No module named 'lib of faiss_flat'"
    status, record = run(benchmark, monkeypatch, out, *asked, "--allow_missing", without=("faiss_flat", "pyod_knn"))
    assert status == 0 and len(record["missing"]) == 2
    # One of them is made up for, and what was asked for is there, but the record still says what it lacks.
    status, record = run(benchmark, monkeypatch, out, "--methods", "pyod_knn")
    assert status == 0 and [entry["method"] for entry in record["missing"]] == ["faiss_flat"]
    status, record = run(benchmark, monkeypatch, out, *asked)
    assert status == 0 and record["missing"] == [] and len(record["results"]) == 3


def test_what_there_was_no_time_for_is_missing(benchmark, monkeypatch, tmp_path):
    status, record = run(
        benchmark, monkeypatch, tmp_path / "record.json", "--methods", "default", "sklearn_lof", "--minutes", "1e-9"
    )
    assert status == 1 and record["results"] == []
    assert {entry["reason"].partition(";")[0] for entry in record["missing"]} == {"out of time"}


def test_the_published_loop_is_that_of_the_published_arithmetic(benchmark):
    rng = np.random.default_rng([1])
    features = rng.normal(size=(300, 6)).astype(np.float32) * rng.choice([0.2, 1.0], 300)[:, None].astype(np.float32)
    order = np.random.default_rng([0, 300]).permutation(300)  # as huang2025 goes through them
    scores, compared = benchmark.PEERS["published_loop"](features[order], features, slice(0, 300))
    assert compared == 2048
    np.testing.assert_allclose(scores, huang2025(features, "slof", k=16)[order], rtol=1e-3)
    few, _ = benchmark.PEERS["published_loop"](features, features, slice(290, 300))
    assert few.tolist() == [0] * 10


@pytest.mark.parametrize("n", [30, 149, 220, 250, 349])
def test_recall_of_the_table_is_the_recall_at_1_percent_of_the_metric(n):
    spec = importlib.util.spec_from_file_location("detectors_table", ROOT / "benchmarks" / "detectors_table.py")
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    truth = np.arange(n) == n - 3  # the third row of n, by score
    found = table.figures_of(np.arange(n) + 0.5, truth)
    assert found["recall"] == detection_performance(np.arange(n) + 0.5, truth)["recall_at_1_percent"] == (n > 200)
    assert table.figures_of(np.arange(n) + 0.5, np.arange(n) >= n - 9)["recall"] == 1  # as many as are poisoned
