# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What a reproduction measures on the models of a finished job beside the job's own: domains, probes, scans."""

import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import datasets
import numpy as np

from hf_clipbd import scenes
from hf_clipbd.detection.scan import check_scan
from hf_clipbd.evaluation import evaluate_zero_shot, linear_probe
from hf_clipbd.evaluation.protocol import class_names_of
from hf_clipbd.features import model_fingerprint
from hf_clipbd.models import load_dual_encoder
from hf_clipbd.recipe.config import RunConfig
from hf_clipbd.recipe.fingerprints import data_fingerprint
from hf_clipbd.recipe.job import models, training_stages
from hf_clipbd.recipe.measuring import load_model
from hf_clipbd.recipe.options import option
from hf_clipbd.recipe.place import model_device
from hf_clipbd.recipe.scanning import scan_figures
from hf_clipbd.recipe.sections import ConfigError, parse_section
from hf_clipbd.recipe.single import SCENES, Data
from hf_clipbd.recipe.stage import Outcome, Stage
from hf_clipbd.recipe.training import poisoned_pairs
from hf_clipbd.recipe.world import VALIDATION_SEED, World, clean_model, stage_of
from hf_clipbd.recipe.zero_shot import load_trigger
from hf_clipbd.schema import LABEL, TOP_K, RunRecord, reachable


FOLDER = "measured"


@dataclass
class Measure:
    """One further measurement of every model of a job, its trigger too where its target is one of the classes."""

    protocol: Literal["zero_shot", "linear_probe", "scan"] = option(
        "zero_shot", "What is measured; `scan` is how well `hf_clipbd.detection.scan` tells stamped from clean images."
    )
    data: str = option(SCENES, "Labelled images: `scenes`, or what `hf_clipbd.data.sources.load_source` takes.")
    style: str = option("default", "Drawing of the scenes, a value of `hf_clipbd.scenes.STYLES`.")
    split: str = option("test", "Split of the images that are measured on.")
    train_split: str = option("train", "Split that a linear probe is fitted on.")
    n_test: int | None = option(None, "Images measured on; by default the run's number of scenes, or the split.")
    n_train: int | None = option(None, "Images a linear probe is fitted on, or a scan compares with.")
    label_column: str = option("label", "Column of labels.")
    reference: Literal["clean", "poisoned"] = option(
        "clean", "What a scan compares with: images of the train split, or a random part of the job's poisoned pairs."
    )
    detectors: list[str] = option(
        ["multi_scale", "k_distance", "slof", "lid", "disagreement"],
        "Detectors of a scan; `disagreement` compares with the clean model, so that this one is scanned without it.",
    )

    def __post_init__(self):
        if self.style not in scenes.STYLES or (self.style != "default" and self.data != SCENES):
            raise ValueError(f"`style` is one of {scenes.STYLES}, of scenes alone, but got {self.style!r}.")
        drawn = self.data == SCENES or self.reference == "poisoned"
        if self.protocol != "zero_shot" and drawn and self.n_train is None:
            raise ValueError("a linear probe or a scan on scenes needs `n_train`, a number of them.")
        for name in self.detectors:
            check_scan(name)

    def test(self, config: RunConfig) -> datasets.Dataset:
        """Return the labelled images that are measured on."""
        return self._images(config, self.split, self.n_test or (config.world.n_test if self.data == SCENES else None))

    def train(self, config: RunConfig) -> datasets.Dataset:
        """Return the labelled images that a probe is fitted on: scenes of a seed of their own, or the train split."""
        return self._images(config, self.train_split, self.n_train, VALIDATION_SEED)

    def compared(self, config: RunConfig) -> datasets.Dataset:
        """Return the images that a scan compares with; the run's seed draws a part of the poisoned ones."""
        if self.reference == "clean":
            return self.train(config)
        pairs = poisoned_pairs(config)
        drawn = np.random.default_rng([config.seed, len(pairs)]).choice(len(pairs), self.n_train, replace=False)
        return pairs.select(np.sort(drawn))

    def inputs(self) -> dict[str, str]:
        """Return fingerprints of the images, of others than rendered scenes: name -> fingerprint."""
        if self.data == SCENES:
            return {}
        found = {"test": _content(self._data(self.split, self.n_test))}
        fitted = self.protocol == "linear_probe" or (self.protocol == "scan" and self.reference == "clean")
        return {**found, "train": _content(self._data(self.train_split, self.n_train))} if fitted else found

    def _data(self, split: str, n: int | None) -> Data:
        return Data(self.data, split, n=n, label_column=self.label_column)

    def _images(self, config: RunConfig, split: str, n: int | None, apart: int = 0) -> datasets.Dataset:
        if self.data == SCENES:
            return scenes.load_scenes("test", config.world.size, config.seed + apart, n, style=self.style)
        return self._data(split, n).labelled()


