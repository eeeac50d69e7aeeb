"""Generation parameters: the names and meanings of ``transformers.generate``, and a few more."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from rayloom.config.base import Section
from rayloom.config.problems import nearest

_MOST_COUNT, _MOST_FACTOR = 10**6, 1e6
_LEAST_TEMPERATURE = 1e-30  # logits divided by less are no float32 any more
"""Beyond what means anything; numbers that are larger still do not fit where the engine keeps them."""


class GenerationConfig(Section):
    """How text is generated. None leaves a parameter at its neutral value."""

    max_new_tokens: int | None = Field(None, ge=1)
    """Most tokens to generate (prompt not counted)."""
    min_new_tokens: int | None = Field(None, ge=0)
    """Fewest tokens to generate before the end of sequence may come."""
    max_length: int | None = Field(None, ge=1)
    """As transformers has it: prompt and answer together for causal models, the answer with its start token
    for seq2seq ones. max_new_tokens goes before it."""
    min_length: int | None = Field(None, ge=0)
    """Counted as max_length."""
    do_sample: bool = False
    """Draw tokens instead of taking the likeliest."""
    temperature: float | None = Field(None, ge=_LEAST_TEMPERATURE, le=_MOST_FACTOR)
    """Divides the logits before sampling."""
    top_k: int | None = Field(None, ge=0, le=_MOST_COUNT)
    """Sample among the k likeliest tokens; 0 for all."""
    top_p: float | None = Field(None, gt=0.0, le=1.0)
    """Sample among the likeliest tokens that hold this probability together."""
    min_p: float | None = Field(None, ge=0.0, le=1.0)
    """Drop tokens less likely than min_p x the likeliest one's probability."""
    typical_p: float | None = Field(None, gt=0.0, le=1.0)
    """Locally typical sampling (Meister et al., 2022)."""
    eta_cutoff: float | None = Field(None, ge=0.0, lt=1.0)
    """Eta sampling (Hewitt et al., 2022)."""
    epsilon_cutoff: float | None = Field(None, ge=0.0, lt=1.0)
    """Drop tokens under this probability."""
    num_beams: int = Field(1, ge=1)
    """Beam width; 1 for none."""
    num_beam_groups: int = Field(1, ge=1)
    """Diverse beam search (Vijayakumar et al., 2016): groups that num_beams is parted into."""
    diversity_penalty: float = Field(0.0, ge=0.0, le=_MOST_FACTOR)
    """Diverse beam search: what a token costs that another group took at the same step."""
    early_stopping: bool | str = False
    """Beams: stop at num_beams finished ones (true), by a heuristic (false), or ``never`` before no
    better can come."""
    length_penalty: float = Field(1.0, ge=-50.0, le=50.0)
    """Beams: exponent on the length that the score is divided by."""
    repetition_penalty: float | None = Field(None, ge=1 / _MOST_FACTOR, le=_MOST_FACTOR)
    """Divides (or multiplies, if negative) logits of tokens seen before."""
    encoder_repetition_penalty: float | None = Field(None, ge=1 / _MOST_FACTOR, le=_MOST_FACTOR)
    """Favours tokens of the prompt (above 1)."""
    no_repeat_ngram_size: int | None = Field(None, ge=0, le=_MOST_COUNT)
    """No n-gram of this size occurs twice."""
    exponential_decay_length_penalty: tuple[Annotated[int, Field(ge=-_MOST_COUNT, le=_MOST_COUNT)], float] | None = None
    """(start, factor): the end of sequence grows likelier from this token on."""
    pad_token_id: int | None = Field(None, ge=0)
    """The tokenizer's where not given."""
    eos_token_id: int | list[int] | None = None
    """The tokenizer's where not given."""
    bos_token_id: int | None = Field(None, ge=0)
    """The tokenizer's where not given."""
    max_time: float | None = Field(None, gt=0.0)
    """Seconds after which generation stops with what it has."""
    stop_strings: list[str] | None = None
    """Generation ends when one of these has been written; it is cut from the text."""
    num_return_sequences: int = Field(1, ge=1)
    """Answers per prompt (``num_generations`` is another name for it)."""
    seed: int | None = Field(None, ge=0)
    """Makes sampling repeatable."""
    prefix: str | None = None
    """The answer is forced to start with this text."""
    required_words: list[str] | None = None
    """Words or phrases that must appear, each once at least."""
    forbidden_words: list[str] | None = None
    """Words or phrases that must not appear."""
    json_schema: dict[str, Any] | None = None
    """The answer is JSON that this schema accepts."""
    regex: str | None = None
    """The answer matches this expression as a whole."""
    choice: list[str] | None = Field(None, min_length=1)
    """The answer is one of these."""
    logit_bias: dict[int, Annotated[float, Field(ge=-100.0, le=100.0)]] | None = None
    """Token ids, and what is added to their logits before anything else."""
    logprobs: int | None = Field(None, ge=0, le=20)
    """Return each token's log-probability, and those of so many alternatives."""

    @model_validator(mode="before")
    @classmethod
    def _aliases(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "num_generations" not in values:
            return values
        if "num_return_sequences" in values:
            raise ValueError("num_generations and num_return_sequences are the same parameter: give one")
        rest = {key: value for key, value in values.items() if key != "num_generations"}
        return {**rest, "num_return_sequences": values["num_generations"]}

    @model_validator(mode="after")
    def _check(self) -> Self:
        problem = _length_problem(self) or _sampling_problem(self) or _beam_problem(self)
        if problem:
            raise ValueError(problem)
        return self

    def merged(self, **changes: Any) -> GenerationConfig:
        """A copy with some parameters changed and checked again; what is unset stays unset.

        Args:
            changes: Parameters by name. None resets one to its default.

        Raises:
            pydantic.ValidationError: An unknown parameter, a bad value, or a contradiction.
        """
        kept = self.model_dump(exclude_unset=True)
        if "num_generations" in changes:
            kept.pop("num_return_sequences", None)
        kept |= changes
        return GenerationConfig.model_validate({key: value for key, value in kept.items() if value is not None})


def _known_parameters(values: dict[str, Any]) -> dict[str, Any]:
    known = [*GenerationConfig.model_fields, "num_generations"]
    for name in values:
        if name not in known:
            near = nearest(name, known)
            hint = f"; did you mean '{near}'?" if near else ""
            raise ValueError(f"'{name}' is not a generation parameter{hint}")
    return values


GenerationChanges = Annotated[dict[str, Any], AfterValidator(_known_parameters)]
"""Changes to an artifact's own parameters: names are checked here, values once both are merged."""


def _length_problem(config: GenerationConfig) -> str | None:
    for least, most in (("min_new_tokens", "max_new_tokens"), ("min_length", "max_length")):
        low, high = getattr(config, least), getattr(config, most)
        if low is not None and high is not None and low > high:
            return f"{least} {low} exceeds {most} {high}"
    return None


_SAMPLING_ONLY = ("temperature", "top_k", "top_p", "min_p", "typical_p", "eta_cutoff", "epsilon_cutoff")


def _sampling_problem(config: GenerationConfig) -> str | None:
    used = [name for name in _SAMPLING_ONLY if getattr(config, name) is not None]
    if used and not config.do_sample:
        return f"{used[0]} only matters when sampling: set do_sample: true, or leave it out"
    if config.num_return_sequences > 1 and not config.do_sample and config.num_beams == 1:
        return "num_return_sequences above 1 needs do_sample or num_beams: greedy search has one answer"
    return None


def _beam_problem(config: GenerationConfig) -> str | None:
    if isinstance(config.early_stopping, str) and config.early_stopping != "never":
        return "early_stopping is true, false or 'never'"
    if config.num_beams % config.num_beam_groups:
        return f"num_beams {config.num_beams} is not a multiple of num_beam_groups {config.num_beam_groups}"
    if config.diversity_penalty and config.num_beam_groups == 1:
        return "diversity_penalty needs num_beam_groups above 1"
    if config.num_beams > 1 and config.num_return_sequences > config.num_beams:
        return f"num_return_sequences {config.num_return_sequences} exceeds num_beams {config.num_beams}"
    whole = [name for name in ("json_schema", "regex", "choice") if getattr(config, name) is not None]
    if len(whole) > 1:
        return f"{whole[0]} and {whole[1]} both decide the whole answer: give one"
    return None
