"""A whole evaluation job: open the artifact, read its rows, measure, write the report."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
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
from rayloom.evaluation.results import EvaluationResult, Significance
from rayloom.evaluation.summary import significance
from rayloom.generation import Opened, TextGenerator
from rayloom.models import LoadedModel, ModelSource, load_model, resolve_source
from rayloom.registry import locate
from rayloom.training.continuing import chain_source

_MOST_STREAMED_BYTES = 64 << 20
"""More of a corpus that is not held in memory is evaluated only on request."""


@dataclass(frozen=True)
class JobOutcome:
    """What a job gives.

    Attributes:
        result: What was measured.
        baseline: The untuned model on the same rows, if asked for.
        paths: The report's files.
        warnings: What the owner of the data should know.
        significance: By split and metric, whether the model differs from the untuned one.
    """

    result: EvaluationResult
    baseline: EvaluationResult | None
    paths: ReportPaths
    warnings: tuple[str, ...]
    significance: dict[str, dict[str, Significance]] = dataclasses.field(default_factory=dict)


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
    generator = TextGenerator(locate(job.artifact), device=device)
    generator.parameters(job.generation)
    config = artifact_config(generator.artifact, job.artifact)
    dataset = job.dataset or config.dataset
    columns = columns_for(dataset, config.model.task_type)
    splits = load_splits(dataset, columns)
    rows: dict[str, Sequence[Row]] = {name: splits.rows(name) for name in job.splits}
    _check_amount(splits, rows, job)
    source = _untuned_source(generator.artifact, config) if baseline else None
    evaluator = Evaluator(generator, columns, job.evaluation, job.generation, dataset.cache_dir, progress)
    result = evaluator.run(rows)
    before = _measure_untuned(evaluator, config, source, rows) if baseline else None
    history, tests = read_history(generator.artifact), _tests(result, before, job)
    paths = write_report(result, job.output, baseline=before, history=history, significance=tests)
    return JobOutcome(result, before, paths, _warnings(splits, result), tests)


def _tests(
    result: EvaluationResult, before: EvaluationResult | None, job: EvaluateJob
) -> dict[str, dict[str, Significance]]:
    if before is None:
        return {}
    pairs = zip(result.splits, before.splits, strict=True)
    return {now.name: significance(now, then, job.evaluation) for now, then in pairs}


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


def artifact_config(artifact: Artifact | None, target: str) -> RunConfig:
    """The config of the run that made an artifact.

    Args:
        artifact: The artifact; None where the target is a plain model.
        target: What the user named.

    Raises:
        ArtifactError: No artifact, or one without a config that can be read.
    """
    if artifact is None:
        raise ArtifactError(f"{target}: a plain model has no task and rows of its own; name a training run's artifact")
    if not artifact.config_path.is_file():
        raise ArtifactError(f"{artifact.path}: config.yaml is missing, so its task and rows are not known")
    try:
        return load_run_config(artifact.config_path)
    except ConfigError as error:
        raise ArtifactError(f"the artifact's own config cannot be read: {error}") from None


def _check_amount(splits: Splits, rows: Mapping[str, Sequence[Row]], job: EvaluateJob) -> None:
    """Refuse to take a big part of a streamed corpus into memory.

    Raises:
        ConfigError: The job does not say how much of it is wanted.
    """
    if splits.corpus is None or job.evaluation.max_rows is not None:
        return
    for name in rows:
        part = splits.corpus.rows[name]
        if part.about_bytes > _MOST_STREAMED_BYTES:
            size = f"{len(part)} rows of {part.about_bytes >> 20} MiB"
            raise ConfigError(f"split '{name}' has {size}: say how many to evaluate", key="evaluation.max_rows")


def _untuned_source(artifact: Artifact | None, config: RunConfig) -> ModelSource | None:
    """What the run started from. None where that is the model without its adapter, or was drawn by chance.

    Raises:
        UserError: It is not here any more.
    """
    if _is_adapter(artifact) or config.model.random_init is not None:
        return None
    return start_of(config, tokenizer=f"{artifact.path}/model" if artifact is not None else None)


def start_of(config: RunConfig, *, tokenizer: str | None) -> ModelSource:
    """The model that a run started from; a checkpoint of another run becomes a model of its own.

    Args:
        config: The run.
        tokenizer: Folder of its tokenizer, which a random initialisation would else train anew.

    Raises:
        UserError: There is no such model, or the checkpoint cannot be used.
    """

    def first(run: RunConfig) -> ModelSource:
        if run.model.random_init is None:
            return resolve_source(run.model)
        return resolve_source(run.model.model_copy(update={"tokenizer": tokenizer}), seed=run.training.seed)

    return chain_source(config, first, note=lambda _: None)


def _is_adapter(artifact: Artifact | None) -> bool:
    return artifact is not None and artifact.manifest.kind == "adapter"


def _measure_untuned(
    evaluator: Evaluator, config: RunConfig, source: ModelSource | None, rows: Mapping[str, Sequence[Row]]
) -> EvaluationResult:
    progress = evaluator.progress
    quieter = evaluator.config.model_copy(update={"latency_prompts": 0, "sweep": []})
    told = (lambda what, done, total: progress(f"untuned, {what}", done, total)) if progress else None
    with _untuned(evaluator.generator, config, source) as generator:
        return dataclasses.replace(evaluator, generator=generator, config=quieter, progress=told).run(rows)


@contextlib.contextmanager
def _untuned(generator: TextGenerator, config: RunConfig, source: ModelSource | None) -> Iterator[TextGenerator]:
    """The model as it was before training, of its source where it has one."""
    model: Any = generator.model
    opened = Opened(
        name=f"{config.model.name} (untuned)",
        loaded=LoadedModel(model, generator.encoder.tokenizer, generator.family),
        encoder=generator.encoder,
        generation=generator.defaults,
    )
    if _is_adapter(generator.artifact):  # a merged one has a lora section too
        with model.disable_adapter():
            yield TextGenerator.from_opened(opened, device=generator.device)
        return
    if source is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.training.seed)
            fresh = type(model)(model.config).eval()
        loaded = dataclasses.replace(opened.loaded, model=fresh)
    else:
        loaded = dataclasses.replace(opened.loaded, model=load_model(source).model)
    yield TextGenerator.from_opened(dataclasses.replace(opened, loaded=loaded), device=generator.device)


def _warnings(splits: Splits, result: EvaluationResult) -> tuple[str, ...]:
    return (
        *splits.warnings,
        *(f"{split.name}: {text}" for split in result.splits for text in split.warnings),
    )
