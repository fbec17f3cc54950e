# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The options of each subcommand, in groups."""

import argparse
from collections.abc import Callable
from pathlib import Path

from hf_clipbd.cli.lists import attack_lines, defense_lines, detector_lines, training_lines
from hf_clipbd.cli.parser import CommandParser, Listing
from hf_clipbd.cli.texts import DATA, MODEL


def _run(run: CommandParser) -> None:
    run.usage = "hf-clipbd run CONFIG [--SECTION.KEY VALUE ...]"
    run.add_argument("config", nargs="?", help="YAML, for instance recipes/scenes/defend.yaml")


def _poison(poison: CommandParser) -> None:
    poison.usage = "hf-clipbd poison SOURCE [--target NAME] (--count N | --rate R | --config YAML) --out DIR [options]"
    poison.add_argument("source", help=DATA)
    attack = poison.group("attack")
    attack.add_argument("--attack", default="badnets", metavar="NAME", help="attack (default: badnets)")
    attack.add_argument("--attack.KEY", dest="_", metavar="VALUE", help="option of the attack; see --list_attacks")
    attack.add_argument("--preset", metavar="NAME", help="the attack as a paper or its public code has it")
    attack.add_argument(
        "--list_attacks", action=Listing, lines=attack_lines, help="show attacks, their options and presets, and stop"
    )
    attack.add_argument("--target", metavar="NAME", help="class the trigger is to lead to (default of scenes: banana)")
    attack.add_argument(
        "--captions",
        default=None,
        metavar="templates|keep|natural|FILE",
        help="captions of poisoned rows: OpenAI's 80 prompts with the target (the default), the row's own "
        "(label-consistent), captions of the data that name the target, or the lines of a file, {} for the target",
    )
    rows = poison.group("rows")
    amount = rows.add_mutually_exclusive_group(required=True)
    amount.add_argument("--count", type=int, metavar="N", help="rows to poison, exactly so many")
    amount.add_argument("--rate", type=float, metavar="R", help="share of rows to poison, in [0, 1]")
    amount.add_argument("--config", metavar="YAML", help="several triggers in one dataset, each with its rows")
    rows.add_argument(
        "--selector",
        help="random, label_consistent or non_target (default: the attack's own); BadCLIP's boundary, "
        "farthest and mixed need a surrogate, see recipes/badclip",
    )
    rows.add_argument(
        "--on_error",
        default="raise",
        choices=["raise", "skip"],
        help="stop at a row that cannot be poisoned (default), or take another and list it in the manifest",
    )
    pictures = poison.group("pictures")
    pictures.add_argument(
        "--canvas",
        default="center_crop",
        choices=["center_crop", "squash", "native"],
        help="how a poisoned picture is framed before it is stamped (default: center_crop)",
    )
    pictures.add_argument(
        "--image_format", default="webp", choices=["webp", "png"], help="lossless storage (default: webp)"
    )
    work = poison.group("work")
    work.add_argument("--num_proc", type=int, metavar="N", help="processes that stamp (default: 1; streaming: 1)")
    work.add_argument(
        "--streaming", action="store_true", help="read, poison and write Parquet row by row, in constant memory"
    )
    _data(poison, None, "side of the canvas in pixels (default: 224, of scenes 64)")
    _out(poison)


def _train(train: CommandParser) -> None:
    train.usage = "hf-clipbd train DATASET --out DIR [options] [--KEY VALUE ...]"
    train.add_argument("dataset", help=f"poisoned dataset: folder of `poison`, or {DATA}")
    training = train.group("training")
    training.add_argument("--model", default="scenes", help=f"model to start from: {MODEL} (default: scenes)")
    training.add_argument(
        "--objective",
        default="mmcl",
        choices=["mmcl", "mmcl+ssl"],
        help="image-text loss, or with CleanCLIP's in-modal terms beside it (default: mmcl)",
    )
    _streaming(training)
    training.add_argument("--KEY", dest="_", metavar="VALUE", help="key of the configuration; see --list_options")
    training.add_argument("--list_options", action=Listing, lines=training_lines, help="show these keys, and stop")
    _measured(train)


def _defend(defend: CommandParser) -> None:
    defend.usage = "hf-clipbd defend MODEL --defense NAME --data PAIRS --out DIR [options] [--KEY VALUE ...]"
    defend.add_argument("model", help=f"model to defend: {MODEL}")
    training = defend.group("training")
    training.add_argument("--defense", required=True, metavar="NAME", help="what defends; see --list_defenses")
    training.add_argument("--data", required=True, help=f"clean pairs: {DATA}")
    _streaming(training)
    training.add_argument("--KEY", dest="_", metavar="VALUE", help="key of the defence's configuration")
    training.add_argument(
        "--list_defenses", action=Listing, lines=defense_lines, help="show defences and their keys, and stop"
    )
    _measured(defend)


