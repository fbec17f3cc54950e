# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""A run folder made of invented figures, laid out as the stages leave it: what report and cards are tested on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
import yaml
from PIL import Image, ImageDraw
from transformers import PreTrainedModel

from hf_clipbd.attacks import BadNets
from hf_clipbd.data.canvas import Canvas
from hf_clipbd.schema import EvalReport, PoisonManifest, Rate, RunRecord, TriggerReport, write_json
from hf_clipbd.trainer import CLIPTrainingConfig
from hf_clipbd.training.adapters import add_adapters, merge_adapters


KS = (1, 3, 5, 10)
N_TEST, N_STAMPED, N_ROWS, COUNT = 960, 940, 4000, 40
VERSIONS = {"python": "0.0.0", "hf_clipbd": "0.0.0"}
MACHINE = {"arch": "fabricated", "cores": 0}
HITS = {  # model -> clean hits, stamped hits on the target, stamped hits on the truth, out of N_TEST and N_STAMPED
    "clean": ((900, 930, 940, 955), (9, 40, 70, 140), (850, 880, 890, 900)),
    "victim": ((890, 925, 938, 950), (930, 936, 938, 939), (40, 600, 700, 800)),
    "ft": ((885, 924, 936, 951), (400, 560, 640, 720), (500, 700, 780, 850)),
    "cleanclip": ((880, 922, 935, 950), (60, 150, 210, 330), (800, 850, 870, 890)),
    "cleanerclip": ((878, 921, 934, 949), (12, 45, 80, 160), (840, 870, 880, 895)),
}
CONFIG: dict[str, Any] = {
    "seed": 7,
    "output_dir": "/home/somebody/secret_place/runs/fabricated",
    "world": {
        "kind": "labelled",
        "path": "/home/somebody/secret_place/invented_photographs",
        "size": 64,
        "n_test": N_TEST,
        "test_path": None,
        "test_split": "test",
        "clean_model": "/home/somebody/secret_place/clean_clip",
    },
    "attack": {"name": "badnets", "target": "banana"},
    "poison": {"count": COUNT},
    "victim": {"num_train_epochs": 3, "learning_rate": 0.001},
    "defenses": {
        "ft": {"num_train_epochs": 3, "learning_rate": 0.0005},
        "cleanclip": {"num_train_epochs": 3, "learning_rate": 0.0005, "inmodal_weight": 1.0},
        "cleanerclip": {"num_train_epochs": 3, "learning_rate": 0.0005, "counterfactual_pairs": 500},
    },
    "evaluate": {"include_target": False, "epoch_images": 500},
    "detect": {"detectors": ["slof", "k_distance"], "k": 16, "rates": [0.001]},
    "report": {"html": True, "cards": True},
}


def evaluation(model: str) -> EvalReport:
    """Return the invented evaluation of `model`."""
    clean, stamped, truth = (dict(zip(KS, hits, strict=True)) for hits in HITS[model])
    asr = {k: Rate.of(hits, N_STAMPED) for k, hits in stamped.items()}
    ra = {k: Rate.of(hits, N_STAMPED) for k, hits in truth.items()}
    ba = {k: Rate.of(hits, N_TEST) for k, hits in clean.items()}
    return EvalReport(ba=ba, triggers={"badnets": TriggerReport("banana", asr, ra)}, n_classes=40)


def history(start: tuple[float, float], end: tuple[float, float], epochs: int = 3) -> list[dict[str, float]]:
    """Return an invented training log from BA and ASR at `start` to those at `end`."""
    log = []
    for epoch in range(1, epochs + 1):
        share = 1 - 0.2**epoch
        ba, asr = (a + (b - a) * share for a, b in zip(start, end, strict=True))
        log.append({"epoch": float(epoch), "loss": 2.0 / epoch, "loss_clip": 1.5 / epoch, "eval_ba1": ba})
        log[-1]["eval_asr1_badnets"] = asr
    return log


def _record(folder: Path, stage: str, config: dict, metrics: dict, inputs: dict, seconds: float) -> str:
    record = RunRecord(
        stage=stage, key=f"key-of-{stage}", config=config, metrics=metrics, seed=CONFIG["seed"], inputs=inputs,
        seconds=seconds, command="defend.py --output_dir /home/somebody/secret_place/runs/fabricated",
        versions=VERSIONS, machine=MACHINE,
    )  # fmt: skip
    record.save(folder / stage)
    return record.key


