# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""A training as a stage and as a command: its speed, what it cannot save, what it refuses before it reads anything."""

import copy
import hashlib
import json
import re
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch

from hf_clipbd import trainer as trainer_module
from hf_clipbd.attacks import BadNets
from hf_clipbd.cli import main, script
from hf_clipbd.data.canvas import Canvas
from hf_clipbd.models.text_input import TextInput
from hf_clipbd.recipe import single
from hf_clipbd.recipe.config import config_from
from hf_clipbd.recipe.defending import check_sizes
from hf_clipbd.recipe.sections import ConfigError
from hf_clipbd.recipe.stage import Stage
from hf_clipbd.recipe.trained import save_trained
from hf_clipbd.recipe.training import check_one_process_has_it_all, train_into
from hf_clipbd.schema import RunRecord
from hf_clipbd.trainer import CLIPTrainer, CLIPTrainingConfig


@pytest.fixture
def train(tiny_model, tiny_processor, tiny_pairs, tmp_path):
    """Return a function that trains the untrained model as a stage and gives its record."""

    def stage(trainer_class=CLIPTrainer, evaluator=None, run="run", after=None, streamed=False, **changes):
        settings = {"per_device_train_batch_size": 8, "use_cpu": True, "disable_tqdm": True, **changes}
        config = CLIPTrainingConfig(**settings)
        place = Stage(tmp_path / run, "victim", {}, 0)
        load = lambda: (copy.deepcopy(tiny_model), tiny_processor)  # noqa: E731
        pairs = lambda: tiny_pairs.to_iterable_dataset(num_shards=2) if streamed else tiny_pairs  # noqa: E731
        measure = lambda _: evaluator  # noqa: E731
        return train_into(
            place, trainer_class, config, load, pairs, measure, Canvas(32), after=after, keep_model=False
        )

    return stage


class TenSeconds(CLIPTrainer):
    """Its training takes ten seconds by the clock of transformers."""

    def train(self, *arguments, **options):
        output = super().train(*arguments, **options)
        return output._replace(metrics={**output.metrics, "train_runtime": 10.0})