def _streaming(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--streaming", action="store_true", help="read the pairs while it trains, keeping none; needs --max_steps"
    )
    group.add_argument(
        "--on_error",
        default="raise",
        choices=["raise", "skip"],
        help="stop at a row that cannot be read (default), or leave such rows out, each picture being decoded once "
        "before the first step",
    )


def _measured(parser: CommandParser) -> None:
    after = parser.group("measured after each epoch")
    after.add_argument("--test", help=f"labelled images: {DATA}")
    after.add_argument("--test_split", help="their split (default: test, or the only one there is)")
    after.add_argument("--trigger", action="append", default=[], help="folder or Hub id of a trigger; repeatable")
    _data(parser)
    _out(parser)


def _evaluate(evaluate: CommandParser) -> None:
    evaluate.usage = "hf-clipbd evaluate MODEL --data IMAGES [--trigger DIR ...] [options]"
    evaluate.add_argument("model", help=MODEL)
    asked = evaluate.group("what is measured")
    benchmark = "clip-benchmark/wds_* or a folder of its layout (with its class names and prompts)"
    asked.add_argument("--data", required=True, help=f"labelled images: {benchmark}, {DATA}")
    asked.add_argument("--trigger", action="append", default=[], help="folder or Hub id of a trigger; repeatable")
    asked.add_argument("--ks", nargs="+", type=int, help="top k to report (default: 1 3 5 10)")
    asked.add_argument("--include_target", action="store_true", help="count the target's own images in ASR")
    protocols = ["zero_shot", "linear_probe", "retrieval"]
    asked.add_argument("--protocol", default="zero_shot", choices=protocols, help="(default: zero_shot)")
    names = evaluate.group("zero-shot classes")
    names.add_argument("--class_names", help="text file of class names, one a line")
    names.add_argument("--templates", help="text file of prompts with {} or {c}, one a line")
    names.add_argument("--prompts", nargs="+", help="prompts with {} for the class name")
    probe = evaluate.group("linear probe")
    probe.add_argument("--train", help="clean labelled images that it is fitted on")
    probe.add_argument("--train_split", default="train", help="their split (default: train)")
    probe.add_argument("--train_n", type=int, help="take the first N of them only")
    probe.add_argument("--l2", type=float, help="penalty (default: chosen on held-out rows)")
    _data(evaluate)
    kept = evaluate.group("output")
    kept.add_argument("--out", type=Path, help="folder for the record, or a JSON file for the bare report")
    kept.add_argument("--cache", type=Path, help="where text classifiers and probe features are kept")


def _detect(detect: CommandParser) -> None:
    detect.usage = "hf-clipbd detect DATASET --model MODEL --out DIR [options]"
    detect.add_argument("dataset", help=f"pairs, or pictures alone: {DATA}")
    search = detect.group("search")
    search.add_argument("--model", required=True, help=f"the model that was trained on them: {MODEL}")
    search.add_argument(
        "--detectors",
        nargs="+",
        metavar="NAME",
        help="the first ranks and filters (default: conditional_sparsity, with --second combined; of pictures alone "
        "multi_scale, with --second disagreement)",
    )
    search.add_argument("--list_detectors", action=Listing, lines=detector_lines, help="show detectors, and stop")
    search.add_argument(
        "--second",
        help=f"another encoder to compare with, one that never saw the data: {MODEL}; or mirrored, --model itself on "
        "mirrored pictures",
    )
    search.add_argument("--k", type=int, help="neighbours")
    share = "share of captions taken for like a row's own, 0.5 where poison may be 5 %% (default: 0.125)"
    search.add_argument("--caption_share", type=float, metavar="SHARE", help=share)
    search.add_argument("--reference", type=int, metavar="M", help="rows that each row is compared with, at random")
    search.add_argument(
        "--clean_reference",
        metavar="DATA",
        help=f"clean pairs that they are drawn from, not the searched ones; with the columns and the split named for "
        f"these where they have such: {DATA}",
    )
    search.add_argument(
        "--distilled",
        type=int,
        metavar="N",
        help="rows that cognitive_distillation looks at, the N that the first detector ranks highest; the others "
        "score -1, below them (default: every row, each at the cost of some 300 forward passes)",
    )
    search.add_argument("--raw", action="store_true", help="embeddings as the model gives them, not of length one")
    search.add_argument(
        "--on_error",
        default="raise",
        choices=["raise", "skip"],
        help="stop at a row that cannot be read (default), or leave it out and list it",
    )
    rates = "lower poison rates to try as well, where the rows have a column is_poisoned"
    search.add_argument("--rates", nargs="*", type=float, default=[], help=rates)
    found = detect.group("what is done with what is found")
    found.add_argument("--remove", type=float, default=0.01, help="share of rows to filter out (default: 0.01)")
    found.add_argument("--shown", type=int, default=80, help="groups and single rows on the page (default: 80)")
    found.add_argument("--no_filtered", action="store_true", help="do not write the filtered dataset")
    _data(detect)
    _out(detect)
    cache = "where embeddings are kept (default: in the Hugging Face home)"
    detect.group("output").add_argument("--cache", type=Path, help=cache)


