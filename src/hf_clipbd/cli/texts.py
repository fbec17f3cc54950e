# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What `hf-clipbd --help` and the help of each subcommand say; the examples are parsed by a test."""

from typing import NamedTuple


class Text(NamedTuple):
    """Help of one subcommand: one line for the list, what it does, and examples to copy."""

    summary: str
    description: str
    examples: tuple[str, ...]


DATA = (
    "`scenes`, a Hub id, a folder (save_to_disk, images, Parquet, WebDataset) or a Parquet, CSV, TSV, JSON or tar file"
)
MODEL = "`scenes` (the shipped clean CLIP), a folder or a Hub id"

DESCRIPTION = (
    "Backdoor attacks on CLIP, defences and detection: the whole job, its stages, and what is done with a run."
)
GROUPS = {
    "the whole job": ("run",),
    "its stages, on data and models of your own": ("poison", "train", "defend", "evaluate", "detect"),
    "what is done with results": ("report", "card", "compare", "verify", "push"),
    "models": ("convert",),
}
EPILOG = """\
examples:
  hf-clipbd run recipes/scenes/defend.yaml --dry_run       what would be done, and what is done already
  hf-clipbd poison scenes --rate 0.01 --out poisoned       each command names the one that comes next
  hf-clipbd detect poisoned --model victim --out found --json | jq .metrics.cut

exit status:
  0    done
  1    `verify` found a figure that differs
  2    usage, a configuration, data or a file is wrong; one line on standard error says what and what to do
  130  stopped by Ctrl-C; the same command goes on after the last finished epoch

environment:
  HF_HUB_OFFLINE=1      never ask the Hub           HF_HOME          where downloads and embeddings are kept
  OMP_NUM_THREADS=N     threads of PyTorch          CUDA_VISIBLE_DEVICES  which GPUs

A command on several processes or GPUs: accelerate launch -m hf_clipbd.cli COMMAND ...
Shell completion: pip install -c constraints.txt '.[completion]' in the clone of the repository, then
eval "$(register-python-argcomplete hf-clipbd)"
"""

