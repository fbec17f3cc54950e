# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The linear probe: both solvers at the same minimum, its rates against a slow loop, features kept by content."""

import copy
import importlib

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
import torch.distributed as dist

from hf_clipbd.attacks import BadNets
from hf_clipbd.data.canvas import Canvas
from hf_clipbd.evaluation import kept_features, linear_probe
from hf_clipbd.evaluation.labelled import uses_mean_per_class
from hf_clipbd.evaluation.linear_probe import fit_linear
from hf_clipbd.evaluation.rates import bootstrap_mean
from hf_clipbd.features import embed_dataset
from hf_clipbd.recipe import overlap
from hf_clipbd.schema import Rate


NAMES = ["banana", "boat", "kite", "dog"]
MODULE = importlib.import_module("hf_clipbd.evaluation.linear_probe")  # the package has the function by this name


def pictures(n, seed, names=NAMES):
    """Return noise whose mean colour tells the class, most of the time; classes of unequal size."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(len(names), n, p=[0.4, 0.3, 0.2, 0.1])
    shades = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200], [130, 130, 60]])
    noise = rng.normal(0, 90, (n, 32, 32, 3))
    pixels = np.clip(shades[labels][:, None, None] + noise + rng.normal(0, 40, (n, 1, 1, 3)), 0, 255).astype(np.uint8)
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names))
    rows = {"image": [PIL.Image.fromarray(one) for one in pixels], "label": labels.tolist()}
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.fixture(scope="module")
def train():
    return pictures(120, 0)


@pytest.fixture(scope="module")
def test():
    return pictures(60, 1)


def objective(classifier, x, y, l2):
    loss = torch.nn.functional.cross_entropy(classifier(torch.tensor(x)).double(), torch.tensor(y))
    return float(loss + l2 / 2 * classifier.weight.double().square().sum())


@pytest.mark.parametrize("classes", [2, 5])
def test_both_solvers_find_the_same_minimum(classes):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(80, 6)).astype(np.float32)
    y = np.argmax(x @ rng.normal(size=(6, classes)) + rng.normal(size=(80, classes)), axis=1)
    ours, theirs = (fit_linear(x, y, classes, 1e-2, solver) for solver in ("torch", "sklearn"))
    low = objective(ours, x, y, 1e-2)
    assert low == pytest.approx(objective(theirs, x, y, 1e-2), abs=1e-5)
    assert (ours(torch.tensor(x)).argmax(1) == theirs(torch.tensor(x)).argmax(1)).all()
    for step in 1e-2 * rng.normal(size=(20, *ours.weight.shape)):  # nothing near it is lower
        moved = type(ours)(ours.weight + torch.tensor(step, dtype=torch.float32), ours.bias)
        assert objective(moved, x, y, 1e-2) > low - 1e-6


def test_what_cannot_be_fitted_is_named(train, test, tiny_model, tiny_processor):
    x, y = np.eye(4, dtype=np.float32), np.array([0, 0, 2, 2])
    with pytest.raises(ValueError, match=r"classes \[1\] have none"):
        fit_linear(x, y, 3, 1.0)
    with pytest.raises(ValueError, match="l2 > 0"):
        fit_linear(x, np.arange(4), 4, 0.0)
    with pytest.raises(ValueError, match=r"each of 4 classes, but classes \[2\] have none"):  # before any is read
        linear_probe(None, tiny_processor, train.filter(lambda row: row["label"] != 2), test)
    with pytest.raises(TypeError, match="known length for the probe, but got a stream"):
        linear_probe(None, tiny_processor, train.to_iterable_dataset(), test)
    with pytest.raises(ValueError, match="to be one of the 4 classes"):
        linear_probe(tiny_model, tiny_processor, train, test, {"badnets": BadNets(target="aeroplane", patch_size=4)})


def test_sets_that_number_their_classes_differently_are_refused(train, test, tiny_model, tiny_processor):
    names = test.features["label"].names
    turned = test.map(lambda row: {"label": len(names) - 1 - row["label"]}, load_from_cache_file=False)
    turned = turned.cast_column("label", datasets.ClassLabel(names=names[::-1]))
    with pytest.raises(ValueError, match=r"class 0 is 'banana' in the one and 'dog' in the other"):
        linear_probe(tiny_model, tiny_processor, train, turned)
    fewer = test.filter(lambda row: row["label"] < 3).cast_column("label", datasets.ClassLabel(names=names[:3]))
    with pytest.raises(ValueError, match=r"class 3 is 'dog' in the one and None in the other"):
        linear_probe(tiny_model, tiny_processor, train, fewer)


@pytest.mark.parametrize("include_target", [False, True])
def test_rates_equal_a_slow_loop(include_target, train, test, tiny_model, tiny_processor):
    attack, canvas = BadNets(target="kite", patch_size=8, place="corner"), Canvas(32)
    found = linear_probe(
        tiny_model, tiny_processor, train, test, [attack], ks=(1, 2), l2=1e-3, include_target=include_target
    )
    x = embed_dataset(tiny_model, tiny_processor, train, caption_column=None)["image"]
    classifier = fit_linear(x, np.array(train["label"]), 4, 1e-3)

    def ranked(image):
        one = datasets.Dataset.from_dict({"image": [image]}, features=datasets.Features(image=datasets.Image()))
        vector = embed_dataset(tiny_model, tiny_processor, one, caption_column=None)["image"][0]
        scores = classifier.weight.numpy() @ vector + classifier.bias.numpy()
        return np.argsort(-scores).tolist()

    right, asr = {label: [] for label in range(4)}, []
    for row, values in enumerate(test):
        clean = canvas.array(values["image"])
        right[values["label"]].append(ranked(PIL.Image.fromarray(clean))[0] == values["label"])
        if include_target or values["label"] != 2:
            asr.append(ranked(PIL.Image.fromarray(attack(clean, index=row)))[0] == 2)
    everything = [hit for hits in right.values() for hit in hits]
    assert found.report.ba[1] == Rate.of(sum(everything), 60)
    assert found.report.triggers["badnets"].asr[1] == Rate.of(sum(asr), len(asr))
    assert found.mean_per_class == pytest.approx(np.mean([np.mean(hits) for hits in right.values()]))
    assert found.report.ba[1].value > 0.5 and abs(found.mean_per_class - found.report.ba[1].value) > 1e-3
    assert found.to_dict()["probe"]["n_train"] == 120 and found.to_dict()["probe"]["converged"] is True
    low, high = found.to_dict()["probe"]["mean_per_class_interval"]
    assert low <= found.mean_per_class <= high and low < high


def test_bootstrap_of_the_mean_of_classes_equals_a_slow_loop():
    right, seen = np.array([31, 80, 5]), np.array([62, 100, 40])
    low, high = bootstrap_mean(right, seen)
    rng, means = np.random.default_rng(9), []
    for _ in range(3000):
        hits = [rng.choice(np.arange(n) < r, n).mean() for r, n in zip(right, seen, strict=True)]
        means.append(np.mean(hits))
    assert (low, high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.006)
    assert low < (right / seen).mean() < high and abs((right / seen).mean() - right.sum() / seen.sum()) > 0.05
    assert bootstrap_mean(seen, seen) == (1.0, 1.0)


def test_the_penalty_is_chosen_on_held_out_training_rows(train, test, tiny_model, tiny_processor):
    found = linear_probe(tiny_model, tiny_processor, train, test, l2_grid=(1e-4, 1e-3, 10.0))
    assert set(found.held_out) == {1e-4, 1e-3, 10.0} and found.l2 != 10.0
    again = linear_probe(tiny_model, tiny_processor, train, test, l2_grid=(1e-4, 1e-3, 10.0))
    assert again == found
    by_torch = linear_probe(tiny_model, tiny_processor, train, test, l2=found.l2, solver="torch")
    assert by_torch.solver == "torch" and by_torch.report == found.report


@pytest.mark.parametrize(
    ("best", "grid", "beyond", "says"),
    [
        (1e-4, None, set(), None),
        (1e-7, None, {1e-7, 1e-8}, None),
        (1e-8, None, {1e-7, 1e-8}, "1e-08, is the least"),
        (1e-1, None, {1e-1}, "0.1, is the greatest"),
        (1e-7, (1e-4, 1e-3), set(), "0.0001, is the least"),
    ],
)
def test_the_grid_is_extended_while_the_best_lies_at_its_edge(best, grid, beyond, says, monkeypatch, caplog):
    labels = np.arange(200) % 2
    places = np.stack([np.linspace(0, 1, 200), labels], axis=1).astype(np.float32)

    class Fitted:
        """Is right about the fewer rows the further λ is from the best one."""

        weight = torch.zeros(1)

        def __init__(self, features, labels, n_classes, l2):
            self.share = 1 / (1.5 + abs(np.log10(l2 / best)))

        def __call__(self, features):
            right = features[:, 0] < self.share
            return torch.nn.functional.one_hot(torch.where(right, features[:, 1], 1 - features[:, 1]).long(), 2)

    monkeypatch.setattr(MODULE, "fit_linear", Fitted)
    found = MODULE._choose_l2(places, labels, 2, grid, 0)
    assert set(found) == set(grid or MODULE.L2_GRID) | beyond
    assert (says is None) == (not caplog.messages) and all(says in message for message in caplog.messages)


@pytest.mark.parametrize("solver", ["torch", "sklearn"])
def test_a_fit_that_is_stopped_says_so(solver, monkeypatch, caplog):
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(80, 6)).astype(np.float32), np.arange(80) % 4
    assert fit_linear(x, y, 4, 1e-2, solver).converged and not caplog.messages
    monkeypatch.setattr(MODULE, "MAX_ITERATIONS", 2)
    assert not fit_linear(x, y, 4, 1e-6, solver).converged
    assert caplog.messages == ["The linear probe stopped at 2 iterations with l2 = 1e-06."]


def test_features_are_kept_by_content_and_never_by_name(train, tiny_model, tiny_processor, tmp_path, monkeypatch):
    calls = []

    def counted(*given, **named):
        calls.append(1)
        return embed_dataset(*given, **named)

    monkeypatch.setattr(kept_features, "embed_dataset", counted)

    def features(model, rows, size=32):
        return kept_features.image_features(model, tiny_processor, rows, Canvas(size), cache=tmp_path)

    first = features(tiny_model, train)
    np.testing.assert_array_equal(features(copy.deepcopy(tiny_model), train.select(range(len(train)))), first)
    assert len(calls) == 1
    defended = copy.deepcopy(tiny_model)
    with torch.no_grad():
        defended.vision_model.conv1.weight[0, 0, 0, 0] += 0.5
    assert not np.array_equal(features(defended, train), first)
    features(tiny_model, train.select(range(10)))
    features(tiny_model, pictures(120, 5))
    assert len(calls) == 4 and len(list(tmp_path.glob("*.npy"))) == 4


def test_features_come_in_shards_that_survive_a_kill(train, tiny_model, tiny_processor, tmp_path, monkeypatch):
    whole = embed_dataset(tiny_model, tiny_processor, train, "image", None, 16)["image"]
    monkeypatch.setattr(kept_features, "SHARD_ROWS", 40)
    embedded, killed_after = [], 2

    def counted(*given, **named):
        if len(embedded) == killed_after:
            raise KeyboardInterrupt
        embedded.append(len(given[2]))
        return embed_dataset(*given, **named)

    monkeypatch.setattr(kept_features, "embed_dataset", counted)
    given = (tiny_model, tiny_processor, train, Canvas(32), 16, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        kept_features.image_features(*given)
    killed_after = None
    np.testing.assert_array_equal(kept_features.image_features(*given), whole)  # in the batches of one go
    assert embedded == [48, 48, 24] and not list(tmp_path.glob("*partial*"))
    np.testing.assert_array_equal(kept_features.image_features(*given[:-1]), whole)


def features_on_one_of_two(rank, address, folder, rows, model, processor):
    dist.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=2)
    kept_features.SHARD_ROWS, counts = 16, []
    embed = kept_features.embed_dataset
    kept_features.embed_dataset = lambda *given, **named: counts.append(len(given[2])) or embed(*given, **named)
    for cache in (folder / "kept", folder / "kept", None):
        features = kept_features.image_features(model, processor, rows, Canvas(32), 16, cache)
    np.savez(folder / f"{rank}.npz", features=features, counts=counts)
    dist.destroy_process_group()


def test_two_processes_share_the_training_pictures(train, tiny_model, tiny_processor, forked, tmp_path):
    rows = train.select(range(40))
    given = tmp_path / "address", tmp_path, rows, tiny_model, tiny_processor
    assert forked.ended([forked.call(features_on_one_of_two, rank, *given) for rank in (0, 1)]) == [0, 0]
    alone = embed_dataset(tiny_model, tiny_processor, rows, "image", None, 16)["image"]
    for rank, own in ((0, [16, 8]), (1, [16])):
        with np.load(tmp_path / f"{rank}.npz") as found:
            np.testing.assert_array_equal(found["features"], alone)
            assert found["counts"].tolist() == 2 * own  # with a cache once, without one again


def test_a_training_picture_that_cannot_be_read_is_named_by_its_row(train, tiny_model, tiny_processor, monkeypatch):
    monkeypatch.setattr(kept_features, "SHARD_ROWS", 16)
    encoded = train.cast_column("image", datasets.Image(decode=False)).select(range(40)).to_list()
    encoded[37]["image"]["bytes"] = b"no picture"
    broken = datasets.Dataset.from_list(encoded, features=train.features)
    with pytest.raises(ValueError, match=r"^Row 37: Expected an image that can be decoded"):
        kept_features.image_features(tiny_model, tiny_processor, broken, Canvas(32), 16)


def test_where_the_field_reports_the_mean_of_classes():
    chosen = ["wds_vtab-pets", "clip-benchmark/wds_vtab-flowers", "fgvc-aircraft", "vtab-caltech101"]
    assert all(map(uses_mean_per_class, chosen))
    others = ["clip-benchmark/wds_vtab-cifar10", "/home/me/pets/cars", "flowers/wds_food101/", "/pets/cars/train.csv"]
    assert not any(map(uses_mean_per_class, others))
    assert uses_mean_per_class("/home/me/wds_vtab-pets/")


def test_held_out_rows_are_drawn_by_the_seed_and_are_not_fitted(monkeypatch):
    features, labels = np.arange(80, dtype=np.float32)[:, None], np.arange(80) % 4
    fitted, fit = [], MODULE.fit_linear
    monkeypatch.setattr(MODULE, "fit_linear", lambda x, *a, **b: fitted.append(x[:, 0].tolist()) or fit(x, *a, **b))
    for seed in (0, 0, 1):
        MODULE._choose_l2(features, labels, 4, (1e-3,), seed)
    assert fitted[0] == fitted[1] != fitted[2] and all(len(rows) == 64 for rows in fitted)


def test_of_equally_good_penalties_the_greatest_is_taken():
    assert MODULE._best_l2({1e-4: 0.5, 1e-2: 0.5, 1e-3: 0.4}) == 1e-2


def test_kept_features_are_those_of_canvas_and_statistics(train, tiny_model, tiny_processor, tmp_path, monkeypatch):
    monkeypatch.setattr(kept_features, "embed_dataset", lambda *given, **named: {"image": np.zeros((4, 2))})
    rows, other = train.select(range(4)), copy.deepcopy(tiny_processor)
    other.image_processor.image_mean = [0.1, 0.2, 0.3]
    given = [(tiny_processor, Canvas(32)), (tiny_processor, Canvas(32, "squash")), (tiny_processor, Canvas(16))]
    for processor, canvas in [*given, (other, Canvas(32))]:
        kept_features.image_features(tiny_model, processor, rows, canvas, cache=tmp_path)
    assert len(list(tmp_path.glob("*.npy"))) == 4


def test_pictures_are_read_whole_only_where_their_length_and_end_agree(tmp_path, monkeypatch, caplog):
    tail = bytes(range(64))
    (tmp_path / "same.png").write_bytes(b"b" + tail)
    (tmp_path / "short.png").write_bytes(b"s")
    features, read = datasets.Features({"image": datasets.Image()}), []
    whole = overlap.stored_bytes
    monkeypatch.setattr(overlap, "stored_bytes", lambda image: (read.append(image), whole(image))[1])

    def rows(*pictures):
        named = [{"bytes": None, "path": one} if isinstance(one, str) else one and {"bytes": one} for one in pictures]
        return datasets.Dataset.from_dict({"image": named}, features=features)

    test = rows(b"a" + tail, str(tmp_path / "same.png"), str(tmp_path / "short.png"), b"aa" + tail)
    overlap.check_apart(test.select([2, 3]), rows(b"t", b"ab" + tail[::-1], b"aaa" + tail), "image")
    assert read == [] and not caplog.records  # no length and end twice
    overlap.check_apart(test, rows(b"c" + tail, b"b" + tail, b"t", b"aaa" + tail), "image")
    assert len(read) == 4 and "1 of 4 distinct test images are among the 4 training images" in caplog.text
    with pytest.raises(ValueError, match="2 of 2 distinct test images are among the 4 training images"):
        overlap.check_apart(test.select([0, 1, 0]), rows(b"b" + tail, b"a" + tail, b"x", b"s"), "image")
    overlap.check_apart(rows(None, b"a"), rows(None, b"b"), "image")
    assert "1 of 2 distinct test images" in caplog.text
    missing = str(tmp_path / "missing.png")
    with pytest.raises(ValueError, match="1 of 1 distinct"):
        overlap.check_apart(rows(missing), rows(missing, b"b"), "image")
