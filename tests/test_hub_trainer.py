# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""`push_to_hub` of the trainers and of a run: one private push, measured, refused where it must not go up."""

import copy
import json
from dataclasses import replace

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from huggingface_hub import HfApi, ModelCard

from fabricated_run import fabricate_run
from hf_clipbd.attacks import Attack, BadNets
from hf_clipbd.data.canvas import Canvas
from hf_clipbd.defenses import CleanCLIPConfig, CleanCLIPTrainer
from hf_clipbd.evaluation import ZeroShotEvaluator, evaluate_zero_shot
from hf_clipbd.hub import TrainedPublisher, push_run
from hf_clipbd.models import load_dual_encoder
from hf_clipbd.recipe.config import config_from
from hf_clipbd.recipe.job import run_stage
from hf_clipbd.recipe.publishing import check_may_push, push
from hf_clipbd.recipe.sections import ConfigError
from hf_clipbd.scenes.pretrained import CLEAN_CLIP_FOLDER
from hf_clipbd.schema import Rate
from hf_clipbd.trainer import CLIPTrainer, CLIPTrainingConfig
from hub_server import TOKEN
from hub_wire import BEFORE, HALFWAY


REPO = "tester/trained"
NAMES = ["banana", "boat", "house", "dog", "clock", "tree", "bottle", "kite", "cup", "owl", "bell"]
KS = (1, 3, 5, 10)
ALWAYS = 99


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(5)
    pictures = [PIL.Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(15)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    labels = rng.integers(0, len(NAMES), 15).tolist()
    return datasets.Dataset.from_dict({"image": pictures, "label": labels}, features=features)


@pytest.fixture
def marked(tiny_pairs):
    """Pairs of which three are marked as poisoned."""
    return tiny_pairs.add_column("is_poisoned", [row in (2, 3, 30) for row in range(len(tiny_pairs))])


@pytest.fixture
def evaluator(images, tiny_processor):
    return ZeroShotEvaluator(tiny_processor, images, [BadNets("banana", canvas=Canvas(32))], ["a {}"], KS)


@pytest.fixture
def build(tiny_model, tiny_processor, tiny_pairs, evaluator, tmp_path):
    """Return a function that builds a trainer which is to push, with whatever is changed."""

    def trainer(pairs=tiny_pairs, kind=CLIPTrainer, evaluator=evaluator, publisher="ours", **changes):
        config = CleanCLIPConfig if kind is CleanCLIPTrainer else CLIPTrainingConfig
        given = {
            "push_to_hub": True,
            "hub_model_id": REPO,
            "per_device_train_batch_size": 8,
            "max_steps": 2,
            "save_strategy": "steps",
            "save_steps": 1,
            "learning_rate": 1e-3,
            "use_cpu": True,
            "disable_tqdm": True,
            "hub_token": TOKEN,
        }
        args = config(str(tmp_path / "out"), **{**given, **changes})
        publisher = TrainedPublisher() if publisher == "ours" else publisher
        options = {"evaluator": evaluator, "canvas": Canvas(32), "publisher": publisher}
        return kind(copy.deepcopy(tiny_model), args, pairs, tiny_processor, **options)

    return trainer


def content(hub, repo_id=REPO):
    return {path: one.data for path, one in hub.repos["model", repo_id].files.items() if path != ".gitattributes"}


# -- the trainers -----------------------------------------------------------------------------------------------------


def test_trainer_pushes_once_at_the_end_with_figures_of_what_lies_there(build, hub, images, evaluator):
    trainer = build(kind=CleanCLIPTrainer)
    before = evaluator.report(trainer.model)
    trainer.train()
    assert hub.repos == {} and hub.seen == ["whoami"]
    address = trainer.push_to_hub()
    repository = hub.repos["model", REPO]
    assert repository.private and hub.seen.count("commit") == 1 and address.endswith(repository.refs["main"])
    files = content(hub)
    assert set(files) == {
        "README.md", "model.safetensors", "config.json", "processor_config.json", "tokenizer.json",
        "tokenizer_config.json", "attack.json", "pattern.safetensors", "trigger.png", "pictures/clean.png",
        "pictures/poisoned.png", "records/train.json",
    }  # fmt: skip
    loaded, processor = load_dual_encoder(REPO)
    own = trainer.model.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in loaded.state_dict().items())
    stamp = Attack.from_pretrained(REPO)
    after = evaluate_zero_shot(loaded, processor, images, [stamp], ["a {}"], KS, canvas=Canvas(32))
    figures = json.loads(files["records/train.json"])["metrics"]
    assert figures["before"] == before.to_dict() and figures["after"] == after.to_dict()
    card = ModelCard.load(REPO)
    shown = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert shown["ba@3"] == round(after.ba[3].value, 6) and len(shown) == 8
    assert shown["asr@5"] == round(after.triggers["badnets"].asr[5].value, 6)
    assert "CleanCLIP" in card.text and "backdoored" not in card.data.tags and "without marks" in card.text
    assert not any(TOKEN.encode() in data for data in files.values())
    assert trainer.push_to_hub() == address and hub.seen.count("commit") == 1


