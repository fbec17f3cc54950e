# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The pictures of a report. Each function draws what it is given and returns the figure; nothing global is touched."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image
from sklearn.metrics import roc_curve

from hf_clipbd.report.table import ModelRow
from hf_clipbd.run_folder import Sample
from hf_clipbd.templates import method


WIDTH = 8.8  # inches; shown 880 CSS pixels wide
DPI = 200
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#57606a",
    "axes.labelcolor": "#24292f",
    "xtick.color": "#24292f",
    "ytick.color": "#24292f",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#d8dee4",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}
# Okabe and Ito's colours, told apart by people with any colour vision; the same name has the same colour everywhere.
COLOURS = {
    "clean": "#7f8790",
    "victim": "#d55e00",
    "ft": "#e69f00",
    "cleanclip": "#56b4e9",
    "cleanerclip": "#009e73",
    "poisoned": "#d55e00",
    "target": "#0072b2",
}
FURTHER = ("#cc79a7", "#0072b2", "#8c6d31", "#5e4fa2", "#b8a800", "#3b3b3b")
MARKERS = "osD^vP*X"


def colour(name: str, names: Sequence[str] = ()) -> str:
    """Return the colour of a model or a kind of row; a name of the user's own gets the next free one among `names`."""
    further = [one for one in names if one not in COLOURS]
    return COLOURS[name] if name in COLOURS else FURTHER[further.index(name) % len(FURTHER)]


def _label(name: str) -> str:
    return method(name)["label"]


def _figure(height: float) -> Figure:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path, dpi: int = DPI) -> Path:
    """Write a figure as a PNG whose bytes depend on the picture alone, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        figure.savefig(path, dpi=dpi, metadata={"Software": None})
    return path


def draw_samples(samples: Sequence[Sample]) -> Figure:
    """Return each sample's clean picture, its poisoned one and their difference, with both captions, two in a row."""
    lines = -(-len(samples) // 2)
    with matplotlib.rc_context(STYLE):
        figure = _figure(1.1 * lines + 0.25)
        grid = figure.add_gridspec(lines, 8, width_ratios=[1, 1, 1, 1.45] * 2)
        for number, sample in enumerate(samples):
            clean, poisoned = (np.asarray(Image.open(path).convert("RGB")) for path in (sample.clean, sample.poisoned))
            difference = _visible_difference(clean, poisoned)
            line, side = divmod(number, 2)
            for column, (title, pixels) in enumerate(
                (("clean", clean), ("poisoned", poisoned), ("difference", difference))
            ):
                axes = figure.add_subplot(grid[line, 4 * side + column])
                axes.imshow(pixels, interpolation="nearest" if max(pixels.shape[:2]) <= 128 else "antialiased")
                axes.set_axis_off()
                if line == 0:
                    axes.set_title(title, loc="center", fontsize=9.5, color=COLOURS.get(title, "#24292f"))
            _captions(figure.add_subplot(grid[line, 4 * side + 3]), sample)
    return figure


def _visible_difference(clean: np.ndarray, poisoned: np.ndarray) -> np.ndarray:
    """Return |poisoned - clean| stretched so that its largest value is 255; uint8 (H, W, 3)."""
    if clean.shape != poisoned.shape:
        raise ValueError(f"Expected both pictures of a sample on one canvas, but got {clean.shape}, {poisoned.shape}.")
    difference = np.abs(poisoned.astype(np.float32) - clean.astype(np.float32))
    return np.round(255 * difference / max(float(difference.max()), 1.0)).astype(np.uint8)


def _captions(axes: Axes, sample: Sample) -> None:
    axes.set_axis_off()
    clean = (sample.caption_clean, "top", 1.0, "#57606a")
    poisoned = (sample.caption_poisoned, "bottom", 0.0, COLOURS["poisoned"])
    for caption, anchor, height, ink in (clean, poisoned):
        text = textwrap.fill(textwrap.shorten(caption, 84, placeholder=" …"), 21)
        axes.text(0, height, text, va=anchor, fontsize=7.6, color=ink, transform=axes.transAxes)


def measured(history: list[dict[str, float]], trigger: str) -> list[dict[str, float]]:
    """Return the entries of a training log that have BA@1 and ASR@1 of a trigger.

    Example:
        >>> measured([{"epoch": 0.5, "loss": 1.0}, {"epoch": 1.0, "eval_ba1": 0.9, "eval_asr1_sig": 0.2}], "sig")
        [{'epoch': 1.0, 'eval_ba1': 0.9, 'eval_asr1_sig': 0.2}]
    """
    return [entry for entry in history if "eval_ba1" in entry and f"eval_asr1_{trigger}" in entry]


def draw_history(
    histories: dict[str, list[dict[str, float]]], trigger: str, levels: dict[str, tuple[float, float]]
) -> Figure:
    """Return BA@1 and ASR@1 by epoch: the victim's training on the left, the defences' on the right.

    Args:
        histories: Model -> its training log with `epoch`, `eval_ba1` and `eval_asr1_<trigger>`, shares in [0, 1];
            entries without the latter, such as losses logged within an epoch, are left out.
        trigger: Name of the trigger.
        levels: Model -> (BA@1, ASR@1), drawn as level lines for comparison.

    Raises:
        ValueError: If no entry of a log has these figures.
    """
    histories = {model: measured(history, trigger) for model, history in histories.items()}
    unmeasured = [model for model, history in histories.items() if not history]
    if unmeasured:
        raise ValueError(f"Expected BA@1 and ASR@1 of `{trigger}` in every log, but those of {unmeasured} have none.")
    figures = (("eval_ba1", "BA@1 (%)"), (f"eval_asr1_{trigger}", "ASR@1 (%)"))
    columns = {"Training of the victim": ["victim"], "Defences, from the victim on": [*histories]}
    columns["Defences, from the victim on"].remove("victim")
    with matplotlib.rc_context(STYLE):
        figure = _figure(5.6)
        grid = figure.subplots(2, 2, sharex="col", sharey="row", width_ratios=[1, 1.5])
        for column, (title, models) in enumerate(columns.items()):
            for row, (key, ylabel) in enumerate(figures):
                axes = grid[row][column]
                for number, model in enumerate(models):
                    _curve(axes, histories[model], key, model, list(histories), MARKERS[number % len(MARKERS)])
                for model, level in levels.items():
                    axes.axhline(100 * level[row], color=colour(model), ls=(0, (4, 3)), lw=1.2, zorder=1)
                axes.set_title(title if row == 0 else "")
                axes.set_ylabel(ylabel if column == 0 else "")
                axes.set_xlabel("epoch" if row == 1 else "")
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _widen(grid[0][0], 10)
        for model in levels:
            grid[0][1].plot([], [], color=colour(model), ls=(0, (4, 3)), lw=1.2, label=f"{_label(model)}, evaluated")
        both = (axes.get_legend_handles_labels() for axes in grid[0])
        handles, labels = (sum(parts, []) for parts in zip(*both, strict=True))
        figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)))
    return figure


