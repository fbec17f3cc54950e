# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The main job: poison a dataset, train a victim on it, defend the victim, measure everything, find the poison.

    accelerate launch recipes/defend.py                               # the embedded world: recipes/scenes/defend.yaml
    accelerate launch recipes/defend.py recipes/cifar10/defend.yaml   # another configuration (or --config FILE)
    accelerate launch recipes/defend.py --seed 1 --output_dir runs/seed1 --victim.learning_rate 1e-3

Any key of the YAML is a flag by its dotted path; an unknown one is named in the error before anything is loaded. The
stages, each with its record in the run folder:

    poison      the attack stamps some rows of the training pairs and replaces their captions -> dataset and manifest
    victim      the clean model is fine-tuned on them, and is backdoored
    defend/...  ft, cleanclip, cleanerclip: the victim is fine-tuned on clean pairs
    evaluate/.. zero-shot BA, ASR and RA of the clean model, the victim and every defended model
    detect      the victim's own embeddings tell which rows are poisoned
    report      model cards and one HTML page, both rendered from the records

A finished stage with the same configuration is not run again; a stopped training goes on from its last epoch. Add
`--dry_run` to see the stages, which are finished and how many steps are left, `--quiet` or `--json` for the result
alone, `--traceback` to see where an error came from.
"""

import sys
from pathlib import Path

from hf_clipbd.cli import run_job, script


DEFAULT = Path(__file__).parent / "scenes" / "defend.yaml"

if __name__ == "__main__":
    sys.exit(script("defend.py", __doc__, lambda given: run_job(given, DEFAULT), sys.argv[1:]))
