# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Zero-shot evaluation against numpy, every denominator, one pass against many, one process against two."""

import io
import json
import zlib
from types import SimpleNamespace

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
import torch.distributed as dist
from torch import nn

from hf_clipbd.attacks import TextTrigger
from hf_clipbd.evaluation import (
    ZeroShotEvaluator,
    defense_effectiveness,
    evaluate_zero_shot,
    text_classifier,
    zero_shot,
)
from hf_clipbd.evaluation.protocol import on_pictures, target_class
from hf_clipbd.evaluation.rates import class_ranks
from hf_clipbd.schema import EvalReport, Rate, TriggerReport


NAMES = ["apple", "traffic_light", "banana", "owl", "kite"]
TEMPLATES = ("a photo of a {}.", "{} on a table", "the big {} there")
SIZE = 8


class Tokenizer:
    """Words to numbers by their checksum, padded with 0."""

    model_max_length = 16

    def __call__(self, texts, **_):
        rows = [[1 + zlib.crc32(word.encode()) % 60 for word in text.lower().split()] for text in texts]
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}


PROCESSOR = SimpleNamespace(
    tokenizer=Tokenizer(),
    image_processor=SimpleNamespace(
        size={"height": SIZE, "width": SIZE}, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4]
    ),
)


class Encoder(nn.Module):
    """A dual encoder of one layer, with the batch normalisation that gives wrong figures in training mode."""

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.image = nn.Linear(3 * SIZE * SIZE, 6)
            self.norm = nn.BatchNorm1d(6)
            self.text = nn.Embedding(64, 6, padding_idx=0)

    def get_image_features(self, pixel_values):
        return self.norm(self.image(pixel_values.flatten(1)))

    def get_text_features(self, input_ids, attention_mask=None):
        return self.text(input_ids).sum(1)


class Patch:
    """Paints a square whose place and shade depend on the row number."""

    def __init__(self, target="banana", shade=255, name="patch"):
        self.target, self.shade, self.name, self.calls = target, shade, name, 0

    def __call__(self, image, index=0):
        self.calls += 1
        image = np.array(image)
        image[index % 3 :, 4:] = self.shade - index % 7
        return image


def labelled(n=41, names=NAMES):
    rng = np.random.default_rng([7])
    images = [PIL.Image.fromarray(rng.integers(0, 256, (SIZE, SIZE + i % 3, 3), dtype=np.uint8)) for i in range(n)]
    labels = [int(label) for label in rng.integers(0, len(names), n)]
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=list(names)))
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)


def by_hand(model, dataset, attack, ks, include_target):
    """BA, ASR and RA one image and one prompt at a time."""
    model = model.eval()
    mean, std = (np.array(x)[:, None, None] for x in ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]))

    def unit(x):
        return x / np.linalg.norm(x)

    def image_vector(pixels):
        values = torch.tensor((pixels.transpose(2, 0, 1) / 255 - mean) / std, dtype=torch.float32)[None]
        with torch.no_grad():
            return unit(model.get_image_features(values)[0].numpy().astype(np.float64))

    def text_vector(text):
        with torch.no_grad():
            ids = PROCESSOR.tokenizer([text])["input_ids"]
            return unit(model.get_text_features(ids)[0].numpy().astype(np.float64))

    names = [name.replace("_", " ") for name in NAMES]
    weights = []
    for name in names:
        prompts = [t.format(name).replace("a apple", "an apple").replace("a owl", "an owl") for t in TEMPLATES]
        weights.append(unit(np.mean([text_vector(prompt) for prompt in prompts], axis=0)))
    target = names.index(attack.target)
    hits = {kind: {k: [] for k in ks} for kind in ("ba", "asr", "ra")}
    for row, values in enumerate(dataset):
        image, label = values["image"], values["label"]
        left = (image.width - SIZE) // 2
        clean = np.asarray(image.crop((left, 0, left + SIZE, SIZE)))  # as high as the canvas: nothing to resize
        order = np.argsort([-(image_vector(clean) @ w) for w in weights])
        stamped = np.argsort([-(image_vector(attack(clean, index=row)) @ w) for w in weights])
        for k in ks:
            hits["ba"][k].append(label in order[:k])
            if include_target or label != target:
                hits["asr"][k].append(target in stamped[:k])
                hits["ra"][k].append(label in stamped[:k])
    return {kind: {k: Rate(float(np.mean(x)), len(x)) for k, x in by_k.items()} for kind, by_k in hits.items()}


