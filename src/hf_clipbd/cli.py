# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""`hf-clipbd`: the whole job, its stages one at a time, and what is done with a finished run."""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hf_clipbd.recipe.arguments import TAKES_FLAGS, build_parser, check_poison


if TYPE_CHECKING:
    from hf_clipbd.recipe.single import Data
    from hf_clipbd.schema import RunRecord


def start_logging() -> None:
    """Show this package's headlines on standard output and keep the libraries under it quiet."""
    import datasets
    import transformers

    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("hf_clipbd")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logging.getLogger("hf_clipbd.models").setLevel(logging.WARNING)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.logging.set_verbosity_error()
    datasets.disable_progress_bars()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit status: 0, 1 if a verification failed, 2 for an error."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = build_parser()
    options, extra = parser.parse_known_args(arguments)
    check_poison(parser, options)
    if options.command == "run":
        extra = arguments[arguments.index("run") + 1 :]
    elif extra and options.command not in TAKES_FLAGS:
        parser.error(f"unknown arguments: {' '.join(extra)}")
    name = f"hf-clipbd {options.command}"
    return _guarded(name, lambda: ACTIONS[options.command](options, extra), options.traceback)


def script(name: str, text: str, act: Callable[[list[str]], int], arguments: Sequence[str]) -> int:
    """Return the exit status of a recipe: help on `-h`, `act` on the other arguments, one line for an error.

    Args:
        name: Name of the script.
        text: Its help.
        act: What it does.
        arguments: Its command line; `--traceback` shows where an error came from.
    """
    if {"-h", "--help"} & set(arguments):
        print(text)
        return 0
    given = [argument for argument in arguments if argument != "--traceback"]
    return _guarded(name, lambda: act(given), len(given) < len(arguments))


def _guarded(name: str, act: Callable[[], int], traceback: bool) -> int:
    """Return what `act` returns, or 2 after one line on standard error for what is wrong with input, data or files."""
    try:
        return act()
    except (ValueError, TypeError, OSError, ImportError) as error:
        if traceback:
            raise
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def run_job(arguments: Sequence[str], default: Path | None = None) -> int:
    """Run a whole configuration (a YAML, then flags), print the final table and where things lie, and return 0."""
    from hf_clipbd.recipe import load_config

    config = load_config(arguments, default)
    start_logging()

    from accelerate import PartialState

    from hf_clipbd.recipe import run

    table = run(config)
    if PartialState().is_main_process:
        out = config.output_dir
        print(f"\n{table}")
        print(f"table    {out / 'table.md'}\nreport   {out / 'report' / 'report.html'}")
        models = ["victim", *(f"defend/{name}" for name in config.defenses)]
        print("models   " + ", ".join(str(out / name) for name in models))
        print(f"poison   {out / 'poison'} (manifest, trigger, dataset)")
    return 0


def run_stage(stage: str, arguments: Sequence[str], default: Path | None = None) -> int:
    """Run one stage of a configuration, the stages before it having been run, and return 0.

    Args:
        stage: `clean`, `poison`, `victim`, `evaluate` or `detect`.
        arguments: A YAML, then flags.
        default: The YAML where the arguments name none.
    """
    from hf_clipbd.recipe import load_config

    config = load_config(arguments, default)
    start_logging()

    from accelerate import PartialState

    from hf_clipbd.recipe.job import run_stage as run_one

    for record in run_one(config, stage):
        if PartialState().is_main_process:
            _show(record, config.output_dir / record.stage)
    return 0


def run_grid(arguments: Sequence[str], default: Path | None = None) -> int:
    """Train the cells of a grid on finished runs (a YAML, then flags), print the table and where it lies, return 0."""
    from hf_clipbd.recipe import load_grid

    grid = load_grid(arguments, default)
    start_logging()

    from accelerate import PartialState

    from hf_clipbd.recipe import run_grid as run_cells

    table = run_cells(grid)
    if PartialState().is_main_process:
        print(f"\n{table}\nwritten to {Path(grid.options.output_dir) / 'table.md'}")
    return 0


