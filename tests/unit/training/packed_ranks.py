"""Losses per step of packed and padded runs in two processes; a script for `test_packed_ranks`.

Prints one JSON object per case, from rank 0.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from rayloom.models import attach_lora
from rayloom.models.families import family_of
from rayloom.training import DeepSpeedBackend, Job, PlainBackend, TokenLoss, train
from tests.fakes import KeptReports, random_examples, run_config, tiny_model


class Losses(KeptReports):
    """Keeps no checkpoints."""

    def checkpoint(self, part, progress, metrics):
        """Not needed here."""


def losses(family: str, stage: int | None, *, packing: bool, bf16: bool) -> list[float]:
    """The losses of one epoch; of LLaMA with LoRA."""
    settings = {"batch_size": 4, "num_epochs": 1, "logging_steps": 1, "learning_rate": 1e-2, "bf16": bf16}
    packed = {"packing": True, "packing_length": 48} if packing else {}
    workers = {"num_workers": 2} | ({} if stage is None else {"zero_stage": stage})
    lora = {"lora": {}} if family == "llama" else {}
    config = run_config(training=settings | packed, distributed=workers, **lora)
    rows = [random_examples(count, seq2seq=family == "t5", seed=count) for count in (40, 6)]
    model = tiny_model(family)
    if config.lora is not None:
        model = attach_lora(model, config.lora, family_of(model.config))
    module = TokenLoss(model, seq2seq=family == "t5")
    backend = (PlainBackend if stage is None else DeepSpeedBackend)(module, config, torch.device("cpu"))
    reports = Losses(Path())
    train(Job(config=config, train=rows[0], validation=rows[1], pad_token_id=0), backend, reports)
    return [record.loss for record in reports.steps]


def main() -> None:
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for family, stage, bf16 in json.loads(sys.argv[1]):
        padded, packed = (losses(family, stage, packing=packing, bf16=bf16) for packing in (False, True))
        if dist.get_rank() == 0:
            print(json.dumps({"case": [family, stage, bf16], "padded": padded, "packed": packed}), flush=True)  # noqa: T201
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
