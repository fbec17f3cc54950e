# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Every defence: its equations against slow loops, its options, its terms, and going on where it was stopped."""

import copy
import dataclasses
import pickle

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from sklearn.mixture import GaussianMixture

from hf_clipbd.captions import counterfactual_caption
from hf_clipbd.data.batches import PairBatchSampler
from hf_clipbd.data.canvas import Canvas
from hf_clipbd.data.pairs import PairViews, same_caption, same_image
from hf_clipbd.defenses import DEFENSES, OBJECTIVES, cleanclip, par, roclip, safeclip
from hf_clipbd.defenses.cleanerclip import CleanerCLIPConfig, CleanerCLIPTrainer, has_factual
from hf_clipbd.defenses.par import perturbed
from hf_clipbd.defenses.retrain import least_suspicious
from hf_clipbd.defenses.safeclip import RowViews, most_similar, safe_count
from hf_clipbd.losses import clip_loss, counterfactual_loss, nearest_rows, perturbation_loss
from hf_clipbd.trainer import CLIPTrainingConfig, Views


# Settings under which every part of a defence takes part within two epochs of six steps.
SMALL = {
    "cleanerclip": {"k_pairs": 8},
    "roclip": {"pool_size": 20, "match_every": 3, "match_unit": "step"},
    "safeclip": {"warmup_epochs": 1, "safe_probability": 0.6, "safe_growth": 0.1},
}


@pytest.fixture
def build(tiny_model, tiny_processor, tiny_pairs, tmp_path):
    """Return a function that builds the trainer of a defence on the same untrained model."""

    def trainer(name, pairs=tiny_pairs, **changes):
        settings = dict(
            per_device_train_batch_size=8, num_train_epochs=2, learning_rate=1e-3, use_cpu=True, disable_tqdm=True,
            save_strategy="no", logging_strategy="steps", logging_steps=1,
        )  # fmt: skip
        args = DEFENSES[name].config(output_dir=str(tmp_path), **{**settings, **SMALL.get(name, {}), **changes})
        return DEFENSES[name].trainer(copy.deepcopy(tiny_model), args, pairs, tiny_processor, canvas=Canvas(32))

    return trainer


def unit_rows(n, seed, d=5):
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return rows / rows.norm(dim=1, keepdim=True)


def slow_distance(a, b):
    pairs = zip(a.tolist(), b.tolist(), strict=True)
    return sum(sum((x - y) ** 2 for x, y in zip(p, q, strict=True)) for p, q in pairs)


# -- equations --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("image_gap", "text_gap"), [(0.1, 0.4), (0.3, 9.0), (9.0, 0.2), (9.0, 9.0)])
def test_perturbation_equals_slow_loops_on_both_sides_of_the_threshold(image_gap, text_gap):
    u, v = unit_rows(4, 0), unit_rows(4, 1)

    def moved(rows, gap, seed):  # a gap of 9 turns the rows round, at a distance of 4
        other = rows + gap * torch.randn(rows.shape, generator=torch.Generator().manual_seed(seed), dtype=rows.dtype)
        return -rows if gap > 1 else other / other.norm(dim=1, keepdim=True)

    frozen_u, frozen_v = moved(u, image_gap, 2), moved(v, text_gap, 3)
    distances = [slow_distance(u, frozen_u) / 4, slow_distance(v, frozen_v) / 4]
    expected = -sum(one if one <= 2.15 else 0.0 for one in distances) / 2
    assert perturbation_loss(u, frozen_u, v, frozen_v).item() == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_descending_the_perturbation_moves_away_until_the_threshold():
    u, frozen, v = (unit_rows(4, seed).requires_grad_(seed == 0) for seed in range(3))
    for threshold, moves in ((3.9, True), (0.01, False)):
        before = slow_distance(u, frozen)
        (gradient,) = torch.autograd.grad(perturbation_loss(u, frozen, v, v, threshold), u)
        after = slow_distance(u.detach() - 0.1 * gradient, frozen)
        assert (after > before) is moves and bool(gradient.any()) is moves


