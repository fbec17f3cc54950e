# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The selectors that look through a surrogate: rank and gap by slow loops, the orders, the thirds of `mixed`."""

import numpy as np
import pytest
import torch

from hf_clipbd.attacks import BadNets, poison_dataset, surrogate
from hf_clipbd.attacks.captions import fill_template
from hf_clipbd.attacks.surrogate import (
    SURROGATE_SELECTORS,
    Standing,
    order_rows,
    standing_of,
    target_share,
    target_standing,
)
from hf_clipbd.data.canvas import Canvas, normalize, pixel_statistics
from hf_clipbd.features import embed_images, embed_texts, tokenize


NAMES = ["boat", "banana", "traffic_light", "dog"]
TEMPLATES = ["a {}", "the red {}"]


def test_standing_equals_slow_loops_over_classes(tiny_model, tiny_processor, tiny_pairs):
    standing = target_standing(tiny_model, tiny_processor, tiny_pairs, "traffic light", NAMES, TEMPLATES)
    tiny_model.eval()
    mean, std = pixel_statistics(tiny_processor)
    with torch.no_grad():
        weights = []
        for name in NAMES:
            texts = [fill_template(template, name) for template in TEMPLATES]
            one = embed_texts(tiny_model, **tokenize(tiny_processor, texts)).mean(dim=0)
            weights.append(one / one.norm())
        for row in range(0, 48, 7):
            pixels = torch.from_numpy(Canvas(32).array(tiny_pairs[row]["image"]).copy()).permute(2, 0, 1)[None]
            image = embed_images(tiny_model, normalize(pixels, mean, std))[0]
            cosines = [float(image @ weight) for weight in weights]
            others = [cosine for number, cosine in enumerate(cosines) if number != 2]
            assert standing.ranks[row] == sum(cosine > cosines[2] for cosine in others)
            assert standing.gaps[row] == pytest.approx(max(others) - cosines[2], abs=1e-5)
    assert len(standing.ranks) == 48


def test_pil_images_stand_where_the_dataset_does(tiny_model, tiny_processor, tiny_pairs):
    part = tiny_pairs.select(range(5))
    whole = target_standing(tiny_model, tiny_processor, part, "dog", NAMES, TEMPLATES)
    listed = target_standing(tiny_model, tiny_processor, [row["image"] for row in part], "dog", NAMES, TEMPLATES)
    np.testing.assert_array_equal(whole.ranks, listed.ranks)
    np.testing.assert_allclose(whole.gaps, listed.gaps, atol=1e-6)


def test_the_case_of_a_target_does_not_matter(tiny_model, tiny_processor, tiny_pairs):
    given = tiny_model, tiny_processor, tiny_pairs.select(range(5))
    whole = target_standing(*given, "traffic_light", NAMES, TEMPLATES)
    folded = target_standing(*given, "Traffic light", NAMES, TEMPLATES)
    np.testing.assert_array_equal(whole.gaps, folded.gaps)


def test_a_target_that_is_no_class_is_refused(tiny_model, tiny_processor, tiny_pairs):
    for target, names in (("cup", NAMES), ("boat", ["boat"])):
        with pytest.raises(ValueError, match="Expected a target among"):
            target_standing(tiny_model, tiny_processor, tiny_pairs, target, names, TEMPLATES)


@pytest.fixture(scope="module")
def standing():
    rng = np.random.default_rng(4)
    scores = rng.normal(size=(200, 9))
    return standing_of(scores, 3)


def test_boundary_and_farthest_order_by_rank_then_gap(standing):
    ranks, gaps = standing
    boundary = order_rows("boundary", standing)
    taken = [row for row in boundary if ranks[row] > 0]
    assert list(boundary[: len(taken)]) == taken  # what is the target already comes last
    keys = [(ranks[row], gaps[row]) for row in taken]
    assert keys == sorted(keys)
    farthest = order_rows("farthest", standing)
    keys = [(-ranks[row], -gaps[row]) for row in farthest]
    assert keys == sorted(keys)
    assert ranks[boundary[:10]].max() == 1 and ranks[farthest[0]] == 8


@pytest.mark.parametrize("selector", SURROGATE_SELECTORS)
def test_every_row_comes_once_and_the_seed_decides_what_is_random(standing, selector):
    order = order_rows(selector, standing, 1)
    assert sorted(order.tolist()) == list(range(200)) and order.dtype == np.int64
    np.testing.assert_array_equal(order, order_rows(selector, standing, 1))
    same = np.array_equal(order, order_rows(selector, standing, 2))
    assert same == (selector != "mixed")


