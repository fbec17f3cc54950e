# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The report of a run says what its records say, all of it, and nothing that they do not say."""

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest
from PIL import Image

from fabricated_run import COUNT, HITS, KS, N_ROWS, N_STAMPED, N_TEST
from hf_clipbd.report import comparison_table, figures, html, write_report
from hf_clipbd.report.table import detector_rows, model_rows
from hf_clipbd.run_folder import RunFolder
from hf_clipbd.schema import RunRecord
from hf_clipbd.templates import described_methods, environment, flat, method, papers, public


VOID = {"meta", "img", "br", "hr", "link", "input"}


@pytest.fixture(scope="module")
def report(original, tmp_path_factory):
    return write_report(shutil.copytree(original, tmp_path_factory.mktemp("runs") / "reported"))


@pytest.fixture(scope="module")
def page(report):
    return report.read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def quick_drawing(monkeypatch, page):
    """Draw coarsely, but for the page that all tests share."""
    monkeypatch.setattr(figures, "DPI", 30)


class Page(HTMLParser):
    """Collects the elements of a page and refuses tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.rows, self.cell = [], [], [], None
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        assert len(dict(attributes)) == len(attributes), f"attribute twice in {tag}"
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data.strip()

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def expected_cells(model):
    clean, stamped, _ = HITS[model]
    ba = [f"{100 * hits / N_TEST:.1f}" for hits in clean]
    asr = [f"{100 * hits / N_STAMPED:.1f}" for hits in stamped]
    return ["badnets", *ba, str(N_TEST), *asr, str(N_STAMPED)]


def edit_record(run, stage, change):
    record = RunRecord.load(run / stage)
    change(record.metrics)
    record.save(run / stage)


# -- the table --------------------------------------------------------------------------------------------------------


def test_markdown_table_holds_the_records_figures(original):
    lines = [line for line in comparison_table(original, format="markdown").splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    models = {row[0]: row[1:] for row in cells[2:7]}
    assert list(models) == ["Clean model", "Victim", "FT", "CleanCLIP", "CleanerCLIP"]
    for model in HITS:
        *figures_shown, seconds = models[method(model)["label"]]
        assert figures_shown == expected_cells(model)
        stage = {"clean": None, "victim": "victim"}.get(model, f"defend/{model}")
        assert seconds == ("-" if stage is None else f"{RunRecord.load(original / stage).seconds:.0f}")
    recorded = RunRecord.load(original / "detect").metrics["detectors"]["slof"]
    slof = next(row for row in cells if row[0] == "SLOF")
    assert slof[1:4] == ["1.00 % (the run)", f"{100 * recorded['auroc']:.1f}", f"{100 * recorded['auprc']:.1f}"]
    assert slof[-2:] == [str(COUNT), str(N_ROWS)]


def test_terminal_table_has_the_same_cells_in_aligned_columns(original):
    terminal, markdown = (comparison_table(original, format=name) for name in ("terminal", "markdown"))
    first = terminal.split("\n\n")[0].splitlines()
    assert [line.split() for line in first[3:]] == [
        line.replace("|", " ").replace("Clean model", "Cleanmodel").split() for line in markdown.splitlines()[3:7]
    ]
    ends = [match.end() for match in re.finditer(r"\S+", first[1])]
    assert all(line[end : end + 2].strip() == "" for line in first for end in ends)


def test_lower_rates_are_said_to_be_thinned(original):
    assert "mean of 5 draws" in comparison_table(original)
    rows = detector_rows(RunFolder(original))
    assert [(row.rate, row.as_poisoned, row.draws) for row in rows[::2]] == [(0.01, True, 1), (4 / 3964, False, 5)]


def test_unknown_format_is_named(original):
    with pytest.raises(ValueError, match="'latex'"):
        comparison_table(original, format="latex")


@pytest.mark.parametrize(
    "stage", ["victim", "defend/cleanclip", "evaluate/clean", "evaluate/cleanerclip", "detect", "poison"]
)
def test_missing_record_names_its_stage(run, stage):
    (run / stage / "record.json").unlink()
    with pytest.raises(FileNotFoundError, match=f"stage `{stage}`"):
        write_report(run)


@pytest.mark.parametrize(
    ("stage", "name", "source"),
    [("victim", "poison", "poison"), ("detect", "victim", "victim"), ("evaluate/victim", "model", "victim")],
)
def test_records_of_a_run_that_was_begun_anew_and_stopped_are_not_mixed(run, stage, name, source):
    record = RunRecord.load(run / stage)
    record.inputs[name] = "replaced"
    record.save(run / stage)
    with pytest.raises(ValueError, match=f"stage `{stage}` .* what stage `{source}` left, .*but it read `replaced`"):
        write_report(run)


def test_missing_record_stops_the_table_too(run):
    (run / "evaluate" / "ft" / "record.json").unlink()
    with pytest.raises(FileNotFoundError, match="stage `evaluate/ft`"):
        comparison_table(run)


@pytest.mark.parametrize(
    ("stage", "change", "says"),
    [
        ("evaluate/ft", lambda metrics: metrics["report"]["ba"].pop("5"), r"BA at k .*evaluate/ft.* k = \[5\]"),
        (
            "evaluate/victim",
            lambda metrics: metrics["report"]["triggers"]["badnets"]["asr"].pop("10"),
            r"ASR of `badnets`.*k = \[10\]",
        ),
        ("evaluate/clean", lambda metrics: metrics["report"]["triggers"].clear(), "same triggers"),
        ("detect", lambda metrics: metrics["detectors"]["slof"].pop("auprc"), "auprc.*`slof`.*stage `detect`"),
        ("detect", lambda metrics: metrics.pop("rates"), "metric `rates`.*stage `detect`"),
        ("victim", lambda metrics: metrics.pop("history"), "`history`.*stage `victim`"),
    ],
)
def test_missing_figure_is_an_error(run, stage, change, says):
    edit_record(run, stage, change)
    with pytest.raises(ValueError, match=says):
        write_report(run)


def test_scores_of_another_run_are_refused(run):
    edit_record(run, "detect", lambda metrics: metrics["detectors"]["slof"].update(n_poisoned=COUNT + 1))
    with pytest.raises(ValueError, match="scores.parquet"):
        write_report(run)


def test_folder_without_configuration_is_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="config.yaml"):
        comparison_table(tmp_path)


# -- the page ---------------------------------------------------------------------------------------------------------


def test_page_is_well_formed_and_stands_alone(page):
    parsed = Page(page)
    assert page.startswith("<!DOCTYPE html>") and parsed.of("html")[0]["lang"] == "en"
    assert not parsed.of("script") and not parsed.of("link") and not parsed.of("iframe")
    assert not re.search(r"url\(|@import|https?://", page)
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [attributes["href"] for attributes in parsed.of("a")]
    labels = ["#" + one["aria-labelledby"] for _, one in parsed.elements if "aria-labelledby" in one]
    assert len(targets) > 5 and {name.removeprefix("#") for name in targets + labels} <= set(ids)


def test_page_embeds_every_figure_with_words_for_it(page, report):
    images = Page(page).of("img")
    drawn = sorted((report.parent / "figures").glob("*.png"))
    embedded = [base64.b64decode(one["src"].removeprefix("data:image/png;base64,")) for one in images]
    assert len(drawn) == 5 and sorted(embedded) == sorted(path.read_bytes() for path in drawn)
    for data in embedded:
        assert Image.open(io.BytesIO(data)).width == 1760
    assert all(len(one["alt"]) > 40 for one in images)
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page, re.DOTALL)
    assert len(captions) == 5 and all("seed 7" in caption for caption in captions)
    assert all("n = " in caption or "of the 40" in caption for caption in captions)


def test_page_tables_hold_the_records_figures(page):
    rows = {row[0]: row[1:] for row in Page(page).rows if row}
    for model in HITS:
        assert rows[method(model)["label"]][:-1] == expected_cells(model)
    tables = Page(page)
    assert len(tables.of("caption")) == 3 and all("scope" in one for one in tables.of("th"))


def test_page_says_what_is_reconstructed_and_hides_this_machine(page):
    assert "No code of CleanerCLIP is public" in page and "secret_place" not in page and "…/" in page


def test_page_escapes_what_users_named(run):
    record = json.loads((run / "poison" / "manifest.json").read_text())
    (run / "poison" / "manifest.json").write_text(json.dumps({**record, "target": "<b>fish & chips</b>"}))
    text = write_report(run).read_text(encoding="utf-8")
    assert "&lt;b&gt;fish &amp; chips&lt;/b&gt;" in text and "<b>fish" not in text


def test_no_training_measurements_no_training_figure(run):
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("epoch_images: 500", "epoch_images: 0"))
    edit_record(run, "victim", lambda metrics: [entry.pop("eval_ba1") for entry in metrics["history"]])
    write_report(run)
    assert not list((run / "report" / "figures").glob("history*"))


def test_a_training_logged_within_its_epochs_is_drawn_where_it_was_measured(run, tmp_path):
    def drawn():
        found = RunFolder(run)
        plate = html._history_plate(found, tmp_path, model_rows(found))
        return plate and (plate.path.read_bytes(), plate.alt)

    usual = drawn()
    for stage in ("victim", "defend/ft"):
        edit_record(run, stage, lambda metrics: metrics["history"].insert(0, {"epoch": 0.5, "loss": 2.0}))
        edit_record(run, stage, lambda metrics: metrics["history"].append({"epoch": 3.5, "loss": 1.0}))
    assert usual and drawn() == usual


def test_history_says_how_its_trainings_counted_the_target(run, tmp_path):
    def said():
        return html._history_plate(RunFolder(run), tmp_path, model_rows(RunFolder(run))).caption

    config = run / "config.yaml"
    assert "(those of the target class left out of ASR)" in said()
    for model in ("victim", *RunFolder(run).defenses):
        path = run / RunFolder(run).training_stage(model) / "record.json"
        record = json.loads(path.read_text())
        record["config"]["measured"] = {"include_target": False}
        path.write_text(json.dumps(record))
    config.write_text(config.read_text().replace("include_target: false", "include_target: true"))
    assert "(those of the target class left out of ASR)" in said()
    del record["config"]["measured"]
    path.write_text(json.dumps(record))
    assert "(those of the target class in ASR of some trainings)" in said()


def test_a_training_that_was_not_measured_has_the_other_figures_drawn(run):
    edit_record(run, "defend/ft", lambda metrics: [entry.pop("eval_ba1") for entry in metrics["history"]])
    write_report(run)
    names = [path.stem.split("_")[0] for path in (run / "report" / "figures").glob("*")]
    assert sorted(names) == ["bars", "map", "samples", "scores"]


def test_a_run_whose_trigger_is_in_the_text_has_no_asr(run):
    for model in HITS:
        edit_record(run, f"evaluate/{model}", lambda metrics: metrics["report"].update(triggers={}))
    tiles = write_report(run).read_text(encoding="utf-8").split("<dt>")[1:3]
    assert [tile.split("</dt>")[0] for tile in tiles] == ["BA@1, clean model", "BA@1, victim"]
    assert not list((run / "report" / "figures").glob("bars*"))
    lines = comparison_table(run, format="markdown").splitlines()
    line = next(line for line in lines if line.startswith("| CleanCLIP "))
    assert line.count("| - ") == 2 + len(KS) and "91.7" in line


# -- the figures ------------------------------------------------------------------------------------------------------


def test_drawing_leaves_nothing_behind_and_repeats(original, tmp_path):
    import matplotlib.pyplot as plt

    before = dict(matplotlib.rcParams)
    rows = model_rows(RunFolder(original))
    one, two = (figures.save(figures.draw_bars(rows), tmp_path / f"{number}.png") for number in range(2))
    assert dict(matplotlib.rcParams) == before and plt.get_fignums() == []
    assert one.read_bytes() == two.read_bytes()


def test_bars_are_as_high_as_the_rates(original):
    rows = model_rows(RunFolder(original))
    panels = figures.draw_bars(rows).axes
    for axes, name in zip(panels, ("ba", "asr"), strict=True):
        heights = [[bar.get_height() for bar in bars] for bars in axes.containers if hasattr(bars, "patches")]
        assert np.allclose(heights, [[100 * getattr(row, name)[k].value for k in KS] for row in rows])
        colours = [
            matplotlib.colors.to_hex(bars.patches[0].get_facecolor()) for bars in axes.containers if len(bars) == 4
        ]
        assert colours == [figures.COLOURS[row.model] for row in rows]


def test_a_defence_of_ones_own_has_a_colour_of_its_own():
    names = ["clean", "victim", "mine", "cleanclip", "yours"]
    assert len({figures.colour(name, names) for name in names}) == len(names)


def test_roc_curve_is_the_scores_own():
    poisoned = np.array([True, True, False, False, False])
    drawn = figures.draw_scores({"slof": np.array([9.0, 3.0, 5.0, 2.0, 1.0])}, poisoned, {"slof": 5 / 6})
    curve = drawn.axes[1].lines[0].get_xydata()
    assert np.allclose(curve, [(0, 0), (0, 0.5), (1 / 3, 0.5), (1 / 3, 1), (2 / 3, 1), (1, 1)])
    assert "83.3" in drawn.axes[1].get_title(loc="left")


def test_difference_shows_what_the_trigger_changed(tmp_path, original):
    sample = RunFolder(original).samples()[0]
    clean, poisoned = (np.asarray(Image.open(path)).astype(int) for path in (sample.clean, sample.poisoned))
    axes = figures.draw_samples([sample]).axes
    shown = np.asarray(axes[2].images[0].get_array())
    assert ((shown > 0).any(-1) == (clean != poisoned).any(-1)).mean() > 0.99 and shown.max() == 255


def test_a_training_without_measurements_is_not_drawn_alone():
    histories = {
        "victim": [{"epoch": 1.0, "eval_ba1": 0.9, "eval_asr1_sig": 1.0}],
        "ft": [{"epoch": 1.0, "loss": 1.0}],
    }
    with pytest.raises(ValueError, match=r"`sig` in every log, but those of \['ft'\]"):
        figures.draw_history(histories, "sig", {})


def test_unknown_kind_on_the_map_is_named():
    with pytest.raises(ValueError, match="'odd'"):
        figures.draw_map(np.zeros((2, 2)), ["clean", "odd"])


# -- templates --------------------------------------------------------------------------------------------------------


def test_templates_are_strict():
    import jinja2

    with pytest.raises(jinja2.UndefinedError):
        environment().from_string("{{ figure.of.nothing }}").render()


def test_every_method_is_described():
    from hf_clipbd.attacks import ATTACKS
    from hf_clipbd.defenses import DEFENSES
    from hf_clipbd.detection import DETECTORS

    assert {*ATTACKS, *DEFENSES, *DETECTORS} <= set(described_methods())
    for name in described_methods():
        assert set(method(name)) == {"label", "summary", "reconstructed", "papers"}
        assert all(paper["title"] and paper["authors"] and paper["venue"] for paper in papers(name))
    assert method("mine")["label"] == "mine"


@pytest.mark.parametrize(
    ("private", "shown"),
    [
        ("/home/eve/runs/a", "…/a"),
        ("--out=/home/eve/runs/a/", "--out=…/a"),
        ("~/runs/a b", "…/a b"),
        ("file:///home/eve/x/y", "…/y"),
        ("file://host/home/eve/x", "…/x"),
        ("zip://a.jpg::/home/eve/z.zip and path:/home/eve/x", "zip://a.jpg::…/z.zip and path:…/x"),
        ("//home/eve/x", "…/x"),
        ("~eve/runs/x", "…/x"),
        ("/home/eve/a:/home/eve/b --out=/home/eve/c", "…/a:…/b --out=…/c"),
        ("/home/eve/my data/secret name/x", "…/x"),
        ("/home/eve/eve's data/x", "…/x"),
        ("'/home/eve/my data/x' and '/tmp/b c/d'", "'…/x' and '…/d'"),
        (
            "Row 3: no picture at /home/eve/my data/b.jpg: see openai/clip",
            "Row 3: no picture at …/b.jpg: see openai/clip",
        ),
        ("C:\\Users\\eve\\my runs\\a", "…/a"),
        ("…/a and ./b/c", "…/a and ./b/c"),
        ("https://huggingface.co/openai/clip", "https://huggingface.co/openai/clip"),
        ("hf://datasets/me/x/y and http://x.org:80/a b", "hf://datasets/me/x/y and http://x.org:80/a b"),
        ("openai/clip", "openai/clip"),
        ("BA/ASR in 1 / 2", "BA/ASR in 1 / 2"),
        ("hf_" + "a1B2" * 9, "hf_…"),
        (["/etc/x", {"path": "/etc/y"}], ["…/x", {"path": "…/y"}]),
        (3, 3),
    ],
)
def test_public_text(private, shown):
    assert public(private) == shown


def test_flat_settings_leave_out_what_is_unset():
    assert flat({"a": {"b": {"c": 0}}, "d": None, "e": []}) == {"a.b.c": 0, "e": []}
