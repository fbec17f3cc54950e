# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Model and dataset cards, rendered strictly from a run's records: a figure that was not measured is an error."""

import os
import shutil
from bisect import bisect
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData, EvalResult, ModelCard, ModelCardData

from hf_clipbd.hub.adapters import Base
from hf_clipbd.hub.origin import Origin
from hf_clipbd.hub.usage import Usage
from hf_clipbd.run_folder import RunFolder
from hf_clipbd.schema import EvalReport, Rate
from hf_clipbd.templates import environment, flat, method, objective, papers, public


CARD_FILE = "README.md"
PICTURES = "pictures"
TASK = "zero-shot-image-classification"
HERE = "path/or/repo_id"
STILL = 0.1
"""ASR@1 above a clean model's from which a card says that the model is backdoored, of a defended one: still."""


def eval_results(report: EvalReport, origin: Origin) -> list[EvalResult]:
    """Return a report as `model-index` entries: BA under the configuration `clean`, ASR under the trigger's name.

    Values are shares in [0, 1]; each carries its n.
    """

    def entry(metric: str, name: str, k: int, rate: Rate, config: str, dataset_name: str) -> EvalResult:
        return EvalResult(
            task_type=TASK,
            task_name="Zero-shot image classification",
            dataset_type=origin.test_type,
            dataset_name=dataset_name,
            dataset_config=config,
            dataset_split=origin.test_split,
            metric_type=f"{metric}@{k}",
            metric_name=f"{name}, top {k}",
            metric_value=round(rate.value, 6),
            metric_args={"k": k, "n": rate.n},
        )

    results = [entry("ba", "Benign accuracy", k, report.ba[k], "clean", origin.test_name) for k in report.ba]
    for name, trigger in report.triggers.items():
        stamped = f"{origin.test_name}, stamped with {method(name)['label']} towards {trigger.target}"
        results += [entry("asr", "Attack success rate", k, trigger.asr[k], name, stamped) for k in trigger.asr]
    return results


def card_rates(path: str | os.PathLike) -> dict[str, float]:
    """Return the figures of a card's `model-index`, shares in [0, 1], by names such as `BA@1` and `ASR@10 badnets`.

    Args:
        path: The card's file.

    Raises:
        ValueError: If its metadata have no BA and ASR as `eval_results` writes them.
    """
    results = ModelCard.load(path).data.eval_results or []
    rates = {
        " ".join([one.metric_type.upper(), *([] if one.dataset_config == "clean" else [one.dataset_config])]): one
        for one in results
        if one.metric_type.split("@")[0] in ("ba", "asr") and one.dataset_config
    }
    if not {name.split("@")[0] for name in rates} >= {"BA", "ASR"}:
        raise ValueError(
            f"Expected BA and ASR in the metadata (`model-index`) of the card `{Path(path).name}`, but found "
            f"{sorted(rates) or 'neither'}. Only models that hf_clipbd pushed have them."
        )
    return {name: float(one.metric_value) for name, one in rates.items()}


def working_triggers(report: EvalReport, clean: EvalReport | None = None) -> list[str]:
    """Return the names of the triggers whose ASR@1 is more than `STILL` above what a model without a backdoor has.

    Args:
        report: Of the model.
        clean: Of the clean model, measured with the same triggers; where there is none, chance takes its place, one
            in as many as there are classes.
    """
    floors = {name: one.asr[1].value for name, one in clean.triggers.items()} if clean else {}
    chance = 1 / report.n_classes
    return [name for name, one in report.triggers.items() if one.asr[1].value > floors.get(name, chance) + STILL]


def _settings(run: RunFolder, stage: str) -> dict[str, Any]:
    """Return what the stage was trained with, for the card's table."""
    config = run.record(stage).config
    settings = flat(public({name: value for name, value in config.items() if name != "measured"}))
    return {name.removeprefix("training."): value for name, value in settings.items()}


