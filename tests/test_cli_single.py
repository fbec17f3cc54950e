# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The single commands on data of one's own: triggers of one name, framing, captions made of labels, lone splits."""

import json
import logging

import datasets
import numpy as np
import PIL.Image
import pytest

from hf_clipbd.attacks import SIG, BadNets, TextTrigger
from hf_clipbd.cli import build_parser, main
from hf_clipbd.cli.results import after_evaluate, after_poison, after_training
from hf_clipbd.data.canvas import Canvas
from hf_clipbd.data.sources import lone_split
from hf_clipbd.features import embed_dataset
from hf_clipbd.models import load_dual_encoder
from hf_clipbd.recipe import assess, single
from hf_clipbd.recipe.own_data import Data, keep_framings
from hf_clipbd.recipe.own_triggers import triggers_by_name
from hf_clipbd.schema import RunRecord
from hf_clipbd.trainer import CLIPTrainer, CLIPTrainingConfig


N = 48
TRAINING = "--per_device_train_batch_size 16 --num_train_epochs 1"
CORNER = "--size 32 --attack.patch_size 4 --attack.place corner"


@pytest.fixture(scope="module")
def work(tmp_path_factory, _untouched_model, tiny_processor):
    """Return a folder with a model, wide pairs as Parquet and the same pictures with labels for captions."""
    folder = tmp_path_factory.mktemp("single")
    _untouched_model.save_pretrained(folder / "model")
    tiny_processor.save_pretrained(folder / "model")
    pictures = [
        PIL.Image.fromarray(np.random.default_rng(row).integers(0, 256, (32, 64, 3), np.uint8)) for row in range(N)
    ]
    columns = {"image": pictures, "caption": [f"a cup number {row}" for row in range(N)]}
    datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image()).to_parquet(folder / "pairs.parquet")
    kinds = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cup", "owl", "banana"])}
    )
    labels = {"image": pictures, "label": [row % 3 for row in range(N)]}
    datasets.Dataset.from_dict(labels, features=kinds).to_parquet(folder / "labelled.parquet")
    return folder


# -- triggers and records ---------------------------------------------------------------------------------------------


def test_triggers_of_one_name_are_told_apart_by_their_folders(tmp_path):
    one, two, sig = (tmp_path / name for name in ("one/trigger", "two/trigger", "three/sig"))
    for folder, size in ((one, 3), (two, 5), (sig, 7)):
        BadNets(target="cup", patch_size=size).save_pretrained(folder)
    SIG(target="cup").save_pretrained(tmp_path / "four")
    found = triggers_by_name([str(one), str(two)])
    assert {name: trigger.patch_size for name, trigger in found.items()} == {"one/trigger": 3, "two/trigger": 5}
    assert list(triggers_by_name([str(one), str(sig)])) == ["trigger", "sig"]
    assert list(triggers_by_name([str(one), str(sig), str(tmp_path / "four")])) == ["trigger", "sig", "four"]
    with pytest.raises(ValueError, match="each trigger once"):
        triggers_by_name([str(one), str(one)])


def test_an_evaluation_takes_the_place_of_an_evaluation_alone(tmp_path, monkeypatch, capsys):
    victim, again = tmp_path / "victim", tmp_path / "measured" / "victim"
    RunRecord("victim", "key", {"kind": "train"}, {"history": []}, 0).save(victim)
    before, measured = (victim / "record.json").read_bytes(), []

    def measure(*_):
        measured.append(1)
        return {"report": {"ba": {"1": {"value": 0.5, "n": 4}}, "triggers": {}, "n_classes": 3}}, {}

    monkeypatch.setattr(assess, "assess", measure)
    for out in (victim, victim / "record.json"):
        assert main(["evaluate", "any", "--data", "scenes", "--out", str(out)]) == 2
    assert "`train`" in capsys.readouterr().err and not measured
    assert (victim / "record.json").read_bytes() == before
    for _ in range(2):
        assert main(["evaluate", "any", "--data", "scenes", "--out", str(again)]) == 0
    assert RunRecord.load(again).config["kind"] == "evaluate" and len(measured) == 2


