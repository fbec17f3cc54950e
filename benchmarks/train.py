# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""How fast FT, CleanCLIP and CleanerCLIP train, what holds them up, and how much memory each takes.

    python benchmarks/train.py                                     # the embedded world with its shipped clean CLIP
    python benchmarks/train.py --device cuda --models scenes vit-b-32 rn50 --batch_sizes 64 256 1024 2048

On the embedded world the three are measured in turn on the same pairs, several rounds over, and medians are kept:

    model        training steps on batches that lie ready in memory
    pipeline     the loader alone: decoding, views, sub-captions, tokens, with two workers
    memory       the highest resident size during some steps, in a process of its own (on a GPU: what torch allocated)

and their ratios are set against what is expected of them. The models of OpenAI's shapes (random weights, bf16) are
measured on synthetic batches that lie on the device: our step of FT beside a bare loop over the same model with
transformers' own `return_loss`, and the share of the device's own matrix rate that each reaches.

The machine is shared as a rule: trust ratios, not rates. The record (JSON) holds machine, load, versions and command.
"""

import argparse
import copy
import functools
import json
import multiprocessing
import os
import platform
import resource
import shlex
import statistics
import sys
import tempfile
import time
from pathlib import Path

import datasets
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPConfig, CLIPModel, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from hf_clipbd import scenes
from hf_clipbd.data.canvas import Canvas, normalize, pixel_statistics
from hf_clipbd.defenses import DEFENSES
from hf_clipbd.models import CLIPResNetConfig, CLIPResNetModel, build_processor, train_tokenizer
from hf_clipbd.schema import package_versions, write_json


PAPER_SHARE = 1000 / 500_000  # K of the pairs, CleanerCLIP section 4
NAMES = ("ft", "cleanclip", "cleanerclip")
WORKERS = 2
TEXT = {"vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
TEXT |= {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}  # 12 layers, 77 tokens by default


# -- measuring --------------------------------------------------------------------------------------------------------


class Stopwatch(TrainerCallback):
    """Notes the seconds of every optimiser step, from the end of the one before."""

    def __init__(self, device):
        self.device, self.seconds, self.last = device, [], 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self.last = now(self.device)

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append((moment := now(self.device)) - self.last)
        self.last = moment


def now(device):
    """Return the time in seconds, once the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def forget_peak(device):
    """Begin to look for the highest memory from here on, where the system allows it."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif os.access("/proc/self/clear_refs", os.W_OK):
        Path("/proc/self/clear_refs").write_text("5")


def peak_megabytes(device):
    """Return the highest memory since `forget_peak`, in MB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    status = Path("/proc/self/status")
    if status.is_file():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if "VmHWM" in line) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def trainer_of(name, model, processor, pairs, batch_size, device, folder, **changes):
    """Return the trainer of a defence and the stopwatch that runs with it."""
    defense = DEFENSES[name]
    k_pairs = {"k_pairs": max(2, round(PAPER_SHARE * len(pairs)))} if name == "cleanerclip" else {}
    settings = {
        "output_dir": folder,
        "per_device_train_batch_size": batch_size,
        "num_train_epochs": 1,
        "use_cpu": device == "cpu",
        "dataloader_num_workers": WORKERS,
        "dataloader_pin_memory": device != "cpu",
        "logging_strategy": "no",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    args = defense.config(**{**settings, **k_pairs, **changes})
    watch = Stopwatch(device)
    canvas = Canvas.of(processor)
    trainer = defense.trainer(model, args, pairs, processor, canvas=canvas, callbacks=[watch])
    trainer.remove_callback(PrinterCallback)
    return trainer, watch


def train_on(trainer, watch, batches):
    """Return the seconds of every step of one epoch on batches that lie ready."""
    watch.seconds = []
    trainer.get_train_dataloader = lambda: batches
    trainer.train()
    return watch.seconds


# -- the embedded world -----------------------------------------------------------------------------------------------


def drain(trainer):
    """Return the batches of an epoch and the pairs a second that the loader gives, once its workers have started."""
    loader, batches, started = iter(type(trainer).get_train_dataloader(trainer)), [], 0.0
    for batch in loader:
        started = started or time.perf_counter()
        batches.append(batch)
    pairs = sum(len(batch["rows"]) for batch in batches[1:])
    return batches, pairs / (time.perf_counter() - started)


def on_scenes(name, pairs, options, **changes):
    """Return the trainer of a defence of the shipped clean CLIP, and its stopwatch."""
    model, processor = scenes.load_clean_clip()
    changes |= {"bf16": True} if options.device == "cuda" else {}
    place = (options.batch_size, options.device, f"{options.folder}/{name}")
    return trainer_of(name, model.to(memory_format=torch.channels_last), processor, pairs, *place, **changes)


def memory_of(name, options):
    """Return the highest memory of eight steps in a process of its own, in MB; {"whole", "in_chunks"}, see below."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        sizes = {"whole": {}, "in_chunks": {"freeze_batch_norm": True, "chunk_size": max(1, options.batch_size // 8)}}
        return {kind: pool.apply(steps_memory, (name, options, changes)) for kind, changes in sizes.items()}


def steps_memory(name, options, changes):
    """Return what eight steps add to the memory of a process that has the model and the batches, in MB."""
    torch.set_num_threads(1)
    pairs = scenes.load_scenes("defense", 64, 0, options.pairs, num_proc=1).select(range(8 * options.batch_size))
    trainer, watch = on_scenes(name, pairs, options, dataloader_num_workers=0, **changes)
    batches, _ = drain(trainer)
    forget_peak(options.device)
    before = peak_megabytes(options.device)
    train_on(trainer, watch, batches)
    return peak_megabytes(options.device) - before


def world(options):
    """Return the figures of the three defences on the embedded world."""
    pairs = scenes.load_scenes("defense", 64, 0, options.pairs, num_proc=1)
    built = {name: on_scenes(name, pairs, options) for name in NAMES}
    raw = {name: {"step": [], "epoch": [], "pipeline": []} for name in NAMES}
    for _ in range(options.rounds):
        for name, (trainer, watch) in built.items():
            batches, rate = drain(trainer)
            seconds = train_on(trainer, watch, batches)
            raw[name]["pipeline"].append(rate)
            raw[name]["epoch"].append(sum(seconds))
            whole = [s for s, batch in zip(seconds, batches, strict=True) if len(batch["rows"]) == options.batch_size]
            raw[name]["step"].append(statistics.median(whole[1:]))  # the first step takes memory from the system
    figures = {name: {key: statistics.median(values) for key, values in one.items()} for name, one in raw.items()}
    for name, one in figures.items():
        one["model_pairs_per_second"] = options.batch_size / one["step"]
        one["pipeline_over_model"] = one["pipeline"] / one["model_pairs_per_second"]
        one["memory"] = memory_of(name, options)
        one["k_pairs"] = getattr(built[name][0].args, "k_pairs", 0)
    return {"pairs": len(pairs), "batch_size": options.batch_size, "rounds": raw, "median": figures, **bars(figures)}


def bars(figures):
    """Return the ratios that are asked for, each with its bound and whether it is met."""
    slowest = min(one["pipeline_over_model"] for one in figures.values())
    asked = {
        "cleanclip_step_over_ft": (figures["cleanclip"]["step"] / figures["ft"]["step"], "<=", 2.1),
        "cleanerclip_epoch_over_cleanclip": (
            figures["cleanerclip"]["epoch"] / figures["cleanclip"]["epoch"],
            "<=",
            1.1,
        ),
        "pipeline_over_model": (slowest, ">=", 1.5),
    }
    return {
        "bars": {
            name: {
                "value": value,
                "asked": f"{sign} {bound}",
                "met": value <= bound if sign == "<=" else value >= bound,
            }
            for name, (value, sign, bound) in asked.items()
        }
    }


# -- models of OpenAI's shapes ----------------------------------------------------------------------------------------


def vit_b_32(text):
    """Return a CLIP of the shape of OpenAI's ViT-B/32."""
    return CLIPModel(CLIPConfig(text_config=text, vision_config={}, projection_dim=512)), 224


def rn50(text):
    """Return a CLIP of the shape of OpenAI's RN50."""
    return CLIPResNetModel(CLIPResNetConfig({}, text, projection_dim=1024)), 224


def tiny(text):
    """Return a small Vision Transformer CLIP, to try the benchmark with."""
    text = {**text, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": 32, "patch_size": 8}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64)), 32


SHAPES = {"vit-b-32": vit_b_32, "rn50": rn50, "tiny": tiny}


def matrix_rate(device, size):
    """Return the bf16 multiply-and-add operations a second that a product of two square matrices reaches."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(12):
        started = now(device)
        a @ b
        seconds.append(now(device) - started)
    return 2 * size**3 / min(seconds)


def batch_on(device, n, size, end):
    """Return a batch of n random pairs on the device, as the collator would give it: one view, 77 tokens."""
    tokens = torch.randint(1, 400, (n, 1, 77), device=device)
    tokens[..., -1] = end
    return {
        "rows": torch.arange(n, device=device),
        "pixel_values": torch.randint(0, 256, (n, 1, 3, size, size), dtype=torch.uint8, device=device),
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
    }


def bare_loop(model, batches, statistics_of_pixels, device):
    """Return the seconds of every step of a loop with the model's own `return_loss`, bf16 autocast and fused AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    model.train()
    seconds, last = [], now(device)
    for batch in batches:
        pixels = normalize(batch["pixel_values"].flatten(0, 1), *statistics_of_pixels)
        tokens = {name: batch[name].flatten(0, 1) for name in ("input_ids", "attention_mask")}
        with torch.autocast(device, torch.bfloat16):
            loss = model(pixel_values=pixels, **tokens, return_loss=True).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append((moment := now(device)) - last)
        last = moment
    return seconds


def operations(model, batch, statistics_of_pixels):
    """Return the multiply-and-add operations of one forward and backward pass."""
    pixels = normalize(batch["pixel_values"].flatten(0, 1), *statistics_of_pixels)
    tokens = {name: batch[name].flatten(0, 1) for name in ("input_ids", "attention_mask")}
    with FlopCounterMode(display=False) as counter:
        model(pixel_values=pixels, **tokens, return_loss=True).loss.backward()
    model.zero_grad()
    return counter.get_total_flops()


def shape(name, options, peak):
    """Return the figures of one shape at every batch size; a size that does not fit is left out with its reason."""
    captions = [f"a {colour} {noun}" for colour in ("red", "green", "blue") for noun in ("cup", "dog", "tree")]
    tokenizer = train_tokenizer(captions, vocab_size=600, model_max_length=77)
    torch.manual_seed(0)
    model, size = SHAPES[name](TEXT)
    model = model.to(options.device, memory_format=torch.channels_last)
    processor = build_processor(tokenizer, size)
    pixels = pixel_statistics(processor)
    few = scenes.load_scenes("defense", 64, 0, 64, num_proc=1)  # counted, never drawn
    pairs = few.select([row % 64 for row in range(max(options.batch_sizes))])
    rows = []
    for batch_size in options.batch_sizes:
        batch = batch_on(options.device, batch_size, size, TEXT["eos_token_id"])
        each = operations(model, batch_on(options.device, 2, size, TEXT["eos_token_id"]), pixels) / 2
        row = {"model": name, "batch_size": batch_size, "gflop_per_pair": each / 1e9}
        rows.append(row)
        ours = functools.partial(ours_on, model, processor, pairs, batch, batch_size, options)
        bare = functools.partial(bare_loop, model, [batch] * options.steps, pixels, options.device)
        for kind, step in (("ours", ours), ("transformers", bare)):
            forget_peak(options.device)
            try:
                seconds = statistics.median(step()[2:])
            except torch.OutOfMemoryError:
                row[kind] = {"left_out": "out of memory"}
                continue
            rate = batch_size / seconds
            row[kind] = {"pairs_per_second": rate, "share_of_matrix_rate": rate * each / peak}
            row[kind]["peak_mb"] = peak_megabytes(options.device)
    return rows


def ours_on(model, processor, pairs, batch, batch_size, options):
    """Return the seconds of every step of FT on one batch, again and again."""
    place = (batch_size, options.device, f"{options.folder}/shape")
    trainer, watch = trainer_of("ft", copy.deepcopy(model), processor, pairs, *place, bf16=True)
    return train_on(trainer, watch, [batch] * options.steps)


# -- what is shown and kept -------------------------------------------------------------------------------------------


def show(record):
    """Print the figures as tables."""
    if "world" in record:
        figures = record["world"]["median"]
        print(
            f"{'':12} {'step ms':>9} {'epoch s':>9} {'model /s':>9} {'pipeline /s':>12} {'ratio':>6} {'MB':>6} "
            f"{'MB in chunks':>12}"
        )
        for name, one in figures.items():
            print(
                f"{name:12} {1e3 * one['step']:9.1f} {one['epoch']:9.2f} {one['model_pairs_per_second']:9.0f} "
                f"{one['pipeline']:12.0f} {one['pipeline_over_model']:6.2f} {one['memory']['whole']:6.0f} "
                f"{one['memory']['in_chunks']:12.0f}"
            )
        for name, bar in record["world"]["bars"].items():
            print(f"{name:34} {bar['value']:6.3f}  asked {bar['asked']:7} {'met' if bar['met'] else 'NOT MET'}")
    for row in record.get("shapes", []):
        for kind in ("ours", "transformers"):
            one = row[kind]
            what = one.get("left_out") or (
                f"{one['pairs_per_second']:9.1f} pairs/s, {one['share_of_matrix_rate']:6.1%} of the matrix rate, "
                f"peak {one['peak_mb']:.0f} MB"
            )
            print(f"{row['model']:9} batch {row['batch_size']:5} {kind:13} {what}")


def machine(device):
    """Return what the figures were measured on."""
    cpu = Path("/proc/cpuinfo")
    models = [line.partition(":")[2].strip() for line in cpu.read_text().splitlines() if "model name" in line]
    return {
        "arch": platform.machine(),
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_before": os.getloadavg(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    }


def parse(arguments):
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--models", nargs="+", choices=("scenes", *SHAPES), default=["scenes"], help="what is trained")
    parser.add_argument("--pairs", type=int, default=4096, help="pairs of the embedded world")
    parser.add_argument("--batch_size", type=int, default=64, help="pairs a step on the embedded world")
    parser.add_argument("--rounds", type=int, default=3, help="epochs of each defence on the embedded world")
    parser.add_argument(
        "--batch_sizes", type=int, nargs="+", default=[64, 256, 1024, 2048], help="of the other models"
    )
    parser.add_argument("--steps", type=int, default=12, help="steps of the other models, the first two not counted")
    parser.add_argument("--matrix", type=int, default=8192, help="side of the matrices of the matrix rate")
    parser.add_argument("--out", default="runs/benchmarks/train.json", help="the record")
    return parser.parse_args(arguments)


def main(arguments):
    """Measure, print and write the record."""
    options = parse(arguments)
    datasets.disable_progress_bars()
    record = {"command": shlex.join(["python", "benchmarks/train.py", *arguments]), "versions": package_versions()}
    record |= {"machine": machine(options.device), "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    with tempfile.TemporaryDirectory() as options.folder:
        if "scenes" in options.models:
            record["world"] = world(options)
        shapes = [name for name in options.models if name != "scenes"]
        if shapes:
            peak = matrix_rate(options.device, options.matrix)
            record["matrix_tflops"] = peak / 1e12
            record["shapes"] = [row for name in shapes for row in shape(name, options, peak)]
    record["machine"]["load_after"] = os.getloadavg()
    show(record)
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    write_json(options.out, json.loads(json.dumps(record)))
    print(f"record: {options.out}")


if __name__ == "__main__":
    main(sys.argv[1:])
