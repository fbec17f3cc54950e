# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The data and the methods of `detect.py`: ours, scikit-learn, PyOD, faiss and the published batch loop.

A method takes embeddings, those of the captions and the rows to score, and gives a score for each of them, together
with how many rows each one was compared with.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np


K = 16
POISON = 0.001
BLOCK = 8192
CONCEPTS, INNER, OUTER = 300, 64, 8

Method = Callable[[np.ndarray, np.ndarray, slice], tuple[np.ndarray, float]]


def make(folder: Path, n: int, d: int, dtype: str, seed: int, texts: bool) -> None:
    """Write `features.npy`, (n, d), with `texts` also `texts.npy`, (n, d), and `labels.npy`, (n,), block by block.

    The model, fixed before any detector was run on it: 300 concepts whose frequencies fall as 1 / rank lie in a clean
    subspace of 64 dimensions within a cone; their centres are standard normal, their deviations per dimension uniform
    in [0.15, 0.6]; 1 % of the rows are junk, moved by one standard normal more. Every row has noise of 0.35 in 8
    dimensions off the subspace and of 0.02 in all. The target is a concept drawn from those beyond the 30 most
    frequent. Poisoned rows lie off the clean subspace, at the radius of the median concept from the target's centre,
    and keep a tenth of what their picture would have been. Captions lie around centres of their own in the same
    way, with a deviation of 0.3 and no junk; those of poisoned rows are of the target.

    What is there from the same call is not made again.
    """
    settings = {"n": n, "d": d, "dtype": dtype, "seed": seed, "texts": texts}
    done = folder / "data.json"
    if done.is_file() and json.loads(done.read_text(encoding="utf-8")) in (settings, settings | {"texts": True}):
        return
    done.unlink(missing_ok=True)
    rng = np.random.default_rng([seed, n, d])
    axes = np.linalg.qr(rng.normal(size=(d, INNER + OUTER)))[0].T.astype(np.float32)
    inner, outer = axes[:INNER], axes[INNER:]
    centres = rng.normal(size=(CONCEPTS, INNER)).astype(np.float32)
    spread = rng.uniform(0.15, 0.6, CONCEPTS).astype(np.float32)
    weight = 1 / np.arange(1, CONCEPTS + 1)
    cone = 4 * inner[0]
    target = int(rng.integers(CONCEPTS // 10, CONCEPTS))
    poison = centres[target] @ inner + cone + float(np.median(spread)) * INNER**0.5 * outer[0]
    said = np.random.default_rng([seed, n, d, 1])
    words = said.normal(size=(CONCEPTS, INNER)).astype(np.float32)
    labels = np.zeros(n, dtype=bool)
    labels[rng.choice(n, max(8, round(POISON * n)), replace=False)] = True
    features = np.lib.format.open_memmap(folder / "features.npy", mode="w+", dtype=dtype, shape=(n, d))
    captions = np.lib.format.open_memmap(folder / "texts.npy", mode="w+", dtype=dtype, shape=(n, d)) if texts else None
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
        if captions is not None:
            meant = np.where(poisoned, target, concept)
            low = words[meant] + 0.3 * said.standard_normal((count, INNER), dtype=np.float32)
            captions[start : start + count] = low @ inner + cone
    features.flush()
    np.save(folder / "labels.npy", labels)
    done.write_text(json.dumps(settings), encoding="utf-8")


def unit(rows: np.ndarray) -> np.ndarray:
    """Return float32 rows of length one."""
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


# -- ours -------------------------------------------------------------------------------------------------------------


def default(features: np.ndarray, texts: np.ndarray, rows: slice) -> tuple[np.ndarray, float]:
    """Score by the package's default for image embeddings alone."""
    from hf_clipbd.detection import detect
    from hf_clipbd.detection.multi_scale import DEFAULT_M

    return detect(features[rows]), float(min(DEFAULT_M, len(features)))


def default_with_texts(features: np.ndarray, texts: np.ndarray, rows: slice) -> tuple[np.ndarray, float]:
    """Score by the package's default for image and caption embeddings."""
    from hf_clipbd.detection import detect
    from hf_clipbd.detection.reference import DEFAULT_M

    return detect(features[rows], texts=texts[rows]), float(min(DEFAULT_M, len(features)))


def against(detector: str, m: int, k: int) -> Method:
    """Return the method that scores by k-distance or SLOF against one reference of m random rows."""

    def method(features: np.ndarray, texts: np.ndarray, rows: slice) -> tuple[np.ndarray, float]:
        from hf_clipbd.detection import detect

        return detect(features[rows], detector, m=m, k=k), float(m)

    return method


# -- peers ------------------------------------------------------------------------------------------------------------


def slof_from(squared: np.ndarray, positions: np.ndarray, rows: slice, n: int) -> np.ndarray:
    """Return SLOF from an index's squared distances and positions, the row itself among them."""
    distances = np.sqrt(np.maximum(squared[:, 1:], 0))
    d_k = np.full(n, np.median(distances[:, -1]), dtype=np.float32)
    d_k[rows] = distances[:, -1]
    return distances[:, -1] * (1 / np.maximum(d_k[positions[:, 1:]], 1e-3)).mean(1)


def faiss_flat(features: np.ndarray, texts: np.ndarray, rows: slice) -> tuple[np.ndarray, float]:
    """Score by SLOF from faiss's exact index of the whole set."""
    import faiss

    points = unit(features)
    index = faiss.IndexFlatL2(points.shape[1])
    index.add(points)
    return slof_from(*index.search(points[rows], K + 1), rows, len(points)), float(len(points))


def faiss_ivf(features: np.ndarray, texts: np.ndarray, rows: slice) -> tuple[np.ndarray, float]:
    """Score by SLOF from faiss's inverted lists, 16 of sqrt(N) probed."""
    import faiss

    points = unit(features)
    lists = int(len(points) ** 0.5)
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(points.shape[1]), points.shape[1], lists)
    index.train(points[:: max(1, len(points) // (40 * lists))])
    index.add(points)
    index.nprobe = 16
    scores = slof_from(*index.search(points[rows], K + 1), rows, len(points))
    return scores, float(len(points)) * 16 / lists


def sklearn_lof(features: np.ndarray, texts: np.ndarray, rows: slice) -> tuple[np.ndarray, float]:
    """Score by scikit-learn's local outlier factor of the whole set; of a part, by its neighbour search alone."""
    from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors

    points = unit(features)
    if rows == slice(0, len(points)):
        return -LocalOutlierFactor(n_neighbors=K, n_jobs=-1).fit(points).negative_outlier_factor_, float(len(points))
    search = NearestNeighbors(n_neighbors=K + 1, algorithm="brute", n_jobs=-1).fit(points)
    return search.kneighbors(points[rows])[0][:, -1].astype(float), float(len(points))


def pyod_knn(features: np.ndarray, texts: np.ndarray, rows: slice) -> tuple[np.ndarray, float]:
    """Score by PyOD's mean distance to k neighbours in the first rows, as many as were asked for."""
    from pyod.models.knn import KNN

    points = unit(features[rows])
    return KNN(n_neighbors=K, method="mean", n_jobs=-1).fit(points).decision_scores_, float(len(points))


def published_loop(features: np.ndarray, texts: np.ndarray, rows: slice) -> tuple[np.ndarray, float]:
    """Score by the published arithmetic (`compat="huang2025"`): SLOF among the 2,048 rows of a batch, in float32.

    The neighbour index is shifted by one, and d_(k+1) is set against d_k. Rows of a last batch too small for it, where
    the public code crashes, score 0.
    """
    import torch

    from hf_clipbd.detection.compat_huang2025 import batch_scores

    scores = []
    for start in range(rows.start, rows.stop, 2048):
        stop = min(start + 2048, rows.stop)
        batch = torch.from_numpy(np.ascontiguousarray(features[start:stop], dtype=np.float32))
        enough = len(batch) >= K + 2
        scores.append(batch_scores(batch, len(batch), "slof", K).numpy() if enough else np.zeros(len(batch)))
    return np.concatenate(scores), 2048.0


OURS: dict[str, Method] = {
    "default": default,
    "default_with_texts": default_with_texts,
    "k_distance_8192": against("k_distance", 8192, 32),
    "k_distance_16384": against("k_distance", 16384, 64),
    "slof_8192": against("slof", 8192, 32),
    "slof_16384": against("slof", 16384, 64),
}
PEERS: dict[str, Method] = {
    "faiss_flat": faiss_flat,
    "faiss_ivf": faiss_ivf,
    "sklearn_lof": sklearn_lof,
    "pyod_knn": pyod_knn,
    "published_loop": published_loop,
}
"""These may be given a part of the queries."""