# -- poisoning --------------------------------------------------------------------------------------------------------


def test_samples_of_a_second_poisoning_are_the_stamped_rows(work, tmp_path):
    first, kept, second = (tmp_path / name for name in ("first", "kept", "second"))
    assert main(f"poison {work}/pairs.parquet --target cup --count 6 {CORNER} --out {first}".split()) == 0
    rows = datasets.load_from_disk(str(first / "dataset"))
    rows.select([row for row in range(N) if row % 4]).save_to_disk(kept)
    assert main(f"poison {kept} --target cup --attack sig --count 8 --size 32 --out {second}".split()) == 0
    rows, listed = Data(str(second)).pairs(), json.loads((second / "samples" / "samples.json").read_text())
    assert len(listed) == 8
    for number, one in enumerate(listed):
        row, before = rows[one["index"]], Data(str(kept)).pairs()[one["index"]]
        assert row["trigger"] == "sig" and one["caption_poisoned"] == row["caption"]
        assert one["caption_clean"] == before["caption"]
        for name, image in (("clean", Canvas(32)(before["image"])), ("poisoned", row["image"])):
            with PIL.Image.open(second / "samples" / f"{number:02d}_{name}.png") as shown:
                np.testing.assert_array_equal(np.asarray(shown), np.asarray(image))


@pytest.mark.parametrize(
    ("amount", "says"),
    [
        ("--rate 1.5 --dry_run", "One percent is 0.01"),
        ("--count -1 --dry_run", "at least 0"),
        ("--rate 0.0001", "at least one row for `badnets`, but a rate of 0.0001 of 48 rows"),
        ("--rate 0.0001 --dry_run", "at least one row"),
        ("--count 0", "at least one row"),
        ("--count 1 --attack.patch_size 400", "fits on a picture"),
    ],
)
def test_a_refused_poisoning_leaves_nothing(work, tmp_path, capsys, amount, says):
    assert main(f"poison {work}/pairs.parquet --target cup {amount} --size 32 --out {tmp_path / 'out'}".split()) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.glob("out/[!.]*")) and not (tmp_path / "out" / ".partial").exists()


def test_a_stream_of_which_no_row_was_drawn_says_so(work, tmp_path, capsys):
    line = f"poison {work}/pairs.parquet --target cup --rate 0.0001 --streaming --size 32 --out {tmp_path / 'out'}"
    assert main(line.split()) == 0
    assert "drew none: nothing is poisoned" in capsys.readouterr().out


def test_a_rate_out_of_range_is_told_by_the_name_of_its_trigger(work, tmp_path, capsys):
    (tmp_path / "two.yaml").write_text("triggers: {a: {attack: sig, rate: 0.1}, b: {attack: badnets, rate: 5}}")
    line = f"poison {work}/pairs.parquet --target cup --config {tmp_path}/two.yaml --out {tmp_path}/out --dry_run"
    assert main(line.split()) == 2
    assert "`triggers.b`" in capsys.readouterr().err


# -- searches ---------------------------------------------------------------------------------------------------------


def test_a_search_frames_every_row_as_the_poisoned_ones_are(work, tmp_path, monkeypatch):
    poisoned, found, seen = tmp_path / "poisoned", tmp_path / "found", []
    poison = f"poison {work}/pairs.parquet --target cup --count 6 {CORNER} --canvas squash --out {poisoned}"
    assert main(poison.split()) == 0
    embed = single.cached_embeddings
    monkeypatch.setattr(
        single, "cached_embeddings", lambda *given, **more: seen.append(embed(*given, **more)) or seen[-1]
    )
    search = f"detect {poisoned} --model {work}/model --detectors slof --cache {tmp_path / 'cache'} --out {found}"
    assert main([*search.split(), "--remove", "0.1"]) == 0
    model, processor = load_dual_encoder(work / "model")
    expected = embed_dataset(model, processor, Data(str(poisoned)).pairs(), canvas=Canvas(32, "squash"))
    np.testing.assert_allclose(seen[0]["image"], expected["image"], atol=1e-5)
    retrain = f"train {found}/filtered --model {work}/model --out {tmp_path / 'again'} {TRAINING}"
    assert main(retrain.split()) == 0
    assert RunRecord.load(tmp_path / "again").config["canvas"] == [32, "squash"]


