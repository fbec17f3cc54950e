# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""One evaluation of one model by any protocol, on data of one's own: what `hf-clipbd evaluate` and `compare` do."""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import datasets

from hf_clipbd.data.sources import find_column, pick_columns
from hf_clipbd.evaluation import evaluate_retrieval, evaluate_zero_shot, linear_probe, load_benchmark
from hf_clipbd.evaluation.comparison import ComparisonRow, compare, read_report
from hf_clipbd.evaluation.labelled import (
    LabelledImages,
    is_benchmark,
    read_class_names,
    read_templates,
    uses_mean_per_class,
)
from hf_clipbd.evaluation.protocol import check_same_classes, class_names_of, on_pictures
from hf_clipbd.features import model_fingerprint
from hf_clipbd.recipe.fingerprints import data_fingerprint, processor_fingerprint
from hf_clipbd.recipe.overlap import check_apart
from hf_clipbd.recipe.own_data import Data
from hf_clipbd.recipe.own_triggers import told_apart, triggers_by_name
from hf_clipbd.recipe.place import model_device, process_state
from hf_clipbd.recipe.single import load_any
from hf_clipbd.recipe.stage import check_folder
from hf_clipbd.report.comparison import plot_comparison
from hf_clipbd.schema import (
    CAPTION,
    IMAGE,
    LABEL,
    RECORD_FILE,
    TOP_K,
    EvalReport,
    Rate,
    RunRecord,
    content_key,
    reachable,
    write_json,
)


logger = logging.getLogger(__name__)

PROTOCOLS = ("zero_shot", "linear_probe", "retrieval")
EVALUATION = "evaluate"
"""What the record of an evaluation says that it is of."""


@dataclass(frozen=True)
class Question:
    """What is asked of a model.

    Args:
        protocol: One of `PROTOCOLS`.
        triggers: Folders or Hub ids of triggers.
        include_target: Count the target's own images in ASR too, as the papers do.
        prompts: Prompts with `{}`; those of the data, or OpenAI's 80, by default.
        class_names: Text file of class names, one a line; those of the data by default.
        templates: Text file of prompts, one a line.
        ks: The k to report; 1, 3, 5 and 10 (1, 5 and 10 in retrieval), as far as there are classes, by default.
        l2: Penalty of the linear probe; chosen on held-out rows by default.
    """

    protocol: str = "zero_shot"
    triggers: tuple[str, ...] = ()
    include_target: bool = False
    prompts: tuple[str, ...] | None = None
    class_names: str | None = None
    templates: str | None = None
    ks: tuple[int, ...] | None = None
    l2: float | None = None

    def __post_init__(self):
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"Expected a protocol out of {PROTOCOLS}, but got {self.protocol!r}.")


def labelled_images(data: Data, question: Question, streaming: bool) -> LabelledImages:
    """Return labelled images with class names and prompts: from a file, the data's repository, or its own labels.

    Args:
        data: Where the rows come from; `clip-benchmark/wds_*`, or a folder of that layout, brings both text files.
        question: Names and prompts that go first.
        streaming: Whether shards of a benchmark are read one after the other.
    """
    names = read_class_names(question.class_names) if question.class_names else None
    templates = question.prompts or (read_templates(question.templates) if question.templates else None)
    if is_benchmark(data.source):
        found = load_benchmark(data.source, data.split, streaming)
        rows = found.dataset
        if data.n is not None:
            rows = rows.take(data.n if streaming else min(data.n, len(rows)))
            _say_if_classes_lack(rows.select_columns([found.label_column]), data, len(found.class_names))
        prompts = tuple(templates or found.templates or ()) or None
        return replace(found, dataset=rows, class_names=tuple(names or found.class_names), templates=prompts)
    rows = data.labelled(tuple(names or ()))
    own = class_names_of(rows, LABEL)
    return LabelledImages(rows, tuple(names or own), tuple(templates or data.prompts() or ()) or None)


