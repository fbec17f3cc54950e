# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What `push_to_hub` of a trainer sends: model, trigger, record and our card, measured before and after."""

import io
import logging
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import PIL.Image
from huggingface_hub import ModelCard, ModelCardData

from hf_clipbd.defenses import DEFENSES, OBJECTIVES
from hf_clipbd.evaluation import ZeroShotEvaluator
from hf_clipbd.hub.adapters import Base, adapter_files, base_on_hub
from hf_clipbd.hub.cards import CARD_FILE, PICTURES, TASK, eval_results, working_triggers
from hf_clipbd.hub.download import TRAINED_RECORD, TRIGGERS
from hf_clipbd.hub.origin import Origin, hub_id, is_own_model, model_words
from hf_clipbd.hub.processes import by_main_process
from hf_clipbd.hub.publish import Files, check_login, check_repo_id, publish
from hf_clipbd.hub.push import json_bytes, model_files
from hf_clipbd.hub.usage import Usage
from hf_clipbd.schema import TOP_K, EvalReport, RunRecord, content_key, reachable
from hf_clipbd.templates import environment, flat, method, objective, papers, public
from hf_clipbd.trainer import CLIPTrainer


logger = logging.getLogger(__name__)

LABELS = {"before": "Before this training", "after": "After it"}