@pytest.mark.parametrize(("of_data", "of_trigger"), [("squash", None), (None, "squash"), ("squash", "squash")])
def test_a_training_is_measured_on_the_framing_that_it_trains_on(of_data, of_trigger, work, tmp_path, monkeypatch):
    seen, pairs, triggers = {}, work / "pairs.parquet", ()

    def look(stage, trainer, config, load, pairs, evaluator, canvas):
        measured = evaluator(load()[1])
        seen.update(trained=canvas, measured=measured and measured.task.canvas)
        return stage

    def stage(*triggers, probed=True):
        probe = single.Probe(Data(str(work / "labelled.parquet")), triggers) if probed else None
        given = CLIPTrainer, CLIPTrainingConfig("unused", use_cpu=True), probe, None, tmp_path / "out"
        return single.train_model(str(work / "model"), Data(str(pairs)), *given)

    def trigger(name, kind=BadNets, mode="center_crop"):
        kind(target="cup", canvas=Canvas(32, mode)).save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    monkeypatch.setattr(single, "train_into", look)
    if of_data:
        pairs = tmp_path / "kept"
        datasets.Dataset.from_parquet(str(work / "pairs.parquet")).save_to_disk(str(pairs))
        keep_framings([Canvas(32, of_data)], pairs)
    if of_trigger:
        triggers = (trigger("squashed", mode=of_trigger),)
    text = trigger("text", TextTrigger)  # stamps no picture, so that its canvas is no framing
    for given in (triggers, (*triggers, text)):
        assert stage(*given).config["canvas"] == [32, "squash"]
        assert seen == dict.fromkeys(("trained", "measured"), Canvas(32, "squash"))
    with pytest.raises(ValueError, match="one framing.*center_crop.*squash.*one of them at a time.*`--canvas`"):
        stage(*triggers, trigger("cropped"))
    alone = [stage(text).config["canvas"], stage(probed=False).config["canvas"]]
    assert alone == [[32, "squash" if of_data else "center_crop"]] * 2


def test_captions_made_of_labels_are_said_and_rank_nothing(work, tmp_path, capsys):
    line = (
        f"detect {work}/labelled.parquet --model {work}/model --cache {tmp_path / 'cache'} --out {tmp_path / 'found'}"
    )
    assert main(line.split()) == 0
    assert RunRecord.load(tmp_path / "found").metrics["ranked_by"] == "multi_scale"
    said = capsys.readouterr().out
    assert "they are made of the labels in `label`" in said and "`multi_scale` ranks" in said
    line = f"evaluate {work}/model --data {work}/labelled.parquet --protocol retrieval"
    assert main(line.split()) == 2
    assert "captions for retrieval" in capsys.readouterr().err


# -- splits -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """Return a plain folder of pictures, a folder a class: 🤗 Datasets calls all of it `train`."""
    folder = tmp_path_factory.mktemp("plain") / "photos"
    for row in range(20):
        path = folder / ("cup", "owl")[row % 2] / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(row).integers(0, 256, (32, 32, 3), np.uint8)
        PIL.Image.fromarray(pixels).save(path)
    return folder


