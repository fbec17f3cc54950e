# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What each subcommand does with its arguments: it delegates to the stages and shows what they return."""

import argparse
import difflib
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_clipbd.cli import finished
from hf_clipbd.cli.console import Console
from hf_clipbd.cli.jobs import run_job


if TYPE_CHECKING:
    from hf_clipbd.recipe.own_data import Data

logger = logging.getLogger(__name__)


def _run(options: argparse.Namespace, extra: list[str]) -> int:
    return run_job([argument for argument in options.parser.given if argument != "--traceback"])


def data_of(options: argparse.Namespace, source: str, default_split: str) -> "Data":
    """Return the rows that the group `data` of the arguments describes.

    Args:
        options: The arguments.
        source: Where the rows come from.
        default_split: Their split where the arguments name none.
    """
    from hf_clipbd.recipe.own_data import Data

    return Data(
        source,
        options.split or default_split,
        options.image_column,
        options.caption_column,
        options.label_column,
        options.n,
        options.size,
        options.seed,
        getattr(options, "target", None) or Data.target,
    )


def flags_of(options: argparse.Namespace, extra: list[str], example: str, keys: Iterable[str]) -> dict[str, Any]:
    """Return the configuration's keys among the arguments left over.

    Args:
        options: The arguments that were understood.
        extra: Those left over.
        example: A flag such as these.
        keys: Keys of the configuration.

    Raises:
        ConfigError: If anything else is among them; the nearest key or flag of the command is named.
    """
    from hf_clipbd.recipe.sections import SYNONYMS, ConfigError, check_keys, read_flags

    positional, flags = read_flags(extra)
    if positional:
        raise ConfigError(f"Expected flags such as {example}, but got {positional}.")
    keys, own = set(keys), options.parser.flags()
    for key in flags:
        nearest = difflib.get_close_matches(key, [*own, *keys], n=1)
        if key not in keys and SYNONYMS.get(key) not in keys and nearest and nearest[0] in own:
            raise ConfigError(f"Unknown flag `--{key}`; did you mean `{own[nearest[0]]}`?")
    check_keys(flags, keys, "")
    return flags


def _poison(options: argparse.Namespace, extra: list[str]) -> int:
    console = Console.of(options)
    with console.working():
        from hf_clipbd.cli.results import after_poison, record_values
        from hf_clipbd.recipe.own_data import Data
        from hf_clipbd.recipe.poisoning import Handling, poison_data, poison_streaming, shares_of
        from hf_clipbd.recipe.sections import ConfigError
        from hf_clipbd.recipe.shown import record_lines

        flags = flags_of(options, extra, "--attack.place corner", ["attack"])
        if options.size is None:
            options.size = 64 if options.source == "scenes" else 224
        if options.target is None and options.source == "scenes":
            options.target = Data.target
        shares = shares_of(options, flags.get("attack", {}))
        handling = Handling(options.on_error, options.num_proc, options.image_format)
        data = data_of(options, options.source, "train")
        if options.streaming and len(shares) > 1:
            raise ConfigError("Expected one trigger beside `--streaming`. Poison the result once more for another.")
        if options.dry_run:
            from hf_clipbd.cli.plans import plan_poison, show_plan
            from hf_clipbd.recipe.poisoning import stream_transform

            if options.streaming:
                stream_transform(next(iter(shares.values())), data.seed, handling)
            plan = plan_poison(data, shares, options.streaming, options.out)
        elif options.streaming:
            record = poison_streaming(data, next(iter(shares.values())), handling, options.out)
        else:
            record = poison_data(data, shares, handling, options.out)
    if options.dry_run:
        return show_plan(console, plan)
    console.show(record_lines(record, options.out), record_values(record, options.out), after_poison(options))
    return 0


