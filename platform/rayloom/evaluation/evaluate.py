"""Measure a model on rows: perplexity, generated answers and their scores, cost."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from rayloom.artifacts import Artifact
from rayloom.config import EvaluationConfig
from rayloom.data import Columns, Row, encode_rows
from rayloom.errors import ConfigError, DataError
from rayloom.evaluation.answering import Answering
from rayloom.evaluation.custom_metrics import load_metrics
from rayloom.evaluation.measures import signatures
from rayloom.evaluation.perplexity import LossSum, token_loss
from rayloom.evaluation.resources import measure_resources
from rayloom.evaluation.results import EvaluationResult, Setting, SplitResult
from rayloom.evaluation.summary import check_slices, hash_of_rows, setting_of, summarised
from rayloom.generation import TextGenerator
from rayloom.registry import manifest_digest

Progress = Callable[[str, int, int], None]
"""Told (what is going on, how much is done, of how much)."""


@dataclass(frozen=True)
class Evaluator:
    """Measures one model.

    Attributes:
        generator: The model.
        columns: Where inputs and targets are.
        config: What is measured, on how many rows.
        generation: Changes to the model's generation parameters.
        cache_dir: Where tokenised rows are kept; the default place where not given.
        progress: Told how far each part is.
    """

    generator: TextGenerator
    columns: Columns
    config: EvaluationConfig = field(default_factory=EvaluationConfig)
    generation: Mapping[str, Any] = field(default_factory=dict)
    cache_dir: str | None = None
    progress: Progress | None = None

    def run(self, splits: Mapping[str, Sequence[Row]]) -> EvaluationResult:
        """Measure all splits, and what the model costs.

        Args:
            splits: Rows by split name; empty splits are left out.

        Raises:
            DataError: No split has rows.
            RequestError: Generation parameters that cannot be honoured.
        """
        used = {name: rows for name, rows in splits.items() if rows}
        if not used:
            raise DataError(f"nothing to evaluate: no rows in {' and '.join(splits) or 'any split'}")
        parameters = self.generator.parameters(self.generation)
        self._check_config()
        asking = self._answering()
        results = [self.split(name, rows) for name, rows in used.items()]
        timed = asking.prompts((used.get("test") or next(reversed(used.values())))[: self.config.latency_prompts])
        told = self._told("latency and throughput", len(timed) * (1 + len(self.config.throughput_batch_sizes)))
        resources = measure_resources(self.generator, timed, config=self.config, params=self.generation, progress=told)
        return EvaluationResult(
            model=self.generator.name,
            task=self.generator.template.task,
            family=self.generator.family.name,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            splits=results,
            resources=resources,
            generation={"max_new_tokens": self.generator.encoder.max_target_length}
            | parameters.model_dump(mode="json", exclude_unset=True),
            evaluation=self.config.model_dump(mode="json"),
            artifact=_artifact_info(self.generator.artifact),
            random_init=_is_random_init(self.generator.artifact),
            template=self.generator.template.model_dump(mode="json"),
            signatures=signatures(),
        )

    def split(self, name: str, rows: Sequence[Row]) -> SplitResult:
        """Measure the rows of one split.

        Language modelling has no references: it gets perplexity, and continuations of a few rows to look at.
        """
        chosen = list(rows[: self.config.max_rows])
        check_slices(name, chosen, self.config)
        loss, warnings = self._loss(name, chosen)
        asking = self._answering()
        is_scored = self.generator.template.task != "language-modeling"
        ask = asking.answers if is_scored else asking.continuations
        answered = ask(chosen, self.generation, functools.partial(self._told, f"{name}: answers"))
        split = SplitResult(
            name=name,
            num_rows=len(chosen),
            num_rows_total=len(rows),
            metrics={"loss": loss.loss, "perplexity": loss.perplexity} if loss.by_row else {},
            num_target_tokens=loss.num_tokens,
            predictions=answered.predictions,
            warnings=warnings,
            row_losses=list(loss.by_row),
            rows_hash=hash_of_rows(chosen, self.columns),
            settings=self._settings(name, chosen) if is_scored else [],
            seconds=answered.seconds,
        )
        return summarised(split, self.config, chosen)

    def _loss(self, split: str, rows: list[Row]) -> tuple[LossSum, list[str]]:
        """Losses of the rows, and what the reader should know of them."""
        precision = self.generator.precision
        if precision != "fp32":
            return LossSum(0.0, 0), [f"no perplexity: in {precision} only the engine's weights are kept"]
        encoded = encode_rows(rows, self.generator.encoder, self.columns, cache_dir=self.cache_dir, file_label=split)
        loss = token_loss(
            self.generator.model,
            encoded,
            batch_size=self.config.batch_size,
            pad_token_id=self.generator.encoder.tokenizer.pad_token_id or 0,
            progress=self._told(f"{split}: perplexity", len(encoded)),
        )
        return loss, list(encoded.report.warnings)

    def _settings(self, split: str, rows: Sequence[Row]) -> list[Setting]:
        asking, found = self._answering(), []
        for changes in self.config.sweep:
            told = functools.partial(self._told, f"{split}: {_setting_name(changes)}")
            answered = asking.answers(rows, {**self.generation, **changes}, told)
            found.append(setting_of(changes, answered.predictions, answered.seconds, self.config))
        return found

    def _check_config(self) -> None:
        for changes in self.config.sweep:
            self.generator.parameters({**self.generation, **changes})
        asked = [name for name in ("metrics", "sweep") if getattr(self.config, name)]
        if asked and self.generator.template.task == "language-modeling":
            raise ConfigError(
                "language modelling has no references to compare answers with: leave this out",
                key=f"evaluation.{asked[0]}",
            )

    def _answering(self) -> Answering:
        return Answering(self.generator, self.columns, self.config, load_metrics(self.config.metrics))

    def _told(self, what: str, total: int) -> Callable[[int], None]:
        done = 0

        def told(more: int) -> None:
            nonlocal done
            done += more
            if self.progress is not None:
                self.progress(what, done, total)

        told(0)
        return told


def evaluate(
    generator: TextGenerator,
    splits: Mapping[str, Sequence[Row]],
    columns: Columns,
    *,
    config: EvaluationConfig | None = None,
    generation: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> EvaluationResult:
    """Measure a model on several splits, and what it costs. See `Evaluator`."""
    evaluator = Evaluator(generator, columns, config or EvaluationConfig(), generation or {}, progress=progress)
    return evaluator.run(splits)


def evaluate_split(
    generator: TextGenerator,
    rows: Sequence[Row],
    columns: Columns,
    *,
    split: str,
    config: EvaluationConfig | None = None,
    generation: Mapping[str, Any] | None = None,
) -> SplitResult:
    """Measure a model on the rows of one split. See `Evaluator`."""
    return Evaluator(generator, columns, config or EvaluationConfig(), generation or {}).split(split, rows)


def _setting_name(changes: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in changes.items()) or "as published"


def _artifact_info(artifact: Artifact | None) -> dict[str, Any] | None:
    if artifact is None:
        return None
    manifest = artifact.manifest
    names = ("kind", "data_hash", "config_hash", "code_version", "created")
    info = {name: getattr(manifest, name) for name in names} | {"path": str(artifact.path)}
    info["digest"] = manifest_digest(str(artifact.path))
    return info | ({"base": manifest.base.name} if manifest.base else {})


def _is_random_init(artifact: Artifact | None) -> bool:
    if artifact is None or not artifact.config_path.is_file():
        return False
    values = yaml.safe_load(artifact.config_path.read_text(encoding="utf-8"))
    model = values.get("model") if isinstance(values, dict) else None
    return bool(isinstance(model, dict) and model.get("random_init"))