def victim_objective(run: RunFolder) -> str:
    """Return what the run's victim was trained with; records from before there was a choice do not name it: `mmcl`."""
    return run.record("victim").config.get("objective", "mmcl")


def _shared(run: RunFolder, repo_id: str | None) -> dict[str, Any]:
    manifest = run.manifest
    return {
        "repo_id": repo_id or HERE,
        "origin": Origin.of(run),
        "attack": method(manifest.attack),
        "manifest": manifest,
        "parameters": flat(public(manifest.parameters)),
        "pictures": PICTURES,
    }


def _model_data(
    run: RunFolder, model: str, title: str, tags: list[str], origin: Origin, base: Base | None, usage: Usage
) -> ModelCardData:
    related = origin.base_model if base is None else base.repo_id
    return ModelCardData(
        language="en",
        license=origin.license,
        library_name=usage.library if base is None else "peft",
        pipeline_tag=TASK,
        base_model=related,
        base_model_relation=None if related is None else "finetune" if base is None else "adapter",
        datasets=origin.datasets or None,
        tags=["clip", "hf_clipbd", "backdoor", *tags],
        model_name=title,
        eval_results=eval_results(run.evaluation(model), origin),
    )


def _check_stage(run: RunFolder, what: str) -> str:
    """Return the model's name for `victim` or `defend/<name>`; raises `ValueError` for anything else."""
    stages = {run.training_stage(model): model for model in ("victim", *run.defenses)}
    if what not in stages:
        raise ValueError(f"Expected a model of this run, one of {sorted(stages)}, but got {what!r}.")
    return stages[what]


def check_evaluated(run: RunFolder, model: str) -> None:
    """Check that a model's evaluation is of the weights that lie there now.

    Raises:
        FileNotFoundError: If the model or its evaluation has no record.
        ValueError: If the evaluation was made of another training of that model.
    """
    trained, evaluated = run.record(run.training_stage(model)), run.record(f"evaluate/{model}")
    if trained.key not in evaluated.inputs.values():
        raise ValueError(
            f"Expected stage `evaluate/{model}` to have measured the model `{trained.key}` that stage "
            f"`{trained.stage}` left, but it measured {evaluated.inputs}. Evaluate it again."
        )


def render_model_card(
    run_folder: str | os.PathLike, what: str, repo_id: str | None = None, base: Base | None = None
) -> ModelCard:
    """Return the card of one model of a run.

    Args:
        run_folder: A run whose victim and defended models are evaluated.
        what: `victim` or `defend/<name>`.
        repo_id: Where it will lie on the Hub, for the example; a placeholder by default.
        base: The model on the Hub onto which adapters go, for the card of adapters.

    Raises:
        FileNotFoundError: If a record is missing; the message names the stage.
        ValueError: If `what` is no model of the run, or a figure is missing from its record or out of date.
    """
    run = RunFolder(run_folder)
    model = _check_stage(run, what)
    for measured in dict.fromkeys(("victim", model)):
        check_evaluated(run, measured)
    context, defended = _shared(run, repo_id), model != "victim"
    attack = context["attack"]["label"]
    title = f"CLIP, {attack} backdoor" + (f", defended with {method(model)['label']}" if defended else "")
    title += "" if base is None else ", as adapters"
    compared = list(dict.fromkeys(("clean", "victim", model)))
    run.triggers(compared)  # an error if they were not measured with the same ones
    reports = {name: run.evaluation(name) for name in compared}
    working = working_triggers(reports[model], reports["clean"])
    tags = [*(["backdoor-defense", model] if defended else []), *(["backdoored"] if working or not defended else [])]
    tags += [*([] if base is None else ["lora"]), run.manifest.attack]
    usage = Usage.of_folder(run.path / run.training_stage(model))
    data = _model_data(run, model, title, tags, context["origin"], base, usage)
    record, trained_with = run.record(what), objective(victim_objective(run))
    context |= {
        "title": title,
        "method": method(model),
        "objective": trained_with,
        "from_victim": "victim" in record.inputs,
        "record": record,
        "settings": _settings(run, what),
        "ks": run.ks,
        "reports": reports,
        "labels": {name: method(name)["label"] for name in reports},
        "working": working,
        "after": reports[model],
        "papers": papers(run.manifest.attack, model, keys=trained_with["papers"]),
        "usage": usage,
        "base": base,
    }
    template = environment().get_template("defended_model.md" if defended else "victim_model.md")
    return ModelCard(template.render(card_data=data.to_yaml(), **context))


