"""Between the engine's requests and vLLM's: parameters one way, refusals where vLLM has none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rayloom.engine.request import EngineRequest, Params, TokenScore
from rayloom.errors import RequestError

_WITHOUT = ("typical_p", "eta_cutoff", "epsilon_cutoff", "encoder_repetition_penalty", "no_repeat_ngram_size",
            "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id",
            "forced_eos_token_ids", "num_beams", "num_beam_groups", "diversity_penalty")  # fmt: skip
"""Parameters of row-wise generation that vLLM's engine has not."""
_MOST_BIAS = 100.0
"""vLLM silently cuts larger ones off."""


def sampling_of(request: EngineRequest) -> dict[str, Any]:
    """The request as arguments of vLLM's ``SamplingParams``.

    Raises:
        RequestError: It asks for what vLLM cannot do in the same sense as Rayloom's engine.
    """
    params = request.params
    _refuse(request)
    return {
        "n": params.num_return_sequences,
        "temperature": params.temperature if params.do_sample else 0.0,
        "top_k": params.top_k,
        "top_p": params.top_p,
        "min_p": params.min_p,
        "repetition_penalty": params.repetition_penalty,
        "seed": params.seed if params.do_sample else None,
        "max_tokens": params.max_new_tokens,
        "min_tokens": params.min_new_tokens,
        # The request says itself which tokens end it.
        "ignore_eos": True,
        "stop_token_ids": list(params.eos_token_ids),
        "logprobs": params.logprobs,
        "prompt_logprobs": params.prompt_logprobs,
        "logit_bias": {str(token): bias for token, bias in params.logit_bias},
    }


def score_of(told: Sequence[Any]) -> TokenScore:
    """A score as the worker writes it."""
    logprob, top = told
    return TokenScore(logprob, tuple((token, each) for token, each in top))


def _refuse(request: EngineRequest) -> None:
    params, neutral = request.params, Params(max_new_tokens=1)
    asked = [name for name in _WITHOUT if getattr(params, name) != getattr(neutral, name)]
    if request.constraints:
        asked.append("a constraint (json_schema, regex, choice, required_words or forbidden_words)")
    if asked:
        raise RequestError(
            f"{', '.join(asked)}: engine vllm has no such thing; leave it out, or serve with engine rayloom"
        )
    if not params.do_sample and params.num_return_sequences > 1:
        raise RequestError("num_return_sequences: greedy answers are all the same; set do_sample")
    if any(abs(bias) > _MOST_BIAS and math.isfinite(bias) for _, bias in params.logit_bias):
        raise RequestError(f"logit_bias: with engine vllm at most {_MOST_BIAS:g} either way")
