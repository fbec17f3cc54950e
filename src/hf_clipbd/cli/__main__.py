# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""`python -m hf_clipbd.cli` and `accelerate launch -m hf_clipbd.cli` are `hf-clipbd`."""

import sys

from hf_clipbd.cli.command import main


sys.exit(main())
