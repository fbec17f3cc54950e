# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""A detector of somebody else's package: what it gives is looked at, and its settings reach it or are refused."""

import numpy as np
import pytest

from hf_clipbd.detection import ALIGNED, DETECTORS, detect, detect_all


FEATURES = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)


def first(features, reference=None, k=None, tau=1.0):
    return features[:, 0] * tau


def gap(features, reference=None, k=None, *, texts):
    return -(features * texts).sum(1)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(DETECTORS, "first", first)
    monkeypatch.setitem(DETECTORS, "gap", gap)
    monkeypatch.setitem(ALIGNED, "gap", ("texts",))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (None, r"object \(\)"),
        (np.zeros(3), r"float64 \(3,\)"),
        (np.zeros((40, 1)), r"float64 \(40, 1\)"),
        (np.where(np.arange(40) < 2, np.nan, 0), "2 NaN or infinite"),
    ],
)
def test_scores_are_finite_and_one_a_row(given, says, monkeypatch):
    monkeypatch.setitem(DETECTORS, "wrong", lambda features, reference=None, k=None: given)
    with pytest.raises(
        ValueError, match=rf"score of the detector 'wrong' for each of 40 rows, \(40,\), but got {says}"
    ):
        detect(FEATURES, "wrong")


def test_settings_reach_the_detector_that_has_them():
    alone = detect(FEATURES, "first", tau=5)
    assert alone.dtype == np.float64
    np.testing.assert_allclose(alone, FEATURES[:, 0] * 5)
    found = detect_all(FEATURES, ["slof", "first", "gap"], k=3, tau=5, texts=FEATURES, others=None, caption_share=0.5)
    np.testing.assert_array_equal(found["first"], alone)
    np.testing.assert_allclose(found["gap"], -(FEATURES**2).sum(1), rtol=1e-6)
    np.testing.assert_array_equal(found["slof"], detect(FEATURES, "slof", k=3))


def test_what_no_detector_takes_is_refused():
    with pytest.raises(TypeError, match=r"Expected keywords among .*'caption_share'.* but got \['capton_share'\]"):
        detect_all(FEATURES, ["slof"], capton_share=0.5)
    with pytest.raises(TypeError, match=r"but got \['tau'\]"):
        detect_all(FEATURES, ["slof"], tau=5)