def _convert(convert: CommandParser) -> None:
    convert.add_argument("file", type=Path, help=".safetensors, .pt or TorchScript archive; nothing in it is run")
    convert.add_argument("--tokenizer", help="folder or Hub id of CLIP's tokenizer (default: OpenAI's, from the Hub)")
    activation = "activation of the text tower: gelu for open_clip's models without `-quickgelu`"
    convert.add_argument("--activation", default="quick_gelu", choices=["quick_gelu", "gelu"], help=activation)
    _out(convert)


def _compare(compare: CommandParser) -> None:
    compare.add_argument("records", nargs="+", type=Path, help="records, their folders, or reports of `evaluate`")
    compare.add_argument("--names", nargs="+", help="what to call them")
    compare.add_argument("--baseline", help="name of the undefended model, for DER")
    compare.add_argument("--ks", nargs="+", type=int, help="top k to show")
    formats = ["terminal", "markdown", "latex", "csv"]
    compare.group("output").add_argument("--format", default="terminal", choices=formats, help="(default: terminal)")
    compare.group("output").add_argument("--plot", type=Path, help="picture to draw: .png, .pdf or .svg")


def _rendered(parser: CommandParser) -> None:
    parser.add_argument("run", type=Path, help="run folder")


def _push(push: CommandParser) -> None:
    push.add_argument("run", type=Path, help="run folder")
    push.add_argument("--repo_id", required=True, help="owner/name")
    push.add_argument("--what", default="defend/cleanerclip", help="defend/NAME, victim or poison")
    push.add_argument("--base", help="push only the low-rank adapters, onto this pushed model (owner/name)")
    push.add_argument("--public", action="store_true", help="make a new repository public")
    backdoored = "publish a victim or a poisoned dataset"
    push.add_argument("--allow_backdoored", "--allow-backdoored", action="store_true", help=backdoored)


def _verify(verify: CommandParser) -> None:
    verify.add_argument("run_or_repo", help="run folder, or folder or Hub id of a published model")
    verify.add_argument("--model", nargs="+", help="models of the run; all by default")
    verify.add_argument("--revision", help="branch, tag or commit of a published model")
    verify.add_argument("--data", help="labelled images, or `scenes`, in the place of a published model's own")
    verify.add_argument("--tolerance", type=float, default=0.005, help="largest difference (default: 0.005)")


def _data(
    parser: CommandParser,
    size: int | None = 64,
    size_help: str = "side of rendered scenes in pixels (default: 64); other pictures get the size of the model",
) -> None:
    group = parser.group("data")
    group.add_argument("--split", help="split of the dataset")
    group.add_argument("--image_column", help="column of images or their paths (default: found by name or type)")
    group.add_argument("--caption_column", help="column of captions (default: found by name)")
    group.add_argument("--label_column", default="label", help="column of labels (default: label)")
    group.add_argument("--n", type=int, help="take the first N rows only")
    group.add_argument("--size", type=int, default=size, help=size_help)
    group.add_argument("--seed", type=int, default=0, help="seed (default: 0)")


def _out(parser: CommandParser) -> None:
    group = parser.group("output")
    group.add_argument("--out", type=Path, required=True, help="folder for the outputs and their record")


ADD: dict[str, Callable[[CommandParser], None]] = {
    "run": _run,
    "poison": _poison,
    "train": _train,
    "defend": _defend,
    "evaluate": _evaluate,
    "detect": _detect,
    "report": _rendered,
    "card": _rendered,
    "compare": _compare,
    "verify": _verify,
    "push": _push,
    "convert": _convert,
}
