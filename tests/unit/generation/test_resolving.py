"""What the engine is told against what ``transformers.generate`` is told for the same request."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
import transformers
from pydantic import ValidationError

from rayloom.config import GenerationConfig
from rayloom.engine.masks import flags_of, tokens_of
from rayloom.engine.required import RequiredWords
from rayloom.errors import RequestError
from rayloom.generation.parameters import to_transformers
from rayloom.generation.planning import Lengths, Window, request_lengths
from rayloom.generation.resolving import Addressing, Resolver
from rayloom.generation.types import GenerationRequest
from tests.unit.generation.tokenizers import tokenizer_of

TOKENIZER = tokenizer_of("byte_level")
UNSET = {
    "min_new_tokens": 0,
    "min_p": 0.0,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "typical_p": 1.0,
    "eta_cutoff": 0.0,
    "epsilon_cutoff": 0.0,
    "exponential_decay_length_penalty": None,
    "max_time": None,
}
"""What the engine is told where transformers is told nothing."""
CHANGES: dict[str, list[Any]] = {
    "max_new_tokens": [5, 40],
    "min_new_tokens": [0, 3],
    "max_length": [60],
    "min_length": [2, 30],
    "do_sample": [True],
    "temperature": [0.7],
    "top_k": [0, 5],
    "top_p": [0.4],
    "min_p": [0.1],
    "typical_p": [0.3],
    "eta_cutoff": [0.1],
    "epsilon_cutoff": [0.2],
    "num_beams": [3],
    "early_stopping": [True, "never"],
    "length_penalty": [0.3],
    "num_return_sequences": [2],
    "repetition_penalty": [1.3],
    "encoder_repetition_penalty": [1.3],
    "no_repeat_ngram_size": [0, 2],
    "exponential_decay_length_penalty": [(3, 1.2)],
    "eos_token_id": [7, [7, 9]],
    "pad_token_id": [4],
    "bos_token_id": [6],
    "max_time": [2.0],
    "logprobs": [0, 3],
}
MODELS = [
    {},
    {"eos_token_id": [1, 12], "decoder_start_token_id": 0, "do_sample": True, "top_k": 7, "temperature": 0.1},
    {"decoder_start_token_id": 2, "forced_bos_token_id": 5, "forced_eos_token_id": 1, "suppress_tokens": [3, 8]},
    {"decoder_start_token_id": 2, "forced_eos_token_id": [1, 7], "begin_suppress_tokens": [4]},
]


def resolver(*, seq2seq: bool = False, positions: int | None = 96, **kwargs: Any) -> Resolver:
    defaults = kwargs.pop("defaults", {"decoder_start_token_id": 0} if seq2seq else {})
    window = Window(seq2seq, positions, 20)
    return Resolver(TOKENIZER, transformers.GenerationConfig(**defaults), window, len(TOKENIZER) + 3, **kwargs)


def random_config(rng: random.Random) -> GenerationConfig:
    while True:
        names = rng.sample(sorted(CHANGES), rng.randint(0, 7))
        try:
            return GenerationConfig.model_validate({name: rng.choice(CHANGES[name]) for name in names})
        except ValidationError:
            continue


def test_parameters_are_those_that_transformers_gets() -> None:
    rng, compared = random.Random(13), 0
    for _ in range(400):
        config, seq2seq, model = random_config(rng), rng.random() < 0.5, rng.choice(MODELS)
        request = GenerationRequest([5, 6, 7], config, rng.choice([[], [20, 21]]))
        own = resolver(seq2seq=seq2seq, defaults=model)
        if seq2seq and "decoder_start_token_id" not in model and config.bos_token_id is None:
            with pytest.raises(RequestError, match="decoder_start_token_id|tokens"):
                own.resolve(request)
            continue
        if (lengths := _lengths(request, own.window)) is None:
            with pytest.raises(RequestError, match="tokens"):
                own.resolve(request)
            continue
        theirs = to_transformers(config, lengths, own.model_defaults, TOKENIZER)
        resolved = own.resolve(request)
        params = resolved.params
        for name in ("max_new_tokens", "min_new_tokens", *CHANGES):
            if name in ("eos_token_id", "bos_token_id", "max_length", "min_length", "logprobs"):
                continue
            value = getattr(theirs, name)
            assert getattr(params, name) == (UNSET[name] if value is None else value), name
        assert list(params.eos_token_ids) == _listed(theirs.eos_token_id)
        assert list(params.forced_eos_token_ids) == _listed(theirs.forced_eos_token_id)
        assert list(params.suppress_tokens) == (theirs.suppress_tokens or [])
        assert list(params.begin_suppress_tokens) == (theirs.begin_suppress_tokens or [])
        assert params.forced_bos_token_id == theirs.forced_bos_token_id
        assert params.logprobs == config.logprobs
        start = theirs.decoder_start_token_id
        first = theirs.bos_token_id if start is None else start
        assert resolved.start_ids == ((first, *request.prefix_ids) if seq2seq else (5, 6, 7, *request.prefix_ids))
        assert resolved.encoder_ids == ((5, 6, 7) if seq2seq else ())
        compared += 1
    assert compared > 150


def _lengths(request: GenerationRequest, window: Window) -> Lengths | None:
    try:
        return request_lengths(request, window)
    except RequestError:
        return None


def _listed(value: int | list[int] | None) -> list[int]:
    return [] if value is None else value if isinstance(value, list) else [value]


def test_a_seed_is_drawn_where_sampling_has_none() -> None:
    seeds = iter([11, 12])
    own = resolver(draw_seed=lambda: next(seeds))
    found = [
        own.resolve(GenerationRequest([5], GenerationConfig.model_validate(values))).params.seed
        for values in ({}, {"do_sample": True}, {"do_sample": True, "seed": 5}, {"do_sample": True})
    ]
    assert found == [0, 11, 5, 12]


def test_constraints_hold_for_the_prefix_too() -> None:
    own = resolver()
    config = GenerationConfig(forbidden_words=["cat"], required_words=["mill", "the"], max_new_tokens=30)
    prefix = TOKENIZER.encode("the ca")
    request = own.resolve(GenerationRequest([5], config, prefix), Addressing(adapter="a", priority=2, owner="me"))
    assert (request.adapter, request.priority, request.owner) == ("a", 2, "me")
    forbidden, required = request.constraints
    letter = TOKENIZER.convert_tokens_to_ids("t")
    assert not flags_of(forbidden.mask(), own.vocab_size)[letter]
    assert isinstance(required, RequiredWords)
    assert 0 < required.num_met < required.total
    assert not own.resolve(GenerationRequest([5], GenerationConfig(forbidden_words=[" "]))).constraints


def test_grammars_are_made_with_all_that_surrounds_the_answer() -> None:
    own = resolver(start_text=" ")
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    config = GenerationConfig(json_schema=schema, max_new_tokens=30, eos_token_id=[1, 9])
    prefix = TOKENIZER.encode(' {"a": 1}')
    (constraint,) = own.resolve(GenerationRequest([5], config, prefix)).constraints
    assert tokens_of(constraint.mask())[:2] == [1, 9]
    with pytest.raises(RequestError, match="raise max_new_tokens"):
        own.resolve(GenerationRequest([5], config.merged(max_new_tokens=2)))
    with pytest.raises(RequestError, match="forced prefix"):
        own.resolve(GenerationRequest([5], config, TOKENIZER.encode("no")))
    (words,) = own.resolve(GenerationRequest([5], GenerationConfig(regex="[a-z]+", forbidden_words=["a"]))).constraints
    assert not flags_of(words.mask(), own.vocab_size)[TOKENIZER.convert_tokens_to_ids("a")]


def test_a_model_that_forces_its_first_token_still_follows_a_grammar() -> None:
    own = resolver(seq2seq=True, defaults={"decoder_start_token_id": 0, "forced_bos_token_id": 0})
    (constraint,) = own.resolve(GenerationRequest([5], GenerationConfig(regex="x"))).constraints
    assert tokens_of(constraint.mask()) == [0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_beams": 4, "num_beam_groups": 2, "do_sample": True}, "does not sample"),
        ({"regex": "a", "required_words": ["b"]}, "required_words do not go with regex"),
        ({"regex": "a", "stop_strings": ["b"]}, "stop_strings do not go with regex"),
        ({"regex": "a", "min_new_tokens": 2}, "min_new_tokens does not go with regex"),
        ({"stop_strings": [""]}, "must not be empty"),
        ({"required_words": ["the old mill"] * 9, "max_new_tokens": 2}, "required_words take"),
        ({"max_length": 1}, "no room"),
    ],
    ids=lambda value: json.dumps(value)[:40],
)
def test_what_cannot_be_honoured_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        resolver().resolve(GenerationRequest([5], GenerationConfig.model_validate(values)))


def test_empty_and_oversized_prompts_are_refused() -> None:
    with pytest.raises(RequestError, match="empty"):
        resolver().resolve(GenerationRequest([]))
    with pytest.raises(RequestError, match="empty"):
        resolver(seq2seq=True).resolve(GenerationRequest([], prefix_ids=[5]))
    assert resolver().resolve(GenerationRequest([], prefix_ids=[5])).start_ids == (5,)
    with pytest.raises(RequestError, match="96 positions"):
        resolver().resolve(GenerationRequest([5] * 96))
    assert resolver().resolve(GenerationRequest([5] * 90)).params.max_new_tokens == 6
