from __future__ import annotations

import gzip
import json

import pytest
import torch

from rayloom.training import Job, PlainBackend, TokenLoss, train
from rayloom.training.profiling import FIRST, LAST, TRACE_NAME
from tests.fakes import KeptReports, random_examples, run_config, tiny_model


@pytest.mark.parametrize(("max_steps", "traced"), [(12, LAST - FIRST + 1), (7, 4)])
def test_a_few_early_steps_are_traced(tmp_path, max_steps, traced):
    # A run of 7 steps has the evaluation behind its last one in the trace too.
    reports = train_profiled(tmp_path, max_steps=max_steps, profile=True)
    with gzip.open(reports.folder / TRACE_NAME) as file:
        events = json.load(file)["traceEvents"]
    steps = {event["name"] for event in events if event.get("name", "").startswith("ProfilerStep#")}
    assert len(steps) == traced
    assert any(event.get("name") == "aten::mm" for event in events)


def test_nothing_is_traced_unasked(tmp_path):
    assert not (train_profiled(tmp_path, max_steps=12, profile=False).folder / TRACE_NAME).exists()


def train_profiled(folder, **training):
    config = run_config(training={"batch_size": 4, "num_epochs": 5} | training)
    job = Job(
        config=config,
        train=random_examples(20, seq2seq=False),
        validation=random_examples(4, seq2seq=False),
        pad_token_id=0,
    )
    reports = KeptReports(folder)
    module = TokenLoss(tiny_model("llama"), seq2seq=False)
    train(job, PlainBackend(module, config, torch.device("cpu")), reports)
    return reports