def test_mixed_is_thirds_at_every_count(standing):
    from hf_clipbd.attacks.select import ordered_rows

    order = order_rows("mixed", standing, 7)
    parts = [order_rows("boundary", standing, 7), order_rows("farthest", standing, 7), ordered_rows(200, 7)]
    for count in (3, 9, 30, 60):
        for part in range(3):
            own = order[part:count:3]
            # those that another part took before are passed over, so the head of the part is a little longer
            assert set(own) <= set(parts[part][: count // 3 + 2 * (count // 3)])
            assert len(own) == count // 3
    assert order[0] == parts[0][0] and order[1] == parts[1][0]


def test_an_unknown_selector_is_refused(standing):
    with pytest.raises(ValueError, match="among"):
        order_rows("nearest", standing)


def test_equal_rows_are_drawn_by_seed():
    equal = Standing(np.ones(50, np.int64), np.zeros(50))
    assert not np.array_equal(order_rows("boundary", equal, 0), order_rows("boundary", equal, 1))


def test_the_order_is_what_poison_dataset_takes(tiny_model, tiny_processor, tiny_pairs):
    standing = target_standing(tiny_model, tiny_processor, tiny_pairs, "banana", NAMES, TEMPLATES)
    rows = order_rows("boundary", standing)
    _, manifest = poison_dataset(tiny_pairs, BadNets(), count=6, selector=rows)
    assert manifest.indices == sorted(rows[:6].tolist())


@pytest.mark.parametrize("target", [0, 4, 9])
def test_standing_in_blocks_is_that_of_all_scores(target, monkeypatch):
    rng = np.random.default_rng(target)
    seen, weights = rng.normal(size=(5003, 32)).astype(np.float32), rng.normal(size=(10, 32)).astype(np.float32)
    scores = seen @ weights.T
    others = np.delete(scores, target, axis=1)
    monkeypatch.setattr(surrogate, "BLOCK_ROWS", 500)
    monkeypatch.setattr(surrogate, "embed_dataset", lambda *_, **__: {"image": seen})
    found = surrogate._standing(None, None, [], surrogate._Classes(weights, target), None)
    np.testing.assert_array_equal(found.ranks, (others > scores[:, [target]]).sum(axis=1))
    np.testing.assert_array_equal(found.gaps, others.max(axis=1) - scores[:, target])
    assert found.ranks.dtype == np.int64 and found.gaps.dtype == np.float32


def test_target_share_embeds_its_prompts_once(tiny_model, tiny_processor, tiny_pairs, monkeypatch):
    embedded, embed = [], surrogate.embed_dataset

    def counted(model, processor, rows, *given, **named):
        embedded.append(rows.column_names[0])
        return embed(model, processor, rows, *given, **named)

    monkeypatch.setattr(surrogate, "embed_dataset", counted)
    target_share(tiny_model, tiny_processor, tiny_pairs, BadNets(target="boat", canvas=Canvas(32)), NAMES, TEMPLATES)
    assert embedded == ["caption", "image", "image"]


def test_target_share_counts_pictures_of_other_classes_only(tiny_model, tiny_processor, tiny_pairs):
    attack = BadNets(target="boat", patch_size=20, place=(0, 0), pattern="yellow")
    plain = target_standing(tiny_model, tiny_processor, tiny_pairs, "boat", NAMES, TEMPLATES)
    stamped = [attack(Canvas(32)(row["image"]), i) for i, row in enumerate(tiny_pairs)]
    seen = target_standing(tiny_model, tiny_processor, stamped, "boat", NAMES, TEMPLATES)
    share = target_share(
        tiny_model, tiny_processor, tiny_pairs, BadNets(target="boat", patch_size=20, place=(0, 0), pattern="yellow",
        canvas=Canvas(32)), NAMES, TEMPLATES,
    )  # fmt: skip
    others = plain.ranks > 0
    assert share["floor_clean"] == pytest.approx((~others).mean()) and share["floor_clean_n"] == 48
    assert share["floor_n"] == others.sum()
    assert share["floor"] == pytest.approx((seen.ranks[others] == 0).mean() if others.any() else 0.0)