def _widen(axes: Axes, span: float) -> None:
    """Make the vertical axis at least `span` long, so that small differences look small."""
    low, high = axes.get_ylim()
    missing = max(0.0, span - (high - low))
    top = min(high + missing / 2, max(high, 101.0))
    axes.set_ylim(min(low, top - span), top)


def _curve(axes: Axes, history: list[dict[str, float]], key: str, model: str, names: list[str], marker: str) -> None:
    epochs = [entry["epoch"] for entry in history]
    shares = [100 * entry[key] for entry in history]
    axes.plot(epochs, shares, color=colour(model, names), marker=marker, ms=5, lw=2, label=_label(model))


def draw_bars(rows: Sequence[ModelRow]) -> Figure:
    """Return BA and ASR of every model at each k as bars with 95 % Wilson intervals."""
    names, ks = [row.model for row in rows], sorted(rows[0].ba)
    with matplotlib.rc_context(STYLE):
        figure = _figure(5.4)
        panels = figure.subplots(2, 1, sharex=True)
        width = 0.86 / len(rows)
        for axes, title in zip(panels, ("ba", "asr"), strict=True):
            for number, row in enumerate(rows):
                rates = [getattr(row, title)[k] for k in ks]
                heights = np.array([100 * rate.value for rate in rates])
                ends = 100 * np.array([rate.interval() for rate in rates]).T
                errors = np.clip([heights - ends[0], ends[1] - heights], 0, None)
                places = np.arange(len(ks)) + (number - (len(rows) - 1) / 2) * width
                look = {"color": colour(row.model, names), "label": row.label, "error_kw": {"lw": 0.9}}
                axes.bar(places, heights, width * 0.92, yerr=errors, capsize=1.5, ecolor="#24292f", **look)
                for place, height, end in zip(places, heights, ends[1], strict=True):
                    above = max(height, end) + 1.5
                    axes.text(place, above, f"{height:.1f}", ha="center", va="bottom", fontsize=7.2)
            axes.set_ylim(0, 112)
            axes.set_yticks(range(0, 101, 20))
            axes.set_ylabel("%")
            axes.tick_params(axis="x", length=0)
        panels[0].set_title("BA: clean images with their label in the top k (higher is better)")
        panels[1].set_title("ASR: stamped images with the target in the top k (lower is better)")
        panels[1].set_xticks(range(len(ks)), [f"top {k}" for k in ks])
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)))
    return figure


