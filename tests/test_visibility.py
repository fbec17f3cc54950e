# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""How far a trigger moves embeddings, against a loop over pictures."""

import numpy as np
import pytest
import torch

from hf_clipbd.data.canvas import Canvas
from hf_clipbd.evaluation import embedding_shift
from test_evaluation import PROCESSOR, SIZE, Encoder, Patch, labelled


def one_by_one(model, pixels):
    """The unit embedding of one picture."""
    mean, std = (np.array(x)[:, None, None] for x in ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]))
    values = torch.tensor((pixels.transpose(2, 0, 1) / 255 - mean) / std, dtype=torch.float32)[None]
    with torch.no_grad():
        vector = model.eval().get_image_features(values)[0].numpy().astype(np.float64)
    return vector / np.linalg.norm(vector)


def test_the_shift_is_that_of_a_loop_over_pictures():
    model, data = Encoder(), labelled(23)
    found = embedding_shift(model, PROCESSOR, data, {"white": Patch(), "grey": Patch(shade=99)}, batch_size=10)
    pictures = [Canvas(SIZE).array(row["image"]) for row in data]
    clean = np.stack([one_by_one(model, one) for one in pictures])
    spread = np.sqrt(np.mean([np.sum((e - clean.mean(0)) ** 2) for e in clean]))
    for name, attack in {"white": Patch(), "grey": Patch(shade=99)}.items():
        stamped = np.stack([one_by_one(model, attack(one, index=i)) for i, one in enumerate(pictures)])
        assert found[name].common == pytest.approx(np.linalg.norm((stamped - clean).mean(0)) / spread, rel=1e-4)
        own = np.sqrt(np.mean([np.sum((a - b) ** 2) for a, b in zip(stamped, clean, strict=True)])) / spread
        assert found[name].own == pytest.approx(own, rel=1e-4)
        assert found[name].n == 23 and 0 < found[name].common <= found[name].own
    assert found["white"].own != found["grey"].own


def test_a_trigger_that_changes_nothing_moves_nothing():
    still = Patch()
    still.__class__ = type("Still", (Patch,), {"__call__": lambda self, image, index=0: image})
    found = embedding_shift(Encoder(), PROCESSOR, labelled(5), [still])["patch"]
    assert found.common == found.own == 0


def test_one_picture_is_too_few():
    with pytest.raises(ValueError, match="at least two pictures"):
        embedding_shift(Encoder(), PROCESSOR, labelled(1), [Patch()])
