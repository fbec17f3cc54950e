# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Memory-mapped sets are scored in blocks; mean and axes of classes are those of the whole."""

import tracemalloc

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from hf_clipbd.detection import activation_clustering, clip_score, moments, spectral_signature
from hf_clipbd.detection import classes as of_classes


N, D = 60_000, 128


@pytest.fixture(scope="module")
def mapped(tmp_path_factory):
    """Images, captions (N, D), float16, 15 MB each on disk, and three classes."""
    folder = tmp_path_factory.mktemp("mapped")
    rng = np.random.default_rng([3])
    found = {}
    for name in ("images", "texts"):
        file = np.lib.format.open_memmap(folder / name, mode="w+", dtype=np.float16, shape=(N, D))
        for start in range(0, N, 4096):
            file[start : start + 4096] = (
                rng.standard_normal((len(file[start : start + 4096]), D), dtype=np.float32) + 1
            )
        file.flush()
        found[name] = np.load(folder / name, mmap_mode="r")
    return found["images"], found["texts"], np.arange(N) % 3


def peak_mb(call):
    tracemalloc.start()
    try:
        scores = call()
        return scores, tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()


def test_a_mapped_file_is_scored_without_a_float_copy_of_the_whole(mapped):
    images, texts, classes = mapped
    copy_mb = 4 * N * D / 2**20  # 29
    calls = {
        "clip_score": (lambda: clip_score(images, texts=texts), 10),
        "spectral_signature": (lambda: spectral_signature(images, classes=classes), 20),
        "activation_clustering": (lambda: activation_clustering(images, classes=classes, components=2), 20),
    }
    for name, (call, most) in calls.items():
        scores, peak = peak_mb(call)
        assert scores.shape == (N,) and np.isfinite(scores).all()
        assert peak < most < copy_mb, (name, peak)


def uneven(n=700, d=9, seed=0):
    """Rows in a cone, and classes of very different sizes, one of which has a single row."""
    rng = np.random.default_rng([seed, n, d])
    classes = np.minimum(rng.geometric(0.4, n), 5)
    classes[classes == 4] = 5
    classes[7] = 4
    return (3 * np.eye(d)[0] + np.eye(d)[classes] + 0.3 * rng.normal(size=(n, d))).astype(np.float32), classes


def unit(rows):
    rows = rows.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("room", [256, 8 * 9 * 9 * 2 / 2**20, 0])
def test_axes_are_those_of_each_class_alone_however_many_passes_they_take(room, monkeypatch):
    monkeypatch.setattr(moments, "ROOM", room)
    monkeypatch.setattr(moments, "BLOCK", 64)
    features, classes = uneven()
    found = np.unique(classes, return_inverse=True)[1]
    axes = moments.class_axes(features, found, 3)
    coordinates = moments.projected(features, found, axes)
    assert axes.means.shape == (5, 9) and axes.axes.shape == (5, 3, 9) and coordinates.shape == (700, 3)
    for one in range(5):
        members = unit(features[found == one])
        centred = members - members.mean(0)
        np.testing.assert_allclose(axes.means[one], members.mean(0), atol=1e-7)
        if len(members) > 1:
            singular = np.linalg.svd(centred)[2][:3]
            np.testing.assert_allclose(np.abs((axes.axes[one] * singular).sum(1)), 1, atol=1e-6)
            np.testing.assert_allclose(np.abs(coordinates[found == one]), np.abs(centred @ singular.T), atol=1e-6)
        else:
            np.testing.assert_allclose(coordinates[found == one], 0, atol=1e-7)


def test_activation_clustering_is_that_of_components_of_the_whole_class():
    features, classes = uneven()
    scores = activation_clustering(features, classes=classes, components=4)
    for one in (1, 2, 3, 5):
        kept = PCA(4, svd_solver="full").fit_transform(unit(features[classes == one]))
        model = KMeans(2, init=kept[[kept[:, 0].argmin(), kept[:, 0].argmax()]], n_init=1).fit(kept)
        own, other = np.sort(model.transform(kept), axis=1).T
        share = np.bincount(model.labels_)[model.labels_] / len(kept)
        np.testing.assert_allclose(
            scores[classes == one], (1 - share) * (1 + (other - own) / (other + own)) / 2, atol=1e-5
        )
    assert scores[7] == 0


def test_clusters_of_a_large_set_are_fitted_to_a_part_of_it(monkeypatch):
    features, classes = uneven()
    texts = 4 * np.eye(9)[classes] + 0.1 * np.random.default_rng([1]).normal(size=(700, 9))
    whole = of_classes.row_classes(features, None, texts=texts, n_classes=4)
    seen, fit = [], of_classes.MiniBatchKMeans.fit
    monkeypatch.setattr(
        of_classes.MiniBatchKMeans, "fit", lambda self, rows: seen.append(len(rows)) or fit(self, rows)
    )
    monkeypatch.setattr(of_classes, "MOST_FITTED", 300)
    part = of_classes.row_classes(features, None, texts=texts, n_classes=4)
    assert seen == [300]
    pairs = set(zip(whole[classes != 4].tolist(), part[classes != 4].tolist(), strict=True))
    assert len(pairs) == len(set(whole)) == 4  # the same clusters by other numbers
