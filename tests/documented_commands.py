# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The command lines of README and docs: which of them the suite runs, and why it does not run the others.

python tests/documented_commands.py     # prints the list
"""

import re
from typing import NamedTuple

from documented import PAGES, blocks, commands


ALONE = (
    "accelerate launch recipes/defend.py --dry_run",
    "hf-clipbd --help",
    "hf-clipbd run recipes/scenes/defend.yaml --dry_run --json",
    "hf-clipbd run recipes/scenes/defend.yaml --defenses.cleanclip false --dry_run",
    "hf-clipbd defend --list_defenses",
    "hf-clipbd detect --list_detectors",
    "hf-clipbd poison --list_attacks",
    "hf-clipbd train --list_options",
)
"""Run as they are, in an empty folder."""

ON_PICTURES = (
    "hf-clipbd poison photos/ --attack badnets --target banana --rate 0.003 --out poisoned",
    "hf-clipbd poison cc3m/Train.tsv --attack blended --target banana --count 1500 --out poisoned",
    "hf-clipbd poison 'shards/{00000..00331}.tar' --attack wanet --target dog --rate 0.003 --streaming --out poisoned",
)
"""Run beside small pictures of the kind that they name."""

AFTER_QUICKSTART = ("hf-clipbd compare measured/victim measured/defended --baseline victim --format markdown",)
"""Run in the folder that the quickstart's commands leave."""

INSTALLS = "installs: `.ci/run` does it in an environment made from nothing"
MINUTES = "takes minutes to an hour of two cores: "
HUB = "downloads from the Hub or pushes to it, which no test may; "

NOT_RUN = (
    (r"make demo\b", MINUTES + "recorded in recipes/scenes; its stages are run small in tests/test_recipe.py"),
    (r"make test\b", "is this suite"),
    (r"pip install ", INSTALLS),
    (r"eval .*argcomplete", "a setting of the reader's shell; tests/test_cli_modes.py completes a line"),
    (r"accelerate launch recipes/defend.py --config recipes/my_run.yaml", "a file of the reader's own"),
    (r"accelerate launch .*--push_to_hub", HUB + "tests/test_hub_trainer.py pushes to a server of its own"),
    (r"accelerate launch .*uoft-cs/cifar10", HUB + "recorded in recipes/cifar10"),
    (r"accelerate launch --config_file recipes/accelerate/(ddp|gpu)", "needs several processes or a GPU"),
    (r"accelerate launch recipes/defend.py", MINUTES + "the job of `make demo` with other settings"),
    (r"hf-clipbd (verify|report|card) runs/", "needs the finished run of `make demo`; tests run it on a small one"),
    (r"hf-clipbd push ", HUB + "tests/test_hub_server.py pushes to a server of its own"),
    (r"hf-clipbd verify owner/", HUB + "tests/test_hub_server.py verifies from a server of its own"),
    (r"hf-clipbd .*(openai/|clip-benchmark/|owner/)", HUB + "what it names is not here"),
    (
        r"hf-clipbd (convert|train poisoned --model) (RN50.pt|rn50)",
        "needs OpenAI's weights; see tests/test_convert.py",
    ),
    (
        r"hf-clipbd (evaluate|train|detect|defend) .*",
        "on data or for a time that a test has not; quickstart runs it small",
    ),
)
"""Pattern of a command's beginning -> why it is not run; the first that fits."""


class Command(NamedTuple):
    """A command line, where it stands first, and how it is run; "" and a reason where it is not."""

    line: str
    where: str
    run: str
    reason: str


def documented_commands():
    """Return every command line of README and docs once, in order."""
    found = {}
    for page in PAGES:
        for block in blocks(page, "bash"):
            for shown in commands(block.text):
                line = " ".join(re.sub(r"\s+#.*$", "", shown).split())
                command = _classified(line, block)
                if line not in found or command.run:
                    found[line] = command
    return list(found.values())


def _classified(line, block):
    if block.comment == "runs":
        return Command(line, block.where, "quickstart", "")
    groups = {"alone": ALONE, "on pictures": ON_PICTURES, "after the quickstart": AFTER_QUICKSTART}
    for name, lines in groups.items():
        if line in lines:
            return Command(line, block.where, name, "")
    reasons = [reason for pattern, reason in NOT_RUN if re.match(pattern, line)]
    return Command(line, block.where, "", reasons[0] if reasons else "")


if __name__ == "__main__":
    for command in documented_commands():
        print(f"{command.where}: {command.line}\n    {'run ' + command.run if command.run else command.reason}")
