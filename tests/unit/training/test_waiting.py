"""The loop asks tensors for their values at logging points only: on a GPU, each question waits for the device."""

from __future__ import annotations

import sys

import pytest
import torch

from rayloom.training import PlainBackend, TokenLoss, train
from tests.fakes import KeptReports, tiny_model
from tests.unit.training.test_loop import make_job

QUESTIONS = ("item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__", "cpu")


def questions(monkeypatch, tmp_path, steps: int, **training) -> list[str]:
    """Places in the training room that ask, in a run that logs once, at its end."""
    asked: list[str] = []

    def noticed(name):
        original = getattr(torch.Tensor, name)

        def ask(tensor, *args, **options):
            code = sys._getframe(1).f_code
            if "rayloom/training/" in code.co_filename:
                asked.append(f"{code.co_filename.rsplit('/', 1)[-1]}:{code.co_name}")
            return original(tensor, *args, **options)

        return ask

    job = make_job(rows=4 * steps, num_epochs=1, logging_steps=steps, **training)
    backend = PlainBackend(TokenLoss(tiny_model("llama"), seq2seq=False), job.config, torch.device("cpu"))
    with monkeypatch.context() as patch:
        for name in QUESTIONS:
            patch.setattr(torch.Tensor, name, noticed(name))
        train(job, backend, KeptReports(tmp_path / str(steps)))
    return asked


@pytest.mark.parametrize("accumulation", [1, 2])
def test_more_steps_ask_no_more_than_they_log(monkeypatch, tmp_path, accumulation):
    few, many = (questions(monkeypatch, tmp_path, steps, gradient_accumulation_steps=accumulation) for steps in (4, 16))
    few, many = ([place for place in asked if not place.startswith("safety.py")] for asked in (few, many))
    assert few
    assert many == few


def test_skipping_steps_that_are_not_finite_has_to_ask(monkeypatch, tmp_path):
    few, many = (questions(monkeypatch, tmp_path, steps, non_finite="skip") for steps in (4, 16))
    assert len(many) > len(few)