def _say_if_classes_lack(labels: Any, data: Data, n_classes: int) -> None:
    """Log a line where the first `data.n` rows of a benchmark do not show every class; only labels are decoded."""
    if not process_state().is_main_process:
        return
    found = [label for row in labels for label in row.values()]
    if len(found) == data.n and (shown := len(set(found))) < n_classes:
        message = "the first %d rows of %s show %d of its %d classes; shuffle it first, or take more rows"
        logger.warning(message, data.n, data.source, shown, n_classes)


def at_lone_split(data: Data) -> Data:
    """Return the data at the only split that they have, where it is called otherwise; a benchmark has its own."""
    return data if is_benchmark(data.source) else data.at_lone_split()


def captioned(data: Data) -> tuple[datasets.Dataset, str]:
    """Return rows with a picture and a caption or a list of captions, and the column of the captions."""
    rows = data.whole()
    caption = find_column(rows, CAPTION, data.caption_column)
    if caption not in rows.features or isinstance(rows.features[caption], datasets.Value):
        return data.pairs(), CAPTION
    return pick_columns(rows, image=find_column(rows, IMAGE, data.image_column), captions=caption), "captions"


def assess(
    model: str, data: Data, question: Question, train: Data | None = None, cache: Path | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the figures of one evaluation and what they were measured on.

    Args:
        model: `scenes`, a folder or a Hub id.
        data: Labelled images; pairs for retrieval.
        train: Clean labelled images of the linear probe.
        cache: Folder for text classifiers and probe features; None keeps none.

    Returns:
        `{"report": ...}` with rates beside their n, and the fingerprints of model and data.

    Raises:
        ValueError: If the linear probe has no training images, or none but test images (see `check_apart`), or
            retrieval no captions, or as the protocols.
    """
    if question.protocol == "linear_probe" and train is None:
        raise ValueError("Expected training images for the linear probe. Pass `--train`.")
    if question.protocol == "retrieval" and data.captions_are_made:
        raise ValueError(
            f"Expected captions for retrieval, but `{data.source}` has labels alone, and captions made of these tell "
            "classes only. Name the column of captions (`--caption_column`)."
        )
    loaded, processor = load_any(model)
    triggers = triggers_by_name(question.triggers)
    inputs = {"model": model_fingerprint(loaded), "processor": processor_fingerprint(processor)}
    loaded = loaded.to(model_device())
    if question.protocol == "retrieval":
        pairs, column = captioned(data)
        report = evaluate_retrieval(loaded, processor, pairs, triggers, ks=question.ks, caption_column=column)
        return {"retrieval": report.to_dict()}, {**inputs, "data": data_fingerprint(pairs)}
    triggers = on_pictures(triggers) or triggers  # refused where all of them are in the text
    shown = labelled_images(data, question, streaming=question.protocol == "zero_shot")
    ks = question.ks or reachable(TOP_K, len(shown.class_names))
    common = {
        "include_target": question.include_target,
        "class_names": shown.class_names,
        "image_column": shown.image_column,
        "label_column": shown.label_column,
        "cache": cache,
    }
    mapped = isinstance(shown.dataset, datasets.Dataset)
    inputs["data"] = data_fingerprint(shown.dataset) if mapped else f"{data.source}/{data.split}, streamed"
    if question.protocol == "zero_shot":
        report = evaluate_zero_shot(loaded, processor, shown.dataset, triggers, shown.templates, ks, **common)
        return {"report": report.to_dict()}, inputs
    images = labelled_images(train, question, streaming=False)
    check_same_classes(images.class_names, shown.class_names)
    columns = {images.image_column: shown.image_column, images.label_column: shown.label_column}
    renamed = {old: new for old, new in columns.items() if old != new}
    fitted = images.dataset.rename_columns(renamed) if renamed else images.dataset
    check_apart(shown.dataset, fitted, shown.image_column)
    probe = linear_probe(loaded, processor, fitted, shown.dataset, triggers, ks, question.l2, **common).to_dict()
    by_class = uses_mean_per_class(data.source)
    accuracy = probe["probe"]["mean_per_class"] if by_class else probe["report"]["ba"][str(ks[0])]["value"]
    probe["probe"] |= {"headline": "mean per class" if by_class else f"accuracy@{ks[0]}", "accuracy": accuracy}
    return probe, {**inputs, "train": data_fingerprint(fitted)}


def intervals(values: Any) -> Any:
    """Return the same tree with `[low, high]`, the 95 % Wilson interval, in the place of each rate; nothing else.

    Example:
        >>> found = intervals({"ba": {"1": {"value": 0.5, "n": 4}}, "n_classes": 2})
        >>> [round(bound, 4) for bound in found["ba"]["1"]], list(found)
        ([0.15, 0.85], ['ba'])
    """
    if not isinstance(values, Mapping):
        return None
    if set(values) == {"value", "n"}:
        return list(Rate(**values).interval())
    found = {key: intervals(value) for key, value in values.items()}
    return {key: value for key, value in found.items() if value} or None


def record_of(
    model: str, data: Data, question: Question, train: Data | None, cache: Path | None, out: Path | None
) -> dict[str, Any]:
    """Run an evaluation, keep it, and return its figures.

    Args:
        out: A `.json` file for the bare report, a folder for the whole record (with intervals, fingerprints, versions
            and command), or None.

    Raises:
        ValueError: If that is a folder with anything else than an earlier evaluation in it, or as `assess`.
    """
    start = time.perf_counter()
    if out is not None:
        _check_place(out)
    figures, inputs = assess(model, data, question, train, cache)
    if not process_state().is_main_process:
        return figures
    if out is not None and out.suffix == ".json":
        write_json(out, figures.get("report") or figures["retrieval"])
    elif out is not None:
        config = {"model": model, "data": asdict(data), "train": train and asdict(train), "question": asdict(question)}
        metrics = {**figures, "intervals": intervals(figures)}
        seconds = round(time.perf_counter() - start, 3)
        key, kept = content_key(config, inputs), {"kind": EVALUATION, **config}
        RunRecord("evaluate", key, kept, metrics, data.seed, inputs, seconds=seconds).save(out)
    return figures


def _check_place(out: Path) -> None:
    """Raise `ValueError` where an evaluation would take the place of what something else left."""
    if out.name == RECORD_FILE:
        raise ValueError(f"Expected a folder for the record, or a report of another name, but got `{out}`.")
    if out.suffix != ".json":
        check_folder(out, EVALUATION)


def compare_records(
    paths: Sequence[Path],
    names: Sequence[str] | None = None,
    baseline: str | None = None,
    ks: Sequence[int] | None = None,
    plot: Path | None = None,
) -> list[ComparisonRow]:
    """Return the rows of the table of any number of evaluations, and draw it where `plot` names a picture.

    Args:
        paths: Records, folders that hold one, or bare reports.
        names: What to call them; the shortest ends of the paths that tell them apart by default.
        baseline: Name of the undefended model that DER refers to.

    Raises:
        FileNotFoundError: If a path holds no evaluation.
        ValueError: If two have the same name, or as `compare`.
    """
    called = list(names) if names else _names_of(paths)
    if len(called) != len(paths) or len(set(called)) < len(called):
        raise ValueError(f"Expected a name of its own for each of {len(paths)} evaluations, but got {called}.")
    reports = {name: _report_at(path) for name, path in zip(called, paths, strict=True)}
    rows = compare(reports, baseline, ks)
    if plot is not None:
        plot_comparison(rows, plot)
    return rows


def _report_at(path: Path) -> EvalReport:
    try:
        return read_report(path)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"Expected an evaluation in `{path}`, but its JSON is cut short or broken: {error}."
        ) from error


def _names_of(paths: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths that tell evaluations apart; a file `record.json` goes by its folder."""
    parts = [path.resolve().with_suffix("").parts for path in paths]
    return told_apart([one[:-1] if one[-1] == "record" else one for one in parts])
