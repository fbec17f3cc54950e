# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""A comparison of evaluations as bars with their intervals."""

import os
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hf_clipbd.evaluation.comparison import ComparisonRow
from hf_clipbd.report.figures import COLOURS, DPI, FURTHER, STYLE, WIDTH
from hf_clipbd.schema import Rate


def plot_comparison(rows: Sequence[ComparisonRow], path: str | os.PathLike) -> Path:
    """Draw BA and ASR of each model, a panel a trigger and k, with 95 % Wilson intervals, and return the path.

    Args:
        rows: As `hf_clipbd.evaluation.comparison.compare` gives them.
        path: File that matplotlib can write: PNG, PDF or SVG.

    Raises:
        ValueError: If there are no rows, or the ending is none that matplotlib knows.
    """
    if not rows:
        raise ValueError("Expected evaluations to draw, but got none.")
    panels = list(dict.fromkeys((row.trigger, row.k) for row in rows))
    models = list(dict.fromkeys(row.model for row in rows))
    further = iter(FURTHER * len(models))
    colours = {model: COLOURS.get(model.rsplit("/", 1)[-1]) or next(further) for model in models}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.0 + 2.2 * len(panels)), layout="constrained")
        FigureCanvasAgg(figure)
        for axes, (trigger, k) in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
            inside = {row.model: row for row in rows if (row.trigger, row.k) == (trigger, k)}
            for place, (model, row) in enumerate(inside.items()):
                pairs: list[tuple[float, Rate | None]] = [(0.0, row.ba), (1.0, row.asr)]
                for centre, rate in pairs:
                    if rate is None:
                        continue
                    low, high = rate.interval()
                    spread = 100 * np.array([[max(0.0, rate.value - low)], [max(0.0, high - rate.value)]])
                    x = centre + 0.8 * ((place + 0.5) / len(inside) - 0.5)
                    label = model if centre == 0.0 else None
                    axes.bar(x, 100 * rate.value, 0.7 / len(inside), color=colours[model], label=label)
                    axes.errorbar(x, 100 * rate.value, spread, color="#24292f", capsize=2, linewidth=0.8)
            ticks = [f"BA@{k}", f"ASR@{k}"] if trigger else [f"BA@{k}"]
            axes.set_xticks(range(len(ticks)), ticks)
            axes.set(title=trigger or "clean images", ylabel="percent", ylim=(0, 104))
        figure.axes[0].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        figure.savefig(path, dpi=DPI)
    return Path(path)