def test_the_nearest_row_equals_a_slow_loop_and_passes_no_gradient():
    queries, pool = unit_rows(6, 0).requires_grad_(), unit_rows(9, 1)
    found = nearest_rows(queries, pool)
    for query, row in zip(queries, found, strict=True):
        cosines = [sum(float(x) * float(y) for x, y in zip(query, one, strict=True)) for one in pool]
        assert torch.equal(row, pool[cosines.index(max(cosines))])
    assert not found.requires_grad and len({tuple(row.tolist()) for row in found}) > 1
    for bad in (pool[:0], unit_rows(3, 0, d=4)):
        with pytest.raises(ValueError, match="pool"):
            nearest_rows(queries, bad)


def test_safe_pairs_are_those_of_the_higher_gaussian():
    rng = np.random.default_rng(0)
    similarities = np.concatenate([rng.normal(0.1, 0.05, 60), rng.normal(0.6, 0.05, 200)])
    mixture = GaussianMixture(2, random_state=0).fit(similarities[:, None])
    mean, deviation = mixture.means_[:, 0], np.sqrt(mixture.covariances_[:, 0, 0])
    count = 0
    for value in similarities:
        density = mixture.weights_ * np.exp(-((value - mean) ** 2) / (2 * deviation**2)) / deviation
        count += density[mean.argmax()] / density.sum() >= 0.9 or value >= mean.max()
    assert safe_count(similarities, 0.9) == count and 195 <= count <= 205
    chosen = most_similar(similarities, 3)
    assert chosen.sum() == 3 and similarities[chosen].min() >= np.sort(similarities)[-3]


def test_a_wide_lower_gaussian_does_not_claim_the_most_similar_pairs():
    rng = np.random.default_rng(1)
    similarities = np.concatenate([rng.normal(0.4, 0.3, 500), rng.normal(0.6, 0.02, 500)])
    n = safe_count(similarities, 0.9)
    assert n >= (similarities > 0.62).sum()  # far above the narrow one, where the wide one's density is higher


def test_the_least_suspicious_rows_stay():
    scores = np.array([0.3, 0.9, 0.1, 0.9, 0.5])
    assert least_suspicious(scores, 0.2).tolist() == [0, 1, 2, 4]  # of equal scores the later row goes
    assert least_suspicious(scores, 0.0).tolist() == [0, 1, 2, 3, 4]
    for bad, share in ((scores, 1.0), (np.array([np.nan]), 0.1)):
        with pytest.raises(ValueError, match="share"):
            least_suspicious(bad, share)


# -- views ------------------------------------------------------------------------------------------------------------


def test_perturbed_views_have_the_noise_and_the_rectangle_of_the_paper():
    grey = PIL.Image.new("RGB", (40, 40), (128, 128, 128))
    noisy = [np.asarray(perturbed(grey, (0, 0, row), erase_probability=0.0)) for row in range(300)]
    changed = [one for one in noisy if (one != 128).any()]
    assert 120 <= len(changed) <= 180
    assert np.std(np.stack(changed) / 255) == pytest.approx(0.2, abs=0.01)  # clipping takes a little away
    erased = [np.asarray(perturbed(grey, (0, 0, row), noise_probability=0.0)) for row in range(300)]
    areas = [(one == 0).all(axis=2).mean() for one in erased if (one != 128).any()]
    assert 120 <= len(areas) <= 180
    assert 0.0035 < min(areas) and max(areas) < 0.0135 and 0.006 < np.mean(areas) < 0.009  # whole pixels
    again = perturbed(grey, (3, 1, 7))
    assert np.array_equal(again, perturbed(grey, (3, 1, 7)))
    assert any(not np.array_equal(again, perturbed(grey, key)) for key in ((4, 1, 7), (3, 2, 7), (3, 1, 8), (3, 1, 9)))


