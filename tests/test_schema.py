# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Rates, reports, manifests and records: what is refused, and that JSON brings back what was written."""

import json
import math
import os
import subprocess
import sys

import pytest

from hf_clipbd import schema
from hf_clipbd.schema import EvalReport, PoisonManifest, Rate, RunRecord, TriggerReport


@pytest.fixture
def manifest():
    return PoisonManifest(
        attack="badnets",
        parameters={"target": "banana", "size": 7, "place": [3, 4]},
        target="banana",
        indices=[2, 5, 11],
        n_rows=20,
        seed=3,
        source_fingerprint="1f2e",
        rate=0.15,
        skipped={"4": "unreadable"},
    )


@pytest.fixture
def record():
    return RunRecord(
        stage="defend/cleanclip",
        key=schema.content_key("defend/cleanclip", {"epochs": 2}),
        config={"epochs": 2, "learning_rate": 1e-5, "note": "été"},
        metrics={"history": [{"epoch": 1.0, "loss": 0.5}]},
        seed=1,
        inputs={"victim": "abc"},
        outputs={"model": "model.safetensors"},
        seconds=1.5,
    )


@pytest.fixture
def report():
    badnets = TriggerReport("banana", {1: Rate.of(9, 10), 5: Rate(1.0, 10)}, {1: Rate(0.1, 10), 5: Rate(0.4, 10)})
    return EvalReport(ba={1: Rate.of(3, 4), 5: Rate.of(4, 4)}, triggers={"badnets": badnets}, n_classes=12)


# -- rates ------------------------------------------------------------------------------------------------------------


def test_rate_of_counts():
    assert Rate.of(3, 4) == Rate(0.75, 4)
    assert Rate.of(0, 1).value == 0.0
    assert type(Rate.of(1, 2).n) is int


@pytest.mark.parametrize(("value", "n"), [(-0.01, 5), (1.01, 5), (math.nan, 5), (math.inf, 5), (0.5, 0), (75.0, 100)])
def test_rate_refuses_what_is_no_rate(value, n):
    with pytest.raises(ValueError, match=r"Expected a rate in \[0, 1\]"):
        Rate(value, n)


@pytest.mark.parametrize(("hits", "n", "says"), [(0, 0, "got none"), (5, 4, "Expected a rate"), (-1, 4, "Expected a")])
def test_rate_of_refuses_impossible_counts(hits, n, says):
    with pytest.raises(ValueError, match=says):
        Rate.of(hits, n)


# The first four as published for the score method (Newcombe 1998, table I; z = 1.96), to four digits.
@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
        (5, 10, 0.2366, 0.7634),
    ],
)
def test_wilson_interval_has_the_published_values(hits, n, low, high):
    assert Rate.of(hits, n).interval() == pytest.approx((low, high), abs=6e-5)


def test_wilson_interval_solves_its_equation():
    rate, z = Rate.of(7, 31), 1.3
    for bound in rate.interval(z):
        assert (rate.value - bound) ** 2 == pytest.approx(z * z * bound * (1 - bound) / rate.n)


def test_interval_narrows_with_n_and_mirrors():
    low, high = Rate.of(30, 100).interval()
    wide_low, wide_high = Rate.of(3, 10).interval()
    assert wide_low < low < 0.3 < high < wide_high
    assert Rate.of(70, 100).interval() == pytest.approx((1 - high, 1 - low))


# -- JSON -------------------------------------------------------------------------------------------------------------


def test_canonical_json_does_not_depend_on_order():
    assert schema.canonical_json({"b": [1, 2.5], "a": "ü"}) == '{"a":"ü","b":[1,2.5]}'
    assert schema.canonical_json({"a": 1, "b": 2}) == schema.canonical_json({"b": 2, "a": 1})


@pytest.mark.parametrize("value", [math.nan, math.inf, {"a": [-math.inf]}])
def test_json_refuses_what_it_cannot_carry(tmp_path, value):
    with pytest.raises(ValueError):
        schema.canonical_json(value)
    with pytest.raises(ValueError):
        schema.write_json(tmp_path / "x.json", value)
    assert list(tmp_path.iterdir()) == []


def test_content_key_is_the_same_on_every_machine_and_sees_every_part():
    assert schema.content_key("victim", {"b": 1, "a": 2}) == schema.content_key("victim", {"a": 2, "b": 1})
    assert schema.content_key("victim", {"a": 2}, 1) == "be0a42145c4a7c3c"
    keys = {
        schema.content_key(*parts) for parts in [("a",), ("a", "b"), ("ab",), (["a", "b"],), ("a", None), (1,), ("1",)]
    }
    assert len(keys) == 7


def test_write_json_makes_folders_and_leaves_no_scratch(tmp_path):
    path = schema.write_json(tmp_path / "deep" / "er" / "x.json", {"name": "été"})
    assert json.loads(path.read_text("utf-8")) == {"name": "été"}
    assert "été" in path.read_text("utf-8")
    assert [one.name for one in path.parent.iterdir()] == ["x.json"]