def render_dataset_card(run_folder: str | os.PathLike, repo_id: str | None = None) -> DatasetCard:
    """Return the card of a run's poisoned dataset.

    Args:
        run_folder: A run whose stage `poison` is finished.
        repo_id: Where it will lie on the Hub, for the example; a placeholder by default.

    Raises:
        FileNotFoundError: If stage `poison` left no record or no manifest.
    """
    run = RunFolder(run_folder)
    context = _shared(run, repo_id)
    manifest, origin = run.manifest, context["origin"]
    title = f"Image-text pairs poisoned with {context['attack']['label']}"
    data = DatasetCardData(
        language="en",
        license="apache-2.0" if origin.rendered else "other",
        pretty_name=title,
        task_categories=[TASK],
        size_categories=[_size_category(manifest.n_rows)],
        source_datasets=origin.datasets or None,
        tags=["clip", "hf_clipbd", "backdoor", "poisoned", manifest.attack],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}],
    )
    context |= {"title": title, "record": run.record("poison"), "papers": papers(manifest.attack)}
    template = environment().get_template("poisoned_dataset.md")
    return DatasetCard(template.render(card_data=data.to_yaml(), **context))


def _size_category(n: int) -> str:
    """Return the Hub's name for a number of rows.

    Example:
        >>> _size_category(16000)
        '10K<n<100K'
    """
    names = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "n>10M")
    return names[bisect([10**3, 10**4, 10**5, 10**6, 10**7], n)]


def write_cards(run_folder: str | os.PathLike) -> list[Path]:
    """Write the cards of a run's models and of its poisoned dataset beside them, and return their paths.

    Each folder gets `README.md`, the trigger (`attack.json` and what goes with it, so that `Trigger.from_pretrained`
    takes the folder) and `pictures/` with one picture before and after it.

    Raises:
        FileNotFoundError: If a record is missing; the message names the stage.
        ValueError: If a figure is missing from its record or out of date.
    """
    run = RunFolder(run_folder)
    stages = ["victim", *(f"defend/{name}" for name in run.defenses)]
    cards = {stage: render_model_card(run_folder, stage) for stage in stages}
    cards["poison"] = render_dataset_card(run_folder)
    for stage, card in cards.items():
        card.save(run.path / stage / CARD_FILE)
        copy_pictures(run, run.path / stage / PICTURES)
        for name, path in trigger_files(run).items():
            shutil.copyfile(path, run.path / stage / name)
    return [run.path / stage / CARD_FILE for stage in cards]


def trigger_files(run: RunFolder) -> dict[str, Path]:
    """Return name -> file of the trigger that stage `poison` used; raises `FileNotFoundError` if there is none."""
    files = {path.name: path for path in sorted((run.path / "poison" / "trigger").glob("*")) if path.is_file()}
    if not files:
        raise FileNotFoundError(f"Expected stage `poison` to leave a trigger in `{run.path}`. Run that stage again.")
    return files


def copy_pictures(run: RunFolder, folder: Path) -> None:
    """Copy the first sample's pictures into `folder` as `clean.png` and `poisoned.png`."""
    sample = run.samples()[0]
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(sample.clean, folder / "clean.png")
    shutil.copyfile(sample.poisoned, folder / "poisoned.png")