TEXTS = {
    "run": Text(
        "run every stage of a configuration",
        """\
Run every stage of a configuration that is not up to date: poison, train the victim, defend, evaluate, detect, write
cards and report. A stopped run goes on where it was; a finished stage of the same configuration is not run again.
Flags are the keys of the YAML, by their dotted path; `--defenses.NAME false` leaves a defence out.""",
        (
            "hf-clipbd run recipes/scenes/defend.yaml --dry_run",
            "hf-clipbd run recipes/scenes/defend.yaml --seed 1 --output_dir runs/seed1",
            "hf-clipbd run recipes/scenes/defend.yaml --victim.learning_rate 1e-3 --defenses.cleanclip false",
        ),
    ),
    "poison": Text(
        "poison a dataset of images and captions",
        """\
Poison a dataset: stamp a trigger on some of its pictures, replace their captions, and leave every other row as it is,
byte for byte. The folder gets the dataset (image, caption, is_poisoned, source_index, trigger, and columns of your
own), the manifest (which rows, how, from what), the trigger for evaluation, and samples to look at. Nothing is written
if a row fails.

SOURCE is a Hub id; a folder of pictures with metadata.csv or metadata.jsonl (file_name and a caption), of Parquet
files, of WebDataset shards, or written by save_to_disk; or a Parquet, CSV, TSV, JSON or .tar file. In a table, paths
are relative to it, and a first row that is data, not names, is recognised.

The YAML of --config lists triggers, each with an attack, count or rate, a target and options of the attack:

  triggers:
    corner: {attack: badnets, target: banana, count: 100, place: corner}
    wave:   {attack: sig, target: airplane, rate: 0.002}""",
        (
            "hf-clipbd poison scenes --attack badnets --count 50 --out poisoned",
            "hf-clipbd poison cc3m/Train.tsv --attack blended --target banana --count 1500 --out poisoned --dry_run",
            "hf-clipbd poison photos/ --target dog --attack sig --preset backdoorbench --rate 0.003 "
            "--captions natural --out sig",
            "hf-clipbd poison 'shards/{00000..00331}.tar' --attack wanet --target dog --rate 0.003 --streaming "
            "--out poisoned",
            "hf-clipbd poison owner/dataset --target dog --attack.place corner --attack.pattern logo.png --count 9 "
            "--out poisoned",
            "hf-clipbd poison photos/ --config triggers.yaml --out poisoned",
        ),
    ),
    "train": Text(
        "train a model on pairs, a victim on poisoned ones",
        """\
Fine-tune a dual encoder on the pairs of a dataset with the image-text loss: on a poisoned set this makes the victim.
With --test it is measured after each epoch, with --trigger its attack success too. Flags beyond those below are keys
of the training's configuration, transformers' TrainingArguments among them; --list_options shows them.""",
        (
            "hf-clipbd train poisoned --out victim --num_train_epochs 4 --learning_rate 2e-3",
            "hf-clipbd train poisoned --out victim --test scenes --trigger poisoned/trigger",
            "hf-clipbd train poisoned --model openai/clip-vit-base-patch32 --out victim --bf16 true",
        ),
    ),
    "defend": Text(
        "take the backdoor out of a model",
        """\
Fine-tune a model with a defence, on clean pairs (roclip and safeclip: train the clean model on the poisoned ones).
Flags beyond those below are keys of the defence's configuration; --list_defenses shows them.""",
        (
            "hf-clipbd defend victim --defense cleanerclip --data scenes --out defended",
            "hf-clipbd defend victim --defense ft --data clean_pairs/ --out ft --learning_rate 1e-5 --dry_run",
            "hf-clipbd defend victim --defense cleanclip --data scenes --test scenes --trigger poisoned/trigger "
            "--out cleanclip",
        ),
    ),
    "evaluate": Text(
        "measure BA, ASR and RA of a model",
        """\
Measure a model on labelled images: accuracy on clean ones (BA), and for each trigger how often stamped images of other
classes get the target (ASR) or keep their label (RA). By zero-shot classification, a linear probe, or retrieval.""",
        (
            "hf-clipbd evaluate victim --data scenes --trigger poisoned/trigger --out measured/victim",
            "hf-clipbd evaluate defended --data clip-benchmark/wds_imagenet1k --split test --json",
            "hf-clipbd evaluate victim --data cifar/ --split test --protocol linear_probe --train cifar/",
            "hf-clipbd evaluate victim --data pairs/ --protocol retrieval --trigger poisoned/trigger",
        ),
    ),
    "detect": Text(
        "find the suspicious rows of a dataset",
        """\
Score how suspicious each row of a dataset is, through the embeddings of a model that was trained on it. Neither the
trigger nor any label has to be known. The folder gets scores.parquet, a page of the most suspicious pairs to look at,
and the dataset without them.""",
        (
            "hf-clipbd detect poisoned --model victim --out found",
            "hf-clipbd detect pairs/ --model victim --second openai/clip-vit-base-patch32 --remove 0.005 --out found",
            "hf-clipbd detect poisoned --model victim --detectors slof k_distance --rates 0.001 --out found --json",
            "hf-clipbd detect crawl.tsv --model victim --on_error skip --clean_reference clean_pairs/ --out found",
        ),
    ),
    "convert": Text(
        "convert OpenAI's or open_clip's ResNet CLIP to safetensors",
        "Convert the checkpoint of a CLIP with OpenAI's ResNet tower to a folder that every command takes as a model.",
        ("hf-clipbd convert RN50.pt --out rn50",),
    ),
    "compare": Text(
        "set any number of evaluations side by side",
        "Set the records of `evaluate` side by side, each rate with its n and its 95 % Wilson interval.",
        (
            "hf-clipbd compare measured/victim measured/defended --baseline victim",
            "hf-clipbd compare runs/scenes/evaluate/* --format markdown --ks 1 10 --plot comparison.png",
        ),
    ),
    "report": Text(
        "render the report of a run",
        "Render the one-page HTML report of a run from its records, and print its table.",
        ("hf-clipbd report runs/scenes",),
    ),
    "card": Text(
        "render the cards of a run",
        "Render the model and dataset cards of a run from its records.",
        ("hf-clipbd card runs/scenes",),
    ),
    "push": Text(
        "put a model or the poisoned dataset of a run on the Hub",
        """\
Put a model with its card, trigger, manifest and records on the Hub, in one commit, private unless told otherwise.
What is backdoored goes up with --allow_backdoored only. With --dry_run nothing is sent and the Hub is not asked.""",
        (
            "hf-clipbd push runs/scenes --repo_id owner/cleanerclip --dry_run",
            "hf-clipbd push runs/scenes --repo_id owner/cleanerclip --what defend/cleanerclip",
            "hf-clipbd push runs/scenes --repo_id owner/victim --what victim --allow_backdoored",
        ),
    ),
    "verify": Text(
        "measure a model again and compare with its record",
        """\
Measure BA and ASR again and say whether they are as recorded: of a run at top 1, of a published model every figure of
its card. The model, its trigger and the base of adapters, at its commit, are downloaded. The exit status is 1 if a
figure differs.""",
        (
            "hf-clipbd verify runs/scenes --model victim cleanerclip",
            "hf-clipbd verify owner/cleanerclip --revision v1",
            "hf-clipbd verify owner/lora --data photos/",
        ),
    ),
}
