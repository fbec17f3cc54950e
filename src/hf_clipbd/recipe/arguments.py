# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What the subcommands of `hf-clipbd` are called with; it imports nothing heavy, so that help comes at once."""

import argparse
from pathlib import Path
from typing import Any


TAKES_FLAGS = ("run", "poison", "train", "defend")
"""Subcommands whose further flags are keys of a configuration."""

DESCRIPTION = (
    "Backdoor attacks on CLIP, defences and detection: the whole job, its stages, and what is done with a run."
)
RUN_HELP = """\
Run every stage of a configuration that is not up to date: poison, train the victim, defend, evaluate, detect, write
cards and report. A stopped run goes on where it was; a finished stage of the same configuration is not run again.

  hf-clipbd run recipes/scenes/defend.yaml --seed 1 --output_dir runs/seed1
  hf-clipbd run recipes/scenes/defend.yaml --victim.learning_rate 1e-3 --defenses.cleanclip false

Flags are the keys of the YAML, by their dotted path.
"""
DATA_HELP = "`scenes`, a Hub id, a folder (save_to_disk, images, Parquet) or a Parquet, CSV, TSV or JSON file"
MODEL_HELP = "`scenes` (the shipped clean CLIP), a folder or a Hub id"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all subcommands."""
    parser = argparse.ArgumentParser("hf-clipbd", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run",
        help="run a whole configuration",
        description=RUN_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="hf-clipbd run CONFIG [--SECTION.KEY VALUE ...]",
    )
    run.add_argument("config", nargs="?", help="YAML, for instance recipes/scenes/defend.yaml")
    _add_poison(commands)
    _add_training(commands)
    _add_measuring(commands)
    _add_finished(commands)
    return parser


def _command(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    return commands.add_parser(name, help=text, description=text, allow_abbrev=False)


def _add_poison(commands: Any) -> None:
    poison = _command(commands, "poison", "poison a dataset; --attack.KEY VALUE sets an option of the attack")
    poison.add_argument("source", help=DATA_HELP)
    poison.add_argument("--attack", default="badnets", help="attack (default: badnets)")
    poison.add_argument("--target", required=True, help="class that the trigger is to lead to")
    amount = poison.add_mutually_exclusive_group(required=True)
    amount.add_argument("--count", type=int, help="rows to poison")
    amount.add_argument("--rate", type=float, help="share of rows to poison, in [0, 1]")
    poison.add_argument("--canvas", default="center_crop", choices=["center_crop", "squash", "native"])
    _add_data(poison)
    _add_out(poison)


def _add_training(commands: Any) -> None:
    train = _command(commands, "train", "train a victim; other flags are keys of CLIPTrainingConfig")
    train.add_argument("dataset", help=f"poisoned dataset: folder of `poison`, or {DATA_HELP}")
    train.add_argument("--model", default="scenes", help=f"model to start from: {MODEL_HELP}")
    defend = _command(commands, "defend", "defend a model; other flags are keys of the defence's configuration")
    defend.add_argument("model", help=f"model to defend: {MODEL_HELP}")
    defend.add_argument("--defense", required=True, help="ft, cleanclip or cleanerclip")
    defend.add_argument("--data", required=True, help=f"clean pairs: {DATA_HELP}")
    for one in (train, defend):
        one.add_argument("--test", help=f"labelled images to measure on after each epoch: {DATA_HELP}")
        one.add_argument("--trigger", action="append", default=[], help="folder or Hub id of a trigger; repeatable")
        _add_data(one)
        _add_out(one)


def _add_measuring(commands: Any) -> None:
    evaluate = _command(commands, "evaluate", "measure BA, ASR and RA of a model")
    evaluate.add_argument("model", help=MODEL_HELP)
    evaluate.add_argument("--data", required=True, help=f"labelled images: {DATA_HELP}")
    evaluate.add_argument("--trigger", action="append", default=[], help="folder or Hub id of a trigger; repeatable")
    evaluate.add_argument("--prompts", nargs="+", help="prompts with {} for the class name")
    evaluate.add_argument("--include_target", action="store_true", help="count the target's own images in ASR")
    evaluate.add_argument("--out", type=Path, help="JSON file for the report")
    _add_data(evaluate)
    detect = _command(commands, "detect", "score how suspicious each row of a dataset is")
    detect.add_argument("dataset", help=f"pairs: {DATA_HELP}")
    detect.add_argument("--model", required=True, help=f"the model that was trained on them: {MODEL_HELP}")
    detect.add_argument("--detectors", nargs="+", default=["k_distance", "slof"], help="keys of DETECTORS")
    detect.add_argument("--k", type=int, help="neighbours")
    detect.add_argument("--reference", type=int, help="rows that densities are measured against")
    detect.add_argument("--rates", nargs="*", type=float, default=[], help="lower poison rates to try as well")
    _add_data(detect)
    _add_out(detect)


def _add_finished(commands: Any) -> None:
    for name, what in (("report", "the report"), ("card", "the cards")):
        one = _command(commands, name, f"render {what} of a run from its records")
        one.add_argument("run", type=Path, help="run folder")
    push = _command(commands, "push", "put a model or the poisoned dataset of a run on the Hub")
    push.add_argument("run", type=Path, help="run folder")
    push.add_argument("--repo_id", required=True, help="owner/name")
    push.add_argument("--what", default="defend/cleanerclip", help="defend/NAME, victim or poison")
    push.add_argument("--public", action="store_true", help="make a new repository public")
    push.add_argument("--allow-backdoored", action="store_true", help="publish a victim or a poisoned dataset")
    verify = _command(commands, "verify", "measure BA and ASR again and compare with the records")
    verify.add_argument("run_or_repo", help="run folder, or folder or Hub id of a published model")
    verify.add_argument("--model", nargs="+", help="models of the run; all by default")
    verify.add_argument("--tolerance", type=float, default=0.005, help="largest difference (default: 0.005)")


def _add_data(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    group.add_argument("--split", help="split of the dataset")
    group.add_argument("--image_column", default="image", help="column of images or their paths (default: image)")
    group.add_argument("--caption_column", default="caption", help="column of captions (default: caption)")
    group.add_argument("--label_column", default="label", help="column of labels (default: label)")
    group.add_argument("--n", type=int, help="take the first N rows only")
    group.add_argument("--size", type=int, default=64, help="side of the canvas in pixels (default: 64)")
    group.add_argument("--seed", type=int, default=0, help="seed (default: 0)")


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, help="folder for the outputs and their record")
