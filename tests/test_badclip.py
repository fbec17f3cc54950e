# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""BadCLIP: its loss against slow loops, its optimisation step by step, killed and gone on, and its stage of a run."""

import hashlib
import json
import math
import signal
import threading
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from safetensors.numpy import load_file
from transformers import CLIPConfig, CLIPModel

from hf_clipbd.attacks import Attack, BadCLIP, BadNets
from hf_clipbd.attacks.badclip import starting_patch
from hf_clipbd.attacks.optimize_patch import HISTORY, PatchConfig, optimize_patch, stalled
from hf_clipbd.attacks.patch_batches import PatchBatches, identity, paste
from hf_clipbd.cli.plan_run import plan_run
from hf_clipbd.data.canvas import Canvas, pixel_statistics
from hf_clipbd.features import embed_images, embed_texts, logit_scale, tokenize
from hf_clipbd.losses import patch_text_loss, patch_triplet_loss
from hf_clipbd.recipe import ConfigError, config_from, poison
from hf_clipbd.recipe.stage import CHECKPOINTS
from hf_clipbd.schema import PoisonManifest, RunRecord


ROOT = Path(__file__).resolve().parents[1]
TEXTS = ["a red banana", "a banana on a boat", "an old banana"]
CANVAS = Canvas(32)


def unit_rows(n: int, seed: int, d: int = 5) -> torch.Tensor:
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return rows / rows.norm(dim=1, keepdim=True)


def dot(a, b) -> float:
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def apart(a, b) -> float:
    return math.sqrt(sum((float(x) - float(y)) ** 2 for x, y in zip(a, b, strict=True)))


# -- the loss ---------------------------------------------------------------------------------------------------------

U, V, W = (unit_rows(6, seed) for seed in (11, 12, 13))


@pytest.mark.parametrize("margin", [0.1, 1.0])
def test_triplet_loss_equals_slow_loops(margin):
    euclidean = cosine = 0.0
    for i in range(6):
        euclidean += max(0.0, apart(U[i], W[i]) - apart(U[i], V[i]) + margin)
        cosine += max(0.0, (1 - dot(U[i], W[i])) - (1 - dot(U[i], V[i])) + margin)
    assert patch_triplet_loss(U, V, W, margin).item() == pytest.approx(euclidean / 6, rel=1e-5)
    assert patch_triplet_loss(U, V, W, margin, "cosine").item() == pytest.approx(cosine / 6, rel=1e-12)
    assert patch_triplet_loss(U, W, V, margin).item() != pytest.approx(euclidean / 6, rel=1e-2)  # which is which


def test_own_captions_loss_equals_slow_loops():
    expected = 0.0
    for i in range(6):
        right = sum(math.exp(7 * dot(U[i], v)) for v in V)
        wrong = sum(math.exp(7 * dot(U[i], v)) for v in W)
        expected -= math.log(right / (right + wrong)) / 6
    assert patch_text_loss(U, V, W, 7.0).item() == pytest.approx(expected, rel=1e-12)
    assert patch_text_loss(U, W, V, 7.0).item() != pytest.approx(expected, rel=1e-2)


def test_losses_refuse_what_does_not_fit():
    for call in (
        lambda: patch_triplet_loss(U, V, W[:2]),
        lambda: patch_triplet_loss(U, V, W, 1.0, "manhattan"),
        lambda: patch_triplet_loss(U, V, W, 0.0, "cosine"),
        lambda: patch_text_loss(U, V, W[:2], 1.0),
    ):
        with pytest.raises(ValueError, match="Expected"):
            call()


# -- the paste --------------------------------------------------------------------------------------------------------


