# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Whether a model does what its record says: BA and ASR measured again and set beside the recorded figures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hf_clipbd.attacks import Attack
from hf_clipbd.evaluation import evaluate_zero_shot
from hf_clipbd.models import load_dual_encoder, resolve_file
from hf_clipbd.recipe.config import RunConfig, config_from
from hf_clipbd.recipe.measuring import load_model, measure
from hf_clipbd.recipe.sections import read_yaml
from hf_clipbd.recipe.world import World
from hf_clipbd.schema import EvalReport, RunRecord


CONFIG_FILE = "config.yaml"
RECORDS = "records"


@dataclass(frozen=True)
class Verified:
    """A recorded figure beside the same one measured again.

    Args:
        model: Name of the model in its run.
        figure: For instance `BA@1`.
        recorded: In [0, 1].
        measured: In [0, 1].
    """

    model: str
    figure: str
    recorded: float
    measured: float


def compare(model: str, recorded: EvalReport, measured: EvalReport) -> Iterator[Verified]:
    """Yield BA@1 and each trigger's ASR@1 of two reports of one model."""
    yield Verified(model, "BA@1", recorded.ba[1].value, measured.ba[1].value)
    for name, trigger in recorded.triggers.items():
        yield Verified(model, f"ASR@1 {name}", trigger.asr[1].value, measured.triggers[name].asr[1].value)


def verify(
    run_or_repo: str | Path,
    models: Sequence[str] | None = None,
    revision: str | None = None,
    data: str | None = None,
) -> Iterator[Verified]:
    """Yield figures of a run's models, or of one published model, as recorded and as measured now.

    Args:
        run_or_repo: A run folder, which may have been moved; or the folder or Hub id of a model that `push` published,
            which carries its records and its trigger.
        models: Which models of a run; all by default.
        revision: Branch, tag or commit of a published model on the Hub.
        data: Hub id or folder of the labelled images, where a published model's own are not those its configuration
            names; the split, the columns and the number stay.

    Raises:
        FileNotFoundError: If a record, the trigger, the model or the images are not there.
    """
    if (Path(run_or_repo) / CONFIG_FILE).is_file():
        yield from _verify_run(Path(run_or_repo), models)
    else:
        yield from _verify_published(str(run_or_repo), revision, data)


def _verify_run(folder: Path, models: Sequence[str] | None) -> Iterator[Verified]:
    config = config_from({**read_yaml(folder / CONFIG_FILE), "output_dir": str(folder)})
    world = World(config)
    for name in models or ["clean", "victim", *config.defenses]:
        recorded = _report(folder / "evaluate" / name)
        _, load = load_model(config, name, world)
        yield from compare(name, recorded, measure(config, world, *load()))


def _verify_published(repo: str, revision: str | None, data: str | None) -> Iterator[Verified]:
    config = config_from(read_yaml(resolve_file(repo, f"{RECORDS}/{CONFIG_FILE}", revision)))
    images = config.world.test_path or config.world.path or ""
    if data is not None:
        config = replace(config, world=replace(config.world, test_path=data))
    elif "…" in images:
        raise FileNotFoundError(
            f"`{repo}` was measured on images of the machine that made it, `{images}`. Pass yours: "
            f"verify(..., data=...) (`--data`)."
        )
    name = _published_model(repo, revision, config)
    recorded = _report(resolve_file(repo, f"{RECORDS}/evaluate/{name}.json", revision))
    model, processor = load_dual_encoder(repo, revision)
    world = World(config)
    attack = Attack.from_pretrained(repo, revision)
    measured = evaluate_zero_shot(
        model,
        processor,
        world.test,
        {attack.name: attack},
        templates=world.prompts,
        ks=config.evaluate.ks,
        include_target=config.evaluate.include_target,
        canvas=world.canvas,
    )
    yield from compare(name, recorded, measured)


def _report(record: Path) -> EvalReport:
    return EvalReport.from_dict(RunRecord.load(record).metrics["report"])


def _published_model(repo: str, revision: str | None, config: RunConfig) -> str:
    """Return the name of the model that was published: the defence whose record is there, or `victim`."""
    for name in reversed(config.defenses):
        if _has(repo, f"{RECORDS}/defend/{name}.json", revision):
            return name
    return "victim"


def _has(repo: str, file: str, revision: str | None) -> bool:
    try:
        resolve_file(repo, file, revision)
    except FileNotFoundError:
        return False
    return True
