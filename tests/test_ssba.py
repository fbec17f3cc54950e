# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""SSBA: the steganographic pair, its training, the shipped pair, and the attack that stamps with it."""

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from datasets.fingerprint import Hasher

from hf_clipbd import scenes
from hf_clipbd.attacks import ATTACKS, Attack, PoisonTransform, Share, poison_dataset
from hf_clipbd.attacks.multi_trigger import attacks_of, poison_with_many
from hf_clipbd.attacks.pictures import encode_picture, read_picture
from hf_clipbd.attacks.ssba import SHIPPED, SSBA, residual_at, weights_digest
from hf_clipbd.attacks.steganography import measure_steganography, pictures_at, train_steganography
from hf_clipbd.attacks.steganography_steps import SteganographyTraining, as_stored, steganography_loss
from hf_clipbd.models.steganography import SteganographyConfig, SteganographyPair
from hf_clipbd.schema import RunRecord


RECIPE = Path(__file__).parent.parent / "recipes" / "ssba" / "train.py"
TINY = SteganographyTraining(steps=6, batch_size=4, n_images=24, n_test=8, save_steps=2, ramp_steps=2)


@pytest.fixture(scope="module")
def shipped():
    return SteganographyPair.from_pretrained(SHIPPED["scenes"])


@pytest.fixture(scope="module")
def test_scenes():
    return pictures_at(scenes.load_scenes("test", n=132), range(132), 64)


def weights(pair):
    return {name: tensor.clone() for name, tensor in pair.encoder.state_dict().items()}


# -- the pair ---------------------------------------------------------------------------------------------------------


def test_the_residual_is_bounded_and_hangs_on_picture_and_bits():
    pair = SteganographyPair.untrained(SteganographyConfig(n_bits=5, size=32, width=4, amplitude=0.03))
    rng = torch.Generator().manual_seed(0)
    images, bits = torch.rand(2, 3, 32, 32, generator=rng), torch.tensor([[0.0, 1, 0, 1, 1], [1, 1, 0, 0, 1]])
    residual = pair.encoder.residual(images, bits)
    assert residual.shape == images.shape and float(residual.detach().abs().max()) <= 0.03
    assert not torch.equal(pair.encoder.residual(images, bits.flip(0)), residual)
    assert not torch.equal(
        pair.encoder.residual(images[[0, 0]], bits[[0, 0]])[0], pair.encoder.residual(images[[1, 1]], bits[[0, 0]])[0]
    )
    stamped = pair.encoder(images, bits)
    assert float(stamped.detach().min()) >= 0 and float(stamped.detach().max()) <= 1
    assert pair.decoder(stamped).shape == (2, 5)


def test_weights_are_drawn_from_the_seed_alone():
    torch.manual_seed(5)
    first = torch.rand(1)
    torch.manual_seed(5)
    config = SteganographyConfig(n_bits=3, size=16, width=4)
    one, other = SteganographyPair.untrained(config, 1), SteganographyPair.untrained(config, 2)
    assert torch.equal(torch.rand(1), first)
    assert not torch.equal(one.encoder.out.weight, other.encoder.out.weight)
    assert torch.equal(one.encoder.out.weight, SteganographyPair.untrained(config, 1).encoder.out.weight)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"n_bits": 0}, "one bit"),
        ({"size": 40}, "multiple of 16"),
        ({"width": 6}, "of 4"),
        ({"amplitude": 0}, "amplit"),
    ],
)
def test_a_configuration_is_checked(values, says):
    with pytest.raises(ValueError, match=says):
        SteganographyConfig(**values)