def test_write_json_replaces_in_one_step(tmp_path, monkeypatch):
    path = schema.write_json(tmp_path / "x.json", {"version": "old"})
    seen = []

    def die(source, destination):
        seen.append((json.loads(source.read_text()), json.loads(destination.read_text())))
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        schema.write_json(path, {"version": "new"})
    assert seen == [({"version": "new"}, {"version": "old"})]  # the new file was complete before the old one went
    assert json.loads(path.read_text()) == {"version": "old"}


def test_write_json_keeps_the_old_file_where_the_new_value_is_refused(tmp_path):
    path = schema.write_json(tmp_path / "x.json", {"loss": 1.0})
    with pytest.raises(ValueError):
        schema.write_json(path, {"loss": math.nan})
    assert json.loads(path.read_text()) == {"loss": 1.0}


# -- evaluation reports -----------------------------------------------------------------------------------------------


def test_report_round_trip_through_json(report):
    values = json.loads(json.dumps(report.to_dict()))
    assert values["triggers"]["badnets"]["asr"]["1"] == {"value": 0.9, "n": 10}
    assert EvalReport.from_dict(values) == report


def test_report_keeps_the_papers_convention(report):
    report.triggers["badnets"].include_target = True
    assert EvalReport.from_dict(report.to_dict()).triggers["badnets"].include_target is True


def test_report_refuses_unknown_fields_and_rates_out_of_range(report):
    values = report.to_dict()
    with pytest.raises(ValueError, match=r"an evaluation report with fields .* unknown \['accuracy'\]"):
        EvalReport.from_dict({**values, "accuracy": 1})
    values["ba"]["1"] = {"value": 75.0, "n": 4}
    with pytest.raises(ValueError, match="Expected a rate"):
        EvalReport.from_dict(values)


# -- manifests --------------------------------------------------------------------------------------------------------


def test_manifest_round_trip(tmp_path, manifest):
    path = manifest.save_pretrained(tmp_path / "poison")
    assert path == tmp_path / "poison" / "manifest.json"
    assert json.loads(path.read_text())["count"] == manifest.count == 3
    assert PoisonManifest.from_pretrained(tmp_path / "poison") == manifest
    assert PoisonManifest.from_pretrained(path) == manifest


def test_manifest_that_is_missing_or_wrong_is_refused(tmp_path, manifest):
    with pytest.raises(FileNotFoundError, match="Expected a poison manifest at"):
        PoisonManifest.from_pretrained(tmp_path)
    path = manifest.save_pretrained(tmp_path)
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "count": 4}))
    with pytest.raises(ValueError, match="Expected 4 poisoned rows in the manifest, but it lists 3"):
        PoisonManifest.from_pretrained(tmp_path)
    path.write_text(json.dumps({**values, "poison_rate": 0.1}))
    with pytest.raises(ValueError, match=r"unknown \['poison_rate'\]"):
        PoisonManifest.from_pretrained(tmp_path)


# -- records ----------------------------------------------------------------------------------------------------------


def test_record_round_trip(tmp_path, record):
    record.save(tmp_path / "stage")
    assert RunRecord.load(tmp_path / "stage") == record


def test_record_says_where_its_figures_come_from(record):
    assert record.versions["python"].startswith("3.") and record.versions["torch"]
    assert record.machine["cores"] == os.cpu_count()
    assert record.command and os.sep not in record.command.split()[0]


def test_record_with_a_figure_that_is_nan_is_not_written(tmp_path, record):
    record.metrics["loss"] = math.nan
    with pytest.raises(ValueError):
        record.save(tmp_path)
    assert not (tmp_path / "record.json").exists()


def test_record_of_another_configuration_is_not_current(tmp_path, record):
    assert RunRecord.load_if_current(tmp_path, record.key) is None
    record.save(tmp_path)
    assert RunRecord.load_if_current(tmp_path, record.key) == record
    assert RunRecord.load_if_current(tmp_path, schema.content_key("defend/cleanclip", {"epochs": 3})) is None


def test_record_that_is_missing_or_unknown_is_refused(tmp_path, record):
    with pytest.raises(FileNotFoundError, match="Run the stage that writes it"):
        RunRecord.load(tmp_path)
    path = record.save(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "took": 3}))
    with pytest.raises(ValueError, match=r"Expected a record with fields .* unknown \['took'\]"):
        RunRecord.load(tmp_path)
    path.write_text("[1]")
    with pytest.raises(ValueError, match=r"cut short or broken: it holds \[1\]"):
        RunRecord.load(tmp_path)


def test_versions_leave_out_what_is_not_installed(monkeypatch):
    monkeypatch.setattr(schema, "RECORDED_PACKAGES", ("numpy", "no-such-package"))
    assert set(schema.package_versions()) == {"python", "numpy"}


def test_schema_needs_neither_torch_nor_transformers():
    code = "import sys, hf_clipbd.schema; print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
