# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What `detect` compares rows with: clean or whole sets, several random references; device, precision, faiss."""

import builtins

import numpy as np
import pytest
import torch

from hf_clipbd.detection import (
    DETECTORS,
    Reference,
    Shared,
    clip_score,
    conditional_sparsity,
    detect,
    detect_all,
    disagreement,
    lof,
    slof,
)


def rows(n=600, d=10, seed=0):
    rng = np.random.default_rng([seed, n, d])
    return (rng.normal(size=(9, d))[rng.integers(0, 9, n)] + 0.3 * rng.normal(size=(n, d)) + 2).astype(np.float32)


FEATURES, TEXTS, OTHERS = rows(), rows(seed=1), rows(d=5, seed=2)
CLEAN, CLEAN_TEXTS, CLEAN_OTHERS = rows(150, seed=3), rows(150, seed=4), rows(150, 5, 5)
ALIGNED = {"texts": TEXTS, "others": OTHERS}
OF_CLEAN = {"reference_texts": CLEAN_TEXTS, "reference_others": CLEAN_OTHERS}


# -- a reference of one's own -----------------------------------------------------------------------------------------


def test_every_detector_takes_a_clean_set_and_gives_what_it_gives_alone():
    reference = Reference.of(CLEAN)
    masks = np.linspace(0.1, 1, len(FEATURES))
    found = detect_all(FEATURES, [*DETECTORS], k=9, reference=reference, **ALIGNED, **OF_CLEAN, masks=masks)
    assert [*found] == [*DETECTORS]
    given = {
        "conditional_sparsity": {"texts": TEXTS, "reference_texts": CLEAN_TEXTS},
        "disagreement": {**ALIGNED, **OF_CLEAN},
        "combined": {**ALIGNED, **OF_CLEAN},
        "clip_score": {"texts": TEXTS},
        "cognitive_distillation": {"masks": masks},
    }
    for name in ("spectral_signature", "activation_clustering"):
        given[name] = {"texts": TEXTS}
    for name, scores in found.items():
        alone = DETECTORS[name](FEATURES, reference, 9, **given.get(name, {}))
        np.testing.assert_allclose(scores, alone, rtol=1e-5, atol=1e-8, err_msg=name)
    by_one_call = detect(FEATURES, "slof", k=9, reference=reference)
    np.testing.assert_allclose(by_one_call, slof(FEATURES, Reference.of(CLEAN), 9))
    assert np.abs(by_one_call - detect(FEATURES, "slof", m=150, k=9)).max() > 0.01


def test_against_a_clean_set_heavy_poison_is_no_neighbourhood_of_its_own():
    rng = np.random.default_rng([4])
    poisoned = np.arange(600) < 120
    features = FEATURES.copy()
    features[poisoned] = 2 + np.array([3, -3] * 5) + 0.05 * rng.normal(size=(120, 10))
    assert detect(features, "slof", k=9)[poisoned].max() < 2
    scores = detect(features, "slof", k=9, reference=Reference.of(rows(seed=0)))
    assert scores[poisoned].min() > scores[~poisoned].max()


def test_the_whole_set_is_a_reference_too():
    whole = Reference.of(FEATURES)
    np.testing.assert_array_equal(detect(FEATURES, "lof", k=9, reference=whole), lof(FEATURES, whole, 9))
    # It is drawn from the searched rows, so what is aligned with these is known.
    np.testing.assert_array_equal(
        detect(FEATURES, texts=TEXTS, reference=whole), conditional_sparsity(FEATURES, whole, texts=TEXTS)
    )


@pytest.mark.parametrize("shared", [None, Shared()])
def test_what_a_clean_set_lacks_is_named(shared):
    for detector, given, missing in (
        ("conditional_sparsity", {}, "reference_texts"),
        ("disagreement", {}, "reference_texts"),
        ("disagreement", {"reference_texts": CLEAN_TEXTS}, "reference_others"),
        ("combined", {"reference_texts": CLEAN_TEXTS}, "reference_others"),
        ("conditional_sparsity", {"reference_texts": CLEAN_TEXTS[:-1]}, "at least 150.*got 149"),
    ):
        aligned = {"texts": TEXTS} | ({} if detector == "conditional_sparsity" else {"others": OTHERS})
        with pytest.raises(ValueError, match=missing):
            detect(FEATURES, detector, reference=Reference.of(CLEAN), shared=shared, **aligned, **given)
    # A searched set whose first rows have as many captions is no excuse.
    with pytest.raises(ValueError, match="reference_others"):
        disagreement(FEATURES, Reference.of(CLEAN), others=OTHERS)