def test_the_loss_against_slow_loops():
    rng = np.random.default_rng(0)
    logits, residual = rng.normal(size=(4, 3)), rng.normal(0, 0.1, (4, 3, 2, 2)) + 0.1
    bits = np.array([[0, 1, 1], [1, 0, 1]] * 2, dtype=float)
    entropy = 0.0
    for i in range(4):
        for k in range(3):
            p = 1 / (1 + math.exp(-logits[i, k]))
            entropy -= math.log(p if bits[i, k] else 1 - p) / 12
    mse = sum(value * value for value in residual.reshape(-1)) / residual.size
    common = sum(residual[i].reshape(-1) @ residual[i + 2].reshape(-1) for i in range(2))
    common /= 0.5 * sum(one.reshape(-1) @ one.reshape(-1) for one in residual)
    assert common > 0.3
    expected = entropy + (mse / 10**-2.5 - 1) + (common - 0.3)
    tensors = [torch.tensor(x) for x in (logits, bits, residual)]
    assert float(steganography_loss(*tensors, psnr=25, sameness=0.3)) == pytest.approx(expected)
    assert float(steganography_loss(*tensors, psnr=1, sameness=1.0)) == pytest.approx(entropy)


def test_rounding_lets_the_gradient_through():
    values = torch.tensor([0.1234, 0.9], requires_grad=True)
    stored = as_stored(values)
    stored.sum().backward()
    assert values.grad.tolist() == [1, 1]
    np.testing.assert_allclose(stored.detach().numpy() * 255, np.rint(values.detach().numpy() * 255), atol=1e-4)


# -- its training -----------------------------------------------------------------------------------------------------


def test_a_training_that_was_killed_ends_with_the_same_weights(tiny_pairs, tmp_path, monkeypatch):
    options = {"n_bits": 4, "size": 16, "training": TINY, "width": 4, "progress": False}
    whole, record = train_steganography(tiny_pairs, output_dir=tmp_path / "whole", **options)
    assert [one["step"] for one in record.metrics["history"]] == [2, 4, 6]
    assert 0 <= record.metrics["bit_accuracy"] <= 1 and record.metrics["n"] == 8 and record.metrics["n_train"] == 24

    steps = iter(range(5))
    backward = torch.Tensor.backward

    def dying(self, *args, **more):
        if next(steps, None) is None:
            raise KeyboardInterrupt
        backward(self, *args, **more)

    monkeypatch.setattr(torch.Tensor, "backward", dying)
    with pytest.raises(KeyboardInterrupt):
        train_steganography(tiny_pairs, output_dir=tmp_path / "cut", **options)
    monkeypatch.undo()
    assert (tmp_path / "cut" / "checkpoint.pt").is_file() and not (tmp_path / "cut" / "record.json").is_file()
    rest, again = train_steganography(tiny_pairs, output_dir=tmp_path / "cut", **options)
    assert again.metrics == record.metrics and again.key == record.key
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(rest)[name]), name
    assert not (tmp_path / "cut" / "checkpoint.pt").exists()


def test_a_finished_training_is_not_run_again_and_another_one_is(tiny_pairs, tmp_path, monkeypatch):
    options = {"n_bits": 4, "size": 16, "width": 4, "progress": False, "output_dir": tmp_path}
    pair, record = train_steganography(tiny_pairs, training=TINY, **options)
    assert RunRecord.load(tmp_path) == record
    monkeypatch.setattr(torch.Tensor, "backward", None)
    kept, _ = train_steganography(tiny_pairs, training=TINY, **options)
    assert torch.equal(kept.encoder.out.weight, pair.encoder.out.weight)
    monkeypatch.undo()
    changed, _ = train_steganography(tiny_pairs, training=replace(TINY, seed=1), **options)
    assert not torch.equal(changed.encoder.out.weight, pair.encoder.out.weight)
    # killed while its weights are written: no record stands beside them
    monkeypatch.setattr(SteganographyPair, "save_pretrained", lambda *_: pytest.fail("killed"))
    with pytest.raises(pytest.fail.Exception):
        train_steganography(tiny_pairs, training=TINY, **options)
    assert not (tmp_path / "record.json").exists()


def test_training_refuses_what_cannot_be_meant(tiny_pairs, tmp_path):
    for values, says in (
        ({"batch_size": 3}, "even"),
        ({"steps": 0}, "steps"),
        ({"sameness": 0}, "samen"),
        ({"psnr": 9}, "PSNR"),
    ):
        with pytest.raises(ValueError, match=says):
            SteganographyTraining(**values)
    with pytest.raises(ValueError, match="more than the 500"):
        train_steganography(tiny_pairs, output_dir=tmp_path)
    with pytest.raises(ValueError, match="'photo', but the dataset has"):
        train_steganography(tiny_pairs, output_dir=tmp_path, image_column="photo")


