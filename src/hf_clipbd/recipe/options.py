# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The sections of a run that are ours alone: one dataclass a stage, every field with its help."""

import json
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from hf_clipbd.recipe.sections import ConfigError
from hf_clipbd.schema import TOP_K


def option(default: Any, text: str) -> Any:
    """Return a field of a section with its help."""
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


@dataclass
class WorldConfig:
    """Where images, captions, labels and the clean model come from.

    `scenes` is the embedded world. `labelled` is any labelled image dataset: captions are made from its labels, with
    seeded variety. `captioned` is any image-caption dataset, with labelled images for the evaluation from `test_path`.
    """

    kind: Literal["scenes", "labelled", "captioned"] = option("scenes", "The embedded scenes, or what data.")
    clean_model: str = option("scenes", "Hub id or folder; `scenes` is the shipped model, `train` trains one first.")
    size: int = option(64, "Side of the canvas in pixels.")
    canvas: Literal["center_crop", "squash", "native"] = option("center_crop", "Geometry of every image.")
    n_train: int = option(16000, "Pairs that are poisoned, trained on and searched.")
    n_defense: int = option(16000, "Clean pairs of the defences, disjoint from those.")
    n_test: int = option(2000, "Labelled images of the evaluation.")
    n_clean: int | None = option(None, "Pairs that a clean model is trained on; all of the split by default.")
    num_proc: int | None = option(None, "Processes that draw the scenes; as many as there are cores by default.")
    frequencies: Literal["long_tailed", "balanced"] = option("long_tailed", "Class frequencies of the scenes.")
    rare: str | None = option(None, "Class that is rare in long-tailed scenes; the attack's target by default.")
    target_share: float | None = option(None, "Share of the labelled world's rows that show the target, in [0, 1].")
    path: str | None = option(None, "Hub id, folder or file of the dataset.")
    data_files: dict | str | None = option(None, "Split -> file or pattern, instead of or below `path`.")
    name: str | None = option(None, "Configuration name of the dataset.")
    revision: str | None = option(None, "Revision of the dataset on the Hub.")
    train_split: str = option("train", "Split of the pairs.")
    defense_split: str | None = option(None, "Split of the defences' pairs; the rest of `train_split` by default.")
    test_split: str = option("test", "Split of the labelled images.")
    test_path: str | None = option(None, "Dataset of the labelled images where it is another one than `path`.")
    image_column: str = option("image", "Column of images, or of their paths; looked for where none has this name.")
    caption_column: str = option("caption", "Column of captions; likewise.")
    label_column: str = option("label", "Column of labels; likewise.")
    class_names: list[str] = option([], "Class names where the label column does not know them, or knows others.")
    on_error: Literal["raise", "skip"] = option(
        "raise", "A row whose picture or caption is missing or broken stops the run, or is left out of it."
    )
    caption_templates: list[str] = option([], "Templates with {label}, {adjective} and {context} for captions.")
    adjectives: list[str] = option([], "What {adjective} is drawn from.")
    contexts: list[str] = option([], "What {context} is drawn from.")
    prompts: list[str] = option([], "Zero-shot prompts with {}; the scenes' own or OpenAI's 80 by default.")

    def __post_init__(self):
        if isinstance(self.data_files, str) and self.data_files.startswith("{"):
            self.data_files = json.loads(self.data_files)
        if self.kind != "scenes" and not (self.path or self.data_files):
            raise ValueError(f"a `{self.kind}` world needs `path` or `data_files`.")
        if self.kind != "scenes" and self.clean_model == "scenes":
            raise ValueError(f"a `{self.kind}` world needs `clean_model`: a Hub id, a folder or `train`.")
        if self.target_share is not None and not (self.kind == "labelled" and 0 <= self.target_share <= 1):
            raise ValueError("`target_share` is a share in [0, 1] of a `labelled` world.")
        if min(self.size, self.n_train, self.n_defense, self.n_test) < 1:
            raise ValueError("`size`, `n_train`, `n_defense` and `n_test` must be at least 1.")


