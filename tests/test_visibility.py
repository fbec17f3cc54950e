# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""How far a trigger moves embeddings, against a loop over pictures."""

import numpy as np
import pytest
import torch
import torch.distributed as dist

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
    class Still(Patch):
        def __call__(self, image, index=0):
            return image

    found = embedding_shift(Encoder(), PROCESSOR, labelled(5), [Still()])["patch"]
    assert found.common == found.own == 0


def test_one_picture_is_too_few():
    with pytest.raises(ValueError, match="at least two pictures"):
        embedding_shift(Encoder(), PROCESSOR, labelled(1), [Patch()])


def shift_on_one_of_two(rank, address, folder):
    dist.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=2)
    found = embedding_shift(Encoder(), PROCESSOR, labelled(23), [Patch()], batch_size=10)["patch"]
    try:
        embedding_shift(Encoder(), PROCESSOR, labelled(1), [Patch()])
        told = "nothing"
    except ValueError as error:
        told = str(error)
    (folder / f"{rank}.txt").write_text(f"{found.common:.9f} {found.own:.9f} {found.n} {told}")
    dist.destroy_process_group()


def test_two_processes_share_the_pictures_and_find_the_same_shift(forked, tmp_path):
    both = [forked.call(shift_on_one_of_two, rank, tmp_path / "address", tmp_path) for rank in (0, 1)]
    assert forked.ended(both) == [0, 0]
    alone = embedding_shift(Encoder(), PROCESSOR, labelled(23), [Patch()])["patch"]
    for rank in (0, 1):
        common, own, n, told = (tmp_path / f"{rank}.txt").read_text().split(" ", 3)
        assert float(common) == pytest.approx(alone.common, rel=1e-5) and int(n) == 23
        assert float(own) == pytest.approx(alone.own, rel=1e-5) and "at least one got none" in told