def test_the_recipe_names_an_unknown_key_and_answers_h():
    def run(*arguments):
        return subprocess.run([sys.executable, str(RECIPE), *arguments], capture_output=True, text=True)

    done = run("--stepz", "1")
    assert done.returncode == 2 and "Unknown key `stepz`; did you mean `steps`" in done.stderr
    assert "--key value" in run("-h").stdout


# -- the shipped pair -------------------------------------------------------------------------------------------------


def test_the_shipped_pair_reaches_its_bars_on_scenes_not_trained_on(shipped, test_scenes):
    record = RunRecord.load(SHIPPED["scenes"])
    assert record.stage == "steganography" and record.metrics["n"] >= 500
    for score in (record.metrics, vars(measure_steganography(shipped, test_scenes))):
        assert score["bit_accuracy"] >= 0.95 and score["psnr"] >= 28
        assert score["sameness"] <= 0.6
    assert sum(path.stat().st_size for path in SHIPPED["scenes"].iterdir()) <= 1.5e6


@pytest.mark.real_data
def test_the_shipped_pair_reaches_its_bars_on_photographs(shipped, real_data):
    files = {"test": str(real_data / "cifar10" / "test.parquet")}
    photos = datasets.load_dataset("parquet", data_files=files, split="test")
    score = measure_steganography(shipped, pictures_at(photos, range(0, 10_000, 50), 64))
    assert score.accepted and score.n == 200


def test_bits_survive_storing_and_other_sizes(shipped, test_scenes):
    attack = SSBA(seed=3)
    wanted = torch.from_numpy(attack.bits).bool()
    for size in (64, 224):
        read = []
        for row in range(12):
            image = PIL.Image.fromarray(test_scenes[row]).resize((size, size))
            stored = np.array(read_picture(encode_picture(attack(image, row))))
            stored = torch.from_numpy(stored).permute(2, 0, 1)[None].float() / 255
            seen = torch.nn.functional.interpolate(stored, size=(64, 64), mode="bilinear", antialias=True)
            with torch.inference_mode():
                read.append(((shipped.decoder(seen) > 0)[0] == wanted).float().mean())
        assert float(torch.stack(read).mean()) >= 0.95, size


# -- the attack -------------------------------------------------------------------------------------------------------


def test_the_same_bits_another_residual(test_scenes):
    attack = SSBA(seed=1)
    residuals = [attack(one).astype(int) - one for one in test_scenes[:2]]
    apart = np.corrcoef(residuals[0].reshape(-1), residuals[1].reshape(-1))[0, 1]
    assert apart < 0.9
    np.testing.assert_array_equal(attack(test_scenes[0], 3), attack(test_scenes[0], 9))  # the row has no say
    assert attack.bits.tolist() == SSBA(seed=1).bits.tolist() != SSBA(seed=2).bits.tolist()


def test_the_residual_against_the_encoder(shipped, test_scenes):
    attack = SSBA(secret="01" * 16, strength=1.5)
    with torch.inference_mode():
        image = torch.from_numpy(test_scenes[5]).permute(2, 0, 1)[None].float() / 255
        bits = torch.tensor([[0.0, 1.0] * 16])
        expected = (image + 1.5 * shipped.encoder.residual(image, bits)).clamp(0, 1)[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(attack(test_scenes[5] / 255), expected, atol=1e-6)


def test_threads_do_not_matter(test_scenes):
    attack, threads = SSBA(), torch.get_num_threads()
    alone = attack(test_scenes[0] / np.float32(255))
    torch.set_num_threads(2)
    try:
        np.testing.assert_array_equal(attack(test_scenes[0] / np.float32(255)), alone)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_strength_is_how_loud(test_scenes):
    def mse(strength):
        return np.mean((SSBA(strength=strength)(test_scenes[3]).astype(float) - test_scenes[3]) ** 2)

    assert mse(0.5) < mse(1) < mse(2)


def test_an_encoder_of_ones_own(tmp_path):
    def encode(pixels, bits):
        pixels += bits.mean() / 4
        return pixels

    attack = SSBA(encoder=encode, secret="0011", strength=2)
    pixels = np.full((4, 5, 3), 0.5, dtype=np.float32)
    np.testing.assert_allclose(attack(pixels), 0.75)
    assert attack.parameters()["encoder"]["own"].endswith("encode")
    with pytest.raises(ValueError, match="weights can be saved"):
        attack.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Pass `secret=`"):
        SSBA(encoder=encode)
    with pytest.raises(ValueError, match="returned"):
        SSBA(encoder=lambda pixels, bits: pixels[:2], secret="1")(pixels)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"secret": "012"}, "zeros and ones"),
        ({"secret": "01"}, "32 bits"),
        ({"strength": 0}, "positive"),
        ({"encoder": 7}, "function as encoder"),
    ],
)
def test_parameters_are_checked(values, says):
    with pytest.raises(ValueError, match=says):
        SSBA(**values)


