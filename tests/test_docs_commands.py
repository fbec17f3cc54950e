# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""README and docs followed by copy and paste: each command is run, or documented_commands.py says why not."""

import csv
import io
import re
import runpy
import shlex
import sys
import tarfile

import numpy as np
import PIL.Image
import pytest

from documented import ROOT
from documented_commands import AFTER_QUICKSTART, ALONE, NOT_RUN, ON_PICTURES, documented_commands
from hf_clipbd.cli import main
from hf_clipbd.schema import PoisonManifest


COMMANDS = documented_commands()


def test_every_command_is_run_or_says_why_not():
    assert [command for command in COMMANDS if not command.run and not command.reason] == []
    assert len(COMMANDS) >= 45 and sum(bool(command.run) for command in COMMANDS) >= 19


def test_nothing_is_listed_that_is_not_shown():
    lines = {command.line for command in COMMANDS}
    assert {*ALONE, *ON_PICTURES, *AFTER_QUICKSTART} <= lines
    left = [command.line for command in COMMANDS if not command.run]
    taken = [next(pattern for pattern, _ in NOT_RUN if re.match(pattern, line)) for line in left]
    assert [pattern for pattern, _ in NOT_RUN if pattern not in taken] == []


def run(line, monkeypatch):
    """Run a command line in this process and return its exit status."""
    words = shlex.split(line)
    if words[0] == "hf-clipbd":
        try:
            return main(words[1:])
        except SystemExit as stop:  # argparse's own --help
            return stop.code
    assert words[:2] == ["accelerate", "launch"]
    monkeypatch.setattr(sys, "argv", words[2:])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(words[2], run_name="__main__")
    return stop.value.code


@pytest.mark.parametrize("line", ALONE)
def test_it_runs_in_an_empty_folder(line, tmp_path, monkeypatch, capsys):
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    assert run(line, monkeypatch) in (0, None)
    assert len(capsys.readouterr().out) > 100
    assert [path.name for path in tmp_path.iterdir()] == ["recipes"]  # none of these writes anything


def jpeg(row):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(row).integers(0, 256, (16, 18, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def table(path, header, rows, delimiter):
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Return a folder with the sources that the pages name: pictures, CC3M's table of them, and shards."""
    folder = tmp_path_factory.mktemp("sources")
    (folder / "photos").mkdir()
    (folder / "cc3m").mkdir()
    (folder / "shards").mkdir()
    captions = [f"a thing of number {row}" for row in range(400)]
    for row in range(400):
        (folder / "photos" / f"{row}.jpg").write_bytes(jpeg(row))
    names = [f"{row}.jpg" for row in range(400)]
    table(folder / "photos" / "metadata.csv", ["file_name", "caption"], zip(names, captions, strict=True), ",")
    (folder / "cc3m" / "images").symlink_to(folder / "photos")
    rows = [[f"images/{row % 400}.jpg", f"{captions[row % 400]}, seen {row}"] for row in range(1600)]
    table(folder / "cc3m" / "Train.tsv", ["image", "caption"], rows, "\t")
    for shard in range(332):
        with tarfile.open(folder / "shards" / f"{shard:05d}.tar", "w") as archive:
            for number in range(3):
                key = f"{shard:05d}{number}"
                for suffix, data in (("jpg", jpeg(shard)), ("txt", f"a thing called {key}".encode())):
                    member = tarfile.TarInfo(f"{key}.{suffix}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    return folder


@pytest.mark.parametrize(("line", "n", "least"), [*zip(ON_PICTURES, (400, 1600, 996), (1, 1500, 1), strict=True)])
def test_it_runs_beside_such_pictures(line, n, least, pictures, tmp_path, monkeypatch, capsys):
    for source in pictures.iterdir():
        (tmp_path / source.name).symlink_to(source)
    monkeypatch.chdir(tmp_path)
    assert run(line, monkeypatch) == 0
    manifest = PoisonManifest.from_pretrained(tmp_path / "poisoned")
    assert manifest.n_rows == n and manifest.count >= least
    assert (tmp_path / "poisoned" / "trigger" / "attack.json").is_file()
