# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The one place where tables are laid out, and that nobody lays them out elsewhere."""

import re
from pathlib import Path

import pytest

from hf_clipbd.evaluation.comparison import compare, render
from hf_clipbd.schema import EvalReport, Rate
from hf_clipbd.tables import aligned, markdown


SOURCES = Path(__file__).resolve().parents[1] / "src" / "hf_clipbd"


@pytest.mark.parametrize(
    ("text_columns", "ruler"),
    [(0, "| --: | --: |"), (1, "| :-- | --: |"), (2, "| :-- | :-- |"), (None, "| --- | --- |")],
)
def test_columns_of_text_go_to_the_left(text_columns, ruler):
    assert markdown(["a", "b"], iter([["c", "1"]]), text_columns) == f"| a | b |\n{ruler}\n| c | 1 |"


def test_a_bar_in_a_name_makes_no_column():
    rate = Rate.of(3, 4)
    shown = render(compare({"ours|best": EvalReport(ba={1: rate}, triggers={}, n_classes=2)}), "markdown")
    assert r"ours\|best" in shown
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in shown.splitlines()} == {10}
    assert markdown(["a|b"], []) == "| a\\|b |\n| :-- |"


def test_columns_are_as_wide_as_their_widest_text():
    shown = aligned(["model", "BA"], [["a", "100.0"], ["ft", "5"]], text_columns=1)
    assert shown.splitlines() == ["model     BA", "-----  -----", "a      100.0", "ft         5"]
    assert aligned(["model", "BA"], []) == "model  BA\n-----  --"


def test_no_other_file_lays_out_a_table():
    laid_out = [path.name for path in SOURCES.rglob("*.py") if '" | ".join(' in path.read_text("utf-8")]
    assert laid_out == ["tables.py"]
