# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Detectors that look at classes, at a second space or at the model; the published arithmetic; scans."""

import importlib
import math

import numpy as np
import pytest
import torch

from hf_clipbd.detection import (
    ALIGNED,
    DETECTORS,
    Reference,
    activation_clustering,
    cognitive_distillation,
    combined,
    conditional_sparsity,
    detect,
    detect_all,
    detection_performance,
    disagreement,
    distilled_masks,
    huang2025,
    island,
    k_distance,
    mask_sizes,
    performance_at_rate,
    scan,
    slof,
    spectral_signature,
    thinned_rows,
)


def rows(n=60, d=5, seed=0):
    rng = np.random.default_rng([seed, n, d])
    return (rng.normal(size=(n, d)) * rng.choice([0.2, 1.0], n)[:, None] + rng.normal(size=d)).astype(np.float32)


def unit(x):
    x = np.asarray(x, dtype=np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def nearest(points, x, own, k):
    """Return distances and numbers of the k points nearest to x, without number `own`."""
    far = sorted((math.dist(x, o), j) for j, o in enumerate(points) if j != own)
    return [d for d, _ in far[:k]], [j for _, j in far[:k]]


def test_island_is_the_widest_gap_of_slow_loops():
    features = rows()
    expected = []
    for i, x in enumerate(unit(features)):
        d, _ = nearest(unit(features), x, i, 9)
        expected.append(max(order * math.log(d[order] / d[order - 1]) for order in range(3, 9)))
    np.testing.assert_allclose(island(features, Reference.of(features), k=9), expected, rtol=2e-3, atol=1e-4)
    with pytest.raises(ValueError, match="at least 4"):
        island(features, Reference.of(features), k=3)


def test_a_group_of_eight_is_an_island_and_a_lone_row_is_not():
    rng = np.random.default_rng([1])
    sea = np.eye(12)[0] * 3 + rng.normal(size=(400, 12))
    group = 4 * np.eye(12)[3] + 0.05 * rng.normal(size=(8, 12))
    features = np.concatenate([sea, group, [[-9.0, *[0] * 11]]])
    scores = island(features, Reference.of(features), k=16)
    assert set(np.argsort(scores)[-8:]) == set(range(400, 408))


def test_disagreement_is_that_of_slow_loops():
    features, others = rows(), rows(d=4, seed=3)
    first, second = unit(features), unit(others)
    chosen = np.arange(0, 60, 2)
    inside = {row: place for place, row in enumerate(chosen)}
    expected = []
    for i in range(60):
        own = inside.get(i)
        _, near = nearest(first[chosen], first[i], own, 4)
        least, _ = nearest(second[chosen], second[i], own, 4)
        far = [math.dist(second[i], second[chosen[j]]) for j in near]
        expected.append(sum(far) / sum(least))
    reference = Reference.of(features[chosen])
    scores = disagreement(features, reference, 4, others=others, reference_others=others[chosen])
    np.testing.assert_allclose(scores, expected, rtol=2e-3)
    assert scores.min() >= 1 - 1e-3
    sampled = Reference.sample(features, 40, seed=2)
    by_hand = disagreement(features, sampled, 4, others=others, reference_others=others)
    np.testing.assert_array_equal(disagreement(features, sampled, 4, others=others), by_hand)


def test_disagreement_with_captions_is_that_of_slow_loops():
    features, others, texts = rows(), rows(d=4, seed=3), rows(d=6, seed=5)
    texts[20:28] = texts[4]  # rows that say the same are all neighbours, more than k; a row is not its own
    second, captions = unit(others), unit(texts)
    expected = []
    for i in range(60):
        cosines = {j: float(captions[i] @ captions[j]) for j in range(60) if j != i}
        least = sorted(cosines.values())[-4]
        near = [j for j, cosine in cosines.items() if cosine >= least - 1e-6]
        assert len(near) == 8 or i not in (4, *range(20, 28))
        expected.append(np.mean([math.dist(second[i], second[j]) for j in near]))
    reference = Reference.of(features)
    alone = disagreement(features, reference, 4, others=others)
    both = disagreement(features, reference, 4, others=others, texts=texts)
    np.testing.assert_allclose(both / alone, expected, rtol=2e-3)
    given = {"k": 4, "others": others, "texts": texts}
    scores = np.stack([conditional_sparsity(features, reference, 4, texts=texts), both])
    usual = np.median(scores, 1, keepdims=True), np.quantile(scores, 0.75, 1, keepdims=True)
    expected = ((scores - usual[0]) / (usual[1] - usual[0])).max(0)
    np.testing.assert_allclose(combined(features, reference, **given), expected)
    np.testing.assert_array_equal(detect(features, **given), detect(features, "combined", **given))
    del given["texts"]
    np.testing.assert_array_equal(detect(features, **given), detect(features, "disagreement", **given))


def test_combined_finds_what_either_part_finds():
    rng = np.random.default_rng(7)
    labels = rng.integers(0, 7, 2000)
    centres = {name: 4 * rng.normal(size=(7, 12)) for name in ("features", "texts", "others")}
    spaces = {name: (at[labels] + rng.normal(size=(2000, 12))).astype(np.float32) for name, at in centres.items()}
    hidden, seen = np.arange(2000) < 20, (np.arange(2000) >= 20) & (np.arange(2000) < 40)
    # The first have captions and embeddings of concept 0, but show anything. The second, whose captions nobody else
    # has, lie apart, and as near to each other in the second space.
    spaces["texts"][hidden] = centres["texts"][0] + rng.normal(size=(20, 12))
    spaces["texts"][seen] = 4 * rng.normal(size=12) + rng.normal(size=(20, 12))
    spaces["features"][hidden] = centres["features"][0] + rng.normal(size=(20, 12))
    for name in ("features", "others"):
        spaces[name][seen] = 6 * rng.normal(size=12) + 0.3 * rng.normal(size=(20, 12))
    spaces["others"][hidden] = centres["others"][rng.integers(1, 7, 20)] + rng.normal(size=(20, 12))
    features = spaces.pop("features")

    def found(name, rows, among):
        given = {key: value for key, value in spaces.items() if key in ALIGNED[name]}
        scores = detect(features, name, **given)
        return detection_performance(scores[rows | among], rows[rows | among])

    clean = np.arange(2000) >= 40
    own = clean & (labels == 0)  # some concepts are more spread out than others
    assert found("conditional_sparsity", hidden, own)["auroc"] < 0.7
    assert found("conditional_sparsity", seen, clean)["auroc"] > 0.99
    assert found("disagreement", seen, clean)["auroc"] < 0.9 < 0.99 < found("disagreement", hidden, clean)["auroc"]
    assert min(found("combined", rows, clean)["auroc"] for rows in (hidden, seen)) > 0.98


def test_combined_has_a_unit_where_most_rows_have_one_score():
    rng = np.random.default_rng([3])
    tied, other = rng.normal(size=(2, 1000))
    tied[:600] = rng.normal(0, 1e-9, 600)  # copies of one pair, but for rounding
    other[990:] += 20  # poison that the other detector finds
    parts = [lambda *_, _found=found, **__: _found for found in (tied, other)]
    for turn in (1, -1):
        scores = combined(rows(1000), parts=parts[::turn])
        assert scores[990:].min() > scores[:990].max()
    untied = np.random.default_rng([4]).normal(size=1000)
    usual = [(one - np.median(one)) / (np.quantile(one, 0.75) - np.median(one)) for one in (untied, other)]
    parts[0] = lambda *_, **__: untied
    np.testing.assert_allclose(combined(rows(1000), parts=parts), np.maximum(*usual), rtol=1e-12)


@pytest.mark.parametrize("n_references", [1, 2])
@pytest.mark.parametrize("names", ["conditional_sparsity disagreement combined", "combined disagreement", "combined"])
def test_combined_takes_its_parts_from_the_same_call(names, n_references, monkeypatch):
    features, given = rows(400), {"texts": rows(400, seed=1), "others": rows(400, seed=2)}
    called = []
    for name in ("conditional_sparsity", "disagreement"):

        def counted(*of, _name=name, _whole=DETECTORS[name], **options):
            called.append(_name)
            return _whole(*of, **options)

        monkeypatch.setitem(DETECTORS, name, counted)
        monkeypatch.setattr(importlib.import_module("hf_clipbd.detection.combined"), name, counted)
    search = {"m": 200, "references": n_references, "combine": "maximum"}
    together = detect_all(features, names.split(), **search, **given)
    assert sorted(called) == sorted(["conditional_sparsity", "disagreement"] * n_references)
    for name in names.split():
        taken = {key: given[key] for key in ALIGNED[name]}
        alone = detect(features, name, **search, **taken)
        np.testing.assert_allclose(together[name], alone, rtol=1e-6, err_msg=name)


def test_disagreement_finds_poison_of_any_density_and_copies_keep_their_place():
    rng = np.random.default_rng([2])
    concept, shown = rng.integers(0, 8, 900), rng.normal(size=(8, 16))
    others = shown[concept] + 0.3 * rng.normal(size=(900, 16))
    features = rng.normal(size=(8, 16))[concept] + 0.3 * rng.normal(size=(900, 16))
    poisoned = np.arange(900) < 90
    for target in (features[poisoned] * 0 + features[concept == 0].mean(0), features[poisoned] * 0 + 9.0):
        victim = features.copy()
        victim[poisoned] = target + 0.05 * rng.normal(size=(90, 16))
        hidden = poisoned & (concept != 0)
        scores = disagreement(victim, Reference.sample(victim, 500), 8, others=others)
        assert (
            scores[hidden].min() > np.median(scores[~poisoned])
            and scores[hidden].mean() > 1.5 * scores[~poisoned].mean()
        )
    others[100:110] = others[100]  # one picture ten times, in the second space only
    np.testing.assert_allclose(
        disagreement(features, Reference.of(features), 8, others=others)[110:],
        disagreement(features, Reference.of(features), 8, others=others.copy())[110:],
    )


@pytest.mark.parametrize("captions_a_concept", [1, 4])
def test_disagreement_is_not_turned_round_by_captions_that_many_rows_share(captions_a_concept):
    rng = np.random.default_rng([7])
    concept, poisoned = rng.integers(0, 20, 2000), np.arange(2000) < 20
    said = np.where(poisoned, 0, concept) * captions_a_concept + rng.integers(0, captions_a_concept, 2000)
    others = rng.normal(size=(20, 16))[concept] + 0.3 * rng.normal(size=(2000, 16))
    features = rng.normal(size=(20, 16))[concept] + 0.3 * rng.normal(size=(2000, 16))  # the poison was not learned
    words = np.repeat(rng.normal(size=(20, 16)), captions_a_concept, axis=0)
    texts = (words + 0.1 * rng.normal(size=words.shape))[said]
    scores = disagreement(features, Reference.sample(features, 1000), others=others, texts=texts)
    hidden = poisoned & (concept != 0)
    assert scores[hidden].min() > np.quantile(scores[~poisoned], 0.99)


def test_disagreement_says_what_is_missing():
    features = rows()
    with pytest.raises(ValueError, match=r"`others`.*None"):
        disagreement(features)
    for given in ({"others": features[1:]}, {"others": features, "texts": features[1:]}):
        with pytest.raises(ValueError, match="row for each of 60, but got 59"):
            disagreement(features, **given)
    with pytest.raises(ValueError, match="reference_texts"):
        disagreement(
            features, Reference.of(rows(20, seed=1)), 4, others=features, texts=features, reference_others=features
        )
    with pytest.raises(ValueError, match="reference_others"):
        disagreement(features[:20], Reference.of(features), 4, others=features[:20])


def test_a_row_is_no_neighbour_of_its_own_at_the_largest_share_of_captions():
    features, texts = rows(20), rows(20, 4, seed=1)
    reference = Reference.of(features)
    every, others = (conditional_sparsity(features, reference, 4, texts, caption_share=s) for s in (0.99, 0.95))
    np.testing.assert_array_equal(every, others)  # 19 of 20 rows


@pytest.mark.parametrize("given", ["texts", "others", "texts others"])
def test_what_is_aligned_with_a_reference_is_checked(given):
    features, reference = rows(), Reference.of(rows(20, seed=1))
    search = disagreement if "others" in given else conditional_sparsity
    spaces = {name: rows(d=7) for name in given.split()}
    of_reference = {f"reference_{name}": rows(30, 7, seed=2) for name in given.split()}
    assert np.isfinite(search(features, reference, 4, **spaces, **of_reference)).all()
    for name, whole in of_reference.items():
        unread = whole.copy()
        unread[[17, 25], 3] = np.nan  # 25 is none of the reference's 20 rows
        with pytest.raises(ValueError, match=f"finite `{name}`, but row 17"):
            search(features, reference, 4, **spaces, **{**of_reference, name: unread})
        unread[[17, 25], 3] = 1e20  # squared it is infinite in float32
        with pytest.raises(ValueError, match=f"`{name}` of lengths under.*but row 17 has 1.0e[+]20. Divide"):
            search(features, reference, 4, **spaces, **{**of_reference, name: unread})
        with pytest.raises(ValueError, match=f"`{name}` of 7 dimensions.*but got 6"):
            search(features, reference, 4, **spaces, **{**of_reference, name: whole[:, :6]})


@pytest.mark.parametrize("rate", [0.02, 0.01, 0.002])
def test_the_default_finds_a_group_of_any_size_apart_from_large_concepts(rate):
    rng = np.random.default_rng([8])
    count = round(rate * 3000)
    clean = 3 * np.eye(24)[0] + rng.normal(size=(8, 24))[rng.integers(0, 8, 3000 - count)]
    group = 3 * np.eye(24)[0] + 2 * np.eye(24)[9] - 2 * np.eye(24)[10]
    features = np.concatenate([clean + 0.3 * rng.normal(size=clean.shape), group + 0.1 * rng.normal(size=(count, 24))])
    scores = detect(features)
    assert scores[-count:].min() > np.quantile(scores[:-count], 0.95)
    if count > 20:
        assert np.median(slof(features, Reference.of(features), 8)[-count:]) < 1.2  # each other's neighbours


def classes_with_poison():
    """Three classes, of the second of which a tenth lies aside."""
    rng = np.random.default_rng([4])
    labels = np.repeat([7, 2, 5], [200, 200, 100])
    features = 5 * np.eye(9)[labels] + 0.3 * rng.normal(size=(500, 9))
    poisoned = (np.arange(500) >= 200) & (np.arange(500) < 220)
    features[poisoned] += 3 * np.eye(9)[0]
    return features, labels, poisoned


def test_spectral_signature_is_the_squared_projection():
    features, labels, poisoned = classes_with_poison()
    scores = spectral_signature(features, classes=labels)
    of_class = unit(features[labels == 2])
    centred = of_class - of_class.mean(0)
    expected = (centred @ np.linalg.svd(centred)[2][0]) ** 2
    np.testing.assert_allclose(scores[labels == 2], expected / np.median(expected), rtol=1e-4, atol=1e-4)
    assert set(np.argsort(scores)[-20:]) == set(np.flatnonzero(poisoned))


def test_spectral_signature_of_a_wide_class_does_not_hide_the_poison_of_a_narrow_one():
    features, labels, poisoned = classes_with_poison()
    rng = np.random.default_rng([6])
    features[labels == 7] += 2 * rng.normal(size=(200, 9))  # wider than the poisoned rows lie apart
    scores = spectral_signature(features, classes=labels)
    assert poisoned[np.argsort(-scores)[:20]].mean() >= 0.9
    few = np.where(np.arange(500) < 5, 99, labels)
    scores = spectral_signature(features, classes=few)
    assert (scores[:5] == 0).all() and np.median(scores[few == 5]) == pytest.approx(1)
    features[few == 2] = features[300]
    assert spectral_signature(features, classes=few)[few == 2].max() < 0.01  # copies of one row: rounding alone


def test_activation_clustering_prefers_the_smaller_half():
    features, labels, poisoned = classes_with_poison()
    scores = activation_clustering(features, classes=labels)
    assert set(np.argsort(scores)[-20:]) == set(np.flatnonzero(poisoned)) and scores[poisoned].min() > 0.5
    assert 0 <= scores.min() and scores.max() < 1
    few = np.where(np.arange(500) < 5, 99, labels)
    assert (activation_clustering(features, classes=few)[:5] == 0).all()


@pytest.mark.parametrize("detector", [spectral_signature, activation_clustering])
def test_clusters_of_captions_stand_in_for_classes(detector):
    features, labels, poisoned = classes_with_poison()
    texts = np.eye(9)[labels] + 0.01 * np.random.default_rng([5]).normal(size=(500, 9))
    scores = detector(features, texts=texts, n_classes=3)
    assert set(np.argsort(scores)[-20:]) == set(np.flatnonzero(poisoned))
    assert np.isfinite(detector(features)).all()
    with pytest.raises(ValueError, match="`texts`.*500 rows.*499"):
        detector(features, texts=texts[1:])


def slow_published(features, detector, k):
    """Return the published scores of one batch, a number at a time."""
    n, far = len(features), [[math.dist(x, o) for o in features] for x in features]

    def dimension(d):
        return -len(d) / sum(math.log(each / d[-1] + 1e-4) for each in d)

    scores = []
    for i in range(n):
        rest = far[i][:i] + far[i][i + 1 :]
        places = sorted(range(n - 1), key=lambda j, rest=rest: rest[j])[: k + 1]
        d = [rest[j] for j in places]
        wrong = [sorted(far[j])[: k + 1] for j in places[:k]]  # rows by the shifted number; their own zero first
        if detector == "k_distance":
            scores.append(d[k - 1])
        elif detector == "lid":
            scores.append(dimension(d[:k]))
        else:
            power = dimension if detector == "dao" else lambda _: 1
            scores.append(sum((d[k] / each[-1]) ** power(each) for each in wrong) / k)
    return scores


@pytest.mark.parametrize("detector", ["k_distance", "slof", "dao", "lid"])
def test_published_arithmetic_is_that_of_slow_loops(detector):
    features = rows(40).astype(np.float64)
    order = np.random.default_rng([0, 40]).permutation(40)  # the one batch is a partition of the set too
    expected = slow_published(features[order], detector, 5)
    np.testing.assert_allclose(huang2025(features, detector, k=5)[order], expected, rtol=1e-6)
    by_name = detect(features, detector, k=5, compat="huang2025")
    np.testing.assert_array_equal(by_name, huang2025(features, detector, k=5))


def test_published_faults_show():
    features = rows(40)
    ours = slof(features, Reference.of(features, normalize=False), k=5)
    assert np.abs(huang2025(features, "slof", k=5) - ours).max() > 0.05
    copies = np.concatenate([features[:20], np.repeat(features[:1], 20, axis=0)])
    assert (huang2025(copies, "slof", k=5) == 1000).any()
    # A row's score depends on who shares its batch.
    assert np.abs(huang2025(features, k=5, batch_size=20) - huang2025(features, k=5, batch_size=20, seed=1)).max() > 0
    own_text = huang2025(features, "k_distance", k=1, texts=features)
    np.testing.assert_allclose(own_text, 0, atol=1e-6)  # the sample's own caption is a candidate
    with pytest.raises(ValueError, match="k \\+ 2 = 7 rows in the last batch.*leave 4"):
        huang2025(features, k=5, batch_size=36)
    with pytest.raises(ValueError, match="'lof'"):
        detect(features, "lof", compat="huang2025")
    with pytest.raises(ValueError, match="'other'"):
        detect(features, "slof", compat="other")


def test_a_scan_compares_with_the_reference_alone():
    reference, incoming = np.split(rows(320, 6), [300])
    incoming[-1] = -5 * reference.mean(0)
    found = scan(incoming, reference, "k_distance", k=5)
    np.testing.assert_array_equal(found.scores, k_distance(incoming, Reference.of(reference), 5))
    usual = k_distance(reference, Reference.of(reference), 5)
    expected = [np.mean(usual >= score) for score in found.scores]
    np.testing.assert_allclose(found.exceeded, expected)
    assert found.exceeded[-1] == 0 and found.exceeded[:-1].mean() > 0.2
    few = scan(incoming[:3], reference, "k_distance", k=5)
    np.testing.assert_allclose(few.scores, found.scores[:3], rtol=1e-3)
    np.testing.assert_array_equal(scan(incoming, reference).scores, slof(incoming, Reference.of(reference)))
    others = {"others": incoming[:, :4], "reference_others": reference[:, :4]}
    second = scan(incoming, reference, k=5, **others)
    np.testing.assert_array_equal(second.scores, scan(incoming, reference, "disagreement", 5, **others).scores)
    assert second.scores.shape == (20,) and np.isfinite(second.scores).all()
    with pytest.raises(ValueError, match="'clip_score'"):
        scan(incoming, reference, "clip_score")
    for name in ("combined", "conditional_sparsity"):  # need captions, which an incoming image has none of
        with pytest.raises(ValueError, match=f"images alone, but got '{name}'. Choose one of .*'slof'"):
            scan(incoming, reference, name)


class Corner(torch.nn.Module):
    """A model that looks at the top left corner where it is bright, and at everything elsewhere."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.inner = torch.nn.Dropout(0.5)
        self.inner.eval()

    def get_image_features(self, pixel_values):
        corner = pixel_values[:, :, :2, :2].mean((1, 2, 3))
        patched = torch.sigmoid(8 * (corner - 2))[:, None] * self.weight
        whole = pixel_values[:, :, ::2, ::2].flatten(1)
        return torch.cat([(1 - patched) * whole, 20 * patched], 1)


def test_cognitive_distillation_leaves_a_small_mask_of_a_trigger():
    rng = np.random.default_rng([6])
    pictures = torch.from_numpy(rng.normal(size=(6, 3, 8, 8))).float()
    pictures[:2, :, :2, :2] = 4
    model = Corner().train()
    model.inner.eval()
    options = {
        "model": model,
        "pixels": lambda numbers: pictures[torch.from_numpy(numbers)],
        "alpha": 0.01,
        "beta": 0.0,
    }
    sizes = mask_sizes(rows=np.arange(6), batch_size=4, steps=60, **options)
    scores = cognitive_distillation(np.zeros((6, 2)), masks=sizes)
    np.testing.assert_array_equal(scores, detect(np.zeros((6, 2)), "cognitive_distillation", masks=sizes))
    assert scores.shape == (6,) and (-1 <= scores).all() and (scores <= 0).all()
    assert scores[:2].min() > scores[2:].max()
    assert model.training and not model.inner.training and model.weight.grad is None
    some = mask_sizes(rows=[1, 3], steps=60, **options)
    np.testing.assert_allclose(some, sizes[[1, 3]], atol=1e-4)
    for wrong, says in ((None, "6 rows, but got none"), (sizes[1:], r"shape \(5,\)"), (sizes + 1, "others")):
        with pytest.raises(ValueError, match=says):
            cognitive_distillation(np.zeros((6, 2)), masks=wrong)


def test_a_mask_that_costs_nothing_stays_open():
    pictures = torch.from_numpy(np.random.default_rng([7]).normal(size=(2, 3, 4, 4))).float()
    masks = distilled_masks(lambda x: x.flatten(1), pictures, steps=40, alpha=0, beta=0)
    assert masks.shape == (2, 1, 4, 4) and masks.min() > 0.8
    assert distilled_masks(lambda x: x.flatten(1) * 0, pictures, steps=80, alpha=1, beta=0).max() < 0.1


def test_aligned_rows_are_thinned_with_the_features():
    features, poisoned = rows(200), np.arange(200) < 20
    seen = []

    def score(part, seed, texts):
        seen.append((part, texts))
        return part[:, 0]

    performance_at_rate(score, features, poisoned, 0.05, draws=2, seed=1, aligned={"texts": features * 2})
    for draw, (part, texts) in enumerate(seen):
        np.testing.assert_array_equal(part, features[thinned_rows(poisoned, 0.05, 1, draw)])
        np.testing.assert_array_equal(texts, 2 * part)


@pytest.mark.parametrize("across", [2, 3], ids=["rows", "columns"])
def test_a_rough_mask_costs_in_both_directions(across):
    other = 5 - across
    pictures = torch.from_numpy(np.random.default_rng([9]).normal(size=(2, 3, 6, 6))).float()
    lines = [slice(None)] * 4
    lines[across] = slice(None, None, 2)  # only every second line counts for the embedding
    rough = {}
    for beta in (0.0, 10.0):
        masks = distilled_masks(lambda x: x[tuple(lines)].flatten(1), pictures, steps=60, alpha=0.3, beta=beta)
        rough[beta] = masks.diff(dim=across).abs().mean().item()
        assert masks.diff(dim=other).abs().mean().item() < 0.3
    assert rough[0.0] > 0.5 and rough[10.0] < 0.5 * rough[0.0]


def test_masked_places_show_the_fill():
    pictures, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 1, 1)
    seen = []
    distilled_masks(lambda x: seen.append(x.detach()) or x.flatten(1), pictures, steps=1, noise=noise)
    mask = (np.tanh(0.9) + 1) / 2
    torch.testing.assert_close(seen[0], pictures)
    torch.testing.assert_close(seen[1], mask * pictures + (1 - mask) * noise)


def test_fill_colours_are_drawn_by_seed_and_row():
    pictures = torch.randn(4, 3, 8, 8)
    pictures[:] = pictures[0]
    model = Corner()

    def sizes(rows, seed):
        return mask_sizes(model, lambda numbers: pictures[torch.from_numpy(numbers)], rows, seed=seed, steps=3)

    assert np.array_equal(sizes([0, 1], 5), sizes([0, 1], 5)) and not np.allclose(sizes([0, 1], 5), sizes([0, 1], 6))
    assert len(set(sizes([0, 1, 2, 3], 5).round(9).tolist())) == 4


def test_a_scan_of_the_reference_itself_and_of_rows_in_their_own_length():
    reference = rows(60, 6)
    found = scan(reference, reference, "k_distance", k=5)
    expected = [np.mean(found.scores >= score) for score in found.scores]  # each row scores as high as itself
    np.testing.assert_allclose(found.exceeded, expected)
    incoming = rows(9, 6, seed=1)
    raw = scan(incoming, reference, "k_distance", k=5, normalize=False).scores
    np.testing.assert_array_equal(raw, k_distance(incoming, Reference.of(reference, normalize=False), 5))
    assert np.abs(raw - scan(incoming, reference, "k_distance", k=5).scores).max() > 0.1


def test_clusters_are_fitted_to_rows_of_the_whole_set(monkeypatch):
    from hf_clipbd.detection import classes

    monkeypatch.setattr(classes, "MOST_FITTED", 200)
    kind = np.repeat(np.arange(4), 250)  # sorted, as data by class are
    texts = 5 * np.eye(4)[kind] + 0.1 * np.random.default_rng([3]).normal(size=(1000, 4))
    found = classes.row_classes(texts, None, texts=texts, n_classes=4)
    assert len({(one, other) for one, other in zip(kind.tolist(), found.tolist(), strict=True)}) == 4
