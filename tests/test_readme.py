# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What the README shows: its Python runs from top to bottom, its files and make targets exist."""

import re
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_python_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = blocks("python")
    assert len(code) >= 5
    names = {}
    for number, block in enumerate(code, 1):
        exec(compile(block, f"README.md, Python block {number}", "exec"), names)
    assert "auroc" in capsys.readouterr().out
    written = {path.name for path in tmp_path.iterdir()}
    assert written and written.isdisjoint(folders_of_the_quickstart())  # both can be followed in one folder


def folders_of_the_quickstart():
    """Return the first part of every `--out` of the quickstart; a folder that holds anything else is refused there."""
    text = (ROOT / "docs" / "quickstart.md").read_text("utf-8")
    return {Path(folder).parts[0] for folder in re.findall(r"--out (\S+)", text)}


def test_the_quickstart_names_folders():
    assert {"poisoned", "victim", "defended", "measured", "found"} <= folders_of_the_quickstart()


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^):#]+)\)", README))))
def test_linked_files_exist(link):
    assert (ROOT / link).is_file()


def test_make_targets_and_recipes_exist():
    shell = "\n".join(blocks("bash"))
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^make (\w+)", shell, re.MULTILINE)
    scripts = re.findall(r"recipes/\w+\.py", shell)
    assert targets and scripts
    assert [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []
    assert [script for script in scripts if not (ROOT / script).is_file()] == []