def test_k_pairs_have_a_factual_sub_caption(tiny_pairs, tmp_path):
    captions = [
        ("", " ... ", "--", "!?")[row % 4] if row % 3 else text for row, text in enumerate(tiny_pairs["caption"])
    ]
    rows = tiny_pairs.remove_columns("caption").add_column("caption", captions)
    good = {row for row, text in enumerate(captions) if has_factual(text)}
    assert good == set(range(0, 48, 3))
    args = CleanerCLIPConfig(output_dir=str(tmp_path), k_pairs=16, use_cpu=True)
    views = PairViews(rows, CleanerCLIPTrainer.view_plan(args), Canvas(32), seed=5)

    def drawn(k, epoch, processes=1):
        sampler = PairBatchSampler(48, 8 // processes, processes, 5, k, in_subset=views.in_subset)
        sampler.set_epoch(epoch)
        return [key.row for batch in sampler for key in batch if key.subset]

    assert len(drawn(8, 0)) == 8 and set(drawn(8, 0)) < good and drawn(8, 0) != drawn(8, 1)
    assert drawn(8, 0) == drawn(8, 0, processes=2)
    assert sorted(drawn(16, 0)) == sorted(good)
    many = drawn(40, 0)  # more than there are: the same again, so that K is met
    assert len(many) == 40 and set(many) == good and many[16:32] == many[:16]
    sampler = PairBatchSampler(48, 8, 1, 5, 8, in_subset=lambda row: False)
    with pytest.raises(ValueError, match="none of 48 may be drawn"):
        list(sampler)


def test_captions_that_are_not_english_are_warned_of(build, tiny_pairs, caplog):
    german = datasets.Dataset.from_dict({"caption": ["ein kleiner brauner Hund läuft auf dem grünen Gras"] * 48})
    pairs = datasets.concatenate_datasets([tiny_pairs.select_columns("image"), german], axis=1)
    for rows, warned in ((tiny_pairs, False), (pairs, True)):
        caplog.clear()
        build("cleanerclip", rows)
        assert ("made for English" in caplog.text) == warned
    caplog.clear()
    build("cleanclip", pairs)
    assert "English" not in caplog.text


def test_replacements_come_from_the_chosen_share_of_the_repositories(tmp_path):
    def drawn(**options):
        args = CleanerCLIPConfig(output_dir=str(tmp_path), use_cpu=True, **options)
        view = pickle.loads(pickle.dumps(CleanerCLIPTrainer.view_plan(args))).subset_texts["counterfactual"]
        return [view("two dogs run over the green grass", (0, epoch, 7)) for epoch in range(40)]

    caption, plain = "two dogs run over the green grass", drawn()
    assert plain == [counterfactual_caption(caption, seed=(0, epoch, 7)) for epoch in range(40)]
    common = [counterfactual_caption(caption, seed=(0, epoch, 7), rarity=(0.0, 0.2)) for epoch in range(40)]
    assert drawn(rarity_to=0.2) == common and set(common) != set(plain)


def test_the_whole_caption_may_stand_for_its_sub_caption(tmp_path):
    args = CleanerCLIPConfig(output_dir=str(tmp_path), use_cpu=True, parser="whole")
    views = pickle.loads(pickle.dumps(CleanerCLIPTrainer.view_plan(args))).subset_texts
    caption = "Two big black dogs run over the green grass today"
    true = {views["factual"](caption, (0, epoch, 7)) for epoch in range(40)}
    false = {views["counterfactual"](caption, (0, epoch, 7)) for epoch in range(40)}
    assert true == {caption.lower()} and len(false) > 20 and not true & false
    assert all("two big" in one and one.endswith("today") for one in false)
    args = CleanerCLIPConfig(output_dir=str(tmp_path), use_cpu=True)
    shortened = CleanerCLIPTrainer.view_plan(args).subset_texts["factual"](caption, (0, 0, 7))
    assert shortened == "black dogs run over green grass"


@pytest.mark.parametrize(
    ("options", "image", "factor"),
    [
        ({}, "image", 1.0),
        ({"fc_images": "augmented"}, "augmented", 1.0),
        ({"learned_scale": True}, "image", 7.0),
        ({"directions": "i2t"}, "image", 1.0),
        ({"directions": "t2i"}, "image", 1.0),
    ],
)
def test_readings_of_the_sub_caption_loss_equal_the_equation_on_what_they_say(options, image, factor, build):
    trainer = build("cleanerclip", tau_pos=0.4, tau_neg=0.3, **options)
    images = {"image": unit_rows(4, 0), "augmented": unit_rows(4, 1)}
    texts = {name: unit_rows(4, 2 + i) for i, name in enumerate(("caption", "augmented", "factual", "counterfactual"))}
    views = Views(images, texts, torch.tensor(7.0, dtype=torch.float64))
    factual, counterfactual = texts["factual"], texts["counterfactual"]
    directions = options.get("directions", "both")
    expected = counterfactual_loss(
        images[image], factual, counterfactual, 0.4 / factor, 0.3 / factor, directions=directions
    )
    assert trainer.loss_terms(views)["fc"].item() == pytest.approx(expected.item(), rel=1e-12)


# -- the contract of every defence ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*DEFENSES, *OBJECTIVES])
def test_options_have_defaults_and_help(name):
    defense = {**DEFENSES, **OBJECTIVES}[name]
    assert issubclass(defense.config, CLIPTrainingConfig) and defense.trains_on in ("clean", "poisoned")
    inherited = {field.name for field in dataclasses.fields(CLIPTrainingConfig)}
    for field in dataclasses.fields(defense.config):
        if field.name not in inherited:
            assert field.default is not dataclasses.MISSING and field.metadata["help"].endswith(".")
            assert f"{field.name}:" in defense.config.__doc__ or any(
                f"{field.name}:" in (parent.__doc__ or "") for parent in defense.config.__mro__
            )


@pytest.mark.parametrize("name", DEFENSES)
def test_terms_are_finite_scalars_that_sum_to_the_loss(name, build):
    trainer = build(name)
    assert pickle.loads(pickle.dumps(trainer.plan)).text_names == trainer.plan.text_names  # workers get a copy
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    seen = set()
    for entry in logged:
        terms = {key: value for key, value in entry.items() if key.startswith("loss_")}
        seen |= set(terms)
        assert all(np.isfinite(value) for value in terms.values())
        assert entry["loss"] == pytest.approx(sum(terms.values()), rel=1e-4, abs=1e-5)
    expected = {
        "cleanclip": {"clip", "in_modal"},
        "cleanerclip": {"clip", "in_modal", "fc"},
        "par": {"clip", "perturb"},
        "roclip": {"matched", "clip"},
        "safeclip": {"clip", "in_modal"},
    }
    assert seen == {f"loss_{term}" for term in expected.get(name, {"clip"})}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("cleanerclip", {"subset_terms": "some"}),
        ("cleanerclip", {"fc_images": "none"}),
        ("cleanerclip", {"rarity_from": 0.5, "rarity_to": 0.2}),
        ("cleanerclip", {"rarity_to": 0.0003}),
        ("cleanerclip", {"rarity_from": 0.995}),
        ("cleanerclip", {"negatives": "some"}),
        ("cleanerclip", {"fc_reduction": "none"}),
        ("cleanerclip", {"directions": "t2t"}),
        ("cleanerclip", {"tau_pos": 0.0}),
        ("cleanerclip", {"tau_neg": -0.3}),
        ("cleanerclip", {"k_pairs": -5}),
        ("cleanerclip", {"k_pairs": 1}),
        ("cleanerclip", {"k_share": 0.0}),
        ("cleanerclip", {"parser": "spacy"}),
        ("cleanerclip", {"parser": "spacy:"}),
        ("par", {"noise_probability": 1.5}),
        ("par", {"erase_area_min": 0.5}),
        ("par", {"noise_std": -1.0}),
        ("roclip", {"match_unit": "week"}),
        ("roclip", {"pool_size": 0}),
        ("safeclip", {"safe_growth": 2.0}),
        ("safeclip", {"warmup_epochs": 3}),
        ("safeclip", {"num_train_epochs": 1}),
        ("retrain", {"drop_share": 1.0}),
    ],
)
def test_options_that_cannot_be_meant_are_refused(name, changes, tmp_path):
    with pytest.raises(ValueError, match=next(iter(changes))):
        DEFENSES[name].config(output_dir=str(tmp_path), **changes)