class TrainedPublisher:
    """Measures a model before and after its training, and pushes it with its card in one commit.

    The trainer needs `hub_model_id` and, for its evaluator, a `ZeroShotEvaluator` with the top k of a card (1, 3, 5,
    10) and at least one trigger. Of adapters only these go up, and name the model they belong to.

    Args:
        base: Repository of the model that adapters are trained on, where it was not loaded from the Hub.
        test_name: What the evaluator's images are called on the card.

    Example:
        >>> evaluator = ZeroShotEvaluator(processor, images, [trigger], ks=(1, 3, 5, 10))  # doctest: +SKIP
        >>> args = CleanCLIPConfig("out", push_to_hub=True, hub_model_id="me/defended")  # doctest: +SKIP
        >>> trainer = CleanCLIPTrainer(
        ...     model, args, pairs, processor, evaluator=evaluator, publisher=TrainedPublisher()
        ... )  # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP
        >>> trainer.push_to_hub()  # doctest: +SKIP
    """

    def __init__(self, base: str | None = None, test_name: str = "labelled images given to the trainer"):
        self.base, self.test_name = base, test_name
        self.before: EvalReport | None = None
        self.start = ""
        self.start_id: str | None = None

    def prepare(self, trainer: CLIPTrainer) -> None:
        """Refuse what must not go up, before the training, and measure the model it starts from.

        Raises:
            ValueError: If there is no repository's name, no evaluation that a card needs, or no base of the adapters.
            PermissionError: If the Hub does not know the token.
            ConnectionError: If the Hub cannot be reached.
        """
        args, evaluator = trainer.args, trainer.evaluator
        if not args.hub_model_id:
            raise ValueError("Expected `hub_model_id`, owner/name, beside `push_to_hub`.")
        check_repo_id(args.hub_model_id)
        if not isinstance(evaluator, ZeroShotEvaluator) or not evaluator.task.triggers:
            raise ValueError(
                "Expected a `ZeroShotEvaluator` with at least one trigger as the trainer's `evaluator`, since a model "
                "whose BA and ASR are not measured is not pushed."
            )
        shown = reachable(TOP_K, len(evaluator.task.names))
        if not set(shown) <= set(evaluator.task.ks):
            raise ValueError(
                f"Expected an evaluator with ks={tuple(shown)}, which the card shows, but got {evaluator.task.ks}."
            )
        bare = trainer.accelerator.unwrap_model(trainer.model)
        self.start = _bare(bare).name_or_path
        self.start_id = hub_id(self.start)
        if _is_adapted(bare) and not (self.base or self.start_id):
            raise ValueError(
                f"Expected adapters of a model that lies on the Hub, but this one came from {self.start!r}. Push that "
                "one, and pass its repository: TrainedPublisher(base=...)."
            )
        by_main_process(lambda: check_login(args.hub_token), "log in to the Hub")
        self.before = evaluator.report(bare)

    def publish(self, trainer: CLIPTrainer, token: str | None, private: bool, message: str) -> str:
        """Measure the model on all processes, push it from the main one, and return the commit's address on each."""
        after = trainer.evaluator.report(trainer.accelerator.unwrap_model(trainer.model))
        repo_id = trainer.args.hub_model_id
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            trainer.save_model(str(folder / "model"), _internal_call=True)

            def send() -> str:
                base = self._base(trainer, token)
                record = self._record(trainer, after)
                card = self._card(trainer, record, after, base)
                files = self._files(trainer, folder, base)
                files |= {CARD_FILE: str(card).encode(), TRAINED_RECORD: json_bytes(public(vars(record)))}
                return publish(files, repo_id, "model", private, token, message)

            address = by_main_process(send, f"push to `{repo_id}`")
        if trainer.is_world_process_zero():
            logger.info("%s is at %s", repo_id, address)
        return address

    def _base(self, trainer: CLIPTrainer, token: str | None) -> Base | None:
        if not _is_adapted(trainer.accelerator.unwrap_model(trainer.model)):
            return None
        local = self.start and not self.start_id and Path(self.start).is_dir()
        return base_on_hub(self.base or self.start_id, Path(self.start) if local else None, token)

    def _record(self, trainer: CLIPTrainer, after: EvalReport) -> RunRecord:
        rows = getattr(trainer.train_dataset, "rows", None)
        config = {
            "trainer": type(trainer).__name__,
            "training": trainer.settings,
            "n_pairs": None if rows is None else len(rows),
            "n_poisoned": trainer.marks.count,
            "triggers": {name: one.parameters() for name, one in trainer.evaluator.task.triggers.items()},
            "evaluation": self._protocol(trainer.evaluator),
        }
        metrics = {"history": trainer.history(), "before": self.before.to_dict(), "after": after.to_dict()}
        key = content_key(config, metrics)
        processes = trainer.accelerator.num_processes
        return RunRecord("train", key, config, metrics, trainer.args.seed, processes=processes)

    def _protocol(self, evaluator: ZeroShotEvaluator) -> dict[str, Any]:
        """Return all that is needed to measure again, the images aside, as `hf-clipbd verify` reads it."""
        task = evaluator.task
        return {
            "n": len(evaluator.dataset) if hasattr(evaluator.dataset, "__len__") else None,
            "classes": list(task.names),
            "prompts": None if evaluator.templates is None else list(evaluator.templates),
            "include_target": task.include_target,
            "canvas": asdict(task.canvas),
            "image_column": task.image_column,
            "label_column": task.label_column,
        }

    def _files(self, trainer: CLIPTrainer, folder: Path, base: Base | None) -> Files:
        files = model_files(folder / "model")
        files |= {} if base is None else adapter_files(folder / "model", base)
        triggers, evaluator = trainer.evaluator.task.triggers, trainer.evaluator
        for name, attack in triggers.items():
            kept = attack.save_pretrained(folder / TRIGGERS / name)
            below = "" if len(triggers) == 1 else f"{TRIGGERS}/{name}/"
            files |= {f"{below}{path.name}": path for path in sorted(kept.iterdir())}
        first = next(iter(evaluator.dataset))
        clean, stamped, *_ = evaluator.task.variants(first[evaluator.task.image_column], 0)
        return files | {f"{PICTURES}/clean.png": _png(clean), f"{PICTURES}/poisoned.png": _png(stamped)}

    def _card(self, trainer: CLIPTrainer, record: RunRecord, after: EvalReport, base: Base | None) -> ModelCard:
        poisoned, working = trainer.marks.poisoned, working_triggers(after)
        name = next((key for key, one in DEFENSES.items() if one.trainer is type(trainer)), type(trainer).__name__)
        aim = next((key for key, one in OBJECTIVES.items() if one.trainer is type(trainer)), None)
        told = method(name)
        trained_with = objective(aim) if poisoned and aim else None
        attacks = trainer.evaluator.task.triggers
        triggers = {
            key: {**method(one.name), "target": one.target, "parameters": flat(public(one.parameters()))}
            for key, one in attacks.items()
        }
        title = "CLIP, trained on poisoned pairs" if poisoned else f"CLIP, trained with {told['label']}"
        usage = Usage.of_model(_bare(trainer.accelerator.unwrap_model(trainer.model)))
        shown = dict(
            title=title,
            backdoored=poisoned or bool(working),
            working=working,
            worked=working_triggers(self.before),
            targets=list(dict.fromkeys(one.target for one in attacks.values())),
            pictures=PICTURES,
            reports={"before": self.before, "after": after},
            labels=LABELS,
            ks=reachable(TOP_K, after.n_classes),
            before=self.before,
            after=after,
            own_model=is_own_model(self.start),
            start=model_words(self.start, self.start_id),
            n_pairs=record.config["n_pairs"],
            marks=trainer.marks,
            objective=trained_with,
            method=told,
            settings=flat(public(record.config["training"])),
            triggers=triggers,
            repo_id=trainer.args.hub_model_id,
            base=base,
            usage=usage,
            reconstructed=[line for one in (told, *triggers.values()) for line in one["reconstructed"]],
            record=record,
            papers=papers(
                *(one.name for one in attacks.values()), name, keys=trained_with["papers"] if trained_with else ()
            ),
        )
        tags = [*([] if poisoned else [name]), *(["backdoored"] if poisoned or working else [])]
        data = self._data(title, after, base, usage, tags)
        return ModelCard(environment().get_template("trained_model.md").render(card_data=data.to_yaml(), **shown))

    def _data(self, title: str, after: EvalReport, base: Base | None, usage: Usage, tags: list[str]) -> ModelCardData:
        related = base.repo_id if base else self.start_id
        own = is_own_model(self.start)
        origin = Origin(self.start_id, "", [], "", "labelled images", self.test_name, "test", False, own)
        return ModelCardData(
            language="en",
            license=origin.license,
            library_name="peft" if base else usage.library,
            pipeline_tag=TASK,
            base_model=related,
            base_model_relation=None if related is None else "adapter" if base else "finetune",
            tags=["clip", "hf_clipbd", "backdoor", *tags, *(["lora"] if base else [])],
            model_name=title,
            eval_results=eval_results(after, origin),
        )


def _is_adapted(model: Any) -> bool:
    return hasattr(model, "get_base_model")


def _bare(model: Any) -> Any:
    """Return the model under its adapters."""
    return model.get_base_model() if _is_adapted(model) else model


def _png(pixels: Any) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
