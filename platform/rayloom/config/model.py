"""Config of the model: its name, its task, and how it is adapted."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from rayloom.config.base import Section

TaskType = Literal["question-answering", "summarization", "translation", "language-modeling", "instruction", "chat"]
GenerationType = Literal["auto", "seq2seq", "causal"]

_GENERATION_ALIASES = {"text2text": "seq2seq", "text2text-generation": "seq2seq", "text-generation": "causal"}


class RandomInit(Section):
    """A model built from a configuration with random weights, and a tokenizer trained on the train rows."""

    family: Literal["t5", "gpt2", "gpt_neo", "llama"]
    """Architecture."""
    hidden_size: int = Field(128, ge=8)
    """Width of the residual stream."""
    num_layers: int = Field(2, ge=1)
    """Layers (T5: of the encoder and of the decoder each)."""
    num_heads: int = Field(4, ge=1)
    """Attention heads."""
    intermediate_size: int | None = Field(None, ge=8)
    """Width of the feed-forward layer; 4 x hidden_size where not given."""
    max_positions: int = Field(1024, ge=16)
    """Longest sequence for families with learned or rotary positions."""
    vocab_size: int = Field(4000, ge=300)
    """Size of the byte-level BPE tokenizer that is trained on the train rows."""
    options: dict[str, bool | int | float | str | list[int]] = Field(default_factory=dict)
    """Further fields of the family's transformers configuration, such as ``window_size`` or
    ``feed_forward_proj``."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        return self


class ModelConfig(Section):
    """Which model, for which task."""

    name: str = Field(min_length=1)
    """Hub name (``t5-small``), local folder, or ``package:PACKAGE/FILE.gguf`` for a GGUF file inside an
    installed Python package. With ``random_init`` just a label."""
    task_type: TaskType = "question-answering"
    """What the rows are: decides the prompt template and the columns needed."""
    generation_type: GenerationType = "auto"
    """``seq2seq`` or ``causal``; ``auto`` reads it from the model's own configuration."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    tokenizer: str | None = None
    """Another tokenizer's hub name or folder; the model's own where not given."""
    random_init: RandomInit | None = None
    """Start from random weights instead of pretrained ones (for tests and for training from scratch)."""

    @field_validator("generation_type", mode="before")
    @classmethod
    def _generation_alias(cls, value: object) -> object:
        return _GENERATION_ALIASES.get(value, value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.random_init and self.revision:
            raise ValueError("revision names hub weights, random_init asks for random ones: give one of the two")
        if self.random_init and self.generation_type != "auto":
            wanted = "seq2seq" if self.random_init.family == "t5" else "causal"
            if self.generation_type != wanted:
                raise ValueError(
                    f"generation_type '{self.generation_type}' contradicts random_init.family "
                    f"'{self.random_init.family}', which is {wanted}"
                )
        return self


class LoraConfig(Section):
    """Low-rank adaptation (Hu et al., 2021): only the adapter is trained."""

    r: int = Field(16, ge=1)
    """Rank."""
    lora_alpha: int = Field(32, ge=1)
    """Scale: the update is multiplied by lora_alpha / r."""
    lora_dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Dropout on the adapter's input."""
    target_modules: list[str] | Literal["all-linear"] | None = None
    """Names of the layers that get an adapter; the family's attention projections where not given."""
    adapter: str | None = None
    """Go on training this adapter (artifact or PEFT folder) instead of a new one. Its rank, alpha and targets must be
    the ones above, its base model that of ``model.name``. To put a new adapter on top of a finished one, name the
    finished one's artifact in ``model.name`` instead: it is merged into its base first."""
