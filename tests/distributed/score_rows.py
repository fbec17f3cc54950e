# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Scores rows on however many processes it is launched with; every process saves all the scores that it got."""

import sys
from pathlib import Path

import numpy as np
import torch

from hf_clipbd.detection import Reference, k_distance, slof


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    folder, rank = Path(sys.argv[1]), torch.distributed.get_rank()
    features = np.load(folder / "features.npy", mmap_mode="r")
    reference = Reference.sample(features, 400, seed=2, distributed=True)
    np.save(folder / f"slof-{rank}.npy", slof(features, reference, 8))
    np.save(folder / f"k_distance-{rank}.npy", k_distance(features, reference, 8, average="mean"))
    torch.distributed.destroy_process_group()