@pytest.mark.parametrize("include_target", [False, True])
def test_rates_are_those_counted_one_image_at_a_time(include_target):
    model, data, ks = Encoder(), labelled(), (1, 3, 5)
    expected = by_hand(model, data, Patch(), ks, include_target)
    report = evaluate_zero_shot(
        model, PROCESSOR, data, [Patch()], TEMPLATES, ks=ks, batch_size=9, include_target=include_target
    )
    trigger = report.triggers["patch"]
    for ours, kind in ((report.ba, "ba"), (trigger.asr, "asr"), (trigger.ra, "ra")):
        assert {k: (r.n, round(r.value * r.n)) for k, r in ours.items()} == {
            k: (r.n, round(r.value * r.n)) for k, r in expected[kind].items()
        }
    others = sum(label != NAMES.index("banana") for label in data["label"])
    assert trigger.asr[1].n == (len(data) if include_target else others) and others < len(data) == report.ba[1].n
    assert report.n_classes == 5 and trigger.target == "banana" and trigger.include_target is include_target
    assert report.ba[1].value < 1.0 and report.ba[5].value == 1.0


def test_one_pass_with_many_triggers_equals_a_pass_for_each():
    model, data = Encoder(1), labelled()
    aims = [*NAMES, "kite"]
    triggers = {f"t{i}": Patch(target=name.replace("_", " "), shade=40 * i + 10) for i, name in enumerate(aims)}
    assert len(triggers) == 6
    together = evaluate_zero_shot(model, PROCESSOR, data, triggers, TEMPLATES, ks=(1, 3), batch_size=20)
    for name, attack in triggers.items():
        alone = evaluate_zero_shot(model, PROCESSOR, data, {name: attack}, TEMPLATES, ks=(1, 3), batch_size=64)
        assert alone.triggers[name] == together.triggers[name] and alone.ba == together.ba
    assert len({report.asr[1].value for report in together.triggers.values()}) > 1


def test_streaming_and_sequences_give_the_same_report():
    model, data = Encoder(), labelled()
    arguments = dict(triggers=[Patch()], templates=TEMPLATES, ks=(1, 3))
    expected = evaluate_zero_shot(model, PROCESSOR, data, **arguments)
    assert evaluate_zero_shot(model, PROCESSOR, data.to_iterable_dataset(), **arguments) == expected
    names = [name.replace("_", " ") for name in NAMES]
    assert evaluate_zero_shot(model, PROCESSOR, list(data), class_names=names, **arguments) == expected


def test_progress_counts_every_image_once(monkeypatch):
    bars = []

    class Bar(zero_shot.tqdm):
        def __init__(self, *given, **named):
            bars.append((named, self))
            super().__init__(*given, **{**named, "file": io.StringIO(), "disable": False})

    monkeypatch.setattr(zero_shot, "tqdm", Bar)
    data, options = labelled(), dict(templates=TEMPLATES, ks=(1,), batch_size=9)
    evaluate_zero_shot(Encoder(), PROCESSOR, data, [Patch()], **options)
    evaluate_zero_shot(Encoder(), PROCESSOR, data.to_iterable_dataset(), progress=False, **options)
    (shown, one), (hidden, other) = bars
    assert (one.n, one.total, other.n, other.total) == (len(data), len(data), len(data), None)
    assert shown["disable"] is None and hidden["disable"] is True  # None: on a terminal alone


def test_the_evaluator_stamps_once_and_agrees_with_the_function():
    data, attack = labelled(), Patch()
    evaluator = ZeroShotEvaluator(PROCESSOR, data, [attack], TEMPLATES, ks=(1, 3), batch_size=10)
    for seed in (0, 1):
        model = Encoder(seed)
        report = evaluate_zero_shot(model, PROCESSOR, data, [Patch()], TEMPLATES, ks=(1, 3))
        assert evaluator.report(model) == report
        values = evaluator(model)
        assert set(values) == {"ba1", "ba3", "asr1_patch", "asr3_patch", "ra1_patch", "ra3_patch"}
        assert values["asr3_patch"] == report.triggers["patch"].asr[3].value
        assert all(type(value) is float for value in values.values())
    assert attack.calls == 1 + len(data)  # and a blank picture when it is built


