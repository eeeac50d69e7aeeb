"""A whole evaluation job: open the artifact, read its rows, measure, write the report."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rayloom.artifacts import Artifact
from rayloom.config import EvaluateJob, RunConfig, load_run_config
from rayloom.data import Row, Splits, columns_for, load_splits
from rayloom.errors import ArtifactError, ConfigError
from rayloom.evaluation.evaluate import Evaluator, Progress
from rayloom.evaluation.report import ReportPaths, write_report
from rayloom.evaluation.results import EvaluationResult
from rayloom.generation import Opened, TextGenerator
from rayloom.models import LoadedModel, load_model, resolve_source


@dataclass(frozen=True)
class JobOutcome:
    """What a job gives.

    Attributes:
        result: What was measured.
        baseline: The untuned model on the same rows, if asked for.
        paths: The report's files.
        warnings: What the owner of the data should know.
    """

    result: EvaluationResult
    baseline: EvaluationResult | None
    paths: ReportPaths
    warnings: tuple[str, ...]


def run_job(
    job: EvaluateJob, *, baseline: bool = False, device: str | None = None, progress: Progress | None = None
) -> JobOutcome:
    """Measure an artifact on its own rows, or on those that the job names.

    Args:
        job: What to measure, on what.
        baseline: Measure the untuned model as well; the report shows both.
        device: ``cpu``, ``cuda``, …; the first GPU if there is one where not given.
        progress: Told how far each part is.

    Raises:
        ArtifactError: Not an artifact, or one without its config.
        DataError: The rows cannot be read, or there are none.
        RequestError: Generation parameters that cannot be honoured.
    """
    generator = TextGenerator(job.artifact, device=device)
    generator.parameters(job.generation)
    config = _config_of(generator.artifact, job)
    dataset = job.dataset or config.dataset
    columns = columns_for(dataset, config.model.task_type)
    splits = load_splits(dataset, columns)
    rows: dict[str, list[Row]] = {name: splits.rows(name) for name in job.splits}
    evaluator = Evaluator(generator, columns, job.evaluation, job.generation, dataset.cache_dir, progress)
    result = evaluator.run(rows)
    before = _measure_untuned(evaluator, config, rows) if baseline else None
    paths = write_report(result, job.output, baseline=before, history=read_history(generator.artifact))
    return JobOutcome(result, before, paths, _warnings(splits, result))


def read_history(artifact: Artifact | None) -> list[dict[str, Any]]:
    """Records of the run that made an artifact, if it still lies in that run's folder."""
    path = artifact.path.parent / "history.jsonl" if artifact is not None else Path("history.jsonl")
    if artifact is None or not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # the last line of a killed run may be torn
            record = json.loads(line)
            if isinstance(record, dict):
                records.append(record)
    # Steps that were repeated after an interruption replace the earlier ones.
    latest = {(record.get("kind"), record.get("step")): record for record in records}
    return sorted(latest.values(), key=lambda record: (record.get("step") or 0, str(record.get("kind"))))


def _config_of(artifact: Artifact | None, job: EvaluateJob) -> RunConfig:
    if artifact is None:
        raise ArtifactError(
            f"{job.artifact}: a plain model has no task and rows of its own; name a training run's artifact"
        )
    if not artifact.config_path.is_file():
        raise ArtifactError(f"{artifact.path}: config.yaml is missing, so its task and rows are not known")
    try:
        return load_run_config(artifact.config_path)
    except ConfigError as error:
        raise ArtifactError(f"the artifact's own config cannot be read: {error}") from None


def _measure_untuned(evaluator: Evaluator, config: RunConfig, rows: dict[str, list[Row]]) -> EvaluationResult:
    progress = evaluator.progress
    quieter = evaluator.config.model_copy(update={"latency_prompts": 0})
    told = (lambda what, done, total: progress(f"untuned, {what}", done, total)) if progress else None
    with _untuned(evaluator.generator, config) as generator:
        return dataclasses.replace(evaluator, generator=generator, config=quieter, progress=told).run(rows)


@contextlib.contextmanager
def _untuned(generator: TextGenerator, config: RunConfig) -> Iterator[TextGenerator]:
    """The model as it was before training."""
    model: Any = generator.model
    opened = Opened(
        name=f"{config.model.name} (untuned)",
        loaded=LoadedModel(model, generator.encoder.tokenizer, generator.family),
        encoder=generator.encoder,
        generation=generator.defaults,
    )
    if config.lora is not None:
        with model.disable_adapter():
            yield TextGenerator.from_opened(opened, device=generator.device)
        return
    if config.model.random_init is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.training.seed)
            fresh = type(model)(model.config).eval()
        loaded = dataclasses.replace(opened.loaded, model=fresh)
    else:
        loaded = dataclasses.replace(opened.loaded, model=load_model(resolve_source(config.model)).model)
    yield TextGenerator.from_opened(dataclasses.replace(opened, loaded=loaded), device=generator.device)


def _warnings(splits: Splits, result: EvaluationResult) -> tuple[str, ...]:
    return (
        *splits.warnings,
        *(f"{split.name}: {text}" for split in result.splits for text in split.warnings),
    )
