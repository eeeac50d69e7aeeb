"""From a config to what workers need: rows read, split and encoded; model and tokenizer found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from rayloom.config import RunConfig
from rayloom.data import (
    Columns,
    Dataset,
    Encoder,
    PromptTemplate,
    Row,
    Splits,
    Workers,
    columns_for,
    load_splits,
    this_process,
)
from rayloom.launch.encoded import encoded_splits, slow_validation, tokenizer_rows
from rayloom.launch.starting import find_source
from rayloom.models import (
    Family,
    ModelSource,
    check_task,
    load_config,
    load_family,
    load_tokenizer,
)
from rayloom.models.lora import target_layers
from rayloom.models.variants import meta_model


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to start. Nothing in it has weights."""

    config: RunConfig
    columns: Columns
    splits: Splits
    source: ModelSource
    family: Family
    tokenizer: PreTrainedTokenizerBase
    template: PromptTemplate
    encoder: Encoder
    train: Dataset
    validation: Dataset
    notes: tuple[str, ...] = ()
    """What was found out about the model."""

    def sample(self) -> str:
        """The first train row as the model sees it, special tokens included."""
        example = self.train[0]
        prompt = self.tokenizer.decode(example.input_ids, skip_special_tokens=False)
        if not self.family.seq2seq:
            return str(prompt)
        target = self.tokenizer.decode(example.labels, skip_special_tokens=False)
        return f"{prompt}\n→ {target}"

    def warnings(self) -> list[str]:
        """What the owner of the data should know."""
        encoded = (("train", self.train.report), ("validation", self.validation.report))
        return [
            *self.notes,
            *self.splits.warnings,
            *(f"{name}: {text}" for name, part in encoded for text in part.warnings),
            *slow_validation(self.splits, self.validation),
        ]


def prepare(config: RunConfig, *, workers: Workers = this_process) -> Prepared:
    """Read the data, find the model, encode the rows (cached).

    Args:
        config: The run.
        workers: Who reads and encodes a streamed corpus.

    Raises:
        UserError: Of the config, the data or the model.
    """
    columns = columns_for(config.dataset, config.model.task_type)
    splits = load_splits(config.dataset, columns, workers=workers)
    notes: list[str] = []

    def texts(run: RunConfig) -> Iterator[str]:
        of_run = columns_for(run.dataset, run.model.task_type)
        own = splits if run is config else load_splits(run.dataset, of_run, workers=workers)
        return corpus_texts(tokenizer_rows(own), of_run)

    source = find_source(config, texts, note=notes.append)
    family = load_family(source)
    check_task(config.model, family)
    if config.lora is not None:
        # Refused here rather than in a worker; this model weighs nothing.
        target_layers(meta_model(load_config(source)), config.lora.target_modules or family.lora_targets)
    tokenizer = load_tokenizer(source)
    template = PromptTemplate.for_run(
        config.dataset,
        config.model.task_type,
        seq2seq=family.seq2seq,
        has_chat_template=tokenizer.chat_template is not None,
    )
    encoder = Encoder(
        tokenizer,
        template,
        max_input_length=config.dataset.max_input_length,
        max_target_length=config.dataset.max_target_length,
    )
    train, validation = encoded_splits(config.dataset, splits, encoder, columns, workers)
    return Prepared(
        config, columns, splits, source, family, tokenizer, template, encoder, train, validation, tuple(notes)
    )


def corpus_texts(rows: Iterable[Row], columns: Columns) -> Iterator[str]:
    """All text of the rows that a model will see, to train a tokenizer on."""
    for row in rows:
        for column in (columns.context, columns.input, columns.target, columns.text):
            value = row.get(column) if column else None
            if isinstance(value, str):
                yield value
        messages = row.get(columns.messages) if columns.messages else None
        for message in messages or ():
            yield str(message.get("content", ""))
