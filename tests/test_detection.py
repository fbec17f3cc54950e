# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Detectors against slow loops and scikit-learn, self-exclusion, duplicates, orientation; the metric; an island."""

import math
import shutil
from functools import partial

import evaluate
import numpy as np
import pytest
import torch
from sklearn.ensemble import IsolationForest
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.neighbors import LocalOutlierFactor

from hf_clipbd.detection import (
    DETECTORS,
    BackdoorDetection,
    Reference,
    clip_score,
    dao,
    default_k,
    detect,
    detection_performance,
    first_copies,
    isolation_forest,
    k_distance,
    lid,
    local_intrinsic_dimension,
    lof,
    metric,
    performance_at_rate,
    slof,
    thinned_rows,
)
from hf_clipbd.detection.threshold import cut_share, removed_rows


NEIGHBOR_DETECTORS = ["k_distance", "slof", "lof", "lid", "dao"]
OF_THE_WHOLE_SET = ["spectral_signature", "activation_clustering", "combined"]
"""Detectors whose score of a row depends on the other searched rows."""
OTHERWISE = {"clip_score", "cognitive_distillation", "combined", "conditional_sparsity", "disagreement", "island"}
OTHERWISE |= {"multi_scale"}
"""Detectors that need more than images or do not look for rows that lie alone; their own tests say what they find."""


def uneven(n=90, d=7, seed=0):
    """Rows of uneven density and length, no two alike."""
    rng = np.random.default_rng([seed, n, d])
    spread = rng.choice([0.1, 0.4, 1.5], n)[:, None]
    rows = rng.normal(size=(3, d))[rng.integers(0, 3, n)] + spread * rng.normal(size=(n, d))
    return (rows * rng.uniform(0.5, 3, (n, 1))).astype(np.float32)


def slow_scores(features, reference, k, normalize):
    """Every neighbour score, one row and one reference row at a time, in double precision."""

    def prepared(rows):
        rows = np.asarray(rows, dtype=np.float64)
        return [row / math.sqrt(sum(row * row)) if normalize else row for row in rows]

    queries, points = prepared(features), prepared(reference)

    def nearest(x, raw):
        far = [(math.dist(x, o), j) for j, o in enumerate(points) if not np.array_equal(raw, reference[j])]
        return sorted(far)[:k]

    tables = [nearest(o, reference[j]) for j, o in enumerate(points)]
    d_k = [table[-1][0] for table in tables]

    def lrd(table):
        return 1 / (sum(max(d_k[j], d) for d, j in table) / k)

    def dimension(table):
        return -k / sum(math.log(d / table[-1][0]) for d, _ in table)

    scores = {name: [] for name in NEIGHBOR_DETECTORS}
    for x, raw in zip(queries, features, strict=True):
        table = nearest(x, raw)
        scores["k_distance"].append(table[-1][0])
        scores["slof"].append(sum(table[-1][0] / d_k[j] for _, j in table) / k)
        scores["lof"].append(sum(lrd(tables[j]) for _, j in table) / k / lrd(table))
        scores["lid"].append(dimension(table))
        scores["dao"].append(sum((table[-1][0] / d_k[j]) ** dimension(tables[j]) for _, j in table) / k)
    return {name: np.array(values) for name, values in scores.items()}


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("kind", ["whole", "sample", "clean"])
def test_scores_are_those_of_slow_loops(kind, normalize):
    features = uneven()
    if kind == "whole":
        reference, rows = Reference.of(features, normalize), features
    elif kind == "sample":
        reference = Reference.sample(features, m=40, seed=3, normalize=normalize)
        rows = features[reference.rows]
    else:
        rows = uneven(50, seed=8)
        reference = Reference.of(rows, normalize)
    expected = slow_scores(features, rows, 5, normalize)
    for name in NEIGHBOR_DETECTORS:
        scores = DETECTORS[name](features, reference, k=5)
        assert scores.dtype == np.float64 and scores.shape == (90,)
        np.testing.assert_allclose(scores, expected[name], rtol=1e-3 if name == "dao" else 2e-4, err_msg=name)
    np.testing.assert_allclose(dao(features, reference, 5, logarithm=True), np.log(expected["dao"]), atol=1e-3)


