# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
# PYTHON_ARGCOMPLETE_OK
"""`hf-clipbd`: the whole job, its stages one at a time, and what is done with a run. Its import is light."""

from hf_clipbd.cli.command import main, script
from hf_clipbd.cli.console import Console, start_logging
from hf_clipbd.cli.jobs import run_grid, run_job, run_stage
from hf_clipbd.cli.parser import build_parser


__all__ = ["Console", "build_parser", "main", "run_grid", "run_job", "run_stage", "script", "start_logging"]
