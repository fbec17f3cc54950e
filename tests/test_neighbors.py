# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The engine: exact against sorted distances in double precision, in any precision, blocks, nesting and processes."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_clipbd.detection import Reference, nearest
from hf_clipbd.detection.nearest import Points, best_precision, candidates, products_at
from hf_clipbd.detection.rows import ahead, slice_of_process
from hf_clipbd.detection.selection import codes_of, merged, select, values_of


SCRIPT = Path(__file__).parent / "distributed" / "score_rows.py"


def cone(n=900, d=24, seed=0, near=0):
    """Rows in a cone with clusters, near duplicates where asked for, and different lengths."""
    rng = np.random.default_rng([seed, n, d])
    rows = rng.normal(size=(12, d))[rng.integers(0, 12, n)] + 0.3 * rng.normal(size=(n, d)) + 3 * np.eye(d)[0]
    rows[n // 2 : n // 2 + near] = rows[0] + 1e-3 * rng.normal(size=(near, d))
    return (rows * rng.uniform(0.5, 2, (n, 1))).astype(np.float32)


def slow(queries, points, k, same):
    """Return sorted distances and positions, (B, k), in double precision; `same[i]` is left out of row i."""
    distances, positions = [], []
    for x, own in zip(queries.double(), same, strict=True):
        d = (points.double() - x).square().sum(1).sqrt()
        if own >= 0:
            d[own] = torch.inf
        order = d.argsort()[:k]
        distances.append(d[order])
        positions.append(order)
    return torch.stack(distances), torch.stack(positions)


# -- the selection ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("columns", "w"), [(7, 7), (7, 9), (50, 3), (1000, 10), (1003, 10), (4099, 80), (16384, 4)])
def test_the_selection_has_the_smallest_of_a_sort(columns, w, kind):
    values = torch.randn(9, columns, generator=torch.Generator().manual_seed(columns)).abs().to(kind)
    values[3] = 1.0  # all alike
    values[4, ::3] = 0.0  # many ties at the limit
    values[5] = values[5].sort().values
    values[6, -w:] = 0.0  # the rest beyond the last whole group
    values[7] *= -1e-9  # what rounding leaves of nothing
    found = select(codes_of(values), w)
    assert found.columns.dtype == torch.int64 and found.columns.shape[1] <= max(2 * w, columns)
    for row, chosen, limit in zip(values, found.columns, values_of(found.limit), strict=True):
        chosen = chosen[chosen >= 0]
        assert len(set(chosen.tolist())) == len(chosen) >= min(w, columns)
        left = torch.ones(columns, dtype=torch.bool).index_fill(0, chosen, False)
        best = row.clamp_min(0).sort().values[: min(w, columns)]
        assert torch.equal(row[chosen].clamp_min(0).sort().values[: len(best)], best)
        assert not left.any() or (row[left].float().clamp_min(0).min() >= limit >= best[-1])


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("w", [5, 40])
def test_the_selection_of_blocks_is_that_of_the_whole(w, kind):
    values = torch.randn(6, 2100, generator=torch.Generator().manual_seed(w)).abs().to(kind)
    values[2] = 0.5
    codes, found = codes_of(values), None
    for start in range(0, 2100, 64):
        found = merged(found, select(codes[:, start : start + 64], w, found and found.limit), start, w)
    assert found.columns.shape[1] <= 3 * w + 64
    for row, chosen in zip(values, found.columns, strict=True):
        chosen = chosen[chosen >= 0]
        assert len(set(chosen.tolist())) == len(chosen)
        assert torch.equal(row[chosen].sort().values[:w], row.sort().values[:w])


def test_the_selection_reads_views_and_the_ties_of_a_whole_matrix():
    whole = codes_of(torch.rand(5, 2000))
    found = select(whole[:, :1500], 6)
    assert found.columns.max() < 1500 and torch.equal(
        found.codes.sort(1).values[:, :6], whole[:, :1500].sort(1).values[:, :6]
    )
    assert select(codes_of(torch.ones(5, 2000)), 6).columns.shape == (5, 6)


# -- neighbours -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("near", [0, 20])
def test_neighbours_are_exact(precision, normalize, near):
    features = cone(near=near)
    reference = Reference.of(features[:700], normalize, precision)
    found = reference.nearest(features, 12)
    placed = reference.place(features)
    distances, positions = slow(placed, reference.points, 12, [*range(700), *[-1] * 200])
    # Distances at the floor of 1e-3 are not told apart for certain, others are.
    np.testing.assert_allclose(found.distances, distances, atol=2e-4 if near else 1e-6, rtol=1e-5)
    assert near or torch.equal(found.positions, positions)
    assert (found.distances.diff(dim=1) >= 0).all()


def test_short_distances_are_computed_from_differences():
    points = torch.randn(300, 64) + 5
    queries = points[:5] + 1e-4 * torch.randn(5, 64)
    found = Points(points, "float32", 128).nearest(queries, torch.full((5,), -1), 1)
    np.testing.assert_allclose(
        found.distances[:, 0], (points[:5] - queries).double().square().sum(1).sqrt(), rtol=1e-5
    )


def test_products_at_chosen_points():
    queries, points = torch.randn(6, 10), torch.randn(40, 10)
    columns = torch.stack([torch.randperm(40)[:7] for _ in range(6)])
    expected = (queries[:, None] * points[columns]).sum(2)
    np.testing.assert_allclose(products_at(queries, points, columns), expected, rtol=1e-5, atol=1e-5)
    meta = products_at(queries.to("meta"), points.to("meta"), columns.to("meta"))  # as on any other device
    assert meta.shape == (6, 7)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_many_reference_blocks(monkeypatch, precision):
    features = cone(500)
    whole = Reference.of(features, precision=precision).nearest(features, 9)
    monkeypatch.setattr("hf_clipbd.detection.reference.REFERENCE_BLOCK", 64)
    blocks = Reference.of(features, precision=precision).nearest(features, 9)
    np.testing.assert_allclose(blocks.distances, whole.distances, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("block", [4096, 300])
def test_rows_that_rounding_may_have_cost_a_neighbour_are_searched_again(monkeypatch, block):
    features = cone()
    reference = Reference.of(features, precision="bfloat16")
    exact = Reference.of(features, precision="float32").nearest(features, 5)
    monkeypatch.setattr(nearest, "candidates", lambda k, rough: k)  # none to spare
    monkeypatch.setattr("hf_clipbd.detection.selection.MANY", 1)
    monkeypatch.setattr("hf_clipbd.detection.reference.REFERENCE_BLOCK", block)
    again = Reference.of(features, precision="bfloat16").nearest(features, 5)
    assert torch.equal(again.positions, exact.positions)
    monkeypatch.setattr(nearest.Points, "_may_lack", lambda self, limit, near, errors: limit < 0)
    rough = reference.nearest(features, 5)
    assert not torch.equal(rough.positions, exact.positions)  # what the second search is for


def test_the_precision_is_chosen_at_run_time(monkeypatch):
    best_precision.cache_clear()
    for known, expected in (({}, "float32"), ({"avx512_bf16": True}, "bfloat16"), ({"amx_bf16": True}, "bfloat16")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda known=known: known)
        assert best_precision("cpu") == expected
        best_precision.cache_clear()
    assert Reference.of(cone(20), precision="float32").precision == "float32"
    assert candidates(64, True) > candidates(64, False) > 64


# -- blocks read ahead, and several processes -------------------------------------------------------------------------


def test_reading_ahead_keeps_order_and_errors():
    assert list(ahead(iter(range(7)))) == list(range(7)) and list(ahead([])) == []

    def failing():
        yield 1
        raise ValueError("row 2")

    with pytest.raises(ValueError, match="row 2"):
        list(ahead(failing()))


def test_slices_of_processes_are_whole_blocks(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    for n, processes, block in ((1000, 3, 64), (10, 4, 4), (64, 2, 64), (129, 2, 64)):
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda processes=processes: processes)
        parts = []
        for rank in range(processes):
            monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
            parts.append(slice_of_process(n, block))
        assert [row for part in parts for row in range(n)[part]] == list(range(n))
        assert all(part.start % block == 0 for part in parts if part.start < n)
    monkeypatch.undo()
    assert slice_of_process(9, 4) == slice(0, 9)


def test_two_processes_give_the_numbers_of_one_and_share_the_work(forked, tmp_path):
    arrays = {
        "features": cone(1500),
        "texts": cone(1500, 10, 1),
        "others": cone(1500, 7, 2),
        "clean": cone(300, seed=3),
    }
    for name, rows in arrays.items():
        np.save(tmp_path / f"{name}.npy", rows)
    forked.run(SCRIPT, tmp_path, log=tmp_path / "log", processes=2)
    expected, alone = runpy.run_path(str(SCRIPT))["scores_of"](arrays, False)
    first, second = (np.load(tmp_path / f"scores-{rank}.npz") for rank in range(2))
    assert first.files == [name.replace("/", ":") for name in expected]
    for name, scores in zip(first.files, expected.values(), strict=True):
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
        np.testing.assert_array_equal(first[name], scores, err_msg=name)
    searched = [json.loads((tmp_path / f"searched-{rank}.json").read_text("utf-8")) for rank in range(2)]
    for name, rows in alone.items():
        counts = [one[name] for one in searched]
        assert sum(counts) == rows and (max(counts) < 0.9 * rows or rows == 0), (name, counts, rows)
