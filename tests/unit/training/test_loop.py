from __future__ import annotations

import pytest
import torch

from rayloom.errors import TrainingError
from rayloom.training import Job, PlainBackend, TokenLoss, Validation, load_progress, load_weights, train
from tests.fakes import FAMILIES, KeptReports, random_examples, run_config, tiny_model, trained_weights

CPU = torch.device("cpu")


def make_job(family="llama", *, rows=40, validator=None, lora=None, **training):
    config = run_config(
        training={"batch_size": 4, "num_epochs": 2, "logging_steps": 1, "learning_rate": 1e-2} | training
    )
    seq2seq = family == "t5"
    return Job(
        config=config,
        train=random_examples(rows, seq2seq=seq2seq, seed=1),
        validation=random_examples(12, seq2seq=seq2seq, seed=2),
        pad_token_id=0,
        validator=validator,
    )


def make_backend(job, family="llama", *, dropout=0.0):
    model = tiny_model(family, dropout=dropout)
    smoothing = job.config.training.label_smoothing
    return PlainBackend(TokenLoss(model, seq2seq=family == "t5", label_smoothing=smoothing), job.config, CPU)


def run(tmp_path, job, family="llama", *, dropout=0.0, resume_from=None):
    reports = KeptReports(tmp_path)
    backend = make_backend(job, family, dropout=dropout)
    return train(job, backend, reports, resume_from=resume_from), reports, trained_weights(backend)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_falls_and_every_step_is_reported(tmp_path, family):
    job = make_job(family, num_epochs=8, eval_on_start=True)
    progress, reports, _ = run(tmp_path, job, family)
    assert progress.step == job.total_steps == 80
    assert [record.step for record in reports.steps] == list(range(1, 81))
    assert reports.steps[-1].loss < 0.9 * reports.steps[0].loss
    assert [record.step for record in reports.evaluations] == list(range(0, 81, 10))
    assert progress.tokens == 8 * int(job.lengths.sum())


@pytest.mark.parametrize("family", FAMILIES)
def test_batch_times_accumulation_does_not_matter(tmp_path, family):
    whole = make_job(family, batch_size=8, gradient_accumulation_steps=1, label_smoothing=0.1)
    parts = make_job(family, batch_size=2, gradient_accumulation_steps=4, label_smoothing=0.1)
    _, reports, weights = run(tmp_path / "a", whole, family)
    _, other_reports, other_weights = run(tmp_path / "b", parts, family)
    assert [r.loss for r in reports.steps] == pytest.approx([r.loss for r in other_reports.steps], rel=1e-3)
    for name, weight in weights.items():
        torch.testing.assert_close(weight, other_weights[name], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("cut", [3, 10, 14])
def test_a_resumed_run_ends_in_the_same_weights(tmp_path, cut):
    job = make_job(checkpoint_every_steps=1)
    _, reports, weights = run(tmp_path / "whole", job, dropout=0.1)
    progress, resumed, resumed_weights = run(
        tmp_path / "resumed", job, dropout=0.1, resume_from=reports.checkpoints[cut]
    )
    assert [record.step for record in resumed.steps] == list(range(cut + 1, 21))
    assert [record.loss for record in resumed.steps] == [record.loss for record in reports.steps[cut:]]
    assert progress.selection == load_progress(reports.checkpoints[20]).selection
    assert all(torch.equal(weight, resumed_weights[name]) for name, weight in weights.items())


def test_the_checkpoint_holds_the_weights_that_trained(tmp_path):
    job = make_job(num_epochs=1)
    _, reports, weights = run(tmp_path, job)
    stored = load_weights(reports.checkpoints[10])
    assert stored.keys() == weights.keys()
    assert all(torch.equal(weight, stored[name]) for name, weight in weights.items())


@pytest.mark.parametrize("cut", [6, 10, 13])
def test_a_resumed_run_tells_what_the_whole_one_told(tmp_path, cut):
    job = make_job(checkpoint_every_steps=1, logging_steps=4)
    whole, reports, _ = run(tmp_path / "whole", job)
    again, resumed, _ = run(tmp_path / "again", job, resume_from=reports.checkpoints[cut])
    told = [(record.step, record.loss) for record in reports.steps if record.step > cut]
    assert [(record.step, record.loss) for record in resumed.steps] == told
    assert again.tokens == whole.tokens == 2 * int(job.lengths.sum())
    saved = load_progress(reports.checkpoints[cut])
    assert saved.train_s < again.train_s
    assert saved.trend[0] == len(reports.steps) - len(told), "jumps are told by the losses before the interruption too"
    assert again.trend == whole.trend


def test_a_checkpoint_that_is_due_at_the_end_of_an_epoch_without_validation_is_saved(tmp_path):
    job = make_job(num_epochs=4, eval_every_epochs=4, checkpoint_every_steps=5)
    _, reports, weights = run(tmp_path / "whole", job)
    assert sorted(reports.checkpoints) == list(range(5, 41, 5))
    assert [record.step for record in reports.evaluations] == [40]
    _, resumed, resumed_weights = run(tmp_path / "again", job, resume_from=reports.checkpoints[20])
    assert [record.loss for record in resumed.steps] == [record.loss for record in reports.steps[20:]]
    assert all(torch.equal(weight, resumed_weights[name]) for name, weight in weights.items())


def test_early_stopping_stops_and_keeps_the_best(tmp_path):
    scores = iter([0.5, 0.4, 0.3, 0.9])
    validator = lambda model: Validation({"rougeL": next(scores)})  # noqa: E731
    job = make_job(num_epochs=4, metric_for_best="rougeL", early_stopping_patience=2, validator=validator)
    progress, reports, _ = run(tmp_path, job)
    assert progress.epoch == 3
    assert (progress.selection.best, progress.selection.best_step) == (0.5, 10)
    assert sorted(reports.checkpoints) == [10, 20, 30]


def test_max_steps_ends_mid_epoch_with_an_evaluation_and_a_checkpoint(tmp_path):
    progress, reports, _ = run(tmp_path, make_job(max_steps=13))
    assert progress.step == 13
    assert sorted(reports.checkpoints) == [10, 13]
    assert reports.evaluations[-1].step == 13


def test_a_loss_that_is_not_finite_stops_the_run_with_advice(tmp_path):
    with pytest.raises(TrainingError, match=r"learning_rate"):
        run(tmp_path, make_job(learning_rate=1e12, max_grad_norm=0, num_epochs=50))


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(TrainingError, match=r"not a checkpoint"):
        run(tmp_path, make_job(), resume_from=tmp_path)


@pytest.mark.parametrize("bf16", [False, True])
def test_checkpointing_activations_changes_no_gradient(tmp_path, bf16):
    results = []
    for recompute in (False, True):
        job = make_job(num_epochs=1, bf16=bf16)
        backend = make_backend(job)
        if recompute:
            backend.module.model.activation_checkpointing_enable(
                activation_checkpointing_kwargs={"use_reentrant": False}
            )
        train(job, backend, KeptReports(tmp_path / str(recompute)))
        results.append(trained_weights(backend))
    assert all(torch.equal(weight, results[1][name]) for name, weight in results[0].items())
