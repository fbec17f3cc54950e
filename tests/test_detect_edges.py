# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The edges of a search: a handful of rows, scores that are all the same, copies, and what a path may name."""

import math
import os
import signal
from types import SimpleNamespace

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from hf_clipbd.cli import main
from hf_clipbd.detection import detection_performance, thinned_rows
from hf_clipbd.detection.groups import suspicious_groups
from hf_clipbd.detection.threshold import cut_share
from hf_clipbd.evaluation.kept_features import _content as content_of_pictures
from hf_clipbd.recipe.defending import kept_rows
from hf_clipbd.recipe.searching import _columns
from hf_clipbd.recipe.sharded import _content as content_of_pairs
from hf_clipbd.schema import RunRecord


# -- few rows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [3, 4, 5, 6])
def test_groups_of_a_handful_of_rows(n):
    features = np.random.default_rng([n]).normal(size=(n, 8)).astype(np.float32)
    groups = suspicious_groups(features, np.arange(n, dtype=float))
    assert sorted(row for group in groups for row in group.rows) == list(range(n))
    if n < 5:  # no gap of three neighbours and one beyond: the scores alone order the rows
        assert [group.rows for group in groups] == [(row,) for row in reversed(range(n))]


def test_the_command_on_three_rows(tmp_path):
    out = tmp_path / "found"
    assert main(["detect", "scenes", "--n", "3", "--model", "scenes", "--out", str(out)]) == 0
    assert RunRecord.load(out).metrics["cut"]["n"] == 3 and (out / "suspects.html").is_file()


@pytest.mark.parametrize("more", [[], ["--dry_run"]], ids=["run", "plan"])
def test_a_folder_with_something_else_is_refused(more, tmp_path, capsys):
    (tmp_path / "mine" / "sub").mkdir(parents=True)
    (tmp_path / "mine" / "sub" / "a").write_text("a")
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    command = ["detect", "scenes", "--n", "40", "--model", "scenes", "--out", str(tmp_path / "mine")]
    assert main([*command, *more]) == 2
    assert "has ['notes.txt', 'sub'] and no `record.json`" in capsys.readouterr().err
    assert [path.name for path in sorted((tmp_path / "mine").rglob("*"))] == ["notes.txt", "sub", "a"]


# -- where to cut -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n, share, removed", [(100, 0.07, 7), (100, 0.29, 29), (1000, 0.001, 1), (1001, 0.001, 2)])
def test_the_share_is_that_of_decimals(n, share, removed):
    assert cut_share(np.arange(n) + 1.0, share).n_removed == removed


@pytest.mark.parametrize(
    "scores, share, removed",
    [
        (np.zeros(100), 0.01, 0),
        (np.zeros(100), 0.6, 0),
        (np.repeat([-1.0, 5.0], [95, 5]), 0.1, 5),  # what cognitive distillation did not look at has the lowest score
        (np.repeat([1.0, 2.0, 3.0], [90, 3, 7]), 0.01, 0),  # seven that cannot be told apart, for one
        (np.repeat([1.0, 2.0], [98, 2]), 0.01, 2),
    ],
)
def test_a_tie_is_not_removed_for_a_few_of_its_rows(scores, share, removed, caplog):
    cut = cut_share(np.random.default_rng(0).permutation(scores), share)
    assert cut.n_removed == removed == int((scores >= cut.threshold).sum()) and math.isfinite(cut.threshold)
    warned = removed <= share * len(scores) and "one and the same score" in caplog.text
    assert warned == (removed != 2) and (not warned or f"{removed} rows are removed" in caplog.text)


def test_a_small_group_above_the_tail_shows_as_an_excess():
    rng = np.random.default_rng([5])
    clean = np.linalg.norm(rng.normal(size=(40_000, 16)), axis=1)  # lighter than exponential, as distances are
    poisoned = np.concatenate([clean, rng.uniform(9, 12, 100)])
    for share in (0.01, 0.005, 0.002, 0.001):
        cut = cut_share(clean, share)
        assert 0.8 < cut.expected_clean / cut.n_removed < 1.6
    assert 50 < cut_share(poisoned, 0.003).excess < 110 and cut_share(clean, 0.003).excess < 20


# -- rows and copies --------------------------------------------------------------------------------------------------


def test_rows_are_numbered_by_their_place():
    values = {"caption": ["a"] * 3, "source_index": [-1] * 3, "is_poisoned": [False, True, False]}
    columns = _columns(datasets.Dataset.from_dict(values), {"slof": np.zeros(3)}, None)
    table = pyarrow.table(columns).to_pydict()
    assert table["row"] == [0, 1, 2] and table["source_index"] == [-1, -1, -1]
    without = _columns(datasets.Dataset.from_dict({"caption": ["a"] * 3}), {"slof": np.zeros(3)}, None)
    assert "source_index" not in without and list(without["row"]) == [0, 1, 2]


