# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""SSBA: a steganographic residual that carries the same bits on every picture and looks different on each."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hf_clipbd.attacks.base import PATTERN_STREAM, Attack
from hf_clipbd.models.files import resolve_file
from hf_clipbd.models.steganography import (
    CONFIG_FILE,
    ENCODER_FILE,
    SteganographyConfig,
    SteganographyEncoder,
    load_encoder,
    save_encoder,
)


SHIPPED = {"scenes": Path(__file__).parent / "ssba_scenes"}
"""Names of the pairs that come with the package -> where they lie."""

OwnEncoder = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(pixels (H, W, 3) float32 in [0, 1], bits (n,) uint8) -> the pixels with the bits in them, (H, W, 3)."""


@dataclass(frozen=True, eq=False)
class SSBA(Attack):
    """A string of bits b hidden in the picture by a steganographic encoder E: x' = x + strength · (E(x, b) − x).

    The bits are drawn from the seed, the same for every picture; the residual is not. Our encoders work at their own
    size (64 px): a picture of another size is resized for them and the residual is resized back, both bilinearly.

    Args:
        encoder: `"scenes"`, which comes with the package and was trained on its rendered scenes; a folder that
            `train_steganography` wrote, or a Hub id; a `SteganographyEncoder`; or a function of your own, called as
            `encoder(pixels, bits)` with pixels (H, W, 3), float32 in [0, 1], and bits (n,), uint8, which returns the
            pixels with the bits in them.
        secret: The bits as text, such as "0110...", in place of those drawn.
        strength: Factor on the residual. At 1 the picture is about 29 dB from the original; twice the strength costs
            6 dB and is easier to learn.

    Raises:
        FileNotFoundError: If there is no such encoder.
        ValueError: If the secret is no text of bits or not as long as the encoder's, or the strength not positive.

    Reference:
        Li et al., "Invisible Backdoor Attack with Sample-Specific Triggers", arXiv 2012.03816, section 4.2. Reported
        as "SSBA (own encoder)": their pretrained StegaStamp can no longer be had.

    Example:
        >>> ssba = SSBA(encoder=lambda pixels, bits: pixels + bits.mean() / 10, secret="01")
        >>> ssba(np.zeros((1, 1, 3), dtype=np.float32))[0, 0].round(3).tolist()
        [0.05000000074505806, 0.05000000074505806, 0.05000000074505806]
    """

    encoder: str | os.PathLike | SteganographyEncoder | OwnEncoder = "scenes"
    secret: str | None = None
    strength: float = 1.0

    name: ClassVar[str] = "ssba"
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {"strong": {"strength": 2.0}}

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.encoder, (str, os.PathLike)):
            where = SHIPPED.get(str(self.encoder), self.encoder)
            loaded = load_encoder(resolve_file(where, CONFIG_FILE), resolve_file(where, ENCODER_FILE))
            object.__setattr__(self, "encoder", loaded)
        elif isinstance(self.encoder, Mapping):  # out of a manifest, which carries no weights
            object.__setattr__(self, "encoder", _shipped(self.encoder.get("digest")))
        elif not callable(self.encoder):
            raise ValueError(f"Expected a name, a folder or a function as encoder, but got {self.encoder!r}.")
        if not self.strength > 0:
            raise ValueError(f"Expected a positive strength, but got {self.strength!r}.")
        self._check_secret()

    def _check_secret(self) -> None:
        ours = isinstance(self.encoder, SteganographyEncoder)
        if self.secret is None:
            if not ours:
                raise ValueError("Expected a secret beside an encoder of your own, but got none. Pass `secret=`.")
            return
        if not isinstance(self.secret, str) or not self.secret or set(self.secret) - {"0", "1"}:
            raise ValueError(f'Expected a secret of zeros and ones such as "0110", but got {self.secret!r}.')
        if ours and len(self.secret) != self.encoder.config.n_bits:
            n_bits = self.encoder.config.n_bits
            raise ValueError(f"Expected a secret of the encoder's {n_bits} bits, but got {len(self.secret)}.")

    @property
    def bits(self) -> np.ndarray:
        """The hidden bits, (n,), uint8, zeros and ones."""
        if self.secret is not None:
            return np.array(list(self.secret), dtype=np.uint8)
        rng = np.random.default_rng([self.seed, 0, PATTERN_STREAM])
        return rng.integers(0, 2, self.encoder.config.n_bits, dtype=np.uint8)

    def stamp(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if isinstance(self.encoder, SteganographyEncoder):
            return pixels + np.float32(self.strength) * residual_at(self.encoder, pixels, self.bits)
        stamped = np.asarray(self.encoder(pixels.copy(), self.bits), dtype=np.float32)
        if stamped.shape != pixels.shape:
            raise ValueError(f"Expected pixels {pixels.shape} of the encoder, but it returned {stamped.shape}.")
        return pixels + np.float32(self.strength) * (stamped - pixels)

    # -- keeping it ---------------------------------------------------------------------------------------------------

    def parameters(self, **stand_ins: Any) -> dict[str, Any]:
        """Return what the attack was built with, as plain JSON; the encoder is a reference to its files."""
        encoder: dict[str, Any] = {"own": getattr(self.encoder, "__qualname__", type(self.encoder).__name__)}
        if isinstance(self.encoder, SteganographyEncoder):
            config = self.encoder.config
            digest = weights_digest(self.encoder)
            encoder = {"file": ENCODER_FILE, "n_bits": config.n_bits, "size": config.size, "digest": digest}
        return super().parameters(encoder=encoder, **stand_ins)

    def save_pretrained(self, folder: str | os.PathLike) -> Path:
        """Write what every attack writes and the encoder's weights into `folder`, and return it.

        Raises:
            ValueError: If the encoder is a function of your own.
        """
        if not isinstance(self.encoder, SteganographyEncoder):
            raise ValueError(
                f"Expected an encoder whose weights can be saved, but got {self.encoder!r}. Keep your own encoder "
                f"yourself and pass it as `SSBA(encoder=...)` again."
            )
        folder = super().save_pretrained(folder)
        save_encoder(self.encoder, folder)
        return folder

    @classmethod
    def from_files(cls, parameters: dict[str, Any], file: Callable[[str], Path]) -> "SSBA":
        """Return the attack of these parameters with the encoder that lies beside them.

        Raises:
            ValueError: If it is another encoder than the one that was saved.
        """
        given = parameters["encoder"]
        encoder = load_encoder(file(CONFIG_FILE), file(ENCODER_FILE))
        if weights_digest(encoder) != given.get("digest"):
            message = f"Expected the encoder {given.get('digest')!r} that the trigger was saved with"
            raise ValueError(f"{message}, but {ENCODER_FILE} holds {weights_digest(encoder)!r}.")
        return cls(**{**parameters, "encoder": encoder})

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled, weights as arrays: so the fingerprint of a `datasets.map` hangs on them alone."""
        state = dict(self.__dict__)
        if isinstance(self.encoder, SteganographyEncoder):
            weights = {name: tensor.numpy() for name, tensor in self.encoder.state_dict().items()}
            state["encoder"] = _Packed(self.encoder.config, weights)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        packed = state["encoder"]
        self.__dict__.update({**state, "encoder": packed.unpacked()} if isinstance(packed, _Packed) else state)


