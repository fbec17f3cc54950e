# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The text side of an ImageNet-sized evaluation: 1,000 classes x 80 prompts, its time and the memory that it adds.

    python benchmarks/text_side.py --model FOLDER [--classes 1000] [--shape rn50] [--out FOLDER]

The names are common nouns in pairs, as ImageNet's own are not shipped; the prompts are OpenAI's 80. `--shape rn50`
takes a random text tower of RN50's shape (12 layers of 512 channels, 77 positions) in the place of the model's.
"""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import torch

from hf_clipbd.attacks import OPENAI_TEMPLATES
from hf_clipbd.captions.lexicon import lexicon
from hf_clipbd.evaluation import text_classifier
from hf_clipbd.features import model_fingerprint
from hf_clipbd.models import CLIPResNetConfig, CLIPResNetModel, load_dual_encoder
from hf_clipbd.schema import RunRecord, content_key


def rn50_text(vocabulary: int, ends: tuple[int, int]) -> CLIPResNetModel:
    """Return a model with RN50's text tower, random, and the smallest image tower."""
    text = {"vocab_size": vocabulary, "bos_token_id": ends[0], "eos_token_id": ends[1], "pad_token_id": ends[1]}
    vision = {"width": 2, "layers": (1, 1, 1, 1), "image_size": 32}
    return CLIPResNetModel(CLIPResNetConfig(vision, text)).eval()


def peak_mib() -> float:
    """Return the largest resident size of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    """Measure, write the record and say the time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--shape", choices=["own", "rn50"], default="own")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/records/text_side"))
    options = parser.parse_args()

    model, processor = load_dual_encoder(options.model)
    tokenizer = processor.tokenizer
    if options.shape == "rn50":
        model = rn50_text(len(tokenizer), (tokenizer.bos_token_id, tokenizer.eos_token_id))
    nouns = lexicon().nouns
    names = [f"{nouns[i % len(nouns)]} {nouns[(7 * i + 1) % len(nouns)]}" for i in range(options.classes)]
    peaks = [peak_mib()]
    text_classifier(model, processor, names[:10], batch_size=options.batch_size)
    peaks.append(peak_mib())
    with tempfile.TemporaryDirectory() as cache:
        seconds = []
        for _ in range(2):  # the second one finds it there
            start = time.perf_counter()
            text_classifier(model, processor, names, batch_size=options.batch_size, cache=cache)
            seconds.append(time.perf_counter() - start)
    peaks.append(peak_mib())
    prompts = len(names) * len(OPENAI_TEMPLATES)
    metrics = {
        "classes": len(names),
        "prompts": prompts,
        "seconds": round(seconds[0], 2),
        "seconds_from_cache": round(seconds[1], 3),
        "prompts_per_second": round(prompts / seconds[0], 1),
        "mib_added_by_ten_classes": round(peaks[1] - peaks[0], 1),
        "mib_added_by_the_others": round(peaks[2] - peaks[1], 1),
        "torch_threads": torch.get_num_threads(),
    }
    config = {"classes": len(names), "batch_size": options.batch_size, "shape": options.shape}
    inputs = {"model": model_fingerprint(model)}
    RunRecord("benchmark/text_side", content_key(config, inputs), config, metrics, 0, inputs).save(options.out)
    print(metrics)
    return 0


if __name__ == "__main__":
    sys.exit(main())
