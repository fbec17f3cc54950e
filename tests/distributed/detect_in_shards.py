# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""`hf-clipbd detect` with shards of ten rows; killed, if asked to, as `kill -9` would, before one is written."""

import os
import signal
import sys

from hf_clipbd.cli import main
from hf_clipbd.recipe import embeddings
from hf_clipbd.recipe.shards import Shards


def run(doomed: int, arguments: list[str]) -> int:
    """Run the command; the process dies before it writes shard `doomed`, if there is such a one."""
    keep = Shards.keep

    def dying(shards: Shards, shard: int, *given: object) -> None:
        """Write a shard, or die."""
        os.kill(os.getpid(), signal.SIGKILL) if shard == doomed else keep(shards, shard, *given)

    embeddings.SHARD_ROWS = 10
    Shards.keep = dying
    return main(arguments)


if __name__ == "__main__":
    sys.exit(run(int(sys.argv[1]), sys.argv[2:]))
