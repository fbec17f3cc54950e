# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What a loss sees: the embeddings of the global batch, by view."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Views:
    """Unit embeddings of the global batch, by view.

    Args:
        images: View name -> (N, D).
        texts: View name -> (N, D), row i the caption of image i.
        scale: exp(logit_scale), scalar with gradient.
        bias: A SigLIP's logit_bias, scalar with gradient; None for all other models.
    """

    images: dict[str, Tensor]
    texts: dict[str, Tensor]
    scale: Tensor
    bias: Tensor | None = None
