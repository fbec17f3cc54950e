# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The subcommands that render, compare, publish and check what a run left, and the one that converts a model."""

import argparse
import shlex

from hf_clipbd.cli.console import Console


def convert(options: argparse.Namespace, extra: list[str]) -> int:
    """Convert a checkpoint, say what it is, and return 0."""
    console = Console.of(options)
    with console.working():
        from hf_clipbd.models.convert import convert_file

        shape = convert_file(options.file, options.out, options.tokenizer, options.activation).config.vision_config
    line = f"CLIPResNet {tuple(shape.layers)} x {shape.width}, {shape.image_size} px, written to {options.out}"
    values = {"layers": list(shape.layers), "width": shape.width, "image_size": shape.image_size}
    following = [f"hf-clipbd evaluate {shlex.quote(str(options.out))} --data LABELLED_IMAGES"]
    console.show([line], {**values, "out": options.out}, following)
    return 0


def compare(options: argparse.Namespace, extra: list[str]) -> int:
    """Print the table of some evaluations and return 0; as JSON its rows, with rates in [0, 1]."""
    from hf_clipbd.evaluation.comparison import flat, render
    from hf_clipbd.recipe.assess import compare_records

    console = Console.of(options)
    rows = compare_records(options.records, options.names, options.baseline, options.ks, options.plot)
    lines = [] if options.json else [render(rows, options.format).rstrip("\n")]
    console.show(lines, [flat(row) for row in rows])
    return 0


def report(options: argparse.Namespace, extra: list[str]) -> int:
    """Render the report of a run, print its table, and return 0."""
    from hf_clipbd.report import comparison_table, write_report

    path = write_report(options.run)
    lines = [comparison_table(options.run), f"written to {path}"]
    Console.of(options).show(lines, {"report": path})
    return 0


def card(options: argparse.Namespace, extra: list[str]) -> int:
    """Render the cards of a run and return 0."""
    from hf_clipbd.hub import write_cards

    paths = list(write_cards(options.run))
    console = Console.of(options)
    following = [f"hf-clipbd push {shlex.quote(str(options.run))} --repo_id OWNER/NAME"]
    console.show([f"written to {path}" for path in paths], {"cards": list(map(str, paths))}, following)
    return 0


def push(options: argparse.Namespace, extra: list[str]) -> int:
    """Publish a model or the poisoned set of a run, or say what that would send, say where, and return 0."""
    from hf_clipbd.hub import plan_push, push_run

    chosen = (options.run, options.repo_id, options.what, not options.public, options.allow_backdoored)
    if options.dry_run:
        from hf_clipbd.cli.plan_push import show_push

        return show_push(Console.of(options), plan_push(*chosen, base=options.base))
    address = push_run(*chosen, base=options.base)
    values = {"what": options.what, "repo_id": options.repo_id, "address": address}
    following = [] if options.what == "poison" else [f"hf-clipbd verify {options.repo_id}"]
    Console.of(options).show([f"{options.what} is at {address}"], values, following)
    return 0


def verify(options: argparse.Namespace, extra: list[str]) -> int:
    """Measure again, print each figure beside the recorded one, and return 1 if one differs, else 0."""
    console = Console.of(options)
    values, lines = [], [f"{'model':14} {'figure':20} {'recorded':>9} {'measured':>9}"]
    with console.working():
        from hf_clipbd.recipe.verify import verify as measured_again

        for one in measured_again(options.run_or_repo, options.model, options.revision, options.data):
            agrees = abs(one.recorded - one.measured) <= options.tolerance
            figures = f"{100 * one.recorded:9.2f} {100 * one.measured:9.2f}"
            lines.append(f"{one.model:14} {one.figure:20} {figures}  {'as recorded' if agrees else 'DIFFERS'}")
            values.append({**vars(one), "agrees": agrees})
    console.show(lines, values)
    return 0 if all(one["agrees"] for one in values) else 1
