# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Whether a model does what its record or its card says: BA and ASR measured again and set beside those figures."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hf_clipbd.attacks import Attack
from hf_clipbd.data.canvas import Canvas
from hf_clipbd.evaluation import evaluate_zero_shot
from hf_clipbd.evaluation.protocol import on_pictures
from hf_clipbd.hub import CARD_FILE, TRAINED_RECORD, card_rates, load_triggers
from hf_clipbd.models import load_dual_encoder, resolve_file
from hf_clipbd.models.files import has_file
from hf_clipbd.recipe.config import RunConfig, config_from
from hf_clipbd.recipe.job import models as models_of
from hf_clipbd.recipe.measuring import load_model
from hf_clipbd.recipe.place import model_device
from hf_clipbd.recipe.sections import read_yaml
from hf_clipbd.recipe.single import SCENES, Data
from hf_clipbd.recipe.world import World
from hf_clipbd.recipe.zero_shot import measure
from hf_clipbd.run_folder import CONFIG_FILE
from hf_clipbd.schema import TOP_K, EvalReport, RunRecord, reachable


RECORDS = "records"


@dataclass(frozen=True)
class Verified:
    """A recorded figure beside the same one measured again.

    Args:
        figure: For instance `BA@1`.
        recorded: By the record of a run or the card of a published model, in [0, 1].
    """

    model: str
    figure: str
    recorded: float
    measured: float


def rates_of(report: EvalReport) -> dict[str, float]:
    """Return the BA and ASR of a report, shares in [0, 1], by names such as `BA@1` and `ASR@10 badnets`."""
    rates = {f"BA@{k}": rate.value for k, rate in report.ba.items()}
    for name, trigger in report.triggers.items():
        rates |= {f"ASR@{k} {name}": rate.value for k, rate in trigger.asr.items()}
    return rates


def compare(model: str, recorded: Mapping[str, float], measured: EvalReport) -> Iterator[Verified]:
    """Yield each recorded figure of a model beside the measured one.

    Raises:
        ValueError: If one was not measured.
    """
    found = rates_of(measured)
    missing = [figure for figure in recorded if figure not in found]
    if missing:
        raise ValueError(f"Expected {missing} of `{model}` among what is measured, but that is {list(found)}.")
    for figure, value in recorded.items():
        yield Verified(model, figure, value, found[figure])


def verify(
    run_or_repo: str | Path,
    models: Sequence[str] | None = None,
    revision: str | None = None,
    data: str | None = None,
) -> Iterator[Verified]:
    """Yield figures of a run's models, or of one published model, as recorded and as measured now.

    Of a run these are BA and ASR at top 1, as its records have them; of a published model all that its card shows.
    Adapters are put onto the base that they name, at the commit that they name.

    Args:
        run_or_repo: A run folder, which may have been moved; or the folder or Hub id of a model that `push` or a
            trainer published, which carries its records and its trigger.
        models: Which models of a run; all by default.
        revision: Branch, tag or commit of a published model on the Hub.
        data: `scenes`, or Hub id or folder of the labelled images, where a published model's own are not those its
            configuration names; the split, the columns and the number stay.

    Raises:
        FileNotFoundError: If a record, the card, the trigger, the model, its base or the images are not there.
        ValueError: If the card shows no BA and ASR.
    """
    if (Path(run_or_repo) / CONFIG_FILE).is_file():
        yield from _verify_run(Path(run_or_repo), models)
        return
    if Path(run_or_repo).is_dir() and not (Path(run_or_repo) / CARD_FILE).is_file():
        raise FileNotFoundError(
            f"Expected a run folder, which has a `{CONFIG_FILE}`, or a published model, which has a `{CARD_FILE}`, "
            f"but `{run_or_repo}` has neither. What `train` and `defend` leave is measured by `hf-clipbd evaluate`."
        )
    recorded = card_rates(resolve_file(run_or_repo, CARD_FILE, revision))
    if has_file(str(run_or_repo), TRAINED_RECORD, revision):
        name, measured = "trained", _measure_trained(str(run_or_repo), revision, data)
    else:
        name, measured = _measure_published(str(run_or_repo), revision, data)
    yield from compare(name, recorded, measured)


def _verify_run(folder: Path, models: Sequence[str] | None) -> Iterator[Verified]:
    config = config_from({**read_yaml(folder / CONFIG_FILE), "output_dir": str(folder)})
    world = World(config)
    for name in models or models_of(config):
        report = EvalReport.from_dict(RunRecord.load(folder / "evaluate" / name).metrics["report"])
        first = {figure: rate for figure, rate in rates_of(report).items() if figure.split()[0].endswith("@1")}
        _, load = load_model(config, name, world)
        yield from compare(name, first, measure(config, world, *load()))


def _measure_published(repo: str, revision: str | None, data: str | None) -> tuple[str, EvalReport]:
    """Return the name of a run's published model, and its report on the images that the run names or on `data`."""
    config = config_from(read_yaml(resolve_file(repo, f"{RECORDS}/{CONFIG_FILE}", revision)))
    images = config.world.test_path or config.world.path or ""
    prompts = World(config).prompts
    if data is not None and data != SCENES:
        given = {"kind": "labelled", "path": data, "test_path": data, "revision": None, "prompts": prompts}
        config = replace(config, world=replace(config.world, clean_model="train", **given))  # whose is never read
    elif data is None and "…" in images:
        raise FileNotFoundError(
            f"`{repo}` was measured on images of the machine that made it, `{images}`. Pass yours: "
            f"verify(..., data=...) (`--data`)."
        )
    world = World(config)
    attack = Attack.from_pretrained(repo, revision)
    report = measure(config, world, *load_dual_encoder(repo, revision), on_pictures({attack.name: attack}))
    return _published_model(repo, revision, config), report


def _measure_trained(repo: str, revision: str | None, data: str | None) -> EvalReport:
    """Return the report of a model that a trainer pushed: its images are known to whoever trained it alone."""
    if data is None:
        raise FileNotFoundError(
            f"`{repo}` was pushed by a trainer, which does not know where its images come from. Pass them: "
            f"verify(..., data=...) (`--data`)."
        )
    config = RunRecord.load(resolve_file(repo, TRAINED_RECORD, revision)).config
    protocol = config["evaluation"]
    canvas = Canvas(**protocol["canvas"])
    columns = {"image_column": protocol["image_column"], "label_column": protocol["label_column"]}
    given = Data(data, "test", **columns, n=protocol["n"], size=canvas.size)
    own = [name.replace("_", " ") for name in given.class_names() or ()]
    if own and own != protocol["classes"]:
        raise ValueError(f"Expected images of the classes {protocol['classes']}, but `{data}` has {own}.")
    model, processor = load_dual_encoder(repo, revision)
    model = model.to(model_device())
    return evaluate_zero_shot(
        model,
        processor,
        given.labelled(() if own else tuple(protocol["classes"])),
        load_triggers(repo, list(config["triggers"]), revision),
        templates=protocol["prompts"],
        class_names=protocol["classes"],
        ks=reachable(TOP_K, len(protocol["classes"])),
        include_target=protocol["include_target"],
        canvas=canvas,
    )


def _published_model(repo: str, revision: str | None, config: RunConfig) -> str:
    """Return the name of the model that was published: the defence whose record is there, or `victim`."""
    for name in reversed(config.defenses):
        if has_file(repo, f"{RECORDS}/defend/{name}.json", revision):
            return name
    return "victim"
