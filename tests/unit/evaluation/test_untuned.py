"""The model before training, beside which `rayloom evaluate --baseline` sets the trained one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from rayloom.artifacts import open_artifact, publish
from rayloom.config import EvaluateJob, EvaluationConfig, RunConfig, dump_yaml, load_run_config
from rayloom.errors import ModelError
from rayloom.evaluation import jobs, run_job
from rayloom.evaluation.jobs import start_of
from rayloom.launch import prepare
from rayloom.models import load_model
from tests.unit.launch.test_continuing import config_of, trained

OPTIONS = EvaluationConfig(max_rows=3, latency_prompts=0, num_resamples=20)


def merged_artifact(artifact: Path, folder: Path, **model: object) -> str:
    """As `rayloom merge` leaves it: a full model with the config of the run that made the adapter."""
    config = load_run_config(open_artifact(artifact).config_path)
    values = config.model_dump(mode="json") | {"lora": {"r": 2}}
    values["model"] |= {"random_init": None, "name": f"{artifact}/model"} | model
    shutil.copytree(artifact, folder / "build")
    (folder / "build" / "config.yaml").write_text(dump_yaml(RunConfig.model_validate(values)))
    return publish(folder / "build", str(folder / "merged"), open_artifact(artifact).manifest)


def test_a_merged_adapter_is_compared_with_its_base(t5_artifact: Path, tmp_path: Path) -> None:
    artifact = merged_artifact(t5_artifact, tmp_path)
    job = EvaluateJob(artifact=artifact, splits=["train"], evaluation=OPTIONS, output=str(tmp_path / "report"))
    outcome = run_job(job, baseline=True, device="cpu")
    assert outcome.baseline is not None
    # Its base is the model itself here.
    assert outcome.baseline.splits[0].metrics == pytest.approx(outcome.result.splits[0].metrics)


def test_a_base_that_is_gone_is_told_before_anything_is_measured(
    t5_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = merged_artifact(t5_artifact, tmp_path, name=str(tmp_path / "gone"))
    monkeypatch.setattr(jobs.Evaluator, "run", lambda *_: pytest.fail("it was measured"))
    with pytest.raises(ModelError, match="gone"):
        run_job(EvaluateJob(artifact=artifact, splits=["train"], output=str(tmp_path)), baseline=True, device="cpu")


@pytest.mark.parametrize("lora", [False, True])
def test_a_run_that_went_on_from_another_is_compared_with_where_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, lora: bool
) -> None:
    monkeypatch.setenv("RAYLOOM_CACHE", str(tmp_path / "cache"))
    first = trained(config_of(tmp_path, name="first", family="gpt_neo", lora=lora))
    second = config_of(tmp_path, name="second", family="gpt_neo", random_init=None)
    second = second.model_copy(update={"model": second.model.model_copy(update={"name": first.path})})
    prepared = prepare(second)
    prepared.tokenizer.save_pretrained(tmp_path / "tokenizer")
    wanted = load_model(prepared.source).model.state_dict()
    found = load_model(start_of(second, tokenizer=str(tmp_path / "tokenizer"))).model.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
