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
POISON_HELP = """\
Poison a dataset: stamp a trigger on some of its pictures, replace their captions, and leave every other row as it is,
byte for byte. The folder gets the dataset (columns image, caption, is_poisoned, source_index, trigger), the manifest
(which rows, how, from what), the trigger for evaluation, and samples to look at. Nothing is written if a row fails.

  hf-clipbd poison scenes --attack badnets --count 50 --out poisoned
  hf-clipbd poison cc3m/Train.tsv --attack blended --count 1500 --out poisoned
  hf-clipbd poison photos/ --attack sig --preset backdoorbench --rate 0.003 --captions natural --out poisoned
  hf-clipbd poison 'shards/{00000..00331}.tar' --attack wanet --rate 0.003 --streaming --out poisoned
  hf-clipbd poison owner/dataset --attack badnets --attack.place corner --attack.pattern logo.png --count 9 --out p
  hf-clipbd poison photos/ --config triggers.yaml --out poisoned

SOURCE is a Hub id; a folder of pictures with metadata.csv or metadata.jsonl (file_name and a caption), of Parquet
files, of WebDataset shards, or written by save_to_disk; or a Parquet, CSV, TSV, JSON or .tar file. In a table, paths
are relative to it, and a first row that is data, not names, is recognised.

The YAML of --config lists triggers, each with an attack, count or rate, a target and options of the attack:

  triggers:
    corner: {attack: badnets, target: banana, count: 100, place: corner}
    wave:   {attack: sig, target: airplane, rate: 0.002}
"""
DATA_HELP = (
    "`scenes`, a Hub id, a folder (save_to_disk, images, Parquet, WebDataset) or a Parquet, CSV, TSV, JSON or tar file"
)
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
    _add_models(commands)
    _add_finished(commands)
    return parser


