"""Whole runs with packed micro-batches."""

from __future__ import annotations

import pytest
import torch

from rayloom.errors import TrainingError
from rayloom.training import Job, PlainBackend, TokenLoss, train
from tests.fakes import FAMILIES, KeptReports, random_examples, run_config, tiny_model, trained_weights

CPU = torch.device("cpu")


def run(tmp_path, family, *, dropout=0.0, resume_from=None, model=None, **training):
    settings = {"batch_size": 8, "num_epochs": 2, "logging_steps": 1, "learning_rate": 1e-2, "warmup_ratio": 0.2}
    config = run_config(training=settings | training)
    seq2seq = family == "t5"
    train_rows, validation = (random_examples(rows, seq2seq=seq2seq, seed=rows) for rows in (40, 12))
    job = Job(config=config, train=train_rows, validation=validation, pad_token_id=0)
    model = model or tiny_model(family, dropout=dropout)
    backend = PlainBackend(TokenLoss(model, seq2seq=seq2seq), config, CPU)
    reports = KeptReports(tmp_path)
    train(job, backend, reports, resume_from=resume_from)
    return reports, trained_weights(backend)


@pytest.mark.parametrize("length", [None, 48])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_run_follows_the_padded_one(tmp_path, family, length):
    padded, weights = run(tmp_path / "padded", family)
    packed, packed_weights = run(tmp_path / "packed", family, packing=True, packing_length=length)
    assert [record.loss for record in packed.steps] == pytest.approx([r.loss for r in padded.steps], rel=1e-4)
    assert [r.metrics["loss"] for r in packed.evaluations] == pytest.approx(
        [r.metrics["loss"] for r in padded.evaluations], rel=1e-4
    )
    for name, weight in weights.items():
        torch.testing.assert_close(packed_weights[name], weight, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_run_that_resumes_ends_in_the_same_weights(tmp_path, family):
    settings = {"packing": True, "packing_length": 48, "checkpoint_every_steps": 1, "dropout": 0.1}
    whole, weights = run(tmp_path / "whole", family, **settings)
    resumed, resumed_weights = run(tmp_path / "resumed", family, resume_from=whole.checkpoints[4], **settings)
    assert [record.loss for record in resumed.steps] == [record.loss for record in whole.steps[4:]]
    assert len(resumed.steps) == len(whole.steps) - 4 > 0
    assert all(torch.equal(weight, resumed_weights[name]) for name, weight in weights.items())


def test_packed_micro_batches_are_what_the_model_gets(tmp_path):
    model, shapes = tiny_model("llama"), []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append((module.training, *kwargs["input_ids"].shape)), with_kwargs=True
    )
    run(tmp_path, "llama", model=model, packing=True, packing_length=200)
    assert [shape[1] for shape in shapes if shape[0]] == [1] * 10  # eight rows in one


def test_a_model_that_mixes_rows_is_never_trained(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda position_ids: None)
    model = tiny_model("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(TrainingError, match=r"cannot be packed"):
        run(tmp_path, "llama", model=model, packing=True)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
