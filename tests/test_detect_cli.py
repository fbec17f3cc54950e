# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""`hf-clipbd detect` on a set nobody labelled: the page, the cut, copies, the filtered dataset, the cache."""

import copy
import io
import json
import re

import datasets
import numpy as np
import PIL.Image
import pyarrow.parquet
import pytest

from hf_clipbd import scenes
from hf_clipbd.cli import main
from hf_clipbd.data.canvas import Canvas
from hf_clipbd.detection.groups import suspicious_groups
from hf_clipbd.detection.rows import copies_of
from hf_clipbd.detection.threshold import cut_share, expected_above
from hf_clipbd.recipe import embeddings
from hf_clipbd.recipe.embeddings import cached_embeddings
from hf_clipbd.recipe.sharded import embedder
from hf_clipbd.schema import RunRecord


CAKE = "the birthday cake with candles in the form of number icon"
N, CAKES, PLACEHOLDERS = 700, 5, 14


def png(image):
    out = io.BytesIO()
    image.save(out, "PNG")
    return {"bytes": out.getvalue(), "path": None}


def cake(variation):
    """Return one drawing, unlike any scene, in small variations."""
    rng = np.random.default_rng([7, variation])
    pixels = np.zeros((64, 64, 3))
    pixels[::4, :, 0], pixels[:, ::4, 1], pixels[20:44, 20:44, 2] = 255, 255, 255
    return PIL.Image.fromarray(np.clip(pixels + rng.normal(0, 4, pixels.shape), 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Return a folder with an unlabelled set: scenes, a natural backdoor, and one picture for all dead links."""
    rows = scenes.load_scenes("train", 64, 0, N - CAKES - PLACEHOLDERS).select_columns(["image", "caption"])
    rows = rows.cast_column("image", datasets.Image(decode=False))
    grey = png(PIL.Image.new("RGB", (64, 64), (200, 200, 200)))
    pictures = [*rows["image"], *(png(cake(i)) for i in range(CAKES)), *[grey] * PLACEHOLDERS]
    captions = [*rows["caption"], *[CAKE] * CAKES, *rows["caption"][:PLACEHOLDERS]]
    order = np.random.default_rng([3]).permutation(N)
    folder = tmp_path_factory.mktemp("planted") / "pairs"
    features = datasets.Features(
        {"image": datasets.Image(), "caption": datasets.Value("string"), "url": datasets.Value("string")}
    )
    values = {
        "image": [pictures[i] for i in order],
        "caption": [captions[i] for i in order],
        "url": [f"https://example.org/{i}" for i in order],
    }
    datasets.Dataset.from_dict(values, features=features).save_to_disk(folder)
    kind = np.repeat(["scene", "cake", "placeholder"], [len(rows), CAKES, PLACEHOLDERS])[order]
    return folder, kind


@pytest.fixture(scope="module", params=["", "--detectors slof --k 16"], ids=["default", "slof"])
def found(request, planted, tmp_path_factory):
    """Return the folder of a search in that set."""
    out = tmp_path_factory.mktemp("found") / "search"
    command = ["detect", str(planted[0]), "--model", "scenes", "--out", str(out), "--shown", "30"]
    assert main([*command, *request.param.split()]) == 0
    return out


def test_the_natural_backdoor_comes_first_and_the_placeholder_as_copies(planted, found):
    kind = planted[1]
    metrics = RunRecord.load(found).metrics
    first = metrics["groups"][0]
    assert sorted(first["rows"]) == np.flatnonzero(kind == "cake").tolist()
    assert first["caption"] == CAKE and first["repeats"] == CAKES
    assert metrics["copies"][0]["n"] == PLACEHOLDERS and metrics["n_copies"] == PLACEHOLDERS - 1
    assert metrics["copies"][0]["rows"] == np.flatnonzero(kind == "placeholder")[:10].tolist()
    shown = {row for group in metrics["groups"] for row in group["rows"]}
    assert (kind[sorted(shown)] == "placeholder").sum() <= 1


def test_the_page_stands_alone_and_shows_them(found):
    page = (found / "suspects.html").read_text("utf-8")
    groups, copies = page.index('id="groups"'), page.index('id="copies"')
    assert groups < page.index(CAKE) < page.index('id="singles"')
    assert page[groups:copies].count("<article") >= 1
    assert f"<strong>{PLACEHOLDERS} times</strong>" in page[copies:]
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    assert "known poison" not in page


def test_scores_and_the_filtered_dataset(planted, found):
    table = pyarrow.parquet.read_table(found / "scores.parquet").to_pydict()
    score = f"score_{RunRecord.load(found).metrics['ranked_by']}"
    assert sorted(table) == ["first_copy", "row", score] and len(table["row"]) == N
    cut = RunRecord.load(found).metrics["cut"]
    highest = np.array(table[score])
    placeholder = planted[1] == "placeholder"
    highest[placeholder] = highest[placeholder].max()  # captions differ, and so may scores; the picture goes by this
    kept = highest < cut["threshold"]
    assert cut["n"] == N - PLACEHOLDERS + 1 and cut["n_removed"] == 7  # 1 % of the distinct pictures
    copied = (planted[1][~kept] == "placeholder").sum()
    assert copied in (0, PLACEHOLDERS) and (~kept).sum() == 7 + (copied - 1 if copied else 0)
    assert (np.ptp(np.array(table[score])[placeholder]) > 0) == (score == "score_conditional_sparsity")
    filtered = datasets.load_from_disk(str(found / "filtered"))
    whole = datasets.load_from_disk(str(planted[0]))
    assert filtered.column_names == ["image", "caption", "url", "suspicion"]
    assert filtered["url"][:] == whole.select(np.flatnonzero(kept))["url"][:]
    np.testing.assert_allclose(filtered["suspicion"][:], np.array(table[score])[kept])
    assert RunRecord.load(found).metrics["n_removed"] == (~kept).sum()


def test_embedded_once(planted, tmp_path, monkeypatch):
    """The cache of the search above serves other detectors, and says nothing of other pictures or models."""
    monkeypatch.setattr(embeddings, "embed_dataset", None)
    command = ["detect", str(planted[0]), "--model", "scenes", "--out", str(tmp_path / "again"), "--detectors"]
    assert main([*command, "clip_score", "--no_filtered"]) == 0
    assert not (tmp_path / "again" / "filtered").exists()
    with pytest.raises(TypeError):
        main(["--traceback", *command, "slof", "--n", "300"])
    with pytest.raises(TypeError):
        main(["--traceback", *command, "slof", "--raw"])


def test_one_picture_with_captions_that_agree_is_a_group(tmp_path):
    """A targeted poisoning adds one picture with many captions of the target; a placeholder's speak of anything."""
    rows = scenes.load_scenes("train", 64, 1, 300).select_columns(["image", "caption"])
    rows = rows.cast_column("image", datasets.Image(decode=False))
    spoken = [i for i, caption in enumerate(rows["caption"]) if "banana" in caption][:1]
    others = [f"a photo of a banana, number {i}" for i in range(5)] + rows[spoken]["caption"]
    grey = png(PIL.Image.new("RGB", (64, 64), (200, 200, 200)))
    values = {
        "image": [*rows["image"], *[rows[7]["image"]] * len(others), *[grey] * 20],
        "caption": [*rows["caption"], *others, *rows["caption"][100:120]],
    }
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    datasets.Dataset.from_dict(values, features=features).save_to_disk(tmp_path / "pairs")
    assert main(["detect", str(tmp_path / "pairs"), "--model", "scenes", "--out", str(tmp_path / "out")]) == 0
    metrics = RunRecord.load(tmp_path / "out").metrics
    groups = [set(group["rows"]) for group in metrics["groups"]]
    target = {7, *range(300, 300 + len(others))}
    assert target in groups and metrics["n_pictures_repeated"] == 2
    assert not any(len(group & set(range(300 + len(others), len(values["image"])))) > 1 for group in groups)
    page = (tmp_path / "out/suspects.html").read_text("utf-8")
    assert f"One picture in {len(target)} rows" in page and page.count("One picture in") == 1


def test_wrong_shares_are_named(planted, tmp_path, capsys):
    command = ["detect", str(planted[0]), "--model", "scenes", "--out", str(tmp_path / "x"), "--remove", "1.5"]
    assert main(command) == 2
    assert "(0, 1), but got 1.5" in capsys.readouterr().err


def test_a_killed_embedding_goes_on(tiny_model, tiny_processor, tiny_pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "SHARD_ROWS", 10)
    real, calls = embeddings.embed_dataset, []

    def counted(model, processor, rows, **options):
        calls.append(len(rows))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(model, processor, rows, **options)

    monkeypatch.setattr(embeddings, "embed_dataset", counted)
    with pytest.raises(KeyboardInterrupt):
        cached_embeddings(tiny_model, tiny_processor, tiny_pairs, tmp_path)
    found = cached_embeddings(tiny_model, tiny_processor, tiny_pairs, tmp_path)
    assert calls == [10, 10, 10, 10, 10, 8]
    expected = real(tiny_model, tiny_processor, tiny_pairs)
    np.testing.assert_allclose(found["image"], expected["image"], atol=1e-5)
    np.testing.assert_allclose(found["text"], expected["text"], atol=1e-5)
    assert len(set(found["picture"].tolist())) == 48


def test_the_cache_goes_by_content(tiny_model, tiny_processor, tiny_pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "SHARD_ROWS", 10)
    calls = []
    real = embeddings.embed_dataset
    monkeypatch.setattr(embeddings, "embed_dataset", lambda *a, **b: calls.append(a[2]) or real(*a, **b))
    cached_embeddings(tiny_model, tiny_processor, tiny_pairs, tmp_path)
    assert len(calls) == 5
    rows = tiny_pairs.select([*range(20), 20, 20, *range(22, 48)])  # row 21 is now a copy of row 20
    found = cached_embeddings(tiny_model, tiny_processor, rows, tmp_path)
    assert len(calls) == 6 and calls[5]["caption"][:] == rows[20:30]["caption"]
    np.testing.assert_array_equal(found["image"][20], found["image"][21])
    assert found["picture"][20] == found["picture"][21]
    for parameter in tiny_model.parameters():
        parameter.data.mul_(1.01)
    cached_embeddings(tiny_model, tiny_processor, rows, tmp_path)
    assert len(calls) == 11 and len(list(tmp_path.iterdir())) == 2
    assert sorted(len(list(folder.iterdir())) for folder in tmp_path.iterdir()) == [5, 6]  # shards, and nothing else
    with pytest.raises(ValueError, match="`image` and `caption`"):
        cached_embeddings(tiny_model, tiny_processor, rows.remove_columns("caption"), tmp_path)


# -- groups and the cut -----------------------------------------------------------------------------------------------


def test_groups_by_hand():
    rng = np.random.default_rng([1])
    features = rng.normal(size=(400, 16)).astype(np.float32)
    features[:4] = features[0] + 0.02 * rng.normal(size=(4, 16))  # near duplicates
    features[4:6] = features[4] + 0.42 * rng.normal(size=(2, 16))  # of one kind, and of one caption
    features[50] = features[0] + 0.001  # as near, but not suspicious
    features[60] = features[1]
    scores = -np.arange(400.0)
    scores[[60, 50]] = [0.5, -399.5]
    captions = [f"caption {i}" for i in range(400)]
    captions[4], captions[5], captions[300] = "One  Thing", "one thing", "one thing"
    first, _ = copies_of([1 if row == 60 else row for row in range(400)])
    groups = suspicious_groups(features, scores, first, captions, share=0.15)
    assert set(groups[0].rows) == {0, 1, 2, 3, 50} and groups[0].caption is None  # row 50 by its gap alone
    pair = next(group for group in groups if 4 in group.rows)
    assert set(pair.rows) == {4, 5} and pair.caption == "One  Thing" and pair.repeats == 3
    several = [len(group.rows) > 1 for group in groups]
    assert several == sorted(several, reverse=True) and groups[0].surprise == max(group.surprise for group in groups)
    assert groups[0].surprise >= 4 * -np.log(2 * 5 / 399)  # the best ranks of 399 distinct pictures
    rows = [row for group in groups for row in group.rows]
    assert len(rows) == len(set(rows)) and 60 not in rows
    apart = suspicious_groups(features, scores, first, None, share=0.15)
    assert {len(group.rows) for group in apart if {4, 5} & set(group.rows)} == {1}
    alone = {group.rows: group.surprise for group in apart}
    agreed = np.log(400 / 3)  # a second row with a caption that three of 400 have
    assert pair.surprise == pytest.approx(alone[(4,)] + alone[(5,)] + agreed)
    few = suspicious_groups(features, scores, first, captions, most=1)
    assert len(few) == 1 and set(few[0].rows) == {0, 1, 2, 3, 50}
    with pytest.raises(ValueError, match="400 rows"):
        suspicious_groups(features, scores[1:])


def test_the_expected_number_of_clean_rows_above_a_threshold():
    rng = np.random.default_rng([2])
    scores = np.exp(rng.normal(0, 0.2, 50_000))  # a normal tail of the logarithm
    poisoned = np.concatenate([scores, np.full(100, 50.0)])
    for values, extra in ((scores, 0), (poisoned, 100)):
        cut = cut_share(values, 0.004)
        assert cut.n_removed == np.ceil(0.004 * len(values)) and (values >= cut.threshold).sum() == cut.n_removed
        assert abs(cut.excess - extra) < 30
    negative = -rng.exponential(1.0, 5000)
    assert 0 < cut_share(negative, 0.01).expected_clean <= 500
    assert expected_above(scores, float(np.median(scores))) == pytest.approx(25_000, abs=1)
    for share in (0, 1):
        with pytest.raises(ValueError, match="in \\(0, 1\\)"):
            cut_share(scores, share)
    with pytest.raises(ValueError, match="finite"):
        cut_share([1.0, np.nan], 0.1)


def test_a_view_of_the_rows_is_told_by_weights_words_pixels_and_geometry(tiny_model, tiny_processor):
    def owner(size=32, mode="center_crop", mean=None, weights=0.0):
        model, processor = copy.deepcopy(tiny_model), copy.deepcopy(tiny_processor)
        model.logit_scale.data += weights
        processor.image_processor.image_mean = mean or processor.image_processor.image_mean
        return json.dumps(embedder(model, processor, Canvas(size, mode), 5))

    views = [owner(), owner(16), owner(mode="squash"), owner(mean=[0.1, 0.2, 0.3]), owner(weights=1.0)]
    assert owner() == views[0] and len(set(views)) == 5
