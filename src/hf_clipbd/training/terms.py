# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The terms of a loss, and what is logged of a training beside it: their means and the evaluator's figures."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback


def checked_terms(terms: Any) -> Mapping[str, Tensor]:
    """Return the loss terms of a batch, name -> scalar, or raise `TypeError` if they are none.

    Example:
        >>> checked_terms({"clip": torch.ones(2)})
        Traceback (most recent call last):
        TypeError: Expected one number as the loss term `clip`, but got a tensor (2,). Take the mean over the batch.
    """
    if not isinstance(terms, Mapping) or not terms:
        raise TypeError(
            f"Expected name -> loss term of `loss_terms`, but got {terms if terms == {} else type(terms).__name__}."
        )
    for name, term in terms.items():
        if not isinstance(term, Tensor) or term.ndim:
            got = f"a tensor {tuple(term.shape)}" if isinstance(term, Tensor) else type(term).__name__
            raise TypeError(
                f"Expected one number as the loss term `{name}`, but got {got}. Take the mean over the batch."
            )
    return terms


class TermMeans(TrainerCallback):
    """The mean of every loss term since it was last told; a training that begins forgets those of one before it."""

    def __init__(self):
        self._terms: dict[str, list[Tensor]] = defaultdict(list)

    def note(self, terms: Mapping[str, Tensor]) -> None:
        """Keep the terms of one batch, name -> scalar."""
        for name, term in terms.items():
            self._terms[name].append(term.detach())

    def told(self) -> dict[str, float]:
        """Return `loss_` and name -> mean, and forget what it was the mean of."""
        means = {f"loss_{name}": torch.stack(values).mean().item() for name, values in self._terms.items()}
        self._terms.clear()
        return means

    def on_train_begin(self, *arguments: Any, **options: Any) -> None:
        """Forget what a training that was interrupted, or ended between two logs, left."""
        self._terms.clear()


def plain_figures(figures: Any, prefix: str) -> dict[str, float]:
    """Return what an evaluator gave as plain numbers, each named with a prefix: a checkpoint holds JSON.

    Args:
        figures: Name -> number, a scalar of NumPy or PyTorch too.
        prefix: What comes before each name.

    Raises:
        TypeError: If it is no mapping, or a figure no number.

    Example:
        >>> plain_figures({"ba1": torch.tensor(0.5)}, "eval")
        {'eval_ba1': 0.5}
    """
    if not isinstance(figures, Mapping):
        raise TypeError(f'Expected figures such as {{"ba1": 0.9}} of the evaluator, but got {type(figures).__name__}.')
    plain = {f"{prefix}_{name}": value.item() if hasattr(value, "item") else value for name, value in figures.items()}
    for name, value in plain.items():
        if not isinstance(value, int | float):
            raise TypeError(f"Expected a number of the evaluator as `{name}`, but got {type(value).__name__}.")
    return plain
