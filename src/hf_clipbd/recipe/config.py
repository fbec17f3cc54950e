# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What a run is: one dataclass a section, read from YAML and flags, checked whole before any model is loaded."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_clipbd.recipe.options import (
    PUSH_KEYS,
    DetectConfig,
    EvaluateConfig,
    PoisonConfig,
    PushConfig,
    ReportConfig,
    WorldConfig,
)
from hf_clipbd.recipe.sections import (
    ConfigError,
    check_keys,
    check_names,
    merge,
    nearest,
    one_yaml,
    parse_section,
    read_yaml,
    scalar,
    typed,
)
from hf_clipbd.training.settings import training_settings


if TYPE_CHECKING:
    from hf_clipbd.trainer import CLIPTrainingConfig

PLAIN_SECTIONS: dict[str, type] = {
    "world": WorldConfig,
    "poison": PoisonConfig,
    "evaluate": EvaluateConfig,
    "detect": DetectConfig,
    "report": ReportConfig,
}
TRAINING_SECTIONS = ("clean", "victim")
MAPPINGS = ("attack", "architecture", "defense_defaults", "defenses")
SECTIONS = ("seed", "output_dir", *PUSH_KEYS, *PLAIN_SECTIONS, *TRAINING_SECTIONS, *MAPPINGS)


@dataclass
class RunConfig:
    """A whole run: every section checked and typed.

    Args:
        seed: Seed of every stage that its section gives no other.
        attack: `name`, a key of `hf_clipbd.attacks.ATTACKS`, and that attack's arguments.
        defenses: Name -> training of that defence, in the order they are run.
        clean: Training of the clean model, where `world.clean_model` is `train`.
        architecture: `kind` (`resnet` or `vit`) and arguments of its configuration and of its tokenizer, likewise.
        objective: What the victim is trained with, a key of `hf_clipbd.defenses.OBJECTIVES` (`victim.objective`).
        push: What goes to the Hub in the end (`push_to_hub`, `hub_model_id`, ...); no part of `config.yaml`.
    """

    output_dir: Path
    seed: int
    world: WorldConfig
    attack: dict[str, Any]
    poison: PoisonConfig
    victim: "CLIPTrainingConfig"
    defenses: dict[str, "CLIPTrainingConfig"]
    evaluate: EvaluateConfig
    detect: DetectConfig
    report: ReportConfig
    clean: "CLIPTrainingConfig | None" = None
    architecture: dict[str, Any] = field(default_factory=dict)
    objective: str = "mmcl"
    push: PushConfig = field(default_factory=PushConfig)

    def resolved(self) -> dict[str, Any]:
        """Return the sections as plain values, what `config.yaml` of a run folder holds; it can be run again."""
        values: dict[str, Any] = {"seed": self.seed, "output_dir": str(self.output_dir)}
        values |= {name: dataclasses.asdict(getattr(self, name)) for name in PLAIN_SECTIONS}
        values["attack"] = dict(self.attack)
        values["victim"] = {"objective": self.objective, **training_settings(self.victim)}
        values["defenses"] = {name: training_settings(one) for name, one in self.defenses.items()}
        if self.clean is not None:
            values |= {"clean": training_settings(self.clean), "architecture": dict(self.architecture)}
        return values


def _check_sections(values: Mapping[str, Any]) -> None:
    for key in values:
        if key not in SECTIONS:
            hint = nearest(key, SECTIONS)
            hint = hint if hint.startswith("; did you mean") else _sections_with(key) or hint
            raise ConfigError(f"Unknown section `{key}`{hint}")
    for name in MAPPINGS:
        if not isinstance(values.get(name) or {}, Mapping):
            raise ConfigError(f"Expected section `{name}` to map keys to values, but got {values[name]!r}.")