def test_paste_is_out_of_place_and_what_the_attack_stamps():
    rng = np.random.default_rng(0)
    patch = rng.integers(0, 256, (3, 4, 3)).astype(np.float32) / 255
    source = rng.integers(0, 256, (5, 20, 17, 3), dtype=np.uint8)
    images = torch.from_numpy(source / np.float32(255)).permute(0, 3, 1, 2).contiguous()
    before = images.clone()
    inked = torch.from_numpy(patch).permute(2, 0, 1).contiguous().requires_grad_()
    for place in ("middle", "corner", "four_corners", (2, 9)):
        attack = BadCLIP(patch=patch, place=place)
        spots = tuple(attack.places(20, 17, np.random.default_rng(0)))
        stamped = paste(images, inked, [spots] * 5)
        assert torch.equal(images, before)  # clean negatives stay clean
        shown = (stamped.detach().permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8)
        np.testing.assert_array_equal(shown, attack(source))
        (gradient,) = torch.autograd.grad(stamped.sum(), [inked])
        assert (gradient == 5 * len(spots)).all()
    apart_places = paste(images, inked, [((i, i),) for i in range(5)])
    for i in range(5):
        assert torch.equal(apart_places[i, :, i : i + 3, i : i + 4], inked)
        assert (apart_places[i] != images[i]).any(dim=0).sum() <= 12


# -- the attack -------------------------------------------------------------------------------------------------------


def test_without_a_patch_it_stamps_the_noise_it_would_start_from():
    noise = starting_patch(200, 3)
    inside = noise[(noise > 0) & (noise < 1)]
    # N(0.5, 0.25) cut at two deviations: a mean of 0.5, 4.6 % at the ends
    assert abs(noise.mean() - 0.5) < 0.005 and abs(1 - inside.size / noise.size - 0.0455) < 0.005
    attack = BadCLIP(seed=3, patch_size=4)
    stamped = attack(np.zeros((10, 12, 3), np.uint8))
    np.testing.assert_array_equal(stamped[3:7, 4:8], np.rint(starting_patch(4, 3) * 255))
    assert BadCLIP().fixed_pattern(224, 300).shape == (16, 16, 3)


def test_a_patch_travels_without_loss_and_with_its_record(tmp_path, caplog):
    patch = np.random.default_rng(1).random((3, 5, 3), dtype=np.float32)
    history = np.random.default_rng(2).random((7, 3))
    attack = BadCLIP(target="cup", patch=patch, place=(1, 2), record={"steps": 7, "floor_asr1": 0.01}, history=history)
    attack.save_pretrained(tmp_path / "kept")
    loaded = Attack.from_pretrained(tmp_path / "kept")
    assert loaded.patch.tobytes() == patch.tobytes() and loaded.history.tobytes() == history.tobytes()
    assert loaded.record == attack.record and loaded.place == (1, 2)
    picture = np.asarray(PIL.Image.open(tmp_path / "kept" / "patch.png"))
    np.testing.assert_array_equal(picture[::16, ::16], np.rint(patch * 255))  # channels as they are, no JPEG
    taken = BadCLIP(target="dog", patch=str(tmp_path / "kept"))
    assert taken.patch.tobytes() == patch.tobytes() and taken.record == attack.record and taken.target == "dog"
    assert [one.getMessage() for one in caplog.records] == [
        "The patch was kept with place (1, 2) and is pasted at 'middle': pass its place."
    ]
    BadCLIP(patch=str(tmp_path / "kept"), place=[1, 2])
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"place": "top"}, "among"),
        ({"patch": np.zeros((2, 2))}, "float64"),
        ({"patch": np.zeros((2, 2, 3)), "patch_size": 2}, "brings its size"),
        ({"patch_size": 0}, "at least one pixel"),
    ],
)
def test_parameters_are_checked(values, says):
    with pytest.raises(ValueError, match=says):
        BadCLIP(**values)


def test_another_attack_is_no_patch(tmp_path):
    BadNets().save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="holds BadNets"):
        BadCLIP(patch=tmp_path)


@pytest.mark.parametrize(
    "values",
    [
        {"steps": 0},
        {"learning_rate": 0},
        {"augment": 1.5},
        {"weight": -1},
        {"weight": 0, "text_weight": 0},
        {"distance": "far"},
        {"text_term": "none"},
        {"patience": 0},
        {"margin": 0.0},
    ],
)
def test_settings_are_checked(values):
    with pytest.raises(ValueError, match="Expected"):
        PatchConfig(**values)


# -- the optimisation -------------------------------------------------------------------------------------------------


