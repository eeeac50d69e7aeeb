from __future__ import annotations

import json
import shutil

import pytest
import torch

from rayloom.training import Job, PlainBackend, TokenLoss, load_progress, train
from tests.fakes import KeptReports, random_examples, run_config, tiny_model

CPU = torch.device("cpu")


def run(folder, *, num_workers, dropout=0.0, resume_from=None):
    """In one process, whatever the nominal number of workers."""
    config = run_config(
        training={"batch_size": 4, "num_epochs": 2, "logging_steps": 1, "checkpoint_every_steps": 1},
        distributed={"num_workers": num_workers},
    )
    job = Job(
        config=config,
        train=random_examples(40, seq2seq=False, seed=1),
        validation=random_examples(8, seq2seq=False, seed=2),
        pad_token_id=0,
    )
    module = TokenLoss(tiny_model("llama", dropout=dropout), seq2seq=False)
    reports = KeptReports(folder)
    progress = train(job, PlainBackend(module, config, CPU), reports, resume_from=resume_from)
    return progress, reports


def made_by(checkpoint, world_size, place):
    """The checkpoint, as if so many workers had made it."""
    shutil.copytree(checkpoint, place)
    state = json.loads((place / "state.json").read_text())
    (place / "state.json").write_text(json.dumps(state | {"world_size": world_size}))
    return place


def test_the_first_runs_rows_per_step_stay_whatever_the_config_asks_for_later(tmp_path):
    progress, whole = run(tmp_path / "whole", num_workers=2)
    assert (progress.step, progress.global_batch_size) == (10, 8)
    _, resumed = run(tmp_path / "resumed", num_workers=5, resume_from=whole.checkpoints[3])
    assert [record.loss for record in resumed.steps] == [record.loss for record in whole.steps[3:]]
    assert load_progress(resumed.checkpoints[10]).global_batch_size == 8


def test_a_checkpoint_of_an_earlier_version_goes_on(tmp_path):
    _, whole = run(tmp_path / "whole", num_workers=1)
    place = made_by(whole.checkpoints[3], 1, tmp_path / "old")
    state = json.loads((place / "state.json").read_text())
    (place / "state.json").write_text(json.dumps({k: v for k, v in state.items() if k not in ("window", "trend")}))
    _, resumed = run(tmp_path / "resumed", num_workers=1, resume_from=place)
    assert [record.loss for record in resumed.steps] == [record.loss for record in whole.steps[3:]]


@pytest.mark.parametrize("step", [3, 7])
def test_random_streams_of_another_number_of_workers_are_new_and_follow_from_the_seed(tmp_path, step):
    _, whole = run(tmp_path / "whole", num_workers=1, dropout=0.3)
    other = made_by(whole.checkpoints[step], 3, tmp_path / "other")
    losses = []
    for name, place in (("same", whole.checkpoints[step]), ("once", other), ("twice", other)):
        _, reports = run(tmp_path / name, num_workers=1, dropout=0.3, resume_from=place)
        losses.append([record.loss for record in reports.steps])
    same, once, twice = losses
    assert same == [record.loss for record in whole.steps[step:]]
    assert once == twice
    assert once[0] != same[0]
