# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The gallery: what it shows, and its PSNR and SSIM against slow formulas."""

import math
import runpy
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from scipy.ndimage import gaussian_filter

from hf_clipbd.attacks import SIG, BadNets, Blended
from hf_clipbd.attacks import gallery as module
from hf_clipbd.attacks.gallery import trigger_visibility, visibility, write_gallery
from hf_clipbd.data.canvas import Canvas
from hf_clipbd.schema import RunRecord
from test_attacks import photo


pytest.importorskip("torchmetrics")


def slow_ssim(one, other):
    """Return the mean SSIM over channels and pixels, the picture mirrored at its borders, in [0, 1] pixels."""
    values = []
    for channel in range(3):
        x, y = one[..., channel] / 255, other[..., channel] / 255

        def mean(picture):
            return gaussian_filter(picture, 1.5, truncate=5 / 1.5, mode="mirror")

        mx, my = mean(x), mean(y)
        vx, vy, vxy = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
        c1, c2 = 0.01**2, 0.03**2
        index = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
        values.append(index.mean())
    return float(np.mean(values))


def test_figures_against_slow_formulas():
    originals = [photo(32, 40, seed) for seed in (1, 2)]
    stamped = [Blended(alpha=0.1)(one) for one in originals]
    seen = visibility(originals, stamped)
    decibels = []
    for before, after in zip(originals, stamped, strict=True):
        mse = sum((int(a) - int(b)) ** 2 for a, b in zip(after.flat, before.flat, strict=True)) / before.size
        decibels.append(10 * math.log10(255**2 / mse))
    assert seen.psnr == pytest.approx(np.mean(decibels), abs=1e-4) and seen.n == 2
    assert seen.ssim == pytest.approx(
        np.mean([slow_ssim(*pair) for pair in zip(originals, stamped, strict=True)]), abs=1e-3
    )


def test_the_canvas_does_not_count():
    picture = photo(50, 70)
    framed = np.asarray(Canvas(32)(PIL.Image.fromarray(picture)))
    with_canvas = trigger_visibility(SIG(canvas=Canvas(32)), [picture])
    assert with_canvas == trigger_visibility(SIG(), [framed])


def test_the_picture_shows_original_stamped_and_ten_times_the_difference(tmp_path):
    originals = [photo(24, 30, seed) for seed in (1, 2, 3)]
    attacks = {"patch": BadNets(patch_size=4, place="middle"), "wave": SIG(delta=2 / 255)}
    record = write_gallery(tmp_path, attacks, {"photos": originals}, shown=2, zoom=1)
    sheet = np.asarray(PIL.Image.open(tmp_path / "gallery.png"))
    assert RunRecord.load(tmp_path).metrics == record.metrics and record.metrics["wave"]["photos"]["n"] == 3
    top = 6 + 14
    for number, attack in enumerate(attacks.values()):
        y = top + number * (24 + 14 + 6)
        for shown in range(2):
            x = 6 + shown * (90 + 6)
            cells = [sheet[y : y + 24, x + 30 * place : x + 30 * (place + 1)].astype(int) for place in range(3)]
            np.testing.assert_array_equal(cells[0], originals[shown])
            np.testing.assert_array_equal(cells[1], attack(originals[shown], shown))
            np.testing.assert_array_equal(cells[2], np.minimum(10 * np.abs(cells[1] - cells[0]), 255))


def test_the_recipe_shows_scenes_and_photographs(tiny_pairs, tmp_path, capsys):
    tiny_pairs.to_parquet(tmp_path / "photos.parquet")
    show = runpy.run_path(str(Path(__file__).parent.parent / "recipes" / "gallery.py"))["show"]
    given = (
        f"--output_dir {tmp_path} --photos {tmp_path / 'photos.parquet'} --size 32 --n 3 --shown 1 --attacks sig wanet"
    )
    assert show(given.split()) == 0
    metrics = RunRecord.load(tmp_path).metrics
    assert list(metrics) == ["sig", "wanet"] and list(metrics["sig"]) == ["scenes", "photographs"]
    assert "PSNR" in capsys.readouterr().out
    SIG(delta=0.1).save_pretrained(tmp_path / "mine")
    assert show(f"--output_dir {tmp_path} --triggers {tmp_path / 'mine'} --size 32 --n 2".split()) == 0
    assert list(RunRecord.load(tmp_path).metrics) == ["mine"]
    with pytest.raises(ValueError, match="Unknown key `attack`; did you mean `attacks`"):
        show(["--attack", "sig"])
    with pytest.raises(ValueError, match="Unknown --attacks 'sog'; did you mean `sig`"):
        show(["--attacks", "sog"])


def test_a_picture_that_its_trigger_leaves_alone_does_not_count(tmp_path, caplog):
    yellow, originals = np.full((24, 24, 3), (255, 255, 0), np.uint8), [photo(24, 24, seed) for seed in (1, 2)]
    attack = BadNets(patch_size=4, pattern="yellow")
    with caplog.at_level("WARNING"):
        seen = trigger_visibility(attack, [originals[0], yellow])
    assert seen == trigger_visibility(attack, originals[:1]) and seen.n == 1
    assert "Picture 1 is as before" in caplog.text
    record = write_gallery(tmp_path, {"patch": attack}, {"photos": [yellow, *originals]})
    assert record.metrics["patch"]["photos"]["n"] == 2


def test_what_cannot_be_shown(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="each of 1 is as before"):
        visibility([photo()], [photo()])
    with pytest.raises(ValueError, match="as many"):
        visibility([photo()], [])
    with pytest.raises(ValueError, match="in its size"):
        visibility([photo(20, 20)], [photo(20, 22)])
    with pytest.raises(ValueError, match="pictures to show"):
        write_gallery(tmp_path, {"wave": SIG()}, {"photos": []})
    monkeypatch.setitem(__import__("sys").modules, "torchmetrics.functional.image", None)
    with pytest.raises(ImportError, match=r"hf-clipbd\[gallery\]"):
        module.visibility([photo()], [photo()])
