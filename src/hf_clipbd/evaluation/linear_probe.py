# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Linear probe: a linear classifier on frozen image features, its accuracy, and ASR through it."""

import logging
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from hf_clipbd.data.canvas import Canvas
from hf_clipbd.evaluation.class_names import given_names
from hf_clipbd.evaluation.kept_features import image_features
from hf_clipbd.evaluation.processes import add_over_processes
from hf_clipbd.evaluation.protocol import Protocol, check_same_classes, class_names_of
from hf_clipbd.evaluation.rates import bootstrap_mean, class_ranks
from hf_clipbd.evaluation.training_labels import check_every_class, training_labels
from hf_clipbd.evaluation.zero_shot import Batch, embed_batches, stamped_batches
from hf_clipbd.schema import IMAGE, LABEL, EvalReport


logger = logging.getLogger(__name__)

Solver = Literal["auto", "sklearn", "torch"]
L2_GRID = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
WIDER = (1e-8, 1e-7, 1e-1)
"""Further λ that are tried, one after the other, while the best one is the least or the greatest of the grid."""
HELD_OUT = 0.2
SKLEARN_NUMBERS = 20_000_000
"""Largest N·D that `solver="auto"` gives to scikit-learn; more goes to torch, on the model's device."""
MAX_ITERATIONS = 1000


@dataclass(frozen=True)
class LinearClassifier:
    """Scores W x + b of C classes.

    Args:
        weight: W, (C, D).
        bias: b, (C,).
        converged: Whether the fit came to its minimum within the iterations that it is given.
    """

    weight: Tensor
    bias: Tensor
    converged: bool = True

    def __call__(self, features: Tensor) -> Tensor:
        """Return scores (..., C) of features (..., D)."""
        return features.to(self.weight) @ self.weight.T + self.bias


@dataclass
class ProbeReport:
    """What a linear probe measured, and how it was fitted.

    Args:
        report: BA, ASR and RA through the probe, each beside its n.
        mean_per_class: Mean over the classes of their accuracy on clean images, in [0, 1].
        mean_per_class_interval: Its 95 % interval, (low, high); see `bootstrap_mean`.
        l2: λ, weight of |W|²/2 beside the mean cross-entropy.
        held_out: λ -> accuracy on the held-out fifth of the training rows; empty where λ was given.
        solver: `sklearn` or `torch`.
        n_train: Training rows.
        converged: Whether the fit came to its minimum; None where that was not recorded.
    """

    report: EvalReport
    mean_per_class: float
    mean_per_class_interval: tuple[float, float]
    l2: float
    held_out: dict[float, float]
    solver: str
    n_train: int
    converged: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        fit = {"l2": self.l2, "held_out": {f"{l2:g}": x for l2, x in self.held_out.items()}, "solver": self.solver}
        fit["converged"] = self.converged
        probe = {**fit, "n_train": self.n_train, "mean_per_class": self.mean_per_class}
        probe["mean_per_class_interval"] = list(self.mean_per_class_interval)
        return {"report": self.report.to_dict(), "probe": probe}


def fit_linear(
    features: np.ndarray,
    labels: np.ndarray,
    n_classes: int,
    l2: float,
    solver: Solver = "auto",
    device: str | torch.device = "cpu",
) -> LinearClassifier:
    """Return the minimum of 1/N Σᵢ CE(W xᵢ + b, yᵢ) + λ/2 |W|², multinomial logistic regression by L-BFGS.

    Args:
        features: x, (N, D), float32.
        labels: y, (N,), each class at least once.
        n_classes: C.
        l2: λ > 0; b is not penalised.
        solver: `sklearn` or `torch`, the same minimum to rounding; `auto` goes by N·D.
        device: Where torch's solver works.

    Raises:
        ValueError: If a class has no row, λ is not positive or the solver is unknown.
    """
    check_every_class(labels, n_classes)
    if l2 <= 0 or solver not in ("auto", "sklearn", "torch"):
        raise ValueError(f"Expected l2 > 0 and solver auto, sklearn or torch, but got l2 {l2} and solver {solver!r}.")
    if _chosen(solver, features) == "sklearn":
        found = _fit_sklearn(features, labels, l2, device)
    else:
        found = _fit_torch(features, labels, n_classes, l2, device)
    if not found.converged:
        logger.warning("The linear probe stopped at %d iterations with l2 = %g.", MAX_ITERATIONS, l2)
    return found


