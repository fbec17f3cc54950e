# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The metric in a browser: a table of scores and labels in, figures out."""

from pathlib import Path

import gradio
import pandas
from figures import figures


CARD = Path(__file__).resolve().parent / "README.md"
EXAMPLE = pandas.DataFrame({"score": [0.1, 0.4, 0.3, 0.9, 0.2, 0.8], "is_poisoned": [0, 0, 1, 1, 0, 1]})


def shown(table: pandas.DataFrame) -> pandas.DataFrame:
    """Return the figures of a table, or show on the page what is wrong with it."""
    try:
        return figures(table)
    except ValueError as error:
        raise gradio.Error(str(error)) from error


def build() -> gradio.Interface:
    """Return the page; it opens with the figures of the example."""
    headers = ["figure", "value", "meaning"]
    given = gradio.Dataframe(EXAMPLE, headers=list(EXAMPLE), datatype="number", label="Scores and labels")
    found = gradio.Dataframe(headers=headers, datatype="str", label="Figures", interactive=False)
    page = gradio.Interface(
        shown,
        given,
        found,
        title="Backdoor detection",
        description="How well suspicion scores tell poisoned image-text pairs from clean ones. Type or paste yours.",
        article=CARD.read_text("utf-8").split("---", 2)[2],
        flagging_mode="never",
    )
    with page:
        page.load(shown, given, found)
    return page


if __name__ == "__main__":
    build().launch()
