# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The pictures of RESULTS.md, drawn from the records of cells: what defences leave, and how soon it falls."""

import math
from collections.abc import Callable, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hf_clipbd.report.figures import MARKERS, STYLE, WIDTH, colour
from hf_clipbd.report.results_cells import Cells
from hf_clipbd.report.results_tables import label


COLUMNS = 3


def _panels(height: float, rows: int, columns: int) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, sharey=rows > 1 and columns > 1)


def _by_attack(axes: Axes, cells: Cells, models: Sequence[str], rates: Callable, bars: bool) -> None:
    """Draw one rate of every model by attack: means as bars or marks, the range over the seeds as a line."""
    width = 0.8 / max(1, len(models))
    for number, model in enumerate(models):
        by_attack = [(place, rates(attack, model, 1)) for place, attack in enumerate(cells.attacks)]
        found = [(place, 100 * np.asarray(values)) for place, values in by_attack if values]
        places = np.array([place for place, _ in found]) + (number - (len(models) - 1) / 2) * width
        means = np.array([values.mean() for _, values in found])
        ends = [means - [values.min() for _, values in found], [values.max() for _, values in found] - means]
        look = {"color": colour(model, models), "ecolor": "#57606a", "yerr": np.clip(ends, 0, None)}
        if bars:
            axes.bar(places, means, width * 0.92, label=label(model), error_kw={"lw": 0.9}, **look)
        else:
            axes.errorbar(places, means, fmt="o", ms=5.5, elinewidth=0.9, **look)
    axes.set_ylabel("%")
    axes.set_xticks(range(len(cells.attacks)), [label(attack) for attack in cells.attacks])


def draw_rates(cells: Cells, models: Sequence[str]) -> Figure:
    """Return BA@1 above, as marks, and ASR@1 below, as bars, of every model by attack.

    Means over the seeds; their range is a line.

    Args:
        cells: The records; an attack or a model that has none leaves its place empty.
        models: Models, in the order of the bars.
    """
    with matplotlib.rc_context(STYLE):
        figure, panels = _panels(4.6, 2, 1)
        (accuracy,), (success,) = panels
        _by_attack(accuracy, cells, models, cells.ba, bars=False)
        _by_attack(success, cells, models, cells.asr, bars=True)
        accuracy.set_title("BA@1 (higher is better)")
        success.set_title("ASR@1 (lower is better)")
        handles, labels = success.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=max(1, len(labels)))
    return figure


def _epochs(axes: Axes, cells: Cells, attack: str, models: Sequence[str]) -> None:
    """Draw one attack: ASR@1 before and after each epoch, the mean over seeds as a line and the range as a band."""
    start = [run[-1] for run in cells.asr_by_epoch(attack, "victim")]
    for number, model in enumerate(models):
        runs = cells.asr_by_epoch(attack, model)
        if not runs or not start:
            continue
        curves = 100 * np.array([[np.mean(start), *run] for run in runs if len(run) == len(runs[0])])
        epochs = range(curves.shape[1])
        shade = colour(model, models)
        axes.fill_between(epochs, curves.min(axis=0), curves.max(axis=0), color=shade, alpha=0.15, lw=0)
        axes.plot(epochs, curves.mean(axis=0), color=shade, marker=MARKERS[number], ms=4.5, lw=1.8, label=label(model))
    axes.set_title(label(attack))
    axes.set_ylim(0, 103)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def draw_epochs_by_attack(cells: Cells, models: Sequence[str]) -> Figure:
    """Return ASR@1 by epoch, a panel an attack: means over the seeds, ranges as bands; epoch 0 is the victim.

    Args:
        cells: The records.
        models: Models that were trained from the victim; others are left out.
    """
    trained = [model for model in models if model not in ("clean", "victim")]
    rows = math.ceil(len(cells.attacks) / COLUMNS)
    with matplotlib.rc_context(STYLE):
        figure, panels = _panels(0.6 + 2.1 * rows, rows, min(COLUMNS, len(cells.attacks)))
        for axes, attack in zip(panels.flat, cells.attacks, strict=False):
            _epochs(axes, cells, attack, trained)
        for axes in panels.flat[len(cells.attacks) :]:
            axes.set_visible(False)
        for axes in panels[:, 0]:
            axes.set_ylabel("ASR@1, %")
        for axes in panels[-1]:
            axes.set_xlabel("epoch")
        drawn = {
            text: line for axes in panels.flat for line, text in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(drawn.values(), drawn.keys(), loc="outside lower center", ncols=max(1, len(drawn)))
    return figure
