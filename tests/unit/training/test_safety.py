from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from rayloom.data import IGNORED, EncodedDataset, Example, SourceRow
from rayloom.data.dataset import Origins
from rayloom.errors import DivergedError
from rayloom.training import Job, PlainBackend, TokenLoss, load_weights, train
from rayloom.training.safety import MOST_SKIPS, SpikeWatch
from tests.fakes import KeptReports, run_config, tiny_model

POISON = 63


class PoisonedLoss(TokenLoss):
    """Adds something to the loss of micro-batches that hold the poisonous token."""

    added = math.nan

    def forward(self, input_ids, **inputs):
        loss = super().forward(input_ids, **inputs)
        return loss + self.added if (input_ids == POISON).any() else loss


def rows(count, *, poisoned):
    rng = np.random.default_rng(0)
    examples = []
    for row in range(count):
        ids = rng.integers(2, 60, 6).tolist() + ([POISON] if row in poisoned else [2])
        examples.append(Example(ids, [IGNORED, *ids[1:]]))
    encoded = EncodedDataset.from_examples(examples, seq2seq=False, row_of=range(count))
    return dataclasses.replace(
        encoded, origins=Origins.of([SourceRow({}, "corpus.jsonl", 100 + n) for n in range(count)], "")
    )


def run(tmp_path, *, poisoned=(7,), added=math.nan, prepare=lambda module: None, **training):
    values = {"batch_size": 2, "gradient_accumulation_steps": 2, "num_epochs": 1, "logging_steps": 1}
    config = run_config(training=values | training)
    module = PoisonedLoss(tiny_model("llama"), seq2seq=False)
    module.added = added
    prepare(module)
    data = rows(20, poisoned=poisoned)
    job = Job(config=config, train=data, validation=rows(4, poisoned=()), pad_token_id=0)
    reports = KeptReports(tmp_path)
    step = next(n for n, batch in enumerate(job.plan(0), 1) if any(7 in m.rows for m in batch.micro[0]))
    micro = next(m for batch in job.plan(0) for m in batch.micro[0] if 7 in m.rows)
    failure = None
    try:
        train(job, PlainBackend(module, config, torch.device("cpu")), reports)
    except DivergedError as error:
        failure = str(error)
    return reports, failure, step, micro


@pytest.mark.parametrize("added", [math.nan, math.inf])
@pytest.mark.parametrize("logging_steps", [1, 100])
def test_stopping_names_the_step_and_the_rows_however_late_it_looks(tmp_path, added, logging_steps):
    _, failure, step, micro = run(tmp_path, added=added, logging_steps=logging_steps)
    named = ", ".join(map(str, sorted(micro.rows)))
    assert failure is not None
    assert failure.startswith(f"step {step}: the loss of train rows {named} ")
    assert "corpus.jsonl row 107" in failure
    assert "learning_rate" in failure


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    reports, failure, step, _ = run(tmp_path, logging_steps=100, checkpoint_every_steps=1)
    assert failure is not None
    assert sorted(reports.checkpoints) == list(range(1, step))


# inf: the loss is a constant off, so its gradients are finite: the update must be left out all the same.
@pytest.mark.parametrize("added", [math.nan, math.inf])
def test_skipping_leaves_out_one_update_and_says_so(tmp_path, added):
    reports, failure, step, micro = run(tmp_path, added=added, non_finite="skip", checkpoint_every_steps=1)
    assert failure is None
    assert len(reports.notes) == 1
    assert reports.notes[0].startswith(f"step {step} skipped: the loss of train rows {min(micro.rows)}")
    by_step = {record.step: record for record in reports.steps}
    assert [by_step[s].skipped_steps for s in sorted(by_step)] == [int(s >= step) for s in range(1, 6) if s in by_step]
    # A step without a loss is no point of the curve: 0 would be one.
    assert step not in by_step
    assert all(math.isfinite(record.loss) and record.loss > 0 for record in reports.steps)
    before = reports.checkpoints.get(step - 1)
    after = load_weights(reports.checkpoints[step])
    start = load_weights(before) if before else dict(tiny_model("llama").named_parameters())
    assert all(torch.equal(weight, start[name]) for name, weight in after.items())
    if step < 5:
        last = load_weights(reports.checkpoints[5])
        assert any(not torch.equal(weight, last[name]) for name, weight in after.items())


def test_a_gradient_that_is_not_finite_names_all_rows_of_the_step(tmp_path):
    def break_gradient(module):
        next(module.model.parameters()).register_hook(lambda gradient: gradient * math.inf)

    _, failure, _, _ = run(tmp_path, poisoned=(), prepare=break_gradient)
    assert failure is not None
    assert failure.startswith("step 1: the gradient of train rows ")


def test_a_run_that_only_skips_is_given_up(tmp_path):
    reports, failure, _, _ = run(tmp_path, poisoned=range(20), non_finite="skip", num_epochs=10)
    assert failure is not None
    assert failure.startswith(f"{MOST_SKIPS + 1} steps in a row were skipped")
    assert len(reports.notes) == MOST_SKIPS


def test_a_jump_of_the_loss_is_noticed_and_its_noise_is_not():
    rng = np.random.default_rng(0)
    spikes = SpikeWatch()
    falling = [4.0 * 0.99**step + rng.normal(0, 0.1) for step in range(200)]
    assert [spikes.add(loss, step=step) for step, loss in enumerate(falling)] == [None] * 200
    note = spikes.add(6.0, step=200)
    assert note is not None
    assert "6 by step 200" in note
    # The spike itself does not widen what counts as usual.
    assert spikes.add(6.0, step=201) is not None
    assert spikes.add(0.5, step=202) is None


def test_a_loss_that_jumps_after_a_resumption_is_noticed():
    before = SpikeWatch()
    for step in range(20):
        assert before.add(3.0 + 0.1 * (step % 2), step=step) is None
    assert SpikeWatch().add(9.0, step=21) is None
    note = SpikeWatch(before.state).add(9.0, step=21)
    assert note == before.add(9.0, step=21)
    assert note is not None
    assert "jumped to 9 by step 21" in note
