# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""How fast poisoning is: triggers alone, and whole maps against a bare loop that decodes and encodes, in one run.

    python benchmarks/poison.py [--out poison.json] [--n 128] [--size 224] [--source FOLDER_OR_PARQUET] [--rounds 5]
    python benchmarks/poison.py --source photographs    # crops of the two photographs that scikit-learn ships
    python benchmarks/poison.py --only map few          # some of the groups
    python benchmarks/poison.py --only stream           # a million rows generated and poisoned at 0.3 % in streaming

Rates are pictures or rows a second of processor time, so on one core, whatever else runs on the machine; two workers
are timed by the clock. Rounds alternate between what is compared, and a ratio is the median of the rounds' ratios.
The bare loop decodes and encodes with Pillow alone. Some triggers make pictures that are larger and slower to encode,
so two more loops stand beside it: one that decodes the same pictures and encodes those that `map` writes, stamped
before it is timed; and one that stamps between. The map of few rows has a bound: the no-op's time and, for each row
drawn, the bare loop's. Targets: `map` of BadNets, Blended, SIG and WaNet at least 0.8 of the bare loop with the same
lossless format; a poison rate of 0.3 % at half or more of the rate of a map that touches no picture; two workers at
least 1.6 times one; memory constant over a million rows. Prints a table and writes a JSON record.
"""

import argparse
import hashlib
import io
import multiprocessing
import os
import platform
import shutil
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

from hf_clipbd.attacks import ATTACKS, Attack, PoisonTransform, poison_dataset  # noqa: E402
from hf_clipbd.data.sources import load_source  # noqa: E402
from hf_clipbd.schema import command_line, package_versions, write_json  # noqa: E402


NAMED = ("badnets", "blended", "sig", "wanet")
GROUPS = ["trigger", "map", "few", "workers", "stream"]
PROVENANCE = {"is_poisoned": False, "source_index": -1, "trigger": ""}
LOSSLESS = {
    "webp": {"format": "WEBP", "lossless": True, "method": 0, "quality": 0},
    "webp_default": {"format": "WEBP", "lossless": True},
    "png": {"format": "PNG"},
    "png_level_1": {"format": "PNG", "compress_level": 1},
    "png_run_lengths": {"format": "PNG", "compress_level": 1, "compress_type": 3},
}


def pictures(source: str | None, n: int, size: int) -> list[PIL.Image.Image]:
    """Return `n` RGB pictures on a square canvas: those of a dataset, else scenes drawn at that size."""
    if source == "photographs":
        return photographs(n, size)
    from hf_clipbd.data.canvas import Canvas
    from hf_clipbd.scenes import load_scenes

    rows = load_scenes("train", size=size, n=n) if source is None else load_source(source)
    canvas = Canvas(size)
    return [canvas(rows[i % len(rows)]["image"]) for i in range(n)]


def photographs(n: int, size: int) -> list[PIL.Image.Image]:
    """Return `n` square crops, each of its own place and scale, of the two photographs that scikit-learn ships."""
    from sklearn.datasets import load_sample_images

    whole = [PIL.Image.fromarray(one) for one in load_sample_images().images]
    rng, crops = np.random.default_rng(0), []
    for number in range(n):
        photo = whole[number % len(whole)]
        side = int(rng.integers(min(size, *photo.size), min(photo.size) + 1))
        left, top = int(rng.integers(photo.width - side + 1)), int(rng.integers(photo.height - side + 1))
        crop = photo.crop((left, top, left + side, top + side))
        crops.append(crop.resize((size, size), PIL.Image.Resampling.BICUBIC))
    return crops


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


def timed(
    actions: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.process_time
) -> dict[str, list[float]]:
    """Return the seconds of each action by round; rounds alternate between them, one goes first unmeasured."""
    taken: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(rounds + 1):
        for name, action in actions.items():
            start = clock()
            action()
            if number:
                taken[name].append(clock() - start)
    return taken


def rates(taken: dict[str, list[float]], n: int) -> dict[str, float]:
    """Return the median number a second of each action that handles `n` of them."""
    return {name: n / statistics.median(values) for name, values in taken.items()}


def ratio(taken: dict[str, list[float]], name: str, bar: str) -> float:
    """Return how many times the rate of `bar` the rate of `name` is, the median over rounds."""
    return statistics.median(b / a for a, b in zip(taken[name], taken[bar], strict=True))


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
    return {
        "trigger": rates(timed(usable, rounds), len(arrays)),
        "encode": rates(timed({name: encode(options) for name, options in LOSSLESS.items()}, rounds), len(encoded)),
        "kilobytes": {name: encode(options)() / len(encoded) / 1000 for name, options in LOSSLESS.items()},
    }


def bare_loop(
    rows: list[bytes], attack: Attack | None = None, written: list[PIL.Image.Image] | None = None
) -> list[bytes]:
    """Return each picture decoded, stamped if there is an attack, and encoded as poisoned rows are.

    With `written` these pictures are encoded in the place of the decoded ones.
    """
    encoded = []
    for row, data in enumerate(rows):
        buffer = io.BytesIO()
        image = PIL.Image.open(io.BytesIO(data)).convert("RGB")
        if attack is not None:
            image = PIL.Image.fromarray(attack(np.asarray(image), row))
        if written is not None:
            image = written[row]
        image.save(buffer, **LOSSLESS["webp"])
        encoded.append(buffer.getvalue())
    return encoded


def bare_bytes(rows: list[bytes]) -> int:
    """Return how many bytes the bare loop makes of pictures, so that a process has no more than that to send back."""
    return sum(map(len, bare_loop(rows)))


def map_rates(images: list[PIL.Image.Image], rounds: int) -> dict[str, dict[str, float]]:
    """Return pictures a second of `map` with every row poisoned, and its ratios to the bare loops, by attack."""
    rows = jpeg_rows(images)
    data = [one["bytes"] for one in rows.cast_column("image", datasets.Image(decode=False))["image"]]
    actions: dict[str, Callable[[], object]] = {"bare loop": lambda: bare_loop(data)}
    for name in (*NAMED, "ssba"):
        attack = ATTACKS[name]()
        transform = PoisonTransform(attack, rate=1.0)
        written = [PIL.Image.open(io.BytesIO(one)).convert("RGB") for one in bare_loop(data, attack)]
        actions[f"bare loop, {name}"] = lambda attack=attack: bare_loop(data, attack)
        actions[f"bare loop, writes {name}"] = lambda written=written: bare_loop(data, written=written)
        actions[name] = lambda transform=transform: rows.map(transform, load_from_cache_file=False)
        actions[f"{name}, batched"] = lambda transform=transform: rows.map(
            transform, batched=True, batch_size=100, load_from_cache_file=False
        )
    taken = timed(actions, rounds)
    maps = [name for name in actions if not name.startswith("bare loop")]
    return {
        "map": rates(taken, len(rows)),
        "ratio": {name: ratio(taken, name, "bare loop") for name in maps},
        "ratio to the loop that writes the same": {
            name: ratio(taken, name, f"bare loop, writes {name.removesuffix(', batched')}") for name in maps
        },
        "ratio to the loop that stamps": {
            name: ratio(taken, name, f"bare loop, {name.removesuffix(', batched')}") for name in maps
        },
    }


def untouched(batch: dict) -> dict:
    """Return what a map that touches no picture writes: three columns beside the others."""
    return {name: [value] * len(batch["caption"]) for name, value in PROVENANCE.items()}


def untouched_row(row: dict) -> dict:
    """Return the same for one row."""
    return PROVENANCE


def clean_rates(images: list[PIL.Image.Image], rounds: int, repeat: int) -> dict[str, float]:
    """Return rows a second of maps that touch no picture and of poisoning 0.3 %, and the ratios."""
    rows = jpeg_rows(images, repeat)
    attack = ATTACKS["blended"]()
    data = [one["bytes"] for one in rows.cast_column("image", datasets.Image(decode=False))["image"][: len(images)]]
    transform = PoisonTransform(attack, rate=0.003, key_column="id")
    nothing = PoisonTransform(attack, rate=0.0, key_column="id")
    actions: dict[str, Callable[[], object]] = {
        "touches nothing": lambda: rows.map(untouched_row, load_from_cache_file=False),
        "0.3 %": lambda: rows.map(transform, load_from_cache_file=False),
        "touches nothing, batched": lambda: rows.map(untouched, batched=True, load_from_cache_file=False),
        "0.3 %, batched": lambda: rows.map(transform, batched=True, load_from_cache_file=False),
        "0 %, batched": lambda: rows.map(nothing, batched=True, load_from_cache_file=False),
        "poison_dataset 0.3 %": lambda: poison_dataset(rows, attack, rate=0.003),
        "bare loop": lambda: bare_loop(data, attack),
    }
    taken = timed(actions, rounds)
    drawn = sum(rows.map(transform, batched=True)["is_poisoned"])
    one = statistics.median(taken.pop("bare loop")) / len(data)
    noop = statistics.median(taken["touches nothing, batched"])
    ratios = {
        "poisoned": drawn,
        "bound of ratio, batched": noop / (noop + drawn * one),
        "ratio": ratio(taken, "0.3 %", "touches nothing"),
        "ratio, batched": ratio(taken, "0.3 %, batched", "touches nothing, batched"),
        "ratio, batched, 0 %": ratio(taken, "0 %, batched", "touches nothing, batched"),
        "ratio, poison_dataset": ratio(taken, "poison_dataset 0.3 %", "touches nothing"),
    }
    return {**rates(taken, len(rows)), **ratios, "rows": len(rows)}


def all_processors() -> float:
    """Return the processor time of this process and of the workers that have ended, in seconds."""
    return sum(os.times()[:4])


def worker_speedup(images: list[PIL.Image.Image], rounds: int, repeat: int, folder: Path) -> dict[str, float]:
    """Return how many times faster two workers stamp than one, by the clock, on rows enough to hide their start.

    The rows lie in an Arrow file, as those of `load_dataset` do, and so does what `map` writes: of rows in memory the
    results are in memory too, and the workers have to send them back. Beside it what the machine's load does not
    change: twice one worker's processor time to that of two workers; and what the machine itself gives: how many times
    faster two processes that need no start run the bare loop.
    """
    jpeg_rows(images, repeat).save_to_disk(folder / "rows")
    rows = datasets.load_from_disk(folder / "rows")
    data = [one["bytes"] for one in rows.cast_column("image", datasets.Image(decode=False))["image"][:1280]]
    halves = [data[: len(data) // 2], data[len(data) // 2 :]]
    transform = PoisonTransform(ATTACKS["blended"](), rate=1.0)

    def mapped(name: str, workers: int | None) -> None:
        # A file of one's own for each: `map` takes as many shards as the files of that name that lie there.
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir()
        written = str(folder / name / "rows.arrow")
        rows.map(transform, num_proc=workers, cache_file_name=written, load_from_cache_file=False)

    actions: dict[str, Callable[[], object]] = {
        "one": lambda: mapped("one", None),
        "two": lambda: mapped("two", 2),
    }
    taken = timed(actions, rounds, time.perf_counter)
    used = timed(actions, rounds, all_processors)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        bare = {"one": lambda: pool.map(bare_bytes, [data]), "two": lambda: pool.map(bare_bytes, halves)}
        loops = timed(bare, rounds, time.perf_counter)
    return {
        **rates(taken, len(rows)),
        "bare loop: two, times one": ratio(loops, "two", "one"),
        "two, times one": ratio(taken, "two", "one"),
        "two, times one, by processor time": 2 * ratio(used, "two", "one"),
    }


def tiny_picture(row: int) -> bytes:
    """Return an encoded picture of 16 × 16 px that no other row has."""
    return b"P6 16 16 255\n" + hashlib.shake_128(b"%d" % row).digest(768)


def streamed(n: int) -> dict[str, object]:
    """Poison 0.3 % of `n` generated rows in streaming; return count, rate and the memory held as it went on."""

    def generate() -> Iterator[dict]:
        for row in range(n):
            image = {"bytes": tiny_picture(row), "path": None}
            yield {"id": str(row), "image": image, "caption": f"a picture of thing number {row}"}

    features = {"id": datasets.Value("string"), "image": datasets.Image(), "caption": datasets.Value("string")}
    rows = datasets.IterableDataset.from_generator(generate, features=datasets.Features(features)).decode(False)
    transform = PoisonTransform(ATTACKS["blended"](), rate=0.003, key_column="id")
    poisoned, memory = 0, {}
    clock, start = time.perf_counter(), time.process_time()
    for number, row in enumerate(rows.map(transform, batched=True, batch_size=1000), 1):
        poisoned += row["is_poisoned"]
        if number % max(n // 10, 1) == 0:
            memory[number] = resident_megabytes()
    return {
        "rows": n,
        "poisoned": poisoned,
        "rows_a_second": n / (time.process_time() - start),
        "seconds_by_the_clock": time.perf_counter() - clock,
        "resident_megabytes_by_row": memory,
    }


def resident_megabytes() -> float:
    """Return the memory that this process holds now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


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
    parser.add_argument("--source", help="dataset of pictures, or photographs; scenes where none is given")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds")
    parser.add_argument("--repeat", type=int, default=40, help="times the pictures repeat where most rows stay clean")
    parser.add_argument("--stream", type=int, default=1_000_000, help="rows of the stream")
    parser.add_argument("--only", nargs="+", default=GROUPS[:-1], choices=GROUPS, help="groups to measure")
    options = parser.parse_args()
    figures, load = {}, os.getloadavg()
    with tempfile.TemporaryDirectory() as cache:
        datasets.config.HF_DATASETS_CACHE = Path(cache)
        datasets.disable_progress_bars()
        images = pictures(options.source, options.n, options.size) if set(options.only) != {"stream"} else []
        if "trigger" in options.only:
            figures["pictures a second"] = trigger_rates(images, options.rounds)
        if "map" in options.only:
            figures["map, every row poisoned"] = map_rates(images, options.rounds)
        if "few" in options.only:
            figures["map, few rows poisoned"] = clean_rates(images, options.rounds, options.repeat)
        if "workers" in options.only:
            figures["two workers"] = worker_speedup(images, options.rounds, max(1, options.repeat // 4), Path(cache))
        if "stream" in options.only:
            figures["streaming"] = streamed(options.stream)
    show(figures)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    record = {
        "stage": "benchmark/poison",
        "config": {name: value for name, value in vars(options).items() if name != "out"},
        "metrics": figures,
        "machine": {"system": platform.platform(), "cores": cores, "load_before": load, "load_after": os.getloadavg()},
        "versions": package_versions(),
        "command": command_line(sys.argv),
    }
    write_json(options.out, record)
    print(f"\nwritten to {options.out}")


if __name__ == "__main__":
    main()