def optimized(model, processor, pairs, checkpoint=None, place="middle", **settings) -> BadCLIP:
    config = PatchConfig(**{"steps": 6, "batch_size": 8, "learning_rate": 0.05, "checkpoint_steps": 2, **settings})
    rows = [row for row, caption in enumerate(pairs["caption"]) if "banana" not in caption]
    named = [row for row, caption in enumerate(pairs["caption"]) if "banana" in caption]
    return BadCLIP.optimize(
        model,
        processor,
        pairs.select(rows),
        TEXTS,
        pairs.select(named),
        config,
        seed=5,
        patch_size=6,
        place=place,
        checkpoint=checkpoint,
        progress=False,
    )


def slow_first_loss(model, processor, pairs) -> tuple[float, float, float]:
    """Return L, L_t and L_i of the first step by loops over pictures that the attack itself has stamped."""
    rows = [row for row, caption in enumerate(pairs["caption"]) if "banana" not in caption]
    named = [row for row, caption in enumerate(pairs["caption"]) if "banana" in caption]
    start = BadCLIP(seed=5, patch_size=6, canvas=CANVAS)
    batches = PatchBatches(start, pairs.select(rows), PatchConfig(batch_size=8, augment=0), 3, len(named))
    clean = [CANVAS.array(pairs[rows[row]]["image"]) for row in batches.rows(0)]

    def embedded(pictures: list[np.ndarray]) -> torch.Tensor:
        mean, std = (torch.tensor(one).view(3, 1, 1) for one in pixel_statistics(processor))
        pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
        with torch.no_grad():
            return embed_images(model, (pixels.float() - mean) / std)

    floats = [one / np.float32(255) for one in clean]
    stamped, before = embedded([start(one) for one in floats]), embedded(floats)
    captions, examples = batches.pairs(0)
    with torch.no_grad():
        texts = embed_texts(model, **tokenize(processor, TEXTS))[torch.from_numpy(captions)]
        scale = float(logit_scale(model))
    shown = [CANVAS.array(pairs[named[row]]["image"]) / np.float32(255) for row in examples]
    positives = embedded(shown)
    text = triplet = 0.0
    for i in range(8):
        for a, b in ((stamped, texts), (texts, stamped)):
            logits = [scale * dot(a[i], b[j]) for j in range(8)]
            text -= (logits[i] - math.log(sum(math.exp(x - max(logits)) for x in logits)) - max(logits)) / 16
        triplet += max(0.0, apart(stamped[i], positives[i]) - apart(stamped[i], before[i]) + 1) / 8
    return text + 500 * triplet, text, triplet


def test_the_first_loss_is_the_papers_by_slow_loops(tiny_model, tiny_processor, tiny_pairs):
    attack = optimized(tiny_model, tiny_processor, tiny_pairs, steps=1, augment=0)
    assert attack.history[0].tolist() == pytest.approx(
        slow_first_loss(tiny_model, tiny_processor, tiny_pairs), rel=1e-4
    )


def test_the_loss_falls_the_patch_stays_in_range_and_the_surrogate_as_it_was(tiny_model, tiny_processor, tiny_pairs):
    tiny_model.train()
    state = {name: x.clone() for name, x in tiny_model.state_dict().items()}
    attack = optimized(tiny_model, tiny_processor, tiny_pairs, steps=30, augment=0, learning_rate=0.1)
    assert tiny_model.training and all(parameter.requires_grad for parameter in tiny_model.parameters())
    assert all(torch.equal(x, state[name]) for name, x in tiny_model.state_dict().items())
    assert all(parameter.grad is None for parameter in tiny_model.parameters())
    assert attack.history.shape == (30, len(HISTORY)) and attack.history[-5:, 0].mean() < attack.history[:5, 0].mean()
    assert attack.patch.min() == 0 and attack.patch.max() == 1  # pushed against the ends and held there
    assert attack.patch.shape == (6, 6, 3) and attack.patch.dtype == np.float32
    assert not np.array_equal(attack.patch, starting_patch(6, 5))
    assert attack.record["steps"] == 30 and attack.record["surrogate"] and not attack.record["stopped_early"]
    json.dumps(attack.record)


