# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""`hf-clipbd verify REPO` over the Hub's protocol: whole models, adapters on their base, and trainers' pushes."""

import json
import shutil

import datasets
import pytest
import yaml
from huggingface_hub import HfApi, ModelCard, hf_hub_download

from fabricated_run import fabricate_run, give_adapters
from hf_clipbd.attacks import SIG, BadNets
from hf_clipbd.cli import main
from hf_clipbd.data.canvas import Canvas
from hf_clipbd.evaluation import ZeroShotEvaluator
from hf_clipbd.hub import TrainedPublisher, card_rates, push_run
from hf_clipbd.models import load_dual_encoder
from hf_clipbd.recipe.config import config_from
from hf_clipbd.recipe.measuring import measure
from hf_clipbd.recipe.verify import verify
from hf_clipbd.recipe.world import World
from hf_clipbd.schema import RunRecord
from hf_clipbd.trainer import CLIPTrainer, CLIPTrainingConfig


REPO, BASE = "tester/defended", "tester/victim"
WHAT = "defend/cleanerclip"
FIGURES = {f"{name}@{k}{end}" for name, end in (("BA", ""), ("ASR", " badnets")) for k in (1, 3, 5, 10)}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return fabricate_run(tmp_path_factory.mktemp("runs") / "original")


@pytest.fixture
def run(original, tmp_path, tiny_model, tiny_processor):
    """An invented run whose models and trigger are real, with a configuration that `hf-clipbd run` takes."""
    run = shutil.copytree(original, tmp_path / "run")
    for stage in ("victim", WHAT):
        tiny_model.save_pretrained(run / stage)
        tiny_processor.save_pretrained(run / stage)
    BadNets(target="banana", seed=7, patch_size=4, canvas=Canvas(32)).save_pretrained(run / "poison" / "trigger")
    set_config(run, kind="scenes", path=None, size=32, n_test=70, clean_model="scenes")
    return run


def set_config(run, **world):
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["world"] |= world
    config["defenses"] = {name: {"num_train_epochs": 3} for name in config["defenses"]}
    (run / "config.yaml").write_text(yaml.safe_dump(config))


def record_measured(run, stages=("victim", WHAT)):
    """Give the records of these models the figures that they really have, and return those of the last."""
    config = config_from({**yaml.safe_load((run / "config.yaml").read_text()), "output_dir": str(run)})
    for stage in stages:
        measured = measure(config, World(config), *load_dual_encoder(run / stage))
        record = RunRecord.load(run / "evaluate" / stage.removeprefix("defend/"))
        record.metrics["report"] = measured.to_dict()
        record.save(run / "evaluate" / stage.removeprefix("defend/"))
    return measured


def shown(repo=REPO, **given):
    return {one.figure: (one.recorded, one.measured) for one in verify(repo, **given)}


# -- models of a run --------------------------------------------------------------------------------------------------


def test_every_figure_of_the_card_is_measured_again(run, hub, capsys):
    report = record_measured(run, (WHAT,))
    push_run(run, REPO)
    first = hub.repos["model", REPO].refs["main"]
    record = RunRecord.load(run / "evaluate" / "cleanerclip")
    record.metrics["report"]["ba"]["1"]["value"] = 0.9
    record.save(run / "evaluate" / "cleanerclip")
    push_run(run, REPO)
    rates = {f"BA@{k}": rate.value for k, rate in report.ba.items()}
    rates |= {f"ASR@{k} badnets": rate.value for k, rate in report.triggers["badnets"].asr.items()}
    found = list(verify(REPO, revision=first))
    assert {one.figure: one.measured for one in found} == rates and set(rates) == FIGURES
    assert {one.figure: one.recorded for one in found} == pytest.approx(rates, abs=1e-6)
    assert {one.model for one in found} == {"cleanerclip"}
    assert main(["verify", REPO, "--revision", first]) == 0
    assert capsys.readouterr().out.count("as recorded") == 8
    assert main(["verify", REPO]) == 1
    last = [line.split()[-1] for line in capsys.readouterr().out.splitlines()[1:]]
    assert last == ["DIFFERS", *7 * ["recorded"]]


