"""Gradients that are not finite under DeepSpeed, which has its own ways to say so (-1) and to leave updates out."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import socket

import pytest
import torch

from rayloom.errors import TrainingError
from rayloom.training import DeepSpeedBackend, Job, TokenLoss, deepspeed_backend, train
from tests.fakes import KeptReports, random_examples, run_config, tiny_model

STEPS = 4
CASES = list(itertools.product((0, 1, 2, 3), ("fp32", "bf16"), ("stop", "skip")))


class Losses(KeptReports):
    """Keeps no checkpoints."""

    def checkpoint(self, part, progress, metrics):
        """Not needed here."""


def outcome(stage, precision, policy, folder):
    """What became of a run whose second step has gradients that are not finite: its complaint, or its notes."""
    training = {"batch_size": 2, "num_epochs": 1, "logging_steps": 1, "non_finite": policy}
    training["bf16"] = precision == "bf16"
    config = run_config(training=training, distributed={"zero_stage": stage})
    module = TokenLoss(tiny_model("llama"), seq2seq=False)
    steps = itertools.count(1)
    next(module.model.parameters()).register_hook(lambda g: g * math.inf if next(steps) == 2 else g)
    rows = random_examples(2 * STEPS, seq2seq=False, seed=0)
    reports = Losses(folder)
    try:
        train(Job(config, rows, rows, 0), DeepSpeedBackend(module, config, torch.device("cpu")), reports)
    except TrainingError as error:
        return str(error)
    return [*reports.notes, [record.loss for record in reports.steps]]


def alone():
    """DeepSpeed makes a process group: this process is all of it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(port)
    torch.set_num_threads(1)


def outcomes(folder):
    """Of all cases, in a process of its own."""
    alone()
    return {case: outcome(*case, folder) for case in CASES}


def test_every_stage_stops_or_skips_as_it_was_told(tmp_path):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(outcomes, (tmp_path,))
    for (stage, precision, policy), result in found.items():
        case = f"ZeRO {stage}, {precision}, {policy}: {result}"
        if policy == "stop":
            assert isinstance(result, str), case
            assert result.startswith("step 2: the gradient of train rows "), case
        else:
            *notes, losses = result
            assert len(notes) == 1, case
            assert notes[0].startswith("step 2 skipped: the gradient of train rows "), case
            assert len(losses) == STEPS - 1, case  # the next record tells of the step that was skipped, too
            assert all(map(math.isfinite, losses)), case


def lone_weights(folder, *, spared, precision, accumulation):
    """Weights and norms of a run at ZeRO 1 with large and small gradients, with DeepSpeed's own copies or without."""
    alone()
    if not spared:
        deepspeed_backend.spare_copies = lambda *_, **__: None
    deepspeed_backend._LONE_BUCKET = 300  # elements: some of its gradients are larger
    training = {"batch_size": 2, "num_epochs": 1, "logging_steps": 1, precision: True}
    training["gradient_accumulation_steps"] = accumulation
    config = run_config(training=training, distributed={"zero_stage": 1})
    backend = DeepSpeedBackend(TokenLoss(tiny_model("llama"), seq2seq=False), config, torch.device("cpu"))
    rows = random_examples(4 * STEPS, seq2seq=False, seed=0)
    reports = Losses(folder)
    train(Job(config, rows, rows, 0), backend, reports)
    weights = {name: weight.tolist() for name, weight in backend._weights().items()}
    return weights, [record.grad_norm for record in reports.steps]


@pytest.mark.parametrize(("precision", "accumulation"), [("bf16", 1), ("bf16", 2), ("fp16", 2)])
def test_sparing_copies_changes_no_bit(precision, accumulation, tmp_path):
    asked = {"precision": precision, "accumulation": accumulation}
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        spared, copied = (pool.apply(lone_weights, (tmp_path,), asked | {"spared": spared}) for spared in (True, False))
    assert spared == copied
    assert len(spared[1]) >= STEPS
