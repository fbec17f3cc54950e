# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The towers a few pairs at a time: the exact gradient of a large batch in the memory of a small one."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


Encode = Callable[[nn.Module, dict[str, Tensor]], tuple[Tensor, ...]]
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def encode_in_chunks(
    encode: Encode, model: nn.Module, inputs: dict[str, Tensor], chunk_size: int
) -> tuple[Tensor, ...]:
    """Return what `encode(model, inputs)` does, computed `chunk_size` rows at a time in the forward and backward pass.

    The forward pass keeps no activations; the backward pass runs the forward pass of one chunk again (with the same
    random numbers, so dropout draws the same), goes back through it and frees it before the next. Values and gradients
    are those of the whole batch wherever a row's embedding does not depend on the other rows.

    Each chunk goes through `model` itself once, so that DistributedDataParallel sees it, and its repetition through
    the module inside; all gradients arrive in the one backward pass, and are averaged over processes once.

    Args:
        encode: Model and inputs -> embeddings, each (n, ...), row by row.
        model: The model, in DistributedDataParallel or not.
        inputs: Tensors of n rows.
        chunk_size: Rows of a chunk, at least 1; the last chunk may be smaller.

    Returns:
        Embeddings of the n rows.

    Reference:
        Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup (GradCache, arXiv
        2101.06983). They cache the gradients of the embeddings; here `torch.utils.checkpoint` runs the same passes.

    Example:
        >>> double = lambda model, inputs: (model(inputs["x"]),)
        >>> encode_in_chunks(double, nn.Identity(), {"x": torch.eye(3)}, 2)[0].shape
        torch.Size([3, 3])
    """
    chunks = zip(*(value.split(chunk_size) for value in inputs.values()), strict=True)
    parts = [_repeated(encode, model, dict(zip(inputs, chunk, strict=True))) for chunk in chunks]
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def _repeated(encode: Encode, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    first = True

    def run(*values: Tensor) -> tuple[Tensor, ...]:
        nonlocal first
        called = model if first else _inside(model)
        first = False
        return encode(called, dict(zip(inputs, values, strict=True)))

    return checkpoint(run, *inputs.values(), use_reentrant=False)


def _inside(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """Return the layers of `model` that normalise over the batch.

    Example:
        >>> [type(norm).__name__ for norm in batch_norms(nn.Sequential(nn.BatchNorm2d(3), nn.LayerNorm(3)))]
        ['BatchNorm2d']
    """
    return [module for module in model.modules() if isinstance(module, BATCH_NORMS)]