@functools.lru_cache(maxsize=32)
def _content(data: Data) -> str:
    return data_fingerprint(data.labelled())


@functools.lru_cache(maxsize=4)
def _weights(clean_model: str) -> str:
    """Return what tells a given clean model from others: the shipped one's name, the fingerprint of any other."""
    return clean_model if clean_model == SCENES else model_fingerprint(load_dual_encoder(clean_model)[0])


def measures_from(values: Any) -> dict[str, Measure]:
    """Return name -> measurement of the section `measures`; raises `ConfigError` for what is not understood."""
    if not isinstance(values or {}, Mapping):
        raise ConfigError(f"Expected `measures` to map names to their settings, but got {values!r}.")
    return {name: parse_section(Measure, one or {}, f"measures.{name}") for name, one in (values or {}).items()}


def _stage(config: RunConfig, name: str, measure: Measure, model: str) -> Stage:
    """Return the stage `measured/<name>/<model>`; the records that it depends on have to be there."""
    inputs = {"poison": RunRecord.load(config.output_dir / "poison").key, **measure.inputs()}
    usual = asdict(Measure())
    settings = {key: value for key, value in asdict(measure).items() if value != usual[key]}
    settings |= {} if measure.data != SCENES else {"n_test": measure.n_test or config.world.n_test}
    if stage_of(model) in training_stages(config):
        inputs["model"] = RunRecord.load(config.output_dir / stage_of(model)).key
    else:  # what the key of a training has already, as far as it is not the usual
        inputs["model"] = _weights(config.world.clean_model)
        settings |= {"include_target": True} if config.evaluate.include_target else {}
        settings |= {"prompts": config.world.prompts} if config.world.prompts else {}
    return Stage(config.output_dir, f"{FOLDER}/{name}/{model}", settings, config.seed, inputs)


def missing(config: RunConfig, measures: Mapping[str, Measure]) -> bool:
    """Return whether a measurement of a finished job is not there yet."""
    return any(_stage(config, name, one, model).current() is None
               for name, one in measures.items() for model in models(config))  # fmt: skip


def measure_all(config: RunConfig, measures: Mapping[str, Measure]) -> list[RunRecord]:
    """Measure every model of a job whose weights are there (stages `measured/<name>/<model>`); return the records."""
    world = World(config)
    return [
        _stage(config, name, one, model).run_once(lambda _, m=model, o=one: Outcome(_figures(config, world, o, m), {}))
        for name, one in measures.items()
        for model in models(config)
    ]


def _figures(config: RunConfig, world: World, measure: Measure, name: str) -> dict[str, Any]:
    model, processor = load_model(config, name, world)[1]()
    model = model.to(model_device())
    test = measure.test(config)
    classes = class_names_of(test, LABEL)
    triggers = load_trigger(config) if world.target in classes else {}
    placed = {"batch_size": config.evaluate.batch_size, "canvas": world.canvas}
    common = {"ks": reachable(TOP_K, len(classes)), "include_target": config.evaluate.include_target, **placed}
    fingerprints = {"test": data_fingerprint(test)}
    if measure.protocol == "zero_shot":
        prompts = world.prompts if measure.data == SCENES else None
        report = evaluate_zero_shot(model, processor, test, triggers, prompts, **common)
        return {"report": report.to_dict(), "fingerprints": fingerprints}
    if measure.protocol == "scan":
        reference = measure.compared(config)
        second, seeing = clean_model(config, world)[1]()
        detectors = [one for one in measure.detectors if name != "clean" or one != "disagreement"]
        pair = second.to(model_device()), seeing
        found = scan_figures((model, processor), pair, test, reference, triggers, detectors, **placed)
        return {"scan": found, "fingerprints": {**fingerprints, "reference": data_fingerprint(reference)}}
    train = measure.train(config)
    probe = linear_probe(model, processor, train, test, triggers, seed=config.seed, **common).to_dict()
    return {**probe, "fingerprints": {**fingerprints, "train": data_fingerprint(train)}}
