"""Rows to answered rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rayloom.config import EvaluationConfig
from rayloom.data import Columns, PromptInput, Row
from rayloom.evaluation.custom_metrics import RowMetric, custom_scores
from rayloom.evaluation.quality import quality_rows
from rayloom.evaluation.results import Prediction
from rayloom.evaluation.scorer import open_scorer
from rayloom.evaluation.scores import repetition, row_scores
from rayloom.generation import GenerationOutput, TextGenerator

Told = Callable[[int], Callable[[int], None]]
"""Given the number of prompts, gives what is called with the number of each finished batch."""

_NUM_CONTINUATIONS = 8
_OPENING_WORDS = 24
_BATCHES_AT_ONCE = 4


@dataclass(frozen=True)
class Answered:
    """Rows with what the model wrote.

    Attributes:
        predictions: In the order of the rows; rows without an input are left out.
        seconds: Wall-clock time of generating them.
    """

    predictions: list[Prediction]
    seconds: float


@dataclass(frozen=True)
class Answering:
    """Asks a model for rows.

    Attributes:
        generator: The model.
        columns: Where inputs and targets are.
        config: Batch size, and how scores are computed.
        metrics: Metrics of other packages.
    """

    generator: TextGenerator
    columns: Columns
    config: EvaluationConfig
    metrics: Mapping[str, RowMetric]

    def answers(self, rows: Sequence[Row], params: Mapping[str, Any], told: Told) -> Answered:
        """Answer rows that have references, and score each answer.

        Args:
            rows: What to ask.
            params: Generation parameters.
            told: Shows how far it is.
        """
        template = self.generator.template
        asked = [template.input_of(row, self.columns) for row in rows]
        places = [place for place, each in enumerate(asked) if each.messages or each.text.strip()]
        start = time.perf_counter()
        outputs = self.generate([asked[place] for place in places], params, told)
        seconds = time.perf_counter() - start
        references = [template.target_of(rows[place], self.columns) for place in places]
        scores = self._scores(
            [asked[place] for place in places],
            [output.text for output in outputs],
            references,
            [rows[place] for place in places],
        )
        predictions = [
            Prediction(
                row=place,
                input=shown(asked[place]),
                context=asked[place].context,
                reference=reference,
                prediction=output.text,
                rougeL=score["rougeL"],
                exact_match=bool(score["exact_match"]),
                finish_reason=output.sequences[0].finish_reason,
                scores=score,
            )
            for place, output, reference, score in zip(places, outputs, references, scores, strict=True)
        ]
        return Answered(predictions, seconds)

    def continuations(self, rows: Sequence[Row], params: Mapping[str, Any], told: Told) -> Answered:
        """Go on from the first words of a few rows; see `answers`."""
        opened = self._prompts(rows[:_NUM_CONTINUATIONS])
        prompts = list(opened.values())
        start = time.perf_counter()
        outputs = self.generate(prompts, params, told)
        seconds = time.perf_counter() - start
        texts = [output.text for output in outputs]
        judged = self._judged(prompts, texts)
        predictions = [
            Prediction(
                row=place,
                input=prompt.text,
                reference="",
                prediction=output.text,
                finish_reason=output.sequences[0].finish_reason,
                scores=score | {"repetition": repetition(output.text)} if score else {},
            )
            for (place, prompt), output, score in zip(opened.items(), outputs, judged, strict=True)
        ]
        return Answered(predictions, seconds)

    def prompts(self, rows: Sequence[Row]) -> list[PromptInput]:
        """What rows ask; of a text (language modelling) its first words. Empty ones are left out."""
        return list(self._prompts(rows).values())

    def _prompts(self, rows: Sequence[Row]) -> dict[int, PromptInput]:
        """The same by place of the row."""
        template = self.generator.template
        asked = [template.input_of(row, self.columns) for row in rows]
        if template.task == "language-modeling":
            asked = [PromptInput(text=self._opening(each.text)) for each in asked]
        return {place: each for place, each in enumerate(asked) if each.messages or each.text.strip()}

    def generate(self, inputs: Sequence[PromptInput], params: Mapping[str, Any], told: Told) -> list[GenerationOutput]:
        """Answers in order; longest prompts first."""
        done = told(len(inputs))
        order = sorted(range(len(inputs)), key=lambda place: -_length(inputs[place]))
        outputs: dict[int, GenerationOutput] = {}
        # Some batches at a time: finished prompts make room for the next at once, and progress still shows.
        size = _BATCHES_AT_ONCE * self.config.batch_size
        for at in range(0, len(order), size):
            part = order[at : at + size]
            answers = self.generator.run([inputs[place] for place in part], params, batch_size=self.config.batch_size)
            outputs |= dict(zip(part, answers, strict=True))
            done(len(part))
        return [outputs[place] for place in range(len(inputs))]

    def _scores(
        self, asked: Sequence[PromptInput], texts: list[str], references: list[str], rows: list[Row]
    ) -> list[dict[str, float]]:
        options = self.config
        ours = row_scores(texts, references, use_stemmer=options.use_stemmer, remove_stopwords=options.remove_stopwords)
        theirs = custom_scores(self.metrics, texts, references, rows)
        judged = self._judged(asked, texts)
        return [one | two | three for one, two, three in zip(ours, theirs, judged, strict=True)]

    def _judged(self, asked: Sequence[PromptInput], texts: list[str]) -> list[dict[str, float]]:
        """What the scorer model says of each answer; nothing without one."""
        if self.config.scorer is None:
            return [{} for _ in texts]
        scorer = open_scorer(self.config.scorer, str(self.generator.device))
        prompts = [f"{each.context}\n{shown(each)}" if each.context else shown(each) for each in asked]
        return quality_rows(scorer, prompts, texts)

    def _opening(self, text: str) -> str:
        """The first words of a text, few enough to leave room for going on."""
        words = text.split()[:_OPENING_WORDS]
        room = max(self.generator.encoder.max_input_length // 2, 1)
        while len(words) > 1 and len(self.generator.encoder.prompt_ids(PromptInput(" ".join(words)))) > room:
            words = words[: len(words) // 2]
        return " ".join(words)


def shown(asked: PromptInput) -> str:
    """What was asked, for people."""
    if asked.messages is None:
        return asked.text
    return "\n".join(f"{message['role']}: {message['content']}" for message in asked.messages)


def _length(asked: PromptInput) -> int:
    return len(shown(asked)) + len(asked.context or "")