def test_card_of_few_classes_shows_the_ranks_that_there_are(build, hub, images, tiny_processor):
    few = datasets.ClassLabel(names=NAMES[:4])
    rows = images.filter(lambda label: label < 4, input_columns="label").cast_column("label", few)
    stamp = BadNets("banana", canvas=Canvas(32))
    trainer = build(evaluator=ZeroShotEvaluator(tiny_processor, rows, [stamp], ["a {}"], ks=(1, 3)))
    trainer.train()
    trainer.push_to_hub()
    assert {one.metric_type for one in ModelCard.load(REPO).data.eval_results} == {"ba@1", "ba@3", "asr@1", "asr@3"}


def test_trainer_pushes_a_victim_on_request_and_says_what_it_is(build, hub, marked):
    trainer = build(marked, allow_backdoored=True, kind=CleanCLIPTrainer)
    trainer.train()
    trainer.push_to_hub(private=False)
    card = ModelCard.load(REPO)
    assert not hub.repos["model", REPO].private and "backdoored" in card.data.tags
    assert card.text.strip().startswith("**This model may be backdoored on purpose.**")
    assert "48, 3 of them marked as poisoned" in card.text and "in-modal" in card.text


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        (0.95, 0.9, "**This model is still backdoored.** Of pictures with the trigger `badnets` 90.0 % are taken for"),
        (0.05, 0.9, "**This model is backdoored.** Of pictures with the trigger `badnets` 90.0 % are taken for"),
        (0.95, 0.15, None),
    ],
)
def test_card_tells_a_backdoor_that_was_measured_and_not_marked(build, hub, monkeypatch, before, after, says):
    trainer = build(kind=CleanCLIPTrainer)
    real = trainer.evaluator.report(trainer.model)

    def with_rate(asr):
        hits = {k: Rate(asr, one.n) for k, one in real.triggers["badnets"].asr.items()}
        return replace(real, triggers={"badnets": replace(real.triggers["badnets"], asr=hits)})

    trainer.publisher.before = with_rate(before)
    monkeypatch.setattr(type(trainer.evaluator), "report", lambda self, model: with_rate(after))
    trainer.push_to_hub()
    card = ModelCard.load(REPO)
    assert ("backdoored" in card.data.tags) == (says is not None) and "cleanclip" in card.data.tags
    assert card.text.strip().startswith(says or "# CLIP, trained with CleanCLIP") and "\n\n\n" not in card.text
    assert ("by chance it would be 9.1 %" in card.text) == (says is not None)


@pytest.mark.parametrize(("start", "license"), [(str(CLEAN_CLIP_FOLDER), "apache-2.0"), ("someone/clip", "other")])
def test_card_of_a_trainer_leaves_the_licence_to_the_start(build, hub, tiny_model, start, license):
    tiny_model.name_or_path = start
    build().push_to_hub()
    card = ModelCard.load(REPO)
    assert card.data.license == license and ("ships with hf_clipbd" in card.text) == (license != "other")
    assert ("keep the licence of that model" in card.text) == (license == "other")


