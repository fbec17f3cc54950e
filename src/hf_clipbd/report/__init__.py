# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What a run found, for people: a table, figures and one HTML page, each rendered from the run's records."""

from hf_clipbd.report.html import write_report
from hf_clipbd.report.table import comparison_table


__all__ = ["comparison_table", "write_report"]
