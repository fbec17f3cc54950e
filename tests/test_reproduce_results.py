# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""RESULTS.md: equal to what the committed records give, and right about invented ones."""

import shutil
from importlib.metadata import version
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from hf_clipbd.recipe.grid_config import grid_from
from hf_clipbd.recipe.reproduce_parts import FIGURES as PICTURES
from hf_clipbd.recipe.reproduce_results import collect, collect_grid, render_pictures, render_results
from hf_clipbd.report.results import render_cells
from hf_clipbd.report.results_cells import Cells
from hf_clipbd.report.results_figures import draw_epochs_by_attack, draw_rates
from hf_clipbd.report.results_papers import beside, margins, orderings, paper_table, read_papers
from hf_clipbd.report.results_tables import (
    attack_table,
    counts,
    curves_table,
    detection_ranking_table,
    detection_table,
    overview,
    retrained_table,
    triggers_table,
)
from hf_clipbd.schema import EvalReport, Rate, RunRecord, TriggerReport


ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "recipes" / "reproduce"
MODELS = ("victim", "ft", "cleanclip", "cleanerclip")
FIGURES = {  # attack -> model -> a pair (BA, ASR) a seed, in hits of 100 and of 50
    "badnets": {
        "victim": ((90, 45), (92, 47)),
        "ft": ((88, 30), (90, 20)),
        "cleanclip": ((86, 4), (88, 2)),
        "cleanerclip": ((85, 5), (87, 0)),
    },
    "badclip": {
        "victim": ((91, 50), (93, 50)),
        "ft": ((89, 49), (89, 47)),
        "cleanclip": ((80, 1), (80, 1)),
        "cleanerclip": ((70, 2), (70, 2)),
    },
}