def check_measured(flags: Mapping[str, Any], options: argparse.Namespace) -> None:
    """Raise `ConfigError` where the keys or the arguments ask for measurements and name no images to measure on."""
    from hf_clipbd.recipe.sections import ConfigError

    off = (None, False, "no", "none", "null", "false")
    asked = [name for name in ("early_stopping_patience", "eval_strategy") if flags.get(name) not in off]
    asked += [name for name in ("trigger", "test_split") if getattr(options, name)]
    if asked and options.test is None:
        raise ConfigError(f"Expected labelled images to measure on, which `--{asked[0]}` needs. Pass --test IMAGES.")


def _train_with(options: argparse.Namespace, extra: list[str], defense: str, model: str, source: str) -> int:
    console = Console.of(options)
    with console.working():
        from dataclasses import fields

        from hf_clipbd.cli.plans import count_rows, plan_training, show_plan
        from hf_clipbd.cli.results import after_training, record_values
        from hf_clipbd.defenses import DEFENSES
        from hf_clipbd.recipe.own_data import Data
        from hf_clipbd.recipe.sections import ConfigError, check_names, parse_section
        from hf_clipbd.recipe.shown import record_lines
        from hf_clipbd.recipe.single import Probe, train_model
        from hf_clipbd.recipe.steps import training_steps
        from hf_clipbd.training.checks import check_places

        check_names([defense], DEFENSES, "--defense")
        keys = [field.name for field in fields(DEFENSES[defense].config) if field.init]
        flags = flags_of(options, extra, "--learning_rate 1e-4", keys)
        if DEFENSES[defense].needs:
            stages = ", ".join(DEFENSES[defense].needs)
            raise ValueError(f"Expected a defence of its own, but `{defense}` needs {stages}. Use `hf-clipbd run`.")
        check_measured(flags, options)
        given = {"seed": options.seed, "eval_strategy": "epoch" if options.test else "no", "disable_tqdm": "false"}
        trainer, config = DEFENSES[defense].trainer, parse_section(DEFENSES[defense].config, {**given, **flags}, "")
        check_places(config)
        if options.streaming and config.max_steps <= 0:
            raise ConfigError(
                "Expected `--max_steps N` beside `--streaming`, since nobody knows how long a stream is."
            )
        if options.streaming and options.on_error == "skip":
            raise ConfigError("Expected no `--streaming` beside `--on_error skip`, which reads every row beforehand.")
        probe = None
        if options.test:
            columns = {"image_column": options.image_column, "label_column": options.label_column}
            shown = Data(options.test, options.test_split or "test", **columns, size=options.size)
            if not options.test_split and (Path(options.test).exists() or not options.dry_run):
                shown = shown.at_lone_split()
            probe = Probe(shown, tuple(options.trigger))
        defending = source == "scenes" and options.command == "defend"
        pairs = data_of(options, source, "defense" if defending else "train")
        if options.dry_run:
            plan = plan_training(pairs, trainer, config, options.out, options.streaming, options.on_error, probe)
        else:
            rows = None if options.streaming else count_rows(pairs)
            if rows is not None:
                training_steps(trainer, config, rows)  # refuses too few before a model is loaded
            reading = options.streaming, options.on_error
            record = train_model(model, pairs, trainer, config, probe, None, options.out, *reading)
    if options.dry_run:
        return show_plan(console, plan)
    following = after_training(options, source)
    console.show(record_lines(record, options.out), record_values(record, options.out), following)
    return 0


def _train(options: argparse.Namespace, extra: list[str]) -> int:
    objectives = {"mmcl": "ft", "mmcl+ssl": "cleanclip"}  # victims are trained with these defences' losses
    return _train_with(options, extra, objectives[options.objective], options.model, options.dataset)


def _defend(options: argparse.Namespace, extra: list[str]) -> int:
    return _train_with(options, extra, options.defense, options.model, options.data)


