# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Tables of texts: as Markdown, and in aligned columns for a terminal."""

from collections.abc import Iterable, Sequence


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int | None = 1) -> str:
    r"""Return a Markdown table; a `|` inside a cell stays a sign of its text.

    Args:
        header: Headings of the columns.
        rows: A text a column in each row.
        text_columns: How many columns, the first ones, go to the left; the others are figures and go to the right.
            None leaves every column to whatever shows the table.

    Example:
        >>> print(markdown(["model", "BA"], [["a|b", "62.5"]]))
        | model | BA |
        | :-- | --: |
        | a\|b | 62.5 |
    """
    ruler = ["---"] * len(header)
    if text_columns is not None:
        ruler = [":--" if column < text_columns else "--:" for column in range(len(header))]
    cells = ([cell.replace("|", r"\|") for cell in line] for line in (header, *rows))
    first, *others = ("| " + " | ".join(line) + " |" for line in cells)
    return "\n".join([first, "| " + " | ".join(ruler) + " |", *others])


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 2) -> str:
    """Return a table in columns as wide as their widest text, with a line under the header.

    Args:
        header: Headings of the columns.
        rows: A text a column in each row.
        text_columns: How many columns, the first ones, go to the left; the others are figures and go to the right.

    Example:
        >>> print(aligned(["model", "BA"], [["victim", "62.5"]], 1))
        model     BA
        ------  ----
        victim  62.5
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    padded = (
        "  ".join(
            cell.ljust(width) if column < text_columns else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )
    return "\n".join(line.rstrip() for line in padded)
