# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Batch normalisation whose statistics are those of the global batch."""

import torch
from torch import Tensor, nn

from hf_clipbd.losses import all_reduce_with_grad, several_processes


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation over the images of all processes, so that W processes train as one does.

    With n = Σ_r N_r·H·W values a channel over the ranks r, in training

        μ = 1/n Σ_r Σ x,   σ² = 1/n Σ_r Σ (x − μ)²,   y = γ (x − μ) / √(σ² + ε) + β

    and the running variance takes n/(n−1) σ². Both sums go through `all_reduce_with_grad`. When every rank's loss is
    the global one and embeddings are gathered with gradient, the gradient that arrives at y is W times the true one
    on every rank; summing the gradients of μ and σ² over ranks keeps that factor, and the mean over ranks that
    DistributedDataParallel takes of the parameters' gradients removes it.

    On one process, or in evaluation, this is `nn.BatchNorm2d` itself; the state dict is always its. In training all
    processes have to call it together. Works on CPU (gloo) and GPU, unlike `nn.SyncBatchNorm`.

    Example:
        >>> GlobalBatchNorm2d(3)(torch.randn(2, 3, 4, 4)).shape
        torch.Size([2, 3, 4, 4])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised feature maps.

        Args:
            input: (N, C, H, W); N may differ between processes.

        Returns:
            (N, C, H, W), of the input's dtype.
        """
        if not self.training or not several_processes():
            return super().forward(input)
        self._check_input_dim(input)
        x = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        totals = torch.cat([x.sum(dim=(0, 2, 3)), x.new_tensor([x.numel() // x.shape[1]])])  # (C + 1,)
        totals = all_reduce_with_grad(totals)
        mean, count = totals[:-1] / totals[-1], totals[-1].detach()  # (C,), ()
        centred = x - mean[:, None, None]
        variance = all_reduce_with_grad(centred.square().sum(dim=(0, 2, 3))) / count  # (C,)
        self._update_running(mean.detach(), variance.detach() * count / (count - 1))
        factor = (variance + self.eps).rsqrt() * (1.0 if self.weight is None else self.weight)
        y = centred * factor[:, None, None]
        return (y if self.bias is None else y + self.bias[:, None, None]).to(input.dtype)

    @torch.no_grad()
    def _update_running(self, mean: Tensor, variance: Tensor) -> None:
        if not self.track_running_stats:
            return
        self.num_batches_tracked.add_(1)
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), momentum)