@pytest.mark.parametrize("stop", [4, 6])
@pytest.mark.parametrize("name", DEFENSES)
def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(name, stop, build, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": stop, "save_total_limit": None}
    unbroken = build(name, **settings)
    unbroken.train()
    resumed = build(name, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{stop}"))
    steps = [[entry["loss"] for entry in one.state.log_history if "loss" in entry] for one in (unbroken, resumed)]
    assert steps[0] == steps[1] and len(steps[0]) == unbroken.state.max_steps > 10
    for key, value in unbroken.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key
    for key, value in getattr(unbroken, "training_state", dict)().items():
        assert torch.equal(value, resumed.training_state()[key]), key


# -- PAR --------------------------------------------------------------------------------------------------------------


def distance(trainer):
    batch = trainer.data_collator(
        trainer.train_dataset.__getitems__([key for key in next(iter(trainer._batch_sampler()))])
    )
    trainer.model.eval()
    with torch.no_grad():
        views = trainer.embed_views(trainer.model, batch)
    return (views.images["image"] - views.images["frozen"]).square().sum(1).mean().item()


def test_par_moves_away_from_the_frozen_model_and_stops_there(build):
    gaps = {}
    for weight, threshold in ((1.0, 2.15), (0.0, 2.15), (1.0, 0.05)):
        settings = {"max_steps": 20, "perturb_weight": weight, "perturb_threshold": threshold, "learning_rate": 3e-3}
        trainer = build("par", **settings)
        before = {name: value.clone() for name, value in trainer.frozen.state_dict().items()}
        assert distance(trainer) == pytest.approx(0.0, abs=1e-9)
        trainer.train()
        gaps[weight, threshold] = distance(trainer)
        for name, value in trainer.frozen.state_dict().items():
            assert torch.equal(value, before[name])  # neither weights nor running statistics
    assert gaps[1.0, 2.15] > 1.2 * gaps[0.0, 2.15] > 0
    assert gaps[1.0, 0.05] < gaps[1.0, 2.15]


def test_par_compares_with_the_poisoned_model_after_a_resumption(build, tmp_path, tiny_model):
    build("par", save_strategy="steps", save_steps=4).train()
    resumed = build("par")
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))
    for name, value in tiny_model.state_dict().items():
        assert torch.equal(value, resumed.frozen.state_dict()[name])
    assert not any(name.startswith("frozen") for name in resumed.model.state_dict())


