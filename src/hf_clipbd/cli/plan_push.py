# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The plan of a push: what would go where, under which licence, and what the card would say of it."""

from dataclasses import asdict

from hf_clipbd.cli.console import Console
from hf_clipbd.hub import PlannedPush


NOTE = (
    "Nothing was sent or written, and the Hub was not asked. Whether it lets you write there, and what lies there "
    "already, is seen when the command runs."
)
NO_TOKEN = "There is no token for the Hub on this machine. Log in with `hf auth login` first."
UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def show_push(console: Console, plan: PlannedPush) -> int:
    """Show the plan of a push and return 0."""
    console.show(push_lines(plan), {**asdict(plan), "bytes": sum(plan.files.values())})
    return 0


def push_lines(plan: PlannedPush) -> list[str]:
    """Return the plan of a push for people."""
    seen = (
        "private; refused if it is there and public"
        if plan.private
        else "public where it is new; one that is there stays as it is"
    )
    lines = [
        f"push     {plan.what}" + ("" if plan.base is None else f", its adapters onto {plan.base}"),
        f"to       {plan.repo_id}, {plan.repo_type}, {seen}",
        f"licence  {plan.license}",
        f"card     {plan.title}",
        *(f"         {paragraph}" for paragraph in plan.says),
        f"tags     {', '.join(plan.tags)}",
        "",
    ]
    sizes = {name: ("about " if name in plan.estimated else "") + size(n) for name, n in plan.files.items()}
    widths = max(map(len, sizes)), max(map(len, sizes.values()))
    lines += [f"{name:{widths[0]}}  {shown:>{widths[1]}}" for name, shown in sizes.items()]
    total = ("about " if plan.estimated else "") + size(sum(plan.files.values()))
    return [*lines, "", f"{len(sizes)} files, {total}. {NOTE}", *([] if plan.has_token else [NO_TOKEN])]


def size(n: int) -> str:
    """Return a number of bytes as people read it.

    Example:
        >>> size(12), size(81_230), size(4_000_000_000)
        ('12 B', '81.2 kB', '4.0 GB')
    """
    name, unit = next(((name, unit) for name, unit in UNITS if n >= unit), ("B", 1))
    return f"{n} B" if unit == 1 else f"{n / unit:.1f} {name}"
