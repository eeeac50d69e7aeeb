from __future__ import annotations

import json
from pathlib import Path

import pytest

from rayloom.artifacts import open_artifact, publish
from rayloom.config import AgainstProduction, DatasetConfig, EvaluateJob, EvaluationConfig, GateConfig, Threshold
from rayloom.errors import RegistryError, RequestError
from rayloom.evaluation import EvaluationResult, run_job, write_report
from rayloom.evaluation.gating import attach_report, judge
from rayloom.evaluation.results import ReportDocument
from rayloom.registry import Registry, Verdict, manifest_digest

OPTIONS = EvaluationConfig(batch_size=8, latency_prompts=2, throughput_batch_sizes=[1], num_resamples=20)


@pytest.fixture(scope="session")
def measured(t5_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> EvaluationResult:
    """A real evaluation of the artifact, on 24 rows of one split."""
    folder = tmp_path_factory.mktemp("measured")
    rows = [{"question": f"Where does river {n} flow?", "answer": f"Into sea {n % 3}."} for n in range(40)]
    (folder / "rows.json").write_text(json.dumps(rows))
    dataset = DatasetConfig(train_file=str(folder / "rows.json"), cache_dir=str(folder))
    options = OPTIONS.model_copy(update={"max_rows": 24})
    job = EvaluateJob(
        artifact=str(t5_artifact), dataset=dataset, splits=["train"], evaluation=options, output=str(folder)
    )
    return run_job(job, device="cpu").result


@pytest.fixture
def registry(tmp_path: Path, t5_artifact: Path) -> Registry:
    """qa@1 and qa@2: one and the same model, published twice."""
    registry = Registry(tmp_path / "registry")
    registry.register("qa", t5_artifact)
    registry.register("qa", republished(t5_artifact, tmp_path / "second", data_hash="e" * 64))
    return registry


def republished(artifact: Path, folder: Path, **changes: object) -> str:
    manifest = open_artifact(artifact).manifest.model_copy(update=changes)
    return publish(artifact, str(folder), manifest)


def report(registry: Registry, version: str, result: EvaluationResult, folder: Path, *, shift: float = 0.0) -> None:
    """Attach a report whose rows' ROUGE-L are shifted."""
    (split,) = result.splits
    predictions = [
        each.model_copy(update={"scores": each.scores | {"rougeL": 0.5 + shift + 0.01 * (each.row % 5)}})
        for each in split.predictions
    ]
    artifact = {"digest": registry.get(version).digest}
    changed = split.model_copy(update={"predictions": predictions, "metrics": split.metrics | {"rougeL": 0.5 + shift}})
    result = result.model_copy(update={"splits": [changed], "artifact": artifact})
    folder.mkdir(exist_ok=True)
    path = folder / f"{version}.json"
    path.write_text(ReportDocument(result=result).model_dump_json())
    attach_report(registry, version, path)


def failed(verdict: Verdict) -> dict[str, str]:
    return {check.name: check.detail for check in verdict.checks if not check.passed}


def gate(**keys: object) -> GateConfig:
    return GateConfig.model_validate({"split": "train", "golden_replay": False, **keys})


def test_golden_prompts_are_replayed_and_a_change_is_noticed(
    registry: Registry, t5_artifact: Path, tmp_path: Path
) -> None:
    verdict = judge(registry, "qa@1", device="cpu")
    assert verdict.passed
    assert verdict.checks[0].detail == "2 prompts gave the recorded tokens"
    assert registry.promote(verdict.id).stage == "production"
    golden = open_artifact(t5_artifact).manifest.golden
    wrong = [golden[0].model_copy(update={"output_ids": [7, *golden[0].output_ids[1:]]})]
    registry.register("qa", republished(t5_artifact, tmp_path / "wrong", golden=wrong))
    registry.register("qa", republished(t5_artifact, tmp_path / "none", golden=[]))
    assert "does not replay golden prompt 1" in failed(judge(registry, "qa@3", device="cpu"))["golden replay"]
    assert "has no golden prompts" in failed(judge(registry, "qa@4", device="cpu"))["golden replay"]
    with pytest.raises(RegistryError, match="does not pass the gate: golden replay"):
        registry.promote(judge(registry, "qa@3", device="cpu").id)


def test_thresholds_and_latency_are_those_of_the_report(
    registry: Registry, measured: EvaluationResult, tmp_path: Path
) -> None:
    registry.set_gate("qa", gate(metrics={"rougeL": Threshold(min=0.4), "bleu": Threshold(min=-1, max=200)}))
    assert failed(judge(registry, "qa@1")) == {"report": "not measured yet: rayloom evaluate qa@1 --attach"}
    report(registry, "qa@1", measured, tmp_path)
    assert judge(registry, "qa@1").passed
    registry.set_gate("qa", gate(metrics={"rougeL": {"min": 0.6}, "rogueL": {"min": 0}}, max_latency_p95_s=1e-9))
    details = failed(judge(registry, "qa@1"))
    assert details["rougeL"] == "0.5 on train, at least 0.6 wanted"
    assert "train has only" in details["rogueL"]
    assert "at most 1e-09 s wanted" in details["latency_p95_s"]
    registry.set_gate("qa", gate(split="test", metrics={"rougeL": {"min": 0.1}}))
    assert failed(judge(registry, "qa@1")) == {"report": "the report has no test split"}


def test_a_metric_that_is_no_number_does_not_pass(
    registry: Registry, measured: EvaluationResult, tmp_path: Path
) -> None:
    registry.set_gate("qa", gate(metrics={"rougeL": {"min": 0.0}}))
    report(registry, "qa@1", measured, tmp_path, shift=float("nan"))
    assert "rougeL" in failed(judge(registry, "qa@1"))


def test_a_significant_loss_against_production_does_not_pass(
    registry: Registry, measured: EvaluationResult, tmp_path: Path
) -> None:
    registry.set_gate("qa", gate(against_production=AgainstProduction()))
    report(registry, "qa@1", measured, tmp_path)
    registry.promote(judge(registry, "qa@1").id)
    report(registry, "qa@2", measured, tmp_path / "worse", shift=-0.1)
    detail = failed(judge(registry, "qa@2"))["rougeL against production"]
    assert detail.startswith("-0.1 against qa@1 on 24 rows")
    report(registry, "qa@2", measured, tmp_path / "equal", shift=0.0)
    assert judge(registry, "qa@2").passed
    report(registry, "qa@2", measured, tmp_path / "better", shift=0.1)
    assert judge(registry, "qa@2").passed


def test_a_comparison_that_cannot_be_made_does_not_pass(
    registry: Registry, measured: EvaluationResult, tmp_path: Path
) -> None:
    against = {"metric": "rougeL", "max_loss": 0.05}
    registry.set_gate("qa", gate(against_production=against))
    report(registry, "qa@1", measured, tmp_path)
    registry.promote(judge(registry, "qa@1").id)
    report(registry, "qa@2", measured, tmp_path / "a", shift=-0.06)
    assert failed(judge(registry, "qa@2"))
    name = "rougeL against production"
    registry.set_gate("qa", gate(against_production={"min_rows": 25}))
    assert failed(judge(registry, "qa@2"))[name].startswith("24 rows are too few")
    registry.set_gate("qa", gate(against_production={"metric": "style"}))
    assert "have no score 'style'" in failed(judge(registry, "qa@2"))["style against production"]
    registry.set_gate("qa", gate(against_production={}))
    (split,) = measured.splits
    fewer = split.model_copy(update={"num_rows": 23, "predictions": split.predictions[:-1]})
    report(registry, "qa@2", measured.model_copy(update={"splits": [fewer]}), tmp_path / "b")
    assert "other rows" in failed(judge(registry, "qa@2"))[name]


def test_the_same_metrics_of_perplexity_are_compared(
    registry: Registry, measured: EvaluationResult, tmp_path: Path
) -> None:
    registry.set_gate("qa", gate(against_production={"metric": "nll"}))
    report(registry, "qa@1", measured, tmp_path)
    registry.promote(judge(registry, "qa@1").id)
    (split,) = measured.splits
    worse = split.model_copy(update={"row_losses": [(nll * 1.5, count) for nll, count in split.row_losses]})
    report(registry, "qa@2", measured.model_copy(update={"splits": [worse]}), tmp_path / "worse")
    assert "nll against production" in failed(judge(registry, "qa@2"))


def test_a_changed_copy_of_a_report_is_noticed(registry: Registry, measured: EvaluationResult, tmp_path: Path) -> None:
    registry.set_gate("qa", gate(metrics={"rougeL": {"min": 0.9}}))
    report(registry, "qa@1", measured, tmp_path)
    kept = Path(registry.get("qa@1").report.path)
    kept.write_text(kept.read_text().replace('"rougeL":0.5', '"rougeL":0.95'))
    with pytest.raises(RegistryError, match="is gone or was changed: rayloom evaluate qa@1 --attach"):
        judge(registry, "qa@1")


def test_a_report_of_another_artifact_is_refused(
    registry: Registry, measured: EvaluationResult, tmp_path: Path, t5_artifact: Path
) -> None:
    assert measured.artifact["digest"] == manifest_digest(str(t5_artifact))
    paths = write_report(measured, tmp_path / "report")
    attach_report(registry, "qa@1", paths.json.parent)
    with pytest.raises(RegistryError, match="not qa@2: evaluate it with rayloom evaluate qa@2"):
        attach_report(registry, "qa@2", paths.json)
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(RequestError, match="is no report"):
        attach_report(registry, "qa@1", tmp_path / "x.json")


def against(registry: Registry, metric: str, mine: EvaluationResult, theirs: EvaluationResult, folder: Path) -> str:
    """Why the gate does not let qa@2 pass that was measured so beside qa@1 in production; empty where it does."""
    registry.set_gate("qa", gate())
    registry.promote(judge(registry, "qa@1").id)
    registry.set_gate("qa", gate(against_production={"metric": metric}))
    for version, result in {"qa@1": theirs, "qa@2": mine}.items():
        artifact = {"digest": registry.get(version).digest}
        path = folder / f"{version}.json"
        path.write_text(ReportDocument(result=result.model_copy(update={"artifact": artifact})).model_dump_json())
        attach_report(registry, version, path)
    return failed(judge(registry, "qa@2")).get(f"{metric} against production", "")


def with_split(result: EvaluationResult, **changes: object) -> EvaluationResult:
    (split,) = result.splits
    return result.model_copy(update={"splits": [split.model_copy(update=changes)]})


@pytest.mark.parametrize("metric", ["nll", "loss", "perplexity"])
@pytest.mark.parametrize("loss", [float("nan"), float("inf"), 1e6])
def test_a_model_that_has_broken_down_does_not_pass_for_no_loss(
    registry: Registry, measured: EvaluationResult, tmp_path: Path, metric: str, loss: float
) -> None:
    (split,) = measured.splits
    broken = [(loss, 1), *((1e6 if loss == 1e6 else nll, 1) for nll, _ in split.row_losses[1:])]
    assert "against qa@1 on 24 rows" in against(
        registry, metric, with_split(measured, row_losses=broken), measured, tmp_path
    )


def test_what_is_better_than_an_infinite_perplexity_passes(
    registry: Registry, measured: EvaluationResult, tmp_path: Path
) -> None:
    (split,) = measured.splits
    endless = with_split(measured, row_losses=[(800.0, 1) for _ in split.row_losses])
    assert against(registry, "perplexity", measured, endless, tmp_path) == ""


def test_rows_without_the_score_do_not_make_a_comparison_believed(
    registry: Registry, measured: EvaluationResult, tmp_path: Path
) -> None:
    (split,) = measured.splits
    scores = [each.scores | ({"coherence": 0.5} if each.row < 3 else {}) for each in split.predictions]
    predictions = [
        each.model_copy(update={"scores": found}) for each, found in zip(split.predictions, scores, strict=True)
    ]
    result = with_split(measured, predictions=predictions)
    assert against(registry, "coherence", result, result, tmp_path).startswith("3 rows are too few")


@pytest.mark.parametrize(("metric", "key", "passes"), [("rougeL", "use_stemmer", False), ("nll", "use_stemmer", True)])
def test_figures_that_were_taken_in_different_ways_are_not_compared(
    registry: Registry, measured: EvaluationResult, tmp_path: Path, metric: str, key: str, *, passes: bool
) -> None:
    other = measured.model_copy(update={"evaluation": measured.evaluation | {key: not measured.evaluation[key]}})
    told = against(registry, metric, measured, other, tmp_path)
    assert told == (
        "" if passes else f"qa@1 was measured with another evaluation.{key} than this one: evaluate both with the same"
    )
