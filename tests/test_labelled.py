# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Datasets in the layout of `clip-benchmark/wds_*`, class names and prompts from files, the kept text classifier."""

import copy
import io
import json
import os
import subprocess
import sys
import tarfile

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from huggingface_hub import HfApi
from tokenizers import normalizers

from hf_clipbd.cli import main
from hf_clipbd.evaluation import evaluate_zero_shot, load_benchmark, text_classifier
from hf_clipbd.evaluation import prompts as module
from hf_clipbd.evaluation.labelled import read_class_names, read_templates
from hf_clipbd.evaluation.protocol import class_names_of
from hf_clipbd.evaluation.rates import class_ranks
from hf_clipbd.recipe.assess import Question, labelled_images
from hf_clipbd.recipe.config import config_from
from hf_clipbd.recipe.own_data import Data
from hf_clipbd.recipe.world import World
from hf_clipbd.schema import EvalReport, RunRecord
from hub_server import TOKEN, HubServer, connect


NAMES = ["banana", "traffic light", "owl"]
TEMPLATES = ["a photo of a {c}.", "the {c}"]


def shard(path, rows, ending):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, (image, label) in rows:
            buffer = io.BytesIO()
            image.save(
                buffer,
                format={"webp": "WEBP", "png": "PNG"}[ending],
                **({"lossless": True} if ending == "webp" else {}),
            )
            for name, data in (
                (f"s{number:07d}.cls", str(label).encode()),
                (f"s{number:07d}.{ending}", buffer.getvalue()),
            ):
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    images = [PIL.Image.fromarray(rng.integers(0, 256, (32, 32 + i % 3, 3), dtype=np.uint8)) for i in range(25)]
    return [(image, int(label)) for image, label in zip(images, rng.integers(0, 3, 25), strict=True)]


@pytest.fixture(scope="module", params=["webp", "png"])
def folder(request, rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wds")
    (folder / "classnames.txt").write_text("\n".join(NAMES) + "\n")
    (folder / "zeroshot_classification_templates.txt").write_text("\n".join(TEMPLATES) + "\n")
    numbered = list(enumerate(rows))
    for number in range(11):  # so that shard 10 must not come after shard 1
        part = numbered[2 * number : 2 * number + 2] if number < 10 else numbered[20:]
        shard(folder / "test" / f"{number}.tar", part, request.param)
    turned = [(number, (image.rotate(180), label)) for number, (image, label) in numbered[:6]]
    shard(folder / "train" / "0.tar", turned, request.param)
    (folder / "test" / "nshards.txt").write_text("11")
    return folder


@pytest.mark.parametrize("streaming", [True, False])
def test_the_layout_gives_rows_names_and_prompts(streaming, folder, rows):
    found = load_benchmark(folder, "test", streaming)
    assert found.class_names == tuple(NAMES) and found.templates == ("a photo of a {}.", "the {}")
    assert isinstance(found.dataset, datasets.IterableDataset) == streaming
    read = list(found.dataset)
    assert [row[found.label_column] for row in read] == [label for _, label in rows]
    assert set(read[0]) == {found.image_column, found.label_column}
    pixels = [row[found.image_column].convert("RGB").tobytes() for row in read]
    assert pixels == [image.tobytes() for image, _ in rows]  # not encoded again on the way
    assert len(list(load_benchmark(folder, "train").dataset)) == 6


def test_zero_shot_on_the_layout_equals_zero_shot_on_a_table(folder, rows, tiny_model, tiny_processor):
    found = load_benchmark(folder)
    options = {"ks": (1, 2), "templates": found.templates, "class_names": found.class_names}
    columns = {"image_column": found.image_column, "label_column": found.label_column}
    streamed = evaluate_zero_shot(tiny_model, tiny_processor, found.dataset, **options, **columns)
    table = [{"image": image, "label": label} for image, label in rows]
    assert streamed == evaluate_zero_shot(tiny_model, tiny_processor, table, **options)
    assert streamed.ba[1].n == 25


def test_what_is_missing_is_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"validation/\*.tar.*\['test', 'train'\]"):
        load_benchmark(folder, "validation")
    with pytest.raises(FileNotFoundError, match="classnames.txt"):
        load_benchmark(tmp_path)
    (tmp_path / "names.txt").write_text("a\n\nb\n")
    with pytest.raises(ValueError, match=r"lines \[2\] are blank"):
        read_class_names(tmp_path / "names.txt")
    (tmp_path / "prompts.txt").write_text("a photo\n")
    with pytest.raises(ValueError, match="one `{}`"):
        read_templates(tmp_path / "prompts.txt")