def check_poison(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Exit with usage where `poison` was called without source, amount or folder, or with contradicting ones."""
    if options.command != "poison" or options.list_attacks:
        return
    if options.source is None or options.out is None:
        parser.error("poison: the source and --out are required")
    if (options.count is None and options.rate is None) == (options.config is None):
        parser.error("poison: just one of --count, --rate and --config is required")


def _command(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    return commands.add_parser(name, help=text, description=text, allow_abbrev=False)


def _add_poison(commands: Any) -> None:
    poison = commands.add_parser(
        "poison",
        help="poison a dataset of images and captions",
        description=POISON_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="hf-clipbd poison SOURCE (--count N | --rate R | --config YAML) --out DIR [options]",
        allow_abbrev=False,
    )
    poison.add_argument("source", nargs="?", help=DATA_HELP)
    attack = poison.add_argument_group("attack")
    attack.add_argument("--attack", default="badnets", metavar="NAME", help="attack (default: badnets)")
    attack.add_argument("--attack.KEY", dest="_", metavar="VALUE", help="option of the attack; see --list_attacks")
    attack.add_argument("--preset", metavar="NAME", help="the attack as a paper or its public code has it")
    attack.add_argument(
        "--list_attacks", action="store_true", help="show attacks, their options and presets, and stop"
    )
    attack.add_argument("--target", default="banana", help="class the trigger is to lead to (default: banana)")
    attack.add_argument(
        "--captions",
        default=None,
        metavar="templates|keep|natural|FILE",
        help="captions of poisoned rows: OpenAI's 80 prompts with the target (the default), the row's own "
        "(label-consistent), captions of the data that name the target, or the lines of a file, {} for the target",
    )
    attack.add_argument("--config", metavar="YAML", help="several triggers in one dataset, in place of the above")
    rows = poison.add_argument_group("rows")
    amount = rows.add_mutually_exclusive_group()
    amount.add_argument("--count", type=int, metavar="N", help="rows to poison, exactly so many")
    amount.add_argument("--rate", type=float, metavar="R", help="share of rows to poison, in [0, 1]")
    rows.add_argument("--selector", help="random, label_consistent or non_target (default: the attack's own)")
    rows.add_argument(
        "--on_error",
        default="raise",
        choices=["raise", "skip"],
        help="stop at a row that cannot be poisoned (default), or take another and list it in the manifest",
    )
    pictures = poison.add_argument_group("pictures")
    pictures.add_argument(
        "--canvas",
        default="center_crop",
        choices=["center_crop", "squash", "native"],
        help="how a poisoned picture is framed before it is stamped (default: center_crop)",
    )
    pictures.add_argument(
        "--image_format", default="webp", choices=["webp", "png"], help="lossless storage (default: webp)"
    )
    work = poison.add_argument_group("work")
    work.add_argument("--num_proc", type=int, metavar="N", help="processes that stamp (default: 1)")
    work.add_argument(
        "--streaming", action="store_true", help="read, poison and write Parquet row by row, in constant memory"
    )
    _add_data(poison, None, "side of the canvas in pixels (default: 224, of scenes 64)")
    poison.add_argument("--out", type=Path, help="folder for the outputs and their record")


def _add_training(commands: Any) -> None:
    train = _command(commands, "train", "train a victim; other flags are keys of CLIPTrainingConfig")
    train.add_argument("dataset", help=f"poisoned dataset: folder of `poison`, or {DATA_HELP}")
    train.add_argument("--model", default="scenes", help=f"model to start from: {MODEL_HELP}")
    objectives = {"default": "mmcl", "choices": ["mmcl", "mmcl+ssl"]}
    train.add_argument("--objective", **objectives, help="image-text loss, or with in-modal terms (default: mmcl)")
    defend = _command(commands, "defend", "defend a model; other flags are keys of the defence's configuration")
    defend.add_argument("model", help=f"model to defend: {MODEL_HELP}")
    defend.add_argument("--defense", required=True, help="key of hf_clipbd.defenses.DEFENSES")
    defend.add_argument("--data", required=True, help=f"clean pairs: {DATA_HELP}")
    for one in (train, defend):
        one.add_argument("--test", help=f"labelled images to measure on after each epoch: {DATA_HELP}")
        one.add_argument("--trigger", action="append", default=[], help="folder or Hub id of a trigger; repeatable")
        _add_data(one)
        _add_out(one)


def _add_measuring(commands: Any) -> None:
    evaluate = _command(commands, "evaluate", "measure BA, ASR and RA of a model")
    evaluate.add_argument("model", help=MODEL_HELP)
    benchmark = "clip-benchmark/wds_* or a folder of its layout (with its class names and prompts)"
    evaluate.add_argument("--data", required=True, help=f"labelled images: {benchmark}, {DATA_HELP}")
    protocols = ["zero_shot", "linear_probe", "retrieval"]
    evaluate.add_argument("--protocol", default="zero_shot", choices=protocols, help="(default: zero_shot)")
    evaluate.add_argument("--train", help="clean labelled images that the linear probe is fitted on")
    evaluate.add_argument("--train_split", default="train", help="their split (default: train)")
    evaluate.add_argument("--train_n", type=int, help="take the first N of them only")
    evaluate.add_argument("--l2", type=float, help="penalty of the linear probe (default: chosen on held-out rows)")
    evaluate.add_argument("--class_names", help="text file of class names, one a line")
    evaluate.add_argument("--templates", help="text file of prompts with {} or {c}, one a line")
    evaluate.add_argument("--ks", nargs="+", type=int, help="top k to report (default: 1 3 5 10)")
    evaluate.add_argument("--cache", type=Path, help="where text classifiers and probe features are kept")
    evaluate.add_argument("--trigger", action="append", default=[], help="folder or Hub id of a trigger; repeatable")
    evaluate.add_argument("--prompts", nargs="+", help="prompts with {} for the class name")
    evaluate.add_argument("--include_target", action="store_true", help="count the target's own images in ASR")
    evaluate.add_argument("--out", type=Path, help="folder for the record, or a JSON file for the bare report")
    _add_data(evaluate)
    detect = _command(commands, "detect", "score how suspicious each row of a dataset is")
    detect.add_argument("dataset", help=f"pairs: {DATA_HELP}")
    detect.add_argument("--model", required=True, help=f"the model that was trained on them: {MODEL_HELP}")
    detect.add_argument(
        "--detectors",
        nargs="+",
        help="keys of DETECTORS, the first ranks and filters (default: multi_scale; with --second disagreement)",
    )
    detect.add_argument("--second", help=f"another encoder to compare with, one that never saw the data: {MODEL_HELP}")
    detect.add_argument("--k", type=int, help="neighbours")
    detect.add_argument("--reference", type=int, help="rows that densities are measured against")
    detect.add_argument("--rates", nargs="*", type=float, default=[], help="lower poison rates to try as well")
    detect.add_argument("--remove", type=float, default=0.01, help="share of rows to filter out (default: 0.01)")
    detect.add_argument("--shown", type=int, default=80, help="groups and single rows on the page (default: 80)")
    detect.add_argument("--no_filtered", action="store_true", help="do not write the filtered dataset")
    detect.add_argument("--cache", type=Path, help="where embeddings are kept (default: in the Hugging Face home)")
    _add_data(detect)
    _add_out(detect)


def _add_models(commands: Any) -> None:
    convert = _command(commands, "convert", "convert OpenAI's or open_clip's ResNet CLIP to a folder of safetensors")
    convert.add_argument("file", type=Path, help=".safetensors, .pt or TorchScript archive; nothing in it is run")
    convert.add_argument("--tokenizer", help="folder or Hub id of CLIP's tokenizer (default: OpenAI's, from the Hub)")
    activation = "activation of the text tower: gelu for open_clip's models without `-quickgelu`"
    convert.add_argument("--activation", default="quick_gelu", choices=["quick_gelu", "gelu"], help=activation)
    _add_out(convert)
    compare = _command(commands, "compare", "set any number of evaluations side by side")
    compare.add_argument("records", nargs="+", type=Path, help="records, their folders, or reports of `evaluate`")
    compare.add_argument("--names", nargs="+", help="what to call them")
    compare.add_argument("--baseline", help="name of the undefended model, for DER")
    compare.add_argument("--ks", nargs="+", type=int, help="top k to show")
    formats = ["terminal", "markdown", "latex", "csv"]
    compare.add_argument("--format", default="terminal", choices=formats, help="(default: terminal)")
    compare.add_argument("--plot", type=Path, help="picture to draw: .png, .pdf or .svg")


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
    verify.add_argument("--revision", help="branch, tag or commit of a published model")
    verify.add_argument("--data", help="labelled images of a published model, where its own are not to be had")
    verify.add_argument("--tolerance", type=float, default=0.005, help="largest difference (default: 0.005)")


def _add_data(
    parser: argparse.ArgumentParser,
    size: int | None = 64,
    size_help: str = "side of the canvas in pixels (default: 64)",
) -> None:
    group = parser.add_argument_group("data")
    group.add_argument("--split", help="split of the dataset")
    group.add_argument("--image_column", help="column of images or their paths (default: found by name or type)")
    group.add_argument("--caption_column", help="column of captions (default: found by name)")
    group.add_argument("--label_column", default="label", help="column of labels (default: label)")
    group.add_argument("--n", type=int, help="take the first N rows only")
    group.add_argument("--size", type=int, default=size, help=size_help)
    group.add_argument("--seed", type=int, default=0, help="seed (default: 0)")


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, help="folder for the outputs and their record")
