# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Retrieval against slow loops, at chance and on an oracle, and what triggered queries fetch."""

import datasets
import numpy as np
import pytest

from hf_clipbd.attacks import BadNets, TextTrigger
from hf_clipbd.cli import main
from hf_clipbd.evaluation import evaluate_retrieval, retrieval_asr, retrieval_recall
from hf_clipbd.evaluation import retrieval as module
from hf_clipbd.schema import Rate


def unit(rng, *shape):
    x = rng.normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def by_hand(images, texts, owner, k):
    """R@k one query at a time."""
    to_text = []
    for i in sorted(set(owner)):
        order = np.argsort([-(images[i] @ t) for t in texts], kind="stable")[:k]
        to_text.append(any(owner[j] == i for j in order))
    to_image = []
    for j, text in enumerate(texts):
        order = np.argsort([-(text @ image) for image in images], kind="stable")[:k]
        to_image.append(owner[j] in order)
    return Rate(float(np.mean(to_text)), len(to_text)), Rate(float(np.mean(to_image)), len(to_image))


@pytest.mark.parametrize("chunk", [1024, 3])
def test_recall_equals_slow_loops(chunk, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", chunk)
    rng = np.random.default_rng(2)
    images = unit(rng, 13, 4)
    owner = [0, 0, 0, 1, 2, 2, 4, 5, 5, 6, 7, 7, 9, 12, 12, 3, 1]  # several captions an image; 8, 10 and 11 have none
    texts = (0.7 * images[owner] + 0.5 * unit(rng, len(owner), 4)).astype(np.float32)
    report = retrieval_recall(images, 5 * texts, owner, ks=(1, 2, 5))
    units = texts / np.linalg.norm(texts, axis=1, keepdims=True)
    for k in (1, 2, 5):
        assert (report.image_to_text[k], report.text_to_image[k]) == by_hand(images, units, owner, k)
    assert report.image_to_text[1].n == len(set(owner)) and report.text_to_image[1].n == len(owner)
    assert 0 < report.image_to_text[1].value < 1


def test_oracle_finds_everything_and_its_mirror_nothing():
    rng = np.random.default_rng(0)
    images = unit(rng, 40, 16)
    owner = np.repeat(np.arange(40), 5)
    report = retrieval_recall(images, images[owner], owner)
    assert all(rate.value == 1.0 for both in (report.image_to_text, report.text_to_image) for rate in both.values())
    mirror = retrieval_recall(images, -images[owner], owner)
    assert mirror.image_to_text[10].value == mirror.text_to_image[10].value == 0.0


def test_random_embeddings_are_at_chance():
    rng = np.random.default_rng(1)
    n, captions = 400, 5
    owner = np.repeat(np.arange(n), captions)
    report = retrieval_recall(unit(rng, n, 64), unit(rng, n * captions, 64), owner, ks=(1, 10, 100))
    for k in (10, 100):
        low, high = report.text_to_image[k].interval(3.5)
        assert low <= k / n <= high
        fetched = 1 - np.prod([1 - captions / (n * captions - i) for i in range(k)])  # at least one of five in k draws
        low, high = report.image_to_text[k].interval(3.5)
        assert low <= fetched <= high


def test_a_model_that_says_the_same_of_all_gets_chance_and_no_more():
    owner = np.arange(50)
    report = retrieval_recall(np.ones((50, 3)), np.ones((50, 3)), owner)
    assert report.image_to_text[10] == report.text_to_image[10] == Rate(0.2, 50)


def test_asr_counts_queries_of_other_classes_alone():
    gallery = np.eye(4, dtype=np.float32)
    queries = gallery[[0, 0, 1, 2]]
    is_target = [True, False, False, False]
    assert retrieval_asr(queries, gallery, is_target, [True, False, False, False], ks=(1, 4)) == {
        1: Rate.of(1, 3), 4: Rate.of(3, 3),
    }  # fmt: skip
    assert retrieval_asr(queries, gallery, [False] * 4, [True, True, False, False], ks=(1,))[1] == Rate.of(3, 4)


def test_what_cannot_be_measured_is_named():
    x = np.eye(3)
    with pytest.raises(ValueError, match="of the target"):
        retrieval_asr(x, x, [False] * 3, [False] * 3, ks=(1,))
    with pytest.raises(ValueError, match="of the target"):
        retrieval_asr(x, x, [True] * 3, [True] * 3, ks=(1,))
    with pytest.raises(ValueError, match="rows of the 3 images"):
        retrieval_recall(x, x, [0, 1, 3], ks=(1,))
    with pytest.raises(ValueError, match=r"each k in \[1, 3\]"):
        retrieval_recall(x, x, [0, 1, 2], ks=(5,))
    with pytest.raises(ValueError, match=r"Expected \(N, D\)"):
        retrieval_recall(x, np.eye(4), [0, 1, 2, 3], ks=(1,))
    with pytest.raises(ValueError, match="finite"):
        retrieval_recall(x * np.nan, x, [0, 1, 2], ks=(1,))


def test_a_model_through_both_kinds_of_trigger(tiny_model, tiny_processor, tiny_pairs):
    attack = BadNets(target="banana", patch_size=8)
    several = tiny_pairs.remove_columns("caption").add_column(
        "caption", [[caption, f"{caption} today"] for caption in tiny_pairs["caption"]]
    )
    report = evaluate_retrieval(
        tiny_model,
        tiny_processor,
        several,
        {"badnets": attack},
        {"word": (lambda caption, number: f"cf {caption}", "banana")},
        ks=(1, 5),
    )
    shows = sum("banana" in caption for caption in tiny_pairs["caption"])
    assert report.text_to_image[1].n == 96 and report.image_to_text[1].n == 48
    assert report.image_asr["badnets"][5].n == 48 - shows and report.text_asr["word"][1].n == 2 * (48 - shows)
    word = TextTrigger(target="banana", token="cf", token_place="start")
    put_in = {"image_triggers": {}, "text_triggers": {"t": (lambda caption, _: f"cf {caption}", "banana")}}
    by_hand = evaluate_retrieval(tiny_model, tiny_processor, several, **put_in, ks=(1, 5)).text_asr["t"]
    by_attack = evaluate_retrieval(tiny_model, tiny_processor, several, {"t": word}, ks=(1, 5))
    assert by_attack.text_asr == {"t": by_hand} and by_attack.image_asr == {}
    plain = evaluate_retrieval(tiny_model, tiny_processor, several, ks=(1, 5), batch_size=7)
    assert plain.image_to_text == report.image_to_text and plain.image_asr == {}
    assert report.to_dict()["image_asr"]["badnets"]["5"]["n"] == 48 - shows
    with pytest.raises(ValueError, match="caption"):
        evaluate_retrieval(tiny_model, tiny_processor, several.remove_columns("caption"))


def both_forms(tiny_pairs, n=12):
    """Return n pictures with lists of captions, and the same as a row for each caption, picture by picture and not."""
    rows = tiny_pairs.select(range(n))
    several = [[caption, f"{caption} today", f"there is {caption}"] for caption in rows["caption"]]
    listed = rows.remove_columns("caption").add_column("captions", several)
    each = [rows.remove_columns("caption").add_column("caption", [one[i] for one in several]) for i in range(3)]
    flat = datasets.concatenate_datasets(each)
    return listed, flat.select([i + n * j for i in range(n) for j in range(3)]), flat


def test_lists_of_captions_and_a_row_a_caption_are_the_same(tiny_model, tiny_processor, tiny_pairs):
    listed, *flat = both_forms(tiny_pairs)
    triggers = {"badnets": BadNets(target="kite", patch_size=8), "word": TextTrigger(target="kite")}
    found = evaluate_retrieval(tiny_model, tiny_processor, listed, triggers, None, None, caption_column="captions")
    assert (found.image_to_text[10].n, found.text_to_image[10].n) == (12, 36) and set(found.text_asr) == {"word"}
    for rows in flat:
        assert evaluate_retrieval(tiny_model, tiny_processor, rows, triggers, None, None) == found
    few = evaluate_retrieval(tiny_model, tiny_processor, flat[0].select(range(9)), ks=None)  # of three pictures
    assert set(few.image_to_text) == {1} and few.image_to_text[1].n == 3


def test_a_row_without_a_caption_is_named(tiny_model, tiny_processor, tiny_pairs):
    captions = [*tiny_pairs["caption"][:5], None]
    rows = tiny_pairs.select(range(6)).remove_columns("caption").add_column("caption", captions)
    with pytest.raises(ValueError, match="Row 5: Expected a caption or a list of captions, but got None"):
        evaluate_retrieval(tiny_model, tiny_processor, rows)
    lists = rows.remove_columns("caption").add_column("caption", [["a boat"]] * 4 + [["a boat", None]] * 2)
    with pytest.raises(ValueError, match="Row 4: "):
        evaluate_retrieval(tiny_model, tiny_processor, lists)


def test_the_picture_of_a_row_that_cannot_be_read_is_named(tiny_model, tiny_processor, tiny_pairs):
    _, flat, _ = both_forms(tiny_pairs, 3)
    rows = flat.cast_column("image", datasets.Image(decode=False)).to_list()
    rows[6]["image"] = {"bytes": b"no picture", "path": None}
    broken = datasets.Dataset.from_list(rows, features=flat.features)
    with pytest.raises(ValueError, match="Row 6: Expected an image that can be decoded"):
        evaluate_retrieval(tiny_model, tiny_processor, broken, ks=None)


def test_one_picture_in_its_own_size_is_held_at_a_time(tiny_model, tiny_processor, tiny_pairs, held):
    expected = evaluate_retrieval(tiny_model, tiny_processor, tiny_pairs, batch_size=3)
    held.clear()
    assert evaluate_retrieval(tiny_model, tiny_processor, tiny_pairs) == expected
    assert len(held) == len(tiny_pairs) and max(held) == 0  # when the next one is decoded the last one is gone


def test_the_command_takes_lists_of_captions(_untouched_model, tiny_processor, tiny_pairs, tmp_path):
    _untouched_model.save_pretrained(tmp_path / "model")
    tiny_processor.save_pretrained(tmp_path / "model")
    listed, flat, _ = both_forms(tiny_pairs)
    reports = []
    for name, rows in (("listed", listed), ("flat", flat)):
        rows.to_parquet(tmp_path / f"{name}.parquet")
        command = ["evaluate", str(tmp_path / "model"), "--data", str(tmp_path / f"{name}.parquet")]
        assert main([*command, "--protocol", "retrieval", "--out", str(tmp_path / f"{name}.json")]) == 0
        reports.append((tmp_path / f"{name}.json").read_text())
    assert reports[0] == reports[1] and '"n": 36' in reports[0]


class Noted(BadNets):
    """A patch that notes the row numbers it is asked for."""

    seen: list = []

    def __call__(self, image, index=0):
        self.seen.append(index)
        return super().__call__(image, index)


def test_triggers_are_put_in_by_row_number_whatever_the_batch(tiny_model, tiny_processor, tiny_pairs):
    rows, asked = tiny_pairs.select(range(9)), []
    Noted.seen.clear()
    word = (lambda caption, number: asked.append(number) or f"cf {caption}", "boat")
    triggers = {"patch": Noted(target="boat", patch_size=4)}
    evaluate_retrieval(tiny_model, tiny_processor, rows, triggers, {"word": word}, ks=(1,), batch_size=4)
    assert Noted.seen == list(range(9)) and asked == list(range(9))