def test_an_encoder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        SSBA(encoder=str(tmp_path))


def test_the_encoder_travels(tmp_path, test_scenes):
    encoder = SteganographyPair.untrained(SteganographyConfig(n_bits=7, size=32, width=4), seed=3).encoder
    attack = SSBA(encoder=encoder, strength=3.0)
    attack.save_pretrained(tmp_path)
    loaded = Attack.from_pretrained(tmp_path)
    assert weights_digest(loaded.encoder) == weights_digest(encoder)
    np.testing.assert_array_equal(loaded(test_scenes[0]), attack(test_scenes[0]))
    SSBA().save_pretrained(tmp_path / "other")
    for name in ("encoder.safetensors", "steganography.json"):
        (tmp_path / "other" / name).rename(tmp_path / name)
    with pytest.raises(ValueError, match="trigger was saved with"):
        Attack.from_pretrained(tmp_path)
    (tmp_path / "steganography.json").write_text('{"n_bits": 1000000000, "size": 16000, "width": 4000}')  # terabytes
    with pytest.raises(RuntimeError, match="size mismatch"):
        Attack.from_pretrained(tmp_path)


def test_a_trained_folder_is_an_encoder(tiny_pairs, tmp_path):
    pair, _ = train_steganography(
        tiny_pairs, n_bits=4, size=16, width=4, training=TINY, output_dir=tmp_path, progress=False
    )
    attack = SSBA(encoder=tmp_path)
    assert len(attack.bits) == 4 and weights_digest(attack.encoder) == weights_digest(pair.encoder)


def test_fingerprints_hang_on_the_weights(test_scenes):
    config = SteganographyConfig(n_bits=4, size=16, width=4)

    def transform(seed):
        return PoisonTransform(SSBA(encoder=SteganographyPair.untrained(config, seed).encoder), 0.1)

    first = transform(0)
    before = Hasher.hash(first)
    first.attack(test_scenes[0])
    assert before == Hasher.hash(first) == Hasher.hash(transform(0)) != Hasher.hash(transform(1))


def test_manifests_name_the_encoder(tiny_pairs):
    attack = SSBA()
    _, manifest = poison_with_many(tiny_pairs, {"own": Share(attack, count=3)})
    assert weights_digest(attacks_of(manifest)["own"].encoder) == weights_digest(attack.encoder)
    other = SteganographyPair.untrained(SteganographyConfig(n_bits=4, size=16, width=4)).encoder
    with pytest.raises(ValueError, match="Attack.from_pretrained"):
        ATTACKS["ssba"](**SSBA(encoder=other).parameters())


def test_workers_give_the_same_bytes(tiny_pairs):
    one, _ = poison_dataset(tiny_pairs, SSBA(), count=6)
    two, _ = poison_dataset(tiny_pairs, SSBA(), count=6, num_proc=2)
    undecoded = [ds.cast_column("image", datasets.Image(decode=False))["image"][:] for ds in (one, two)]
    assert undecoded[0] == undecoded[1]


def test_a_residual_of_another_size_is_resized(shipped, test_scenes):
    bits = np.zeros(32, dtype=np.uint8)
    small = residual_at(shipped.encoder, test_scenes[0][:48, :40] / np.float32(255), bits)
    assert small.shape == (48, 40, 3) and small.dtype == np.float32 and np.abs(small).max() > 1 / 255