def test_copies_are_dropped_or_kept_together(tmp_path):
    scores = [0.9, 0.1, 0.2, 0.8, 0.3, 0.4]  # rows 0 and 1 are one picture, and so are 2, 4 and 5
    table = {"score_slof": scores, "first_copy": [0, 0, 2, 3, 2, 2], "is_poisoned": [True] + [False] * 5}
    (tmp_path / "detect").mkdir()
    config = SimpleNamespace(output_dir=tmp_path, detect=SimpleNamespace(detectors=["slof"]))

    def kept(share):
        return kept_rows(config, SimpleNamespace(detector="slof", drop_share=share))

    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "detect" / "scores.parquet")
    rows, figures = kept(1 / 3)
    assert rows.tolist() == [2, 3, 4, 5]
    assert figures == {"dropped": 2, "kept": 4, "poisoned_kept": 0, "poisoned_dropped": 1}
    assert kept(2 / 3)[0].tolist() == [2, 4, 5]
    del table["first_copy"]  # as written by earlier versions
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "detect" / "scores.parquet")
    assert kept(1 / 3)[0].tolist() == [1, 2, 4, 5]


# -- what a path names ------------------------------------------------------------------------------------------------


def never_ending(*_):
    raise RuntimeError("reading did not end")  # no OSError, which reading a file may give


def test_only_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # as /dev/zero, without filling the memory where it is read
    (tmp_path / "file").write_bytes(b"content")

    def rows(*paths):
        pictures = [{"bytes": None, "path": str(one)} for one in paths]
        pairs = datasets.Dataset.from_dict({"image": pictures, "caption": ["a"] * len(paths)})
        return pairs.cast_column("image", datasets.Image(decode=False))

    strange = rows(tmp_path / "pipe", tmp_path / "file")
    signal.signal(signal.SIGALRM, never_ending)
    signal.alarm(10)
    try:
        found = content_of_pairs(strange, range(2))
        assert content_of_pictures(strange, "image") == content_of_pictures(strange, "image")
    finally:
        signal.alarm(0)
    assert found.digest == content_of_pairs(strange, range(2)).digest
    (tmp_path / "file").write_bytes(b"other")
    assert found.digest != content_of_pairs(strange, range(2)).digest


def test_the_surprise_of_single_rows_by_hand():
    features = np.random.default_rng([4]).normal(size=(4, 8)).astype(np.float32)
    groups = suspicious_groups(features, np.array([0.1, 0.4, 0.2, 0.3]))
    expected = [((1,), math.log(2)), ((3,), 0.0), ((2,), 0.0), ((0,), 0.0)]  # -ln(2 rank / 4), at least 0
    assert [(group.rows, pytest.approx(group.surprise)) for group in groups] == expected


def test_nearby_rows_lie_within_the_group_are_no_copies_and_are_not_shown():
    rng = np.random.default_rng([6])
    features = rng.normal(size=(400, 16)).astype(np.float32)
    features[:90] = features[0] + 0.05 * rng.normal(size=(90, 16))  # of one kind, a third of it with one caption
    features[80:90] = features[30:40]
    scores, first = -np.arange(400.0), np.arange(400)
    scores[30:90] -= 1000
    first[80:90] = np.arange(30, 40)
    captions = ["one thing" if row < 30 else f"caption {row}" for row in range(400)]
    groups = suspicious_groups(features, scores, first, captions)
    group, shown = groups[0], {row for one in groups for row in one.rows}
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    far = np.linalg.norm(unit - unit[list(group.rows)].mean(0), axis=1)
    radius = far[list(group.rows)].max() + 1e-6
    expected = [row for row in range(400) if far[row] <= radius and row not in shown and first[row] == row]
    assert len(group.rows) > 5 and list(group.nearby) == expected and len(expected) > 5
    assert any(first[row] != row for row in np.flatnonzero(far <= radius))


def test_nineteen_of_twenty_are_ninety_five_percent():
    scores = np.concatenate([np.full(19, 9.0), np.linspace(1, 5, 40), [0.0]])
    poisoned = np.concatenate([np.ones(19), np.zeros(40), [1]])
    assert detection_performance(scores, poisoned)["fpr_at_95_tpr"] == 0.0


def test_thinning_is_drawn_by_the_seed():
    poisoned = np.arange(500) < 50
    assert thinned_rows(poisoned, 0.02, seed=1).tolist() != thinned_rows(poisoned, 0.02, seed=2).tolist()