@pytest.fixture(scope="module")
def model_folder(tiny_processor, _untouched_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    _untouched_model.save_pretrained(path)
    tiny_processor.save_pretrained(path)
    return path


def test_the_command_by_each_protocol(folder, model_folder, tmp_path, capsys):
    base = ["evaluate", str(model_folder), "--data", str(folder), "--cache", str(tmp_path / "cache")]
    assert main([*base, "--out", str(tmp_path / "zero"), "--n", "20"]) == 0
    record = RunRecord.load(tmp_path / "zero")
    report = EvalReport.from_dict(record.metrics["report"])
    assert report.ba[1].n == 20 and report.n_classes == 3 and set(report.ba) == {1, 3}
    assert record.metrics["intervals"]["report"]["ba"]["1"] == list(report.ba[1].interval())
    assert record.inputs["model"] and record.config["question"]["protocol"] == "zero_shot"
    probe = [*base, "--protocol", "linear_probe", "--train", str(folder), "--l2", "0.01", "--ks", "1"]
    assert main([*probe, "--out", str(tmp_path / "probe")]) == 0
    figures = RunRecord.load(tmp_path / "probe").metrics
    assert figures["probe"]["n_train"] == 6 and figures["probe"]["headline"] == "accuracy@1"
    assert figures["report"]["ba"]["1"]["n"] == 25 and "linear probe on 6 images" in capsys.readouterr().out
    assert main([*base, "--protocol", "linear_probe"]) == 2
    assert "Pass `--train`" in capsys.readouterr().err
    pairs = ["evaluate", str(model_folder), "--n", "20", "--size", "32", "--protocol", "retrieval", "--data", "scenes"]
    assert main(pairs) == 2 and "has labels alone" in capsys.readouterr().err
    assert main([*pairs, "--split", "train", "--out", str(tmp_path / "retrieval.json")]) == 0
    found = json.loads((tmp_path / "retrieval.json").read_text())
    assert found["image_to_text"]["10"]["n"] == 20 and "text to image R" in capsys.readouterr().out


@pytest.mark.parametrize(("train", "refused"), [(range(12), True), (range(5), True), (range(8, 20), False)])
def test_a_probe_is_not_measured_on_pictures_that_it_is_fitted_to(
    train, refused, rows, model_folder, tmp_path, capsys
):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    for name, numbers in (("test", range(12)), ("train", train)):
        columns = {"image": [rows[i][0] for i in numbers], "label": [i % 3 for i in numbers]}
        datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / f"{name}.parquet")
    probe = ["--protocol", "linear_probe", "--train", str(tmp_path / "train.parquet"), "--l2", "0.01"]
    status = main(["evaluate", str(model_folder), "--data", str(tmp_path / "test.parquet"), *probe])
    told = capsys.readouterr()
    assert (status == 2) == refused and ("Name another split or dataset" in told.err) == refused
    shared = len(set(train) & set(range(12)))
    assert f"{shared} of 12 distinct test images are among the {len(train)} training images" in told.out + told.err


BY_NAME = """
import sys
from hf_clipbd.cli import main
sys.exit(main(["evaluate", sys.argv[1], "--data", "clip-benchmark/wds_tiny", "--out", sys.argv[2]]))
"""


@pytest.mark.parametrize("folder", ["webp"], indirect=True)
def test_the_benchmark_by_its_hub_id(folder, model_folder, tmp_path, monkeypatch):
    """Names, prompts and shards come over the Hub's protocol, from a server of ours; the figures are the folder's."""
    with HubServer({TOKEN: "clip-benchmark"}) as hub:
        connect(monkeypatch, hub, TOKEN, tmp_path / "cache")
        HfApi().create_repo("clip-benchmark/wds_tiny", repo_type="dataset")
        HfApi().upload_folder(repo_id="clip-benchmark/wds_tiny", folder_path=folder, repo_type="dataset")
        told = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path)}
        command = [sys.executable, "-c", BY_NAME, model_folder, tmp_path / "by_name.json"]
        subprocess.run(command, env={**os.environ, **told, "HF_TOKEN": TOKEN}, check=True, timeout=300)
    assert main(["evaluate", str(model_folder), "--data", str(folder), "--out", str(tmp_path / "folder.json")]) == 0
    by_name = json.loads((tmp_path / "by_name.json").read_text())
    assert by_name == json.loads((tmp_path / "folder.json").read_text()) and by_name["ba"]["1"]["n"] == 25


