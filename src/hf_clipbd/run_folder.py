# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""A finished run as its records tell it: the one file that knows where a run folder keeps what."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from hf_clipbd.schema import MANIFEST_FILE, RECORD_FILE, TOP_K, EvalReport, PoisonManifest, RunRecord, reachable


CONFIG_FILE = "config.yaml"
SOURCES_FILE = "hub_sources.json"


@dataclass(frozen=True)
class Sample:
    """One poisoned row beside its original.

    Args:
        index: Row number in the source.
        clean: Picture before poisoning.
        poisoned: Picture after it.
        caption_clean: Caption before poisoning.
        caption_poisoned: Caption after it.
    """

    index: int
    clean: Path
    poisoned: Path
    caption_clean: str
    caption_poisoned: str


@dataclass(frozen=True)
class RunFolder:
    """Strict reading of a run folder: what a stage should have left and did not is an error that names the stage.

    Args:
        path: The run folder.

    Raises:
        FileNotFoundError: If there is no configuration in it.
    """

    path: Path

    def __init__(self, path: str | os.PathLike):
        object.__setattr__(self, "path", Path(path))
        if not (self.path / CONFIG_FILE).is_file():
            raise FileNotFoundError(
                f"Expected a run folder with `{CONFIG_FILE}`, but `{self.path}` has none. "
                f"Pass the output folder of `hf-clipbd run`."
            )

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved configuration of the run; raises `ValueError` where its file is cut short or broken."""
        path, broken = self.path / CONFIG_FILE, ""
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            found, broken = None, f": {error}"
        if not isinstance(found, dict):
            raise ValueError(
                f"Expected a run's configuration in `{path}`, but it is cut short or broken{broken}. Remove it, and "
                "start the run again, which leaves finished stages as they are."
            )
        return found

    @cached_property
    def hub_sources(self) -> frozenset[str] | None:
        """Names in the configuration that were the Hub's when the run was made; None if it is too old to say so."""
        path = self.path / SOURCES_FILE
        if not path.is_file():
            return None
        try:
            return frozenset(json.loads(path.read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"Expected a list of names in `{path}`, but it is cut short or broken: {error}. Remove it, and start "
                "the run again."
            ) from error

    @property
    def defenses(self) -> list[str]:
        """Names of the run's defences, in the configuration's order."""
        return list(self.config["defenses"])

    @property
    def models(self) -> list[str]:
        """Names of all evaluated models: `clean`, `victim` and the defences."""
        return ["clean", "victim", *self.defenses]

    def training_stage(self, model: str) -> str | None:
        """Return the stage that trained `model`, or None for a clean model that the run was given."""
        given = self.config["world"]["clean_model"] != "train"
        return {"clean": None if given else "clean", "victim": "victim"}.get(model, f"defend/{model}")

    def record(self, stage: str) -> RunRecord:
        """Return the record of `stage`.

        Raises:
            FileNotFoundError: If the stage left none.
        """
        if not (self.path / stage / RECORD_FILE).is_file():
            raise FileNotFoundError(
                f"Expected the record of stage `{stage}` at `{self.path / stage / RECORD_FILE}`, but there is none. "
                f"Run that stage first."
            )
        return RunRecord.load(self.path / stage)

    def check_one_run(self) -> None:
        """Raise `ValueError` where records do not go together: one was made from what another has replaced since.

        So it is where a run was begun anew with other settings and stopped: some stages are new then, others old.
        """
        stages = ["victim", *(f"defend/{name}" for name in self.defenses), "detect"]
        sources = {stage: {"poison": "poison", "victim": "victim"} for stage in stages}
        for model in self.models:
            trained = self.training_stage(model)
            sources[f"evaluate/{model}"] = {"poison": "poison"} | ({} if trained is None else {"model": trained})
        for stage, by_name in sources.items():
            inputs = self.record(stage).inputs
            for name, source in by_name.items():
                left = self.record(source).key
                if inputs.get(name, left) != left:
                    raise ValueError(
                        f"Expected stage `{stage}` of `{self.path}` to have read what stage `{source}` left, "
                        f"`{left}`, but it read `{inputs[name]}`. The run was begun anew since; let it end."
                    )

    def metric(self, stage: str, name: str) -> Any:
        """Return the figure `name` of `stage`; raises `ValueError` if its record lacks it."""
        metrics = self.record(stage).metrics
        if name not in metrics:
            raise ValueError(
                f"Expected metric `{name}` in the record of stage `{stage}`, but it has {sorted(metrics)}. "
                f"Run that stage again."
            )
        return metrics[name]

    @cached_property
    def manifest(self) -> PoisonManifest:
        """What was poisoned; raises `FileNotFoundError` if stage `poison` left no manifest."""
        if not (self.path / "poison" / MANIFEST_FILE).is_file():
            raise FileNotFoundError(f"Expected the manifest of stage `poison` in `{self.path}`. Run that stage first.")
        return PoisonManifest.from_pretrained(self.path / "poison")

    def evaluation(self, model: str) -> EvalReport:
        """Return the evaluation of one of `models`; raises `ValueError` if a rate is missing at a k asked for."""
        report = EvalReport.from_dict(self.metric(f"evaluate/{model}", "report"))
        tables = {"BA": report.ba}
        for name, one in report.triggers.items():
            tables |= {f"ASR of `{name}`": one.asr, f"RA of `{name}`": one.ra}
        asked = self._ks(report)
        for name, rates in tables.items():
            missing = [k for k in asked if k not in rates]
            if missing:
                raise ValueError(
                    f"Expected {name} at k in {asked} in the record of stage `evaluate/{model}`, but it lacks "
                    f"k = {missing}. Run that stage again."
                )
        return report

    @property
    def ks(self) -> list[int]:
        """The k of top-k that the run's models are measured at."""
        return self._ks(self.evaluation("victim"))

    def _ks(self, report: EvalReport) -> list[int]:
        asked = self.config["evaluate"].get("ks", TOP_K)
        return reachable(asked, report.n_classes)

    def triggers(self, models: Sequence[str] | None = None) -> list[str]:
        """Return the names of the triggers that each of `models` (all by default) was measured with.

        Raises:
            ValueError: If the evaluations differ in their triggers.
        """
        measured = {model: sorted(self.evaluation(model).triggers) for model in models or self.models}
        if len({tuple(names) for names in measured.values()}) != 1:
            raise ValueError(f"Expected every model evaluated with the same triggers, but got {measured}.")
        return list(self.evaluation("victim").triggers)

    def history(self, model: str) -> list[dict[str, float]]:
        """Return the training log of the victim or a defended model, as `CLIPTrainer.history` gives it."""
        return self.metric("victim" if model == "victim" else f"defend/{model}", "history")

    def scores(self) -> dict[str, list]:
        """Return the columns of stage `detect`'s score table: `row`, `is_poisoned`, `score_<detector>` and others."""
        import pyarrow.parquet

        self.record("detect")
        return pyarrow.parquet.read_table(self._file("detect", "scores.parquet")).to_pydict()

    def embedding_map(self) -> dict[str, list]:
        """Return stage `detect`'s map: `points` (N, 2) and the `kind` of each."""
        self.record("detect")
        return json.loads(self._file("detect", "map.json").read_text(encoding="utf-8"))

    def samples(self) -> list[Sample]:
        """Return the pairs of pictures that stage `poison` kept for people to look at."""
        self.record("poison")
        listed = json.loads(self._file("poison", "samples", "samples.json").read_text(encoding="utf-8"))
        return [
            Sample(
                index=one["index"],
                clean=self._file("poison", "samples", f"{number:02d}_clean.png"),
                poisoned=self._file("poison", "samples", f"{number:02d}_poisoned.png"),
                caption_clean=one["caption_clean"],
                caption_poisoned=one["caption_poisoned"],
            )
            for number, one in enumerate(listed)
        ]

    def _file(self, stage: str, *names: str) -> Path:
        path = self.path.joinpath(stage, *names)
        if not path.is_file():
            raise FileNotFoundError(f"Expected stage `{stage}` to leave `{path}`, but it is not there. Run it again.")
        return path
