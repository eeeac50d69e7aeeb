"""From a generation request to what the engine is asked: every parameter resolved, none ignored."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import transformers
from transformers import PreTrainedTokenizerBase

from rayloom.config import GenerationConfig
from rayloom.engine.forbidden import ForbiddenWords
from rayloom.engine.grammar import Frame, compile_grammar
from rayloom.engine.request import Constraint, EngineRequest, Params
from rayloom.engine.required import RequiredWords
from rayloom.engine.vocabulary import Vocabulary
from rayloom.engine.wording import Kind
from rayloom.errors import RequestError
from rayloom.generation.parameters import eos_ids, special_tokens
from rayloom.generation.planning import Window, request_lengths
from rayloom.generation.stopping import StopStrings
from rayloom.generation.types import GenerationRequest
from rayloom.generation.words import read_vocabulary, spellings

_NEUTRAL_NUMBERS: dict[str, Any] = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "eta_cutoff": 0.0,
    "epsilon_cutoff": 0.0,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
}
_SAME_NAME = ("do_sample", "num_beams", "num_beam_groups", "diversity_penalty", "early_stopping", "length_penalty",
              "num_return_sequences", "max_time", "logprobs", "exponential_decay_length_penalty")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Addressing:
    """Whose request it is, and which adapter answers.

    Attributes:
        adapter: Name of the adapter, None for the base model.
        priority: Lower goes first.
        owner: Requests of one owner share its turn.
    """

    adapter: str | None = None
    priority: int = 0
    owner: str = ""


_NOBODY = Addressing()


@dataclass(frozen=True)
class Resolver:
    """Turns requests into `EngineRequest`, with everything that one model needs for it.

    Attributes:
        tokenizer: The model's tokenizer.
        model_defaults: The model's own generation config; only its special tokens count.
        window: What the model can hold.
        vocab_size: Width of the model's logits.
        start_text: What a target starts with in training and answers lose afterwards (the template's
            ``target_prefix``): grammars allow it before the answer.
        draw_seed: Seed of a request that samples and names none.
    """

    tokenizer: PreTrainedTokenizerBase
    model_defaults: transformers.GenerationConfig
    window: Window
    vocab_size: int
    start_text: str = ""
    draw_seed: Callable[[], int] = field(default=lambda: secrets.randbits(63))

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Bytes of every token; read when first needed."""
        return read_vocabulary(self.tokenizer, self.vocab_size)

    def resolve(self, request: GenerationRequest, addressing: Addressing = _NOBODY) -> EngineRequest:
        """What the engine is to do.

        Raises:
            RequestError: A parameter that cannot be honoured, alone or beside another one, or a prompt that
                is empty or too long.
        """
        config = request.config
        if not request.prompt_ids and not (request.prefix_ids and not self.window.seq2seq):
            raise RequestError("the prompt is empty: there is nothing to go on from")
        _refuse_contradictions(config)
        if request.prompt_logprobs is not None and self.window.seq2seq:
            raise RequestError(
                "an encoder-decoder model gives no log-probabilities of its prompt: it does not predict it"
            )
        special = special_tokens(config, self.model_defaults, self.tokenizer)
        params = self._params(request, special)
        start_ids, encoder_ids = self._inputs(request, special)
        return EngineRequest(
            start_ids=start_ids,
            encoder_ids=encoder_ids,
            params=params,
            constraints=self._constraints(request, params),
            stop=self._stop(config.stop_strings),
            adapter=addressing.adapter,
            priority=addressing.priority,
            owner=addressing.owner,
        )

    def _params(self, request: GenerationRequest, special: dict[str, Any]) -> Params:
        config, ends = request.config, tuple(eos_ids(special["eos_token_id"]))
        lengths = request_lengths(request, self.window)
        for name, tokens in (("logit_bias", config.logit_bias or ()), ("eos_token_id", eos_ids(config.eos_token_id))):
            unknown = [token for token in tokens if not 0 <= token < self.vocab_size]
            if unknown:
                raise RequestError(f"{name}: the model has no token {unknown[0]} (0 … {self.vocab_size - 1})")
        if config.exponential_decay_length_penalty is not None and not ends:
            raise RequestError("exponential_decay_length_penalty needs an end-of-sequence token; this model has none")
        given = {name: getattr(config, name) for name in _NEUTRAL_NUMBERS if getattr(config, name) is not None}
        seed = config.seed if config.seed is not None else self.draw_seed() if config.do_sample else 0
        return Params(
            max_new_tokens=lengths.max_new_tokens,
            min_new_tokens=lengths.min_new_tokens,
            eos_token_ids=ends,
            pad_token_id=special["pad_token_id"],
            suppress_tokens=tuple(special.get("suppress_tokens", ())),
            begin_suppress_tokens=tuple(special.get("begin_suppress_tokens", ())),
            forced_bos_token_id=special.get("forced_bos_token_id"),
            forced_eos_token_ids=tuple(eos_ids(special.get("forced_eos_token_id"))),
            seed=seed,
            prompt_logprobs=request.prompt_logprobs,
            logit_bias=tuple(sorted((config.logit_bias or {}).items())),
            **(_NEUTRAL_NUMBERS | given),
            **{name: getattr(config, name) for name in _SAME_NAME},
        )

    def _inputs(self, request: GenerationRequest, special: dict[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Start tokens of the sequence, and the encoder's."""
        if not self.window.seq2seq:
            return (*request.prompt_ids, *request.prefix_ids), ()
        first = special.get("decoder_start_token_id", special.get("bos_token_id"))
        if first is None:
            raise RequestError("the model names no token that its answers start with (decoder_start_token_id)")
        return (first, *request.prefix_ids), tuple(request.prompt_ids)

    def _stop(self, stop_strings: Sequence[str] | None) -> StopStrings | None:
        return StopStrings(self.tokenizer, stop_strings) if stop_strings else None

    def _constraints(self, request: GenerationRequest, params: Params) -> tuple[Constraint, ...]:
        config = request.config
        found: list[Constraint] = []
        # A model that forces the end of sequence has one token less for the answer.
        most = params.max_new_tokens - bool(params.forced_eos_token_ids)
        forbidden, required = _stripped(config.forbidden_words), _stripped(config.required_words)
        grammar = _grammar(config)
        if grammar:
            found.append(self._grammar(grammar, request, params, most))
        if forbidden and (grammar is None or grammar[0] == "json_schema"):
            words = ForbiddenWords(forbidden, self.vocabulary)
            for token in request.prefix_ids:
                words.advance(token)
            found.append(words)
        if required:
            phrases = [self._spellings(word) for word in required]
            found.append(RequiredWords(phrases, params.eos_token_ids, most, self.vocab_size, request.prefix_ids))
        return tuple(found)

    def _grammar(self, grammar: tuple[Kind, Any], request: GenerationRequest, params: Params, most: int) -> Constraint:
        kind, spec = grammar
        if params.min_new_tokens:
            raise RequestError(f"min_new_tokens does not go with {kind}: the answer ends when it is complete")
        alone = self.window.seq2seq and not request.prefix_ids
        first = params.forced_bos_token_id if alone else None
        frame = Frame(
            prefix_ids=tuple(request.prefix_ids),
            max_new_tokens=most - (first is not None),
            start_text=self.start_text,
            first_token=first,
            forbidden=() if kind == "json_schema" else tuple(_stripped(request.config.forbidden_words)),
        )
        return compile_grammar(kind, spec, self.vocabulary.ending_with(params.eos_token_ids), frame)

    def _spellings(self, word: str) -> list[list[int]]:
        found = spellings(self.tokenizer, word)
        if not found:
            raise RequestError(f"required_words: this model's vocabulary cannot write {word!r}")
        return found


def _refuse_contradictions(config: GenerationConfig) -> None:
    if config.num_beam_groups > 1 and config.do_sample:
        raise RequestError("num_beam_groups above 1 (diverse beam search) does not sample: leave do_sample out")
    grammar = _grammar(config)
    if grammar and _stripped(config.required_words):
        raise RequestError(f"required_words do not go with {grammar[0]}: say there what the answer must hold")
    if _stripped(config.required_words) and config.stop_strings:
        raise RequestError("stop_strings do not go with required_words: they could end the answer before those came")
    if grammar and config.stop_strings:
        raise RequestError(f"stop_strings do not go with {grammar[0]}: they would cut the answer short")


def _grammar(config: GenerationConfig) -> tuple[Kind, Any] | None:
    """What decides the whole answer."""
    kinds: tuple[Literal["json_schema", "regex", "choice"], ...] = ("json_schema", "regex", "choice")
    given: list[tuple[Kind, Any]] = [
        (kind, getattr(config, kind)) for kind in kinds if getattr(config, kind, None) is not None
    ]
    if len(given) > 1:
        raise RequestError(f"{given[0][0]} and {given[1][0]} both decide the whole answer: give one")
    return given[0] if given else None


def _stripped(words: Sequence[str] | None) -> list[str]:
    return [word.strip() for word in words or () if word.strip()]
