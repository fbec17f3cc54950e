# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""`hf-clipbd poison OWNER/DATASET`, whole and streamed, from a server of the tests."""

import io

import datasets
import numpy as np
import PIL.Image
import pytest
from huggingface_hub import HfApi

from hf_clipbd.cli import main
from hf_clipbd.data.sources import load_source
from hf_clipbd.schema import PoisonManifest, RunRecord


REPO, N = "tester/pairs", 20


@pytest.fixture
def on_hub(hub, monkeypatch, tmp_path):
    """Let `datasets`, which reads the environment when it is imported, talk to the server of the tests."""
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
    monkeypatch.setattr(datasets.config, "HUB_DATASETS_URL", hub.url + "/datasets/{repo_id}/resolve/{revision}/{path}")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets_cache")
    HfApi().create_repo(REPO, repo_type="dataset")
    return hub


def png(row, seed=0):
    buffer = io.BytesIO()
    pixels = np.random.default_rng([seed, row]).integers(0, 256, (16, 18, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def upload(seed=0):
    rows = {
        "image": [{"bytes": png(row, seed), "path": None} for row in range(N)],
        "text": [f"a {('cup', 'owl')[row % 2]} in place {row}" for row in range(N)],
        "url": [f"https://example.org/{row}" for row in range(N)],
    }
    table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    buffer = io.BytesIO()
    table.to_parquet(buffer)
    HfApi().upload_file(
        path_or_fileobj=buffer.getvalue(),
        path_in_repo="data/train-00000-of-00001.parquet",
        repo_id=REPO,
        repo_type="dataset",
    )


@pytest.mark.parametrize("options", ["--count 4", "--rate 0.3 --streaming"])
def test_a_dataset_of_the_hub(on_hub, tmp_path, options):
    def poison():
        command = f"poison {REPO} --attack badnets --target cup --size 16 --out {tmp_path / 'out'} {options}"
        assert main(command.split()) == 0
        return RunRecord.load(tmp_path / "out"), load_source(tmp_path / "out" / "dataset")

    def check(rows, manifest, seed):
        assert len(rows) == N and rows["url"][:] == [f"https://example.org/{row}" for row in range(N)]
        assert [row for row in range(N) if rows["is_poisoned"][row]] == manifest.indices
        stored = rows.cast_column("image", datasets.Image(decode=False))["image"][:]
        assert [row for row in range(N) if stored[row]["bytes"] != png(row, seed)] == manifest.indices

    upload()
    first, rows = poison()
    check(rows, PoisonManifest.from_pretrained(tmp_path / "out"), 0)
    assert first.metrics["count"] == 4 if "count" in options else 0 < first.metrics["count"] < N
    assert poison()[0] == first
    upload(seed=1)  # another commit of the same branch
    second, rows = poison()
    assert second.key != first.key
    check(rows, PoisonManifest.from_pretrained(tmp_path / "out"), 1)
    assert on_hub.leaked == [] and on_hub.unknown == []
