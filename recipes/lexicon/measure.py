# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Measures the caption parser: agreement with hand labels, and how much of caption files is parsed in full.

python recipes/lexicon/measure.py [--captions FILE ...] [--labels FILE] [--errors PART]
"""

import argparse
import json
from collections import Counter
from pathlib import Path

from hf_clipbd.captions import parse


LABELS = Path(__file__).parents[2] / "tests/data/captions_labelled.jsonl"


def agreement(row: dict, parsed: object) -> dict[str, bool]:
    """Return which of subject, relation and object agree with a label or one of its alternatives; nouns by their head.

    Example:
        >>> from types import SimpleNamespace
        >>> label = {"subject": "tennis player", "relation": "falls to", "object": "ground"}
        >>> agreement(label, SimpleNamespace(subject="player", relation="falls to", object="floor"))
        {'subject': True, 'relation': True, 'object': False, 'all': False}
    """

    def compare(label: dict) -> dict[str, bool]:
        found = {
            "subject": label["subject"].split()[-1:] == parsed.subject.split()[-1:],
            "relation": label["relation"] == parsed.relation,
            "object": label["object"].split()[-1:] == parsed.object.split()[-1:],
        }
        return {**found, "all": all(found.values())}

    return max(map(compare, [row, *row.get("alternatives", [])]), key=lambda found: sum(found.values()))


def main() -> None:
    """Print agreement for each source and part of the labelled file, and the shares of each file of captions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=Path, nargs="*", default=[])
    parser.add_argument("--labels", type=Path, default=LABELS)
    parser.add_argument("--errors", default="", help="print the disagreements of 'first', 'second' or 'all'")
    arguments = parser.parse_args()
    totals: dict[tuple[str, str], Counter] = {}
    for line in arguments.labels.read_text().splitlines():
        row = json.loads(line)
        parsed = parse(row["caption"])
        found = agreement(row, parsed)
        for key in ((row["source"], row["part"]), (row["source"], "all")):
            totals.setdefault(key, Counter()).update({"n": 1, **found})
        if not found["all"] and arguments.errors in (row["part"], "all"):
            expected = " | ".join(row[key] for key in ("subject", "relation", "object"))
            given = f"{parsed.subject} | {parsed.relation} | {parsed.object}"
            print(f"{row['caption']}\n    label  {expected}\n    parser {given}")
    for (source, part), total in totals.items():
        shares = "  ".join(f"{key} {total[key] / total['n']:.3f}" for key in ("subject", "relation", "object", "all"))
        print(f"{source:9} {part:7} n {total['n']:4}  {shares}")
    for path in arguments.captions:
        captions = path.read_text().splitlines()
        counts = Counter(parse(caption).completeness for caption in captions)
        print(f"{path.name} n {len(captions)}", {key: round(n / len(captions), 4) for key, n in counts.most_common()})


if __name__ == "__main__":
    main()