def _show(record: "RunRecord", folder: Path) -> None:
    from hf_clipbd.recipe.shown import record_lines

    print("\n".join(record_lines(record, folder)))


# -- the subcommands --------------------------------------------------------------------------------------------------


def _run(options: argparse.Namespace, extra: list[str]) -> int:
    return run_job(extra)


def _data(options: argparse.Namespace, source: str, default_split: str) -> "Data":
    from hf_clipbd.recipe.single import Data

    return Data(
        source,
        options.split or default_split,
        options.image_column,
        options.caption_column,
        options.label_column,
        options.n,
        options.size,
        options.seed,
        getattr(options, "target", "banana"),
    )


def _poison(options: argparse.Namespace, extra: list[str]) -> int:
    from hf_clipbd.recipe.sections import ConfigError, check_keys, read_flags

    positional, flags = read_flags(extra)
    if positional:
        raise ConfigError(f"Expected flags such as --attack.place corner, but got {positional}.")
    check_keys(flags, ["attack"], "")
    start_logging()
    from hf_clipbd.recipe.poisoning import Handling, attack_lines, poison_data, poison_streaming, shares_of

    if options.list_attacks:
        print("\n".join(attack_lines()))
        return 0
    if options.size is None:
        options.size = 64 if options.source == "scenes" else 224
    shares = shares_of(options, flags.get("attack", {}))
    handling = Handling(options.on_error, options.num_proc, options.image_format)
    data = _data(options, options.source, "train")
    if options.streaming:
        if len(shares) > 1:
            raise ConfigError("Expected one trigger beside `--streaming`. Poison the result once more for another.")
        record = poison_streaming(data, next(iter(shares.values())), handling, options.out)
    else:
        record = poison_data(data, shares, handling, options.out)
    _show(record, options.out)
    return 0


def _train_with(options: argparse.Namespace, extra: list[str], defense: str, model: str, source: str) -> int:
    from hf_clipbd.recipe.sections import check_names, parse_section, read_flags

    positional, flags = read_flags(extra)
    if positional:
        raise ValueError(f"Expected flags such as --learning_rate 1e-4, but got {positional}.")
    start_logging()
    from hf_clipbd.defenses import DEFENSES
    from hf_clipbd.recipe.single import Data, Probe, train_model

    check_names([defense], DEFENSES, "--defense")
    if DEFENSES[defense].needs:
        stages = ", ".join(DEFENSES[defense].needs)
        raise ValueError(f"Expected a defence of its own, but `{defense}` needs {stages}. Use `hf-clipbd run`.")
    given = {"seed": options.seed, "eval_strategy": "epoch" if options.test else "no", "disable_tqdm": "false"}
    config = parse_section(DEFENSES[defense].config, {**given, **flags}, "")
    probe = None
    if options.test:
        labelled = Data(
            options.test, "test", options.image_column, label_column=options.label_column, size=options.size
        )
        probe = Probe(labelled, tuple(options.trigger))
    pairs = _data(options, source, "defense" if source == "scenes" and options.command == "defend" else "train")
    record = train_model(model, pairs, DEFENSES[defense].trainer, config, probe, None, options.out)
    _show(record, options.out)
    return 0


def _train(options: argparse.Namespace, extra: list[str]) -> int:
    objectives = {"mmcl": "ft", "mmcl+ssl": "cleanclip"}  # victims are trained with these defences' losses
    return _train_with(options, extra, objectives[options.objective], options.model, options.dataset)


def _defend(options: argparse.Namespace, extra: list[str]) -> int:
    return _train_with(options, extra, options.defense, options.model, options.data)


