"""Whole runs on a local Ray with two workers: config in, artifact out."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import peft
import psutil
import pytest
import torch
from mlflow.tracking import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from rayloom.artifacts import open_artifact
from rayloom.config import EvaluateJob, EvaluationConfig, load_run_config
from rayloom.evaluation import run_job
from rayloom.generation import TextGenerator
from rayloom.launch import TrainOutcome, run_training
from rayloom.launch.heap import heap_environment
from rayloom.launch.progress import Note
from rayloom.launch.tracking.folder import RunFolder
from rayloom.launch.tracking.status import read_history
from rayloom.training import EvalRecord, StepRecord
from tests.fakes_tracking import wandb_records

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

JOBS = Path(__file__).parents[2] / "jobs" / "finetune"
# Each family at another stage (the killed run below has stage 2); test_training_matrix.py has them all. A run takes
# half a minute, so that the others are slow tests.
RUNS = {"t5": ("tiny_t5_qa", 3), "gpt_neo": ("tiny_gpt_neo_lm", 1), "llama": ("tiny_llama_lora_qa", 0)}

TRACKED = "t5"


def train(job: str, folder: Path, *overrides: str, resume: bool = False, sink=None) -> tuple[TrainOutcome, list]:
    events: list = []

    def keep(event) -> None:
        events.append(event)
        if sink:
            sink(event)

    config = load_run_config(JOBS / f"{job}.yaml", [f"output.storage_path={folder}", *overrides])
    return run_training(config, sink=keep, announce=lambda *_: None, resume=resume), events


@pytest.fixture(
    scope="module", params=[pytest.param(each, marks=[pytest.mark.slow] if each != TRACKED else []) for each in RUNS]
)
def run(request, tmp_path_factory):
    job, stage = RUNS[request.param]
    folder = tmp_path_factory.mktemp(job)
    tracking = (
        "tracking.tensorboard=true",
        f"tracking.mlflow.uri={folder / 'mlruns'}",
        "tracking.wandb.mode=offline",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        chosen = tracking if request.param == TRACKED else ()
        return request.param, *train(job, folder, f"distributed.zero_stage={stage}", *chosen)


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


def test_its_page_and_status_tell_what_happened(run):
    _, outcome, events = run
    folder = Path(outcome.run.path)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") >= 4
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"
    last = [event for event in events if isinstance(event, EvalRecord)][-1]
    assert f"{last.metrics['loss']:.4f}" in page


def test_trackers_have_the_run(run):
    family, outcome, events = run
    if family != TRACKED:
        pytest.skip("one run is tracked")
    folder = Path(outcome.run.path)
    steps = {event.step: event.loss for event in events if isinstance(event, StepRecord)}
    board = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert {event.step: pytest.approx(event.value) for event in board.Scalars("train/loss")} == steps
    client = MlflowClient(tracking_uri=str(folder.parent / "mlruns"))
    (found,) = client.search_runs([client.get_experiment_by_name("rayloom").experiment_id])
    assert (found.info.status, found.data.tags["rayloom.artifact"]) == ("FINISHED", outcome.artifact)
    assert found.data.metrics["train/loss"] == pytest.approx(steps[max(steps)])
    (offline,) = folder.rglob("run-*.wandb")
    logged = [record.history for record in wandb_records(offline) if record.HasField("history")]
    assert len(logged) >= len(steps)


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
    saved: list[int] = []
    announced: list[int] = []
    allocators: list[bool] = []

    def kill_one(event) -> None:
        if isinstance(event, Note) and event.text.startswith("saved step"):
            saved.append(int(event.text.split()[2]))
        elif isinstance(event, StepRecord) and saved and saved[-1] >= 10 and not announced:
            announced.append(saved[-1])
            allocators.append(_preloaded(_worker_pids()[0]))
            os.kill(_worker_pids()[0], signal.SIGKILL)

    outcome, events = train("tiny_llama_lora_qa", tmp_path, *overrides, sink=kill_one)
    resumed = [int(event.text.split()[3]) for event in events if isinstance(event, Note) and "resumed" in event.text]
    assert len(announced) == len(resumed) == 1
    assert allocators == ["LD_PRELOAD" in heap_environment()]
    # What was said to be saved is not lost, be the kill as near as it may. (tests/faults has the weights, too.)
    assert 10 <= announced[0] <= resumed[0] < 32
    assert resumed[0] in (*range(5, 32, 5), 16)
    assert saved[-1] == 32
    assert outcome.steps == 32
    assert open_artifact(outcome.artifact).manifest.kind == "adapter"
    assert {record["step"] for record in read_history(RunFolder(outcome.run.path)) if record["kind"] == "step"} == set(
        range(1, 33)
    )


def _preloaded(pid: int) -> bool:
    """Whether a worker has the allocator of Ray's wheel."""
    return "/ray/core/libjemalloc" in Path(f"/proc/{pid}/maps").read_text()


def _worker_pids() -> list[int]:
    """Ray Train's workers of this process's own Ray, found by the title that Ray gives them."""
    family = psutil.Process().children(recursive=True)
    pids = [each.pid for each in family if (each.cmdline() or [""])[0].startswith("ray::RayTrainWorker")]
    assert pids
    return sorted(pids)
