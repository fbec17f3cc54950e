# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The metric's Space folder: it loads offline by its path, computes what the package does, and its card is whole."""

import ast
from pathlib import Path

import evaluate
import numpy as np
import pytest
from huggingface_hub import DatasetCard, ModelCard

from hf_clipbd.detection import BackdoorDetection, detect, detection_performance


SPACE = Path(__file__).resolve().parents[1] / "spaces" / "backdoor_detection"


@pytest.fixture
def scored():
    """Return scores, labels and embeddings of 60 rows."""
    rng = np.random.default_rng([4])
    labels = (rng.random(60) < 0.3).astype(int)
    embeddings = rng.normal(size=(60, 8)).astype(np.float32)
    return rng.random(60) + 0.3 * labels, labels, embeddings


@pytest.mark.parametrize("path", [SPACE, SPACE / "backdoor_detection.py"])
def test_it_loads_by_path_offline(scored, tmp_path, path):
    scores, labels, embeddings = scored
    metric = evaluate.load(str(path), cache_dir=str(tmp_path))
    expected = detection_performance(scores, labels)
    assert metric.compute(predictions=scores, references=labels) == expected
    assert "higher is more suspicious" in metric.inputs_description and "huang2025" in metric.citation
    for part in (slice(0, 25), slice(25, 60)):
        metric.add_batch(predictions=scores[part], references=labels[part])
    assert metric.compute(n_flagged=9) == detection_performance(scores, labels, 9)


def test_embeddings_go_by_keyword_and_not_through_arrow(scored, tmp_path):
    scores, labels, embeddings = scored
    metric = BackdoorDetection(cache_dir=str(tmp_path))
    found = metric.compute(embeddings=embeddings, references=labels, detector="k_distance", k=3, m=40, seed=1)
    assert found == detection_performance(detect(embeddings, "k_distance", 40, 3, 1), labels)
    assert set(metric.features) == {"predictions", "references"}
    with pytest.raises(ValueError, match="both"):
        metric.compute(embeddings=embeddings, predictions=scores, references=labels)
    with pytest.raises(ValueError, match="'k'"):
        metric.compute(predictions=scores, references=labels, k=3)


@pytest.mark.parametrize(
    ("given", "says"), [("references", "references alone"), ("predictions", "no ref"), ("embeddings", "no ref")]
)
def test_scores_and_labels_come_together(scored, tmp_path, given, says):
    scores, labels, embeddings = scored
    inputs = {"predictions": scores, "references": labels, "embeddings": embeddings}
    metric = BackdoorDetection(cache_dir=str(tmp_path))
    with pytest.raises(ValueError, match=says):
        metric.compute(**{given: inputs[given]})
    assert metric.compute(predictions=scores, references=labels) == detection_performance(scores, labels)


def test_the_card_and_the_app_are_whole():
    for card in (ModelCard.load(SPACE / "README.md"), DatasetCard.load(SPACE / "README.md")):
        data = card.data.to_dict()
        assert data["sdk"] == "gradio" and data["tags"] == ["evaluate", "metric"] and data["app_file"] == "app.py"
    text = (SPACE / "README.md").read_text("utf-8")
    shown = detection_performance([0.1, 0.4, 0.3, 0.9], [0, 0, 1, 1])
    assert all(f"`{name}`" in text for name in shown) and "# 0.75" in text and shown["auroc"] == 0.75
    code = [ast.parse((SPACE / name).read_text("utf-8")) for name in ("app.py", "figures.py")]
    imported = {
        name.name for one in code for node in ast.walk(one) if isinstance(node, ast.Import) for name in node.names
    }
    required = (SPACE / "requirements.txt").read_text("utf-8")
    assert {"evaluate", "gradio", "pandas"} <= imported
    assert all(name in required for name in ("evaluate", "gradio", "pandas", "hf-clipbd"))