def _evaluate(options: argparse.Namespace, extra: list[str]) -> int:
    start_logging()
    from dataclasses import replace

    from hf_clipbd.recipe.assess import Question, record_of
    from hf_clipbd.recipe.shown import evaluation_lines

    data = _data(options, options.data, "test")
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
    print("\n".join(evaluation_lines(figures, options.model)))
    if options.out is not None:
        print(f"written to {options.out}")
    return 0


def _convert(options: argparse.Namespace, extra: list[str]) -> int:
    start_logging()
    from hf_clipbd.models.convert import convert_file

    model = convert_file(options.file, options.out, options.tokenizer, options.activation)
    shape = model.config.vision_config
    print(f"CLIPResNet {tuple(shape.layers)} x {shape.width}, {shape.image_size} px, written to {options.out}")
    return 0


def _compare(options: argparse.Namespace, extra: list[str]) -> int:
    from hf_clipbd.recipe.assess import compare_records

    chosen = (options.names, options.baseline, options.ks, options.format, options.plot)
    print(compare_records(options.records, *chosen), end="")
    return 0


def _detect(options: argparse.Namespace, extra: list[str]) -> int:
    start_logging()
    from hf_clipbd.detection import DETECTORS
    from hf_clipbd.recipe.embeddings import default_cache
    from hf_clipbd.recipe.options import DetectConfig
    from hf_clipbd.recipe.sections import check_names
    from hf_clipbd.recipe.single import detect_in
    from hf_clipbd.recipe.suspects import Review

    detectors = options.detectors or ["disagreement" if options.second else "multi_scale"]
    check_names(detectors, DETECTORS, "--detectors")
    chosen = DetectConfig(detectors=detectors, k=options.k, reference=options.reference, rates=options.rates)
    review = Review(options.remove, options.shown, not options.no_filtered)
    data = _data(options, options.dataset, "train")
    cache = options.cache or default_cache()
    record = detect_in(options.model, options.second, data, chosen, review, cache, options.out)
    _show(record, options.out)
    cut = record.metrics["cut"]
    print(
        f"removed  {cut['n_removed']} of {cut['n']} pictures, with a score of {cut['threshold']:.4g} or more; "
        f"{cut['expected_clean']:.1f} expected in a clean set"
    )
    print(f"page     {options.out / record.outputs['page']}")
    return 0


def _report(options: argparse.Namespace, extra: list[str]) -> int:
    from hf_clipbd.report import comparison_table, write_report

    path = write_report(options.run)
    print(comparison_table(options.run))
    print(f"written to {path}")
    return 0


def _card(options: argparse.Namespace, extra: list[str]) -> int:
    from hf_clipbd.hub import write_cards

    for path in write_cards(options.run):
        print(f"written to {path}")
    return 0


def _push(options: argparse.Namespace, extra: list[str]) -> int:
    from hf_clipbd.hub import push_run

    address = push_run(options.run, options.repo_id, options.what, not options.public, options.allow_backdoored)
    print(f"{options.what} is at {address}")
    return 0


def _verify(options: argparse.Namespace, extra: list[str]) -> int:
    start_logging()
    from hf_clipbd.recipe.verify import verify

    failed = 0
    print(f"{'model':14} {'figure':20} {'recorded':>9} {'measured':>9}")
    for one in verify(options.run_or_repo, options.model, options.revision, options.data):
        agrees = abs(one.recorded - one.measured) <= options.tolerance
        failed += not agrees
        values = f"{100 * one.recorded:9.2f} {100 * one.measured:9.2f}"
        print(f"{one.model:14} {one.figure:20} {values}  {'as recorded' if agrees else 'DIFFERS'}")
    return 1 if failed else 0


ACTIONS: dict[str, Callable[[argparse.Namespace, list[str]], int]] = {
    "run": _run,
    "poison": _poison,
    "train": _train,
    "defend": _defend,
    "evaluate": _evaluate,
    "convert": _convert,
    "compare": _compare,
    "detect": _detect,
    "report": _report,
    "card": _card,
    "push": _push,
    "verify": _verify,
}


if __name__ == "__main__":
    sys.exit(main())
