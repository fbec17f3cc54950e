# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""A small steganographic pair: an encoder that hides bits in a picture, a decoder that reads them back."""

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from hf_clipbd.models.files import resolve_file
from hf_clipbd.schema import write_json


CONFIG_FILE = "steganography.json"
ENCODER_FILE, DECODER_FILE = "encoder.safetensors", "decoder.safetensors"
_SECRET_CHANNELS = 16
_SECRET_GAIN = 4.0  # at 1 the bits took about twice as many steps to be learned
_MULTIPLE = 16


@dataclass(frozen=True)
class SteganographyConfig:
    """What the two networks are built from.

    Args:
        n_bits: Bits that a picture carries.
        size: Side in pixels of the pictures that the networks see, a multiple of 16.
        width: Channels at half the side, a multiple of 4; they double at each halving of it.
        amplitude: Largest change of a pixel, in units of [0, 1].

    Raises:
        ValueError: If one of them is out of range.
    """

    n_bits: int = 32
    size: int = 64
    width: int = 16
    amplitude: float = 0.25

    def __post_init__(self):
        if self.n_bits < 1:
            raise ValueError(f"Expected at least one bit, but got {self.n_bits}.")
        if self.width < 4 or self.width % 4:
            raise ValueError(f"Expected a width that is a multiple of 4 channels, but got {self.width}.")
        if self.size < _MULTIPLE or self.size % _MULTIPLE:
            raise ValueError(f"Expected a size that is a multiple of {_MULTIPLE} px, but got {self.size}.")
        if not 0 < self.amplitude <= 1:
            raise ValueError(f"Expected an amplitude in (0, 1], but got {self.amplitude}.")


def _conv(channels: int, out: int, stride: int = 1, norm: bool = False) -> nn.Module:
    layers = [nn.Conv2d(channels, out, 3, stride, padding=1), nn.LeakyReLU(0.1)]
    return nn.Sequential(layers[0], nn.GroupNorm(8, out), layers[1]) if norm else nn.Sequential(*layers)


