# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""How far BadCLIP's optimisation got, in a file that a killed process leaves whole."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor


logger = logging.getLogger(__name__)

History = list[tuple[float, ...]]


@dataclass
class PatchCheckpoint:
    """Patch, Adam's moments and history after some step, in one safetensors file that is replaced in one go.

    Args:
        path: The file; None keeps nothing.
        key: Hash of everything the steps depend on; a file with another one is not used.
    """

    path: Path | None
    key: str

    def save(self, patch: Tensor, optimizer: torch.optim.Adam, history: History) -> None:
        """Write the state after the last step of the history."""
        if self.path is None:
            return
        state = optimizer.state[patch]
        tensors = {"patch": patch.detach(), "exp_avg": state["exp_avg"], "exp_avg_sq": state["exp_avg_sq"]}
        tensors = {name: x.cpu().contiguous() for name, x in tensors.items()}
        tensors["history"] = torch.tensor(history, dtype=torch.float64)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        scratch = self.path.with_name(self.path.name + ".partial")
        save_file(tensors, scratch, {"key": self.key})
        os.replace(scratch, self.path)

    def restore(self, patch: Tensor, optimizer: torch.optim.Adam, most: int) -> History:
        """Put the state back and return the history, an empty one where there is nothing to go on from."""
        if self.path is None or not self.path.is_file():
            return []
        with safe_open(self.path, "pt") as file:
            kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            key = (file.metadata() or {}).get("key")
        if key != self.key or len(kept["history"]) > most:
            logger.info("The checkpoint %s is of another optimisation and is not used.", self.path)
            return []
        patch.data.copy_(kept["patch"])
        optimizer.state[patch] = {
            "step": torch.tensor(float(len(kept["history"]))),
            "exp_avg": kept["exp_avg"].to(patch.device),
            "exp_avg_sq": kept["exp_avg_sq"].to(patch.device),
        }
        logger.info("The patch goes on from step %d.", len(kept["history"]))
        return [tuple(row) for row in kept["history"].tolist()]
