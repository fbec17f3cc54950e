# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What the pages do not hold themselves: results, benchmarks from their records, the help of the command line."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "RESULTS.md"
LINK = re.compile(r"(!?)\[([^]]*)\]\(([^)#]+)\)")
RATIO = re.compile(r"share|ratio|of_rate|of rate|times|bars|met|auroc|auprc|recall")
"""Figures that mean the same on another machine: shares, ratios, and rates of success."""
MOST_ROWS = 40
"""Rows of one table."""
SCRIPTS = {"evaluate": "evaluate_models", "detectors": "detectors_table"}
"""Name of a record, where it is not that of the script which wrote it."""


def on_files(files: Any, config: Any) -> Any:
    """Return the files of the site with the figures of RESULTS.md among them; called by mkdocs."""
    from mkdocs.structure.files import File

    for picture, _, path in LINK.findall(RESULTS.read_text(encoding="utf-8")):
        if picture:
            files.append(File.generated(config, f"figures/{Path(path).name}", abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Return a page with its placeholders filled; called by mkdocs."""
    if "<!-- results -->" in markdown:
        markdown = markdown.replace("<!-- results -->", results())
    if "<!-- benchmarks -->" in markdown:
        markdown = markdown.replace("<!-- benchmarks -->", benchmarks(ROOT / "benchmarks"))
    return re.sub(r"<!-- help: (\w+) -->", lambda found: help_of(found[1]), markdown)


# -- results ---------------------------------------------------------------------------------------------------------


def results() -> str:
    """Return RESULTS.md without its title: figures from the site, other files of the repository by their path."""

    def link(found: re.Match) -> str:
        picture, text, path = found.groups()
        return f"![{text}](figures/{Path(path).name})" if picture else f"`{path}`"

    return LINK.sub(link, RESULTS.read_text(encoding="utf-8").split("\n", 1)[1].strip())


# -- benchmarks -------------------------------------------------------------------------------------------------------


def benchmarks(folder: Path) -> str:
    """Return a section for each script in `folder`: its records, or that nothing was measured.

    Args:
        folder: Scripts, and their records below `records`.
    """
    records: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
    for path in sorted((folder / "records").rglob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        records.setdefault(script_of(path.relative_to(folder / "records"), record), []).append((path, record))
    parts = []
    for script in sorted(folder.glob("*.py")):
        about = (ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or "").split("\n\n")[0]
        parts.append(f"## `benchmarks/{script.name}`\n\n{about}")
        found = records.pop(script.stem, [])
        if not found:
            parts.append("**Not measured**: no record of it is committed.")
        for path, record in found:
            parts += section(path.relative_to(folder.parent).as_posix(), record)
    for name, found in records.items():
        parts.append(f"## Other records: {name}")
        for path, record in found:
            parts += section(path.relative_to(folder.parent).as_posix(), record)
    return "\n\n".join(parts)


def script_of(path: Path, record: dict[str, Any]) -> str:
    """Return the script that wrote a record, by its stage, file or folder; what is named there if it is none."""
    known = {script.stem for script in (ROOT / "benchmarks").glob("*.py")}
    stage = record.get("stage", "").removeprefix("benchmark/")
    names = [name for name in (stage, path.stem, *reversed(path.parts[:-1])) if name and name != "record"]
    for name in names:
        if name in SCRIPTS:
            return SCRIPTS[name]
        found = [one for one in sorted(known, key=len, reverse=True) if name == one or name.startswith(f"{one}_")]
        if found:
            return found[0]
    return names[0]


def section(path: str, record: dict[str, Any]) -> Iterator[str]:
    """Yield what a record says: where and how it was made, its ratios, and the other figures folded away.

    A page that its script wrote beside the record stands for the figures.
    """
    figures = list(flat(record.get("metrics") or {k: v for k, v in record.items() if k not in MADE}))
    ratios = [(name, value) for name, value in figures if RATIO.search(name)]
    others = [(name, value) for name, value in figures if not RATIO.search(name)]
    yield table([("record", f"`{path}`"), *made(record)], ("how it was made", ""))
    told = [value for value in record.values() if isinstance(value, list) and all(isinstance(x, str) for x in value)]
    if record.get("note") or told:
        each = f"Each list below holds {', '.join(told[0])}." if told and told[0] else ""
        yield " ".join(filter(None, [record.get("note", ""), each]))
    written = (ROOT / path).with_suffix(".md")
    if written.is_file():
        yield written.read_text(encoding="utf-8").strip()
        return
    yield table(ratios[:MOST_ROWS], ("ratio or share", "")) if ratios else "The record holds no ratio."
    if len(ratios) > MOST_ROWS:
        yield f"and {len(ratios) - MOST_ROWS} more in the record."
    if others:
        left_out = len(others) - MOST_ROWS
        inner = table(others[:MOST_ROWS], ("figure", "")).replace("\n", "\n    ")
        inner += f"\n\n    and {left_out} more in the record." if left_out > 0 else ""
        yield f'??? note "Further figures; seconds and rates hold for this machine under its load only"\n\n    {inner}'


MADE = tuple("stage key config seed inputs outputs seconds processes command versions machine began".split())


def made(record: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield command, machine, settings and versions of a record; what it lacks is said to be missing."""
    named = {"command": record.get("command"), "machine": record.get("machine"), "settings": record.get("config")}
    for name, value in named.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {one}" for key, one in value.items())
        yield name, f"`{value}`" if value else "not recorded"
    versions = record.get("versions") or {}
    yield "versions", ", ".join(f"{name} {one}" for name, one in versions.items()) or "not recorded"


def flat(values: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of every number and truth value of a tree; a list of numbers is one value."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield from flat(value, f"{name}.{key}" if name else str(key))
    elif isinstance(values, list) and values and not all(isinstance(one, (int, float)) for one in values):
        for number, value in enumerate(values):
            label = next((str(value[k]) for k in ("name", "method", "model") if k in value), str(number))
            yield from flat(value, f"{name}.{label}")
    elif isinstance(values, (int, float, list)):
        yield name, values


def table(rows: list[tuple[str, Any]], header: tuple[str, str]) -> str:
    """Return rows of two columns as Markdown; fractional numbers with four digits."""

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.4g}"
        return ", ".join(map(cell, value)) if isinstance(value, list) else str(value)

    lines = [f"| {header[0]} | {header[1]} |", "|---|---|"]
    return "\n".join([*lines, *(f"| {name.replace('_', ' ')} | {cell(value)} |" for name, value in rows)])


# -- command line -----------------------------------------------------------------------------------------------------


def help_of(command: str) -> str:
    """Return the help of `hf-clipbd COMMAND` (`all` for its own) as a block of text."""
    import os

    from hf_clipbd.cli import build_parser

    os.environ["COLUMNS"] = "100"
    parser = build_parser()
    if command != "all":
        actions = [action for action in parser._actions if action.choices and "poison" in action.choices]
        parser = actions[0].choices[command]
    return f"```text\n{parser.format_help().rstrip()}\n```"
