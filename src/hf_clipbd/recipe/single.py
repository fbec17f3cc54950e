# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The stages one at a time, on data and models of one's own: what the subcommands of `hf-clipbd` do.

Each writes the same outputs and the same record as within a run, skips what is up to date and goes on where it was
stopped.
"""

import functools
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from transformers import PreTrainedModel

from hf_clipbd import scenes
from hf_clipbd.attacks import Attack
from hf_clipbd.data.canvas import Canvas
from hf_clipbd.detection import Reference
from hf_clipbd.evaluation import ZeroShotEvaluator
from hf_clipbd.evaluation.protocol import on_pictures
from hf_clipbd.features import model_fingerprint
from hf_clipbd.models import load_dual_encoder
from hf_clipbd.recipe.basis import (
    Basis,
    check_search,
    check_sizes,
    naming_reference,
    search_settings,
    searched_rows,
)
from hf_clipbd.recipe.config import training_settings
from hf_clipbd.recipe.distilling import Distill, cached_mask_sizes
from hf_clipbd.recipe.embeddings import MIRRORED, cached_embeddings
from hf_clipbd.recipe.fingerprints import data_fingerprint, processor_fingerprint, trigger_fingerprint
from hf_clipbd.recipe.options import DetectConfig
from hf_clipbd.recipe.own_data import SCENES, Data, keep_framings, readable_pairs
from hf_clipbd.recipe.own_triggers import triggers_by_name
from hf_clipbd.recipe.place import model_device, process_state, scoring_place
from hf_clipbd.recipe.searching import search
from hf_clipbd.recipe.stage import Outcome, Stage
from hf_clipbd.recipe.steps import global_batch
from hf_clipbd.recipe.suspects import FILTERED_DATASET, Review, write_review
from hf_clipbd.recipe.training import train_into
from hf_clipbd.schema import CAPTION, EPOCH_KS, IMAGE, LABEL, RunRecord, content_key, reachable
from hf_clipbd.trainer import CLIPTrainer, CLIPTrainingConfig


_Encoders = dict[str, tuple[PreTrainedModel, Any, Canvas]]


def load_any(model: str) -> tuple[PreTrainedModel, Any]:
    """Return a model and its processor: `scenes` is the shipped clean CLIP, anything else a folder or Hub id."""
    return scenes.load_clean_clip() if model == SCENES else load_dual_encoder(model)


def stage_at(out: Path, kind: str, settings: dict[str, Any], seed: int, inputs: dict[str, str]) -> Stage:
    """Return a stage that lies in the folder `out` itself."""
    return Stage(out.parent, out.name, {"kind": kind, **settings}, seed, inputs)


def leaving_nothing(work: Callable[[Path], Outcome]) -> Callable[[Path], Outcome]:
    """Return the same work of a stage, which empties its scratch folder from the main process where it fails."""

    def cleared(folder: Path) -> Outcome:
        with ExitStack() as undo:
            if process_state().is_main_process:
                undo.callback(shutil.rmtree, folder, ignore_errors=True)
            outcome = work(folder)
            undo.pop_all()
            return outcome

    return cleared


@dataclass(frozen=True)
class Probe:
    """What a training is measured on after each epoch.

    Args:
        data: Labelled images.
        triggers: Folders or Hub ids of triggers.
    """

    data: Data
    triggers: tuple[str, ...] = ()

    @functools.cached_property
    def _attacks(self) -> dict[str, Attack]:
        return triggers_by_name(self.triggers)

    def framings(self) -> list[Canvas | None]:
        """Return the canvases on which the triggers stamp pictures; None for one that leaves their size alone."""
        return [one.canvas for one in self._attacks.values() if one.stamps_pictures]

    def evaluator(self, processor: Any, canvas: Canvas) -> ZeroShotEvaluator:
        """Return the measurement for models of this processor, of pictures on this canvas."""
        rows = self.data.labelled()
        ks = reachable(EPOCH_KS, len(rows.features[LABEL].names))
        triggers = on_pictures(self._attacks)
        return ZeroShotEvaluator(processor, rows, triggers, self.data.prompts(), ks, canvas=canvas)

    def inputs(self) -> dict[str, str]:
        """Return what tells these pictures and triggers from others, name -> fingerprint."""
        triggers = {f"trigger {name}": trigger_fingerprint(one) for name, one in self._attacks.items()}
        return {"test": data_fingerprint(self.data.labelled()), **triggers}


def train_model(
    model: str,
    data: Data,
    trainer_class: type[CLIPTrainer],
    config: CLIPTrainingConfig,
    probe: Probe | None,
    canvas: Canvas | None,
    out: Path,
    streaming: bool = False,
    on_error: str = "raise",
) -> RunRecord:
    """Train `model` on pairs with any of the trainers, into the folder `out`, and return the record.

    Pictures are trained and measured on one canvas, by default framed as the poisoned ones of `data` and the probe's
    triggers are (`ValueError` for several framings). Streamed pairs are read while it trains; the record then knows
    its source by `Data.stream_state`, and how many workers read it, on which the batches depend. With `on_error`
    `"skip"` pairs that cannot be read are left out, for which each picture is decoded once before the first step.
    """
    loaded, processor = load_any(model)
    pairs = (data.stream() if streaming else data.pairs()).select_columns([IMAGE, CAPTION])
    framings = [*data.framings(), *([] if probe is None else probe.framings())]
    canvas = canvas or Canvas.of(processor).framed_as(framings)
    readers = min(config.dataloader_num_workers, pairs.num_shards) if streaming else 0
    settings = {
        "trainer": trainer_class.__name__,
        "training": training_settings(config),
        "global_batch": global_batch(config),
        "canvas": [canvas.size, canvas.mode],
        "measured": None if probe is None else {**asdict(probe), "triggers": list(probe.triggers)},
        **({"streaming": True} if streaming else {}),
        **({"dataloader_num_workers": readers} if readers else {}),
        **({"on_error": on_error} if on_error != "raise" else {}),
    }
    columns = data.image_column, data.caption_column, data.n
    state = content_key(data.source, data.split, *columns, data.stream_state(besides=out)) if streaming else None
    inputs = {"model": model_fingerprint(loaded), "processor": processor_fingerprint(processor)}
    inputs |= {"data": state or data_fingerprint(pairs), **({} if probe is None else probe.inputs())}
    evaluator = (lambda _: None) if probe is None else functools.partial(probe.evaluator, canvas=canvas)
    stage = stage_at(out, "train", settings, config.seed, inputs)
    read = (lambda: pairs) if on_error == "raise" else lambda: readable_pairs(pairs, canvas)
    return train_into(stage, trainer_class, config, lambda: (loaded, processor), read, evaluator, canvas)


def detect_in(
    model: str,
    second: str | None,
    data: Data,
    options: DetectConfig,
    review: Review,
    cache: Path,
    out: Path,
    basis: Basis | None = None,
) -> RunRecord:
    """Search the rows of `data` through `model` into the folder `out` and return the record; no labels are needed.

    Writes the scores of every row, the page of suspects and the dataset without them; see `search` and `write_review`.
    Several processes share the embedding and the scoring; what comes out does not depend on how many there are.

    Args:
        model: The model that was trained on the data: a folder, a Hub id or `scenes`.
        second: Another encoder, for the detectors that compare two; likewise, or `mirrored`, which stands for the
            suspected model itself on mirrored pictures.

    Raises:
        ValueError: If a row cannot be read and none may be skipped, the second encoder is the suspected model, or as
            `check_search`, `searched_rows` and `check_sizes`.
    """
    basis, state = basis or Basis(), process_state()
    check_search(options, basis, second)
    pairs, clean = searched_rows(data, options, basis)
    whole = data.whole()
    check_sizes(options, len(pairs), len(pairs if clean is None else clean))
    framings = data.framings()
    encoders, inputs = _encoders(model, second, framings)
    inputs |= {"data": data_fingerprint(pairs)}
    inputs |= {} if clean is None else {"clean_reference": data_fingerprint(clean)}
    settings = {**search_settings(options), **asdict(review), **basis.settings()}
    stage = stage_at(out, "detect", settings, data.seed, inputs)
    embedder = _Embedder(encoders, cache, options.batch_size, basis)

    def work(folder: Path) -> Outcome:
        unreadable: dict[int, str] = {}
        features = embedder(pairs, unreadable, data.captioned)
        compared = embedder.compared_with(clean, options.reference, data)
        distill = embedder.distiller(pairs, data.seed)
        found, scores = search(features, pairs, options, None, data.seed, folder, compared, unreadable, distill)
        if not state.is_main_process:
            return found
        names = Path(data.source).name or data.source, Path(model).name or model
        metrics, outputs = write_review(
            names, pairs, whole, features, scores, review, data.seed, folder, unreadable, normalize=not basis.raw
        )
        if FILTERED_DATASET in outputs and framings:
            keep_framings(framings, folder / outputs[FILTERED_DATASET])
        return Outcome(found.metrics | metrics, found.outputs | outputs)

    return stage.run_once(leaving_nothing(work))


def _encoders(model: str, second: str | None, framings: Sequence[Canvas]) -> tuple[_Encoders, dict[str, str]]:
    """Return the encoders of a search, as `_Embedder` has them, and fingerprints of what they make of a row."""
    encoders, inputs = {}, {}
    for name, source in (("model", model), ("second", second)):
        if source == MIRRORED and name == "second":
            encoders[name], inputs[name] = encoders["model"], MIRRORED
        elif source is not None:
            loaded, processor = load_any(source)
            canvas = Canvas.of(processor).framed_as(framings)
            inputs[name] = model_fingerprint(loaded)
            inputs[f"{name}_processor"] = content_key(processor_fingerprint(processor), canvas.size, canvas.mode)
            if name == "second" and inputs[name] == inputs["model"]:
                raise ValueError(
                    f"Expected another encoder beside the suspected model, but `--second {second}` is the same as "
                    f"`--model {model}`, which agrees with itself. Pass one that never saw the data, or `mirrored`."
                )
            encoders[name] = loaded.to(model_device()), processor, canvas
    return encoders, inputs


@dataclass(frozen=True)
class _Embedder:
    """Embeds rows in each of the encoders of a search.

    Args:
        encoders: `model` and, where there is one, `second`: models on their device, with their processors and the
            geometry in which they see pictures, framed as the poisoned ones are, or framing alone would tell these.
        basis: What the search rests on.
    """

    encoders: _Encoders
    cache: Path
    batch_size: int
    basis: Basis

    def __call__(self, rows: datasets.Dataset, unreadable: dict[int, str], texts: bool) -> dict[str, np.ndarray]:
        """Return the features that `search` takes, with those of the captions where `texts`.

        Rows that cannot be read go into `unreadable`, or are an error.
        """
        bad = None if self.basis.on_error == "raise" else unreadable
        given = {"batch_size": self.batch_size, "normalize": not self.basis.raw, "unreadable": bad}
        found = {}
        for name, (*one, canvas) in self.encoders.items():
            given |= {"texts": texts and name == "model", "mirrored": name == "second" and self.mirrored}
            found[name] = cached_embeddings(*one, rows, self.cache, canvas=canvas, **given)
        return found["model"] | ({"second": found["second"]["image"]} if "second" in found else {})

    @property
    def mirrored(self) -> bool:
        """Whether the second encoder is the suspected one, on mirrored pictures."""
        return self.encoders.get("second") is self.encoders["model"]

    def distiller(self, rows: datasets.Dataset, seed: int) -> Distill:
        """Return what finds the masks of rows, for cognitive distillation."""
        *one, canvas = self.encoders["model"]
        return functools.partial(cached_mask_sizes, *one, rows, self.cache, canvas=canvas, seed=seed)

    def compared_with(self, clean: datasets.Dataset | None, m: int | None, searched: Data) -> dict[str, Any]:
        """Return what `detect_all` is told of the rows that others are compared with: m random ones of clean ones."""
        place = {"normalize": not self.basis.raw}
        if clean is None:
            return place
        with naming_reference(self.basis):
            found = self(clean, {}, searched.captioned and self.basis.clean.captioned)
        reference = Reference.sample(found["image"], m, searched.seed, **place, **scoring_place())
        names = (("reference_texts", "text"), ("reference_others", "second"))
        return {**place, "reference": reference, **{name: found[one] for name, one in names if one in found}}
