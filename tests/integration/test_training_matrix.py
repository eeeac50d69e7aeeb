"""Every family at every ZeRO stage, two workers: the stage changes where things lie, never what is learnt."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayloom.config import load_run_config
from rayloom.generation import TextGenerator
from rayloom.launch import run_training
from rayloom.training import EvalRecord

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("local_ray")]

JOBS = Path(__file__).parents[2] / "jobs" / "finetune"


@pytest.mark.parametrize("job", ["tiny_t5_qa", "tiny_gpt_neo_lm", "tiny_llama_lora_qa"])
def test_all_stages_learn_the_same(job: str, tmp_path: Path) -> None:
    losses = {}
    for stage in (0, 1, 2, 3):
        events: list[object] = []
        overrides = [
            f"output.storage_path={tmp_path}",
            f"output.run_name=zero{stage}",
            f"distributed.zero_stage={stage}",
        ]
        config = load_run_config(JOBS / f"{job}.yaml", overrides)
        outcome = run_training(config, sink=events.append, announce=lambda *_: None)
        losses[stage] = [event.metrics["loss"] for event in events if isinstance(event, EvalRecord)]
        assert TextGenerator(outcome.artifact).generate("What is a kestrel?", max_new_tokens=2) is not None
    assert losses[0][-1] < losses[0][0] - 0.05
    for stage in (1, 2, 3):
        assert losses[stage] == pytest.approx(losses[0], rel=1e-4)