def _chosen(solver: Solver, features: np.ndarray) -> str:
    return ("sklearn" if features.size <= SKLEARN_NUMBERS else "torch") if solver == "auto" else solver


def _fit_sklearn(features: np.ndarray, labels: np.ndarray, l2: float, device: str | torch.device) -> LinearClassifier:
    both = 2 if labels.max() == 1 else 1  # two classes: one row w for both, whose halves ±w/2 count half as much
    model = LogisticRegression(C=both / (l2 * len(features)), max_iter=MAX_ITERATIONS, tol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # said by `fit_linear`
        model.fit(features.astype(np.float64), labels)
    weight, bias = model.coef_, model.intercept_
    if len(weight) == 1:
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    parts = (torch.tensor(part, dtype=torch.float32, device=device) for part in (weight, bias))
    return LinearClassifier(*parts, converged=int(max(model.n_iter_)) < MAX_ITERATIONS)


def _fit_torch(
    features: np.ndarray, labels: np.ndarray, n_classes: int, l2: float, device: str | torch.device
) -> LinearClassifier:
    x, y = torch.tensor(features, device=device), torch.tensor(labels, device=device)
    with torch.inference_mode(False), torch.enable_grad():
        weight = torch.zeros(n_classes, x.shape[1], device=device, requires_grad=True)
        bias = torch.zeros(n_classes, device=device, requires_grad=True)
        optimiser = torch.optim.LBFGS(
            [weight, bias], max_iter=MAX_ITERATIONS, max_eval=2 * MAX_ITERATIONS, tolerance_grad=1e-6,
            tolerance_change=1e-10, history_size=20, line_search_fn="strong_wolfe",
        )  # fmt: skip

        def objective() -> Tensor:
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(x @ weight.T + bias, y) + l2 / 2 * weight.square().sum()
            loss.backward()
            return loss

        optimiser.step(objective)
    done = optimiser.state[weight]
    converged = done["n_iter"] < MAX_ITERATIONS and done["func_evals"] < 2 * MAX_ITERATIONS
    return LinearClassifier(weight.detach(), bias.detach(), converged)


def _choose_l2(
    features: np.ndarray, labels: np.ndarray, n_classes: int, grid: Sequence[float] | None, seed: int, **fit: Any
) -> dict[float, float]:
    """Return λ -> accuracy on a fifth of the rows that was held out, drawn from the seed, class by class."""
    rng = np.random.default_rng([seed, len(labels)])
    held = np.zeros(len(labels), dtype=bool)
    for label in range(n_classes):
        rows = rng.permutation(np.flatnonzero(labels == label))
        held[rows[: int(HELD_OUT * len(rows))]] = True  # never a class's only row
    if not held.any():
        raise ValueError("Expected at least five training rows of some class to choose l2 on. Pass `l2=`.")

    def accuracy(l2: float) -> float:
        classifier = fit_linear(features[~held], labels[~held], n_classes, l2, **fit)
        guesses = classifier(torch.tensor(features[held], device=classifier.weight.device)).argmax(-1).cpu().numpy()
        return float((guesses == labels[held]).mean())

    found = {l2: accuracy(l2) for l2 in (L2_GRID if grid is None else grid)}
    beyond = list(WIDER) if grid is None else []
    while (best := _best_l2(found)) in (min(found), max(found)):
        further = [l2 for l2 in beyond if (l2 < best if best == min(found) else l2 > best)]
        if not further:
            break
        beside = min(further, key=lambda l2: abs(np.log(l2 / best)))
        found[beside] = accuracy(beside)
        beyond.remove(beside)
    if len(found) > 1 and best in (min(found), max(found)):
        message = "The best l2 on held-out rows, %g, is the %s of those tried; the probe may do better beyond it."
        logger.warning(message, best, "least" if best == min(found) else "greatest")
    return found


def _best_l2(found: Mapping[float, float]) -> float:
    """Return the λ of the highest accuracy, the greatest of equals."""
    return max(found, key=lambda l2: (found[l2], l2))


def linear_probe(
    model: nn.Module,
    processor: Any,
    train: datasets.Dataset,
    test: Any,
    triggers: Mapping[str, Any] | Iterable[Any] | None = None,
    ks: Sequence[int] = (1,),
    l2: float | None = None,
    l2_grid: Sequence[float] | None = None,
    solver: Solver = "auto",
    batch_size: int = 256,
    include_target: bool = False,
    canvas: Canvas | None = None,
    class_names: Sequence[str] | None = None,
    image_column: str = IMAGE,
    label_column: str = LABEL,
    cache: str | Path | None = None,
    seed: int = 0,
    progress: bool = True,
) -> ProbeReport:
    """Return BA and, for each trigger, ASR and RA of a linear classifier on the model's frozen image features.

    The classifier sees clean training images alone, as unit embeddings. Test images go through one pass, clean and
    stamped, as in `evaluate_zero_shot`; both sets are sharded over processes, of which each fits the same classifier.

    Args:
        model: Dual encoder.
        processor: Its processor.
        train: Clean labelled images to fit on.
        test: Labelled images to measure on, of the same classes.
        triggers: Attacks whose stamp is measured.
        ks: The k to report.
        l2: λ; chosen on a held-out fifth of the training rows where it is None.
        l2_grid: The λ to choose from; by default powers of ten from 1e-6 to 1e-2, and on to 1e-8 or 1e-1 while the
            best one is the last that was tried. Where it still is at the end, a line says so.
        solver: As in `fit_linear`.
        batch_size: Images a forward pass.
        include_target: Count the target's own images in ASR too.
        canvas: Geometry of the images; by default the processor's, with the framing of the triggers.
        class_names: C names that hold for both sets; by default those of the label columns, which have to agree.
        image_column: Column of images, of both sets.
        label_column: Column of class numbers, of both sets.
        cache: Folder for the training features, in shards; None keeps none. See `image_features`.
        seed: Seed of the held-out rows.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: If the two sets number their classes differently, and as `evaluate_zero_shot` and `fit_linear`.

    Reference:
        Radford et al. 2021, section 3.2 and appendix A.3 (logistic regression by L-BFGS, the weight of the penalty
        chosen on validation data); they take the features before the projection, we the embeddings that retrieval,
        zero-shot and detection see. BA and ASR as in CleanerCLIP, whose Table 2 has the accuracies.
    """
    model = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    if class_names is None:
        names = class_names_of(train, label_column)
    else:
        names = given_names(class_names, train, label_column)
    if class_names is None and isinstance(
        (getattr(test, "features", None) or {}).get(label_column), datasets.ClassLabel
    ):
        check_same_classes(names, class_names_of(test, label_column))
    task = Protocol.of(processor, test, triggers, ks, include_target, canvas, names, image_column, label_column)
    labels = training_labels(train, task)
    check_every_class(labels, len(names))  # before anything is embedded
    features = image_features(model, processor, train, task.canvas, batch_size, cache, image_column)
    fit = {"solver": _chosen(solver, features), "device": next(model.parameters()).device}
    held_out = {} if l2 is not None else _choose_l2(features, labels, len(names), l2_grid, seed, **fit)
    chosen = l2 if l2 is not None else _best_l2(held_out)
    classifier = fit_linear(features, labels, len(names), chosen, **fit)
    per_batch = max(1, batch_size // task.n_variants)
    batches = stamped_batches(task, test, per_batch, progress, "linear probe")
    report, right, seen = _measure(model, processor, task, classifier, batches)
    mean, bounds = float((right / seen).mean()), bootstrap_mean(right, seen, seed=seed)
    return ProbeReport(report, mean, bounds, chosen, held_out, str(fit["solver"]), len(labels), classifier.converged)


def _measure(
    model: nn.Module, processor: Any, task: Protocol, classifier: LinearClassifier, batches: Iterable[Batch]
) -> tuple[EvalReport, np.ndarray, np.ndarray]:
    """Return the report of all processes' batches, and right answers and images of each class that has images."""
    device, n_classes = classifier.weight.device, len(task.names)
    counts = torch.zeros(task.counts_shape, dtype=torch.int64, device=device)
    by_class = torch.zeros(2, n_classes, dtype=torch.int64, device=device)  # right, seen

    def see(embedded: Tensor, truth: Tensor) -> None:
        scores = classifier(embedded)
        counts.add_(task.count(scores, truth))
        for row, shown in zip(by_class, (truth[class_ranks(scores[0], truth) == 0], truth), strict=True):
            row.add_(torch.bincount(shown, minlength=n_classes))

    embed_batches(model, processor, batches, see)
    report = task.report(add_over_processes(counts))  # says so where nothing was counted
    right, seen = add_over_processes(by_class).numpy()
    return report, right[seen > 0], seen[seen > 0]
