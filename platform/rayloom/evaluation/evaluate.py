"""Measure a model on rows: perplexity, generated answers and their scores, cost."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from rayloom.artifacts import Artifact
from rayloom.config import EvaluationConfig
from rayloom.data import Columns, PromptInput, Row, encode_rows
from rayloom.errors import DataError
from rayloom.evaluation.metrics import exact_match, rouge_rows, text_metrics
from rayloom.evaluation.perplexity import token_loss
from rayloom.evaluation.resources import measure_resources
from rayloom.evaluation.results import EvaluationResult, Prediction, SplitResult
from rayloom.generation import GenerationOutput, TextGenerator

Progress = Callable[[str, int, int], None]
"""Told (what is going on, how much is done, of how much)."""

_NUM_CONTINUATIONS = 8
_OPENING_WORDS = 24


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
        used = {name: list(rows) for name, rows in splits.items() if rows}
        if not used:
            raise DataError(f"nothing to evaluate: no rows in {' and '.join(splits) or 'any split'}")
        parameters = self.generator.parameters(self.generation)
        results = [self.split(name, rows) for name, rows in used.items()]
        timed = self._prompts((used.get("test") or next(reversed(used.values())))[: self.config.latency_prompts])
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
        )

    def split(self, name: str, rows: Sequence[Row]) -> SplitResult:
        """Measure the rows of one split.

        Language modelling has no references: it gets perplexity, and continuations of a few rows to look at.
        """
        chosen = list(rows[: self.config.max_rows])
        encoded = encode_rows(chosen, self.generator.encoder, self.columns, cache_dir=self.cache_dir, file_label=name)
        loss = token_loss(
            self.generator.model,
            encoded,
            batch_size=self.config.batch_size,
            pad_token_id=self.generator.encoder.tokenizer.pad_token_id or 0,
            progress=self._told(f"{name}: perplexity", len(encoded)),
        )
        is_scored = self.generator.template.task != "language-modeling"
        predictions = self._answers(name, chosen) if is_scored else self._continuations(name, chosen)
        metrics = {"loss": loss.loss, "perplexity": loss.perplexity}
        if is_scored:
            texts, references = [p.prediction for p in predictions], [p.reference for p in predictions]
            metrics |= text_metrics(texts, references, **self._rouge_options())
        return SplitResult(
            name=name,
            num_rows=len(chosen),
            num_rows_total=len(rows),
            metrics=metrics,
            num_target_tokens=loss.num_tokens,
            predictions=predictions,
            warnings=list(encoded.report.warnings),
        )

    def _answers(self, split: str, rows: Sequence[Row]) -> list[Prediction]:
        template = self.generator.template
        asked = [template.input_of(row, self.columns) for row in rows]
        places = [place for place, each in enumerate(asked) if each.messages or each.text.strip()]
        outputs = self._generate(split, [asked[place] for place in places])
        references = [template.target_of(rows[place], self.columns) for place in places]
        scores = rouge_rows([output.text for output in outputs], references, **self._rouge_options())
        return [
            Prediction(
                row=place,
                input=_shown(asked[place]),
                context=asked[place].context,
                reference=reference,
                prediction=output.text,
                rougeL=score["rougeL"],
                exact_match=exact_match(output.text, reference),
                finish_reason=output.sequences[0].finish_reason,
            )
            for place, output, reference, score in zip(places, outputs, references, scores, strict=True)
        ]

    def _continuations(self, split: str, rows: Sequence[Row]) -> list[Prediction]:
        prompts = self._prompts(rows[:_NUM_CONTINUATIONS])
        outputs = self._generate(split, prompts)
        return [
            Prediction(
                row=place,
                input=prompt.text,
                reference="",
                prediction=output.text,
                finish_reason=output.sequences[0].finish_reason,
            )
            for place, (prompt, output) in enumerate(zip(prompts, outputs, strict=True))
        ]

    def _prompts(self, rows: Sequence[Row]) -> list[PromptInput]:
        template = self.generator.template
        asked = [template.input_of(row, self.columns) for row in rows]
        if template.task == "language-modeling":
            asked = [PromptInput(text=self._opening(each.text)) for each in asked]
        return [each for each in asked if each.messages or each.text.strip()]

    def _opening(self, text: str) -> str:
        """The first words of a text, few enough to leave room for going on."""
        words = text.split()[:_OPENING_WORDS]
        room = max(self.generator.encoder.max_input_length // 2, 1)
        while len(words) > 1 and len(self.generator.encoder.prompt_ids(PromptInput(" ".join(words)))) > room:
            words = words[: len(words) // 2]
        return " ".join(words)

    def _generate(self, split: str, inputs: Sequence[PromptInput]) -> list[GenerationOutput]:
        """Answers in order; longest prompts first, a few batches at a time so that progress shows."""
        told = self._told(f"{split}: answers", len(inputs))
        order = sorted(range(len(inputs)), key=lambda place: -_length(inputs[place]))
        outputs: dict[int, GenerationOutput] = {}
        for at in range(0, len(order), self.config.batch_size):
            part = order[at : at + self.config.batch_size]
            answers = self.generator.run(
                [inputs[place] for place in part], self.generation, batch_size=self.config.batch_size
            )
            outputs |= dict(zip(part, answers, strict=True))
            told(len(part))
        return [outputs[place] for place in range(len(inputs))]

    def _rouge_options(self) -> dict[str, bool]:
        return {"use_stemmer": self.config.use_stemmer, "remove_stopwords": self.config.remove_stopwords}

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


def _shown(asked: PromptInput) -> str:
    if asked.messages is None:
        return asked.text
    return "\n".join(f"{message['role']}: {message['content']}" for message in asked.messages)


def _length(asked: PromptInput) -> int:
    return len(_shown(asked)) + len(asked.context or "")


def _artifact_info(artifact: Artifact | None) -> dict[str, Any] | None:
    if artifact is None:
        return None
    manifest = artifact.manifest
    names = ("kind", "data_hash", "config_hash", "code_version", "created")
    info = {name: getattr(manifest, name) for name in names} | {"path": str(artifact.path)}
    return info | ({"base": manifest.base.name} if manifest.base else {})


def _is_random_init(artifact: Artifact | None) -> bool:
    if artifact is None or not artifact.config_path.is_file():
        return False
    values = yaml.safe_load(artifact.config_path.read_text(encoding="utf-8"))
    model = values.get("model") if isinstance(values, dict) else None
    return bool(isinstance(model, dict) and model.get("random_init"))