def report(ba, asr):
    def rates(hits, n):
        return {k: Rate.of(min(n, hits + k - 1), n) for k in (1, 3, 5, 10)}

    trigger = TriggerReport("banana", rates(asr, 50), rates(ba // 2, 50))
    return EvalReport(rates(ba, 100), {"any": trigger}, 20).to_dict()


@pytest.fixture
def cells(tmp_path):
    """Return two seeds of two attacks with the figures above."""
    for attack, by_model in FIGURES.items():
        for model, pairs in by_model.items():
            for seed, (ba, asr) in enumerate(pairs):
                folder = tmp_path / attack / f"seed{seed}"
                metrics = {"report": report(ba, asr)}
                RunRecord(f"evaluate/{model}", "key", {}, metrics, seed).save(folder / "evaluate" / model)
                end = asr / 50
                history = [{"eval_asr1_any": (0.9 + 3 * end) / 4}, {"loss": 1.0}, {"eval_asr1_any": end}]
                stage = "victim" if model == "victim" else f"defend/{model}"
                RunRecord(stage, "key", {}, {"history": history}, seed).save(folder / stage)
            found = {"slof": {"auroc": 0.5, "auprc": 0.25, "recall": 0.125}}
            searched = {"detectors": found, "rates": {"0.001": {"slof": {"auroc": 0.75}}}}
            RunRecord("detect", "key", {}, searched, 0).save(tmp_path / attack / "seed0" / "detect")
    return Cells(tmp_path, ("badnets", "badclip", "wanet"), (0, 1))


def row(table, *starts):
    """Return the cells of the one row that begins so."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    (found,) = [cells for cells in rows if tuple(cells[: len(starts)]) == starts]
    return found[len(starts) :]


def test_tables_show_means_ranges_and_what_was_not_run(cells):
    assert cells.models() == list(MODELS)
    assert row(overview(cells, MODELS), "1", "FT") == ["89.0 / 50.0", "89.0 / 96.0", "not run"]
    assert row(overview(cells, MODELS), "3", "FT") == ["91.0 / 54.0", "91.0 / 99.0", "not run"]
    one = row(attack_table(cells, "badnets", MODELS), "CleanerCLIP")
    assert one[0] == "86.0 (85.0 to 87.0)" and one[4] == "5.0 (0.0 to 10.0)" and one[-1] == "2"
    assert row(detection_table(cells), "SLOF", "as trained") == ["50.0", "50.0", "not run"]
    assert row(detection_table(cells), "SLOF", "0.10 %")[0] == "75.0"
    assert row(detection_ranking_table(cells), "SLOF", "as trained") == ["25.0 / 12.5", "25.0 / 12.5", "not run"]
    assert row(detection_ranking_table(cells), "SLOF", "0.10 %")[0] == "not run"
    assert "4 of 6 cells" in counts(cells, MODELS) and "BA on 100 images, ASR on 50" in counts(cells, MODELS)
    assert "0 of 6 cells" in counts(Cells(cells.root / "none", cells.attacks, (0, 1)), MODELS)


def test_training_again_stands_beside_how_the_rows_were_found(cells):
    for seed, found in enumerate((8, 5)):
        folder = cells.root / "badnets" / f"seed{seed}"
        metrics = {"dropped": 20, "kept": 80, "poisoned_dropped": found, "poisoned_kept": 10 - found}
        RunRecord("defend/retrain", "key", {}, metrics, seed).save(folder / "defend" / "retrain")
        RunRecord("evaluate/retrain", "key", {}, {"report": report(90, 1)}, seed).save(folder / "evaluate/retrain")
    table = retrained_table(Cells(cells.root, cells.attacks, cells.seeds))
    assert row(table, "BadNets", "SLOF") == [
        *("50.0", "6 of 10", "92.0 (90.0 to 94.0)", "2.0 (2.0 to 2.0)", "not run"),
        *("100.0 (100.0 to 100.0)", "20.0 (20.0 to 20.0)", "not run", "2"),
    ]
    assert "WaNet" not in table and "BadCLIP" not in table


def test_visibility_stands_beside_what_the_victim_does(cells, tmp_path):
    for seed, psnr in enumerate((20.0, 21.0)):
        on_scenes = {"psnr": psnr, "ssim": 0.5, "n": 4}
        seen = {"trigger": {"scenes": on_scenes}}
        if seed:
            seen["trigger"]["photographs"] = {"psnr": 30.0, "ssim": 0.75, "n": 4}
        RunRecord("gallery", "key", {}, seen, seed).save(tmp_path / "badnets" / f"seed{seed}" / "gallery")
    table = triggers_table(Cells(tmp_path, cells.attacks, cells.seeds))
    assert row(table, "BadNets")[:4] == ["25.0", "0.625", "not run", "91.0 (90.0 to 92.0)"]
    assert row(table, "BadNets")[6] == "92.0 (90.0 to 94.0)" and row(table, "BadNets")[-1] == "2"
    assert row(table, "BadCLIP")[:2] == ["-", "-"] and row(table, "WaNet")[3:6] == ["not run"] * 3


def test_cells_of_other_settings_are_left_out(cells, tmp_path):
    for seed in (0, 1):
        RunRecord("cell", "key", {"n": seed}, {}, seed).save(tmp_path / "badnets" / f"seed{seed}" / "cell")
    asked = {(attack, seed): {"n": 1} for attack in cells.attacks for seed in cells.seeds}
    some = Cells(tmp_path, cells.attacks, cells.seeds, settings=asked)
    assert some.others == [("badnets", 0)] and some.ba("badnets", "ft", 1) == [0.9]
    assert "3 of 6 cells" in counts(some, MODELS)
    assert counts(some, MODELS).endswith("Left out, since run with other settings: badnets/seed0.")
    table = render_cells(tmp_path / "table.md", "any", cells.attacks, cells.seeds, asked)
    assert "other settings: badnets/seed0" in table and "Left out" not in counts(cells, MODELS)


def test_a_cell_of_which_a_stage_was_run_again_is_not_collected(tmp_path):
    cell = tmp_path / "cells" / "badnets" / "seed0"
    shutil.copytree(next((FOLDER / "records").glob("*/*/seed0/cell")).parent, cell)
    assert collect(tmp_path / "cells", tmp_path / "records") == [tmp_path / "records" / "badnets" / "seed0"]
    again = RunRecord.load(cell / "victim")
    again.key = "another"
    again.save(cell / "victim")
    with pytest.raises(ValueError, match="stage `victim`.*found `another`"):
        collect(tmp_path / "cells", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_how_much_of_the_fall_came_in_the_first_epoch(cells):
    # victim ends at (0.90 + 0.94) / 2, FT after its first epoch at (0.675 + 0.525) / 2 and ends at (0.6 + 0.4) / 2
    assert row(curves_table(cells, MODELS), "BadNets", "FT") == ["92.0", "60.0", "50.0", "76 %"]
    assert row(curves_table(cells, MODELS), "WaNet", "FT") == ["not run"] * 4


def test_verdicts_say_what_holds(cells):
    paper = paper_table(read_papers(FOLDER / "papers.yaml")["table1"])
    said = orderings(cells, paper) + margins(cells, paper)
    found = {(one.claim, one.attack): one for one in said}
    assert len(found) == len(said) == 3 * 2 + 2 + 3 * 2
    first = found["ASR@1: CleanerCLIP ≤ CleanCLIP", "badnets"]
    assert first.holds and first.paper == "0.45 ≤ 1.88"
    assert first.ours == "victim 92.00: 5.00 ≤ 6.00, on 1 of 2 seeds"
    assert found["ASR@1: CleanerCLIP ≤ CleanCLIP", "badclip"].holds is False
    assert found["ASR@1: CleanerCLIP ≤ CleanCLIP", "wanet"].holds is None
    margin = found["BA@1: CleanerCLIP within the paper's margin of Victim", "badnets"]
    assert margin.holds and (margin.ours, margin.paper) == ("-5.00, on 2 of 2 seeds", "-6.68")
    assert (first.word, margin.word) == ("seeds disagree", "holds")
    assert found["BA@1: CleanerCLIP within the paper's margin of FT", "badnets"].holds is False  # -3.0 for -2.34
    assert found["ASR@1 after FT is highest for BadCLIP", ""].holds is None  # WaNet is missing
    two = Cells(cells.root, ("badnets", "badclip"), (0, 1))
    found = {one.claim: one for one in orderings(two, paper)}
    assert found["ASR@1 after FT is highest for BadCLIP"].holds
    assert found["ASR@1 after CleanCLIP is highest for BadCLIP"].holds is False
    assert found["ASR@1 after CleanCLIP is highest for BadCLIP"].ours == "BadNets 6.00, on 0 of 2 seeds"
    assert found["ASR@1 after CleanCLIP is highest for BadCLIP"].word == "**does not hold**"


def test_verdicts_compare_what_was_measured_on_the_same_seeds(cells):
    (cells.root / "badnets/seed0/evaluate/cleanclip/record.json").unlink()
    some = Cells(cells.root, ("badnets", "badclip"), (0, 1))
    paper = paper_table(read_papers(FOLDER / "papers.yaml")["table1"])
    found = {(one.claim, one.attack): one for one in orderings(some, paper)}
    order = found["ASR@1: CleanerCLIP ≤ CleanCLIP", "badnets"]
    assert order.holds and order.ours == "victim 94.00: 0.00 ≤ 4.00, on 1 of 1 seeds"
    assert some.measured(("badnets", "ft"), ("badclip", "ft")) == [0, 1]
    assert some.measured(("badnets", "cleanclip"), ("badclip", "ft")) == [1]
    assert found["ASR@1 after CleanCLIP is highest for BadCLIP", ""].ours == "BadNets 4.00, on 0 of 1 seeds"


def test_the_papers_figures_stand_beside(cells):
    table = beside(cells, MODELS, paper_table(read_papers(FOLDER / "papers.yaml")["table1"]))
    assert row(table, "1", "CleanCLIP", "paper") == ["52.62 / 1.88", "52.61 / 69.87", "52.74 / 0.53"]
    assert row(table, "10", "CleanCLIP", "ours")[2] == "not run"
    with pytest.raises(ValueError, match="Expected 2 figures for `ft` at 1"):
        paper_table({"source": "", "attacks": ["a", "b"], "figures": {1: {"ft": ["1/2"]}}})


def test_results_are_what_the_committed_records_give():
    assert (ROOT / "RESULTS.md").read_text(encoding="utf-8") == render_results(FOLDER), "run `make results`"


def test_pictures_are_what_the_committed_records_give(tmp_path):
    """Drawn again they show the same; another release of Matplotlib sets letters a pixel elsewhere."""
    as_pinned = f"matplotlib=={version('matplotlib')}" in (ROOT / "constraints.txt").read_text().splitlines()
    drawn = render_pictures(FOLDER, tmp_path)
    assert sorted(path.name for path in drawn) == sorted(path.name for path in (FOLDER / PICTURES).iterdir())
    for path in drawn:
        ours, theirs = (
            np.asarray(PIL.Image.open(one).convert("L"), float) for one in (path, FOLDER / PICTURES / path.name)
        )
        assert np.abs(np.subtract(ours.shape, theirs.shape)).max() <= (0 if as_pinned else 2), path.name
        same = not as_pinned or np.abs(ours - theirs).mean() < 1
        assert same, f"run `make results` for {path.name}"
        assert f"{PICTURES}/{path.name}" in (ROOT / "RESULTS.md").read_text(encoding="utf-8")


def test_pictures_show_means_and_ranges_over_seeds(cells):
    accuracy, success = draw_rates(cells, MODELS).axes
    assert [line.get_ydata()[0] for line in accuracy.lines[::1] if len(line.get_ydata()) == 2][0] == 91  # the victim's
    bars = [bar.get_height() for bar in success.patches]
    assert bars[:2] == pytest.approx([92, 100]) and bars[2:4] == pytest.approx([50, 96])  # victim, then FT
    assert [text.get_text() for text in success.get_xticklabels()] == ["BadNets", "BadCLIP", "WaNet"]
    first = draw_epochs_by_attack(cells, MODELS).axes[0]
    lines = {line.get_label(): list(line.get_ydata()) for line in first.lines}
    assert lines["FT"] == pytest.approx([92, 60, 50]) and list(lines) == ["FT", "CleanCLIP", "CleanerCLIP"]


def test_records_of_a_grid_are_collected(tmp_path):
    run = tmp_path / "cells" / "badnets" / "seed0"
    RunRecord("any", "key", {"model": "/home/eve/model"}, {}, 0).save(run / "trial" / "ft,learning_rate=0.1")
    grid = {"grid": {"runs": [str(run)], "name": "trial"}, "defenses": {"ft": {}}, "blocks": [{"title": "one"}]}
    (path,) = collect_grid(grid_from(grid), tmp_path / "records")
    assert path == tmp_path / "records" / "seed0" / "trial" / "ft,learning_rate=0.1" / "record.json"
    assert RunRecord.load(path).config == {"model": "…/model"}
    with pytest.raises(FileNotFoundError, match="Run the grid"):
        collect_grid(grid_from({**grid, "grid": {"runs": [str(run)], "name": "other"}}), tmp_path)
    with pytest.raises(FileNotFoundError, match="finished cells"):
        collect(tmp_path / "cells", tmp_path)