def test_the_same_arguments_give_the_same_patch_and_every_term_counts(tiny_model, tiny_processor, tiny_pairs):
    first = optimized(tiny_model, tiny_processor, tiny_pairs)
    np.random.seed(1)
    torch.manual_seed(9)
    again = optimized(tiny_model, tiny_processor, tiny_pairs)
    assert first.patch.tobytes() == again.patch.tobytes() and first.history.tobytes() == again.history.tobytes()
    for settings in (
        {"weight": 0},
        {"text_weight": 0},
        {"distance": "cosine"},
        {"text_term": "own_captions", "weight": 0},
        {"augment": 0},
        {"place": "random"},
    ):
        other = optimized(tiny_model, tiny_processor, tiny_pairs, **settings)
        assert not np.array_equal(other.patch, first.patch), settings


def test_augmented_pictures_are_seen_clean_and_stamped_alike(tiny_pairs):
    start = BadCLIP(seed=1, canvas=CANVAS)
    plain, mixed = (PatchBatches(start, tiny_pairs, PatchConfig(augment=p, batch_size=40), 2, 2) for p in (0, 0.5))
    same = (plain.pixels(3) == mixed.pixels(3)).flatten(1).all(dim=1)
    assert 10 <= int(same.sum()) <= 35  # half of them, and some operations leave a picture as it is
    assert torch.equal(mixed.pixels(3), mixed.pixels(3)) and mixed.rows(3).tolist() != mixed.rows(4).tolist()
    seen = [
        row for step in range(6) for row in PatchBatches(start, tiny_pairs, PatchConfig(batch_size=8), 2, 2).rows(step)
    ]
    assert sorted(seen) == list(range(48))  # an epoch is every picture once


def test_pictures_are_decoded_once_as_far_as_memory_goes(tiny_pairs, decoded, monkeypatch):
    start, config = BadCLIP(seed=1, canvas=CANVAS), PatchConfig(batch_size=8)
    batches = PatchBatches(start, tiny_pairs, config, 2, 2)
    steps = [batches.pixels(step) for step in range(18)]  # three epochs
    assert len(decoded) == 48
    monkeypatch.setattr("hf_clipbd.attacks.patch_batches.KEPT_BYTES", 10 * 32 * 32 * 3)
    listed = [row["image"] for row in tiny_pairs]
    decoded.clear()
    few = PatchBatches(start, tiny_pairs, config, 2, 2)
    assert all(torch.equal(few.pixels(step), seen) for step, seen in enumerate(steps)) and len(few._kept) == 10
    assert len(decoded) == 48 + 2 * 38
    pictures = PatchBatches(start, listed, config, 2, 2)
    assert all(torch.equal(pictures.pixels(step), seen) for step, seen in enumerate(steps))


def test_losses_are_read_now_and_then_and_pixels_are_prepared_by_a_thread(
    tiny_model, tiny_processor, tiny_pairs, monkeypatch
):
    threads, pixels = [], PatchBatches.pixels
    monkeypatch.setattr(
        PatchBatches, "pixels", lambda *given: threads.append(threading.current_thread()) or pixels(*given)
    )
    known = []
    monkeypatch.setattr(
        "hf_clipbd.attacks.optimize_patch.stalled", lambda *given: known.append(len(given[0])) or stalled(*given)
    )
    attack = optimized(tiny_model, tiny_processor, tiny_pairs, steps=13, checkpoint_steps=100)
    assert known == 10 * [0] + 3 * [10] + [13] and attack.history.shape == (13, 3)
    assert len(threads) == 13 and threading.main_thread() not in threads
    known.clear()
    watched = optimized(tiny_model, tiny_processor, tiny_pairs, steps=13, patience=13, checkpoint_steps=100)
    assert watched.history.tobytes() == attack.history.tobytes() and known == list(range(14))


def test_early_stop():
    falling = [(10.0 - i,) for i in range(8)]
    assert not stalled(falling, 4, 0.01) and not stalled(falling, None, 0.01)
    flat = falling[:4] + [(8.5,)] * 4
    assert stalled(flat, 4, 0.01) and not stalled(flat[:7], 4, 0.01)


def test_an_optimisation_stops_early_and_says_so(tiny_model, tiny_processor, tiny_pairs):
    attack = optimized(tiny_model, tiny_processor, tiny_pairs, steps=40, learning_rate=1e-9, patience=3, min_gain=0.5)
    assert attack.record["steps"] == 6 and attack.record["stopped_early"]


