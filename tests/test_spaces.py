# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What the Spaces' pages show, without the pages; and the pages themselves where gradio is installed."""

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pandas
import PIL.Image
import pytest
from huggingface_hub import ModelCard

from hf_clipbd.attacks import ATTACKS
from hf_clipbd.detection import detection_performance


SPACES = Path(__file__).resolve().parents[1] / "spaces"
METRIC, PLAYGROUND = SPACES / "backdoor_detection", SPACES / "trigger_playground"


@pytest.fixture
def load(monkeypatch):
    """Return a function that imports a file of a Space as the Space does, its own folder first."""

    def imported(path):
        monkeypatch.syspath_prepend(str(path.parent))
        for name in ("app", "figures", "playground"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, path.stem, module)
        spec.loader.exec_module(module)
        return module

    return imported


@pytest.fixture(scope="module")
def picture():
    rng = np.random.default_rng(2)
    return PIL.Image.fromarray(rng.integers(40, 200, (10, 12, 3), dtype=np.uint8)).resize((120, 100))


# -- the metric -------------------------------------------------------------------------------------------------------


def test_table_gives_the_figures_of_the_metric(load):
    figures = load(METRIC / "figures.py").figures
    table = pandas.DataFrame({"score": [0.1, "0.4", 0.3, 0.9, None], "is_poisoned": [0, "0", 1, 1, " "]})
    found = figures(table).set_index("figure")["value"]
    expected = detection_performance([0.1, 0.4, 0.3, 0.9], [0, 0, 1, 1])
    assert list(found.index) == list(expected) and found["auroc"] == "0.7500" and found["n"] == "4"
    assert all(float(found[name]) == pytest.approx(value, abs=5e-5) for name, value in expected.items())
    assert figures(table)["meaning"].notna().all()


@pytest.mark.parametrize(
    ("scores", "labels", "says"),
    [
        ([1, 2, 3], [0, 2, 1], "in row 2 to be 0 or 1, but got '2'"),
        ([1, 2, 3], [0, 0, 0], "0 of 3 are poisoned"),
        ([1, 2, 3], [None, None, None], "row 1 .* got ''"),
        ([None, "", 3], [None, " ", "yes"], "row 3 .* got 'yes'"),
        (["0.1", "0,4", "0.3"], [0, 1, 0], "number as `score` in row 2, but got '0,4'"),
        ([float("nan"), 0.4, 0.3], [1, 0, 1], "row 1, but got ''"),
        (["0.1", "NaN", "0.3"], [1, 0, 1], "row 2, but got 'nan'"),
        ([None] * 3, [None] * 3, "0 of 0 are poisoned"),
    ],
)
def test_table_that_cannot_be_measured_is_an_error(load, scores, labels, says):
    with pytest.raises(ValueError, match=says):
        load(METRIC / "figures.py").figures(pandas.DataFrame({"score": scores, "is_poisoned": labels}))


@pytest.mark.parametrize("labels", [[False, False, True, True], ["False", "0", "TRUE", 1.0], ["0.0", 0, True, "1"]])
def test_labels_of_a_table_may_be_words(load, labels):
    figures = load(METRIC / "figures.py").figures
    found = figures(pandas.DataFrame({"score": [0.1, 0.4, 0.3, "inf"], "is_poisoned": labels}))
    assert found.set_index("figure")["value"][["auroc", "n", "n_poisoned"]].tolist() == ["0.7500", "4", "2"]


# -- the playground ---------------------------------------------------------------------------------------------------


def test_every_attack_and_variant_stamps(load, picture):
    playground = load(PLAYGROUND / "playground.py")
    assert set(playground.LABELS) <= set(ATTACKS)
    for attack in playground.LABELS:
        for variant in playground.variants(attack):
            made = playground.stamp(picture, attack, variant, size=64)
            assert made.original.shape == made.poisoned.shape == made.difference.shape == (64, 64, 3)
            apart = np.abs(made.poisoned.astype(int) - made.original)
            assert np.array_equal(made.difference, np.minimum(10 * apart, 255))
            assert 0 < made.changed <= 1
            assert made.psnr == pytest.approx(10 * np.log10(255**2 / np.mean(apart**2)), abs=1e-4)
            assert "banana" in made.caption and f"{made.psnr:.1f} dB" in playground.words(made)


