"""From our generation parameters to those of ``transformers.generate``: passed on, or refused by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import transformers
from pydantic import ValidationError
from transformers import PreTrainedTokenizerBase

from rayloom.config import GenerationConfig
from rayloom.errors import RequestError
from rayloom.generation.planning import Lengths

# What transformers takes for "off". Passed explicitly: it would otherwise fill None from the model's own
# defaults, and from its global ones (top_k = 50).
_NEUTRAL: dict[str, Any] = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "typical_p": 1.0,
    "eta_cutoff": 0.0,
    "epsilon_cutoff": 0.0,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
}
_SAME_NAME = (
    "do_sample",
    "num_beams",
    "num_return_sequences",
    "length_penalty",
    "early_stopping",
    "max_time",
)
_SAMPLING = ("temperature", "top_k", "top_p", "typical_p", "eta_cutoff", "epsilon_cutoff", "min_p")
_WHOLE = ("json_schema", "regex", "choice")
_NOT_BESIDE_WHOLE = ("min_new_tokens", "min_length", "stop_strings", "required_words")
# Properties of a model's vocabulary and architecture, not of how a user wants to generate.
_KEPT_FROM_MODEL = ("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens",
                    "begin_suppress_tokens")  # fmt: skip
_ENGINE_ONLY = {
    "required_words": "words that must appear",
    "json_schema": "answers that follow a JSON schema",
    "regex": "answers that match an expression",
    "choice": "answers out of a list",
}


def parse_parameters(defaults: GenerationConfig, params: Mapping[str, Any]) -> GenerationConfig:
    """The defaults with a caller's parameters on top.

    Lengths are one choice: a caller's ``max_length`` replaces a default ``max_new_tokens``, and the reverse.
    Defaults that cannot be beside what a caller names are dropped: sampling parameters for ``do_sample=False``, a least
    length above the caller's greatest, stop strings and the like for what decides a caller's whole answer.

    Raises:
        RequestError: An unknown parameter (with the nearest name), or a value that makes no sense.
    """
    refuse_unknown(params)
    try:
        return defaults.merged(**(_displaced(defaults, params) | dict(params)))
    except ValidationError as error:
        raise RequestError(_first_problem(error)) from None


def refuse_unknown(params: Mapping[str, Any]) -> None:
    """Refuse names that no parameter has.

    Raises:
        RequestError: Names the nearest one.
    """
    known = [*GenerationConfig.model_fields, "num_generations"]
    for name in params:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
            raise RequestError(f"unknown generation parameter '{name}'; {hint}")
    if {"num_generations", "num_return_sequences"} <= set(params):
        raise RequestError("num_generations and num_return_sequences are the same parameter: give one")


def refuse_unsupported(config: GenerationConfig) -> None:
    """Refuse what transformers cannot do offline.

    Raises:
        RequestError: Names the parameter.
    """
    for name, what in _ENGINE_ONLY.items():
        if getattr(config, name):
            raise RequestError(f"{name} ({what}) is not available while a model is being trained")
    if config.num_beam_groups > 1:
        raise RequestError("num_beam_groups above 1 (diverse beam search) is not available while a model is trained")


def to_transformers(
    config: GenerationConfig, lengths: Lengths, model_defaults: transformers.GenerationConfig, tokenizer: Any
) -> transformers.GenerationConfig:
    """The complete transformers config of one batch, with nothing of the model's own sampling defaults in it.

    Raises:
        RequestError: A parameter that does not go with this model or with another parameter.
    """
    refuse_unsupported(config)
    values = {name: getattr(config, name) for name in _SAME_NAME}
    for name, neutral in _NEUTRAL.items():
        value = getattr(config, name)
        values[name] = neutral if value is None else value
    if not config.do_sample:
        values = {name: value for name, value in values.items() if name not in _SAMPLING}
    elif config.min_p is not None:
        values["min_p"] = config.min_p
    values |= special_tokens(config, model_defaults, tokenizer)
    if config.exponential_decay_length_penalty is not None:
        if values["eos_token_id"] is None:
            raise RequestError("exponential_decay_length_penalty needs an end-of-sequence token; this model has none")
        values["exponential_decay_length_penalty"] = config.exponential_decay_length_penalty
    if config.logit_bias:
        values["sequence_bias"] = {(token,): bias for token, bias in config.logit_bias.items()}
    if config.stop_strings:
        values["stop_strings"] = list(config.stop_strings)
    if lengths.min_new_tokens:
        values["min_new_tokens"] = lengths.min_new_tokens
    wants_logits = config.logprobs is not None
    return transformers.GenerationConfig(
        **values,
        max_new_tokens=lengths.max_new_tokens,
        use_cache=True,
        return_dict_in_generate=True,
        output_logits=wants_logits,
        output_scores=config.num_beams > 1,
    )


def special_tokens(
    config: GenerationConfig,
    model_defaults: transformers.GenerationConfig,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, Any]:
    """Special tokens: the request's, else the tokenizer's, else the model's.

    A model that lists several end tokens, the tokenizer's among them, keeps them all (LLaMA 3 does).
    """
    values = {name: getattr(model_defaults, name, None) for name in _KEPT_FROM_MODEL}
    eos, listed = tokenizer.eos_token_id, model_defaults.eos_token_id
    if eos is None or (isinstance(listed, list) and eos in listed):
        eos = listed
    values["eos_token_id"] = eos if config.eos_token_id is None else config.eos_token_id
    values["bos_token_id"] = _first_given(config.bos_token_id, tokenizer.bos_token_id, model_defaults.bos_token_id)
    pad = _first_given(config.pad_token_id, tokenizer.pad_token_id, model_defaults.pad_token_id)
    ends = eos_ids(values["eos_token_id"])
    values["pad_token_id"] = _first_given(pad, ends[0] if ends else None, 0)
    return {name: value for name, value in values.items() if value is not None or name == "eos_token_id"}


def eos_ids(eos_token_id: int | list[int] | None) -> list[int]:
    """End-of-sequence tokens as a list."""
    if eos_token_id is None:
        return []
    return list(eos_token_id) if isinstance(eos_token_id, list) else [eos_token_id]


def _first_given(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)


def _displaced(defaults: GenerationConfig, params: Mapping[str, Any]) -> dict[str, None]:
    gone: list[str] = []
    for one, other in (("max_new_tokens", "max_length"), ("min_new_tokens", "min_length")):
        if params.get(one) is not None and params.get(other) is None:
            gone.append(other)
        elif params.get(other) is not None and params.get(one) is None:
            gone.append(one)
    if params.get("do_sample") is False:
        gone += [name for name in _SAMPLING if name not in params]
    gone += _contradicted(defaults, params)
    return {name: None for name in gone if name not in params and getattr(defaults, name) is not None}


def _contradicted(defaults: GenerationConfig, params: Mapping[str, Any]) -> list[str]:
    """Defaults that cannot be beside what a caller names: a refusal would be about what they never said."""
    gone: list[str] = []
    for least, most in (("min_new_tokens", "max_new_tokens"), ("min_length", "max_length")):
        wanted = params.get(most)
        if isinstance(wanted, int) and (getattr(defaults, least) or 0) > wanted:
            gone.append(least)
    if any(params.get(name) is not None for name in _WHOLE):
        gone += [*_WHOLE, *_NOT_BESIDE_WHOLE]
    return gone


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    message = problem["msg"].removeprefix("Value error, ")
    name = next((str(part) for part in problem["loc"]), "")
    return f"{name}: {message[0].lower()}{message[1:]} (got {problem['input']!r})" if name else message