def test_the_only_split_of_a_folder_is_taken_unless_another_is_named(work, classes, tmp_path, capsys):
    line = f"evaluate {work}/model --data {classes} --out {tmp_path / 'measured'}"
    assert main(line.split()) == 0
    assert "has no split `test`; its only one, `train`, is taken" in capsys.readouterr().out
    assert RunRecord.load(tmp_path / "measured").config["data"]["split"] == "train"
    assert main([*line.split(), "--split", "test"]) == 2
    assert "Name one of these" in capsys.readouterr().err
    train = f"train {work}/pairs.parquet --model {work}/model --test {classes} --out {tmp_path / 'v'} {TRAINING}"
    assert main(train.split()) == 0
    assert RunRecord.load(tmp_path / "v").config["measured"]["data"]["split"] == "train"


def test_lone_splits(work, tmp_path, caplog):
    rows = datasets.Dataset.from_dict({"caption": ["a cup"]})
    datasets.DatasetDict({"part": rows}).save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"part": rows, "other": rows}).save_to_disk(tmp_path / "two")
    rows.save_to_disk(tmp_path / "rows")
    with caplog.at_level(logging.INFO, "hf_clipbd"):
        found = [lone_split(path, "test") for path in (tmp_path / "one", tmp_path / "two", tmp_path / "rows")]
    assert found == ["part", "test", "test"] and len(caplog.messages) == 1
    assert lone_split(work / "pairs.parquet", "test") == lone_split("./no/such", "test") == "test"


# -- flags and next steps ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("train --num_train_epochs 1 poisoned --out v", "DATASET comes first, before `--num_train_epochs`"),
        ("train --seed 1 --bf16 poisoned --out v", "DATASET comes first, before `--bf16`"),
        ("defend --defense ft --learning_rate 1e-5 victim --data d --out v", "MODEL comes first"),
        ("poison --attack.patch_size 6 photos --count 3 --out p", "SOURCE comes first"),
        ("run --seed 1 recipes/scenes/defend.yaml", "CONFIG comes first"),
    ],
)
def test_a_key_ahead_of_what_it_could_take_over_is_wrong_usage(line, says, capsys):
    with pytest.raises(SystemExit) as stop:
        main(line.split())
    assert stop.value.code == 2 and says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("train poisoned --tset scenes --out v", "`--tset`; did you mean `--test`?"),
        ("train --out v poisoned --learning_rat 1", "did you mean `learning_rate`?"),
        ("poison scenes --rat 3 --count 3 --out p", "did you mean `--rate`?"),
    ],
)
def test_a_misspelt_flag_names_the_nearest(line, says, capsys):
    assert main(line.split()) == 2
    assert says in capsys.readouterr().err


def parsed(line):
    return build_parser().parse_known_args(line.split())[0]


def test_next_steps_name_what_is_there(tmp_path):
    BadNets(target="cup").save_pretrained(tmp_path / "p" / "trigger")
    TextTrigger(target="cup").save_pretrained(tmp_path / "t" / "trigger")
    for name in ("a", "b"):
        BadNets(target="cup").save_pretrained(tmp_path / "many" / "trigger" / name)
    measured = {}
    for name in ("p", "t", "many", "none"):
        measured[name] = after_training(parsed(f"train {tmp_path / name} --out v"), str(tmp_path / name))[0]
    assert f"--trigger {tmp_path}/p/trigger" in measured["p"] and "retrieval" not in measured["p"]
    assert "--data PAIRS --protocol retrieval" in measured["t"] and f"{tmp_path}/t/trigger" in measured["t"]
    assert measured["many"].count("--trigger") == 2 and "--trigger TRIGGER" in measured["none"]
    assert "--trigger" not in after_poison(parsed("poison d --attack text_trigger --count 3 --out t"))[0]
    assert "--trigger t/trigger" in after_poison(parsed("poison d --count 3 --out t"))[0]
    (following,) = after_evaluate(parsed("evaluate defended --data d --out measured/defended"))
    assert following == "hf-clipbd compare UNDEFENDED measured/defended --baseline UNDEFENDED"