# -- training on poisoned pairs ---------------------------------------------------------------------------------------


def views_of(trainer, n=8, seed=0):
    names = (list(trainer.plan.images), list(trainer.plan.texts))
    images, texts = (
        {name: unit_rows(n, seed + 10 * at + i, 16) for i, name in enumerate(one)} for at, one in enumerate(names)
    )
    return Views(images, texts, torch.tensor(5.0))


def test_roclip_matches_every_k_th_step_and_its_pool_is_first_in_first_out(build):
    trainer = build("roclip", pool_size=20, match_every=2, match_unit="step")
    trainer.begin_epoch(0)
    first = trainer.pool.clone()
    assert first.shape == (20, 16) and torch.allclose(first.norm(dim=1), torch.ones(20))
    terms, seen = [], []
    for step in range(4):
        trainer.state.global_step = step
        views = views_of(trainer, seed=100 * step)
        terms.append(set(trainer.loss_terms(views)))
        seen.append(views.texts["caption"])
    assert terms == [{"matched"}, {"clip"}, {"matched"}, {"clip"}]
    expected = torch.cat([first.double(), *seen])[-20:]
    assert torch.allclose(trainer.pool.double(), expected, atol=1e-6)
    trainer.begin_epoch(1)
    assert torch.allclose(trainer.pool.double(), expected, atol=1e-6)  # filled once


def test_roclip_matches_whole_epochs_from_the_first(build):
    trainer = build("roclip", match_every=3, match_unit="epoch")
    found = []
    for epoch in (0.0, 0.99, 1.0, 2.5, 3.0, 3.5, 4.0):
        trainer.state.epoch = epoch
        found.append(trainer.matches())
    assert found == [True, True, False, False, True, True, False]


def test_a_poisoned_image_is_matched_with_what_it_shows(build):
    trainer = build("roclip")
    shows, claimed = torch.eye(16)[0], torch.eye(16)[1]
    trainer.pool = torch.stack([torch.eye(16)[2], shows, torch.eye(16)[3]])
    image = (shows + 0.3 * claimed) / (shows + 0.3 * claimed).norm()
    assert torch.equal(nearest_rows(image[None], trainer.pool)[0], shows)