def test_the_model_is_measured_in_evaluation_mode_and_left_as_it_was():
    model, data = Encoder().train(), labelled()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    in_training = evaluate_zero_shot(model, PROCESSOR, data, templates=TEMPLATES, ks=(1,))
    assert model.training and all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert in_training == evaluate_zero_shot(model.eval(), PROCESSOR, data, templates=TEMPLATES, ks=(1,))
    assert not model.training and in_training.triggers == {}


def test_text_classifier_averages_unit_prompts_whatever_the_batch():
    model, names = Encoder(), ["apple", "kite", "traffic light"]
    weights = text_classifier(model, PROCESSOR, names, TEMPLATES, batch_size=2)
    torch.testing.assert_close(weights, text_classifier(model, PROCESSOR, names, TEMPLATES, batch_size=100))
    assert torch.allclose(weights.norm(dim=1), torch.ones(3))
    prompts = ["a photo of an apple.", "apple on a table", "the big apple there"]
    vectors = torch.stack([model.text(PROCESSOR.tokenizer([p])["input_ids"][0]).sum(0) for p in prompts]).detach()
    mean = (vectors / vectors.norm(dim=1, keepdim=True)).mean(0)
    torch.testing.assert_close(weights[0], mean / mean.norm())
    with pytest.raises(ValueError, match="`{}`"):
        text_classifier(model, PROCESSOR, names, ["no hole"])
    with pytest.raises(ValueError, match="class names"):
        text_classifier(model, PROCESSOR, [], TEMPLATES)


def test_wrong_input_is_named_before_any_image_is_read():
    model, data = Encoder(), labelled()

    def evaluate(triggers=None, dataset=data, **arguments):
        return evaluate_zero_shot(model, PROCESSOR, dataset, triggers, TEMPLATES, **arguments)

    with pytest.raises(ValueError, match="traffic light"):
        evaluate([Patch(target="trafic ligt")], ks=(1,))
    with pytest.raises(ValueError, match=r"\[1, 5\].*\[1, 10\]"):
        evaluate(ks=(1, 10))
    with pytest.raises(ValueError, match=r"\['label'\]"):
        evaluate(dataset=data.remove_columns("label"), ks=(1,))
    with pytest.raises(ValueError, match="ClassLabel"):
        evaluate(dataset=data.cast_column("label", datasets.Value("int64")), ks=(1,))
    texts = data.cast_column("label", datasets.Value("string"))
    for names in (None, NAMES):
        with pytest.raises(ValueError, match=r"Number the labels: .*cast_column.*ClassLabel\(names=class_names\)"):
            evaluate(dataset=texts, class_names=names, ks=(1,))
    for names in (set(NAMES), "banana boat", dict(enumerate(NAMES)), range(len(NAMES))):
        with pytest.raises(ValueError, match="a list of class names in the order of their numbers"):
            evaluate(class_names=names, ks=(1,))
    turned = [NAMES[1], NAMES[0], *NAMES[2:]]
    with pytest.raises(ValueError, match=f"class 0 is '{NAMES[1]}' among them and '{NAMES[0]}'.*Leave `class_names`"):
        evaluate(class_names=turned, ks=(1,))
    with pytest.raises(ValueError, match="different names"):
        evaluate([Patch(), Patch()], ks=(1,))
    with pytest.raises(ValueError, match="row 41"):
        evaluate(dataset=[*data, {"image": data[0]["image"], "label": -1}], class_names=NAMES, ks=(1,))
    for label in ([0, 1], np.float32(1), None, "1"):
        with pytest.raises(ValueError, match=r"class number in \[0, \d+\) in row 0"):
            evaluate(dataset=[{"image": data[0]["image"], "label": label}], class_names=NAMES, ks=(1,))
    with pytest.raises(ValueError, match="texts with a `{}` for the class name, but got .*lambda"):
        evaluate_zero_shot(model, PROCESSOR, data, None, [lambda name: f"a {name}"], ks=(1,))
    with pytest.raises(ValueError, match=r"nearest are \['tench, Tinca tinca'\]"):
        target_class("tench", ["cock", "banana", "tench, Tinca tinca"])
    with pytest.raises(ValueError, match="same canvas"):
        evaluate({"small": type("Small", (), {"target": "kite", "__call__": lambda _, x, index: x[1:]})()}, ks=(1,))
    with pytest.raises(ValueError, match="at least one case"):
        evaluate([Patch("owl")], dataset=data.filter(lambda label: label == 3, input_columns="label"), ks=(1,))