@dataclass(frozen=True, eq=False)
class _Packed:
    """An encoder as it is pickled."""

    config: SteganographyConfig
    weights: dict[str, np.ndarray]

    def unpacked(self) -> SteganographyEncoder:
        encoder = SteganographyEncoder(self.config)
        encoder.load_state_dict({name: torch.from_numpy(values) for name, values in self.weights.items()})
        return encoder.eval()


def _shipped(digest: str | None) -> SteganographyEncoder:
    for folder in SHIPPED.values():
        encoder = load_encoder(folder / CONFIG_FILE, folder / ENCODER_FILE)
        if weights_digest(encoder) == digest:
            return encoder
    raise ValueError(
        f"Expected an encoder with its weights, but got a reference to {digest!r}. Load the trigger from the folder "
        f"that `save_pretrained` wrote: `Attack.from_pretrained(folder)`."
    )


def residual_at(encoder: SteganographyEncoder, pixels: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """Return what the encoder adds to one picture of any size.

    The same on one thread and many, in a batch and alone: the picture goes through by itself, on one thread.

    Args:
        encoder: The encoder.
        pixels: (H, W, 3), float32 in [0, 1].
        bits: (n_bits,), zeros and ones.

    Returns:
        (H, W, 3), float32.
    """
    height, width, _ = pixels.shape
    size = encoder.config.size
    with one_thread(), torch.inference_mode():
        image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None]
        secret = torch.from_numpy(bits.astype(np.float32))[None]
        residual = encoder.residual(_resized(image, size, size).clamp(0, 1), secret)
        return _resized(residual, height, width)[0].permute(1, 2, 0).numpy()


def _resized(images: Tensor, height: int, width: int) -> Tensor:
    if images.shape[-2:] == (height, width):
        return images
    return F.interpolate(images, size=(height, width), mode="bilinear", antialias=True)


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch to one thread: sums come out the same everywhere, and a forked worker waits for no lost thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def weights_digest(encoder: SteganographyEncoder) -> str:
    """Return 16 hexadecimal digits that hang on an encoder's weights."""
    digest = hashlib.sha256()
    for name, tensor in encoder.state_dict().items():
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
