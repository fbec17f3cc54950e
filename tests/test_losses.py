# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The training equations against slow loops on asymmetric data."""

import math

import pytest
import torch

from hf_clipbd.losses import clip_loss, counterfactual_loss, in_modal_loss, one_way_loss


def unit_rows(n: int, seed: int, d: int = 5) -> torch.Tensor:
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return rows / rows.norm(dim=1, keepdim=True)


def dot(a: torch.Tensor, b: torch.Tensor) -> float:
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def slow_one_way(queries: torch.Tensor, keys: torch.Tensor, scale: float) -> float:
    total = 0.0
    for i in range(len(queries)):
        weights = [math.exp(scale * dot(queries[i], key)) for key in keys]
        total -= math.log(weights[i] / sum(weights))
    return total / len(queries)


def slow_counterfactual(u, vp, vn, tp, tn, own=False, text_negatives=True, directions="both") -> float:
    n, image_to_text, text_to_image = len(u), 0.0, 0.0
    for i in range(n):
        others = [i] if own else range(n)
        top = math.exp(dot(u[i], vp[i]) / tp)
        below = sum(math.exp(dot(u[i], vp[j]) / tp) for j in range(n))
        image_to_text -= math.log(top / (below + sum(math.exp(dot(u[i], vn[j]) / tn) for j in others)))
        below = sum(math.exp(dot(vp[i], u[j]) / tp) for j in range(n))
        negatives = sum(math.exp(dot(vn[i], u[j]) / tn) for j in others) if text_negatives else 0.0
        text_to_image -= math.log(top / (below + negatives))
    parts = {"i2t": image_to_text, "t2i": text_to_image, "both": image_to_text + text_to_image}
    return parts[directions] / n


U, V, A, B, C = (unit_rows(4, seed) for seed in range(5))


def test_one_way_and_clip_loss_equal_slow_loops():
    assert one_way_loss(U, V, 7.0).item() == pytest.approx(slow_one_way(U, V, 7.0), rel=1e-12)
    expected = (slow_one_way(U, V, 7.0) + slow_one_way(V, U, 7.0)) / 2
    assert clip_loss(U, V, 7.0).item() == pytest.approx(expected, rel=1e-12)
    assert slow_one_way(U, V, 7.0) != pytest.approx(slow_one_way(V, U, 7.0), rel=1e-3)


def test_in_modal_loss_equals_slow_loops_and_is_one_directional():
    expected = (slow_one_way(U, A, 3.0) + slow_one_way(V, B, 3.0)) / 2
    assert in_modal_loss(U, A, V, B, 3.0).item() == pytest.approx(expected, rel=1e-12)
    assert in_modal_loss(A, U, B, V, 3.0).item() != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("text_negatives", [False, True])
def test_counterfactual_loss_equals_slow_loops(own, text_negatives):
    expected = slow_counterfactual(U, V, C, 0.3, 0.2, own, text_negatives)
    got = counterfactual_loss(U, V, C, 0.3, 0.2, "own" if own else "all", text_negatives)
    assert got.item() == pytest.approx(expected, rel=1e-12)
    total = counterfactual_loss(U, V, C, 0.3, 0.2, "own" if own else "all", text_negatives, "sum")
    assert total.item() == pytest.approx(4 * expected, rel=1e-12)


@pytest.mark.parametrize("directions", ["both", "i2t", "t2i"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_directions_of_the_counterfactual_loss_equal_slow_loops(directions, reduction):
    expected = slow_counterfactual(U, V, C, 0.3, 0.2, directions=directions) * (4 if reduction == "sum" else 1)
    got = counterfactual_loss(U, V, C, 0.3, 0.2, reduction=reduction, directions=directions)
    assert got.item() == pytest.approx(expected, rel=1e-12)
    one, other = (slow_counterfactual(U, V, C, 0.3, 0.2, directions=name) for name in ("i2t", "t2i"))
    assert one != pytest.approx(other, rel=1e-2)


def test_a_harder_counterfactual_costs_more():
    easy = counterfactual_loss(U, U, -U, 0.3, 0.3)
    hard = counterfactual_loss(U, U, U, 0.3, 0.3)
    assert hard > easy


def test_uninformative_pairs_cost_log_n():
    same = torch.ones(6, 1, dtype=torch.float64)
    assert clip_loss(same, same, 50.0).item() == pytest.approx(math.log(6))


@pytest.mark.parametrize(
    "call",
    [
        lambda: clip_loss(U, V[:3], 1.0),
        lambda: clip_loss(U[0], V[0], 1.0),
        lambda: counterfactual_loss(U, V, C, 0.0, 0.3),
        lambda: counterfactual_loss(U, V, C, 0.3, 0.3, negatives="some"),
        lambda: counterfactual_loss(U, V, C, 0.3, 0.3, reduction="none"),
        lambda: counterfactual_loss(U, V, C, 0.3, 0.3, directions="t2t"),
    ],
)
def test_bad_input_is_refused(call):
    with pytest.raises(ValueError, match="Expected"):
        call()
