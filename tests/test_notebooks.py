# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The notebooks run from top to bottom in a kernel of their own, and are committed without outputs."""

import json
from pathlib import Path

import pytest


NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))
SHOWS = {"poison_and_defend": "ASR@1", "detect_backdoors": "AUROC"}
SMALLER = {"n=1600": "n=640", "count=160": "count=64", "n=1024": "n=320"}
"""Rows as committed -> rows in the test, as few as leave one poisoned row at a rate of 0.1 %; all else is as it is."""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_a_notebook_is_committed_without_outputs(path):
    cells = json.loads(path.read_text("utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 5 and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_a_notebook_runs_from_top_to_bottom(path, tmp_path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        for rows, fewer in SMALLER.items():
            cell.source = cell.source.replace(rows, fewer)
    nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []) if "text" in output
    )
    assert SHOWS[path.stem] in printed
    assert list(tmp_path.iterdir()) == []  # what it writes goes to a folder of its own


def test_there_are_two():
    assert [path.stem for path in NOTEBOOKS] == sorted(SHOWS)
