"""Micro-batches made ahead in a thread: the same ones, in the same order, and never many at once."""

from __future__ import annotations

import threading

import pytest
import torch

from rayloom.data import Packing, plan_epoch
from rayloom.errors import DataError
from rayloom.training import Job, prefetch
from rayloom.training.batches import to_device
from rayloom.training.prefetch import AHEAD, Feeder
from tests.fakes import random_examples, run_config

CPU = torch.device("cpu")


def make_job(rows: int = 40) -> Job:
    data = random_examples(rows, seq2seq=False)
    return Job(run_config(training={"batch_size": 4}), data, data, pad_token_id=0)


def accumulated(job: Job):
    """Steps of three micro-batches, the last one of fewer."""
    options = {"global_batch_size": 12, "batch_size": 4, "world_size": 1, "seed": 1, "epoch": 0}
    return plan_epoch(job.lengths, job.target_counts, **options)


@pytest.mark.parametrize("packing", [None, Packing(24)])
def test_the_loop_gets_what_the_plan_says(packing):
    job = make_job()
    plan = accumulated(job)
    with Feeder(job, CPU, packing) as feeder:
        for _ in range(2):
            given = [(batch, list(tensors)) for batch, tensors in feeder.steps(plan)]
            assert [batch for batch, _ in given] == plan
            for batch, tensors in given:
                assert len(tensors) == len(batch.micro[0])
                for micro, inputs in zip(batch.micro[0], tensors, strict=True):
                    wanted = to_device(job.train, micro, pad_token_id=0, device=CPU, packing=packing)
                    assert inputs.keys() == wanted.keys()
                    assert all(torch.equal(inputs[name], wanted[name]) for name in wanted)


def test_only_a_few_wait(monkeypatch):
    job, made = make_job(), []
    original = prefetch.to_tensors

    def counted(dataset, micro, **options):
        made.append(threading.current_thread().name)
        return original(dataset, micro, **options)

    monkeypatch.setattr(prefetch, "to_tensors", counted)
    taken = 0
    with Feeder(job, CPU, None) as feeder:
        for _, tensors in feeder.steps(job.plan(0)):
            for _ in tensors:
                taken += 1
                assert len(made) <= taken + AHEAD
    assert taken == len(made) == 10
    assert all(name.startswith("micro-batches") for name in made)


def test_a_row_that_cannot_be_read_is_the_loops_error(monkeypatch):
    def broken(dataset, micro, **options):
        raise DataError("row 3 is broken")

    monkeypatch.setattr(prefetch, "to_tensors", broken)
    job = make_job()
    with pytest.raises(DataError, match=r"row 3"), Feeder(job, CPU, None) as feeder:
        list(next(feeder.steps(job.plan(0)))[1])


def test_no_thread_is_left_when_the_loop_stops_early():
    job = make_job()
    with Feeder(job, CPU, None) as feeder:
        next(feeder.steps(job.plan(0)))
    assert not [each for each in threading.enumerate() if each.name.startswith("micro-batches")]