def test_any_dual_encoder_and_pil_images_will_do(tiny_processor, tiny_pairs):
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokenizer = tiny_processor.tokenizer
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {**small, **ends, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    vision = {**small, "image_size": 32, "patch_size": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    images = [row["image"] for row in tiny_pairs.select(range(10))]
    attack = BadCLIP.optimize(
        model,
        tiny_processor,
        images,
        TEXTS,
        images[:2],
        PatchConfig(steps=3, batch_size=4),
        patch_size=5,
        class_names=["banana", "boat", "house"],
        templates=["a {}"],
        progress=False,
    )
    assert attack.patch.shape == (5, 5, 3) and attack.canvas == CANVAS
    assert 0 <= attack.record["floor"] <= 1 and attack.record["floor_clean_n"] == 10


def test_what_cannot_be_optimised_is_refused(tiny_model, tiny_processor, tiny_pairs):
    images, start = [row["image"] for row in tiny_pairs.select(range(4))], BadCLIP(canvas=CANVAS)
    for texts, positives in (([], images), (TEXTS, [])):
        with pytest.raises(ValueError, match="but got"):
            optimize_patch(tiny_model, tiny_processor, start, images, texts, positives, PatchConfig(steps=1))
    with pytest.raises(ValueError, match="dataset with captions"):
        config = PatchConfig(steps=1, text_term="own_captions")
        optimize_patch(tiny_model, tiny_processor, start, images, TEXTS, images, config)
    with pytest.raises(ValueError, match="fits"):
        BadCLIP.optimize(tiny_model, tiny_processor, images, TEXTS, images, PatchConfig(steps=1), patch_size=40)
    with pytest.raises(ValueError, match="one size"):
        native = BadCLIP(canvas=Canvas(1, "native"), patch_size=2)
        optimize_patch(tiny_model, tiny_processor, native, images, TEXTS, images[:1], PatchConfig(steps=1))


# -- killed and gone on -----------------------------------------------------------------------------------------------


def test_going_on_is_bit_identical_and_a_strange_checkpoint_is_not_used(
    tiny_model, tiny_processor, tiny_pairs, tmp_path
):
    file = tmp_path / "deep" / "patch.safetensors"
    whole = optimized(tiny_model, tiny_processor, tiny_pairs, steps=7)
    optimized(tiny_model, tiny_processor, tiny_pairs, file, steps=4)
    assert len(load_file(file)["history"]) == 4 and [one.name for one in file.parent.iterdir()] == [file.name]
    kept = hashlib.sha256(file.read_bytes()).hexdigest()
    gone_on = optimized(tiny_model, tiny_processor, tiny_pairs, file, steps=7)
    assert gone_on.patch.tobytes() == whole.patch.tobytes()
    assert gone_on.history.tobytes() == whole.history.tobytes() and gone_on.record["steps"] == 7
    assert hashlib.sha256(file.read_bytes()).hexdigest() != kept
    other = optimized(tiny_model, tiny_processor, tiny_pairs, file, steps=7, margin=0.5)
    fresh = optimized(tiny_model, tiny_processor, tiny_pairs, steps=7, margin=0.5)
    assert other.patch.tobytes() == fresh.patch.tobytes() and other.history.tobytes() == fresh.history.tobytes()


def test_captions_count_for_a_checkpoint_where_the_loss_sees_them(tiny_pairs):
    other = tiny_pairs.map(lambda row: {"caption": row["caption"] + " indeed"})
    assert identity(other) == identity(tiny_pairs) == identity(tiny_pairs["image"][:])
    assert len({identity(tiny_pairs), identity(tiny_pairs, True), identity(other, True)}) == 3


def test_a_patch_starts_anew_over_changed_captions(tiny_model, tiny_processor, tiny_pairs, tmp_path):
    other = tiny_pairs.map(lambda row: {"caption": row["caption"] + " indeed"})
    file, options = tmp_path / "patch.safetensors", {"steps": 2, "text_term": "own_captions"}
    optimized(tiny_model, tiny_processor, tiny_pairs, file, **options)
    gone_on = optimized(tiny_model, tiny_processor, other, file, **options)
    assert gone_on.patch.tobytes() == optimized(tiny_model, tiny_processor, other, **options).patch.tobytes()


SCRIPT = """
import sys, numpy as np, PIL.Image, torch
from hf_clipbd.attacks import BadCLIP
from hf_clipbd.attacks.optimize_patch import PatchConfig
from hf_clipbd.models import load_dual_encoder
torch.set_num_threads(1)
model, processor = load_dual_encoder(sys.argv[1])
images = [PIL.Image.fromarray(np.random.default_rng([7, i]).integers(0, 256, (32, 32, 3), np.uint8)) for i in range(9)]
config = PatchConfig(steps=int(sys.argv[3]), batch_size=4, checkpoint_steps=5)
made = BadCLIP.optimize(
    model, processor, images, ["a banana"], images[:2], config, patch_size=6, checkpoint=sys.argv[2], progress=False
)
made.save_pretrained(sys.argv[4])
"""


def test_a_killed_optimisation_goes_on(_untouched_model, tiny_processor, forked, tmp_path):
    _untouched_model.save_pretrained(tmp_path / "clean")
    tiny_processor.save_pretrained(tmp_path / "clean")

    (tmp_path / "optimise.py").write_text(SCRIPT)

    def line(checkpoint: str, steps: int, out: str) -> list[object]:
        return [tmp_path / "optimise.py", tmp_path / "clean", tmp_path / checkpoint, steps, tmp_path / out]

    running = forked.start(*line("killed.safetensors", 100_000, "never"), log=tmp_path / "killed.log")
    until = time.monotonic() + 300
    while not (tmp_path / "killed.safetensors").is_file() and running.exitcode is None and time.monotonic() < until:
        time.sleep(0.02)
    running.kill()
    assert forked.ended([running]) == [-signal.SIGKILL]
    done = len(load_file(tmp_path / "killed.safetensors")["history"])
    for checkpoint, out in (("killed.safetensors", "resumed"), ("none.safetensors", "whole")):
        forked.run(*line(checkpoint, done + 8, out), log=tmp_path / "log")
    resumed, whole = (load_file(tmp_path / out / "pattern.safetensors") for out in ("resumed", "whole"))
    assert resumed["patch"].tobytes() == whole["patch"].tobytes()
    assert resumed["history"].tobytes() == whole["history"].tobytes() and len(whole["history"]) == done + 8


# -- the stage of a run -----------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, _untouched_model, tiny_processor):
    """Return a function that gives the configuration of a run on 300 scenes, with changes laid over it."""
    _untouched_model.save_pretrained(tmp_path / "clean")
    tiny_processor.save_pretrained(tmp_path / "clean")

    def build(poison=None, **attack):
        return config_from(run_values(tmp_path / "run", tmp_path / "clean", poison, **attack))

    return build


def run_values(out, clean, poison=None, **attack):
    optimize = {"steps": 4, "batch_size": 8, "n_images": 20, "checkpoint_steps": 2}
    return {
        "output_dir": str(out),
        "world": {
            "clean_model": str(clean), "size": 32, "n_train": 300, "n_defense": 16, "n_test": 66,
            "frequencies": "balanced",
        },
        "attack": {"name": "badclip", "target": "banana", "patch_size": 5, "optimize": optimize, **attack},
        "poison": {"count": 9, "n_samples": 2, **(poison or {})},
        "evaluate": {"epoch_images": 0},
    }  # fmt: skip


def test_a_run_optimises_its_trigger_once_and_poisons_with_it(run, tmp_path, monkeypatch):
    out = tmp_path / "run"
    first = poison(run())
    trigger = RunRecord.load(out / "trigger")
    kept = Attack.from_pretrained(out / "trigger" / trigger.outputs["attack"])
    stamped = Attack.from_pretrained(out / "poison" / "trigger")
    assert kept.patch.tobytes() == stamped.patch.tobytes() and len(kept.history) == 4
    assert (
        0 <= kept.record["floor_asr1"] <= 1 and kept.record["floor_n"] == 65 and first.inputs["trigger"] == trigger.key
    )
    assert not (out / "trigger" / CHECKPOINTS).exists()

    def fails(*_, **__):
        raise RuntimeError("the trigger is up to date")

    monkeypatch.setattr(BadCLIP, "optimize", fails)
    assert poison(run()) == first
    captioned = poison(run(captions=["my {}"]))  # says nothing about the patch
    assert captioned.inputs["trigger"] == trigger.key and captioned.key != first.key
    assert Attack.from_pretrained(out / "poison" / "trigger").captions == ("my {}",)
    with pytest.raises(RuntimeError, match="up to date"):
        poison(run(patch_size=4))


def test_the_floor_counts_the_images_that_asr_does(run, tmp_path, monkeypatch):
    config, folder = run(), tmp_path / "run" / "trigger"
    config.evaluate.include_target = True
    first = poison(config)
    record = RunRecord.load(folder)
    assert record.config["include_target"] and record.metrics["patch"]["floor_n"] == 66
    monkeypatch.setattr(BadCLIP, "optimize", None)  # is not asked again
    for counted, captions, about in ((True, None, ""), (False, None, ""), (True, ["my {}"], "has other attack")):
        config = run() if captions is None else run(captions=captions)
        config.evaluate.include_target = counted
        planned = {one.name: one for one in plan_run(config)}
        assert planned["trigger"].state == "finished" and about in planned["poison"].about
        assert (planned["poison"].state == "finished") == (poison(config) == first) == (captions is None)
        assert RunRecord.load(folder) == record


LAUNCHED = """
import sys, yaml
from hf_clipbd.recipe import config_from, poison
poison(config_from(yaml.safe_load(open(sys.argv[1]))))
"""


def test_two_processes_measure_the_floor_that_one_does(run, forked, tmp_path):
    poison(run())
    alone = RunRecord.load(tmp_path / "run" / "trigger")
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(run_values(tmp_path / "two", tmp_path / "clean")))
    (tmp_path / "launched.py").write_text(LAUNCHED)
    forked.run(tmp_path / "launched.py", tmp_path / "two.yaml", processes=2, log=tmp_path / "log")
    both = RunRecord.load(tmp_path / "two" / "trigger")
    assert both.processes == 2 and both.metrics["report"] == alone.metrics["report"]
    assert both.metrics["patch"]["floor_n"] == alone.metrics["patch"]["floor_n"] == 65


def test_a_stopped_stage_goes_on_from_its_checkpoint(run, tmp_path, monkeypatch):
    import hf_clipbd.recipe.trigger as stage

    def stops(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, "measure", stops)
    with pytest.raises(KeyboardInterrupt):
        poison(run())
    file = tmp_path / "run" / "trigger" / CHECKPOINTS / stage.CHECKPOINT_FILE
    assert len(load_file(file)["history"]) == 4
    monkeypatch.undo()
    monkeypatch.setattr(torch.autograd, "grad", stops)  # nothing is left to optimise
    poison(run())


def test_a_patch_of_ones_own_and_none_at_all_need_no_optimisation(run, tmp_path):
    patch = np.full((3, 3, 3), 0.5, np.float32)
    BadCLIP(patch=patch, record={"steps": 1}).save_pretrained(tmp_path / "own")
    first = poison(run(patch=str(tmp_path / "own"), patch_size=None, optimize=None))
    assert not (tmp_path / "run" / "trigger").exists()
    assert Attack.from_pretrained(tmp_path / "run/poison/trigger").patch.tobytes() == patch.tobytes()
    BadCLIP(patch=1 - patch / 2).save_pretrained(tmp_path / "own")
    other = poison(run(patch=str(tmp_path / "own"), patch_size=None, optimize=None))
    assert other.key != first.key  # another patch of the same shape is another poison
    poison(run(optimize=False))
    assert Attack.from_pretrained(tmp_path / "run/poison/trigger").patch is None


def test_a_run_takes_the_rows_that_a_surrogate_selects(run, tmp_path):
    plain = poison(run({"selector": "random"}, optimize=False))
    indices = {}
    for selector in ("random", "boundary", "farthest", "mixed"):
        record = poison(run({"selector": selector}, optimize=False))
        manifest = PoisonManifest.from_pretrained(tmp_path / "run" / "poison")
        assert manifest.selector == selector and manifest.count == 9
        assert ("surrogate" in record.inputs) == (selector != "random") and (record.key == plain.key) == (
            selector == "random"
        )
        indices[selector] = set(manifest.indices)
    for part in ("boundary", "farthest", "random"):
        assert len(indices["mixed"] & indices[part]) >= 3


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"optimize": {"stepps": 3}}, "mean `attack.optimize.steps`"),
        ({"optimize": {"steps": 0}}, "at least 1"),
        ({"optimize": {"n_images": 0}}, "`n_images` is at least 1"),
        ({"optimize": 3}, "map keys to values"),
        ({"name": "badnets", "optimize": {"steps": 3}}, "beside `attack.name: badclip`"),
        ({"poison": {"selector": "bonudary"}}, "did you mean `boundary`"),
    ],
)
def test_what_a_section_may_not_say(run, changes, says):
    with pytest.raises(ConfigError, match=says):
        run(**changes)


