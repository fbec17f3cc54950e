# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""How fast poisoning is: triggers alone, and whole maps against a bare loop that decodes and encodes, in one run.

    python benchmarks/poison.py [--out poison.json] [--n 128] [--size 224] [--source FOLDER_OR_PARQUET] [--rounds 3]
    python benchmarks/poison.py --stream 1000000        # only: rows generated, poisoned at 0.3 % in streaming

Rates are pictures a second on one core, the median of the rounds, which alternate, so that what else runs on the
machine hits all alike. Targets: `map` of BadNets, Blended, SIG and WaNet at least 0.8 of the bare loop with the same
lossless format; a poison rate of 0.3 % at half or more of the rate of a map that touches no picture; two workers at
least 1.6 times one. Prints a table and writes a JSON record.
"""

import argparse
import io
import json
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path


os.environ.setdefault("OMP_NUM_THREADS", "1")

import datasets  # noqa: E402
import numpy as np  # noqa: E402
import PIL.Image  # noqa: E402

from hf_clipbd.attacks import ATTACKS, PoisonTransform, poison_dataset  # noqa: E402
from hf_clipbd.attacks.pictures import encode_picture, read_picture  # noqa: E402
from hf_clipbd.data.sources import load_source  # noqa: E402
from hf_clipbd.schema import package_versions  # noqa: E402


NAMED = ("badnets", "blended", "sig", "wanet")
PROVENANCE = {"is_poisoned": False, "source_index": -1, "trigger": ""}
LOSSLESS = {
    "webp": {"format": "WEBP", "lossless": True, "method": 0, "quality": 0},
    "webp_default": {"format": "WEBP", "lossless": True},
    "png": {"format": "PNG"},
    "png_level_1": {"format": "PNG", "compress_level": 1},
}


def pictures(source: str | None, n: int, size: int) -> list[PIL.Image.Image]:
    """Return `n` RGB pictures on a square canvas: those of a dataset, else scenes drawn at that size."""
    from hf_clipbd.data.canvas import Canvas
    from hf_clipbd.scenes import load_scenes

    rows = load_scenes("train", size=size, n=n) if source is None else load_source(source)
    canvas = Canvas(size)
    return [canvas(rows[i % len(rows)]["image"]) for i in range(n)]


def jpeg_rows(images: list[PIL.Image.Image], repeat: int = 1) -> datasets.Dataset:
    """Return a dataset of JPEG bytes, keys and captions, as a download has them; the pictures repeat."""
    encoded = []
    for image in images:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=90)
        encoded.append({"bytes": buffer.getvalue(), "path": None})
    n = len(images) * repeat
    features = {"id": datasets.Value("string"), "image": datasets.Image(), "caption": datasets.Value("string")}
    rows = {
        "id": [str(i) for i in range(n)],
        "image": encoded * repeat,
        "caption": [f"a picture {i}" for i in range(n)],
    }
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def seconds(action: Callable[[], object]) -> float:
    """Return how long one call takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def medians(actions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each action; rounds alternate between them, one round goes first unmeasured."""
    taken: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(rounds + 1):
        for name, action in actions.items():
            elapsed = seconds(action)
            if number:
                taken[name].append(elapsed)
    return {name: statistics.median(values) for name, values in taken.items()}


def trigger_rates(images: list[PIL.Image.Image], rounds: int) -> dict[str, dict[str, float]]:
    """Return pictures a second of each trigger alone, uint8 in and out, and of each lossless format, one way."""
    arrays = [np.asarray(image) for image in images]
    attacks = {}
    stamped = [ATTACKS["blended"]()(one) for one in arrays[:16]] + [ATTACKS["badnets"]()(one) for one in arrays[16:32]]
    encoded = [PIL.Image.fromarray(one) for one in stamped]

    def stamp(name: str) -> Callable[[], object]:
        return lambda: [attacks[name](one, row) for row, one in enumerate(arrays)]

    def encode(options: dict) -> Callable[[], int]:
        def run() -> int:
            size = 0
            for image in encoded:
                buffer = io.BytesIO()
                image.save(buffer, **options)
                size += buffer.tell()
            return size

        return run

    usable = {}
    for name in (name for name, kind in ATTACKS.items() if kind.stamps_pictures):
        try:
            attacks[name] = ATTACKS[name]()
            attacks[name](arrays[0], 0)
        except ValueError:
            continue  # needs something that is made first, such as a picture of its own
        usable[name] = stamp(name)
    taken = medians(usable, rounds)
    coded = medians({name: encode(options) for name, options in LOSSLESS.items()}, rounds)
    return {
        "trigger": {name: len(arrays) / value for name, value in taken.items()},
        "encode": {name: len(encoded) / value for name, value in coded.items()},
        "kilobytes": {name: encode(options)() / len(encoded) / 1000 for name, options in LOSSLESS.items()},
    }


def bare_loop(rows: list[bytes]) -> list[bytes]:
    """Return each picture decoded and encoded again in the lossless format that the transform uses."""
    return [encode_picture(read_picture(data)) for data in rows]


def map_rates(images: list[PIL.Image.Image], rounds: int) -> dict[str, dict[str, float]]:
    """Return pictures a second of `map` with every row poisoned, and its ratio to the bare loop, by attack."""
    rows = jpeg_rows(images)
    data = [one["bytes"] for one in rows.cast_column("image", datasets.Image(decode=False))["image"]]
    actions: dict[str, Callable[[], object]] = {"bare loop": lambda: bare_loop(data)}
    for name in (*NAMED, "ssba"):
        transform = PoisonTransform(ATTACKS[name](), rate=1.0)
        actions[name] = lambda transform=transform: rows.map(transform, load_from_cache_file=False)
    taken = medians(actions, rounds)
    return {
        "map": {name: len(rows) / value for name, value in taken.items()},
        "ratio": {name: taken["bare loop"] / value for name, value in taken.items() if name != "bare loop"},
    }


def untouched(batch: dict) -> dict:
    """Return what a map that touches no picture writes: three columns beside the others."""
    n = len(batch["caption"])
    return {name: [value] * n for name, value in PROVENANCE.items()}


def untouched_row(row: dict) -> dict:
    """Return the same for one row."""
    return PROVENANCE


def clean_rates(images: list[PIL.Image.Image], rounds: int, repeat: int) -> dict[str, float]:
    """Return rows a second of maps that touch no picture and of poisoning 0.3 %, and the ratios."""
    rows = jpeg_rows(images, repeat)
    attack = ATTACKS["blended"]()
    transform = PoisonTransform(attack, rate=0.003, key_column="id")
    taken = medians(
        {
            "touches nothing": lambda: rows.map(untouched_row, load_from_cache_file=False),
            "0.3 %": lambda: rows.map(transform, load_from_cache_file=False),
            "touches nothing, batched": lambda: rows.map(untouched, batched=True, load_from_cache_file=False),
            "0.3 %, batched": lambda: rows.map(transform, batched=True, load_from_cache_file=False),
            "poison_dataset 0.3 %": lambda: poison_dataset(rows, attack, rate=0.003),
        },
        rounds,
    )
    rates = {name: len(rows) / value for name, value in taken.items()}
    ratios = {f"ratio{kind}": rates[f"0.3 %{kind}"] / rates[f"touches nothing{kind}"] for kind in ("", ", batched")}
    return {**rates, **ratios, "rows": len(rows)}


def worker_speedup(images: list[PIL.Image.Image], rounds: int, repeat: int) -> dict[str, float]:
    """Return how many times faster two workers stamp than one, on rows enough to hide their start."""
    rows = jpeg_rows(images, repeat)
    transform = PoisonTransform(ATTACKS["blended"](), rate=1.0)
    taken = medians(
        {
            str(workers): lambda workers=workers: rows.map(transform, num_proc=workers, load_from_cache_file=False)
            for workers in (1, 2)
        },
        rounds,
    )
    return {"one": len(rows) / taken["1"], "two": len(rows) / taken["2"], "speedup": taken["1"] / taken["2"]}


def streamed(n: int, images: list[PIL.Image.Image]) -> dict[str, object]:
    """Poison 0.3 % of `n` generated rows in streaming; return count, rate and the peak memory as it went on."""
    encoded = jpeg_rows(images[:64]).cast_column("image", datasets.Image(decode=False))["image"][:]

    def generate() -> Iterator[dict]:
        for i in range(n):
            yield {"id": str(i), "image": encoded[i % len(encoded)], "caption": f"a picture of thing number {i}"}

    features = {"id": datasets.Value("string"), "image": datasets.Image(decode=False)}
    features["caption"] = datasets.Value("string")
    rows = datasets.IterableDataset.from_generator(generate, features=datasets.Features(features))
    transform = PoisonTransform(ATTACKS["blended"](), rate=0.003, key_column="id")
    poisoned, memory, start = 0, {}, time.perf_counter()
    for number, row in enumerate(rows.map(transform, batched=True, batch_size=1000), 1):
        poisoned += row["is_poisoned"]
        if number % max(n // 10, 1) == 0:
            memory[number] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
    taken = time.perf_counter() - start
    return {"rows": n, "poisoned": poisoned, "rows_a_second": n / taken, "peak_megabytes_by_row": memory}


def show(figures: dict[str, dict]) -> None:
    """Print every group of figures as lines."""
    for group, values in figures.items():
        print(f"\n{group}")
        for name, value in values.items():
            if isinstance(value, dict):
                print(f"  {name}: " + "  ".join(f"{one} {x:,.2f}" for one, x in value.items()))
            else:
                print(f"  {name:24} {value:12,.2f}")


def main() -> None:
    """Run what the command line asks for, print it and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("poison.json"), help="JSON record to write")
    parser.add_argument("--n", type=int, default=128, help="pictures")
    parser.add_argument("--size", type=int, default=224, help="their side in pixels")
    parser.add_argument("--source", help="dataset of pictures; scenes where none is given")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds")
    parser.add_argument("--repeat", type=int, default=40, help="times the pictures repeat where most rows stay clean")
    parser.add_argument("--stream", type=int, help="only stream so many generated rows")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        datasets.config.HF_DATASETS_CACHE = Path(cache)
        datasets.disable_progress_bars()
        images = pictures(options.source, options.n, options.size)
        if options.stream:
            figures = {"streaming": streamed(options.stream, images)}
        else:
            figures = {
                "pictures a second": trigger_rates(images, options.rounds),
                "map, every row poisoned": map_rates(images, options.rounds),
                "map, few rows poisoned": clean_rates(images, options.rounds, options.repeat),
                "two workers": worker_speedup(images, options.rounds, max(1, options.repeat // 2)),
            }
    show(figures)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    record = {
        "benchmark": "poison",
        "figures": figures,
        "options": {name: str(value) for name, value in vars(options).items()},
        "machine": {
            "arch": platform.machine(),
            "system": platform.platform(),
            "cores": cores,
            "load": os.getloadavg(),
        },
        "versions": package_versions(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"\nwritten to {options.out}")


if __name__ == "__main__":
    main()
