# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Pictures of a grid: BA and ASR against a setting, and ASR by epoch. Each function draws what it is given."""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hf_clipbd.report.figures import MARKERS, STYLE, WIDTH, colour
from hf_clipbd.templates import method


@dataclass(frozen=True)
class SweepPoint:
    """One setting of one defence, a value a run.

    Args:
        defense: Its name.
        setting: Label on the axis.
        ba: BA@1 on the test images, in [0, 1].
        asr: ASR@1 on the test images, in [0, 1].
    """

    defense: str
    setting: str
    ba: tuple[float, ...]
    asr: tuple[float, ...]


def _panels(height: float, columns: int) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _check(points: Sequence[SweepPoint]) -> None:
    if not points or any(not point.ba or not point.asr for point in points):
        raise ValueError(f"Expected at least one point and values in each, but got {list(points)}.")


def draw_sweep(points: Sequence[SweepPoint], axis: str, levels: dict[str, tuple[float, float]]) -> Figure:
    """Return BA@1 on the left and ASR@1 on the right against a setting, the mean over runs with the range as a bar.

    Args:
        points: In the order of the axis.
        axis: What the settings are.
        levels: Model -> (BA@1, ASR@1), drawn as level lines for comparison.

    Raises:
        ValueError: If there is no point, or one has no value.
    """
    _check(points)
    settings = list(dict.fromkeys(point.setting for point in points))
    defenses = list(dict.fromkeys(point.defense for point in points))
    with matplotlib.rc_context(STYLE):
        figure, panels = _panels(3.3, 2)
        for panel, (axes, title) in enumerate(
            zip(panels, ("BA@1 (higher is better)", "ASR@1 (lower is better)"), strict=True)
        ):
            for name, level in levels.items():
                axes.axhline(
                    100 * level[panel], color=colour(name), lw=1.2, ls=(0, (4, 3)), label=method(name)["label"]
                )
            for number, defense in enumerate(defenses):
                own = [point for point in points if point.defense == defense]
                places = [settings.index(point.setting) for point in own]
                values = [100 * np.asarray((point.ba, point.asr)[panel]) for point in own]
                means = np.array([one.mean() for one in values])
                ends = np.array(
                    [[mean - one.min(), one.max() - mean] for mean, one in zip(means, values, strict=True)]
                ).T
                look = {"color": colour(defense, defenses), "marker": MARKERS[number % len(MARKERS)], "ms": 5, "lw": 2}
                axes.errorbar(
                    places, means, np.clip(ends, 0, None), capsize=2.5, label=method(defense)["label"], **look
                )
            axes.set_title(title)
            axes.set_ylabel("%")
            axes.set_xlabel(axis)
            tilt = {"rotation": 30, "ha": "right"} if max(map(len, settings)) > 8 else {}
            axes.set_xticks(range(len(settings)), settings, **tilt)
        panels[1].set_ylim(bottom=min(0.0, panels[1].get_ylim()[0]))
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)))
    return figure


def draw_tradeoff(points: Sequence[SweepPoint], levels: dict[str, tuple[float, float]]) -> Figure:
    """Return ASR@1 against BA@1, a line for each defence through its settings, each with its label.

    What lies lower at the same BA@1 is the better defence, whatever its settings are.

    Args:
        points: In the order of the lines; means over the runs are drawn.
        levels: Model -> (BA@1, ASR@1), drawn as single marks.

    Raises:
        ValueError: If there is no point, or one has no value.
    """
    _check(points)
    defenses = list(dict.fromkeys(point.defense for point in points))
    with matplotlib.rc_context(STYLE):
        figure, (axes,) = _panels(4.2, 1)
        for name, (ba, asr) in levels.items():
            axes.plot(100 * ba, 100 * asr, "*", color=colour(name), ms=11, label=method(name)["label"])
        for number, defense in enumerate(defenses):
            own = [point for point in points if point.defense == defense]
            ba, asr = (100 * np.array([np.mean(getattr(point, name)) for point in own]) for name in ("ba", "asr"))
            look = {"color": colour(defense, defenses), "marker": MARKERS[number % len(MARKERS)], "ms": 5, "lw": 1.8}
            axes.plot(ba, asr, label=method(defense)["label"], **look)
            for point, x, y in zip(own, ba, asr, strict=True):
                beside = (4, 5) if number % 2 == 0 else (-4, -10)  # lines that coincide keep their labels apart
                axes.annotate(
                    point.setting, (x, y), beside, textcoords="offset points", fontsize=7, color=look["color"]
                )
        axes.set_xlabel("BA@1, % (further right is better)")
        axes.set_ylabel("ASR@1, % (lower is better)")
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=6)
    return figure


def draw_epochs(curves: dict[str, Sequence[Sequence[float]]], start: float) -> Figure:
    """Return ASR@1 by epoch, a line for each setting: its mean over runs.

    Args:
        curves: Label -> one sequence a run, ASR@1 after each epoch, in [0, 1].
        start: ASR@1 before the first epoch, the victim's, in [0, 1].

    Raises:
        ValueError: If there is no curve, or the runs of one have different lengths.
    """
    uneven = [label for label, runs in curves.items() if not runs or len({len(run) for run in runs}) != 1]
    if not curves or uneven:
        raise ValueError(f"Expected curves of one length in every run, but got {uneven or 'none'}.")
    with matplotlib.rc_context(STYLE):
        figure, (axes,) = _panels(3.6, 1)
        shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(curves)))
        for number, (label, runs) in enumerate(curves.items()):
            means = 100 * np.mean(np.asarray(runs), axis=0)
            look = {"color": shades[number], "marker": MARKERS[number % len(MARKERS)], "ms": 4.5, "lw": 1.8}
            axes.plot(range(len(means) + 1), [100 * start, *means], label=label, **look)
        axes.set_title("ASR@1 by epoch (0: the victim)")
        axes.set_xlabel("epoch")
        axes.set_ylabel("%")
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=8.5)
    return figure
