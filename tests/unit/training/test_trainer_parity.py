"""The same run in transformers.Trainer has the same loss at every step."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import PrinterCallback, Trainer, TrainingArguments

from rayloom.config import LoraConfig
from rayloom.data import EncodedDataset
from rayloom.models import FAMILIES as KINDS
from rayloom.models import attach_lora
from rayloom.training import Job, PlainBackend, TokenLoss, train
from tests.fakes import FAMILIES, KeptReports, random_examples, run_config, tiny_model

ROWS, STEPS, TOLERANCE = 8, 100, 1e-4
# The Trainer divides by the targets of the whole accumulated batch only for models that can do it themselves; others
# are trained on the mean of the micro-batches' means.
ACCUMULATION = {"t5": 1, "gpt_neo": 1, "llama": 2}
LEARNING_RATE = {"t5": 3e-3, "gpt_neo": 1e-3, "llama": 3e-3}
# It takes T5's relative positions for a bias, which does not decay; here every matrix does.
WEIGHT_DECAY = {"t5": 0.0, "gpt_neo": 0.1, "llama": 0.1}


def make_job(family: str) -> Job:
    accumulation = ACCUMULATION[family]
    config = run_config(
        training={
            "batch_size": ROWS // accumulation,
            "gradient_accumulation_steps": accumulation,
            "num_epochs": 2,
            "learning_rate": LEARNING_RATE[family],
            "weight_decay": WEIGHT_DECAY[family],
            "logging_steps": 1,
        }
    )
    seq2seq = family == "t5"
    nothing = EncodedDataset.from_examples([], seq2seq=seq2seq)
    return Job(config, random_examples(ROWS * STEPS // 2, seq2seq=seq2seq), nothing, pad_token_id=0)


def make_model(family: str):
    model = tiny_model(family)
    return attach_lora(model, LoraConfig(r=4, lora_alpha=16), KINDS["llama"]) if family == "llama" else model


def padded(features: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    def filled(rows: list[list[int]], value: int) -> torch.Tensor:
        width = max(map(len, rows))
        return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])

    inputs = [each["input_ids"] for each in features]
    return {
        "input_ids": filled(inputs, 0),
        "attention_mask": filled([[1] * len(row) for row in inputs], 0),
        "labels": filled([each["labels"] for each in features], -100),
    }


def trainer_losses(job: Job, model, folder) -> list[float]:
    micros = [micro for epoch in (0, 1) for batch in job.plan(epoch) for micro in batch.micro[0]]
    examples = [job.train[row] for micro in micros for row in micro.rows]
    training = job.config.training
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder),
            use_cpu=True,
            per_device_train_batch_size=training.batch_size,
            gradient_accumulation_steps=training.gradient_accumulation_steps,
            max_steps=STEPS,
            learning_rate=training.learning_rate,
            lr_scheduler_type="linear",
            weight_decay=training.weight_decay,
            adam_beta1=training.adam_beta1,
            adam_beta2=training.adam_beta2,
            adam_epsilon=training.adam_epsilon,
            max_grad_norm=training.max_grad_norm,
            train_sampling_strategy="sequential",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
        ),
        train_dataset=[{"input_ids": list(one.input_ids), "labels": list(one.labels)} for one in examples],
        data_collator=padded,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_curve_is_the_trainers(tmp_path, family):
    job, model = make_job(family), make_model(family)
    theirs = trainer_losses(job, copy.deepcopy(model), tmp_path / "trainer")
    reports = KeptReports(tmp_path / "ours")
    train(job, PlainBackend(TokenLoss(model, seq2seq=family == "t5"), job.config, torch.device("cpu")), reports)
    ours = [record.loss for record in reports.steps]
    assert len(ours) == len(theirs) == STEPS
    assert max(abs(one - other) for one, other in zip(ours, theirs, strict=True)) < TOLERANCE
    # A model that does not learn would agree with anything.
    assert sum(ours[-10:]) < 0.98 * sum(ours[:10])