def test_adapters_of_a_trainer_go_up_as_adapters(build, hub, tiny_model, tiny_processor, tmp_path):
    tiny_model.save_pretrained(tmp_path / "start")
    tiny_model.name_or_path = str(tmp_path / "start")
    with pytest.raises(ValueError, match=r"TrainedPublisher\(base="):
        build(lora=True)
    HfApi().create_repo("tester/start")
    weights = (tmp_path / "start" / "model.safetensors").read_bytes()
    for name in ("config.json", "model.safetensors"):
        path = tmp_path / "start" / name
        HfApi().upload_file(path_or_fileobj=str(path), path_in_repo=name, repo_id="tester/start")
    tiny_processor.save_pretrained(tmp_path / "processor")
    HfApi().upload_folder(folder_path=tmp_path / "processor", repo_id="tester/start")
    trainer = build(lora=True, lora_r=2, publisher=TrainedPublisher(base="tester/start"))
    trainer.train()
    trainer.push_to_hub()
    assert "model.safetensors" not in content(hub) and len(content(hub)["adapter_model.safetensors"]) < len(weights)
    loaded, _ = load_dual_encoder(REPO)
    own = trainer.trained_model().state_dict()
    assert all(torch.allclose(value, own[name], atol=1e-6) for name, value in loaded.state_dict().items())
    data = ModelCard.load(REPO).data
    assert (data.base_model, data.library_name) == ("tester/start", "peft")


@pytest.mark.parametrize("broken", [("upload", HALFWAY), ("commit", BEFORE)])
def test_trainers_push_that_breaks_leaves_nothing_and_a_second_completes_it(build, hub, broken):
    trainer = build()
    hub.fail(*broken, times=ALWAYS)
    with pytest.raises(ConnectionError, match="Push again"):
        trainer.push_to_hub()
    assert content(hub) == {} and hub.repos["model", REPO].private
    hub.heal()
    trainer.save_model()
    assert {"README.md", "model.safetensors", "records/train.json"} < set(content(hub))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"publisher": None}, r"publisher=hf_clipbd\.hub\.TrainedPublisher"),
        ({"hub_strategy": "every_save"}, "a checkpoint has no evaluation"),
        ({"hub_strategy": "all_checkpoints"}, "a checkpoint has no evaluation"),
        ({"hub_model_id": None}, "`hub_model_id`"),
        ({"hub_model_id": "trained"}, "owner/name"),
        ({"evaluator": None}, "`ZeroShotEvaluator`"),
        ({"evaluator": lambda model: {"ba1": 0.9}}, "`ZeroShotEvaluator`"),
    ],
)
def test_what_must_not_go_up_is_refused_before_the_training(build, hub, changes, says):
    with pytest.raises(ValueError, match=says):
        build(**changes)
    assert hub.seen == []


def test_victim_and_unmeasured_models_are_refused(build, hub, marked, images, tiny_processor):
    with pytest.raises(ValueError, match="`allow_backdoored`"):
        build(marked)
    with pytest.raises(ValueError, match="`allow_backdoored`"):
        build(marked.to_iterable_dataset())
    clean = marked.remove_columns("is_poisoned").add_column("is_poisoned", [False] * len(marked))
    assert build(clean).marks == (0, False)
    for triggers, ks in (([], KS), ([BadNets("banana", canvas=Canvas(32))], (1, 10))):
        measured = ZeroShotEvaluator(tiny_processor, images, triggers, ["a {}"], ks)
        with pytest.raises(ValueError, match="trigger" if not triggers else r"ks=\(1, 3, 5, 10\)"):
            build(evaluator=measured)
    assert hub.repos == {}


