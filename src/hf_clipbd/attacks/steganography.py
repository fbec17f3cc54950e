# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Training of the steganographic pair behind SSBA on any image dataset."""

import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import datasets
import numpy as np
import torch

from hf_clipbd.attacks.pictures import read_picture
from hf_clipbd.attacks.select import source_fingerprint
from hf_clipbd.attacks.steganography_steps import (
    CHECKPOINT_FILE,
    SteganographyTraining,
    TrainingRun,
    as_images,
    as_stored,
)
from hf_clipbd.data.canvas import Canvas
from hf_clipbd.models.steganography import SteganographyConfig, SteganographyPair
from hf_clipbd.schema import IMAGE, RECORD_FILE, RunRecord, content_key


logger = logging.getLogger(__name__)

ACCURACY_BAR, PSNR_BAR = 0.95, 28.0


@dataclass(frozen=True)
class SteganographyScore:
    """How well a pair hides bits in pictures, after rounding to 8 bits.

    Args:
        bit_accuracy: Share of bits read correctly, in [0, 1]; 0.5 is guessing.
        psnr: Mean over the pictures of 10 log10(1 / MSE), in dB.
        sameness: Share of the residual's energy that is the same on every picture where all carry the same bits, in
            [0, 1]: 1 is a fixed pattern.
        n: Number of pictures.
    """

    bit_accuracy: float
    psnr: float
    sameness: float
    n: int

    @property
    def accepted(self) -> bool:
        """Whether both bars are met: 0.95 bit accuracy and 28 dB."""
        return self.bit_accuracy >= ACCURACY_BAR and self.psnr >= PSNR_BAR


def measure_steganography(pair: SteganographyPair, pixels: np.ndarray, seed: int = 0) -> SteganographyScore:
    """Return how well a pair hides random bits, other ones in each picture.

    Args:
        pair: Encoder and decoder.
        pixels: (N, S, S, 3), uint8, of the pair's size.
        seed: Seed of the bits.
    """
    n_bits = pair.config.n_bits
    secret = torch.from_numpy(np.random.default_rng([seed, 0, 1]).integers(0, 2, (1, n_bits))).float()
    correct, decibels = [], []
    common, energy = torch.zeros(3, pair.config.size, pair.config.size, dtype=torch.float64), 0.0
    for start in range(0, len(pixels), 64):
        images = as_images(pixels[start : start + 64])
        bits = torch.from_numpy(np.random.default_rng([seed, start, 0]).integers(0, 2, (len(images), n_bits)))
        with torch.inference_mode():
            stamped = as_stored(pair.encoder(images, bits.float()))
            correct.append(((pair.decoder(stamped) > 0) == bits.bool()).float().mean(dim=1))
            mse = (stamped - images).double().square().mean(dim=(1, 2, 3))
            decibels.append(-10 * torch.log10(mse.clamp_min(1e-12)))
            residual = (as_stored(pair.encoder(images, secret.expand(len(images), -1))) - images).double()
            common += residual.sum(dim=0) / len(pixels)
            energy += float(residual.square().sum()) / len(pixels)
    sameness = float(common.square().sum()) / max(energy, 1e-12)
    return SteganographyScore(
        float(torch.cat(correct).mean()), float(torch.cat(decibels).mean()), sameness, len(pixels)
    )


def pictures_at(dataset: datasets.Dataset, rows: np.ndarray, size: int, image_column: str = IMAGE) -> np.ndarray:
    """Return rows of a dataset as pictures on a square canvas, uint8 (N, size, size, 3).

    Args:
        dataset: With an image column.
        rows: Row numbers, (N,).
        size: Side in pixels.
        image_column: Column of images.

    Raises:
        ValueError: If a row holds no picture that can be read; the message names it.
    """
    canvas = Canvas(size)
    pixels = np.empty((len(rows), size, size, 3), dtype=np.uint8)
    plain = dataset.with_format(None).cast_column(image_column, datasets.Image(decode=False))
    for place, row in enumerate(rows):
        try:
            pixels[place] = canvas.array(read_picture(plain[int(row)][image_column]))
        except ValueError as error:
            raise ValueError(f"Row {row}: {error}") from error
    return pixels


def train_steganography(
    dataset: datasets.Dataset,
    n_bits: int = 32,
    size: int = 64,
    output_dir: str | os.PathLike = "steganography",
    training: SteganographyTraining | None = None,
    image_column: str = IMAGE,
    width: int = 16,
    amplitude: float = 0.25,
    progress: bool = True,
) -> tuple[SteganographyPair, RunRecord]:
    """Return a steganographic pair trained on a dataset, and its record; both are written to `output_dir`.

    The encoder's pictures are rounded to 8 bits before the decoder sees them, and half of the batches are made smaller
    and larger again, so that the bits survive storing and resizing. Everything drawn hangs on (seed, step): a training
    that was stopped goes on from its last checkpoint and ends with the same weights. A finished one of the same
    configuration and data is not run again.

    Args:
        dataset: Any dataset with an image column.
        n_bits: Bits that a picture carries.
        size: Side in pixels that pictures are brought to (centre crop), a multiple of 16.
        output_dir: Folder for the pair, its record and checkpoints.
        training: How it is trained.
        image_column: Column of images.
        width: Size of the networks, see `SteganographyConfig`.
        amplitude: Largest change of a pixel, in units of [0, 1].
        progress: Show a bar.

    Raises:
        ValueError: If the column is missing, or there are too few rows.
    """
    training = training or SteganographyTraining()
    config = SteganographyConfig(n_bits, size, width, amplitude)
    if image_column not in dataset.column_names:
        raise ValueError(f"Expected an image column {image_column!r}, but the dataset has {dataset.column_names}.")
    if len(dataset) <= training.n_test:
        raise ValueError(f"Expected more than the {training.n_test} pictures of `n_test`, but got {len(dataset)}.")
    folder = Path(output_dir)
    dataset = dataset.with_format(None).cast_column(image_column, datasets.Image())
    inputs = {"data": source_fingerprint(dataset, image_column, None)}
    settings = {**asdict(config), **asdict(training)}
    key = content_key("steganography", {name: x for name, x in settings.items() if name != "save_steps"}, inputs)
    record = RunRecord.load_if_current(folder, key)
    if record is not None:
        return SteganographyPair.from_pretrained(folder), record
    rows = np.random.default_rng([training.seed, len(dataset)]).permutation(len(dataset))
    test, train = rows[: training.n_test], rows[training.n_test :][: training.n_images]
    run = TrainingRun(SteganographyPair.untrained(config, training.seed), training, key, folder)
    run.train(pictures_at(dataset, np.sort(train), size, image_column), progress)
    score = measure_steganography(run.pair, pictures_at(dataset, np.sort(test), size, image_column), training.seed)
    metrics = {**asdict(score), "n_train": len(train), "history": run.done["history"]}
    record = RunRecord("steganography", key, settings, metrics, training.seed, inputs)
    record.seconds = round(run.done["seconds"], 1)
    (folder / RECORD_FILE).unlink(missing_ok=True)  # of an earlier training, whose weights go now
    run.pair.save_pretrained(folder)
    record.save(folder)
    (folder / CHECKPOINT_FILE).unlink(missing_ok=True)
    if not score.accepted:
        logger.warning(
            "The pair hides bits with accuracy %.3f at %.1f dB, short of %.2f and %.0f dB. Train it for longer.",
            *(score.bit_accuracy, score.psnr, ACCURACY_BAR, PSNR_BAR),
        )
    return run.pair, record
