"""What transformers' own processors make of one row; and requests with random parameters."""

from __future__ import annotations

import random
from typing import Any

import torch
import transformers
from transformers.generation import GenerationMixin, LogitsProcessorList

from rayloom.engine.request import EngineRequest, Params

VOCAB = 61
PROCESSING: dict[str, Any] = {
    "min_new_tokens": lambda draw: draw.randint(1, 8),
    "repetition_penalty": lambda draw: draw.choice([0.7, 1.3, 2.5]),
    "encoder_repetition_penalty": lambda draw: draw.choice([0.6, 1.7]),
    "no_repeat_ngram_size": lambda draw: draw.randint(1, 4),
    "exponential_decay_length_penalty": lambda draw: (draw.randint(0, 5), draw.choice([1.01, 1.1, 1.2])),
    "suppress_tokens": lambda draw: tuple(draw.sample(range(VOCAB), draw.randint(1, 9))),
    "begin_suppress_tokens": lambda draw: tuple(draw.sample(range(VOCAB), draw.randint(1, 9))),
    "forced_bos_token_id": lambda draw: draw.randrange(VOCAB),
    "forced_eos_token_ids": lambda draw: (draw.randrange(VOCAB),),
}
WARPING: dict[str, Any] = {
    "temperature": lambda draw: draw.choice([0.3, 0.8, 1.7]),
    "top_k": lambda draw: draw.choice([1, 2, 5, 12, 40, VOCAB, 500]),
    "top_p": lambda draw: draw.choice([0.0, 0.2, 0.6, 0.9, 0.999]),
    "min_p": lambda draw: draw.choice([0.01, 0.2, 0.9]),
    "typical_p": lambda draw: draw.choice([0.1, 0.5, 0.95]),
    "epsilon_cutoff": lambda draw: draw.choice([0.001, 0.02, 0.3]),
    "eta_cutoff": lambda draw: draw.choice([0.001, 0.05, 0.4]),
}


class _Model(GenerationMixin):
    """As much of a model as building its processors takes."""

    def __init__(self, *, is_encoder_decoder: bool) -> None:
        self.config = transformers.PretrainedConfig(is_encoder_decoder=is_encoder_decoder)


def oracle(request: EngineRequest) -> LogitsProcessorList:
    """The list that ``generate`` would build for this request."""
    params = request.params
    # Set one by one: the constructor refuses combinations that forbid every token, and ours have to be equal there.
    config = transformers.GenerationConfig()
    for name in (*PROCESSING, *WARPING, "do_sample", "num_beams"):
        if not name.startswith(("forced_eos", "suppress", "begin_suppress")):
            setattr(config, name, getattr(params, name))
    config.suppress_tokens = list(params.suppress_tokens) or None
    config.begin_suppress_tokens = list(params.begin_suppress_tokens) or None
    config.forced_eos_token_id = list(params.forced_eos_token_ids) or None
    config.sequence_bias = {(token,): bias for token, bias in params.logit_bias} or None
    config.max_length = request.max_length
    config._eos_token_tensor = torch.tensor(params.eos_token_ids) if params.eos_token_ids else None
    return _Model(is_encoder_decoder=bool(request.encoder_ids))._get_logits_processor(
        config,
        input_ids_seq_length=len(request.start_ids),
        encoder_input_ids=torch.tensor([request.encoder_ids or request.start_ids]),
        device="cpu",
        model_kwargs={"attention_mask": torch.ones(1, len(request.start_ids))},
    )


def expected(request: EngineRequest, tokens: list[int], scores_V: torch.Tensor) -> torch.Tensor:
    """What transformers makes of a row's scores: in float64, where no threshold moves with the order of additions."""
    return oracle(request)(torch.tensor([tokens]), scores_V[None].double())[0].float()


def random_request(draw: random.Random, *, share: float = 0.3, vocab_size: int = VOCAB) -> EngineRequest:
    """A request that uses each parameter with probability ``share``."""
    values = {name: make(draw) for name, make in PROCESSING.items() if draw.random() < share}
    eos = tuple(draw.sample(range(VOCAB), draw.randint(0, 2)))
    if not eos:
        values.pop("exponential_decay_length_penalty", None)
    do_sample = draw.random() < 0.5
    values |= {name: make(draw) for name, make in WARPING.items() if do_sample and draw.random() < share}
    params = Params(
        max_new_tokens=draw.randint(1, 20),
        eos_token_ids=eos,
        do_sample=do_sample,
        num_beams=draw.choice([1, 1, 3]),
        seed=draw.randrange(2**32),
        **values,
    )
    causal = draw.random() < 0.5
    few = vocab_size // 3  # so that n-grams repeat
    return EngineRequest(
        start_ids=tuple(draw.randrange(few) for _ in range(draw.choice([1, 1, 2, 7, 12]))),
        encoder_ids=() if causal else tuple(draw.randrange(vocab_size) for _ in range(draw.randint(1, 15))),
        params=params,
    )


def random_tokens(draw: random.Random, request: EngineRequest) -> list[int]:
    """The request's start tokens and some generated ones, short of its limit."""
    num_new = draw.choice([0, request.params.max_new_tokens - 1, draw.randrange(request.params.max_new_tokens)])
    return [*request.start_ids, *(draw.randrange(VOCAB // 3) for _ in range(num_new))]


def allowed_bits(allowed_V: torch.Tensor) -> Any:
    """Booleans as the bitmask of a constraint."""
    import numpy as np

    bits = np.zeros(-(-allowed_V.numel() // 32) * 32, dtype=np.uint8)
    bits[: allowed_V.numel()] = allowed_V.numpy()
    return np.packbits(bits, bitorder="little").view(np.uint32)