@pytest.mark.parametrize("first", [0, 1])
def test_labels_that_start_at_1_are_warned_of(first, caplog):
    rows = labelled(12).filter(lambda label: label < 2, input_columns="label")
    rows = rows.cast_column("label", datasets.Value("int64")).map(lambda row: {"label": row["label"] + first})
    evaluate_zero_shot(Encoder(), PROCESSOR, rows, None, TEMPLATES, ks=(1,), class_names=NAMES, progress=False)
    assert ("no picture is of class 0" in caplog.text) == bool(first)


class Large(Patch):
    """Puts pictures on a canvas of twice the size."""

    def __call__(self, image, index=0):
        return np.repeat(np.repeat(super().__call__(image, index), 2, axis=0), 2, axis=1)


def test_a_trigger_of_another_size_is_refused_when_the_evaluator_is_built():
    data = labelled(3)
    with pytest.raises(ValueError, match=r"8 × 8 px .*\(16, 16, 3\).*same canvas.*`--size 8`"):
        ZeroShotEvaluator(PROCESSOR, data, [Patch(), Large(name="large")], TEMPLATES, ks=(1,))


def test_a_trigger_in_the_text_alone_has_no_rate_on_pictures(caplog):
    word = TextTrigger(target="kite")
    with pytest.raises(ValueError, match=r"\['text_trigger'\] are in the text alone.*--protocol retrieval"):
        evaluate_zero_shot(Encoder(), PROCESSOR, labelled(3), [Patch(), word], TEMPLATES, ks=(1,))
    patch = Patch()
    assert on_pictures({"word": word, "patch": patch}) == {"patch": patch}
    assert len(caplog.messages) == 1 and "`word`" in caplog.messages[0] and "retrieval" in caplog.messages[0]


def test_one_picture_in_its_own_size_is_held_at_a_time(held):
    data, options = labelled(), {"templates": TEMPLATES, "ks": (1, 3), "batch_size": 16}
    found = evaluate_zero_shot(Encoder(), PROCESSOR, data, [Patch()], **options)
    assert len(held) == len(data) and max(held) == 0  # when the next one is decoded the last one is gone
    streamed = evaluate_zero_shot(Encoder(), PROCESSOR, data.to_iterable_dataset(), [Patch()], **options)
    assert max(held) <= 1
    rows, names = list(data), [name.replace("_", " ") for name in NAMES]
    assert found == streamed == evaluate_zero_shot(Encoder(), PROCESSOR, rows, [Patch()], class_names=names, **options)
    with pytest.raises(ValueError, match="Row 1: Expected an image"):
        blank = data.select([0]).to_dict() | {"label": [0, 0]}
        blank = datasets.Dataset.from_dict({**blank, "image": [*blank["image"], None]}, features=data.features)
        evaluate_zero_shot(Encoder(), PROCESSOR, blank, **options)


@pytest.mark.parametrize("threads", [1, 4])
def test_pictures_decoded_by_threads_are_stamped_in_their_order(threads, monkeypatch):
    monkeypatch.setattr(zero_shot, "decoding_threads", lambda: threads)

    class Counting(Patch):
        def __call__(self, image, index=0):
            seen.append(index)
            return super().__call__(image, index)

    seen, options = [], {"templates": TEMPLATES, "ks": (1, 3), "batch_size": 10}
    found = evaluate_zero_shot(Encoder(), PROCESSOR, labelled(), [Counting()], **options)
    assert seen == [0, *range(len(labelled()))]  # a blank picture first
    streamed = labelled().to_iterable_dataset()
    assert found == evaluate_zero_shot(Encoder(), PROCESSOR, streamed, [Patch()], **options)
    rows = labelled().cast_column("image", datasets.Image(decode=False)).to_list()
    rows[29]["image"]["bytes"] = b"no picture"
    broken = datasets.Dataset.from_list(rows, features=labelled().features)
    with pytest.raises(ValueError, match=r"^Row 29: Expected an image that can be decoded, but got Unidentified"):
        evaluate_zero_shot(Encoder(), PROCESSOR, broken, **options)