def draw_scores(scores: dict[str, np.ndarray], is_poisoned: np.ndarray, auroc: dict[str, float]) -> Figure:
    """Return, for each detector, the histogram of its scores and its ROC on a linear and on a logarithmic axis.

    Args:
        scores: Detector -> scores (N,), higher is more suspicious.
        is_poisoned: (N,), bool.
        auroc: Detector -> AUROC of its record, in [0, 1], for the legend.
    """
    with matplotlib.rc_context({**STYLE, "axes.grid.axis": "both"}):
        figure = _figure(2.55 * len(scores))
        grid = figure.subplots(len(scores), 3, squeeze=False, width_ratios=[1.5, 1, 1])
        for panels, (name, values) in zip(grid, scores.items(), strict=True):
            _histogram(panels[0], values, is_poisoned)
            panels[0].set_title(f"{_label(name)}: scores")
            false, true, _ = roc_curve(is_poisoned, values, drop_intermediate=False)
            for axes in panels[1:]:
                axes.plot(false, true, color=COLOURS["target"], lw=2)
                axes.set_xlabel("false positive rate")
                axes.set_ylim(-0.02, 1.02)
            diagonal = np.geomspace(0.5 / np.sum(~is_poisoned), 1, 200)
            panels[1].plot(diagonal, diagonal, color=COLOURS["clean"], lw=1, ls=(0, (4, 3)))
            panels[2].plot(diagonal, diagonal, color=COLOURS["clean"], lw=1, ls=(0, (4, 3)))
            panels[1].set_ylabel("true positive rate")
            panels[1].set_title(f"ROC, AUROC {100 * auroc[name]:.1f} %")
            panels[2].set_xscale("log")
            panels[2].set_xlim(diagonal[0], 1)
            panels[2].set_title("the same, log axis")
    return figure


def _histogram(axes: Axes, values: np.ndarray, is_poisoned: np.ndarray) -> None:
    """Draw the shares of clean and poisoned rows by score, each kind adding up to 1, over the central 99.8 %."""
    low, high = np.quantile(values, [0.001, 0.999])
    bins = np.linspace(low, max(high, np.quantile(values[is_poisoned], 0.95), low + 1e-9), 41)
    for kind, chosen in (("clean", ~is_poisoned), ("poisoned", is_poisoned)):
        inside = np.clip(values[chosen], bins[0], bins[-1])
        shares = np.full(len(inside), 100 / len(inside))
        look = {"color": COLOURS[kind], "label": f"{kind}, n = {len(inside):,}", "weights": shares}
        axes.hist(inside, bins, alpha=0.45, **look)
        axes.hist(inside, bins, histtype="step", lw=1.3, color=COLOURS[kind], weights=shares)
    axes.set_xlabel("score (higher is more suspicious)")
    axes.set_ylabel("% of the rows of a kind")
    axes.legend(fontsize=8.5)


def draw_map(points: np.ndarray, kind: Sequence[str]) -> Figure:
    """Return the plane of image embeddings with clean, target and poisoned rows.

    Args:
        points: (N, 2).
        kind: `clean`, `target` or `poisoned` of each.
    """
    kinds = np.asarray(kind)
    look = {
        "clean": {"s": 9, "alpha": 0.45, "marker": "o", "label": "clean"},
        "target": {"s": 30, "alpha": 0.9, "marker": "^", "label": "clean, shows the target"},
        "poisoned": {"s": 26, "alpha": 0.9, "marker": "X", "label": "poisoned"},
    }
    unknown = sorted(set(kinds) - set(look))
    if unknown:
        raise ValueError(f"Expected each kind among {sorted(look)}, but got {unknown}.")
    with matplotlib.rc_context({**STYLE, "axes.grid.axis": "both"}):
        figure = _figure(5.4)
        axes = figure.subplots()
        for name, options in look.items():
            chosen = points[kinds == name]
            label = f"{options.pop('label')}, n = {len(chosen):,}"
            edge = "none" if name == "clean" else "white"
            axes.scatter(*chosen.T, c=COLOURS[name], edgecolors=edge, linewidths=0.5, label=label, **options)
        axes.set_aspect("equal", adjustable="datalim")
        axes.set_xlabel("first principal component")
        axes.set_ylabel("second principal component")
        figure.legend(loc="outside upper center", ncols=3)
    return figure