def test_figure_changed_in_the_card_alone_is_found(run, hub, capsys):
    record_measured(run, (WHAT,))
    push_run(run, REPO)
    assert main(["verify", REPO, "--quiet"]) == 0
    card = ModelCard.load(REPO)
    card.data.eval_results[4].metric_value = 0.123
    HfApi().upload_file(path_or_fileobj=str(card).encode(), path_in_repo="README.md", repo_id=REPO)
    capsys.readouterr()
    assert main(["verify", REPO, "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert [one["figure"] for one in told if not one["agrees"]] == ["ASR@1 badnets"]
    assert {one["figure"]: one["recorded"] for one in told}["ASR@1 badnets"] == 0.123


def test_given_images_go_in_the_place_of_the_worlds(run, hub, tmp_path):
    record_measured(run, (WHAT,))
    push_run(run, REPO)
    config = config_from({**yaml.safe_load((run / "config.yaml").read_text()), "output_dir": str(run)})
    images = World(config).test
    datasets.DatasetDict(test=images.select(range(20))).save_to_disk(str(tmp_path / "few"))
    datasets.DatasetDict(test=images).save_to_disk(str(tmp_path / "all"))
    whole, few = (shown(data=str(tmp_path / name)) for name in ("all", "few"))
    assert whole == shown(data="scenes") == shown()
    assert all(recorded == pytest.approx(measured, abs=1e-6) for recorded, measured in whole.values())
    assert few["BA@10"][1] in {number / 20 for number in range(21)} and few != whole


def test_images_of_another_machine_have_to_be_given(run, hub):
    place = "/home/somebody/secret_place"
    set_config(run, kind="labelled", path=f"{place}/invented_photographs", clean_model=f"{place}/clean_clip")
    push_run(run, REPO)
    with pytest.raises(FileNotFoundError, match=r"…/invented_photographs.*`--data`"):
        list(verify(REPO))


def test_card_without_figures_cannot_be_verified(run, hub, tmp_path):
    push_run(run, REPO)
    card = ModelCard.load(REPO)
    card.data.eval_results = None
    HfApi().upload_file(path_or_fileobj=str(card).encode(), path_in_repo="README.md", repo_id=REPO)
    with pytest.raises(ValueError, match=r"BA and ASR in the metadata.*neither"):
        list(verify(REPO))
    with pytest.raises(FileNotFoundError, match="that you may read"):
        list(verify("tester/nothing"))


# -- adapters ---------------------------------------------------------------------------------------------------------


def test_adapters_are_measured_on_the_base_they_name(run, hub, tiny_model, capsys):
    give_adapters(run, WHAT, tiny_model, 0.3)
    report = record_measured(run)
    push_run(run, BASE, "victim", allow_backdoored=True)
    push_run(run, REPO, WHAT, base=BASE)
    assert "model.safetensors" not in hub.repos["model", REPO].files
    HfApi().upload_file(path_or_fileobj=b"other weights", path_in_repo="model.safetensors", repo_id=BASE)
    hub.seen.clear()
    found = shown()
    assert set(found) == FIGURES and "content" in hub.seen
    card = card_rates(hf_hub_download(REPO, "README.md"))
    assert {figure: recorded for figure, (recorded, _) in found.items()} == card
    assert all(recorded == pytest.approx(measured, abs=0.005) for recorded, measured in found.values())
    victim = RunRecord.load(run / "evaluate" / "victim").metrics["report"]
    assert report.to_dict()["ba"] != victim["ba"], "the adapters change nothing, so that nothing is shown"
    assert main(["verify", REPO]) == 0
    assert capsys.readouterr().out.count("as recorded") == 8


# -- trainers' pushes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [False, True])
def test_trainers_push_is_measured_on_given_images(run, hub, tiny_model, tiny_processor, tiny_pairs, tmp_path, lora):
    config = config_from({**yaml.safe_load((run / "config.yaml").read_text()), "output_dir": str(run)})
    images = World(config).test.select(range(30))
    datasets.DatasetDict(test=images).save_to_disk(str(tmp_path / "images"))
    triggers = [BadNets("banana", canvas=Canvas(32)), *([SIG("anchor", canvas=Canvas(32))] if lora else [])]
    evaluator = ZeroShotEvaluator(tiny_processor, images, triggers, ["a {}"], (1, 3, 5, 10), include_target=True)
    args = CLIPTrainingConfig(
        str(tmp_path / "out"), push_to_hub=True, hub_model_id=REPO, per_device_train_batch_size=8, max_steps=3,
        learning_rate=1e-2, use_cpu=True, disable_tqdm=True, lora=lora, lora_r=2, save_strategy="no",
    )  # fmt: skip
    publisher = TrainedPublisher()
    if lora:
        push_run(run, BASE, "victim", allow_backdoored=True)
        tiny_model, _ = load_dual_encoder(BASE)
        publisher = TrainedPublisher(base=BASE)
    trainer = CLIPTrainer(
        tiny_model, args, tiny_pairs, tiny_processor, evaluator=evaluator, canvas=Canvas(32), publisher=publisher
    )
    trainer.train()
    trainer.push_to_hub()
    found = shown(data=str(tmp_path / "images"))
    assert set(found) == (FIGURES | {f"ASR@{k} sig" for k in (1, 3, 5, 10)} if lora else FIGURES)
    assert all(recorded == pytest.approx(measured, abs=1e-5) for recorded, measured in found.values())
    with pytest.raises(FileNotFoundError, match="`--data`"):
        shown()
    names = images.features["label"].names
    other = images.cast_column("label", datasets.ClassLabel(names=[*names[1:], names[0]]))
    datasets.DatasetDict(test=other).save_to_disk(str(tmp_path / "other"))
    with pytest.raises(ValueError, match="images of the classes"):
        shown(data=str(tmp_path / "other"))
