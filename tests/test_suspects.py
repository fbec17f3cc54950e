# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The page of suspects: what is above the threshold comes first, and what is below it says so."""

import re

import numpy as np
import PIL.Image
import pytest

from hf_clipbd.detection.groups import Group
from hf_clipbd.detection.threshold import Cut
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
