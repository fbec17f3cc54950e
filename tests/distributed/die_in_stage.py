# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""A run that kills itself in the middle of a stage as `kill -9` would: STAGE RECIPE ARGUMENT...

A training dies after its second epoch, another stage with its work done; the moment does not depend on the machine.
"""

import os
import runpy
import signal
import sys
from typing import Any

from hf_clipbd.recipe.stage import Stage


def die_in(doomed: str) -> None:
    """Let this process die in the stage of this name."""
    place, note_seconds, noted = Stage._place, Stage.note_seconds, []

    def dying_place(stage: Stage, *given: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL) if stage.name == doomed else place(stage, *given)

    def dying_note(stage: Stage, seconds: float) -> None:
        note_seconds(stage, seconds)
        noted.append(stage.name)
        if noted.count(doomed) == 3:  # once for the folder, once for each epoch
            os.kill(os.getpid(), signal.SIGKILL)

    Stage._place, Stage.note_seconds = dying_place, dying_note


if __name__ == "__main__":
    die_in(sys.argv[1])
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")
