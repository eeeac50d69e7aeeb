"""A run on a streamed corpus takes the very steps of a run that has its rows in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rayloom.config import EvaluateJob, EvaluationConfig, RunConfig, load_run_config
from rayloom.data import columns_for, corpus_splits, load_splits, row_keys
from rayloom.errors import DataError
from rayloom.evaluation import run_job
from rayloom.launch import prepare, run_training
from rayloom.launch.corpus import RayWorkers
from rayloom.launch.progress import Note
from rayloom.launch.worker import build_backend
from rayloom.training import EvalRecord, Job, StepRecord, train
from tests.fakes import KeptReports

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

JOB = Path(__file__).parents[2] / "jobs" / "finetune" / "tiny_t5_qa.yaml"
OVERRIDES = [
    "dataset.max_train_rows=48",
    "dataset.max_validation_rows=8",
    "training.max_steps=3",
    "training.logging_steps=1",
    "training.eval_rows=0",
    "distributed.num_workers=1",
    "distributed.backend=plain",
    "distributed.zero_stage=null",
]


def config_for(folder: Path, *, streamed: bool) -> RunConfig:
    own = [f"output.storage_path={folder}", f"dataset.cache_dir={folder / 'cache'}"]
    return load_run_config(JOB, [*OVERRIDES, *own, f"dataset.streaming={str(streamed).lower()}"])


def train_in_memory(config: RunConfig, folder: Path) -> KeptReports:
    """The same loop in this process, on rows that `encode_rows` holds."""
    prepared = prepare(config)
    device, threads = torch.device("cpu"), torch.get_num_threads()
    longest = int(prepared.train.lengths.max())
    torch.set_num_threads(1)
    try:
        backend, tokenizer = build_backend(config, prepared.source, device, longest=longest)
        reports = KeptReports(folder)
        train(Job(config, prepared.train, prepared.validation, tokenizer.pad_token_id), backend, reports)
    finally:
        torch.set_num_threads(threads)
    return reports


def test_streaming_changes_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_splits, "BLOCK_BYTES", 20_000)
    monkeypatch.setattr(row_keys, "SHARD_BLOCKS", 2)
    events: list[object] = []
    config = config_for(tmp_path, streamed=True)
    streamed = run_training(config, sink=events.append, announce=lambda *_: None)
    notes = [event.text for event in events if isinstance(event, Note)]
    assert any(note.startswith("reading train.jsonl: 100%") for note in notes)
    assert any(note.startswith("tokenising: 100%") for note in notes)
    assert len(list((tmp_path / "cache").glob("corpora/tokens/*/shard-*"))) > 3
    steps = [(event.step, event.loss, event.grad_norm) for event in events if isinstance(event, StepRecord)]
    losses = [event.metrics["loss"] for event in events if isinstance(event, EvalRecord)]
    known = train_in_memory(config_for(tmp_path, streamed=False), tmp_path / "kept")
    assert len(steps) == 3
    assert steps == [(event.step, pytest.approx(event.loss), pytest.approx(event.grad_norm)) for event in known.steps]
    assert losses == pytest.approx([event.metrics["loss"] for event in known.evaluations])

    # The artifact's own config streams the test rows as well.
    evaluation = EvaluationConfig(max_rows=3, latency_prompts=0, throughput_batch_sizes=[])
    job = EvaluateJob(artifact=streamed.artifact, splits=["test"], output=str(tmp_path), evaluation=evaluation)
    (split,) = run_job(job, device="cpu").result.splits
    whole = config.dataset.model_copy(update={"streaming": False})
    test = load_splits(whole, columns_for(whole, "question-answering")).test
    assert [prediction.reference for prediction in split.predictions] == [row["answer"] for row in test[:3]]
    assert split.num_rows_total == len(test)


def test_tasks_answer_in_order_and_with_our_own_errors() -> None:
    told: list[str] = []
    workers = RayWorkers(told.append)
    numbers = list(range(12))

    def squared(number: int) -> int:
        if number < 0:
            raise DataError("negative", file="a.csv", row=-number)
        return number * number

    assert list(workers("squaring", squared, numbers, [1 << 22] * 12)) == [number * number for number in numbers]
    assert told[-1].startswith("squaring: 100% of 48 MiB, piece 12 of 12")
    assert list(workers("squaring", squared, [], [])) == []
    for _ in range(100):  # whatever the others are doing when one fails: Ray's own cancelling ended the process here
        with pytest.raises(DataError, match="a.csv, row 7: negative") as caught:
            list(workers("squaring", squared, [1, -7, -8], [1 << 24] * 3))
        assert caught.value.row == 7