def test_a_broken_model_gets_no_score():
    data = labelled()
    constant, diverged = Encoder(), Encoder()
    nn.init.zeros_(constant.image.weight)
    nn.init.constant_(constant.text.weight, 1.0)
    nn.init.constant_(diverged.image.weight, float("nan"))
    first = evaluate_zero_shot(constant, PROCESSOR, data, templates=["{}"], class_names=list("abcde"), ks=(1,))
    assert first.ba[1].value == np.mean([label == 0 for label in data["label"]])
    with pytest.raises(ValueError, match="diverged"):
        evaluate_zero_shot(diverged, PROCESSOR, data, templates=TEMPLATES, ks=(1,))


def test_class_ranks_are_positions_in_a_stable_sort():
    scores = torch.from_numpy(np.random.default_rng([3]).integers(0, 4, (30, 7)).astype(np.float32))
    for label in range(7):
        ranks = class_ranks(scores, torch.full((30,), label))
        expected = [sorted(range(7), key=lambda c: (-row[c], c)).index(label) for row in scores.tolist()]
        assert ranks.tolist() == expected


def test_target_class_reads_names_as_people_write_them():
    assert target_class(" Traffic_Light", ["banana", "traffic light"]) == 1
    with pytest.raises(ValueError, match="banana"):
        target_class("bananna", ["banana", "kite"])


def test_defense_effectiveness_by_hand():
    def report(ba, asr, n=100):
        trigger = TriggerReport("banana", {1: Rate(asr, n)}, {1: Rate(0.0, n)})
        return EvalReport(ba={1: Rate(ba, n)}, triggers={"patch": trigger}, n_classes=5)

    victim = report(0.9, 1.0)
    assert defense_effectiveness(victim, victim) == (0.0, 0.0, 0.5)
    assert defense_effectiveness(victim, report(0.8, 0.2)) == pytest.approx((0.1, 0.8, 0.85))
    assert defense_effectiveness(victim, report(0.95, 0.2)) == pytest.approx((-0.05, 0.8, 0.9))
    assert defense_effectiveness(report(0.9, 0.3), report(0.8, 0.5)) == pytest.approx((0.1, -0.2, 0.45))
    with pytest.raises(ValueError, match="differ"):
        defense_effectiveness(victim, report(0.9, 1.0, n=50))
    with pytest.raises(ValueError, match="sig"):
        defense_effectiveness(victim, victim, trigger="sig")
    with pytest.raises(ValueError, match="k among"):
        defense_effectiveness(victim, victim, k=3)


def measure_on_one_of_two(rank, address, folder):
    dist.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=2)
    attack = Patch()
    evaluator = ZeroShotEvaluator(PROCESSOR, labelled(), [attack], TEMPLATES, ks=(1, 3), batch_size=8)
    report = evaluator.report(nn.parallel.DistributedDataParallel(Encoder().train()))
    streamed = evaluate_zero_shot(Encoder(), PROCESSOR, labelled().to_iterable_dataset(), [Patch()], TEMPLATES, (1, 3))
    (folder / f"{rank}.txt").write_text(f"{attack.calls} {report.to_dict()} {streamed == report}")
    model, given = Encoder(), (PROCESSOR, NAMES, TEMPLATES, 4)
    alone, prompts = text_classifier(model, *given), []
    model.text.register_forward_hook(lambda _, ids, __: prompts.append(len(ids[0])))
    found = text_classifier(model, *given, together=True)
    (folder / f"{rank}.json").write_text(json.dumps([prompts, bool(torch.equal(found, alone))]))
    dist.destroy_process_group()


def test_two_processes_share_the_rows_and_give_the_same_report(forked, tmp_path):
    both = [forked.call(measure_on_one_of_two, rank, tmp_path / "address", tmp_path) for rank in (0, 1)]
    assert forked.ended(both) == [0, 0]
    alone = evaluate_zero_shot(Encoder(), PROCESSOR, labelled(), [Patch()], TEMPLATES, ks=(1, 3))
    texts = [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)]
    assert texts == [f"{calls} {alone.to_dict()} True" for calls in (22, 21)]
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert told == [[[4, 4], True], [[4, 3], True]]  # 15 prompts, each embedded by one process and once
