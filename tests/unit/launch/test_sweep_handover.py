"""A checkpoint becomes another run's first one: with equal effect, that run ends bit-equal to the donor's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rayloom.config import RunConfig, validate
from rayloom.data import EncodedDataset
from rayloom.errors import ConfigError, TrainingError
from rayloom.launch import Run, prepare
from rayloom.launch.progress import Note
from rayloom.launch.sweeping.handover import hand_over
from rayloom.launch.sweeping.process import score_of
from rayloom.launch.sweeping.reports import Reports, checkpoints
from rayloom.launch.tracking.folder import RunFolder
from rayloom.models import load_model
from rayloom.training import (
    CheckpointSaver,
    CheckpointStore,
    EvalRecord,
    Job,
    Member,
    PlainBackend,
    StepRecord,
    TokenLoss,
    load_weights,
    train,
)
from tests.fakes_store import save, store_at

STEPS, AT = 6, 3


class Kept:
    """A reporter that stores checkpoints and remembers losses."""

    def __init__(self, saver: CheckpointSaver) -> None:
        self._saver, self.losses = saver, {}

    def __getattr__(self, name):
        return lambda *_: None

    def stepped(self, record: StepRecord) -> None:
        self.losses[record.step] = record.loss

    def checkpoint(self, part, progress, metrics) -> None:
        self._saver.save(part, progress, metrics, None)


def config_of(root: Path, name: str, *, rows: int = 40, **training: Any) -> RunConfig:
    file = root / f"train{rows}.jsonl"
    lines = ({"question": f"What is number {n}?", "answer": f"It is {n % 7} of many."} for n in range(rows))
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    init = {"family": "t5", "hidden_size": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 300}
    values = {
        "model": {"name": "tiny", "random_init": init},
        "dataset": {"train_file": str(file), "cache_dir": str(root / "encoded")},
        "training": {
            "batch_size": 8,
            "max_steps": STEPS,
            "checkpoint_every_steps": 1,
            "learning_rate": 1e-2,
            "lr_scheduler": "constant",
            "save_total_limit": STEPS,
            "logging_steps": 1,
        }
        | training,
        "output": {"storage_path": str(root / "runs"), "run_name": name},
    }
    return validate(RunConfig, values)


def trained(config: RunConfig, *, donor: str | None = None, notes: list[str] | None = None) -> tuple[Run, dict]:
    """A run as a trial makes it, without its Ray; the losses of its steps."""
    prepared, run = prepare(config), Run.of(config)
    identity = run.identity(config, prepared.train.digest)
    store = CheckpointStore(run.checkpoints_path, identity, note=lambda _: None)
    if donor is not None:
        hand_over(donor, store, lambda event: None if notes is None else notes.append(event.text))
    run.start(config)
    chosen = store.take_over("b2" if donor else "a1")
    loaded = load_model(prepared.source)
    backend = PlainBackend(TokenLoss(loaded.model, seq2seq=True), config, torch.device("cpu"))
    nothing = EncodedDataset.from_examples([], seq2seq=True)
    job = Job(config, prepared.train, nothing, pad_token_id=prepared.tokenizer.pad_token_id)
    member = Member("b2" if donor else "a1", 0, 1)
    with CheckpointSaver(store, member, keep=STEPS, saved=lambda _: None) as saver:
        reporter = Kept(saver)
        if chosen is None:
            train(job, backend, reporter)
        else:
            with store.opened(chosen) as folder:
                train(job, backend, reporter, resume_from=folder)
    return run, reporter.losses


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_weights(Path(run.checkpoints_path) / checkpoints(run.path)[STEPS])


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYLOOM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def donor(tmp_path_factory):
    root = tmp_path_factory.mktemp("handover")
    run, losses = trained(config_of(root, "trial-000"))
    return root, run, losses


def test_with_settings_of_equal_effect_it_ends_bit_equal_to_the_donor(donor):
    root, run, losses = donor
    place = f"{run.path}/checkpoints/{checkpoints(run.path)[AT]}"
    # No warm-up and a warm-up of no steps are the same, but another config: resuming would refuse it.
    other = config_of(root, "trial-001.2", warmup_steps=0)
    notes: list[str] = []
    ours, our_losses = trained(other, donor=place, notes=notes)
    assert our_losses == {step: loss for step, loss in losses.items() if step > AT}
    assert all(torch.equal(tensor, weights(ours)[name]) for name, tensor in weights(run).items())
    assert notes == [f"goes on from step {AT} of {run.path}, its weights and its optimizer"]


def test_a_changed_setting_takes_effect_from_there_on(donor):
    root, run, losses = donor
    place = f"{run.path}/checkpoints/{checkpoints(run.path)[AT]}"
    ours, our_losses = trained(config_of(root, "trial-002.2", learning_rate=3e-2), donor=place)
    assert our_losses[AT + 1] == losses[AT + 1], "the first loss is that of the donor's weights"
    assert our_losses[AT + 3] != losses[AT + 3]
    assert min(our_losses) == AT + 1


def test_a_checkpoint_that_is_gone_is_replaced_by_the_newest(donor, tmp_path):
    root, run, _ = donor
    gone = f"{run.path}/checkpoints/step-00000002-0123"
    store = CheckpointStore(str(tmp_path / "checkpoints"), _identity(root, "trial-003.2"), note=lambda _: None)
    assert hand_over(gone, store, lambda _: None).step == STEPS
    assert store.latest().step == STEPS


def test_a_run_on_other_rows_is_refused(donor, tmp_path):
    root, run, _ = donor
    store = CheckpointStore(str(tmp_path / "checkpoints"), {"config": "c", "data": "other"}, note=lambda _: None)
    with pytest.raises(ConfigError, match="other rows"):
        hand_over(f"{run.path}/checkpoints/{checkpoints(run.path)[AT]}", store, lambda _: None)


def test_a_donor_without_checkpoints_is_an_error(donor, tmp_path):
    root, _, _ = donor
    config = config_of(root, "trial-009")
    Run.of(config).start(config)
    store = CheckpointStore(str(tmp_path / "checkpoints"), _identity(root, "trial-009"), note=lambda _: None)
    with pytest.raises(TrainingError, match="cannot be used|no checkpoint"):
        hand_over(f"{Run.of(config).path}/checkpoints/step-00000002-0123", store, lambda _: None)


def _identity(root: Path, name: str) -> dict[str, str]:
    config = config_of(root, name)
    return Run.of(config).identity(config, prepare(config).train.digest)


def step(number: int, total: int = 9) -> StepRecord:
    return StepRecord(number, total, 1.0, 2.0, 1e-3, 1.0, 1.0, 1.0)


def test_a_validation_is_told_once_its_checkpoint_is_safe_and_the_last_one_never(tmp_path):
    store, _ = store_at(tmp_path / "checkpoints")
    told: list[dict] = []
    reports = Reports(str(tmp_path), told.append)
    reports(step(3))
    reports(EvalRecord(3, 1, {"loss": 2.0}))
    assert told == []
    save(store, tmp_path / "work", 3)
    reports(Note("saved step 3"))
    assert told == [{"steps": 3, "epochs": 1, "metrics": {"loss": 2.0}, "checkpoint": "step-00000003-a1"}]
    reports(Note("saved step 5"))  # a checkpoint between validations
    reports(step(9))
    reports(EvalRecord(9, 3, {"loss": 1.0}))
    reports(Note("saved step 9"))
    assert len(told) == 1
    assert reports.last == {"loss": 1.0}


def test_what_an_earlier_attempt_validated_is_told_again_as_far_as_it_is_safe(tmp_path):
    store, _ = store_at(tmp_path / "checkpoints")
    lines = [
        {"kind": "evaluation", "step": n, "epoch": n, "metrics": {"loss": 9.0 - n}, "samples": []} for n in (0, 2, 4, 6)
    ]
    RunFolder(str(tmp_path)).write("history.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    for number in (2, 4):
        save(store, tmp_path / "work", number)
    told: list[dict] = []
    reports = Reports(str(tmp_path), told.append)
    assert reports.last == {"loss": 3.0}
    reports.tell_past(only_last=False)
    assert [each["steps"] for each in told] == [2, 4]
    told.clear()
    Reports(str(tmp_path), told.append).tell_past(only_last=True)
    assert [(each["steps"], each["checkpoint"]) for each in told] == [(4, "step-00000004-a1")]


def test_a_figure_that_is_not_known_yet_is_no_number():
    assert score_of({"loss": 2.0}, "loss") == 2.0
    assert score_of({"loss": 2.0}, "evaluation.chrf") != score_of({"loss": 2.0}, "evaluation.chrf")
