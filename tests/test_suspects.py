# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The page of suspects: what is above the threshold comes first, and what is below it says so; pictures in copies."""

import re

import datasets
import numpy as np
import PIL.Image
import pytest

from hf_clipbd.detection.groups import Group, Reference
from hf_clipbd.detection.threshold import Cut
from hf_clipbd.recipe import suspects as review
from hf_clipbd.recipe.copies import copied_groups, highest_of_copies, in_order
from hf_clipbd.report.suspects import Suspects, write_suspects


SCORES = np.array([0.1, 0.2, 9.0, 8.0, 0.3, 7.0, 0.4, 0.5, 6.0, 0.6])
UNDER, HALF, OVER = Group((0, 1), 9.0), Group((4, 5), 5.0), Group((2, 3), 3.0)


@pytest.fixture
def page(tmp_path):
    """Return a function that writes the page of these groups and returns its text."""

    def write(*groups):
        suspects = Suspects("pairs", "victim", "slof", SCORES, Cut(6.0, 10, 4, 1.0), groups)
        path = write_suspects(
            tmp_path / "page.html", suspects, lambda row: (PIL.Image.new("RGB", (4, 4)), f"caption {row}")
        )
        return path.read_text("utf-8")

    return write


def rows(text):
    return [int(row) for row in re.findall(r'alt="Picture of row (\d+)"', text)]


def test_groups_below_the_threshold_come_last_and_the_rest_keeps_its_order(page):
    text = page(UNDER, HALF, OVER, Group((6,), 2.0), Group((8,), 1.0), Group((7,), 0.5))
    groups, singles = text.split('<h2 id="singles">')
    assert rows(groups) == [4, 5, 2, 3, 0, 1] and rows(singles) == [8, 7, 6]
    above, below = groups.split("Below the threshold</h3>")
    assert rows(above) == [4, 5, 2, 3] and rows(below) == [0, 1]
    assert re.findall(r"<h3>(\d+)\. 2 pictures", groups) == ["1", "2", "3"]
    assert "1 of 2 are above the threshold" in above and "0 of 2 are above the threshold" in below
    assert "1 below the threshold</dd>" in groups and "come last" in singles


@pytest.mark.parametrize("groups", [(HALF, OVER), (OVER,), ()])
def test_nothing_is_said_of_the_threshold_where_all_are_above(page, groups):
    text = page(*groups, Group((8,), 1.0))
    assert "Below the threshold" not in text and "come last" not in text
    assert rows(text) == [row for group in groups for row in group.rows] + [8]


def test_all_below(page):
    text = page(UNDER)
    assert text.index("Below the threshold</h3>") < text.index("1. 2 pictures")


@pytest.mark.parametrize(("normalize", "together"), [(True, True), (False, False)], ids=["unit", "raw"])
def test_groups_are_those_of_the_geometry_and_the_place_of_the_scores(normalize, together, tmp_path, monkeypatch):
    rng = np.random.default_rng([6])
    images = rng.normal(size=(60, 16)).astype(np.float32)
    lengths = np.float32([[4], [16]])
    images[1:3] = images[0] * lengths + 0.001 * rng.normal(size=(2, 16))
    columns = {"image": [PIL.Image.new("RGB", (4, 4))] * 60, "caption": [f"row {i}" for i in range(60)]}
    kinds = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    pairs = datasets.Dataset.from_dict(columns, kinds)
    places, sample = [], Reference.sample

    def drawn(features, device, **options):
        places.append(device)
        return sample(features, **options)

    monkeypatch.setattr(Reference, "sample", drawn)
    monkeypatch.setattr(review, "scoring_place", lambda: {"device": "cuda:1", "distributed": True})
    features = {"image": images, "text": images, "picture": np.arange(60)}
    given = pairs, pairs, features, {"slof": -np.arange(60.0)}, review.Review(filtered=False), 0, tmp_path
    found = review.write_review(("pairs", "victim"), *given, normalize=normalize)[0]["groups"]
    assert places == ["cuda:1"] and any({0, 1, 2} <= set(group["rows"]) for group in found) == together


# -- one picture in many rows -----------------------------------------------------------------------------------------


def test_copies_get_the_highest_score_of_their_picture():
    rng = np.random.default_rng([4])
    scores, first = rng.normal(size=60), np.arange(60)
    first[[9, 20, 31]], first[50] = 4, 12
    expected = [max(scores[other] for other in range(60) if first[other] == first[row]) for row in range(60)]
    np.testing.assert_array_equal(highest_of_copies(scores, first), expected)


def test_pictures_whose_captions_agree_are_groups():
    rng = np.random.default_rng([5])
    texts = rng.normal(size=(900, 32)).astype(np.float32)
    first, captions = np.arange(900), [f"caption {i}" for i in range(900)]
    agreeing, placeholder, same = [3, 100, 101, 102, 103, 104], list(range(200, 230)), [40, 300]
    chance = [[400 + 2 * i, 401 + 2 * i] for i in range(200)]  # twice, with nothing in common
    copies = [placeholder, agreeing, same, *chance]
    for rows in copies:
        first[rows] = rows[0]
    texts[agreeing] = 7 * (texts[3] + 0.3 * rng.normal(size=(6, 32)))
    texts[300], captions[40], captions[300], captions[800] = texts[40], "One  thing", "one thing", "ONE THING"
    scores = highest_of_copies(rng.normal(size=900), first)
    groups = copied_groups(copies, scores, first, texts, captions)
    assert [group.rows for group in groups[:2]] == [tuple(agreeing), tuple(same)] and len(groups) <= 6
    assert groups[0].caption is None and (groups[1].caption, groups[1].repeats) == ("One  thing", 3)
    assert groups[0].surprise > groups[1].surprise > np.log(len(copies))
    assert copied_groups(copies, scores, first, texts, captions, most=1) == groups[:1]
    assert copied_groups([], scores, first, texts, captions) == []
    ordered = in_order([Group((8,), 99.0), HALF, *groups])
    assert ordered == [*sorted([HALF, *groups], key=lambda group: -group.surprise), Group((8,), 99.0)]


def test_a_copied_picture_and_unreadable_rows_on_the_page(tmp_path):
    scores = np.array([1.0, 9.0, 1.0, np.nan, 9.0, 2.0])
    suspects = Suspects(
        "pairs",
        "victim",
        "slof",
        scores,
        Cut(6.0, 3, 1, 0.5),
        [Group((1, 4), 5.0), Group((5,), 1.0)],
        [[1, 4], [0, 2]],
        None,
        {3: "Expected an image, but the row has <none>."},
    )
    path = write_suspects(tmp_path / "page.html", suspects, lambda row: (PIL.Image.new("RGB", (4, 4)), f"said {row}"))
    text = path.read_text("utf-8")
    assert suspects.n_removed == 2 and suspects.ranks[[1, 4, 5, 0, 2]].tolist() == [1, 1, 2, 3, 3]
    assert "One picture in 2 rows, rank 1</h3>" in text and "2 of 2 are above the threshold" in text
    assert "<li>row 3: Expected an image, but the row has &lt;none&gt;.</li>" in text
    assert text.index('id="unreadable"') < text.index('id="threshold"')