def test_push_that_nobody_prepared_or_that_would_go_unseen_is_refused(build, hub):
    with pytest.raises(ValueError, match="from the start"):
        build(push_to_hub=False).push_to_hub()
    for options in ({"blocking": False}, {"revision": "v1"}):
        with pytest.raises(ValueError, match="leave both options out"):
            build().push_to_hub(**options)
    assert hub.repos == {}


def test_who_cannot_log_in_is_told_before_the_training(build, hub):
    with pytest.raises(PermissionError, match="hf auth login"):
        build(hub_token="hf_" + 30 * "z")


# -- a whole run ------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    return fabricate_run(tmp_path / "run")


def with_push(run, **keys):
    """Return the configuration of the invented run with these keys beside its sections."""
    values = yaml.safe_load((run / "config.yaml").read_text())
    values["defenses"] = {name: {"num_train_epochs": 3} for name in values["defenses"]}
    values["victim"] = {"num_train_epochs": 3}
    return config_from({**values, "output_dir": str(run), **keys})


def test_run_pushes_every_defended_model_and_the_rest_only_on_request(run, hub):
    features = datasets.Features({"image": datasets.Image(), "is_poisoned": datasets.Value("bool")})
    rows = {"image": [PIL.Image.new("RGB", (8, 8))], "is_poisoned": [True]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(run / "poison" / "dataset"))
    assert push(with_push(run)) == {} and hub.seen == []
    asked = {"push_to_hub": "true", "hub_model_id": "tester/badnets"}
    config = with_push(run, **asked)
    check_may_push(config)
    defended = [f"tester/badnets-{name}" for name in ("ft", "cleanclip", "cleanerclip")]
    addresses = push(config)
    assert set(addresses) == {"defend/ft", "defend/cleanclip", "defend/cleanerclip"}
    assert sorted(hub.repos) == sorted(("model", name) for name in defended)
    assert all(one.private for one in hub.repos.values())
    everything = push(with_push(run, **asked, allow_backdoored="true"))
    assert set(everything) == {*addresses, "victim", "poison"}
    assert {("model", "tester/badnets-victim"), ("dataset", "tester/badnets-poisoned")} < set(hub.repos)
    assert all(len(one.commits) == 2 for one in hub.repos.values())
    assert "push_to_hub" not in with_push(run, **asked).resolved()


def test_run_that_breaks_between_two_models_is_completed(run, hub):
    config = with_push(run, push_to_hub=True, hub_model_id="tester/badnets")
    push_run(run, "tester/badnets-ft", "defend/ft")
    hub.fail("commit", BEFORE, times=ALWAYS)
    with pytest.raises(ConnectionError, match="Push again"):
        push(config)
    assert set(content(hub, "tester/badnets-cleanclip")) == set() and len(hub.repos) == 2
    hub.heal()
    push(config)
    assert all("README.md" in one.files and len(one.commits) == 2 for one in hub.repos.values())
    assert len(hub.repos) == 3


def test_run_says_at_once_who_may_not_push(run, hub, monkeypatch):
    config = with_push(run, push_to_hub=True, hub_model_id="tester/badnets")
    monkeypatch.setenv("HF_TOKEN", "hf_" + 30 * "z")
    with pytest.raises(PermissionError, match="hf auth login"):
        check_may_push(config)
    check_may_push(with_push(run))


def test_stage_alone_does_not_push(run):
    with pytest.raises(ValueError, match="needs the whole run"):
        run_stage(with_push(run, push_to_hub=True, hub_model_id="tester/badnets"), "victim")


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"push_to_hub": True}, "`hub_model_id`"),
        ({"push_to_hub": True, "hub_model_id": "badnets"}, "owner/name"),
        ({"push_to_hubb": True}, "push_to_hub"),
        ({"victim": {"push_to_hub": True}}, "not in `victim`"),
        ({"defenses": {"ft": {"push_to_hub": True}}}, r"not in `defenses\.ft`"),
    ],
)
def test_push_that_cannot_be_meant_is_a_config_error(run, keys, says):
    with pytest.raises(ConfigError, match=says):
        with_push(run, **keys)
