"""Whole runs on a local Ray with two workers: config in, artifact out."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from rayloom.artifacts import open_artifact
from rayloom.config import EvaluateJob, EvaluationConfig, load_run_config
from rayloom.evaluation import run_job
from rayloom.generation import TextGenerator
from rayloom.launch import TrainOutcome, run_training
from rayloom.launch.progress import Note
from rayloom.training import EvalRecord, StepRecord

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

JOBS = Path(__file__).parents[2] / "jobs" / "finetune"
# Each family at another stage (the killed run below has stage 2); test_training_matrix.py has them all.
RUNS = {"t5": ("tiny_t5_qa", 1), "gpt_neo": ("tiny_gpt_neo_lm", 3), "llama": ("tiny_llama_lora_qa", 0)}


def train(job: str, folder: Path, *overrides: str, resume: bool = False, sink=None) -> tuple[TrainOutcome, list]:
    events: list = []

    def keep(event) -> None:
        events.append(event)
        if sink:
            sink(event)

    config = load_run_config(JOBS / f"{job}.yaml", [f"output.storage_path={folder}", *overrides])
    return run_training(config, sink=keep, announce=lambda *_: None, resume=resume), events


@pytest.fixture(scope="module", params=RUNS)
def run(request, tmp_path_factory):
    job, stage = RUNS[request.param]
    return request.param, *train(job, tmp_path_factory.mktemp(job), f"distributed.zero_stage={stage}")


def test_the_loss_falls_on_rows_that_were_held_out(run):
    _, _, events = run
    losses = [event.metrics["loss"] for event in events if isinstance(event, EvalRecord)]
    assert losses[-1] < losses[0] - 0.05
    steps = [event for event in events if isinstance(event, StepRecord)]
    assert steps[-1].loss < steps[0].loss
    assert all(step.tokens_per_s > 0 for step in steps)


def test_stock_libraries_load_it_and_give_the_same_logits(run):
    family, outcome, _ = run
    artifact = open_artifact(outcome.artifact)
    generator = TextGenerator(outcome.artifact)  # replays the golden prompts
    auto = AutoModelForSeq2SeqLM if family == "t5" else AutoModelForCausalLM
    if artifact.manifest.kind == "adapter":
        base = auto.from_pretrained(artifact.base_path)
        model = peft.PeftModel.from_pretrained(base, artifact.adapter_path)
        tokenizer = AutoTokenizer.from_pretrained(artifact.adapter_path)
    else:
        model, tokenizer = (kind.from_pretrained(artifact.model_path) for kind in (auto, AutoTokenizer))
    ids = torch.tensor([artifact.manifest.golden[0].prompt_ids])
    extra = {"decoder_input_ids": torch.tensor([[0, 5, 6]])} if family == "t5" else {}
    with torch.no_grad():
        theirs, ours = (each.eval()(input_ids=ids, **extra).logits for each in (model, generator.model))
    torch.testing.assert_close(theirs, ours, rtol=0, atol=0)
    assert tokenizer("one two")["input_ids"] == generator.encoder.tokenizer("one two")["input_ids"]


def test_it_is_measured_as_training_measured_it(run, tmp_path):
    _, outcome, events = run
    job = EvaluateJob(
        artifact=outcome.artifact,
        splits=["validation"],
        output=str(tmp_path),
        evaluation=EvaluationConfig(latency_prompts=2, throughput_batch_sizes=[2]),
    )
    result = run_job(job, baseline=True)
    last = [event for event in events if isinstance(event, EvalRecord)][-1]
    assert result.result.splits[0].metrics["loss"] == pytest.approx(last.metrics["loss"], rel=1e-4)
    assert result.baseline.splits[0].metrics["loss"] > last.metrics["loss"]
    assert result.result.random_init
    assert "random" in result.paths.html.read_text()
    assert result.result.resources.training["train_s"] > 0
    assert result.result.resources.training["peak_host_bytes"] > 1e6


def test_a_killed_worker_is_replaced_and_training_goes_on(tmp_path):
    overrides = (
        "output.run_name=killed",
        "training.checkpoint_every_steps=5",
        "training.logging_steps=1",
        "training.eval_rows=0",
        "distributed.zero_stage=2",
    )
    killed = threading.Event()

    def kill_one(event) -> None:
        # A checkpoint of step 10 has been reported by the time step 14 is logged.
        if isinstance(event, StepRecord) and event.step >= 14 and not killed.is_set():
            killed.set()
            os.kill(_worker_pids()[0], signal.SIGKILL)

    outcome, events = train("tiny_t5_qa", tmp_path, *overrides, sink=kill_one)
    resumed = [event.text for event in events if isinstance(event, Note)]
    assert killed.is_set()
    assert len(resumed) == 1
    assert int(resumed[0].split()[3]) in (5, 10, 15, 16, 20, 25)
    assert outcome.steps == 32
    assert {record["step"] for record in outcome.run.history() if record["kind"] == "step"} == set(range(1, 33))


def _worker_pids() -> list[int]:
    """Processes of Ray Train's workers, found by the title that Ray gives them."""
    pids = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if title.startswith("ray::RayTrainWorker"):
            pids.append(int(folder.name))
    assert pids
    return sorted(pids)