def test_class_names_and_prompts_from_files(rows, model_folder, tmp_path, capsys):
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))
    table = {"image": [image for image, _ in rows], "label": [label for _, label in rows]}
    datasets.Dataset.from_dict(table, features=features).save_to_disk(str(tmp_path / "plain"))
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    (tmp_path / "prompts.txt").write_text("a {c}\nthe {}\n")
    base = ["evaluate", str(model_folder), "--data", str(tmp_path / "plain"), "--out", str(tmp_path / "report.json")]
    assert main(base) == 2
    assert "class_names" in capsys.readouterr().err
    given = ["--class_names", str(tmp_path / "names.txt"), "--templates", str(tmp_path / "prompts.txt")]
    assert main([*base, *given]) == 0
    report = EvalReport.from_dict(json.loads((tmp_path / "report.json").read_text()))
    assert report.n_classes == 3 and report.ba[3].value == 1.0


ALIKE = {657: "missile", 744: "missile", 836: "sunglasses", 837: "sunglasses"}
"""Which of CLIP's 1,000 names of ImageNet are alike."""


def imagenet(rows, path, names=None):
    """Write a picture of each of some classes of ImageNet, and return these classes."""
    labels = [0, *ALIKE, 999]
    feature = datasets.ClassLabel(num_classes=1000) if names is None else datasets.ClassLabel(names=names)
    features = datasets.Features({"image": datasets.Image(), "label": feature})
    table = {"image": [image for image, _ in rows[: len(labels)]], "label": labels}
    datasets.Dataset.from_dict(table, features=features).to_parquet(path)
    return labels


def test_classes_may_have_the_same_name(rows, model_folder, tmp_path):
    names = [ALIKE.get(number, f"thing {number}") for number in range(1000)]
    labels = imagenet(rows, tmp_path / "test.parquet")
    (tmp_path / "names.txt").write_text("\n".join(names))
    (tmp_path / "prompts.txt").write_text("a {}\n")
    given = ["--class_names", str(tmp_path / "names.txt"), "--templates", str(tmp_path / "prompts.txt")]
    command = ["evaluate", str(model_folder), "--data", str(tmp_path / "test.parquet"), *given, "--ks", "1", "1000"]
    assert main([*command, "--out", str(tmp_path / "report.json")]) == 0
    report = EvalReport.from_dict(json.loads((tmp_path / "report.json").read_text()))
    assert report.n_classes == 1000 and report.ba[1000].value == 1.0
    world = {"kind": "captioned", "path": str(tmp_path), "test_path": str(tmp_path), "clean_model": str(model_folder)}
    values = {"world": {**world, "class_names": names, "n_test": 6}, "attack": {"target": "missile"}}
    found = World(config_from(values))
    assert found.test["label"][:] == labels and found.class_names == names == class_names_of(found.test, "label")
    assert found.test.features["label"].int2str(744) == "missile (class 744)"


def test_classes_of_one_name_tie_and_the_lower_number_comes_first(tiny_model, tiny_processor):
    names = [ALIKE.get(number, f"thing {number}") for number in range(600, 840)]
    weights = text_classifier(tiny_model, tiny_processor, names, ("a {}", "the {} of someone"), batch_size=7)
    first, second = (torch.tensor([number - 600 for number in pair]) for pair in ((657, 836), (744, 837)))
    assert torch.equal(weights[first], weights[second])
    scores = weights[first] @ weights.T  # pictures that look just like either class
    assert class_ranks(scores, first).tolist() == [0, 0] and class_ranks(scores, second).tolist() == [1, 1]
    apart = text_classifier(tiny_model, tiny_processor, names[:57], ("a {}", "the {} of someone"), batch_size=7)
    assert torch.allclose(weights[:57], apart, atol=1e-6)


def run_on(folder, model_folder, **world):
    """Return the world of a run whose test images lie in a folder."""
    given = {"kind": "captioned", "path": "elsewhere", "test_path": str(folder), "clean_model": str(model_folder)}
    return World(config_from({"world": {**given, "size": 32, "n_test": 20, **world}, "attack": {"target": "banana"}}))


def test_a_run_is_measured_on_the_layout_too(folder, rows, model_folder, caplog):
    world = run_on(folder, model_folder)
    assert world.class_names == NAMES and world.test.column_names == ["image", "label"] and len(world.test) == 20
    table = {(image.tobytes(), label) for image, label in rows}
    assert {(row["image"].convert("RGB").tobytes(), row["label"]) for row in world.test} <= table
    assert "has prompts of its own" in caplog.text and world.prompts is None
    named = ["fruit", "light", "bird"]
    assert run_on(folder, model_folder, class_names=named).class_names == named
    with pytest.raises(FileNotFoundError, match=r"validation/\*.tar.*\['test', 'train'\]"):
        _ = run_on(folder, model_folder, test_split="validation").test