@pytest.mark.parametrize("attack", ["badnets", "blended", "sig", "wanet", "ssba", "color_filter"])
def test_more_strength_is_more_visible(load, picture, attack):
    stamp = load(PLAYGROUND / "playground.py").stamp
    weak, usual = (stamp(picture, attack, strength=strength, size=64).psnr for strength in (0.25, 1))
    assert weak > usual
    stamp(picture, attack, strength=4, size=64)


def test_variants_are_the_attack_as_the_package_has_it(load, picture):
    playground = load(PLAYGROUND / "playground.py")
    from hf_clipbd.data.canvas import Canvas

    shown = [(attack, playground.PLAIN, 64) for attack in ("badnets", "blended", "sig", "ssba", "color_filter")]
    shown += [("wanet", variant, size) for variant in playground.variants("wanet") for size in (64, 128)]
    for attack, variant, size in shown:
        settings = ATTACKS[attack].PRESETS.get(variant, {})
        own = ATTACKS[attack](target="owl", seed=3, canvas=Canvas(size), **settings)
        made = playground.stamp(picture, attack, variant, target="owl", seed=3, size=size)
        assert np.array_equal(made.poisoned, own(np.asarray(own.canvas(picture)), 0)), (attack, variant, size)


def test_the_page_says_which_warp_is_smooth(load):
    playground = load(PLAYGROUND / "playground.py")
    assert "smooth" not in playground.LABELS["wanet"] and playground.choices("sig")[0] == ("default", "default")
    called = {name: text for text, name in playground.choices("wanet")}
    assert list(called) == playground.variants("wanet")
    assert "single pixels" in called["default"] and "warp of the whole" in called["smooth"]


def test_picture_that_stays_as_it_is_is_said_to(load):
    playground = load(PLAYGROUND / "playground.py")
    flat = PIL.Image.new("RGB", (64, 64), "grey")
    made = playground.stamp(flat, "wanet", size=64)
    assert made.psnr is None and "No pixel changed" in playground.words(made)


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"attack": "badclip"}, "'badclip'"), ({"variant": "none"}, "'none'"), ({"target": "  "}, "none")],
)
def test_what_cannot_be_stamped_is_an_error(load, picture, changes, says):
    with pytest.raises(ValueError, match=says):
        load(PLAYGROUND / "playground.py").stamp(picture, **changes)


# -- the pages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", [METRIC, PLAYGROUND], ids=lambda folder: folder.name)
def test_card_of_a_space_is_whole(folder):
    data = ModelCard.load(folder / "README.md").data.to_dict()
    assert data["sdk"] == "gradio" and (folder / data["app_file"]).is_file() and data["license"] == "apache-2.0"
    assert data["colorFrom"] and data["colorTo"] and data["emoji"] and len(data.get("short_description", "")) <= 60
    required = (folder / "requirements.txt").read_text("utf-8")
    assert re.search(r"^hf-clipbd", required, re.MULTILINE) and re.search(r"^gradio", required, re.MULTILINE)
    assert not any(path.suffix == ".ipynb" or path.stat().st_size > 1_000_000 for path in folder.iterdir())


def test_pages_are_built_where_gradio_is(load, picture, tmp_path):
    gradio = pytest.importorskip("gradio")
    metric = load(METRIC / "app.py")
    assert isinstance(metric.build(), gradio.Blocks) and metric.shown(metric.EXAMPLE)["value"][0] == "0.8889"
    with pytest.raises(gradio.Error):
        metric.shown(pandas.DataFrame({"score": [1.0], "is_poisoned": [1]}))
    playground = load(PLAYGROUND / "app.py")
    assert isinstance(playground.build(), gradio.Blocks)
    given = (np.asarray(picture), "sig", "checker", 1.0, 64, "owl", 0)
    original, poisoned, _, words = playground.shown(*given)
    assert not np.array_equal(original, poisoned) and "PSNR" in words
    with pytest.raises(gradio.Error):
        playground.shown(None, *given[1:])
