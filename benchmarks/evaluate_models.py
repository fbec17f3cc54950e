# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""How much of the bare forward pass's rate an evaluation keeps: BA and six triggers' ASR in one pass, as one record.

    python benchmarks/evaluate_models.py --model FOLDER --data FOLDER [--n 10000] [--size 64] [--out FOLDER]

A script called `evaluate.py` would hide the library of that name from every script beside it, hence the name.

The evaluation decodes each picture, puts it on the canvas, stamps it six times, embeds the seven and counts. The bare
pass embeds as many prepared pixels in batches of the same size. Both take turns, piece by piece, so that a machine
that others use slows both alike; the first piece is not counted.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import torch

from hf_clipbd.attacks import SIG, BadNets, Blended, WaNet
from hf_clipbd.data.canvas import Canvas, normalize, pixel_statistics
from hf_clipbd.data.sources import load_source, pick_columns
from hf_clipbd.evaluation import evaluate_zero_shot
from hf_clipbd.features import embed_images, inference, model_fingerprint
from hf_clipbd.models import load_dual_encoder
from hf_clipbd.schema import LABEL, RunRecord, content_key


def triggers(target: str, patch: int) -> dict:
    """Return six triggers: four kinds, and BadNets in three places."""
    return {
        "badnets": BadNets(target=target, patch_size=patch),
        "badnets_corner": BadNets(target=target, patch_size=patch, place="corner", seed=1),
        "badnets_middle": BadNets(target=target, patch_size=patch, place="middle", seed=2),
        "blended": Blended(target=target),
        "sig": SIG(target=target),
        "wanet": WaNet(target=target),
    }


def bare(model, processor, images: int, batch_size: int, size: int) -> tuple[float, float]:
    """Return wall-clock and processor seconds of embedding that many prepared images."""
    pixels = torch.randint(0, 256, (batch_size, 3, size, size), dtype=torch.uint8)
    with inference(model) as device:
        batch = normalize(pixels.to(device), *pixel_statistics(processor))
        start, used = time.perf_counter(), time.process_time()
        for done in range(0, images, batch_size):
            embed_images(model, batch[: images - done]).cpu()
        return time.perf_counter() - start, time.process_time() - used


def main() -> int:
    """Measure, write the record and say the share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--label_column", default="label")
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--pieces", type=int, default=10)
    parser.add_argument("--batch_size", type=int, default=252)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/records/evaluate"))
    options = parser.parse_args()

    model, processor = load_dual_encoder(options.model)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    rows = pick_columns(load_source(options.data, options.split), image="image", label=options.label_column)
    rows = rows.select(range(min(options.n, len(rows))))
    attacks = triggers(rows.features[LABEL].names[0], max(2, options.size // 14))
    canvas, copies = Canvas(options.size), 1 + len(attacks)
    batch_size = options.batch_size // copies * copies
    totals = {"evaluate": 0.0, "evaluate_cpu": 0.0, "forward": 0.0, "forward_cpu": 0.0}
    piece = -(-len(rows) // options.pieces)
    with tempfile.TemporaryDirectory() as cache:
        for number, start in enumerate([0, *range(0, len(rows), piece)]):  # the first one warms up
            part = rows.select(range(start, min(start + piece, len(rows))))
            begun, used = time.perf_counter(), time.process_time()
            evaluate_zero_shot(
                model, processor, part, attacks, batch_size=batch_size, canvas=canvas, progress=False, cache=cache
            )
            took = time.perf_counter() - begun, time.process_time() - used
            alone = bare(model, processor, copies * len(part), batch_size, options.size)
            if number > 0:
                for name, seconds in zip(totals, (*took, *alone), strict=True):
                    totals[name] += seconds
    images = copies * len(rows)
    metrics = {
        "images": len(rows),
        "triggers": len(attacks),
        "forward_passes": images,
        "seconds": {name: round(value, 3) for name, value in totals.items()},
        "evaluate_per_second": round(images / totals["evaluate"], 1),
        "forward_per_second": round(images / totals["forward"], 1),
        "share_of_forward_rate": round(totals["forward"] / totals["evaluate"], 4),
        "share_of_processor_time": round(totals["forward_cpu"] / totals["evaluate_cpu"], 4),
        "torch_threads": torch.get_num_threads(),
        "load_average": [round(one, 2) for one in os.getloadavg()],
    }
    config = {"n": len(rows), "size": options.size, "batch_size": batch_size, "pieces": options.pieces}
    inputs = {"model": model_fingerprint(model), "data": rows._fingerprint}
    RunRecord("benchmark/evaluate", content_key(config, inputs), config, metrics, 0, inputs).save(options.out)
    print(f"{metrics['evaluate_per_second']} of {metrics['forward_per_second']} images a second: "
          f"{100 * metrics['share_of_forward_rate']:.1f} % of the bare forward pass")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