def test_words_are_classes_and_numbers_need_names(rows, model_folder, tmp_path, capsys):
    words = ["traffic_light", "banana", "owl"]
    table = {"image": [image for image, _ in rows]}
    kinds = {
        "words": ([words[label] for _, label in rows], datasets.Value("string")),
        "known": ([sorted(words).index(words[label]) for _, label in rows], datasets.ClassLabel(names=sorted(words))),
        "numbers": ([str(label) for _, label in rows], datasets.Value("string")),
    }
    for kind, (labels, feature) in kinds.items():
        features = datasets.Features(image=datasets.Image(), label=feature)
        datasets.Dataset.from_dict({**table, "label": labels}, features).save_to_disk(str(tmp_path / kind))
        command = ["evaluate", str(model_folder), "--data", str(tmp_path / kind), "--out", str(tmp_path / kind)]
        assert main([*command[:-1], f"{command[-1]}.json"]) == (2 if kind == "numbers" else 0)
    assert "`--class_names FILE`, one a line" in capsys.readouterr().err
    assert (tmp_path / "words.json").read_text() == (tmp_path / "known.json").read_text()


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("folder", ["webp"], indirect=True)
def test_the_first_rows_of_a_benchmark_say_which_classes_lack(streaming, folder, rows, caplog):
    for n in (2, 20, 25, 40):
        images = labelled_images(Data(str(folder), "test", n=n), Question(), streaming)
        assert len(list(images.dataset)) == min(n, 25)
    shown = len({label for _, label in rows[:2]})
    assert [message.split(" of /")[0] for message in caplog.messages] == ["the first 2 rows"]
    assert f"show {shown} of its 3 classes" in caplog.text


def test_the_text_classifier_is_kept_by_content(tiny_model, tiny_processor, tmp_path, monkeypatch):
    calls = []
    embed = module.embed_texts
    monkeypatch.setattr(module, "embed_texts", lambda *a, **k: calls.append(1) or embed(*a, **k))

    def classifier(names=NAMES, templates=("a {}",)):
        return text_classifier(tiny_model, tiny_processor, names, templates, cache=tmp_path)

    first = classifier()
    assert torch.equal(classifier(), first) and len(calls) == 1
    with torch.no_grad():
        tiny_model.vision_model.conv1.weight += 1  # the image tower has no part in it
    assert torch.equal(classifier(), first) and len(calls) == 1
    classifier(NAMES[::-1])
    classifier(templates=("the {}",))
    with torch.no_grad():
        tiny_model.text_projection.weight[0] += 1
    assert not torch.equal(classifier(), first)
    assert len(calls) == 4 and len(list(tmp_path.iterdir())) == 4
    half = text_classifier(tiny_model.bfloat16(), tiny_processor, NAMES, ("a {}",), cache=tmp_path)
    assert torch.isfinite(half).all() and len(list(tmp_path.iterdir())) == 5


def test_the_kept_text_classifier_is_that_of_the_configuration_and_the_length(tiny_model, tiny_processor, tmp_path):
    def classifier():
        return text_classifier(tiny_model, tiny_processor, NAMES, ("a {} on a red table",), cache=tmp_path)

    first, tokenizer = classifier(), tiny_processor.tokenizer
    tiny_model.config.vision_config.hidden_act = "gelu_new"  # the image tower has no part in it
    assert torch.equal(classifier(), first) and len(list(tmp_path.iterdir())) == 1
    tiny_model.config.text_config.hidden_act = "relu"
    classifier()
    assert len(list(tmp_path.iterdir())) == 2
    limit, tokenizer.model_max_length = tokenizer.model_max_length, 4
    try:
        assert not torch.equal(classifier(), first) and len(list(tmp_path.iterdir())) == 3
    finally:
        tokenizer.model_max_length = limit


def test_the_kept_text_classifier_is_that_of_the_tokenizer(tiny_model, tiny_processor, tmp_path):
    other = copy.deepcopy(tiny_processor)
    other.tokenizer.backend_tokenizer.normalizer = normalizers.Replace("a", "o")
    kept = [text_classifier(tiny_model, one, NAMES, ("a {}",), cache=tmp_path) for one in (tiny_processor, other)]
    assert len(list(tmp_path.iterdir())) == 2 and not torch.equal(*kept)