def slow_terms(trainer, views, safe):
    from hf_clipbd.losses import clip_loss, in_modal_loss

    def part(name, of, kind):
        return torch.stack([row for row, one in zip(of[name], safe, strict=True) if one is kind])

    total = {"clip": 0.0, "in_modal": 0.0}
    if any(safe):
        chosen = (part("image", views.images, True), part("caption", views.texts, True))
        total["clip"] = sum(safe) / len(safe) * clip_loss(*chosen, views.scale).item()
    if not all(safe):
        kept = [part(name, of, False) for of, names in ((views.images, ("image", "augmented")), (views.texts, ("caption", "augmented"))) for name in names]  # noqa: E501  # fmt: skip
        total["in_modal"] = (len(safe) - sum(safe)) / len(safe) * in_modal_loss(*kept, views.scale).item()
    return total


@pytest.mark.parametrize("safe", [[1, 0, 1, 1, 0, 0, 1, 0], [1] * 8, [0] * 8])
def test_safe_pairs_get_the_clip_loss_and_risky_ones_the_in_modal_terms(safe, build):
    trainer = build("safeclip")
    rows = torch.tensor([5, 40, 2, 33, 7, 0, 11, 21])
    trainer.safe[rows], trainer.divided_at = torch.tensor(safe, dtype=torch.bool), 1
    views = RowViews(**vars(views_of(trainer)), rows=rows)
    found = {name: term.item() for name, term in trainer.loss_terms(views).items()}
    assert found == pytest.approx(slow_terms(trainer, views, [bool(one) for one in safe]), rel=1e-5, abs=1e-9)


def test_the_warm_up_has_in_modal_terms_alone_and_the_safe_share_grows(build):
    trainer = build("safeclip", num_train_epochs=3, safe_growth=0.25)
    shares = []
    begin = trainer.begin_epoch
    trainer.begin_epoch = lambda epoch: (begin(epoch), shares.append(int(trainer.safe.sum())))
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert all("loss_clip" not in entry for entry in entries[:6]) and "loss_clip" in entries[6]
    assert shares[0] == 0 and 0 < shares[1] == trainer.first_count
    assert shares[2] == min(48, trainer.first_count + 12)


@pytest.mark.parametrize("name", ["roclip", "safeclip"])
def test_what_looks_at_the_whole_set_refuses_a_stream(name, build, tiny_pairs):
    assert isinstance(tiny_pairs.to_iterable_dataset(), datasets.IterableDataset)
    with pytest.raises(ValueError, match="known length"):
        build(name, tiny_pairs.to_iterable_dataset(), max_steps=2)


def invented_views(d=5):
    images = {name: unit_rows(4, i, d) for i, name in enumerate(("image", "augmented", "frozen"))}
    names = ("caption", "augmented", "factual", "counterfactual", "frozen")
    texts = {name: unit_rows(4, 10 + i, d) for i, name in enumerate(names)}
    return Views(images, texts, torch.tensor(7.0, dtype=torch.float64))


@pytest.mark.parametrize(
    ("name", "options", "factors"),
    [
        ("cleanclip", {"clip_weight": 3.0}, {"clip": 3.0}),
        ("cleanclip", {"in_modal_weight": 0.5}, {"in_modal": 0.5}),
        ("cleanerclip", {"lambda_cleanclip": 3.0}, {"clip": 3.0, "in_modal": 3.0}),
        ("cleanerclip", {"lambda_fc": 0.5}, {"fc": 0.5}),
        ("cleanerclip", {"fc_reduction": "sum"}, {"fc": 4.0}),
        ("cleanerclip", {"subset_terms": "fc"}, {"clip": 0.0, "in_modal": 0.0}),
        ("par", {"perturb_weight": 3.0}, {"perturb": 3.0}),
    ],
)
def test_an_option_weighs_its_own_terms_and_no_other(name, options, factors, build):
    usual, found = (build(name, **one).loss_terms(invented_views()) for one in ({}, options))
    expected = {term: factors.get(term, 1.0) * value.item() for term, value in usual.items()}
    got = {term: found[term].item() if term in found else 0.0 for term in usual}
    assert got == pytest.approx(expected, rel=1e-12) and all(abs(value) > 1e-3 for value in usual.values())


@pytest.mark.parametrize("options", [{"negatives": "own"}, {"text_negatives": False}])
def test_negatives_of_the_sub_caption_loss_are_those_asked_for(options, build):
    views = invented_views()
    texts = [views.texts[name] for name in ("factual", "counterfactual")]
    expected = counterfactual_loss(views.images["image"], *texts, 0.3, 0.3, **options).item()
    usual = counterfactual_loss(views.images["image"], *texts, 0.3, 0.3).item()
    assert build("cleanerclip", **options).loss_terms(views)["fc"].item() == pytest.approx(expected, rel=1e-12)
    assert expected != pytest.approx(usual, rel=1e-3)