@dataclass
class PoisonConfig:
    """How many rows are poisoned: a count or a rate, never both; 1 % where neither is given."""

    rate: float | None = option(None, "Share of the rows, in (0, 1].")
    count: int | None = option(None, "Number of rows.")
    n_samples: int = option(8, "Poisoned rows kept beside their originals for the report.")
    selector: str | None = option(None, "Which rows: random, non_target, boundary, mixed ...; the attack's default.")

    def __post_init__(self):
        if self.rate is not None and self.count is not None:
            raise ValueError("set either `rate` or `count`, and the other one to null.")
        if self.rate is not None and not 0 < self.rate <= 1:
            raise ValueError(f"`rate` is a share in (0, 1], but got {self.rate}.")
        if self.count is not None and self.count < 1:
            raise ValueError(f"`count` is at least 1, but got {self.count}.")

    def rows(self, n_rows: int) -> int:
        """Return how many of `n_rows` are poisoned, at least one; raises `ConfigError` if there are not as many."""
        rate = 0.01 if self.rate is None else self.rate
        count = max(1, round(rate * n_rows)) if self.count is None else self.count
        if count > n_rows:
            raise ConfigError(f"Expected at most {n_rows} poisoned rows, the size of the data, but got {count}.")
        return count


@dataclass
class EvaluateConfig:
    """What is measured on every model."""

    ks: list[int] = option(list(TOP_K), "Top-k to report, as far as there are classes; 1 is among them.")
    include_target: bool = option(False, "Count images of the target class in ASR, as the papers do.")
    batch_size: int = option(256, "Images a forward pass.")
    epoch_images: int = option(500, "Labelled images of the measurement after each epoch of training; 0 for none.")

    def __post_init__(self):
        if 1 not in self.ks or min(self.ks) < 1:
            raise ValueError(f"`ks` are numbers of at least 1, the 1 among them, but got {self.ks}.")


@dataclass
class DetectConfig:
    """How the poisoned set is searched."""

    detectors: list[str] = option(
        ["conditional_sparsity", "multi_scale", "k_distance", "slof"], "Keys of hf_clipbd.detection.DETECTORS."
    )
    k: int | None = option(None, "Neighbours; each detector's default where left out.")
    reference: int | None = option(None, "Random rows that densities are measured against; likewise.")
    caption_share: float | None = option(
        None,
        "For `conditional_sparsity` and `combined`: share of captions taken for alike, 0.5 where poison may be 5 %.",
    )
    second: str | None = option(None, "For `disagreement` and `combined`: `clean`, `mirrored`, a folder or a Hub id.")
    distilled: int | None = option(
        None, "Rows that `cognitive_distillation` looks at, those that the first detector ranks highest; default all."
    )
    rates: list[float] = option([0.001], "Further poison rates, reached by leaving poisoned rows out.")
    draws: int = option(5, "Random choices of the poisoned rows that stay at each of those rates.")
    batch_size: int = option(256, "Rows a forward pass.")
    map_points: int = option(2000, "Rows of the embedding map.")

    def __post_init__(self):
        if self.caption_share is not None and not 0 < self.caption_share < 1:
            raise ValueError(f"`caption_share` is in (0, 1), but got {self.caption_share}.")
        if self.distilled is None:
            return
        if "cognitive_distillation" not in self.detectors:
            raise ValueError(
                "`distilled` is for the detector `cognitive_distillation`, which `detectors` does not name."
            )
        if self.detectors[0] == "cognitive_distillation":
            raise ValueError(
                "`distilled` rows are those that another detector ranks highest: name one before "
                "`cognitive_distillation`, or leave `distilled` out to look at every row."
            )
        if self.distilled < 1:
            raise ValueError(f"`distilled` is at least 1, but got {self.distilled}.")


@dataclass
class ReportConfig:
    """What is rendered from the records."""

    html: bool = option(True, "Write report/report.html.")
    cards: bool = option(True, "Write the model and dataset cards.")


@dataclass
class PushConfig:
    """What of a run goes to the Hub, by the names of the trainers' arguments; nothing of it changes a figure."""

    push_to_hub: bool = option(False, "Push every defended model when the run is finished.")
    hub_model_id: str | None = option(None, "owner/name; each repository is this name, a dash and the model's.")
    hub_private_repo: bool = option(True, "Whether the repositories are private.")
    allow_backdoored: bool = option(False, "Push the victim and the poisoned dataset as well.")

    def __post_init__(self):
        if self.push_to_hub and not self.hub_model_id:
            raise ValueError("`push_to_hub` needs `hub_model_id`, owner/name.")
        if self.hub_model_id:
            from hf_clipbd.hub import check_repo_id  # here: reading a configuration does not import torch

            check_repo_id(self.hub_model_id)


PUSH_KEYS = tuple(one.name for one in fields(PushConfig))
