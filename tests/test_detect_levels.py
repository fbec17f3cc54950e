# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Coarse distances, levels, and the two detectors made of them, against slow loops, and what they find."""

import importlib

import numpy as np
import pytest
import torch

from hf_clipbd.detection import (
    Reference,
    conditional_sparsity,
    detect,
    detection_performance,
    levels,
    multi_scale,
)
from hf_clipbd.detection.levels import Levels
from hf_clipbd.detection.nearest import Points
from hf_clipbd.detection.selection import group_minima


def concepts(n=900, d=12, kinds=9, seed=0):
    """Rows of several concepts, all in a cone, and which concept each shows."""
    rng = np.random.default_rng([seed, n, d])
    shown = rng.integers(0, kinds, n)
    return 3 * np.eye(d)[0] + rng.normal(size=(kinds, d))[shown] + 0.3 * rng.normal(size=(n, d)), shown


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


# -- coarse distances -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1000, 70])
def test_the_coarse_distance_is_the_median_of_that_to_the_nearest_of_each_group(block):
    points, queries = torch.randn(160, 6), torch.randn(5, 6)
    own = torch.tensor([-1, 3, -1, 159, -1])
    queries[1], queries[3] = points[3], points[159]
    distances, near = Points(points, "float32", block).surroundings(queries, own, 7, 8)
    for i, query in enumerate(queries):
        apart = (points - query).square().sum(1).sqrt()
        if own[i] >= 0:
            apart[own[i]] = torch.inf
        assert near.positions[i].tolist() == apart.argsort()[:7].tolist()
        torch.testing.assert_close(near.distances[i], apart.sort().values[:7], rtol=1e-4, atol=1e-5)
        starts = range(0, 160, block)
        groups = [
            part[g :: len(part) // 8][:8].min()
            for part in (apart[start : start + block] for start in starts)
            for g in range(len(part) // 8)
        ]
        middle = torch.stack(groups).sort(descending=True).values[(len(groups) - 1) // 2]
        torch.testing.assert_close(distances[i], middle, rtol=1e-4, atol=1e-5)


def test_groups_leave_out_what_is_left_over():
    codes = torch.arange(11)[None].flip(1)  # 10 down to 0
    assert group_minima(codes, 3).tolist() == [[4, 3, 2]]  # columns 0, 3, 6; 1, 4, 7; 2, 5, 8


def test_a_fiftieth_of_the_reference_lies_within_the_coarse_distance():
    features = concepts(4000, 20)[0]
    reference = Reference.of(features)
    coarse, _ = reference.surroundings_of_points(1)
    within = torch.cdist(reference.points, reference.points) < coarse[:, None]
    assert within.double().mean().item() == pytest.approx(1 - 0.5 ** (1 / 32), rel=0.1)


def test_own_rows_and_copies_are_left_out_wherever_they_lie_in_the_random_order():
    features = concepts(300)[0]
    reference = Reference.of(features, precision="float32")
    rows = features.astype(np.float32)
    coarse, positions = reference.surroundings(rows, 4)
    table = reference.nearest(rows, 4)
    assert torch.equal(positions, table.positions) and not (positions == torch.arange(300)[:, None]).any()
    known, found = reference.surroundings_of_points(4)
    again = reference.surroundings(rows[[5, 9]], 4)  # looked up
    assert torch.equal(coarse, known) and torch.equal(again[0], known[[5, 9]]) and torch.equal(again[1], found[[5, 9]])


# -- levels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("counted", [1, 2])
def test_levels_are_those_of_slow_loops(counted):
    rng = np.random.default_rng([3])
    at_points, positions = rng.normal(size=30) ** 2, np.stack([rng.permutation(30)[:6] for _ in range(30)])
    queries, near = rng.normal(size=5), np.stack([rng.permutation(30)[:6] for _ in range(5)])
    found = Levels(torch.tensor(at_points), torch.tensor(positions), (0, 2, 32), counted)(
        torch.tensor(queries), torch.tensor(near)
    )
    expected = []
    for query, row in zip(queries, near, strict=True):
        scores = []
        for level in (0, 2, 6):  # 32 is cut to the 6 that there are
            usual = [np.mean([at_points[i], *at_points[positions[i][:level]]]) for i in range(30)]
            middle = np.sort(usual)[14]
            deviation = 1.4826 * np.sort(np.abs(np.array(usual) - middle))[14]
            scores.append((np.mean([query, *at_points[row[:level]]]) - middle) / deviation)
        expected.append(np.mean(sorted(scores)[-counted:]))
    np.testing.assert_allclose(found, expected)


def test_a_handful_of_reference_rows_is_warned_of_once(caplog):
    levels._warn_of_few.cache_clear()
    features, _ = concepts(60)
    for n in (19, 19, 20):
        multi_scale(features[:n])
    assert [record.args for record in caplog.records if record.name == levels.__name__] == [(19, 20)]
    assert "19 distinct rows" in caplog.text


@pytest.mark.parametrize("m", [20, 25, 33, 60])
def test_a_level_as_large_as_a_small_reference_is_cut_to_half_of_it(m):
    features, _ = concepts(300)
    texts, _ = concepts(300, seed=1)
    for scores in (detect(features, m=m), detect(features, m=m, texts=texts)):
        assert np.abs(scores).max() < 100


# -- image embeddings alone -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.01, 0.003, 0.001])
def test_one_setting_finds_groups_of_any_size(rate):
    features, _ = concepts(6000, 24)
    count = round(rate * 6000)
    rng = np.random.default_rng([1])
    features[:count] = 3 * np.eye(24)[0] + 2 * np.eye(24)[9] + 0.05 * rng.normal(size=(count, 24))
    scores = multi_scale(features)
    assert scores[:count].min() > np.quantile(scores[count:], 0.98)


# -- with captions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("repeated", [False, True])
def test_conditional_sparsity_is_that_of_slow_loops(repeated, monkeypatch):
    monkeypatch.setattr(importlib.import_module("hf_clipbd.detection.conditional_sparsity"), "LEVELS", (0, 2))
    rng = np.random.default_rng([2])
    features, texts = rng.normal(size=(80, 6)) + 2, rng.normal(size=(80, 5)) + 1
    texts = texts[rng.integers(0, 9, 80)] if repeated else texts  # all rows of a caption count where one does
    reference = Reference.sample(features, 40, seed=1, precision="float32")
    scores = conditional_sparsity(features, reference, 3, texts)
    images, captions, rows = unit(features), unit(texts), reference.rows

    def measure(row):
        others = [o for o in rows if o != row]
        least = sorted(captions[row] @ captions[o] for o in others)[-5] - 1e-9  # an eighth of 40
        distances = [np.linalg.norm(images[row] - images[o]) for o in others if captions[row] @ captions[o] >= least]
        return np.log(np.sort(distances)[(len(distances) - 1) // 2])

    def mean_at(row, level):
        near = sorted((o for o in rows if o != row), key=lambda o: np.linalg.norm(images[row] - images[o]))[:level]
        return np.mean([measure(o) for o in [row, *near]])

    expected = []
    for row in range(80):
        per_level = []
        for level in (0, 2):
            usual = np.array([mean_at(o, level) for o in rows])
            middle = np.sort(usual)[19]
            deviation = 1.4826 * np.sort(np.abs(usual - middle))[19]
            per_level.append((mean_at(row, level) - middle) / deviation)
        expected.append(np.mean(per_level))  # both count
    np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("learned", [True, False])
def test_captions_find_what_is_learned_and_what_is_not(learned):
    features, shown = concepts(3000, 24, kinds=6)
    said = np.random.default_rng([6]).normal(size=(6, 24)) + 3 * np.eye(24)[1]
    texts = said[shown] + 0.3 * np.random.default_rng([7]).normal(size=(3000, 24))
    poisoned = (np.arange(3000) < 24) & (shown != 4)
    texts[poisoned] = said[4] + 0.05 * np.random.default_rng([8]).normal(size=(poisoned.sum(), 24))
    if learned:
        group = features[shown == 4].mean(0) + 3 * np.eye(24)[20]
        features[poisoned] = group + 0.1 * np.random.default_rng([9]).normal(size=(poisoned.sum(), 24))
    scores = conditional_sparsity(features, texts=texts)
    assert scores[poisoned].min() > np.quantile(scores[~poisoned], 0.98)
    if not learned:  # pictures alone cannot tell
        alone = multi_scale(features)
        assert np.median(alone[poisoned]) < np.quantile(alone[~poisoned], 0.9)


def test_a_dense_minority_of_the_compared_rows_does_not_hide_itself():
    features, shown = concepts(4000, 24, kinds=5)
    rng = np.random.default_rng([10])
    texts = 3 * np.eye(5)[shown] + 0.5 * rng.normal(size=(4000, 5))
    poisoned = rng.permutation(np.flatnonzero(shown == 4))[:160]  # a fifth of the rows with such captions
    features[poisoned] = features[shown == 4].mean(0) + 2.5 * np.eye(24)[20] + 0.02 * rng.normal(size=(160, 24))
    scores = conditional_sparsity(features, texts=texts)
    own = np.setdiff1d(np.flatnonzero(shown == 4), poisoned)
    assert scores[poisoned].min() > scores[own].max() + 0.2


def test_a_larger_share_of_captions_finds_heavy_poison():
    features, shown = concepts(4000, 24, kinds=5)
    rng = np.random.default_rng([10])
    texts = 3 * np.eye(5)[shown] + 0.5 * rng.normal(size=(4000, 5))
    poisoned = rng.permutation(4000)[:280]  # of any concept, more than a sixteenth, and alike by caption
    texts[poisoned] = 3 * np.eye(5)[4] + 0.05 * rng.normal(size=(280, 5))
    features[poisoned] = features[shown == 4].mean(0) + 4 * np.eye(24)[20] + 0.02 * rng.normal(size=(280, 24))
    truth = np.isin(np.arange(4000), poisoned)
    found = {
        share: detection_performance(detect(features, texts=texts, caption_share=share), truth)["auroc"]
        for share in (1 / 8, 1 / 4)
    }
    assert found[1 / 8] < 0.1 < 0.99 < found[1 / 4]
    with pytest.raises(ValueError, match=r"`caption_share` in \(0, 1\), but got 1"):
        conditional_sparsity(features, texts=texts, caption_share=1)


def test_the_default_goes_by_what_is_given():
    features, _ = concepts(300)
    texts, _ = concepts(300, seed=1)
    np.testing.assert_array_equal(detect(features), multi_scale(features))
    np.testing.assert_array_equal(detect(features, texts=texts), detect(features, "conditional_sparsity", texts=texts))
    with_second = detect(features, others=texts)
    np.testing.assert_array_equal(with_second, detect(features, "disagreement", others=texts))


def test_conditional_sparsity_says_what_is_missing():
    features, _ = concepts(60)
    with pytest.raises(ValueError, match=r"`texts`.*60 rows, but got None"):
        conditional_sparsity(features)
    with pytest.raises(ValueError, match="but got 59"):
        conditional_sparsity(features, texts=features[1:])
    with pytest.raises(ValueError, match="reference_texts"):
        conditional_sparsity(features[:20], Reference.of(features), texts=features[:20])