def test_par_moves_each_modality_from_its_own_frozen_embeddings(build):
    views = invented_views()
    own = [views.images["image"], views.images["frozen"], views.texts["caption"], views.texts["frozen"]]
    expected = perturbation_loss(*own, 4.0).item()
    found = build("par", perturb_threshold=4.0).loss_terms(views)["perturb"].item()
    assert found == pytest.approx(expected, rel=1e-12) and found < -0.5


def test_the_options_of_par_reach_its_view(build):
    grey = PIL.Image.new("RGB", (40, 40), (128, 128, 128))

    def drawn(**options):
        view = build("par", **options).plan.images["image"]
        return np.stack([np.asarray(view(grey, (0, 0, row))) for row in range(20)])

    faint = drawn(noise_std=0.02, noise_probability=1.0, erase_probability=0.0)
    assert np.std(faint / 255) == pytest.approx(0.02, rel=0.1) and (faint > 0).all()
    erased = drawn(noise_probability=0.0, erase_probability=1.0, erase_area_min=0.2, erase_area_max=0.25)
    areas = (erased == 0).all(axis=3).mean(axis=(1, 2))
    assert 0.17 < areas.min() and areas.max() < 0.28 and set(np.unique(erased)) == {0, 128}


GRADIENT = PIL.Image.linear_gradient("L").convert("RGB")
CAPTION = "two big black dogs run over the green grass beside an old house today"
VIEWS = {
    "par": lambda key: np.asarray(par.perturbed(GRADIENT, key, 0.2, 1.0)).tobytes(),
    "image": lambda key: np.asarray(cleanclip.auto_augmented(GRADIENT, key)).tobytes(),
    "eda": lambda key: cleanclip.eda_augmented(CAPTION, key),
    "span": lambda key: cleanclip.span_augmented(CAPTION, key),
}  # fmt: skip


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("part", [0, 1, 2], ids=["seed", "epoch", "row"])
def test_seed_epoch_and_row_each_change_a_view(name, part):
    keys = [[5, 5, 5] for _ in range(12)]
    for number, key in enumerate(keys):
        key[part] = number
    assert len({VIEWS[name](tuple(key)) for key in keys}) > 4
    once = {cleanclip.drawn_once(cleanclip.span_augmented, CAPTION, tuple(key)) for key in keys}
    assert (len(once) == 1) is (part == 1)


def test_augmented_views_are_those_of_the_papers(build):
    both = build("cleanclip").plan
    assert both.images == {"image": same_image, "augmented": cleanclip.auto_augmented}
    assert both.texts == {"caption": same_caption, "augmented": cleanclip.eda_augmented}
    alone = build("roclip").plan
    assert alone.images == {"image": cleanclip.auto_augmented} and alone.texts == {"caption": cleanclip.eda_augmented}


def test_roclip_matches_images_with_captions_that_came_before(build):
    trainer = build("roclip", match_every=1, match_unit="step")
    views = views_of(trainer)
    trainer.pool = unit_rows(12, 40, 16).float()
    images = views.images["image"]
    expected = clip_loss(images, nearest_rows(images, trainer.pool.double()), views.scale).item()
    assert trainer.loss_terms(views)["matched"].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("share", "asked", "n"), [(0.02, None, 8), (0.5, None, 24), (0.5, 5, 5), (0.5, 99, 48)])
def test_the_pool_of_roclip_is_a_share_of_the_rows_and_at_least_a_batch(share, asked, n, build, monkeypatch):
    assert (DEFENSES["roclip"].config("unused", use_cpu=True).pool_size, roclip.POOL_SHARE) == (None, 0.02)
    monkeypatch.setattr(roclip, "POOL_SHARE", share)
    trainer = build("roclip", pool_size=asked)
    trainer.begin_epoch(0)
    assert len(trainer.pool) == n


def test_the_warm_up_of_safeclip_is_told_by_epochs_alone():
    config = DEFENSES["safeclip"].config("unused", use_cpu=True, warmup_epochs=3, num_train_epochs=1, max_steps=9)
    assert config.warmup_epochs == 3  # of steps nobody knows yet how many epochs they are


