# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What the detectors of one search share: the scores of each alone, from fewer searches, in bounded memory."""

from functools import partial

import numpy as np
import pytest
import torch

from hf_clipbd.detection import (
    ALIGNED,
    DETECTORS,
    Reference,
    Shared,
    detect,
    detect_all,
    k_distance,
    performance_at_rate,
    performances_at_rate,
)
from hf_clipbd.detection.kept import Kept
from hf_clipbd.detection.nearest import Neighbors, Points


NEIGHBOURS = ["k_distance", "slof", "lof", "dao", "lid", "multi_scale"]
NEIGHBOURS += ["conditional_sparsity", "disagreement", "combined"]


def rows(n=700, d=10, seed=0):
    rng = np.random.default_rng([seed, n, d])
    found = rng.normal(size=(9, d))[rng.integers(0, 9, n)] + 0.3 * rng.normal(size=(n, d)) + 2 * np.eye(d)[0]
    found[n // 2 : n // 2 + 5] = found[0]  # copies
    return found.astype(np.float32)


ALIGNED_ROWS = {"texts": rows(seed=1), "others": rows(d=7, seed=2)}


@pytest.fixture
def searched(monkeypatch):
    """How many queries went through the engine."""
    counted, whole = [], Points._nearest
    monkeypatch.setattr(
        Points, "_nearest", lambda self, queries, *rest: counted.append(len(queries)) or whole(self, queries, *rest)
    )
    return counted


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("m", [300, 700])
def test_scores_are_those_of_each_detector_alone(order, m):
    features = rows()
    names = [name for name in DETECTORS if name in NEIGHBOURS][::order]
    together = detect_all(features, names, m=m, k=12, seed=3, **ALIGNED_ROWS)
    assert list(together) == names
    for name, scores in together.items():
        taken = {key: ALIGNED_ROWS[key] for key in ALIGNED.get(name, ())}
        np.testing.assert_allclose(scores, detect(features, name, m, 12, 3, **taken), rtol=1e-5, err_msg=name)


def test_each_row_is_searched_once(searched):
    features = rows()
    detect_all(features, ["lid", "k_distance", "slof", "dao", "lof"], m=300, k=9)
    assert len(features) - 6 <= sum(searched) <= len(features)  # points among them; copies of points are looked up
    searched.clear()
    for name in ("lid", "k_distance", "slof", "dao", "lof"):
        detect(features, name, m=300, k=9)
    assert sum(searched) > 3 * len(features)


@pytest.mark.parametrize("room", [0, 0.01])
def test_what_there_is_no_room_for_is_searched_again(room, searched):
    features = rows(1800)
    names = ("k_distance", "slof", "lid")
    shared = Shared(room)
    found = [detect(features, name, m=200, k=8, shared=shared) for name in names]
    assert sum(searched) > len(features)
    assert sum(part.nbytes for pair in shared._kept._found.values() for part in pair) <= room * 2**20
    for name, scores in zip(names, found, strict=True):
        np.testing.assert_allclose(scores, detect(features, name, m=200, k=8), rtol=1e-5)


def test_blocks_are_told_apart_by_their_contents_and_fewer_neighbours_are_the_first():
    kept, block = Kept(1), rows(20)
    found = Neighbors(torch.arange(60.0).view(20, 3), torch.arange(60).view(20, 3))

    def search():
        raise AssertionError("searched again")

    assert kept.nearest(1, block, 3, lambda: found) is found
    again = kept.nearest(1, block.copy(), 2, search)
    assert torch.equal(again.distances, found.distances[:, :2]) and again.positions.dtype == torch.int64
    other = block.copy()
    other[3, 3] += 1
    for owner, content, k in ((2, block, 3), (1, other, 3), (1, block, 4)):
        with pytest.raises(AssertionError, match="searched again"):
            kept.nearest(owner, content, k, search)


def test_references_are_shared_by_their_contents():
    shared, features = Shared(), rows()
    one = shared.reference(features, 300)
    assert shared.reference(features.copy(), 300) is one
    other = features.copy()
    other[one.rows[7], 0] += 1
    for different in (
        shared.reference(features, 301),
        shared.reference(features, 300, seed=1),
        shared.reference(features, 300, normalize=False),
        shared.reference(other, 300),
    ):
        assert different is not one
    alone = Reference.sample(features, 300)
    np.testing.assert_allclose(k_distance(features, one, 4), k_distance(features, alone, 4), rtol=1e-6)


def test_figures_at_lower_rates_are_those_of_each_detector_alone():
    features, poisoned = rows(), np.arange(700) < 40
    names = ["slof", "conditional_sparsity"]
    aligned = {"texts": ALIGNED_ROWS["texts"]}
    both = performances_at_rate(partial(detect_all, detectors=names, m=200), features, poisoned, 0.02, 2, 5, aligned)
    assert list(both) == names and both["slof"]["n_draws"] == 2
    alone = performance_at_rate(partial(detect, detector="slof", m=200), features, poisoned, 0.02, 2, 5)
    assert both["slof"]["mean"]["auroc"] == pytest.approx(alone["mean"]["auroc"], abs=1e-6)
    assert both["slof"]["worst"]["n_poisoned"] == alone["worst"]["n_poisoned"] == 13


def test_references_of_another_precision_are_others():
    shared, features = Shared(), rows()
    exact = shared.reference(features, 300, precision="float32")
    assert shared.reference(features, 300, precision="float32") is exact
    assert shared.reference(features, 300, precision="bfloat16").precision == "bfloat16"