def test_arguments_without_use_are_errors():
    reference = Reference.of(CLEAN)
    for name, value in {
        "m": 100,
        "references": 2,
        "device": "cpu",
        "precision": "float32",
        "distributed": True,
    }.items():
        with pytest.raises(ValueError, match=f"without.*{name}"):
            detect(FEATURES, "slof", reference=reference, **{name: value})
        if name != "m":
            with pytest.raises(ValueError, match=f"compat 'huang2025' without.*{name}"):
                detect(FEATURES, compat="huang2025", **{name: value})
    for given in ({"reference": reference}, {"references": 3}):
        with pytest.raises(ValueError, match="'clip_score' without"):
            detect(FEATURES, "clip_score", texts=FEATURES, **given)
    with pytest.raises(ValueError, match="references=0"):
        detect(FEATURES, references=0)
    with pytest.raises(ValueError, match="'median'"):
        detect(FEATURES, references=2, combine="median")


# -- several random ones ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("combine", ["mean", "maximum"])
@pytest.mark.parametrize("name", ["slof", "multi_scale", "conditional_sparsity"])
def test_several_references_give_the_mean_or_the_maximum_of_what_each_gives(name, combine):
    texts = {"texts": TEXTS} if name == "conditional_sparsity" else {}
    alone = [detect(FEATURES, name, m=120, seed=seed, **texts) for seed in (5, 6, 7)]
    several = detect(FEATURES, name, m=120, seed=5, references=3, combine=combine, **texts)
    np.testing.assert_allclose(several, getattr(np, "max" if combine == "maximum" else "mean")(alone, axis=0))
    both = detect_all(FEATURES, [name, "lid"], m=120, seed=5, references=3, combine=combine, **texts)
    np.testing.assert_allclose(both[name], several, rtol=1e-5)


def test_the_mean_over_references_depends_less_on_the_draw():
    def spread(**given):
        scores = [detect(FEATURES, "slof", m=100, k=6, seed=seed, **given) for seed in (0, 10, 20)]
        return np.std(scores, axis=0).mean()

    assert spread(references=8) < 0.6 * spread()


# -- device and precision ---------------------------------------------------------------------------------------------


def test_device_and_precision_reach_the_search(monkeypatch):
    made, of = [], Reference.of.__func__

    def noted(cls, *given, **options):
        made.append(of(cls, *given, **options))
        return made[-1]

    monkeypatch.setattr(Reference, "of", classmethod(noted))
    exact = detect(FEATURES, "slof", m=200, k=8, device=torch.device("cpu"), precision="float32")
    rough = detect_all(
        FEATURES, ["slof", "disagreement"], m=200, k=8, precision="bfloat16", distributed=True, **ALIGNED
    )
    np.testing.assert_allclose(rough["slof"], exact, rtol=1e-3)
    first, *rest = made
    assert first.precision == "float32" and not first.distributed and len(rest) == 3
    assert {one.precision for one in rest} == {"bfloat16"}  # that of the second space as well
    assert [one.distributed for one in rest] == [True, True, False]
    with pytest.raises(ValueError, match="'float16'"):
        detect(FEATURES, precision="float16")


# -- faiss ------------------------------------------------------------------------------------------------------------


def test_faiss_finds_the_same_neighbours():
    pytest.importorskip("faiss")
    features = rows(900, 12)
    features[400:420] = features[0] + 1e-3 * np.random.default_rng([6]).normal(size=(20, 12))  # near duplicates
    features[500:510] = features[3]  # copies
    ours, theirs = (Reference.of(features, precision="float32", backend=backend) for backend in ("torch", "faiss"))
    for queries in (features, rows(300, 12, seed=9)):
        for k in (1, 12, len(theirs) - 1):
            mine, found = ours.nearest(queries, k), theirs.nearest(queries, k)
            torch.testing.assert_close(found.distances, mine.distances, rtol=1e-5, atol=1e-6)
            apart = mine.distances.diff(dim=1) > 1e-5
            clear = (torch.nn.functional.pad(apart, (1, 0), value=True)) & torch.nn.functional.pad(apart, (0, 1))
            assert (found.positions == mine.positions)[clear].all()
    own = theirs.positions([*theirs.position_of])
    assert not (theirs.table(5).positions == own[:, None]).any()
    for name in ("slof", "lof", "multi_scale", "conditional_sparsity"):
        texts = {"texts": rows(900, 8, 1)} if name == "conditional_sparsity" else {}
        one, other = (detect(features, name, k=9, reference=reference, **texts) for reference in (ours, theirs))
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-6, err_msg=name)


def test_faiss_is_asked_for_what_it_can():
    with pytest.raises(ValueError, match="'annoy'"):
        Reference.of(FEATURES, backend="annoy")
    for given in ({"precision": "bfloat16"}, {"device": "meta"}):
        with pytest.raises(ValueError, match='on "cpu" with backend "faiss"'):
            Reference.of(FEATURES, backend="faiss", **given)


def test_without_faiss_it_says_what_to_install(monkeypatch):
    imported = builtins.__import__

    def missing(name, *rest):
        if name == "faiss":
            raise ImportError("No module named 'faiss'")
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r"hf-clipbd\[faiss\]"):
        Reference.sample(FEATURES, 50, backend="faiss")


def test_clip_score_needs_no_reference():
    texts = rows(seed=8)
    np.testing.assert_array_equal(detect(FEATURES, "clip_score", texts=texts), clip_score(FEATURES, texts=texts))