@pytest.mark.parametrize(("changes", "warm_up"), [({}, 6), ({"gradient_accumulation_steps": 4}, 2)])
def test_steps_that_end_within_the_warm_up_are_refused(changes, warm_up, build):
    with pytest.raises(ValueError, match=f"`max_steps` above {warm_up}.*but got {warm_up}"):
        build("safeclip", max_steps=warm_up, **changes)
    trainer = build("safeclip", max_steps=warm_up + 1, **changes)
    trainer.train()
    assert "loss_clip" in trainer.history()[-1]


def test_the_pool_of_roclip_is_drawn_by_the_seed(build):
    pools = []
    for seed in (0, 0, 1):
        trainer = build("roclip", seed=seed)
        trainer.begin_epoch(0)
        pools.append(trainer.pool)
    assert torch.equal(pools[0], pools[1]) and not torch.equal(pools[0], pools[2])


def test_weights_and_options_reach_safeclip(build, monkeypatch):
    trainer = build("safeclip", clip_weight=3.0, in_modal_weight=0.5, seed=7)
    trainer.train_dataset.canvas = Canvas(32, "squash")
    rows, safe = torch.tensor([5, 40, 2, 33, 7, 0, 11, 21]), [1, 0, 1, 1, 0, 0, 1, 0]
    asked, embed = [], safeclip.embed_dataset
    monkeypatch.setattr(safeclip, "safe_count", lambda _, *options: asked.append(options) or 3)
    monkeypatch.setattr(safeclip, "embed_dataset", lambda *a, **b: asked.append(b["canvas"].mode) or embed(*a, **b))
    trainer.begin_epoch(1)
    assert asked == ["squash", (0.6, 7)] and int(trainer.safe.sum()) == 3
    trainer.safe[rows] = torch.tensor(safe, dtype=torch.bool)
    views = RowViews(**vars(views_of(trainer)), rows=rows)
    expected = slow_terms(trainer, views, [bool(one) for one in safe])
    found = {name: term.item() for name, term in trainer.loss_terms(views).items()}
    assert found == pytest.approx({"clip": 3.0 * expected["clip"], "in_modal": 0.5 * expected["in_modal"]}, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "defaults"),
    [
        ("ft", {"learning_rate": 1e-5, "weight_decay": 0.1, "warmup_steps": 0.1, "lr_scheduler_type": "cosine"}),
        ("ft", {"adam_beta1": 0.9, "adam_beta2": 0.999, "per_device_train_batch_size": 64, "max_grad_norm": 1.0}),
        ("cleanclip", {"clip_weight": 1.0, "in_modal_weight": 1.0, "text_view": "eda", "frozen_text_views": False}),
        ("cleanerclip", {"k_pairs": 1000, "tau_pos": 0.3, "tau_neg": 0.3, "lambda_cleanclip": 1.0, "lambda_fc": 1.0}),
        ("par", {"perturb_threshold": 2.15, "noise_std": 0.2, "noise_probability": 0.5, "erase_probability": 0.5}),
        ("par", {"erase_area_min": 0.005, "erase_area_max": 0.01, "perturb_weight": 1.0}),
        ("safeclip", {"safe_probability": 0.9, "safe_growth": 0.01, "warmup_epochs": 1}),
    ],
)
def test_defaults_are_those_of_the_papers(name, defaults):
    config = DEFENSES[name].config(output_dir="unused", use_cpu=True)
    assert {option: getattr(config, option) for option in defaults} == defaults


@pytest.mark.parametrize("defense", ["roclip", "safeclip"])
def test_a_second_training_begins_without_what_the_first_one_kept(
    defense, tiny_model, tiny_processor, tiny_pairs, tmp_path
):
    config, trainer = DEFENSES[defense][:2]
    quiet = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
    steps = {"per_device_train_batch_size": 16, "num_train_epochs": 3, "learning_rate": 0.0, "freeze_batch_norm": True}
    twice = trainer(tiny_model, config(str(tmp_path), **steps, **quiet), tiny_pairs, tiny_processor)
    losses = []
    for _ in range(2):
        twice.train()
        losses.append([entry["loss"] for entry in twice.history()])
    assert losses[0] == losses[1]
