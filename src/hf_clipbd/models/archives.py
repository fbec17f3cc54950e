# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Weights out of files that strangers wrote, without running anything that is in them."""

import io
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor


_STORAGES = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
}
_FOREIGN = re.compile(r"(?:GLOBAL|[Uu]nsupported (?:class|global:?)) (?:GLOBAL )?([\w.]+)")
"""How torch's refusal names what it would have had to import."""
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_REFUSED = (
    "Unpickling a file can run whatever code its author put there, so only tensors and plain containers are read "
    "(torch.load with weights_only=True). If you trust the author, save the bare state dict as safetensors where you "
    "trust the file, and convert that."
)


def read_state_dict(path: str | os.PathLike) -> dict[str, Tensor]:
    """Return the tensors of a weight file by name, on the CPU; nothing in the file is run.

    Args:
        path: `.safetensors`; what `torch.save` wrote of a state dict, or of a training checkpoint that holds one as
            `state_dict`; or a TorchScript archive as OpenAI's are, of which only the tensors are read. `torch.load`
            refuses to open a TorchScript archive with `weights_only=True`, and `torch.jit.load` would run its code.

    Returns:
        Name -> tensor, a leading `module.` (of a model wrapped for data parallelism) removed.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If reading it would run code, it holds no state dict, or it is cut short.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"Expected a weight file at `{path}`, but there is none.")
    if path.suffix == ".safetensors":
        try:
            state: Any = load_file(path)
        except SafetensorError as error:
            raise ValueError(
                f"Expected weights in {path}, but the file is cut short or broken: {error}. Fetch it again."
            ) from error
    elif _is_torchscript(path):
        state = _read_torchscript(path)
    else:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            what = _FOREIGN.search(str(error))
            why = f"it names {what[1]}, which is no tensor" if what else "that is no pickle of tensors"
            raise ValueError(f"Expected weights in {path}, but {why}. {_REFUSED}") from error
    return _bare(state, path)


def _bare(state: Any, path: Path) -> dict[str, Tensor]:
    for name in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(name), Mapping):
            state = state[name]
    if not isinstance(state, Mapping):
        raise ValueError(f"Expected a state dict in {path}, but it holds {type(state).__name__}.")
    tensors = {str(name): value for name, value in state.items() if torch.is_tensor(value)}
    if not tensors:
        raise ValueError(f"Expected tensors in {path}, but it holds {sorted(map(str, state))[:8]}.")
    return {name.removeprefix("module."): value for name, value in tensors.items()}


# -- TorchScript ------------------------------------------------------------------------------------------------------


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.split("/", 1)[-1] == "constants.pkl" for name in archive.namelist())


class _Module:
    """Stands for any object of a TorchScript archive; keeps its attributes and has no behaviour."""

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _rebuild(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if prod(size) else offset - 1
    if offset < 0 or min(stride, default=0) < 0 or last >= len(storage):
        raise pickle.UnpicklingError(f"a tensor of size {size} lies outside its storage of {len(storage)} values")
    return storage.as_strided(size, stride, offset).clone()


class _TensorsOnly(pickle.Unpickler):
    """Reads `data.pkl` of a TorchScript archive: tensors, containers, and modules as bags of attributes."""

    def __init__(self, archive: zipfile.ZipFile, root: str):
        super().__init__(io.BytesIO(archive.read(f"{root}/data.pkl")))
        self.archive, self.root = archive, root
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return _Module
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle":  # typed lists: build_intlist and the like give back what they got
            return _first
        raise pickle.UnpicklingError(f"it names {module}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        kind, dtype, key = pid[:3]
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"it refers to {pid!r}")
        if key not in self.storages:
            data = bytearray(self.archive.read(f"{self.root}/data/{key}"))
            self.storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return self.storages[key]


def _first(value: Any, *_: Any) -> Any:
    return value


def _read_torchscript(path: Path) -> dict[str, Tensor]:
    with zipfile.ZipFile(path) as archive:
        root = next(name.split("/", 1)[0] for name in archive.namelist() if name.endswith("/data.pkl"))
        try:
            module = _TensorsOnly(archive, root).load()
        except (pickle.UnpicklingError, zipfile.BadZipFile, KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"Expected tensors in the TorchScript archive {path}, but {error}. {_REFUSED}") from error
    tensors: dict[str, Tensor] = {}
    _collect(module, "", tensors)
    return tensors


def _collect(value: Any, name: str, into: dict[str, Tensor]) -> None:
    if torch.is_tensor(value):
        into[name] = value
    elif isinstance(value, _Module) and isinstance(getattr(value, "state", None), Mapping):
        for part, inner in value.state.items():
            _collect(inner, f"{name}.{part}" if name else str(part), into)