def _evaluate(options: argparse.Namespace, extra: list[str]) -> int:
    console = Console.of(options)
    with console.working():
        from dataclasses import replace

        from hf_clipbd.cli.results import after_evaluate
        from hf_clipbd.recipe.assess import Question, at_lone_split, record_of
        from hf_clipbd.recipe.place import process_state
        from hf_clipbd.recipe.shown import evaluation_lines

        data = data_of(options, options.data, "test")
        data = data if options.split else at_lone_split(data)
        train = None
        if options.train:
            train = replace(data, source=options.train, split=options.train_split, n=options.train_n)
        prompts, ks = (None if given is None else tuple(given) for given in (options.prompts, options.ks))
        question = Question(
            options.protocol,
            tuple(options.trigger),
            options.include_target,
            prompts,
            options.class_names,
            options.templates,
            ks,
            options.l2,
        )
        figures = record_of(options.model, data, question, train, options.cache, options.out)
    if not process_state().is_main_process:
        return 0
    lines = list(evaluation_lines(figures, options.model))
    if options.out is not None:
        lines.append(f"written to {options.out}")
    console.show(lines, {"model": options.model, **figures, "out": options.out}, after_evaluate(options))
    return 0


def _default_detector(options: argparse.Namespace, data: "Data") -> str:
    """Return what ranks where nothing is said; a plan reads no data and takes them to have captions."""
    if options.dry_run or data.captioned and not data.captions_are_made:
        return "combined" if options.second else "conditional_sparsity"
    if options.second:
        return "disagreement"
    why = "captions made of labels say nothing of a row" if data.captions_are_made else "there are no captions"
    logger.info("`multi_scale` ranks, which looks at pictures alone: %s", why)
    return "multi_scale"


def _detect(options: argparse.Namespace, extra: list[str]) -> int:
    console = Console.of(options)
    with console.working():
        from hf_clipbd.cli.results import after_detect, record_values
        from hf_clipbd.detection import DETECTORS
        from hf_clipbd.recipe.basis import Basis, check_search
        from hf_clipbd.recipe.embeddings import default_cache
        from hf_clipbd.recipe.options import DetectConfig
        from hf_clipbd.recipe.place import process_state
        from hf_clipbd.recipe.sections import check_names
        from hf_clipbd.recipe.shown import record_lines
        from hf_clipbd.recipe.single import detect_in
        from hf_clipbd.recipe.suspects import Review

        data = data_of(options, options.dataset, "train")
        detectors = options.detectors or [_default_detector(options, data)]
        check_names(detectors, DETECTORS, "--detectors")
        sizes = {name: getattr(options, name) for name in ("k", "caption_share", "reference", "distilled", "rates")}
        chosen = DetectConfig(detectors=detectors, **sizes)
        review = Review(options.remove, options.shown, not options.no_filtered)
        clean = None
        if options.clean_reference:
            clean = data.reference(options.clean_reference, look=not options.dry_run)
        basis = Basis(options.on_error, options.raw, clean)
        check_search(chosen, basis, options.second)
        if options.dry_run:
            from hf_clipbd.cli.plans import plan_detect, show_plan

            plan = plan_detect(data, chosen, review, basis, options.out)
        else:
            cache = options.cache or default_cache()
            record = detect_in(options.model, options.second, data, chosen, review, cache, options.out, basis)
    if options.dry_run:
        return show_plan(console, plan)
    if not process_state().is_main_process:
        return 0
    cut = record.metrics["cut"]
    lines = [
        *record_lines(record, options.out),
        f"removed  {cut['n_removed']} of {cut['n']} pictures, with a score of {cut['threshold']:.4g} or more; "
        f"{cut['expected_clean']:.1f} expected in a clean set",
        f"page     {options.out / record.outputs['page']}",
    ]
    if "n_unreadable" in record.metrics:
        lines.append(f"skipped  {record.metrics['n_unreadable']} rows that cannot be read; they are listed there")
    console.show(lines, record_values(record, options.out), after_detect(options, record.outputs))
    return 0


ACTIONS: dict[str, Callable[[argparse.Namespace, list[str]], int]] = {
    "run": _run,
    "poison": _poison,
    "train": _train,
    "defend": _defend,
    "evaluate": _evaluate,
    "convert": finished.convert,
    "compare": finished.compare,
    "detect": _detect,
    "report": finished.report,
    "card": finished.card,
    "push": finished.push,
    "verify": finished.verify,
}