def test_the_speed_counts_the_steps_taken_and_no_evaluation(train, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(trainer_module, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def evaluator(model):
        clock[0] += 3.0
        return {"ba1": 0.5}

    settings = {"num_train_epochs": 30, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "no"}
    record = train(TenSeconds, evaluator, max_steps=4, **settings)
    assert record.metrics["images_per_second"] == 4 * 8 / (10 - 2 * 3)


def test_the_speed_of_a_training_that_stops_early_or_goes_on_is_that_of_its_own_steps(train):
    class Stopped(TenSeconds):
        def train(self, *arguments, **options):
            self.add_callback(StopAtSix())
            return super().train(*arguments, **options)

    from transformers import TrainerCallback

    class StopAtSix(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 6

    assert train(Stopped, num_train_epochs=5).metrics["images_per_second"] == 6 * 8 / 10


# -- killed when all is trained ---------------------------------------------------------------------------------------


def digest(model):
    return hashlib.sha256(
        b"".join(value.detach().numpy().tobytes() for value in model.state_dict().values())
    ).hexdigest()


def weights(model, processor):
    """Return figures for the record that tell the weights."""
    return {"weights": digest(model)}


def killed(model, processor):
    raise KeyboardInterrupt


class KilledAtItsEnd(CLIPTrainer):
    """Is killed before the best model is loaded."""

    def _finalize_training(self, *arguments):
        raise KeyboardInterrupt


ENDED_EARLY = dict(num_train_epochs=5, eval_strategy="epoch", early_stopping_patience=1)


@pytest.mark.parametrize(
    ("settings", "trainer_class"),
    [
        (dict(ENDED_EARLY, save_total_limit=1), CLIPTrainer),
        (dict(ENDED_EARLY, save_total_limit=2), KilledAtItsEnd),
        (dict(ENDED_EARLY, save_total_limit=None), CLIPTrainer),
        (dict(ENDED_EARLY, save_total_limit=2, load_best_model_at_end=True), KilledAtItsEnd),
        (dict(max_steps=4), CLIPTrainer),
        (dict(max_steps=4, streamed=True), CLIPTrainer),
    ],
    ids=["early, one kept", "early, two kept", "early, all kept", "early, best loaded", "steps", "stream"],
)
def test_a_training_killed_after_its_last_step_ends_as_the_unbroken_one(settings, trainer_class, train):
    known, figures = {}, [0.3, 0.5, 0.4, 0.6, 0.7]

    def evaluator(model):
        return {"ba1": known.setdefault(digest(model), figures[min(len(known), 4)])}

    settings = dict(settings, per_device_train_batch_size=16, learning_rate=1e-3)
    settings["evaluator"] = evaluator if "eval_strategy" in settings else None
    whole = train(run="whole", after=weights, **settings)
    with pytest.raises(KeyboardInterrupt):
        train(trainer_class, run="broken", after=killed, **settings)
    resumed = train(run="broken", after=weights, **settings)
    steps = lambda record: [(entry["epoch"], entry.get("eval_ba1")) for entry in record.metrics["history"]]  # noqa: E731
    assert steps(resumed) == steps(whole)
    assert resumed.metrics["weights"] == whole.metrics["weights"]
    if "eval_strategy" in settings:
        assert [figure for _, figure in steps(whole)] == [0.3, 0.5, 0.4]


class Tracked(CLIPTrainer):
    """Has a tracker that writes where TensorBoard would."""

    def train(self, *arguments, **options):
        runs = Path(self.args.output_dir) / "runs" / "first"
        runs.mkdir(parents=True)
        (runs / "events").write_text("figures")
        return super().train(*arguments, **options)


def test_what_a_tracker_writes_beside_the_checkpoints_stays(train, tmp_path):
    record, folder = train(Tracked, num_train_epochs=1), tmp_path / "run" / "victim"
    assert record.written == ["runs"] and (folder / "runs" / "first" / "events").read_text() == "figures"
    assert sorted(path.name for path in folder.iterdir()) == ["record.json", "runs"]


def test_what_a_tracker_wrote_outlives_a_kill_before_the_stage_is_done(train, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(Tracked, num_train_epochs=1, after=killed)
    record, folder = train(num_train_epochs=1), tmp_path / "run" / "victim"
    assert record.written == ["runs"] and (folder / "runs" / "first" / "events").read_text() == "figures"


def test_a_processor_is_saved_alike_used_or_not(tiny_model, tiny_pairs, tiny_processor, tmp_path):
    config = CLIPTrainingConfig(tmp_path / "out", use_cpu=True, disable_tqdm=True, per_device_train_batch_size=8)
    trainer = CLIPTrainer(tiny_model, config, tiny_pairs, tiny_processor)
    for name in ("idle", "called"):
        (tmp_path / name).mkdir()
        save_trained(trainer, tiny_model, tiny_processor, tmp_path / name)
        TextInput.of(tiny_model, tiny_processor)(["a cup", "a red cup"])
    for path in sorted((tmp_path / "idle").iterdir()):
        assert path.read_bytes() == (tmp_path / "called" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("disabled", [True, False])
def test_the_bar_can_be_turned_off_and_the_lines_stay(disabled, train, capsys):
    train(num_train_epochs=1, disable_tqdm=disabled, save_strategy="no")
    said = capsys.readouterr()
    assert ("it/s" in said.err) is not disabled and "victim  epoch 1/1  loss" in said.out


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(output_dir="elsewhere"), "`output_dir` to be 'trainer_output', but got 'elsewhere'.*`--out`"),
        (dict(resume_from_checkpoint="there"), "`resume_from_checkpoint` to be none, but got 'there'.*by itself"),
        (
            dict(
                load_best_model_at_end=True, eval_strategy="steps", save_strategy="steps", eval_steps=2, save_steps=4
            ),
            "`save_steps` 4 and `eval_steps` 2.*`save_steps` to `eval_steps`",
        ),
    ],
)
def test_a_stage_refuses_what_it_decides_itself_and_a_best_model_that_is_not_saved(changes, says, train, tmp_path):
    with pytest.raises(ValueError, match=says):
        train(**changes)
    assert not (tmp_path / "run").exists()


class Divided(CLIPTrainer):
    """Under FSDP, as far as it says."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.is_fsdp_enabled = True

    def train(self, *arguments, **options):
        raise AssertionError("is refused before it trains")


def test_a_stage_is_refused_where_no_process_has_the_whole_model(train, tmp_path):
    with pytest.raises(ValueError, match="on every process.*FSDP.*recipes/accelerate"):
        train(Divided)
    assert not (tmp_path / "run" / "victim" / "record.json").exists()
    for stage, refused in ((2, False), (3, True)):
        plugin = SimpleNamespace(zero_stage=stage)
        accelerator = SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin))
        trainer = SimpleNamespace(accelerator=accelerator, is_deepspeed_enabled=True, is_fsdp_enabled=False)
        if refused:
            with pytest.raises(ValueError, match="ZeRO-3"):
                check_one_process_has_it_all(trainer)
        else:
            check_one_process_has_it_all(trainer)


def test_more_k_pairs_than_rows_are_found_before_a_run_begins():
    values = {"world": {"n_defense": 500}, "defenses": {"cleanerclip": {"k_pairs": 501, "use_cpu": True}}}
    with pytest.raises(ConfigError, match=r"`defenses.cleanerclip`: .*0 to 500 pairs"):
        check_sizes(config_from(values))
    check_sizes(config_from({**values, "world": {"n_defense": 501}}))
    few = {"world": {"n_train": 20, "n_defense": 501}, "victim": {"per_device_train_batch_size": 32}}
    with pytest.raises(ConfigError, match=r"`victim`: .*at least one global batch"):
        check_sizes(config_from({**values, **few, "detect": {"rates": []}}))


# -- commands ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--early_stopping_patience 1", "--early_stopping_patience` needs. Pass --test IMAGES"),
        ("--eval_strategy epoch --early_stopping_patience 1", "Pass --test IMAGES"),
        ("--eval_strategy steps", "--eval_strategy` needs. Pass --test IMAGES"),
        ("--tau_pos 0", "`tau_pos` above 0"),
        ("--k_pairs 49 --per_device_train_batch_size 8", "0 to 48 pairs"),
        ("--k_pairs 49 --per_device_train_batch_size 8 --max_steps 2", "0 to 48 pairs"),
        ("--streaming", "`--max_steps N` beside `--streaming`"),
    ],
)
def test_a_command_says_what_is_missing_before_it_loads_a_model(flags, says, tiny_pairs, tmp_path, capsys):
    tiny_pairs.save_to_disk(tmp_path / "pairs")
    given = f"defend {tmp_path / 'nowhere'} --defense cleanerclip --data {tmp_path / 'pairs'} --out {tmp_path / 'out'}"
    assert main([*given.split(), "--use_cpu", "true", *flags.split()]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("defense", "flags", "says"),
    [
        ("ft", "", None),
        ("cleanclip", "", None),
        ("par", "", None),
        ("cleanerclip", "--k_share 0.5", None),
        ("cleanerclip", "", "but got a stream.*set `k_share`"),
        ("roclip", "", "known length.*without `streaming`"),
    ],
)
def test_a_command_trains_on_a_stream(defense, flags, says, tiny_model, tiny_processor, tiny_pairs, tmp_path, capsys):
    tiny_pairs.save_to_disk(tmp_path / "pairs")
    tiny_model.save_pretrained(tmp_path / "model")
    tiny_processor.save_pretrained(tmp_path / "model")
    line = (
        f"defend {tmp_path / 'model'} --defense {defense} --data {tmp_path / 'pairs'} --out {tmp_path / 'out'} {flags}"
    )
    line += " --streaming --max_steps 9 --per_device_train_batch_size 8 --use_cpu true --quiet"
    status, said = main(line.split()), capsys.readouterr().err
    if says is not None:
        assert status == 2 and re.search(says, said)
        return
    assert status == 0
    record = RunRecord.load(tmp_path / "out")
    assert record.config["streaming"] is True and (tmp_path / "out" / "model.safetensors").is_file()
    assert any("loss_fc" in entry for entry in record.metrics["history"]) is (defense == "cleanerclip")
    assert main([*line.split()[:-1], "--json"]) == 0  # up to date: the stream is known by its source
    assert json.loads(capsys.readouterr().out)["seconds"] == record.seconds


def test_another_trigger_or_other_pictures_to_measure_on_train_again(
    tiny_model, tiny_processor, tiny_pairs, tmp_path, monkeypatch
):
    model, pairs, trigger, test = (tmp_path / name for name in ("model", "pairs", "trigger", "test"))
    tiny_model.save_pretrained(model)
    tiny_processor.save_pretrained(model)
    tiny_pairs.save_to_disk(str(pairs))
    config = CLIPTrainingConfig("unused", use_cpu=True)
    monkeypatch.setattr(single, "train_into", lambda stage, *_: stage)

    def stage(triggers=(str(trigger),), probed=True):
        data = single.Data(str(test), "test", label_column="kind")
        probe = single.Probe(data, triggers) if probed else None
        return single.train_model(
            str(model), single.Data(str(pairs)), CLIPTrainer, config, probe, None, tmp_path / "out"
        )

    def show(n):
        kinds = datasets.ClassLabel(names=["one", "two"])
        rows = tiny_pairs.select(range(n)).add_column("kind", [row % 2 for row in range(n)])
        rows.select_columns(["image", "kind"]).cast_column("kind", kinds).to_parquet(test / "test.parquet")

    test.mkdir()
    show(8)
    BadNets(target="one", patch_size=4).save_pretrained(trigger)
    first = stage()
    assert stage().key == first.key and set(first.inputs) >= {"test", "trigger badnets"}
    BadNets(target="one", patch_size=6).save_pretrained(trigger)
    second = stage()
    assert second.inputs["test"] == first.inputs["test"] and second.key != first.key
    show(12)
    assert stage().key not in (first.key, second.key)
    assert set(stage(probed=False).inputs) == {"model", "processor", "data"}


def test_a_stream_is_another_one_with_other_workers(tiny_model, tiny_processor, tiny_pairs, tmp_path, monkeypatch):
    tiny_model.save_pretrained(tmp_path / "model")
    tiny_processor.save_pretrained(tmp_path / "model")
    for part in range(2):
        tiny_pairs.shard(2, part).to_parquet(tmp_path / "pairs" / f"{part}.parquet")
    monkeypatch.setattr(single, "train_into", lambda stage, *_: stage)

    def stage(workers, streaming=True):
        config = CLIPTrainingConfig("unused", use_cpu=True, max_steps=4, dataloader_num_workers=workers)
        data = single.Data(str(tmp_path / "pairs"))
        given = data, CLIPTrainer, config, None, None, tmp_path / "out", streaming
        return single.train_model(str(tmp_path / "model"), *given)

    none, one, two, nine = (stage(workers) for workers in (0, 1, 2, 9))
    assert len({none.key, one.key, two.key}) == 3 and two.key == nine.key  # of two shards, which two workers read
    assert "dataloader_num_workers" not in none.config and two.config["dataloader_num_workers"] == 2
    assert stage(0, streaming=False).key == stage(2, streaming=False).key


def test_a_gpu_out_of_memory_is_told_what_helps(capsys):
    def act(arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nMore of it.")

    assert script("train", "", act, []) == 2
    said = capsys.readouterr().err
    assert "Lower the batch size" in said and "--chunk_size" in said and said.count("\n") == 1
    with pytest.raises(torch.OutOfMemoryError):
        script("train", "", act, ["--traceback"])
    with pytest.raises(RuntimeError, match="another"):
        script("train", "", lambda _: (_ for _ in ()).throw(RuntimeError("another")), [])