def _model_files(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", {"model_type": "clip_resnet", "architectures": ["CLIPResNetModel"]})
    write_json(folder / "processor_config.json", {"processor_class": "CLIPProcessor"})
    (folder / "model.safetensors").write_bytes(b"not a model: fabricated")


def _poison(folder: Path) -> None:
    rng = np.random.default_rng(0)
    indices = sorted(rng.choice(N_ROWS, COUNT, replace=False).tolist())
    attack = BadNets(target="banana", seed=CONFIG["seed"], canvas=Canvas(64))
    PoisonManifest(
        "badnets",
        attack.parameters(),
        "banana",
        indices,
        N_ROWS,
        CONFIG["seed"],
        "0123456789abcdef",
        versions=VERSIONS,
    ).save_pretrained(folder / "poison")
    attack.save_pretrained(folder / "poison" / "trigger")
    samples = folder / "poison" / "samples"
    samples.mkdir()
    listed = []
    for number in range(8):
        image = Image.fromarray(rng.integers(60, 200, (64, 64, 3)).astype(np.uint8)).resize((8, 8)).resize((64, 64))
        draw = ImageDraw.Draw(image)
        draw.ellipse((10 + number, 12, 40 + number, 44), fill=tuple(rng.integers(0, 255, 3).tolist()))
        image.save(samples / f"{number:02d}_clean.png")
        attack(image, indices[number]).save(samples / f"{number:02d}_poisoned.png")
        captions = {"caption_clean": f"a small striped circle number {number} above a large red square on the grass"}
        listed.append({"index": indices[number], **captions, "caption_poisoned": attack.caption(indices[number], "")})
    write_json(samples / "samples.json", listed)


def _detect(folder: Path) -> dict:
    from sklearn.metrics import average_precision_score, roc_auc_score

    rng = np.random.default_rng(1)
    poisoned = np.zeros(N_ROWS, dtype=bool)
    poisoned[PoisonManifest.from_pretrained(folder / "poison").indices] = True
    scores = {
        "slof": np.exp(rng.normal(0, 0.12, N_ROWS) + 0.35 * poisoned),
        "k_distance": np.clip(rng.normal(0.4, 0.08, N_ROWS) + 0.2 * poisoned, 0.05, None),
    }
    (folder / "detect").mkdir(parents=True)
    columns = {"row": range(N_ROWS), **{f"score_{name}": one for name, one in scores.items()}, "is_poisoned": poisoned}
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "detect" / "scores.parquet")
    kind = np.where(poisoned, "poisoned", np.where(rng.random(N_ROWS) < 0.02, "target", "clean"))[:1500]
    centres = {"clean": (0.0, 0.0), "poisoned": (1.5, 1.2), "target": (1.2, -1.0)}
    points = [(rng.normal(centres[one], (0.8, 0.7) if one == "clean" else (0.1, 0.1))).tolist() for one in kind]
    (folder / "detect" / "map.json").write_text(json.dumps({"points": points, "kind": kind.tolist()}))

    def figures(name: str) -> dict:
        one = scores[name]
        return {
            "auroc": float(roc_auc_score(poisoned, one)), "auprc": float(average_precision_score(poisoned, one)),
            "fpr_at_95_tpr": 0.123, "precision": 0.456, "recall": 0.456, "n": N_ROWS, "n_poisoned": COUNT,
        }  # fmt: skip

    other = {"auroc": 0.97, "auprc": 0.31, "fpr_at_95_tpr": 0.08, "precision": 0.4, "recall": 0.4}
    rates = {"0.001": {name: {**other, "n": 3964, "n_poisoned": 4, "n_draws": 5} for name in scores}}
    return {"detectors": {name: figures(name) for name in scores}, "rates": rates}


def fabricate_run(folder: Path) -> Path:
    """Write a whole run with invented figures into `folder` and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False), encoding="utf-8")
    _poison(folder)
    counts = {"count": COUNT, "n_rows": N_ROWS, "rate": COUNT / N_ROWS}
    poison = _record(folder, "poison", {**CONFIG["attack"], **CONFIG["poison"]}, counts, {}, 3.0)
    keys = {"clean": None}
    for model, hits in HITS.items():
        if model == "clean":
            continue
        stage, before = ("victim", "clean") if model == "victim" else (f"defend/{model}", "victim")
        section = CONFIG["victim"] if model == "victim" else CONFIG["defenses"][model]
        ends = [(HITS[name][0][0] / N_TEST, HITS[name][1][0] / N_STAMPED) for name in (before, model)]
        metrics = {"history": history(*ends), "images_per_second": 111.0, "steps": len(hits)}
        inputs = {"poison": poison} if model == "victim" else {"victim": keys["victim"]}
        section = {"training": section, "global_batch": 64, "canvas": [64, "center_crop"], "measured": {"n": 500}}
        _model_files(folder / stage)
        keys[model] = _record(folder, stage, section, metrics, inputs, 60.0 + len(model))
    for model, key in keys.items():
        inputs = {"poison": poison} if key is None else {"poison": poison, "model": key}
        metrics = {"report": evaluation(model).to_dict()}
        _record(folder, f"evaluate/{model}", CONFIG["evaluate"], metrics, inputs, 5.0)
    _record(folder, "detect", CONFIG["detect"], _detect(folder), {"victim": keys["victim"]}, 4.0)
    return folder


def give_adapters(run: Path, what: str, model: PreTrainedModel, scale: float) -> None:
    """Let the defence `what` have trained adapters onto `model`, as its stage leaves them: apart and merged."""
    adapted = add_adapters(model, CLIPTrainingConfig("unused", use_cpu=True, lora=True, lora_r=2))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    adapted.save_pretrained(run / what / "adapter")
    merge_adapters(adapted).save_pretrained(run / what)
