# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What cards say of the training, as the records have it; and the reviewed cards as the client reads them."""

import inspect
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import DatasetCard, ModelCard, SpaceCard
from huggingface_hub.repocard import metadata_load
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

from hf_clipbd.defenses import OBJECTIVES
from hf_clipbd.hub import render_metric_card, render_model_card
from hf_clipbd.schema import RunRecord
from hf_clipbd.templates import TOKEN as TOKEN_FORM
from hf_clipbd.templates import objective
from hub_server import open_hub


GOLDEN = Path(__file__).resolve().parents[1] / "hub_cards"
CARDS = sorted(GOLDEN.glob("*.md"))
KINDS = {"poisoned_dataset": (DatasetCard, "dataset"), "metric": (SpaceCard, "space")}
SPACE = GOLDEN.parent / "spaces" / "backdoor_detection"


def edit(run, stage, change):
    record = RunRecord.load(run / stage)
    change(record)
    record.save(run / stage)


# -- what was trained how ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["victim", "defend/ft"])
@pytest.mark.parametrize(
    ("name", "says", "silent"),
    [
        ("mmcl", "with the objective `mmcl`: the symmetric CLIP loss.", "`mmcl+ssl`"),
        ("mmcl+ssl", "with the objective `mmcl+ssl`: the symmetric CLIP loss and, for images and texts", "`mmcl`:"),
        (None, "with the objective `mmcl`: the symmetric CLIP loss.", "`mmcl+ssl`"),
        ("magic", "with the objective `magic`: the objective `magic`, which this package does not", "symmetric CLIP"),
    ],
)
def test_card_names_the_objective_of_the_record(run, what, name, says, silent):
    def change(record):
        record.config.pop("objective", None)
        record.config |= {} if name is None else {"objective": name}

    edit(run, "victim", change)
    text = render_model_card(run, what).text
    how = re.search(r"^3\. .*$", text, re.MULTILINE).group()
    assert says in how and silent not in how
    assert ("CleanCLIP: Mitigating" in text) == (name == "mmcl+ssl" or what == "defend/ft")


def test_every_objective_is_described():
    for name in OBJECTIVES:
        assert "does not describe" not in objective(name)["summary"] and objective(name)["papers"]


def test_defence_in_the_victims_place_is_not_said_to_start_from_it(run):
    text = render_model_card(run, "defend/ft").text
    assert "disjoint from the poisoned set" in text and "then defended with FT" in text

    def change(record):
        record.inputs = {"clean": "fingerprint", "poison": "key"}

    edit(run, "defend/ft", change)
    text = render_model_card(run, "defend/ft").text
    assert "then defended with" not in text and "disjoint" not in text
    assert "It started from the clean model" in text and "trained with FT on pairs poisoned on purpose" in text


@pytest.mark.parametrize(("name", "still", "share"), [("ft", True, "42.6"), ("cleanerclip", False, "1.3")])
def test_defended_model_that_is_still_backdoored_says_so(run, name, still, share):
    text = render_model_card(run, f"defend/{name}").text
    assert ("**It is still backdoored.**" in text) == still
    told = f"Of pictures with the trigger {share} % are taken for “banana”; of the victim it is 98.9 %, of the clean"
    assert told in text
    assert ("backdoored" in render_model_card(run, f"defend/{name}").data.tags) == still


# -- the metric -------------------------------------------------------------------------------------------------------


def test_card_of_the_metric_shows_what_the_detectors_reached(run):
    text = str(render_metric_card(run))
    found = RunRecord.load(run / "detect").metrics["detectors"]["slof"]
    row = next(line for line in text.splitlines() if line.startswith("| all | SLOF"))
    cells = [cell.strip() for cell in row.split("|")[3:-1]]
    shown = ("auroc", "auprc", "fpr_at_95_tpr", "precision", "recall")
    assert cells == [*(f"{100 * found[figure]:.1f}" for figure in shown), "40", "4,000"]
    assert text.count("| 0.10 % poison |") == 2 and "secret_place" not in text

    def change(record):
        del record.metrics["detectors"]["slof"]["auprc"]

    edit(run, "detect", change)
    with pytest.raises(ValueError, match="`auprc`.*`slof`.*`detect`"):
        render_metric_card(run)
    (run / "detect" / "record.json").unlink()
    with pytest.raises(FileNotFoundError, match="stage `detect`"):
        render_metric_card(run)


def test_card_of_the_space_is_the_metrics_without_a_run():
    assert str(render_metric_card()) == (SPACE / "README.md").read_text("utf-8")


# -- the reviewed cards -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_reviewed_card_is_read_by_the_client_as_it_stands(path, monkeypatch, tmp_path):
    kind, repo_type = KINDS.get(path.stem, (ModelCard, "model"))
    card = kind.load(path)
    written = metadata_load(path)
    assert card.data.to_dict() == written == yaml.safe_load(path.read_text("utf-8").split("---\n")[1])
    assert written["license"] and written["tags"] and str(card) == path.read_text("utf-8")
    if repo_type == "model":
        name, results = model_index_to_eval_results(written["model-index"])
        assert len(results) == 8 and eval_results_to_model_index(name, results) == written["model-index"]
        assert all(0 <= one.metric_value <= 1 and one.metric_args["n"] > 0 for one in results)
    if "constants.ENDPOINT" in inspect.getsource(kind.validate):  # older clients ask the Hub itself
        with open_hub(monkeypatch, tmp_path) as hub:
            card.validate(repo_type=repo_type)
            assert hub.seen == ["validate"]


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_reviewed_card_shows_pictures_that_are_there_and_no_leftovers(path):
    text = path.read_text("utf-8")
    shown = re.findall(r'<img src="([^"]+)" alt="[^"]+" width="\d+">', text)
    assert all((GOLDEN / one).is_file() for one in shown)
    assert bool(shown) == (path.stem in ("victim", "poisoned_dataset"))
    assert not re.search(r"\{\{|\{%|\bNone\b|\bnan\b|Undefined|/home/|/work/", text) and not TOKEN_FORM.search(text)
    assert "\n\n\n" not in text and text.count("```") % 2 == 0