@pytest.mark.parametrize("name", NEIGHBOR_DETECTORS)
def test_blocks_change_nothing(name, monkeypatch):
    features = uneven()
    at_once = DETECTORS[name](features, Reference.sample(features, 41, seed=1), k=6)
    for module in ("neighbors", "reference"):
        monkeypatch.setattr(f"hf_clipbd.detection.{module}.QUERY_BLOCK", 8)
    monkeypatch.setattr("hf_clipbd.detection.reference.REFERENCE_BLOCK", 5)
    in_blocks = DETECTORS[name](features, Reference.sample(features, 41, seed=1), k=6)
    np.testing.assert_allclose(in_blocks, at_once, rtol=1e-3)
    rough = Reference.sample(features, 41, seed=1, precision="bfloat16")
    np.testing.assert_allclose(DETECTORS[name](features, rough, k=6), at_once, rtol=1e-3)


def test_lof_of_the_whole_set_is_that_of_scikit_learn():
    features = uneven(700, 24)
    ours = lof(features, Reference.of(features, normalize=False), k=20)
    theirs = -LocalOutlierFactor(n_neighbors=20).fit(features.astype(np.float64)).negative_outlier_factor_
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_a_row_is_never_its_own_neighbour():
    features = uneven()
    inside = np.arange(0, 90, 2)
    reference = Reference.of(features[inside])
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    distances = np.linalg.norm(unit[:, None].astype(np.float64) - unit[inside], axis=2)  # (90, 45)
    distances[inside, np.arange(45)] = np.inf
    np.testing.assert_allclose(k_distance(features, reference, k=1), distances.min(axis=1), rtol=1e-3)
    reference.table(1)  # rows of the reference now come from its table
    np.testing.assert_allclose(k_distance(features, reference, k=1), distances.min(axis=1), rtol=1e-3)