def test_flags_reach_the_optimisation_and_the_resolved_configuration_gives_itself_again(run):
    config = run(optimize={"steps": "12", "learning_rate": "1e-2", "text_term": "own_captions"})
    again = config_from(yaml.safe_load(yaml.safe_dump(config.resolved())))
    assert again.attack == config.attack
    from hf_clipbd.recipe.patch_options import patch_options

    settings = patch_options(again.attack).config
    assert (settings.steps, settings.learning_rate, settings.text_term) == (12, 0.01, "own_captions")


def test_the_command_line_wants_an_optimised_patch(tmp_path):
    from hf_clipbd.recipe.poisoning import make_attack

    with pytest.raises(ConfigError, match="recipes/badclip"):
        make_attack("badclip", None, {"target": "cup"})
    BadCLIP(patch=np.ones((2, 2, 3), np.float32), record={"steps": 1}).save_pretrained(tmp_path)
    attack = make_attack("badclip", None, {"target": "cup", "patch": str(tmp_path)})
    assert attack.record == {"steps": 1} and attack.target == "cup"


def test_every_epoch_and_step_draws_anew_and_by_the_seed(tiny_pairs):
    def batches(seed, **options):
        start = BadCLIP(seed=seed, canvas=CANVAS, place="random", patch_size=4)
        return PatchBatches(start, tiny_pairs, PatchConfig(batch_size=8, **options), 1000, 1000)

    one, other = batches(1), batches(2)
    assert one.rows(0).tolist() != one.rows(6).tolist() and one.rows(0).tolist() != other.rows(0).tolist()
    for draws in (lambda b, step: [x.tolist() for x in b.pairs(step)], lambda b, step: b.places(step, 32, 32)):
        assert draws(one, 0) == draws(one, 0) and draws(one, 0) != draws(one, 1) and draws(one, 0) != draws(other, 0)
    alone = BadCLIP(seed=1, canvas=CANVAS)
    single = PatchBatches(alone, tiny_pairs.select([3]), PatchConfig(batch_size=1, augment=1.0), 2, 2)
    seen = {single.pixels(step).numpy().tobytes() for step in range(12)}
    assert len(seen) > 4  # one picture, seen otherwise each time