def _field_names(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


def _sections_with(key: str) -> str:
    """Return "; did you mean ...?" for a key that was given without its section, "" where no section has it."""
    from hf_clipbd.trainer import CLIPTrainingConfig

    trained = dict.fromkeys((*TRAINING_SECTIONS, "defense_defaults"), CLIPTrainingConfig)
    hits = [f"`{name}.{key}`" for name, cls in (PLAIN_SECTIONS | trained).items() if key in _field_names(cls)]
    return f"; did you mean {' or '.join(hits)}?" if hits else ""


def training_config(
    cls: type, values: Mapping[str, Any] | None, where: str, seed: int, epochs_measured: bool
) -> "CLIPTrainingConfig":
    """Return the section of a training, an instance of `cls`, with the run's seed unless it gives another."""
    if not isinstance(values or {}, Mapping):
        raise ConfigError(f"Expected section `{where}` to map keys to values, but got {values!r}.")
    if "push_to_hub" in (values or {}):
        raise ConfigError(f"Expected `push_to_hub` beside the sections, for all defended models, not in `{where}`.")
    defaults = {"seed": seed, "eval_strategy": "epoch" if epochs_measured else "no", "disable_tqdm": "false"}
    return parse_section(cls, {**defaults, **(values or {})}, where)


def config_from(values: Mapping[str, Any]) -> RunConfig:
    """Return the checked configuration of a mapping of sections.

    Raises:
        ConfigError: For the first section, key or value that is not understood, by its dotted path.
    """
    _check_sections(values)
    seed = scalar(values.get("seed", 0))
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ConfigError(f"Expected `seed` to be a whole number of at least 0, but got {seed!r}.")
    plain = {name: parse_section(cls, values.get(name) or {}, name) for name, cls in PLAIN_SECTIONS.items()}
    attack = _attack(values.get("attack") or {}, plain["world"].kind)
    trained = plain["world"].clean_model == "train"
    if not trained and (values.get("clean") or values.get("architecture")):
        raise ConfigError("Expected `world.clean_model: train` beside the sections `clean` and `architecture`.")

    from hf_clipbd.defenses import DEFENSES
    from hf_clipbd.trainer import CLIPTrainingConfig

    measured = plain["evaluate"].epoch_images > 0
    objective, victim = _victim(values.get("victim") or {}, seed, measured)
    chosen = {name: section or {} for name, section in (values.get("defenses") or {}).items() if not _is_off(section)}
    check_keys(chosen, DEFENSES, "defenses")
    shared = values.get("defense_defaults") or {}
    common = [set(_field_names(DEFENSES[name].config)) for name in chosen] or [set(_field_names(CLIPTrainingConfig))]
    check_keys(shared, set.intersection(*common), "defense_defaults")
    config = RunConfig(
        output_dir=Path(values.get("output_dir") or "runs/run"),
        seed=seed,
        attack=attack,
        objective=objective,
        victim=victim,
        defenses={
            name: training_config(DEFENSES[name].config, merge(shared, section), f"defenses.{name}", seed, measured)
            for name, section in chosen.items()
        },
        clean=training_config(CLIPTrainingConfig, values.get("clean"), "clean", seed, measured) if trained else None,
        architecture={key: scalar(value) for key, value in (values.get("architecture") or {}).items()},
        push=parse_section(PushConfig, {key: values[key] for key in PUSH_KEYS if key in values}, ""),
        **plain,
    )
    _check_values(config)
    return config


def _attack(values: Mapping[str, Any], world: str) -> dict[str, Any]:
    """Return the section `attack` of a run with its defaults, which are a world's; class names stay text."""
    from hf_clipbd.attacks import ATTACKS, Attack

    given = {"name": "badnets", **({"target": "banana"} if world == "scenes" else {}), **values}
    return typed(ATTACKS.get(str(given["name"]), Attack), given)


def _victim(values: Any, seed: int, epochs_measured: bool) -> "tuple[str, CLIPTrainingConfig]":
    """Return the victim's objective and its training, whose keys depend on it."""
    from hf_clipbd.defenses import OBJECTIVES

    objective = "mmcl"
    if isinstance(values, Mapping):
        objective = values.get("objective", objective)
        check_names([objective], OBJECTIVES, "`victim.objective`")
        values = {key: value for key, value in values.items() if key != "objective"}
    return objective, training_config(OBJECTIVES[objective].config, values, "victim", seed, epochs_measured)


def _is_off(section: Any) -> bool:
    """Return whether `section` is `false`, the word that leaves a defence out of the YAML's list."""
    return section is False or section == "false"


def _check_values(config: RunConfig) -> None:
    """Build what is cheap to build (attack, architecture), so that its unknown keys are found before the data is."""
    from hf_clipbd.attacks.select import SELECTORS
    from hf_clipbd.attacks.surrogate import SURROGATE_SELECTORS
    from hf_clipbd.detection import ALIGNED, DETECTORS
    from hf_clipbd.recipe.architecture import build_architecture
    from hf_clipbd.recipe.world import build_attack

    check_names(config.detect.detectors, DETECTORS, "`detect.detectors`")
    compared = [name for name in config.detect.detectors if "others" in ALIGNED.get(name, ())]
    if compared and config.detect.second is None:
        raise ConfigError(
            f"Expected `detect.second`, an encoder to compare with, beside the detector `{compared[0]}`."
        )
    selector = [] if config.poison.selector is None else [config.poison.selector]
    check_names(selector, [*SELECTORS, *SURROGATE_SELECTORS], "`poison.selector`")
    own_rate = config.poison.rows(config.world.n_train) / config.world.n_train
    too_high = [rate for rate in config.detect.rates if rate > own_rate]
    if too_high:
        raise ConfigError(f"Expected `detect.rates` of at most the poison rate {own_rate:g}, but got {too_high}.")
    if "retrain" in config.defenses:
        chosen, ran = config.defenses["retrain"].detector, config.detect.detectors
        check_names([chosen], ran, "`defenses.retrain.detector`, which `detect.detectors` does not name,")
        dropped = round(config.defenses["retrain"].drop_share * config.world.n_train)
        looked_at = config.detect.distilled
        if chosen == "cognitive_distillation" and looked_at is not None and looked_at < dropped:
            raise ConfigError(
                f"Expected `detect.distilled` of at least the {dropped} rows that `defenses.retrain` drops by "
                f"`cognitive_distillation`, but got {looked_at}."
            )
    _check_trainings(config)
    build_attack(config)
    if config.clean is not None:
        build_architecture(config)


def _check_trainings(config: RunConfig) -> None:
    """Raise `ConfigError` where a training is told what its stage decides, or chooses by what no defender knows."""
    from hf_clipbd.recipe.epochs import chooses
    from hf_clipbd.training.checks import check_places

    defenses = {f"defenses.{name}": one for name, one in config.defenses.items()}
    for section, training in {"clean": config.clean, "victim": config.victim, **defenses}.items():
        if training is None:
            continue
        try:
            check_places(training)
            chooses(training)
        except ValueError as error:
            raise ConfigError(f"Section `{section}`: {error}") from error


def load_config(arguments: Sequence[str], default: str | Path | None = None) -> RunConfig:
    """Return the configuration of a command line: a YAML file (positional or `--config`), then flags laid over it.

    Args:
        arguments: For instance `["recipes/scenes/defend.yaml", "--victim.learning_rate", "1e-3"]`.
        default: The YAML where the command line names none.

    Raises:
        ConfigError: If something is not understood, by its dotted path.
    """
    file, flags = one_yaml(arguments, default, "a run, for instance `recipes/scenes/defend.yaml`")
    return config_from(merge(read_yaml(file), flags))
