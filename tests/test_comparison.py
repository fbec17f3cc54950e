# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Any number of evaluations as one table: terminal, Markdown, LaTeX, CSV, and a plot."""

import csv
import io

import PIL.Image
import pytest

from hf_clipbd.cli import main
from hf_clipbd.evaluation import defense_effectiveness
from hf_clipbd.evaluation.comparison import compare, read_report, render
from hf_clipbd.schema import EvalReport, Rate, RunRecord, TriggerReport, write_json


def report(ba, asr, trigger="badnets_a", n=200, target="banana"):
    def rates(value, n):
        return {1: Rate(value, n), 5: Rate(min(1.0, value + 0.1), n)}

    return EvalReport(rates(ba, n), {trigger: TriggerReport(target, rates(asr, n - 20), rates(0.3, n - 20))}, 66)


REPORTS = {"victim": report(0.62, 0.95), "ft": report(0.6, 0.5), "cleanclip": report(0.58, 0.05)}


def test_rows_come_by_k_then_trigger_then_model_with_der():
    rows = compare({**REPORTS, "clean": EvalReport({1: Rate(0.7, 200), 5: Rate(0.9, 200)}, {}, 66)}, "victim")
    models = ["victim", "ft", "cleanclip", "clean"]  # the one without a trigger last
    assert [(row.model, row.k) for row in rows] == [(model, k) for k in (1, 5) for model in models]
    assert (rows[3].trigger, rows[3].ba, rows[3].asr, rows[3].der) == ("", Rate(0.7, 200), None, None)
    assert rows[0].der is None
    expected = defense_effectiveness(REPORTS["victim"], REPORTS["cleanclip"], "badnets_a").der
    assert rows[2].der == expected == pytest.approx((0.9 - 0.04 + 1) / 2)
    assert rows[2].ba == Rate(0.58, 200) and rows[2].asr == Rate(0.05, 180)
    clean = compare({"clean": EvalReport({1: Rate(0.7, 200)}, {}, 66)})
    assert clean[0].asr is None and "-" in render(clean)


def test_each_layout_holds_the_same_figures():
    rows = compare(REPORTS, "victim", ks=[1])
    low, high = Rate(0.58, 200).interval()
    cell = f"58.0 [{100 * low:.1f}, {100 * high:.1f}]"
    terminal, markdown, latex = (render(rows, one) for one in ("terminal", "markdown", "latex"))
    assert all(cell in text and "180" in text for text in (terminal, markdown, latex))
    assert markdown.splitlines()[1].count("--") == 9 and "93.0" in markdown
    assert r"badnets\_a" in latex and latex.startswith(r"\begin{tabular}{llrrrrrrr}") and latex.count(r"\\") == 4
    (*_, last) = csv.DictReader(io.StringIO(render(rows, "csv")))
    assert float(last["ba"]) == 0.58 and float(last["ba_low"]) == low and last["asr_n"] == "180"
    assert float(last["der"]) == pytest.approx(0.93)


def test_what_cannot_be_compared_is_named(tmp_path):
    with pytest.raises(ValueError, match="baseline"):
        compare(REPORTS, "clean")
    with pytest.raises(ValueError, match="common k"):
        compare(REPORTS, ks=[3])
    with pytest.raises(ValueError, match="format"):
        render(compare(REPORTS), "html")
    other = {**REPORTS, "other": report(0.6, 0.5, target="owl")}
    with pytest.raises(ValueError, match="one target in both reports, but got 'banana' and 'owl'"):
        compare(other, "victim")
    assert len(compare(other, ks=[1])) == 4
    found = {"image_to_text": {"1": {"value": 0.5, "n": 4}}, "text_to_image": {}}
    write_json(tmp_path / "bare.json", found)
    RunRecord("evaluate", "k", {}, {"retrieval": found}, 0).save(tmp_path / "retrieval")
    for path in (tmp_path / "bare.json", tmp_path / "retrieval"):
        with pytest.raises(ValueError, match="holds one of retrieval"):
            read_report(path)
    with pytest.raises(FileNotFoundError, match="evaluation at"):
        read_report(tmp_path)
    write_json(tmp_path / "other.json", {"loss": 1})
    with pytest.raises(ValueError, match="Run `evaluate`"):
        read_report(tmp_path / "other.json")


def test_the_command_takes_records_folders_and_reports(tmp_path, capsys):
    paths = []
    for name, one in REPORTS.items():
        if name == "ft":
            paths.append(write_json(tmp_path / "ft.json", one.to_dict()))
        else:
            RunRecord("evaluate", "k", {}, {"report": one.to_dict(), "intervals": {}}, 0).save(tmp_path / "run" / name)
            paths.append(tmp_path / "run" / name)
    paths[2] = paths[2] / "record.json"
    command = ["compare", *map(str, paths), "--baseline", "victim", "--ks", "1", "--plot", str(tmp_path / "plot.png")]
    assert main([*command, "--format", "csv"]) == 0
    assert [row["model"] for row in csv.DictReader(io.StringIO(capsys.readouterr().out))] == list(REPORTS)
    with PIL.Image.open(tmp_path / "plot.png") as picture:
        assert picture.width > 1000 and len(picture.convert("RGB").getcolors(1 << 24)) > 20
    assert main([*command, "--names", "a", "a", "b"]) == 2
    assert "name of its own" in capsys.readouterr().err
