# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Datasets with a format or a transform of their own: everything that reads rows sees those that the user sees."""

import logging

import datasets
import numpy as np
import PIL.Image
import pytest

from hf_clipbd.attacks import BadNets, PoisonTransform
from hf_clipbd.data.canvas import Canvas
from hf_clipbd.data.pairs import PLAIN_VIEWS, PairKey, PairViews
from hf_clipbd.data.reader import readable_rows
from hf_clipbd.evaluation import ZeroShotEvaluator, evaluate_retrieval, evaluate_zero_shot, linear_probe
from hf_clipbd.features import embed_dataset, pixel_values
from hf_clipbd.training.pushing import Marks, poison_marks


CANVAS = Canvas(32)
POISON = PoisonTransform(BadNets(target="banana", patch_size=6), rate=0.4, seed=0)


@pytest.fixture
def keyed(tiny_pairs):
    """Pairs with a column that tells rows apart, by which a `PoisonTransform` draws."""
    return tiny_pairs.add_column("id", [f"key {row}" for row in range(len(tiny_pairs))])


@pytest.fixture
def labelled(tiny_pairs):
    rows = tiny_pairs.remove_columns("caption").add_column("label", [row % 4 for row in range(len(tiny_pairs))])
    return rows.cast_column("label", datasets.ClassLabel(names=["banana", "boat", "house", "dog"]))


def mirrored(batch):
    turned = [one.transpose(PIL.Image.Transpose.FLIP_TOP_BOTTOM).convert("L") for one in batch["image"]]
    return {**batch, "image": turned, "label": [3 - label for label in batch["label"]]}


def merged(batch):
    return {**batch, "label": [label // 2 for label in batch["label"]]}


def drawn(rows):
    views = PairViews(rows, PLAIN_VIEWS, CANVAS).__getitems__([PairKey(0, row) for row in range(len(rows))])
    return np.stack([one["images"][0] for one in views]), [one["texts"][0] for one in views]


def test_a_training_sees_the_rows_that_a_lazy_poisoning_shows(keyed, tiny_model, tiny_processor):
    lazy, mapped = keyed.with_transform(POISON), keyed.map(POISON)
    assert 5 < sum(mapped["is_poisoned"]) < 40
    (pixels, texts), (expected, captions) = drawn(lazy), drawn(mapped)
    assert np.array_equal(pixels, expected) and texts == captions == lazy[:]["caption"]
    one, other = (embed_dataset(tiny_model, tiny_processor, rows) for rows in (lazy, mapped))
    assert all(np.array_equal(one[name], other[name]) for name in ("image", "text"))


def test_captions_that_a_transform_changes_decide_what_a_subset_is_drawn_from(keyed):
    plan = PLAIN_VIEWS.__class__(PLAIN_VIEWS.images, PLAIN_VIEWS.texts, subset_if=lambda caption: "banana" in caption)
    lazy = keyed.with_transform(POISON)
    views = PairViews(lazy, plan, CANVAS)
    assert [views.in_subset(row) for row in range(9)] == ["banana" in one for one in lazy[:9]["caption"]]


def test_columns_that_a_transform_makes_are_found(tiny_pairs, tiny_model, tiny_processor):
    numbers = datasets.Dataset.from_dict({"number": list(range(len(tiny_pairs)))})
    made = numbers.with_transform(lambda batch: tiny_pairs[batch["number"]])
    assert np.array_equal(drawn(made)[0], drawn(tiny_pairs)[0])
    found, expected = (embed_dataset(tiny_model, tiny_processor, rows) for rows in (made, tiny_pairs))
    assert np.array_equal(found["text"], expected["text"])
    assert np.array_equal(pixel_values(tiny_processor, made), pixel_values(tiny_processor, tiny_pairs))
    for read in (drawn, lambda rows: embed_dataset(tiny_model, tiny_processor, rows)):
        with pytest.raises(ValueError, match=r"\['number'\]"):
            read(numbers)


@pytest.mark.parametrize("kind", ["torch", "numpy", "pandas"])
def test_a_format_changes_nothing(kind, tiny_pairs, labelled, tiny_model, tiny_processor):
    given, unreadable = tiny_pairs.with_format(kind), {}
    found = embed_dataset(tiny_model, tiny_processor, given, unreadable=unreadable)
    expected = embed_dataset(tiny_model, tiny_processor, tiny_pairs)
    assert not unreadable and np.array_equal(found["image"], expected["image"])
    assert readable_rows(given, CANVAS)[1] == {}
    retrieval = [evaluate_retrieval(tiny_model, tiny_processor, rows).to_dict() for rows in (given, tiny_pairs)]
    assert retrieval[0] == retrieval[1]
    probes = [
        linear_probe(tiny_model, tiny_processor, rows, labelled, l2=1e-3, progress=False).to_dict()
        for rows in (labelled.with_format(kind), labelled)
    ]
    assert probes[0] == probes[1]


def test_what_is_measured_is_what_a_transform_gives(labelled, tiny_model, tiny_processor):
    lazy, mapped = labelled.with_transform(merged), labelled.map(merged, batched=True, features=labelled.features)
    options = {"triggers": [BadNets(target="banana", patch_size=6)], "templates": ["a {}"], "ks": [1, 2]}
    plain, found, expected = (
        evaluate_zero_shot(tiny_model, tiny_processor, rows, progress=False, **options).to_dict()
        for rows in (labelled, lazy, mapped)
    )
    assert found == expected != plain
    assert ZeroShotEvaluator(tiny_processor, lazy, **options).report(tiny_model).to_dict() == expected


def test_a_probe_is_fitted_to_what_a_transform_gives_and_keeps_none_of_it(
    labelled, tiny_model, tiny_processor, tmp_path, caplog
):
    lazy, mapped = labelled.with_transform(mirrored), labelled.map(mirrored, batched=True, features=labelled.features)
    options = {"l2": 1e-3, "progress": False, "cache": tmp_path}
    with caplog.at_level(logging.WARNING):
        found = linear_probe(tiny_model, tiny_processor, lazy, labelled, **options).to_dict()
    assert "not kept" in caplog.text and not list(tmp_path.iterdir())
    assert found == linear_probe(tiny_model, tiny_processor, mapped, labelled, **options).to_dict()
    assert found != linear_probe(tiny_model, tiny_processor, labelled, labelled, **options).to_dict()


def test_rows_that_a_transform_poisons_may_be_poisoned(keyed):
    assert poison_marks(keyed.with_transform(POISON)) == Marks(None, True)
    assert poison_marks(keyed.with_transform(lambda batch: batch)) == poison_marks(keyed) == Marks(None, False)


def test_what_is_no_dataset_is_named(tiny_pairs, tiny_model, tiny_processor):
    for rows, says in (
        (list(tiny_pairs), "got list. Make one"),
        (datasets.DatasetDict(train=tiny_pairs), "got DatasetDict. Pass one split"),
        (tiny_pairs.to_iterable_dataset(), "got IterableDataset"),
    ):
        with pytest.raises(TypeError, match=says):
            embed_dataset(tiny_model, tiny_processor, rows)
