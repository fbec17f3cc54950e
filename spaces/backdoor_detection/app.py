# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The metric in a browser: a table of scores and labels in, figures out."""

from pathlib import Path

import evaluate
import gradio
import pandas


FOLDER = Path(__file__).resolve().parent
EXAMPLE = pandas.DataFrame({"score": [0.1, 0.4, 0.3, 0.9, 0.2, 0.8], "is_poisoned": [0, 0, 1, 1, 0, 1]})


def figures(table: pandas.DataFrame) -> pandas.DataFrame:
    """Return one row a figure.

    Args:
        table: Columns `score` (higher is more suspicious) and `is_poisoned` (0 or 1); empty rows are left out.
    """
    rows = table.apply(pandas.to_numeric, errors="coerce").dropna()
    metric = evaluate.load(str(FOLDER / "backdoor_detection.py"))
    try:
        found = metric.compute(predictions=rows["score"].tolist(), references=rows["is_poisoned"].astype(int).tolist())
    except ValueError as error:
        raise gradio.Error(str(error)) from error
    return pandas.DataFrame({"figure": list(found), "value": [round(value, 6) for value in found.values()]})


def build() -> gradio.Interface:
    """Return the page."""
    card = (FOLDER / "README.md").read_text("utf-8").split("---", 2)[2]
    return gradio.Interface(
        figures,
        gradio.Dataframe(EXAMPLE, headers=list(EXAMPLE), datatype="number", label="Scores and labels"),
        gradio.Dataframe(headers=["figure", "value"], label="Figures"),
        title="Backdoor detection",
        description="How well suspicion scores tell poisoned image-text pairs from clean ones.",
        article=card,
        flagging_mode="never",
    )


if __name__ == "__main__":
    build().launch()