class SteganographyEncoder(nn.Module):
    """Hides bits in pictures: x' = clamp(x + amplitude · tanh(residual(x, b)), 0, 1).

    The residual is a U-Net's over the picture, into which the bits enter, at each of three scales, as a map that a
    linear layer makes of them; so it hangs on both the picture and the bits.

    Args:
        config: Sizes.

    Reference:
        Li et al., "Invisible Backdoor Attack with Sample-Specific Triggers" (SSBA), arXiv 2012.03816, section 4.2, and
        Tancik et al., "StegaStamp", arXiv 1904.05343, section 3, whose encoder it takes. No pretrained StegaStamp can
        be had any more; network and sizes are ours.
    """

    def __init__(self, config: SteganographyConfig):
        super().__init__()
        self.config = config
        width = config.width
        self.secret = nn.Linear(config.n_bits, _SECRET_CHANNELS * (config.size // 8) ** 2)
        self.down_half = _conv(12, width)  # at half the side: each place holds four pixels
        self.down_quarter = _conv(width, 2 * width, stride=2)
        self.down_eighth = _conv(2 * width, 2 * width, stride=2)
        self.middle = _conv(2 * width + _SECRET_CHANNELS, 4 * width)
        self.up_quarter = _conv(width + 2 * width + _SECRET_CHANNELS, 2 * width)
        self.up_half = _conv(width // 2 + width + _SECRET_CHANNELS, width)
        self.out = nn.Conv2d(width, 12, 3, padding=1)

    def residual(self, images: Tensor, bits: Tensor) -> Tensor:
        """Return what is added to the pictures.

        Args:
            images: (N, 3, S, S) in [0, 1], S the config's size.
            bits: (N, n_bits), zeros and ones.

        Returns:
            (N, 3, S, S) within ±amplitude.
        """
        side = self.config.size // 8
        secret = _SECRET_GAIN * self.secret(2 * bits - 1).view(-1, _SECRET_CHANNELS, side, side)
        half = self.down_half(F.pixel_unshuffle(2 * images - 1, 2))  # (N, w, S/2, S/2)
        quarter = self.down_quarter(half)  # (N, 2 w, S/4, S/4)
        deep = self.middle(torch.cat([self.down_eighth(quarter), secret], dim=1))  # (N, 4 w, S/8, S/8)
        for skipped, layer, scale in ((quarter, self.up_quarter, 2), (half, self.up_half, 4)):
            spread = F.interpolate(secret, scale_factor=scale)
            deep = layer(torch.cat([F.pixel_shuffle(deep, 2), skipped, spread], dim=1))
        return self.config.amplitude * torch.tanh(F.pixel_shuffle(self.out(deep), 2))

    def forward(self, images: Tensor, bits: Tensor) -> Tensor:
        return (images + self.residual(images, bits)).clamp(0, 1)


class SteganographyDecoder(nn.Module):
    """Reads the bits off pictures: (N, 3, S, S) in [0, 1] to logits (N, n_bits), positive for a one.

    Args:
        config: Sizes.
    """

    def __init__(self, config: SteganographyConfig):
        super().__init__()
        self.config = config
        width = config.width
        self.features = nn.Sequential(
            _conv(12, 2 * width, norm=True),
            _conv(2 * width, 2 * width, stride=2, norm=True),
            _conv(2 * width, 4 * width, stride=2, norm=True),
            _conv(4 * width, 4 * width, norm=True),
        )
        self.read = nn.Linear(4 * width * (config.size // 8) ** 2, config.n_bits)

    def forward(self, images: Tensor) -> Tensor:
        return self.read(self.features(F.pixel_unshuffle(2 * images - 1, 2)).flatten(1))


@dataclass(frozen=True, eq=False)
class SteganographyPair:
    """An encoder and the decoder that was trained with it.

    Args:
        encoder: Hides bits.
        decoder: Reads them.
    """

    encoder: SteganographyEncoder
    decoder: SteganographyDecoder

    @classmethod
    def untrained(cls, config: SteganographyConfig, seed: int = 0) -> "SteganographyPair":
        """Return a pair with weights drawn from the seed; the global generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return cls(SteganographyEncoder(config), SteganographyDecoder(config))

    @property
    def config(self) -> SteganographyConfig:
        """What the networks were built from."""
        return self.encoder.config

    def save_pretrained(self, folder: str | os.PathLike) -> Path:
        """Write configuration and weights into `folder` and return it."""
        folder = Path(folder)
        save_encoder(self.encoder, folder)
        save_file(_weights(self.decoder), folder / DECODER_FILE)
        return folder

    @classmethod
    def from_pretrained(cls, id_or_path: str | os.PathLike, revision: str | None = None) -> "SteganographyPair":
        """Return the pair kept in a folder or on the Hub, in evaluation mode.

        Raises:
            FileNotFoundError: If it is not there.
            ValueError: If its configuration has an unknown key.
        """
        encoder = load_encoder(
            resolve_file(id_or_path, CONFIG_FILE, revision), resolve_file(id_or_path, ENCODER_FILE, revision)
        )
        decoder = SteganographyDecoder(encoder.config)
        decoder.load_state_dict(load_file(resolve_file(id_or_path, DECODER_FILE, revision)))
        return cls(encoder, decoder.eval())


def save_encoder(encoder: SteganographyEncoder, folder: Path) -> None:
    """Write an encoder without its decoder: the configuration and `encoder.safetensors`."""
    write_json(folder / CONFIG_FILE, asdict(encoder.config))
    save_file(_weights(encoder), folder / ENCODER_FILE)


def load_encoder(config: Path, weights: Path) -> SteganographyEncoder:
    """Return the encoder of these two files, in evaluation mode.

    Raises:
        ValueError: If the configuration has an unknown key.
    """
    values = json.loads(config.read_text(encoding="utf-8"))
    known = {field.name for field in fields(SteganographyConfig)}
    if unknown := sorted(set(values) - known):
        raise ValueError(f"Expected keys {sorted(known)} in {config}, but got unknown {unknown}.")
    with torch.device("meta"):  # a stranger's sizes take no memory: what is not in the file is an error below
        encoder = SteganographyEncoder(SteganographyConfig(**values))
    encoder.load_state_dict(load_file(weights), assign=True)
    return encoder.eval()


def _weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in module.state_dict().items()}
