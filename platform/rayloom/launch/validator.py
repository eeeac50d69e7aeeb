"""Per-epoch generation metrics, wired into the training loop from above."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from rayloom.config import RunConfig
from rayloom.data import Columns, Encoder, PromptTemplate, Row
from rayloom.evaluation import text_metrics
from rayloom.generation import GenerationRequest, TransformersGenerator
from rayloom.training import Validation
from rayloom.training.distributed import gather_objects, rank, world_size

_NUM_SAMPLES = 3


@dataclass(frozen=True)
class GenerationValidator:
    """Generates for validation rows, each rank its share, and scores all of them.

    Args:
        config: The run.
        rows: Validation rows, already cut to ``training.eval_rows``.
        columns: Where inputs and targets are.
        encoder: Makes prompts.
    """

    config: RunConfig
    rows: list[Row]
    columns: Columns
    encoder: Encoder

    def __call__(self, model: nn.Module) -> Validation:
        """See `Validator`. Collective: all ranks generate equally many rows (under ZeRO-3 they must)."""
        generator = TransformersGenerator(
            model,
            self.encoder.tokenizer,
            seq2seq=self.encoder.template.seq2seq,
            default_new_tokens=self.config.dataset.max_target_length,
            synced_gpus=self.config.distributed.uses_deepspeed and self.config.distributed.stage == 3,
        )
        share = -(-len(self.rows) // world_size())
        mine = [(rank() + turn * world_size()) % len(self.rows) for turn in range(share)]
        outputs = generator.generate(
            [self._request(self.rows[index]) for index in mine], batch_size=self.config.evaluation.batch_size
        )
        texts = {index: output.sequences[0].text.strip() for index, output in zip(mine, outputs, strict=True)}
        predictions = {index: text for part in gather_objects(texts) for index, text in part.items()}
        return self._scored([predictions[index] for index in range(len(self.rows))])

    def _scored(self, predictions: list[str]) -> Validation:
        template = self.encoder.template
        references = [template.target_of(row, self.columns) for row in self.rows]
        options = self.config.evaluation
        metrics = text_metrics(
            predictions,
            references,
            use_stemmer=options.use_stemmer,
            remove_stopwords=options.remove_stopwords,
        )
        return Validation(metrics, self._samples(predictions, references, template))

    def _samples(
        self, predictions: list[str], references: list[str], template: PromptTemplate
    ) -> tuple[dict[str, str], ...]:
        texts = [template.input_of(row, self.columns).text for row in self.rows[:_NUM_SAMPLES]]
        return tuple(
            {"prompt": text, "prediction": prediction, "reference": reference}
            for text, prediction, reference in zip(texts, predictions, references, strict=False)
        )

    def _request(self, row: Row) -> GenerationRequest:
        generation = self.config.generation
        return GenerationRequest(
            prompt_ids=self.encoder.prompt_ids(self.encoder.template.input_of(row, self.columns)),
            config=generation,
            prefix_ids=self.encoder.prefix_ids(generation.prefix) if generation.prefix else [],
        )


def build_validator(
    config: RunConfig, rows: list[Row], columns: Columns, encoder: Encoder
) -> GenerationValidator | None:
    """The validator of a run; None where there is nothing to generate (language modelling, ``eval_rows: 0``)."""
    chosen = rows[: config.training.eval_rows]
    if not chosen or config.model.task_type == "language-modeling":
        return None
    return GenerationValidator(config, chosen, columns, encoder)