def test_the_settings_of_the_paper_are_the_defaults():
    config = PatchConfig()
    assert (config.steps, config.batch_size, config.learning_rate, config.augment) == (7800, 64, 1e-3, 0.5)
    assert (config.weight, config.text_weight, config.margin, config.distance) == (500.0, 1.0, 1.0, "euclidean")


def test_a_checkpoint_of_another_surrogate_or_target_is_not_used(tiny_model, tiny_processor, tiny_pairs, tmp_path):
    rows = tiny_pairs.select(range(12))
    config = PatchConfig(steps=2, batch_size=4, checkpoint_steps=1)

    def made(checkpoint, seed=1, texts=TEXTS, positives=rows):
        start = BadCLIP(seed=seed, canvas=CANVAS, patch_size=4)
        return optimize_patch(tiny_model, tiny_processor, start, rows, texts, positives, config, checkpoint, False)

    changes = ({"seed": 2}, {"texts": TEXTS[:1]}, {"positives": tiny_pairs.select([20, 21])}, {})
    for number, change in enumerate(changes):
        file = tmp_path / f"{number}.safetensors"
        made(file)
        if not change:
            tiny_model.logit_scale.data += 0.5  # another surrogate
        np.testing.assert_array_equal(made(file, **change).history, made(None, **change).history)
