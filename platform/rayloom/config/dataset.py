"""Config of the data: where rows come from and how they become prompts and targets."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from rayloom.config.base import Section


class DatasetConfig(Section):
    """Rows, columns and lengths."""

    name: str | None = None
    """A Hugging Face ``datasets`` name (``wikitext``) or a folder saved with ``save_to_disk``;
    instead of files."""
    subset: str | None = None
    """Configuration name of the hub dataset (``wikitext-2-raw-v1``)."""
    train_file: str | None = None
    """JSON list, JSON Lines, CSV, Parquet or plain text. Relative paths start at the config file's folder,
    ``~/`` at the home folder."""
    validation_file: str | None = None
    """As train_file. Where absent, validation rows are split off the train rows."""
    test_file: str | None = None
    """As train_file. Where absent, test rows are split off the train rows."""
    validation_fraction: float = Field(0.1, gt=0.0, lt=0.5)
    """Share of the rows that a split puts into validation."""
    test_fraction: float = Field(0.1, gt=0.0, lt=0.5)
    """Share of the rows that a split puts into test."""
    split_seed: int = 0
    """Seed of the split; rows with equal normalised inputs and contexts always fall on the same side."""

    input_column: str | None = None
    """Column with the question, document, source sentence or instruction (default by task)."""
    target_column: str | None = None
    """Column with the answer, summary, translation or response (default by task)."""
    context_column: str | None = None
    """Column with the context of the input, where there is one."""
    messages_column: str = "messages"
    """Chat rows: column with a list of ``{role, content}``."""
    text_column: str = "text"
    """Language modelling: column with the text."""
    text_unit: Literal["document", "paragraph", "line"] = "document"
    """Plain text files: what one row is. Paragraphs are parted by blank lines."""

    max_input_length: int = Field(512, ge=4)
    """Tokens of the prompt; longer contexts and inputs are cut so that the template stays whole.
    Language modelling: tokens of one block."""
    max_target_length: int = Field(128, ge=2)
    """Tokens of the target, end of sequence included; longer targets are cut."""
    max_train_rows: int | None = Field(None, ge=1)
    """Use only the first rows after shuffling with split_seed; all where not given."""
    max_validation_rows: int | None = Field(None, ge=1)
    """As max_train_rows, for validation."""
    max_test_rows: int | None = Field(None, ge=1)
    """As max_train_rows, for test."""

    prompt_template: str | None = None
    """Own prompt with ``{input}`` and ``{context}``; the task's own where not given."""
    system_prompt: str | None = None
    """System message for models with a chat template."""
    use_chat_template: bool | None = None
    """Render prompts through the model's chat template; by default if it has one."""
    source_language: str | None = None
    """Translation: name used in the prompt (``English``)."""
    target_language: str | None = None
    """Translation: name used in the prompt (``German``)."""
    cache_dir: str | None = None
    """Where tokenised rows are kept; ``$RAYLOOM_CACHE`` or ``~/.cache/rayloom`` where not given. When several
    machines train on a streamed corpus, they all have to see this folder, and the files."""
    streaming: bool | None = None
    """Read the files a stretch at a time and train from tokenised shards that are mapped from disk, so that the
    corpus may be larger than memory; needs files other than JSON lists. A dataset by name is copied into Parquet
    files in cache_dir first. Where not given: if there are more than 256 MiB. Plain text documents of over a million
    characters are then read in parts of that size."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if bool(self.name) == bool(self.train_file):
            raise ValueError("give either name (a dataset) or train_file (a file)")
        if self.name and (self.validation_file or self.test_file):
            raise ValueError("validation_file and test_file go with train_file, not with name")
        if self.subset and not self.name:
            raise ValueError("subset goes with name, the dataset that it is of; a train_file has none")
        if self.prompt_template is not None and "{input}" not in self.prompt_template:
            raise ValueError("prompt_template must contain {input}")
        return self