@pytest.mark.parametrize("name", sorted(DETECTORS))
def test_every_detector_is_finite_deterministic_and_independent_of_order(name):
    rng = np.random.default_rng([5])
    features, order = uneven(120), rng.permutation(120)
    features[-1] = -4 * features[:-1].mean(0)  # opposite to everything
    aligned, fixed = {}, {}
    if name == "clip_score":
        aligned = {"texts": features * np.where(np.arange(120) < 119, 1, -1)[:, None]}
    if name in ("disagreement", "combined"):
        aligned, fixed = {"others": uneven(120, 5)}, {"reference_others": uneven(60, 5, seed=4)}
    if name == "cognitive_distillation":
        aligned = {"masks": rng.uniform(size=120)}
    if name in ("conditional_sparsity", "combined"):
        aligned, fixed = {**aligned, "texts": uneven(120, 5)}, {**fixed, "reference_texts": uneven(60, 5, seed=4)}
    reference = Reference.of(uneven(60, seed=4) if name != "clip_score" else features)

    def scored(rows):
        given = {key: values[rows] for key, values in aligned.items()}
        return DETECTORS[name](features[rows], reference, k=8, **given, **fixed)

    scores = scored(np.arange(120))
    assert scores.dtype == np.float64 and np.isfinite(scores).all()
    if name not in OF_THE_WHOLE_SET:
        np.testing.assert_allclose(scored(np.arange(10)), scores[:10], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(scored(order), scores[order], rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(detect(features, name, seed=2, **aligned), detect(features, name, seed=2, **aligned))


@pytest.mark.parametrize("name", sorted({*DETECTORS} - OTHERWISE - {*OF_THE_WHOLE_SET}))
def test_higher_is_more_suspicious(name):
    rng = np.random.default_rng([6])
    flat = np.concatenate([rng.normal(size=(300, 3)), np.zeros((300, 9))], axis=1) + np.eye(12)[11] * 6
    features = flat + 0.02 * rng.normal(size=(300, 12))
    features[:4, 3:9] += 3 * rng.choice([-1, 1], (4, 6))  # off the plane, each its own way
    scores = DETECTORS[name](features, Reference.of(features), k=10)
    assert set(np.argsort(scores)[-4:]) == set(range(4))


def test_clip_score_is_one_less_the_cosine():
    images, texts = uneven(30), uneven(30, seed=1)
    expected = [1 - u @ v / (np.linalg.norm(u) * np.linalg.norm(v)) for u, v in zip(images, texts, strict=True)]
    np.testing.assert_allclose(clip_score(images, texts=texts), expected, rtol=1e-5)
    for wrong in (None, texts[1:]):
        with pytest.raises(ValueError, match="caption embedding"):
            clip_score(images, texts=wrong)


def test_isolation_forest_is_that_of_scikit_learn_with_the_papers_sign():
    features = uneven(200)
    reference = Reference.of(uneven(150, seed=1), normalize=False)
    forest = IsolationForest(n_estimators=100, random_state=4).fit(uneven(150, seed=1) - reference.center.numpy())
    expected = -forest.score_samples(features - reference.center.numpy())
    np.testing.assert_allclose(isolation_forest(features, reference, seed=4), expected, rtol=1e-6)


@pytest.mark.parametrize("name", NEIGHBOR_DETECTORS)
def test_copies_count_once_and_are_never_infinite(name):
    features = uneven(60)
    with_copies = np.concatenate([features, np.repeat(features[[3]], 40, axis=0), features[[7]]])
    reference = Reference.of(with_copies)
    assert reference.duplicates == 41 and len(reference) == 60
    scores = DETECTORS[name](with_copies, reference, k=5)
    alone = DETECTORS[name](features, Reference.of(features), k=5)
    np.testing.assert_allclose(scores, alone[[*range(60), *[3] * 40, 7]], rtol=1e-4)
    sampled = detect(with_copies, name, m=50, k=5)
    assert np.isfinite(sampled).all() and np.ptp(sampled[60:100]) == 0
    near = features[[3]] + 1e-6 * np.random.default_rng([1]).normal(size=(40, 7)).astype(np.float32)
    assert np.isfinite(detect(np.concatenate([features, near]), name, m=70, k=5)).all()


def test_first_copies_by_hand():
    rows = np.array([[1, 2], [0, 1], [1, 2], [-0.0, 1], [1, 3], [1, 2]], dtype=np.float16)
    assert first_copies(rows).tolist() == [0, 1, 0, 1, 4, 0]


def test_equal_distances_have_a_large_finite_dimension():
    distances = torch.tensor([[1.0, 1.0, 1.0], [0.5, 0.5, 1.0]])
    np.testing.assert_allclose(local_intrinsic_dimension(distances).tolist(), [1000, 3 / (2 * math.log(2))], rtol=1e-6)
    corners = np.eye(9)  # every distance alike
    for detector in (lid, dao, slof, lof):
        assert np.isfinite(detector(corners, Reference.of(corners), k=3)).all()
    with pytest.raises(ValueError, match="at least 2"):
        lid(corners, Reference.of(corners), k=1)


def test_the_reference_is_drawn_by_seed_and_remembers_its_rows():
    features = uneven()
    one, same, other = (Reference.sample(features, 30, seed) for seed in (1, 1, 2))
    assert one.rows.tolist() == same.rows.tolist() != other.rows.tolist()
    assert one.rows.tolist() == sorted(set(one.rows.tolist())) and len(one) == 30
    unit = features[one.rows] / np.linalg.norm(features[one.rows], axis=1, keepdims=True)
    np.testing.assert_allclose((one.points + one.center).numpy(), unit, atol=1e-6)
    assert len(Reference.sample(features)) == 90
    assert not np.array_equal(detect(features, m=30, seed=1), detect(features, m=30, seed=2))
    assert [default_k(m) for m in (16384, 8192, 2000, 500, 4, 3)] == [64, 32, 8, 4, 3, 2]


def test_memory_maps_and_half_precision_are_read_as_they_are(tmp_path):
    features = uneven(600).astype(np.float16)
    np.save(tmp_path / "features.npy", features)
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    np.testing.assert_array_equal(detect(mapped, m=100), detect(features.astype(np.float32), m=100))
    short = torch.from_numpy(features).bfloat16()
    np.testing.assert_array_equal(detect(short, m=100), detect(short.float().numpy(), m=100))
    given = {"texts": short, "others": short[:, :5].contiguous()}
    whole = {name: values.float().numpy() for name, values in given.items()}
    np.testing.assert_array_equal(detect(short, m=100, **given), detect(short.float().numpy(), m=100, **whole))


def test_wrong_input_is_named():
    features = uneven()
    for k in (0, 30):
        with pytest.raises(ValueError, match=rf"\[1, 29\].*{k}"):
            detect(features, m=30, k=k)
    with pytest.raises(ValueError, match=r"m in \[3, 90\].*91"):
        detect(features, m=91)
    with pytest.raises(ValueError, match="'magic'"):
        detect(features, "magic")
    with pytest.raises(ValueError, match="7 dimensions.*but got 6"):
        slof(features[:, :6], Reference.of(features))
    with pytest.raises(ValueError, match="at least 3 distinct"):
        Reference.of(np.ones((50, 4)))
    with pytest.raises(ValueError, match="rows, dimensions"):
        detect(np.arange(12).reshape(4, 3))
    with pytest.raises(ValueError, match="float16"):
        Reference.of(features, precision="float16")
    with pytest.raises(ValueError, match="median"):
        k_distance(features, average="median")
    features[77, 2] = np.nan
    with pytest.raises(ValueError, match="row 77"):
        slof(features, Reference.of(features[:70]))
    features[77] = 1e20  # its squares are infinite in float32
    with pytest.raises(ValueError, match="features of lengths under 4.6e[+]18.*row 77 has .*e[+]20. Divide all rows"):
        slof(features, Reference.of(features[:70]))
    features[77] = 1e18  # one long row among short ones is scaled like any other
    assert np.isfinite(slof(features, Reference.of(features[:70]))).all()


def planted(n=12_000, rate=0.001, d=48, seed=0):
    """A cone of clusters of uneven size and density in 12 dimensions, and one compact group beside one row."""
    rng = np.random.default_rng([seed])
    count = round(n * rate)
    cluster = rng.zipf(1.6, n - count) % 40
    clean = 0.05 * rng.normal(size=(n - count, d))
    clean[:, :12] += rng.normal(size=(40, 12))[cluster]
    clean[:, :12] += rng.uniform(0.2, 0.5, 40)[cluster, None] * rng.normal(size=(n - count, 12))
    clean[:, 12] += 3
    island = clean[0] + 0.5 * (np.arange(d) >= d - 8)
    poison = island + 0.1 * rng.normal(size=(count, d))
    order = rng.permutation(n)
    return np.concatenate([clean, poison])[order].astype(np.float32), order >= n - count


def test_a_compact_island_is_found_against_random_rows_and_missed_against_all():
    features, is_poisoned = planted()

    def auroc(scores):
        return roc_auc_score(is_poisoned, scores)

    assert auroc(detect(features, "slof")) >= 0.95
    for name in ("slof", "lof"):
        assert min(auroc(detect(features, name, m=2048, k=12, seed=seed)) for seed in (0, 1)) >= 0.95, name
    assert auroc(detect(features, "k_distance", m=2048, k=12)) >= 0.8
    # 12 poisoned rows are each other's 8 nearest.
    assert auroc(slof(features, Reference.of(features), k=8)) < 0.6


def test_performance_at_a_lower_rate_thins_the_poisoned_rows_only():
    features, is_poisoned = planted(4_000, 0.01)
    rows = [thinned_rows(is_poisoned, 0.002, seed=1, draw=draw) for draw in range(2)]
    for one in rows:
        assert (~is_poisoned[one]).sum() == 3960 and is_poisoned[one].sum() == 8 and (np.diff(one) > 0).all()
    assert rows[0].tolist() != rows[1].tolist()
    assert thinned_rows(is_poisoned, 0.002, 1, 1).tolist() == rows[1].tolist()
    assert thinned_rows(is_poisoned, 0.01).tolist() == list(range(4000))
    result = performance_at_rate(partial(detect, m=1024, k=12), features, is_poisoned, 0.002, draws=3, seed=1)
    by_hand = detection_performance(detect(features[rows[1]], m=1024, k=12, seed=2), is_poisoned[rows[1]])
    assert result["draws"][1] == by_hand and result["n_draws"] == 3 and result["thinned_search_set"] is True
    assert result["mean"]["auroc"] == pytest.approx(np.mean([one["auroc"] for one in result["draws"]]))
    assert result["worst"]["auroc"] == min(one["auroc"] for one in result["draws"])
    assert result["worst"]["fpr_at_95_tpr"] == max(one["fpr_at_95_tpr"] for one in result["draws"])
    assert result["mean"]["n"] == 3968 and result["mean"]["n_poisoned"] == 8
    for rate in (0.02, 0.0, 1e-6):
        with pytest.raises(ValueError, match="the set's own"):
            thinned_rows(is_poisoned, rate)


def test_performance_is_that_of_slow_loops_with_ties():
    rng = np.random.default_rng([9])
    labels, scores = rng.random(80) < 0.2, rng.integers(0, 12, 80) / 4
    scores[labels] += 0.5
    found = detection_performance(scores, labels)
    wins = [(p > c) + 0.5 * (p == c) for p in scores[labels] for c in scores[~labels]]
    assert found["auroc"] == pytest.approx(np.mean(wins)) == pytest.approx(roc_auc_score(labels, scores))
    assert found["auprc"] == pytest.approx(average_precision_score(labels, scores))
    limits = [t for t in sorted(set(scores)) if np.mean(scores[labels] >= t) >= 0.95]
    assert found["fpr_at_95_tpr"] == pytest.approx(np.mean(scores[~labels] >= max(limits)))
    n_poisoned, n_flagged = int(labels.sum()), 30
    # The mean over many random orders of the ties.
    orders = [np.lexsort((rng.random(80), -scores)) for _ in range(4000)]
    assert found["precision"] == pytest.approx(np.mean([labels[o[:n_poisoned]].mean() for o in orders]), abs=0.01)
    assert found["precision"] == pytest.approx(found["recall"])
    flagged = detection_performance(scores, labels, n_flagged)
    caught = np.mean([labels[o[:n_flagged]].sum() for o in orders])
    assert flagged["recall"] == pytest.approx(caught / n_poisoned, abs=0.01)
    assert flagged["precision"] == pytest.approx(caught / n_flagged, abs=0.01)
    assert (found["n"], found["n_poisoned"]) == (80, n_poisoned)
    assert found["recall_at_1_percent"] == detection_performance(scores, labels, 1)["recall"]  # one of 80 rows
    assert detection_performance(-scores, labels)["auroc"] == pytest.approx(1 - found["auroc"])
    assert detection_performance([0, np.inf, 1], [0, 1, 0])["auroc"] == 1.0


@pytest.mark.parametrize(("n", "top"), [(7, 1), (220, 3), (250, 3), (400, 4)])
def test_recall_at_1_percent_is_that_of_slow_loops(n, top):
    rng = np.random.default_rng([n])
    labels, scores = np.arange(n) < 3, rng.integers(0, 30, n) + 0.0
    scores[:3] += 14  # among ties
    caught = 0.0
    for row in range(3):
        above, level = (scores > scores[row]).sum(), (scores == scores[row]).sum()
        caught += min(1.0, max(0.0, (top - above) / level))  # its chance to be among the top, ties in random order
    assert detection_performance(scores, labels)["recall_at_1_percent"] == pytest.approx(caught / 3)
    assert detection_performance(scores, labels, n_flagged=n)["recall_at_1_percent"] == pytest.approx(caught / 3)
    ranked = detection_performance(labels + 1.0, labels)["recall_at_1_percent"]
    assert ranked == pytest.approx(min(3, top) / 3)
    removed = cut_share(np.arange(n) + 0.5, 0.01)
    assert removed.n_removed == removed_rows(n, 0.01) == top  # what a removal takes


def test_the_metric_by_import_and_by_path(tmp_path):
    (tmp_path / "backdoor_detection").mkdir()
    space = shutil.copy(metric.__file__, tmp_path / "backdoor_detection" / "backdoor_detection.py")
    rng = np.random.default_rng([2])
    labels = (rng.random(50) < 0.3).astype(int)
    scores = rng.random(50) + 0.3 * labels
    expected = detection_performance(scores, labels)
    for loaded in (
        BackdoorDetection(cache_dir=str(tmp_path / "cache")),
        evaluate.load(metric.__file__, cache_dir=str(tmp_path / "cache")),
        evaluate.load(str(tmp_path / "backdoor_detection"), cache_dir=str(tmp_path / "cache")),
    ):
        values = loaded.compute(predictions=scores, references=labels)
        assert values == expected and all(type(value) in (float, int) for value in values.values())
        for part in (slice(0, 20), slice(20, 50)):
            loaded.add_batch(predictions=scores[part], references=labels[part].astype(bool))
        assert loaded.compute(n_flagged=10) == detection_performance(scores, labels, 10)
    evaluate.save(tmp_path / "saved.json", **values)
    assert space.is_file()


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([0.1, 0.2], [0, 0], "clean and poisoned"),
        ([0.1, 0.2], [1, 1], "clean and poisoned"),
        ([0.1, float("nan")], [0, 1], "NaN"),
        ([0.1, 0.2], [0, 2], "labels 0"),
        ([0.1, 0.2, 0.3], [0, 1], "[Mm]ismatch|shapes"),
    ],
)
def test_what_cannot_be_measured_is_an_error(scores, labels, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        detection_performance(scores, labels)
    with pytest.raises(ValueError, match=message):
        BackdoorDetection(cache_dir=str(tmp_path)).compute(predictions=scores, references=labels)


def test_labels_that_are_missing_are_counted():
    with pytest.raises(ValueError, match="label for every row, but 2 of 4 have none.*Give 0"):
        detection_performance([0.1, 0.2, 0.3, 0.4], [True, False, None, None])
    with pytest.raises(ValueError, match="label for every row, but 1 of 3 have none"):
        BackdoorDetection().compute(predictions=[0.1, 0.2, 0.3], references=[True, False, None])


def test_a_mask_is_not_ignored():
    features = np.ma.masked_array(uneven())
    assert np.array_equal(detect(features, "k_distance"), detect(uneven(), "k_distance"))
    features[3] = np.ma.masked
    with pytest.raises(ValueError, match=f"without a mask, but {features.shape[1]} values are masked"):
        detect(features, "k_distance")


def test_a_reference_is_one_and_no_matrix():
    features = uneven()
    with pytest.raises(TypeError, match=r"a `Reference`, but got ndarray.*Reference\.of"):
        detect(features, reference=features)


def test_as_many_rows_are_flagged_as_there_are():
    with pytest.raises(ValueError, match=r"\[1, 2\]"):
        detection_performance([0.1, 0.2], [0, 1], n_flagged=3)
